package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"
)

// Conn is a connection to a Nix daemon. It is not for concurrent use: see Pool.
//
// An operation fails with a *RemoteError when the daemon reports one; the connection stays usable. Any other error of an
// operation, and the end of its context, closes the connection: that is how a daemon learns that it should stop, and
// it kills its builders. Close must be called in any case.
type Conn struct {
	t      transport
	r      *reader
	w      *writer
	log    func(Event)
	proto  proto
	daemon uint64 // version that the daemon offers
	nix    string
	trust  Trust
	broken error
	frame  []byte // buffer of stream
}

// Dial connects and sends the settings.
func Dial(ctx context.Context, ep Endpoint, o Options) (*Conn, error) {
	options, err := newClientOptions(o)
	if err != nil {
		return nil, err
	}
	var c *Conn
	for _, pause := range []time.Duration{50 * time.Millisecond, 500 * time.Millisecond, 0} {
		c, err = connect(ctx, ep, o.Log)
		// Two connections that are the first ones of a new store can get into each other's way: both make the same
		// directories, and the daemon drops the one that comes second (seen with Nix 2.8).
		if _, closed := errors.AsType[*ClosedError](err); !closed || ep.Socket == "" || pause == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
	if err != nil {
		return nil, err
	}
	err = c.call(ctx, opSetOptions, func() { c.w.clientOptions(options) }, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sending settings to the Nix daemon: %w", err), c.Close())
	}
	return c, nil
}

// connect opens a transport and shakes hands.
func connect(ctx context.Context, ep Endpoint, log func(Event)) (*Conn, error) {
	t, err := dialTransport(ctx, ep)
	if err != nil {
		return nil, err
	}
	c := &Conn{t: t, r: newReader(t), w: newWriter(t), log: log}
	if err := c.guard(ctx, "the handshake", c.handshake); err != nil {
		c.t.hangUp()
		c.t.wait()
		return nil, fmt.Errorf("connecting to the Nix daemon: %w", err)
	}
	return c, nil
}

// handshake of the client (worker-protocol-connection.cc).
func (c *Conn) handshake() error {
	var err error
	if c.daemon, err = greet(c.r, c.w); err != nil {
		return err
	}
	want := proto{version: min(c.daemon, versionMax), features: knownFeatures}
	if c.proto, _, err = agree(c.r, c.w, want); err != nil {
		return err
	}
	c.nix, c.trust = c.r.daemonInfo(c.proto)
	if c.r.err != nil {
		return c.r.err
	}
	return c.r.stderr(c.log)
}

// greet says hello to a daemon and returns the version it offers.
func greet(r *reader, w *writer) (uint64, error) {
	w.uint(magicClient)
	if err := w.flush(); err != nil {
		return 0, err
	}
	magic := r.uint()
	if r.err != nil {
		return 0, r.err
	}
	if magic != magicServer {
		// Likely a shell's greeting or an error text of ssh.
		first := zeros[:0:0]
		for i := range 8 {
			first = append(first, byte(magic>>(8*i)))
		}
		rest, _ := r.br.Peek(r.br.Buffered())
		return 0, malformed("not a Nix daemon: it says %.200q", append(first, rest...))
	}
	version := r.uint()
	if r.err == nil && (version>>8 != versionMax>>8 || version < versionMin) {
		return 0, fmt.Errorf("the daemon speaks version %d.%d of the protocol; 1.%d or newer is needed (Nix 2.4)",
			version>>8, version&0xff, versionMin&0xff)
	}
	return version, r.err
}

// agree tells the daemon the version and the features, and reads its features. It returns what both sides know, and
// what the daemon offered.
func agree(r *reader, w *writer, want proto) (both proto, offered []string, err error) {
	both.version = want.version
	w.uint(want.version)
	if want.version >= versionMax {
		w.strings(want.features)
		if err := w.flush(); err != nil {
			return proto{}, nil, err
		}
		offered = r.strings()
		both.features = intersect(want.features, offered)
	}
	w.uint(0) // once CPU affinity
	w.uint(0) // once reserve space
	if err := w.flush(); err != nil {
		return proto{}, nil, err
	}
	return both, offered, r.err
}

// daemonInfo is what the daemon says of itself after the handshake.
func (r *reader) daemonInfo(p proto) (nix string, trust Trust) {
	if p.version >= versionNix {
		nix = r.string()
	}
	if p.version >= versionTrust {
		if trust = Trust(r.uint()); trust > NotTrusted {
			r.fail(malformed("trust %d", trust))
		}
	}
	return nix, trust
}

// Close ends the connection and waits until a spawned daemon is gone.
func (c *Conn) Close() error {
	if c.broken == nil {
		c.broken = errors.New("the connection to the Nix daemon is closed")
	}
	c.t.hangUp()
	c.t.wait()
	return nil
}

// ProtocolVersion returns the version that is spoken and the one that the daemon offers, each major*256+minor.
func (c *Conn) ProtocolVersion() (client, daemon int) { return int(c.proto.version), int(c.daemon) }

// DaemonVersion is the daemon's Nix version, empty before Nix 2.7.
func (c *Conn) DaemonVersion() string { return c.nix }

// Trusted tells whether the daemon trusts this client.
func (c *Conn) Trusted() Trust { return c.trust }

// Broken tells that the connection can not be used any more.
func (c *Conn) Broken() bool { return c.broken != nil }

// alive tells whether the daemon still listens, as far as one can know while nothing is under way.
func (c *Conn) alive() bool { return c.broken == nil && !c.t.pending() }

// guard runs f, which uses the connection, so that the end of ctx ends f too, and makes its errors clear.
func (c *Conn) guard(ctx context.Context, what string, f func() error) error {
	if c.broken != nil {
		return fmt.Errorf("%s: %w", what, c.broken)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, cause(ctx))
	}
	stop := func() bool { return true }
	if ctx.Done() != nil {
		stop = context.AfterFunc(ctx, c.t.hangUp)
	}
	err := f()
	inTime := stop()
	if err == nil {
		err = c.r.err
	}
	if _, ok := errors.AsType[*RemoteError](err); ok || err == nil {
		// A daemon that could not even parse a request sends its error twice and leaves: something is left in the
		// buffer. Else nothing may be.
		if !inTime {
			c.broken = cause(ctx)
		} else if c.r.err != nil || c.r.br.Buffered() > 0 {
			c.hangUp(errors.New("the daemon gave up the connection after an error"))
		}
		return err
	}
	if !inTime {
		err = cause(ctx)
	} else if isClosed(err) {
		err = closedError(what, c.t.lastWords())
	}
	err = fmt.Errorf("%s: %w", what, err)
	c.hangUp(err)
	return err
}

