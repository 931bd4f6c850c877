package build

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hercules/internal/nix/daemon"
)

// How long a connection is kept for the next build. Short, because a daemon keeps for its connection what it knows of
// paths, and keeps from garbage collection everything that it worked on.
const (
	idleTime = 5 * time.Second
	lifeTime = time.Minute
)

// Conns gives connections to a Nix daemon, one caller at a time each, and keeps them a short while for the next caller
// with the same settings: a socket connection costs the daemon a fork, and a daemon process of our own 10 ms and more.
//
// A connection is only used again if the daemon trusts us. Otherwise it goes by its own narinfo-cache-negative-ttl,
// and may still believe that a path is missing which another connection has built in the meantime.
type Conns struct {
	ep      daemon.Endpoint
	trusted bool
	closing sync.WaitGroup

	mu     sync.Mutex
	closed bool
	idle   map[[sha256.Size]byte][]*conn
}

type conn struct {
	*daemon.Conn
	log  atomic.Pointer[func(daemon.Event)] // of the present user
	born time.Time
	end  *time.Timer
}

// NewConns makes connections to ep when they are asked for. Close it. Daemons before Nix 2.15 do not say whether they
// trust their client; trusted says it for them.
func NewConns(ep daemon.Endpoint, trusted bool) *Conns {
	return &Conns{ep: ep, trusted: trusted, idle: map[[sha256.Size]byte][]*conn{}}
}

// Root is where the store of the daemon is mounted here; see [daemon.Endpoint].
func (c *Conns) Root() string { return c.ep.Root }

// With calls f with a connection that has these options. When ctx ends, the connection is closed.
func (c *Conns) With(ctx context.Context, o daemon.Options, f func(*daemon.Conn) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	key := fingerprint(o)
	cn := c.take(ctx, key)
	if cn != nil {
		cn.log.Store(&o.Log)
	} else {
		var err error
		if cn, err = c.dial(ctx, o); err != nil {
			return fmt.Errorf("the Nix daemon cannot be reached: %w", err)
		}
	}
	returned := false
	defer func() {
		cn.log.Store(nil)
		trusted := cn.Trusted() == daemon.Trusted || cn.Trusted() == daemon.TrustUnknown && c.trusted
		if returned && trusted && !cn.Broken() && ctx.Err() == nil {
			c.put(key, cn)
		} else {
			_ = cn.Close()
		}
	}()
	err := f(cn.Conn)
	returned = true // f did not panic
	return err
}

func (c *Conns) dial(ctx context.Context, o daemon.Options) (*conn, error) {
	cn := &conn{born: time.Now()}
	log := o.Log
	cn.log.Store(&log)
	o.Log = func(e daemon.Event) {
		if log := cn.log.Load(); log != nil && *log != nil {
			(*log)(e)
		}
	}
	var err error
	cn.Conn, err = daemon.Dial(ctx, c.ep, o)
	if err != nil {
		return nil, err
	}
	return cn, nil
}

// take finds a connection to use again, or nil.
func (c *Conns) take(ctx context.Context, key [sha256.Size]byte) *conn {
	for {
		c.mu.Lock()
		list := c.idle[key]
		if len(list) == 0 {
			c.mu.Unlock()
			return nil
		}
		cn := list[len(list)-1]
		list[len(list)-1] = nil
		c.idle[key] = list[:len(list)-1]
		cn.end.Stop()
		c.mu.Unlock()
		// The daemon may have been restarted while nobody looked: a round trip tells.
		if _, err := cn.QueryValidPaths(ctx, nil, false); err == nil {
			return cn
		}
		_ = cn.Close()
	}
}

func (c *Conns) put(key [sha256.Size]byte, cn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := min(idleTime, lifeTime-time.Since(cn.born))
	if c.closed || left <= 0 {
		// Closing may take a moment where the daemon is a process of ours.
		c.closing.Go(func() { _ = cn.Close() })
		return
	}
	c.idle[key] = append(c.idle[key], cn)
	cn.end = time.AfterFunc(left, func() {
		c.mu.Lock()
		i := -1
		if !c.closed {
			i = slices.Index(c.idle[key], cn)
		}
		if i >= 0 {
			c.idle[key] = slices.Delete(c.idle[key], i, i+1)
			if len(c.idle[key]) == 0 {
				delete(c.idle, key)
			}
		}
		c.mu.Unlock()
		if i >= 0 {
			_ = cn.Close()
		}
	})
}

// Close closes the connections that wait for another use; those in use are closed by their users.
func (c *Conns) Close() {
	c.mu.Lock()
	c.closed = true
	idle := c.idle
	c.idle = nil
	c.mu.Unlock()
	for _, list := range idle {
		for _, cn := range list {
			cn.end.Stop()
			_ = cn.Close()
		}
	}
	c.closing.Wait()
}

// fingerprint is the same for options with which a connection can be shared.
func fingerprint(o daemon.Options) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", o.Verbosity)
	for _, name := range slices.Sorted(maps.Keys(o.Settings)) {
		fmt.Fprintf(h, "%q=%q\n", name, o.Settings[name])
	}
	return [sha256.Size]byte(h.Sum(nil))
}
