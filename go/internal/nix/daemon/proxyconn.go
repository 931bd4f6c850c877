package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"
)

// proxyConn is one client of a Proxy with its connection to the daemon.
type proxyConn struct {
	proxy  *Proxy
	ctx    context.Context
	client net.Conn
	up     transport // nil before the handshake
	cr, ur *reader
	cw, uw *writer
	proto  proto
	// hold keeps what goes to the daemon in the buffer while more is read from the client.
	hold bool
	// duplex: a goroutine of its own moves frames from the client to the daemon.
	duplex  bool
	options bool // the client has sent SetOptions
	// With a Writer: how many temporary roots the daemon still has to answer, and the path that the operation before
	// this one made a root.
	owed   int
	rooted string
}

// blocker calls before whenever a read may block. There the proxy sends what it has in its buffers, and only there, so
// that a round trip costs each side one read and one write.
type blocker struct {
	r      io.Reader
	before func() error
}

func (b blocker) Read(p []byte) (int, error) {
	if err := b.before(); err != nil {
		return 0, err
	}
	return b.r.Read(p)
}

func (c *proxyConn) beforeClient() error {
	if c.uw != nil && !c.hold {
		// That the daemon is gone shows, with its reason, when its answer is read.
		_ = c.uw.flush()
	}
	if !c.duplex {
		return c.cw.flush()
	}
	return nil
}

func (c *proxyConn) beforeDaemon() error {
	if !c.duplex {
		_ = c.uw.flush()
	}
	return c.cw.flush()
}

