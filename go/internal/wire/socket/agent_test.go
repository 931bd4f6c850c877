package socket_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

// script is the other side of one connection, frame by frame.
type script struct {
	t    *testing.T
	conn *websocket.Conn
}

func (s script) send(frame string) {
	s.t.Helper()
	if err := s.conn.Write(s.t.Context(), websocket.MessageText, []byte(frame)); err != nil {
		s.t.Errorf("script: send: %v", err)
	}
}

func (s script) expect(want string) {
	s.t.Helper()
	typ, got, err := s.conn.Read(s.t.Context())
	if err != nil || string(got) != want {
		s.t.Errorf("script: got %s, %v, want %s", got, err, want)
	}
	if typ != websocket.MessageBinary {
		s.t.Error("a text message, where binary ones are asked for")
	}
}

// expectEnd waits for the other side to drop the connection.
func (s script) expectEnd() {
	s.t.Helper()
	if _, got, err := s.conn.Read(s.t.Context()); err == nil {
		s.t.Errorf("script: got %s where the end should be", got)
	}
}

const (
	welcome  = `{"tag":"Oob","o":{"tag":"Welcome"}}`
	helloOne = `{"tag":"Oob","o":{"tag":"Hello","contents":{"id":"one"}}}`
	ackNone  = `{"tag":"Ack","n":-1}`
	ping     = `{"tag":"Ping"}`
)

func say(n int64) string {
	return fmt.Sprintf(`{"tag":"Say","contents":{"number":%d,"fill":""}}`, n)
}

func msg(n int64, payload string) string {
	return fmt.Sprintf(`{"tag":"Msg","n":%d,"p":%s}`, n, payload)
}

func ack(n int64) string { return fmt.Sprintf(`{"tag":"Ack","n":%d}`, n) }

// agentAgainst runs an agent's end against scripted connections, one after the other, in a bubble.
func agentAgainst(t *testing.T, change func(*socket.AgentConfig[down, up]), use func(*socket.Agent[down, up]), scripts ...func(script)) (log []string) {
	t.Helper()
	listener := newPipeListener()
	var mu sync.Mutex
	n := 0
	finished := make(chan struct{})
	var served sync.WaitGroup
	stop := listener.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		defer served.Done()
		if got := r.Header.Get("Authorization"); got != "Bearer secret-token" {
			t.Errorf("Authorization: %q", got)
		}
		for _, name := range []string{"Origin", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions"} {
			if r.Header.Get(name) != "" {
				t.Errorf("%s: %q", name, r.Header.Get(name))
			}
		}
		mu.Lock()
		i := n
		n++
		mu.Unlock()
		if i >= len(scripts) {
			http.Error(w, "no more scripts", http.StatusTeapot)
			return
		}
		if scripts[i] == nil {
			http.Error(w, "bad token secret-token", http.StatusUnauthorized)
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		scripts[i](script{t, conn})
		_ = conn.CloseNow()
		if i == len(scripts)-1 {
			close(finished)
		}
	}))
	defer stop()
	cfg := agentConfig(listener.transport(nil))
	cfg.KeepAlive = nil
	start := time.Now()
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, fmt.Sprintf("%v ", time.Since(start).Truncate(time.Second))+fmt.Sprintf(format, args...))
	}
	cfg.Connected = func() { note("connected") }
	cfg.Disconnected = func(err error) { note("disconnected: %v", err) }
	cfg.Exception = func(m string) { note("exception: %s", m) }
	cfg.Receive = func(_ context.Context, m down) {
		if m.Say != nil {
			note("received %d", m.Say.Number)
		} else {
			note("received welcome")
		}
	}
	if change != nil {
		change(&cfg)
	}
	agent := socket.NewAgent(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := agent.Run(ctx); !errors.Is(err, context.Canceled) && err != nil {
			t.Errorf("run: %v", err)
		}
	})
	if use != nil {
		use(agent)
	}
	<-finished
	synctest.Wait()
	cancel()
	wg.Wait()
	served.Wait()
	mu.Lock()
	defer mu.Unlock()
	return log
}

