package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// Proxy sits between Nix clients and a daemon. Every connection of a client gets one of its own to the daemon, and both
// speak the version and the features that all three know. The proxy sees every operation; those that it does not
// know turn their connection into a plain relay.
type Proxy struct {
	Upstream Endpoint
	// Options.Settings are put on top of those that the clients send. The rest of Options is not used: log messages go
	// to the client at the verbosity that it asks for.
	Options Options
	Hooks   Hooks
	// Writer, of the same store, defers the derivations that clients add. Several proxies may share one. May be nil.
	Writer *Writer
	// Log may be nil.
	Log *slog.Logger
}

// Hooks of a Proxy; each may be nil. They are called concurrently for different connections.
type Hooks struct {
	// Realise is asked before BuildPaths, BuildPathsWithResults, BuildDerivation and EnsurePath are forwarded: nil lets
	// the daemon do it, an error is what the client gets. The client waits meanwhile; when it leaves, ctx ends.
	Realise func(ctx context.Context, paths []DerivedPath) error
	// Event gets a copy of the messages that pass to a client, in their order.
	Event func(Event)
}

// Serve accepts clients until ctx ends. Then it ends their connections and returns nil when they are gone. It closes l.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		client, err := l.Accept()
		switch {
		case err == nil:
			conns.Go(func() { p.serveConn(ctx, client) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			p.logger().Error("can't accept a Nix client", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		default:
			return fmt.Errorf("accepting Nix clients: %w", err)
		}
	}
}

func (p *Proxy) logger() *slog.Logger {
	if p.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return p.Log
}

func (p *Proxy) serveConn(ctx context.Context, client net.Conn) {
	c := &proxyConn{proxy: p, ctx: ctx, client: client}
	c.cr, c.cw = newReader(blocker{client, c.beforeClient}), newWriter(client)
	defer func() {
		_ = c.cw.flush()
		_ = client.Close()
		if c.up != nil {
			if p.Writer != nil {
				// What is deferred may refer to what this connection keeps from the garbage collector.
				_ = p.Writer.Flush(ctx)
			}
			c.up.hangUp()
			c.up.wait()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer stop()
	if err := c.serve(); err != nil && ctx.Err() == nil {
		p.logger().Debug("connection of a Nix client ended", "error", err)
	}
}
