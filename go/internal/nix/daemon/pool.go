package daemon

import (
	"context"
	"errors"
	"sync"
)

// Pool is a bounded set of connections to one daemon, opened when they are needed. It is for concurrent use.
type Pool struct {
	ep    Endpoint
	opts  Options
	slots chan struct{}

	mu     sync.Mutex
	idle   []*Conn
	closed bool
}

// NewPool returns a pool of at most max connections. Options.Log is called concurrently.
func NewPool(ep Endpoint, o Options, max int) *Pool {
	return &Pool{ep: ep, opts: o, slots: make(chan struct{}, max)}
}

var errPoolClosed = errors.New("the pool of connections to the Nix daemon is closed")

// With calls f with a connection of the pool, waiting for one while all are in use. An idle connection that the daemon
// has closed meanwhile is replaced before.
func (p *Pool) With(ctx context.Context, f func(*Conn) error) error {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return cause(ctx)
	}
	defer func() { <-p.slots }()
	c, err := p.get(ctx)
	if err != nil {
		return err
	}
	returned := false
	defer func() { p.put(c, returned) }()
	err = f(c)
	returned = true // f did not panic
	return err
}

func (p *Pool) get(ctx context.Context) (*Conn, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, errPoolClosed
		}
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return Dial(ctx, p.ep, p.opts)
		}
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if c.alive() {
			return c, nil
		}
		_ = c.Close()
	}
}

func (p *Pool) put(c *Conn, keep bool) {
	p.mu.Lock()
	keep = keep && !p.closed && !c.Broken()
	if keep {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if !keep {
		_ = c.Close()
	}
}

// Close closes the idle connections; those in use are closed when their user is done.
func (p *Pool) Close() error {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	var err error
	for _, c := range idle {
		err = errors.Join(err, c.Close())
	}
	return err
}
