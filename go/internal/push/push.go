// Package push brings closures of the local store into binary caches.
//
// A [Pusher] asks each cache what it lacks, compresses and uploads that side by side, and makes paths visible in the
// order of their references, so that a cache has the whole closure of everything that it shows at every moment. What
// several tasks want there is uploaded once. Package push knows store paths and caches, and nothing of tasks and
// coordinators.
package push

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hercules/internal/formats"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/storepath"
	"hercules/internal/push/binarycache"
	"hercules/internal/push/cachix"
	"hercules/internal/push/fault"
	"hercules/internal/push/pack"
	"hercules/internal/secrets"
)

// Limits of agent-behaviour 5.1.
const (
	outputUploads     = 4
	derivationUploads = 16
	closuresAtOnce    = 32
)

// Deps is what a Pusher needs.
type Deps struct {
	// Endpoint of the daemon of the store that is pushed from. Its Root is read directly, where that is possible.
	Endpoint daemon.Endpoint
	// Settings are sent to that daemon, and to those that open other stores.
	Settings map[string]string
	// Trusted says that the daemon lets us add signatures to its store.
	Trusted bool
	// NixDaemon is the program that opens stores which only Nix can write; empty is the one of PATH. Env is its
	// environment; nil is the process's own.
	NixDaemon string
	Env       []string
	// Client for caches; nil means one of the package.
	Client *http.Client
	// Credentials for a host, of a netrc file; nil: there are none.
	Credentials func(host string) *url.Userinfo
	// TempDir is for compressed archives on their way; empty is the system's.
	TempDir string
	// Retry is the policy for what may pass; zero is [fault.Default].
	Retry fault.Policy
	Log   *slog.Logger
}

// Error is a failed push. Path is empty when it is not about one.
type Error struct {
	Cache string
	Path  string
	Kind  fault.Kind
	Err   error
}

func (e *Error) Error() string {
	s := "cache " + e.Cache + ": "
	if e.Path != "" {
		s += e.Path + ": "
	}
	return s + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Pusher pushes to the caches that it was opened with. It is safe for concurrent use.
type Pusher struct {
	deps   Deps
	caches []*cache // by name
	memo   memo
	own    *http.Transport
	wg     sync.WaitGroup
}

// Open prepares the caches that can be pushed to, and does not ask them. Close it.
func Open(caches []secrets.BinaryCache, d Deps) (*Pusher, error) {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pusher{deps: d}
	if d.Client == nil {
		p.own = http.DefaultTransport.(*http.Transport).Clone()
		p.own.MaxIdleConnsPerHost = 64
		p.own.ResponseHeaderTimeout = 0 // a server may take its time with what it got
		p.deps.Client = &http.Client{Transport: p.own}
	}
	packer := pack.New()
	for _, bc := range caches {
		if bc.PullOnly() {
			continue
		}
		c, err := p.open(&bc, packer)
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("cache %s: %w", bc.Name, err)
		}
		p.caches = append(p.caches, c)
	}
	slices.SortFunc(p.caches, func(a, b *cache) int { return strings.Compare(a.name, b.name) })
	return p, nil
}

func (p *Pusher) open(bc *secrets.BinaryCache, packer *pack.Packer) (*cache, error) {
	d := &p.deps
	c := &cache{
		name: bc.Name, sign: &signer{}, uploads: bc.Concurrency,
		closures: make(chan struct{}, closuresAtOnce), copying: make(chan struct{}, 1), flights: map[string]*flight{},
	}
	if bc.Kind == formats.KindCachixCache {
		key, err := cachixKey(bc.SigningKeys)
		if err != nil {
			return nil, err
		}
		t := &cachixTarget{packer: packer, key: key, compression: pack.Compression{Method: bc.Compression, Level: bc.CompressionLevel}}
		switch t.chosen = bc.Compression != ""; {
		case t.chosen && bc.Compression != pack.Zstd && bc.Compression != pack.XZ:
			return nil, fmt.Errorf("compression %q; a Cachix cache takes zstd and xz", bc.Compression)
		case t.chosen:
			if bc.Compression == pack.XZ && t.compression.Level == 0 {
				t.compression.Level = cachixLevel
			}
			if err := t.compression.Check(); err != nil {
				return nil, err
			}
		}
		t.client, err = cachix.New(cachix.Options{
			BaseURL: bc.APIBaseURL, Name: bc.Name, Token: bc.AuthToken.Reveal(), Client: d.Client, Policy: d.Retry,
		})
		c.target = t
		return c, err
	}
	keys := slices.Clone(bc.SigningKeys)
	t, err := binarycache.Open(bc.StoreURI, binarycache.Options{
		Client: d.Client, Credentials: d.Credentials, Packer: packer, Compression: bc.Compression, Level: bc.CompressionLevel,
		TempDir: d.TempDir, Policy: d.Retry, Log: d.Log.With("cache", bc.Name),
	})
	switch {
	case err == nil:
		c.target = t
		for _, k := range t.Keys() {
			keys = append(keys, secrets.NewSensitive(k))
		}
	case !errors.Is(err, binarycache.ErrUnsupported):
		return nil, fmt.Errorf("storeURI: %w", err)
	}
	if c.sign, err = newSigner(keys); err != nil || c.target != nil {
		return c, err
	}
	settings := maps.Clone(d.Settings)
	if trusted := append(slices.Clone(bc.PublicKeys), c.sign.publicKeys()...); len(trusted) > 0 {
		if settings == nil {
			settings = map[string]string{}
		}
		// The store takes what these keys have signed: it is the operator who says that it belongs to them.
		settings["trusted-public-keys"] = strings.TrimSpace(settings["trusted-public-keys"] + " " + strings.Join(trusted, " "))
	}
	c.target = newNixStore(bc.StoreURI, d.NixDaemon, d.Env, settings)
	return c, nil
}