func send(t *testing.T, a *socket.Agent[down, up], numbers ...int64) {
	t.Helper()
	for _, n := range numbers {
		if err := a.Send(t.Context(), up{Say: &word{Number: n}}); err != nil {
			t.Errorf("send: %v", err)
		}
	}
}

func compare(t *testing.T, got, want []string) {
	t.Helper()
	// What came when the script ended is of no interest.
	if n := len(got); n > 0 && len(want) < n {
		got = got[:len(want)]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestAgentResendsAndAcksAsObserved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first := func(s script) {
			s.send(welcome)
			s.expect(helloOne)
			s.send(ackNone)
			s.expect(msg(0, say(100)))
			s.expect(msg(1, say(101)))
			s.expect(msg(2, say(102)))
			s.send(ack(1))
			s.send(ack(0)) // lower: harmless
			// Section 3.4: sending 0, 0, 5, 3, 6 yields acks 0, 0, 5, 3, 6 and deliveries 0, 5, 6.
			for _, n := range []int64{0, 0, 5, 3, 6} {
				s.send(msg(n, say(n)))
			}
			for _, n := range []int64{0, 0, 5, 3, 6} {
				s.expect(ack(n))
			}
			synctest.Wait()
		}
		second := func(s script) {
			s.send(welcome)
			s.expect(helloOne)
			s.send(ack(1))
			s.expect(msg(2, say(102)))
			s.send(msg(6, say(6)))
			s.expect(ack(6))
			s.send(`{"tag":"Oob","o":{"tag":"Say","contents":{"number":77,"fill":""}},"new":null}`)
			synctest.Wait() // messages are delivered by a goroutine of their own, exceptions where they are read
			s.send(`{"tag":"Exception","message":"for people"}`)
			s.send(ack(2))
		}
		got := agentAgainst(t, nil, func(a *socket.Agent[down, up]) { send(t, a, 100, 101, 102) }, first, second)
		compare(t, got, []string{
			"0s connected", "0s received 0", "0s received 5", "0s received 6", "0s disconnected: receiving: failed to get reader: failed to read frame header: EOF",
			"10s connected", "10s received 77", "10s exception: for people",
		})
	})
}

func TestAgentDoesNotBelieveAcksOfWhatItNeverSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		agentAgainst(t, nil, func(a *socket.Agent[down, up]) { send(t, a, 1, 2) }, func(s script) {
			s.send(welcome)
			s.expect(helloOne)
			s.send(ack(41)) // of someone else's messages: ours must not be dropped, nor taken for repetitions
			s.expect(msg(42, say(1)))
			s.expect(msg(43, say(2)))
		})
	})
}

func TestAgentHandshakeErrors(t *testing.T) {
	t.Parallel()
	good := func(s script) {
		s.send(welcome)
		s.expect(helloOne)
		s.send(ackNone)
	}
	tests := map[string]struct {
		script func(script)
		want   string
	}{
		"refused":     {nil, `0s disconnected: connecting to http://server/: 401 Unauthorized (the token was refused): "bad token [redacted]"`},
		"msg first":   {func(s script) { s.send(msg(0, say(1))); s.expectEnd() }, "0s disconnected: handshake: frame Msg where the greeting should be"},
		"no ack":      {func(s script) { s.send(welcome); s.expect(helloOne); s.send(msg(0, say(0))); s.expectEnd() }, "0s disconnected: handshake: frame Msg where Ack should be"},
		"exception":   {func(s script) { s.send(`{"tag":"Exception","message":"go away"}`); s.expectEnd() }, "0s disconnected: handshake: the other side says: go away"},
		"unknown tag": {func(s script) { s.send(`{"tag":"Oob","o":{"tag":"What"}}`); s.expectEnd() }, `0s disconnected: handshake: greeting: decoding *agentapi.Frame[hercules/internal/wire/socket_test.down]: .Oob.o: "What" is no tag of down`},
		"wrong greeting": {func(s script) {
			s.send(`{"tag":"Oob","o":{"tag":"Say","contents":{"number":1,"fill":""}}}`)
			s.expect(`{"tag":"Exception","message":"I want a welcome"}`)
			s.expectEnd()
		}, "0s disconnected: handshake: I want a welcome"},
		"silence": {func(s script) { s.expectEnd() }, "30s disconnected: handshake: greeting: no connection and handshake within 30s"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				got := agentAgainst(t, func(c *socket.AgentConfig[down, up]) {
					c.Greeting = func(d down) error {
						if d.Welcome == nil {
							return errors.New("I want a welcome")
						}
						return nil
					}
				}, nil, tt.script, good)
				compare(t, got, []string{tt.want})
				if len(got) < 2 || !strings.Contains(got[1], "0s connected") {
					t.Errorf("no second connection: %q", got)
				}
			})
		})
	}
}

