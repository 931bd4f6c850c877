package socket_test

import (
	"bytes"
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"

	"hercules/internal/wire/socket"
)

// FuzzFrames sends anything, also after a good handshake, to both ends. They must neither panic nor hang, nor
// deliver a number twice.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(msg(0, ping)+"\n"+msg(0, ping)+"\n"+ack(1<<62)), true)
	f.Add([]byte(msg(-9223372036854775808, ping)+"\n"+msg(9223372036854775807, ping)), true)
	f.Add([]byte(ack(9223372036854775807)+"\n"+welcome+"\n"+helloOne), true)
	f.Add([]byte(`{"tag":"Exception","message":"x"}`+"\n"+msg(3, say(3))), true)
	f.Add([]byte("\n{}\n[]"), false)
	f.Fuzz(func(t *testing.T, in []byte, handshake bool) {
		synctest.Test(t, func(t *testing.T) { frames(t, in, handshake) })
	})
}

func frames(t *testing.T, in []byte, handshake bool) {
	cfg := serverConfig()
	seen := map[int64]bool{}
	cfg.Receive = func(_ context.Context, _ *socket.Peer[up, down], n int64, _ up) error {
		if seen[n] {
			t.Errorf("message %d came twice", n)
		}
		seen[n] = true
		return nil
	}
	play := func(s script, opening ...string) {
		ctx := t.Context()
		var wg sync.WaitGroup
		wg.Go(func() { // what the other side writes must not block it
			for {
				if _, _, err := s.conn.Read(ctx); err != nil {
					return
				}
			}
		})
		if handshake {
			for _, frame := range opening {
				_ = s.conn.Write(ctx, websocket.MessageText, []byte(frame))
			}
		}
		for line := range bytes.SplitSeq(in, []byte("\n")) {
			if s.conn.Write(ctx, websocket.MessageBinary, line) != nil {
				break
			}
		}
		synctest.Wait()
		_ = s.conn.CloseNow()
		wg.Wait()
	}
	serverAgainst(t, cfg, func(server *socket.Server[up, down], dial func() script) {
		_ = server.Peer("one").Send(down{Say: &word{}})
		play(dial(), helloOne)
	})
	listener := newPipeListener()
	done := make(chan struct{})
	var once sync.Once
	stop := listener.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		play(script{t, conn}, welcome, ackNone)
		once.Do(func() { close(done) })
	}))
	defer stop()
	agent := socket.NewAgent(agentConfig(listener.transport(nil)))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = agent.Run(ctx) })
	<-done
	cancel()
	wg.Wait()
}
