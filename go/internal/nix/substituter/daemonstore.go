package substituter

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/storepath"
)

const (
	// batch is the number of paths in one question to a daemon.
	batch = 2000
	// daemons is the number of processes that one store may have open.
	daemons = 4
)

// daemonStore is a store that Nix opens for us: a nix-daemon of its own, spoken to over standard input and output.
type daemonStore struct {
	uri   string
	pool  *daemon.Pool
	paths memo[string, *daemon.PathInfo]
}

func newDaemonStore(uri string, o Options) *daemonStore {
	program := o.Nix
	if program == "" {
		program = "nix-daemon"
	}
	env := o.Env
	if env == nil {
		env = os.Environ()
	}
	ep := daemon.Endpoint{
		// As an option it also counts where nix.conf names a store.
		Command: []string{program, "--stdio", "--store", uri},
		Env:     append(slices.Clip(env), "NIX_REMOTE="+uri),
	}
	return &daemonStore{uri: uri, pool: daemon.NewPool(ep, daemon.Options{Settings: o.Settings}, daemons)}
}

func (s *daemonStore) URI() string { return s.uri }

func (s *daemonStore) Close() error { return s.pool.Close() }

func (s *daemonStore) Query(ctx context.Context, paths []string) (map[string]*daemon.PathInfo, error) {
	found := make(map[string]*daemon.PathInfo, len(paths))
	var unknown []string
	for _, path := range paths {
		info, ok := s.paths.peek(path)
		switch {
		case !ok && !storepath.Valid(path):
			return nil, fmt.Errorf("store %s: %q is not a store path", s.uri, path)
		case !ok:
			unknown = append(unknown, path)
		case info != nil:
			found[path] = info
		}
	}
	slices.Sort(unknown)
	unknown = slices.Compact(unknown)
	for part := range slices.Chunk(unknown, batch) {
		if err := s.ask(ctx, part, found); err != nil {
			return nil, fmt.Errorf("store %s: %w", s.uri, err)
		}
	}
	return found, nil
}

// ask finds out which of the paths are valid in one question, then what they are.
func (s *daemonStore) ask(ctx context.Context, paths []string, found map[string]*daemon.PathInfo) error {
	var valid []string
	err := s.pool.With(ctx, func(c *daemon.Conn) (err error) {
		valid, err = c.QueryValidPaths(ctx, paths, false)
		return err
	})
	if err != nil {
		return err
	}
	have := make(map[string]bool, len(valid))
	for _, path := range valid {
		have[path] = true
	}
	for _, path := range paths {
		if !have[path] {
			s.paths.put(path, nil)
		}
	}

	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	// A daemon answers one question at a time; another process pays only when there is much to ask.
	share := max((len(valid)+daemons-1)/daemons, 64)
	for part := range slices.Chunk(valid, share) {
		g.Go(func() error {
			return s.pool.With(gctx, func(c *daemon.Conn) error {
				for _, path := range part {
					info, ok, err := c.QueryPathInfo(gctx, path)
					if err != nil {
						return err
					}
					if !ok {
						info = nil // it went away in between
					}
					s.paths.put(path, info)
					if info != nil {
						mu.Lock()
						found[path] = info
						mu.Unlock()
					}
				}
				return nil
			})
		})
	}
	return g.Wait()
}
