package daemon_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
)

func TestPool(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	// Nix 2.8 may fail when the first two connections to a new store come at once.
	dial(t, s.Endpoint(), daemon.Options{})
	accepted := &countingRelay{to: s.Endpoint().Socket}
	ep := s.Endpoint()
	ep.Socket = accepted.start(t)
	p := daemon.NewPool(ep, daemon.Options{}, 3)
	var wg sync.WaitGroup
	var inUse, most atomic.Int32
	for range 50 {
		wg.Go(func() {
			err := p.With(t.Context(), func(c *daemon.Conn) error {
				n := inUse.Add(1)
				defer inUse.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				_, err := c.IsValidPath(t.Context(), noPath)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 || accepted.n.Load() > 3 {
		t.Errorf("%d at a time, %d connections", most.Load(), accepted.n.Load())
	}
	// Connections that the daemon has closed meanwhile are replaced without an error.
	accepted.hangUp()
	for range 3 {
		if err := p.With(t.Context(), func(c *daemon.Conn) error { return c.AddTempRoot(t.Context(), noPath) }); err != nil {
			t.Error(err)
		}
	}
	why := errors.New("no more")
	if err := p.With(t.Context(), func(*daemon.Conn) error { return why }); !errors.Is(err, why) {
		t.Errorf("the error is %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.With(t.Context(), func(*daemon.Conn) error { return nil }); err == nil {
		t.Error("a closed pool works")
	}
}

// countingRelay is a socket in front of a daemon that can be cut.
type countingRelay struct {
	to string
	n  atomic.Int32

	mu    sync.Mutex
	conns []net.Conn
}

func (r *countingRelay) start(t *testing.T) string {
	socket := filepath.Join(must(os.MkdirTemp("", "relay"))(t), "sock")
	l := must(net.Listen("unix", socket))(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			r.n.Add(1)
			out, err := net.Dial("unix", r.to)
			if err != nil {
				_ = in.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, in, out)
			r.mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				wg.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					_, _ = pair[0].Close(), pair[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.hangUp()
		wg.Wait()
		_ = os.RemoveAll(filepath.Dir(socket))
	})
	return socket
}

func (r *countingRelay) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}