// Close waits for what is still under way and lets go of connections. No push may begin any more.
func (p *Pusher) Close() {
	p.wg.Wait()
	for _, c := range p.caches {
		c.target.Close()
	}
	if p.own != nil {
		p.own.CloseIdleConnections()
	}
}

// Caches are the names of the caches that are pushed to.
func (p *Pusher) Caches() []string {
	names := make([]string, len(p.caches))
	for i, c := range p.caches {
		names[i] = c.name
	}
	return names
}

// Done tells how a push to one cache ended well.
type Done struct {
	Cache    string
	Paths    int // of the closure
	Uploaded int // by this push
	Sent     uint64
	Duration time.Duration
}

// Options of a push.
type Options struct {
	// Caches to push to; nil means all.
	Caches []string
	// Uploads at once to a cache that has no number of its own; 0 means 4.
	Uploads int
	// Together pushes to all caches at the same time, rather than to one after the other in the order of names.
	Together bool
	// Done is told of each cache that has everything. An error of it ends the push. With Together it is called concurrently.
	Done func(Done) error
	// bounded: it counts for the closures that are pushed at once.
	bounded bool
}

// Push brings the closures of the paths into the caches. A cache that fails does not keep the others from getting theirs; the
// errors are *Error.
func (p *Pusher) Push(ctx context.Context, paths []string, o Options) error {
	if len(paths) == 0 || len(p.caches) == 0 {
		return nil
	}
	for _, path := range paths {
		if err := storepath.Check(path); err != nil {
			return err
		}
	}
	for _, name := range o.Caches {
		if !slices.ContainsFunc(p.caches, func(c *cache) bool { return c.name == name }) {
			return &Error{Cache: name, Err: errors.New("there is no such cache to push to")}
		}
	}
	err := p.attempt(ctx, paths, o)
	if errors.Is(err, errChanged) && ctx.Err() == nil {
		// What was remembered of the path is forgotten by now.
		err = p.attempt(ctx, paths, o)
	}
	return err
}

func (p *Pusher) attempt(ctx context.Context, paths []string, o Options) error {
	s, err := begin(ctx, &p.memo, p.deps.Endpoint, p.deps.Settings, paths)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("the store cannot be asked: %w", err)
	}
	// Uploads that others wait for too may use the session when this push is over.
	p.wg.Add(1)
	defer func() {
		go func() {
			defer p.wg.Done()
			s.end()
		}()
	}()
	closure, err := s.closure(ctx, paths)
	if err != nil {
		return err
	}
	var g errgroup.Group
	if !o.Together {
		g.SetLimit(1)
	}
	var mu sync.Mutex
	var errs []error
	for _, c := range p.caches {
		if o.Caches != nil && !slices.Contains(o.Caches, c.name) {
			continue
		}
		g.Go(func() error {
			if err := p.one(ctx, c, s, closure, o); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
			return nil
		})
	}
	_ = g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}

func (p *Pusher) one(ctx context.Context, c *cache, s *session, closure []*daemon.PathInfo, o Options) error {
	if o.bounded {
		select {
		case c.closures <- struct{}{}:
			defer func() { <-c.closures }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	begin := time.Now()
	uploads := c.uploads
	if uploads <= 0 {
		uploads = max(o.Uploads, 1)
		if o.Uploads <= 0 {
			uploads = outputUploads
		}
	}
	st, err := c.push(ctx, s, closure, uploads)
	p.keepSignatures(ctx, s, st.signed)
	if err != nil {
		if ctx.Err() == nil {
			p.deps.Log.Warn("push failed", "cache", c.name, "error", err)
		}
		return err
	}
	d := Done{Cache: c.name, Paths: len(closure), Uploaded: st.uploaded, Sent: st.sent, Duration: time.Since(begin)}
	p.deps.Log.Debug("pushed", "cache", d.Cache, "paths", d.Paths, "uploaded", d.Uploaded, "bytes", d.Sent, "duration", d.Duration)
	if o.Done != nil {
		return o.Done(d)
	}
	return nil
}

// keepSignatures adds signatures to the local store, so that whoever gets the paths from there has them too. Only a trusted
// user may, and nothing depends on it. Derivations need none: their path tells that they are right.
func (p *Pusher) keepSignatures(ctx context.Context, s *session, signed map[string][]string) {
	if !p.deps.Trusted || ctx.Err() != nil {
		return
	}
	paths := slices.Collect(maps.Keys(signed))
	paths = slices.DeleteFunc(paths, storepath.IsDerivation)
	if len(paths) == 0 {
		return
	}
	slices.Sort(paths)
	err := s.pool.With(ctx, func(c *daemon.Conn) error {
		for _, path := range paths {
			if err := c.AddSignatures(ctx, path, signed[path]); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			p.memo.drop(path)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		p.deps.Log.Warn("signatures could not be added to the local store", "error", err)
	}
}

// PushClosure brings closures of derivations into all caches, with the limits for those.
func (p *Pusher) PushClosure(ctx context.Context, drvPaths []string) error {
	return p.Push(ctx, drvPaths, Options{Uploads: derivationUploads, Together: true, bounded: true})
}

func sortedUnique(s []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(s)))
}