func (c *proxyConn) serve() error {
	if err := c.handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	for {
		c.cr.begin()
		o := op(c.cr.uint())
		if c.cr.err == io.EOF {
			return nil
		}
		if c.cr.err != nil {
			return c.cr.err
		}
		f, known := c.proto.form(o)
		if !known {
			c.proxy.logger().Warn("unknown operation of the Nix worker protocol: relaying the rest of the connection",
				"operation", uint64(o))
			return c.plainRelay(o)
		}
		if err := c.operation(o, f); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
}

// handshake with both sides. The client is told why when there is no daemon to speak with.
func (c *proxyConn) handshake() error {
	if magic := c.cr.uint(); c.cr.err != nil || magic != magicClient {
		return errors.Join(c.cr.err, malformed("not a Nix client"))
	}
	daemonVersion, refusal := c.dial()
	offer := uint64(versionMax)
	if refusal == nil {
		offer = min(daemonVersion, versionMax)
	}
	c.cw.uint(magicServer)
	c.cw.uint(offer)
	version := min(c.cr.uint(), offer)
	if refusal == nil && version < versionMin {
		refusal = fmt.Errorf("this Nix client speaks version 1.%d of the protocol; 1.%d is needed (Nix 2.4)",
			version&0xff, versionMin&0xff)
	}
	want := proto{version: version}
	if version >= versionMax {
		want.features = intersect(c.cr.strings(), knownFeatures)
	}
	if c.cr.err != nil {
		return c.cr.err
	}
	var offered []string
	if refusal == nil {
		c.proto, offered, refusal = agree(c.ur, c.uw, want)
	}
	if version >= versionMax {
		c.cw.strings(intersect(offered, knownFeatures))
	}
	if c.cr.uint() != 0 { // once CPU affinity
		c.cr.uint()
	}
	c.cr.uint() // once reserve space
	if c.cr.err != nil {
		return c.cr.err
	}
	var nix string
	var trust Trust
	if refusal == nil {
		nix, trust = c.ur.daemonInfo(c.proto)
		refusal = c.ur.err
	}
	if version >= versionNix {
		c.cw.string(nix)
	}
	if version >= versionTrust {
		c.cw.uint(uint64(trust))
	}
	if refusal != nil {
		return c.refuse(refusal)
	}
	c.relayLog("the handshake")
	return c.err()
}

// dial connects to the daemon and returns the version that it offers.
func (c *proxyConn) dial() (uint64, error) {
	var err error
	if c.up, err = dialTransport(c.ctx, c.proxy.Upstream); err != nil {
		return 0, err
	}
	context.AfterFunc(c.ctx, c.up.hangUp)
	c.ur, c.uw = newReader(blocker{c.up, c.beforeDaemon}), newWriter(c.up)
	version, err := greet(c.ur, c.uw)
	if isClosed(err) {
		err = closedError("the handshake", c.up.lastWords())
	}
	return version, err
}

// refuse sends the client an error instead of what it waits for.
func (c *proxyConn) refuse(err error) error {
	c.cw.uint(msgError)
	remote, ok := errors.AsType[*RemoteError](err)
	if !ok {
		remote = &RemoteError{Msg: err.Error()}
	}
	c.cw.remoteError(remote)
	return err
}

// err is the first error of either side.
func (c *proxyConn) err() error {
	if c.ur.err != nil {
		return c.ur.err
	}
	return c.cr.err
}

// operation moves one operation to the daemon and its answer to the client.
func (c *proxyConn) operation(o op, f form) error {
	if o == opSetOptions {
		c.options = true
	} else if err := c.forceOptions(); err != nil {
		return err
	}
	if c.proxy.Writer != nil {
		if handled, err := c.deferring(o); handled || err != nil {
			return err
		}
	}
	args, framed := strings.CutSuffix(f.args, "f")
	switch o {
	case opSetOptions:
		options := c.cr.clientOptions()
		if err := options.apply(c.proxy.Options.Settings); err != nil {
			return c.refuse(err)
		}
		c.uw.uint(uint64(o))
		c.uw.clientOptions(options)
	case opBuildPaths, opBuildPathsWithResults, opBuildDerivation, opEnsurePath:
		if answered, err := c.realise(o); answered || err != nil {
			return err
		}
	default:
		c.uw.uint(uint64(o))
		relay(c.uw, c.cr, args)
	}
	return c.relayAnswer(f, framed, func() { relay(c.cw, c.ur, f.res) })
}

// relayAnswer moves what is left of an operation after its arguments: frames, and the answer, by result.
func (c *proxyConn) relayAnswer(f form, framed bool, result func()) error {
	long := framed && !c.shortFrames()
	if c.cr.err != nil {
		return c.cr.err
	}
	if f.slow {
		defer c.watchClient(c.up.hangUp)()
	}
	var frames sync.WaitGroup
	if long {
		c.duplex = true
		frames.Go(c.longFrames)
	}
	if c.relayLog(f.name) {
		c.ur.begin()
		result()
		if remote, ok := errors.AsType[*RemoteError](c.ur.err); ok {
			_ = c.refuse(remote) // in the place of a NAR
		}
	}
	if c.duplex {
		if c.ur.err != nil {
			_ = c.cw.flush()
			_ = c.client.Close()
		}
		frames.Wait()
		c.duplex = false
	}
	return c.err()
}

// shortFrames moves frames while there are few, in one piece with the rest of the request. It returns true when that
// was all: no second goroutine is needed for what fits into the buffers in between.
func (c *proxyConn) shortFrames() bool {
	c.hold = true
	defer func() { c.hold = false }()
	return relayFrames(c.uw, c.cr, frameSize) || c.cr.err != nil
}

func (c *proxyConn) longFrames() {
	relayFrames(c.uw, c.cr, math.MaxUint64)
	_ = c.uw.flush()
	if err := c.cr.err; err != nil {
		if _, daemonGone := errors.AsType[*sinkError](err); !daemonGone {
			// The client left in the middle.
			c.up.hangUp()
		}
	}
}

// relayLog moves what the daemon sends while it works, and returns true when the work was done and its result follows.
func (c *proxyConn) relayLog(during string) bool {
	for {
		c.ur.begin()
		msg := c.ur.uint()
		if c.ur.err != nil {
			if isClosed(c.ur.err) {
				_ = c.refuse(closedError(during, c.up.lastWords()))
			}
			return false
		}
		switch msg {
		case msgLast:
			c.cw.uint(msg)
			return true
		case msgError:
			e := c.ur.remoteError()
			if c.ur.err == nil {
				_ = c.refuse(e)
			}
			return false
		case msgRead: // ImportPaths: the client sends a piece
			c.cw.uint(msg)
			c.cw.uint(c.ur.uint())
			relayString(c.uw, c.cr)
		case msgWrite: // ExportPath: the client gets a piece
			c.cw.uint(msg)
			relayString(c.cw, c.ur)
		default:
			e, ok := c.ur.event(msg)
			if !ok {
				c.ur.fail(malformed("log message of type %#x", msg))
			}
			if c.ur.err != nil {
				return false
			}
			c.cw.event(msg, e)
			if c.proxy.Hooks.Event != nil {
				c.proxy.Hooks.Event(e.trimmed())
			}
		}
		if !c.duplex && c.cr.err != nil {
			return false
		}
	}
}

// forceOptions sends the settings that are to be forced when a client did not begin with its own, as all do.
func (c *proxyConn) forceOptions() error {
	if c.options || len(c.proxy.Options.Settings) == 0 {
		return nil
	}
	c.options = true
	options, err := newClientOptions(c.proxy.Options)
	if err != nil {
		return c.refuse(err)
	}
	c.uw.uint(uint64(opSetOptions))
	c.uw.clientOptions(options)
	return c.ur.stderr(nil)
}

// plainRelay moves bytes both ways, without looking, until both ways have ended.
func (c *proxyConn) plainRelay(o op) error {
	if c.proxy.Writer != nil {
		if _, err := c.deferring(o); err != nil {
			return err
		}
	}
	c.uw.uint(uint64(o))
	if err := errors.Join(c.uw.flush(), c.cw.flush()); err != nil {
		return err
	}
	// What the readers hold in their buffers goes first.
	c.hold, c.duplex = true, true
	var toDaemon sync.WaitGroup
	toDaemon.Go(func() {
		_, err := c.cr.br.WriteTo(c.up)
		if err != nil || c.clientHungUp() {
			c.up.hangUp()
		}
		_ = c.up.CloseWrite()
	})
	_, err := c.ur.br.WriteTo(c.client)
	// When the daemon has ended there is nobody to speak to.
	_ = c.client.Close()
	toDaemon.Wait()
	return err
}
