package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/push/fault"
	"hercules/internal/push/pack"
)

const (
	// presentFor is for how long it is believed that a cache has what it had. Caches that delete old paths do so after days.
	presentFor = time.Hour
	maxPresent = 500_000
)

// target is where paths go. It is safe for concurrent use.
type target interface {
	// Missing gives those of the paths that the cache lacks.
	Missing(ctx context.Context, paths []string) ([]string, error)
	// Upload sends the archive that src writes. After it was written and before any of it can count, check is asked whether it is the
	// right one. Commit makes the path visible. Sent is the number of bytes sent.
	Upload(ctx context.Context, info *daemon.PathInfo, src func(io.Writer) error, check func(pack.Result) error) (
		commit func(context.Context) error, sent uint64, err error)
	Close()
}

// copier is a target that takes a whole closure in one go.
type copier interface {
	target
	// Copy adds the paths, references first.
	Copy(ctx context.Context, infos []*daemon.PathInfo, nar func(context.Context, *daemon.PathInfo, io.Writer) error) error
}

// cache is a cache that is pushed to, by all tasks.
type cache struct {
	name     string
	target   target
	sign     *signer
	uploads  int           // at once in a push, where the configuration says so; 0: it does not
	closures chan struct{} // one for each closure of derivations that is being pushed
	copying  chan struct{} // held by the one who copies, where the target is a copier

	mu      sync.Mutex
	present map[string]time.Time // until when
	flights map[string]*flight
}

// flight is one path on its way, for everybody who needs it there.
type flight struct {
	done   chan struct{}
	err    error
	cancel context.CancelCauseFunc
	// The rest is protected by the cache's mutex.
	waiters int
	onFail  []func(error)
}

var errUnwanted = errors.New("nobody waits for the upload any more")

// stats of one push.
type stats struct {
	uploaded int
	sent     uint64
	signed   map[string][]string // signatures made, by path
}

// call is one push of a closure to a cache.
type call struct {
	c       *cache
	s       *session
	ctx     context.Context //nolint:containedctx // of the call
	fail    context.CancelCauseFunc
	flights map[string]*flight // of paths that were missing

	mu    sync.Mutex
	stats stats
}

// push brings what the cache lacks of a closure, which has references first, into it.
func (c *cache) push(ctx context.Context, s *session, closure []*daemon.PathInfo, uploads int) (stats, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &call{c: c, s: s, ctx: ctx, fail: cancel, flights: map[string]*flight{}, stats: stats{signed: map[string][]string{}}}
	missing, err := c.missing(ctx, closure)
	if err == nil {
		if to, ok := c.target.(copier); ok {
			err = p.copy(to, missing)
		} else {
			err = p.upload(missing, uploads)
		}
	}
	if err != nil {
		return p.stats, c.errorOf(err)
	}
	return p.stats, nil
}

// errorOf names the cache.
func (c *cache) errorOf(err error) error {
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	e := &Error{Cache: c.name, Kind: fault.KindOf(err), Err: err}
	if at, ok := errors.AsType[*pathError](err); ok && at == err {
		e.Path, e.Err = at.path, at.err
	}
	return e
}

// missing gives what the cache lacks, and what others are bringing there at this moment.
func (c *cache) missing(ctx context.Context, closure []*daemon.PathInfo) ([]*daemon.PathInfo, error) {
	lacks := map[string]bool{}
	var unknown []string
	now := time.Now()
	c.mu.Lock()
	for _, info := range closure {
		switch {
		case c.flights[info.Path] != nil:
			lacks[info.Path] = true
		case now.After(c.present[info.Path]):
			unknown = append(unknown, info.Path)
		}
	}
	c.mu.Unlock()
	if len(unknown) > 0 {
		absent, err := c.target.Missing(ctx, unknown)
		if err != nil {
			return nil, err
		}
		for _, p := range absent {
			lacks[p] = true
		}
		c.mu.Lock()
		for _, p := range unknown {
			if !lacks[p] {
				c.has(p)
			}
		}
		c.mu.Unlock()
	}
	var missing []*daemon.PathInfo
	for _, info := range closure {
		if lacks[info.Path] {
			missing = append(missing, info)
		}
	}
	return missing, nil
}

// has remembers that the cache has a path. Called with mu held.
func (c *cache) has(path string) {
	if c.present == nil || len(c.present) >= maxPresent {
		c.present = map[string]time.Time{}
	}
	c.present[path] = time.Now().Add(presentFor)
}

