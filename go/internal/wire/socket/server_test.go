package socket_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"hercules/internal/wire/socket"
)

// serverAgainst runs a server and gives the test raw connections to it.
func serverAgainst(t *testing.T, cfg socket.ServerConfig[up, down], use func(s *socket.Server[up, down], dial func() script)) {
	t.Helper()
	server := socket.NewServer(cfg)
	listener := newPipeListener()
	stop := listener.serve(server)
	defer stop()
	defer server.Close()
	use(server, func() script {
		conn, resp, err := websocket.Dial(t.Context(), "http://server/", &websocket.DialOptions{HTTPClient: &http.Client{Transport: listener.transport(nil)}})
		if err != nil {
			t.Fatal(err)
		}
		_ = resp
		t.Cleanup(func() { _ = conn.CloseNow() })
		return script{t, conn}
	})
}

func TestServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var log []string
		note := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, fmt.Sprintf(format, args...))
		}
		cfg := serverConfig()
		cfg.Store = &memory{n: map[string]int64{"old": 56}}
		cfg.Base = func() int64 { return 1000 }
		broken := true
		cfg.Receive = func(_ context.Context, p *socket.Peer[up, down], n int64, m up) error {
			if n == 9 && broken {
				broken = false
				return errors.New("broken")
			}
			note("%s %d", p.Identity(), n)
			return nil
		}
		cfg.Disconnected = func(p *socket.Peer[up, down], err error) { note("%s gone: %v", p.Identity(), err) }
		cfg.Exception = func(p *socket.Peer[up, down], m string) { note("%s says %s", p.Identity(), m) }
		cfg.Failed = func(_ *http.Request, err error) { note("failed: %v", err) }
		serverAgainst(t, cfg, func(server *socket.Server[up, down], dial func() script) {
			if err := server.Peer("one").Send(down{Say: &word{Number: 5}}); err != nil {
				t.Error(err)
			}
			open := func(want int64) script {
				c := dial()
				c.expect(welcome)
				c.send(helloOne)
				c.expect(ack(want))
				c.expect(msg(1000, say(5)))
				return c
			}
			a := open(-1)
			a.send(msg(7, ping)) // gaps are fine
			a.expect(ack(7))
			a.send(msg(7, ping))
			a.expect(ack(7))
			a.send(`{"tag":"Exception","message":"hm"}`)
			a.send(msg(9, ping)) // fails: dropped without ack
			a.expectEnd()
			b := open(7)
			b.send(msg(9, ping))
			b.expect(ack(9))
			c := open(9) // replaces b
			b.expectEnd()
			c.send(ack(1000))
			if err := server.Peer("one").Flush(t.Context()); err != nil {
				t.Error(err)
			}
			if !server.Peer("one").Connected() {
				t.Error("not connected")
			}
			old := dial()
			old.expect(welcome)
			old.send(strings.Replace(helloOne, "one", "old", 1))
			old.expect(ack(56)) // from the store
			old.send(msg(57, `{"tag":"What"}`))
			old.expectEnd()
			bad := dial()
			bad.expect(welcome)
			bad.send(`{"tag":"Oob","o":{"tag":"Ping"}}`)
			bad.expect(`{"tag":"Exception","message":"no hello"}`)
			bad.expectEnd()
			server.Forget("one")
			c.expectEnd()
			silent := dial()
			silent.expect(welcome)
			start := time.Now()
			silent.expectEnd()
			if got := time.Since(start); got != 30*time.Second {
				t.Errorf("a silent connection was dropped after %v", got)
			}
			idle := dial()
			idle.expect(welcome)
			idle.send(helloOne)
			idle.expect(ack(9))
			start = time.Now()
			idle.expectEnd()
			if got := time.Since(start); got != 120*time.Second {
				t.Errorf("an idle connection was dropped after %v", got)
			}
			synctest.Wait()
		})
		compare(t, log, []string{
			"one 7", "one says hm", "one gone: message 9: broken", "one 9", "one gone: replaced by a newer connection of the same peer",
			`old gone: decoding *agentapi.Frame[hercules/internal/wire/socket_test.up]: .Msg.p: "What" is no tag of up`,
			"failed: handshake: no hello", "one gone: the socket is closed", "failed: handshake: hello: no handshake within 30s",
			"one gone: nothing was received for too long",
		})
	})
}

// TestOverRealNetwork is one exchange over TCP, with large messages.
func TestOverRealNetwork(t *testing.T) {
	t.Parallel()
	got := newInOrder(300)
	cfg := serverConfig()
	cfg.Receive = func(_ context.Context, p *socket.Peer[up, down], _ int64, m up) error {
		got.got(m.Say.Number)
		return p.Send(down{Say: m.Say})
	}
	server := socket.NewServer(cfg)
	ts := httptest.NewServer(server)
	defer ts.Close()
	defer server.Close()
	back := newInOrder(300)
	acfg := agentConfig(nil)
	acfg.URL = ts.URL
	acfg.Receive = func(_ context.Context, m down) { back.got(m.Say.Number) }
	agent := socket.NewAgent(acfg)
	var wg sync.WaitGroup
	wg.Go(func() { _ = agent.Run(t.Context()) })
	for n := range int64(300) {
		if err := agent.Send(t.Context(), up{Say: &word{Number: n, Fill: strings.Repeat("é", int(n)*200)}}); err != nil {
			t.Fatal(err)
		}
	}
	<-got.full
	<-back.full
	if err := agent.Close(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	got.check(t, "to the server")
	back.check(t, "to the agent")
}

func BenchmarkRoundTrip(b *testing.B) {
	cfg := serverConfig()
	cfg.Receive = func(_ context.Context, p *socket.Peer[up, down], _ int64, m up) error {
		return p.Send(down{Say: m.Say})
	}
	server := socket.NewServer(cfg)
	ts := httptest.NewServer(server)
	defer ts.Close()
	defer server.Close()
	back := make(chan struct{})
	acfg := agentConfig(nil)
	acfg.URL = ts.URL
	acfg.Receive = func(context.Context, down) { back <- struct{}{} }
	agent := socket.NewAgent(acfg)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = agent.Run(ctx) })
	for b.Loop() {
		_ = agent.Send(ctx, up{Say: &word{}})
		<-back
	}
	cancel()
	wg.Wait()
}

// BenchmarkStream is one direction without waiting, one message each.
func BenchmarkStream(b *testing.B) {
	server := socket.NewServer(serverConfig())
	ts := httptest.NewServer(server)
	defer ts.Close()
	defer server.Close()
	acfg := agentConfig(nil)
	acfg.URL = ts.URL
	agent := socket.NewAgent(acfg)
	var wg sync.WaitGroup
	wg.Go(func() { _ = agent.Run(b.Context()) })
	fill := strings.Repeat("x", 100)
	for b.Loop() {
		if err := agent.Send(b.Context(), up{Say: &word{Fill: fill}}); err != nil {
			b.Fatal(err)
		}
	}
	if err := agent.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	wg.Wait()
}