func TestAgentTimes(t *testing.T) {
	t.Parallel()
	open := func(s script) {
		s.send(welcome)
		s.expect(helloOne)
		s.send(ackNone)
	}
	t.Run("silent coordinator", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			got := agentAgainst(t, nil, nil, func(s script) {
				open(s)
				// Websocket pings are no sign of life (section 3.5).
				var wg sync.WaitGroup
				wg.Go(func() {
					for range 5 {
						time.Sleep(15 * time.Second)
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						_ = s.conn.Ping(ctx)
						cancel()
					}
				})
				s.expectEnd()
				wg.Wait()
			}, open)
			compare(t, got, []string{"0s connected", "1m0s disconnected: nothing was received for too long", "1m10s connected"})
		})
	})
	t.Run("missing ack", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			got := agentAgainst(t, nil, func(a *socket.Agent[down, up]) { send(t, a, 1) }, func(s script) {
				open(s)
				s.expect(msg(0, say(1)))
				var wg sync.WaitGroup
				wg.Go(func() {
					time.Sleep(40 * time.Second)
					s.send(ackNone) // a frame, but no acknowledgement
				})
				s.expectEnd()
				wg.Wait()
			}, open)
			// Section 3.5: no pause in this case.
			compare(t, got, []string{"0s connected", "1m0s disconnected: the other side does not acknowledge", "1m0s connected"})
		})
	})
	t.Run("keep-alive", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			got := agentAgainst(t, func(c *socket.AgentConfig[down, up]) {
				c.KeepAlive = func() up { return up{Ping: &agentapi.Unit{}} }
			}, nil, func(s script) {
				open(s)
				start := time.Now()
				for n := range int64(5) {
					s.expect(msg(n, ping))
					if got := time.Since(start); got != time.Duration(n+1)*30*time.Second {
						t.Errorf("keep-alive %d came after %v", n, got)
					}
					s.send(ack(n))
				}
			})
			compare(t, got, []string{"0s connected"})
		})
	})
}

func TestAgentQueueBlocksWriters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		agent := socket.NewAgent(agentConfig(newPipeListener().transport(nil)))
		for n := range int64(100) {
			send(t, agent, n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := agent.Send(ctx, up{Ping: &agentapi.Unit{}}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the 101st message: %v", err)
		}
		if err := agent.Close(ctx); err == nil || !strings.HasPrefix(err.Error(), "100 messages were not acknowledged") {
			t.Errorf("close: %v", err)
		}
		if err := agent.Send(t.Context(), up{Ping: &agentapi.Unit{}}); !errors.Is(err, socket.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
		if err := agent.Run(t.Context()); !errors.Is(err, socket.ErrClosed) {
			t.Errorf("run after close: %v", err)
		}
	})
}

func TestWhatHasNoEncodingIsNotQueued(t *testing.T) {
	t.Parallel()
	agent := socket.NewAgent(agentConfig(nil))
	for _, m := range []up{{}, {Ping: &agentapi.Unit{}, Say: &word{}}} {
		if err := agent.Send(t.Context(), m); err == nil {
			t.Errorf("%+v was queued", m)
		}
	}
	server := socket.NewServer(serverConfig())
	defer server.Close()
	if err := server.Peer("one").Send(down{}); err == nil || server.Peer("one").Unacked() != 0 {
		t.Error("an empty message was queued")
	}
}