// copy has a copier do it, one push after the other: what one brought is there for the next.
func (p *call) copy(to copier, missing []*daemon.PathInfo) error {
	if len(missing) == 0 {
		return nil
	}
	select {
	case p.c.copying <- struct{}{}:
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
	defer func() { <-p.c.copying }()
	missing, err := p.c.missing(p.ctx, missing)
	if err != nil || len(missing) == 0 {
		return err
	}
	signed := make([]*daemon.PathInfo, len(missing))
	for i, info := range missing {
		if signed[i], err = p.signed(info); err != nil {
			return err
		}
	}
	if err := to.Copy(p.ctx, signed, p.s.nar); err != nil {
		return err
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for _, info := range missing {
		p.c.has(info.Path)
		p.stats.uploaded++
		p.stats.sent += info.NarSize
	}
	return nil
}

func (p *call) signed(info *daemon.PathInfo) (*daemon.PathInfo, error) {
	signed, made, err := p.c.sign.sign(info)
	if err != nil {
		return nil, &pathError{info.Path, err}
	}
	if len(made) > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.stats.signed[info.Path] = made
	}
	return signed, nil
}

// upload brings paths into the cache, joining those who bring some of them already.
func (p *call) upload(missing []*daemon.PathInfo, uploads int) error {
	slots := make(chan struct{}, uploads)
	defer p.leave()
	for _, info := range missing {
		select {
		case slots <- struct{}{}:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
		release := func() { <-slots }
		if !p.start(info, release) {
			release()
		}
	}
	for _, f := range p.flights {
		select {
		case <-f.done:
			if f.err != nil {
				return f.err
			}
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
	return nil
}

// leave gives up what this call still waits for.
func (p *call) leave() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for _, f := range p.flights {
		if f.waiters--; f.waiters == 0 {
			f.cancel(errUnwanted)
		}
	}
}

// start joins the flight of a path or begins one, which then owns the slot.
func (p *call) start(info *daemon.PathInfo, release func()) (began bool) {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.flights[info.Path]
	if f == nil {
		if time.Now().Before(c.present[info.Path]) {
			return false // brought by another one in the meantime
		}
		began = true
		// It may outlive this call, when others need it too.
		ctx, cancel := context.WithCancelCause(context.WithoutCancel(p.ctx))
		f = &flight{done: make(chan struct{}), cancel: cancel}
		c.flights[info.Path] = f
		var refs []*flight
		for _, ref := range info.References {
			if r := p.flights[ref]; r != nil {
				refs = append(refs, r)
			}
		}
		p.s.wg.Go(func() {
			err := p.fly(ctx, info, refs, release)
			c.land(f, info.Path, err)
		})
	}
	f.waiters++
	f.onFail = append(f.onFail, p.fail)
	p.flights[info.Path] = f
	return began
}

// land ends a flight.
func (c *cache) land(f *flight, path string, err error) {
	c.mu.Lock()
	delete(c.flights, path)
	if err == nil {
		c.has(path)
	} else {
		err = c.errorOf(&pathError{path, err})
	}
	f.err = err
	onFail := f.onFail
	c.mu.Unlock()
	if err != nil {
		for _, fail := range onFail {
			fail(err)
		}
	}
	close(f.done)
	f.cancel(nil)
}

// fly uploads a path, and makes it visible when its references are.
func (p *call) fly(ctx context.Context, info *daemon.PathInfo, refs []*flight, release func()) error {
	commit, sent, err := p.send(ctx, info)
	release()
	if err != nil {
		return err
	}
	for _, r := range refs {
		select {
		case <-r.done:
			if r.err != nil {
				return r.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := commit(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.uploaded++
	p.stats.sent += sent
	return nil
}

func (p *call) send(ctx context.Context, info *daemon.PathInfo) (func(context.Context) error, uint64, error) {
	signed, err := p.signed(info)
	if err != nil {
		return nil, 0, err
	}
	src := func(w io.Writer) error { return p.s.nar(ctx, info, w) }
	return p.c.target.Upload(ctx, signed, src, func(r pack.Result) error { return p.s.verify(ctx, info, r) })
}

// errChanged: the path was collected and built again with another result since the store was asked about it.
var errChanged = errors.New("it was built again, with another result, while it was being pushed")

// verify says whether this is the archive of the path.
func (s *session) verify(ctx context.Context, info *daemon.PathInfo, r pack.Result) error {
	if string(r.NarHash[:]) == string(info.NarHash) && r.NarSize == info.NarSize {
		return nil
	}
	s.memo.drop(info.Path)
	var now *daemon.PathInfo
	var there bool
	err := s.pool.With(ctx, func(c *daemon.Conn) (err error) {
		now, there, err = c.QueryPathInfo(ctx, info.Path)
		return err
	})
	switch {
	case err != nil:
		return err
	case !there:
		return errGone
	case string(now.NarHash) != string(info.NarHash):
		return errChanged
	}
	return fmt.Errorf("it is corrupt in the store: its archive has the hash sha256:%x and %d bytes, not sha256:%x and %d; repair it with nix-store --repair-path",
		r.NarHash, r.NarSize, info.NarHash, info.NarSize)
}