func (c *Conn) hangUp(err error) {
	c.broken = err
	c.t.hangUp()
}

// cause is why ctx ended, and always also context.Canceled or DeadlineExceeded.
func cause(ctx context.Context) error {
	err, why := ctx.Err(), context.Cause(ctx)
	if why == nil || errors.Is(why, err) {
		return why
	}
	return fmt.Errorf("%w: %w", err, why)
}

// isClosed tells an error that means that the other side is gone.
func isClosed(err error) bool {
	if _, ok := errors.AsType[*sinkError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*sourceError](err); ok {
		return false
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, syscall.ECONNRESET)
}

// A ClosedError says that the daemon left in the middle of an operation.
type ClosedError struct {
	During string // the operation
	Stderr string // what the daemon's process had to say, if it is ours
}

func closedError(during, stderr string) error { return &ClosedError{during, stderr} }

func (e *ClosedError) Error() string {
	s := "the Nix daemon closed the connection during " + e.During
	if e.Stderr != "" {
		s += " (its last words: " + strings.ToValidUTF8(e.Stderr, "\ufffd") + ")"
	}
	return s
}

// call runs an operation: args writes its arguments, result reads its result. Both may be nil.
func (c *Conn) call(ctx context.Context, o op, args, result func()) error {
	return c.guard(ctx, o.String(), func() error {
		c.w.uint(uint64(o))
		if args != nil {
			args()
		}
		if err := c.w.flush(); err != nil {
			return c.explain(err)
		}
		return c.answer(result)
	})
}

// answer reads the daemon's answer to an operation.
func (c *Conn) answer(result func()) error {
	if err := c.r.stderr(c.log); err != nil {
		return err
	}
	c.r.begin()
	if result != nil {
		result()
	}
	return c.r.err
}

// explain looks for what the daemon said before it stopped to listen.
func (c *Conn) explain(err error) error {
	if !isClosed(err) {
		return err
	}
	if said := c.r.stderr(c.log); said != nil {
		return said
	}
	return err
}

// done reads the number with which most operations without a result end.
func (c *Conn) done() { c.r.uint() }
