package substituter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
)

// BinaryCache is a store of narinfo files, over HTTP or in a directory.
type BinaryCache struct {
	uri   string
	files fetcher
	slots chan struct{} // one for each request that is under way
	info  memo[string, *Info]
	paths memo[string, *daemon.PathInfo]
}

// Info is what a binary cache says of itself in nix-cache-info.
type Info struct {
	StoreDir      string
	WantMassQuery bool
	// Priority among substituters, smaller first. Nix takes 50 for a cache that does not say.
	Priority int
}

func newBinaryCache(uri string, files fetcher) *BinaryCache {
	return &BinaryCache{uri: uri, files: files, slots: make(chan struct{}, concurrency)}
}

// URI implements [Store].
func (c *BinaryCache) URI() string { return c.uri }

// Close implements [Store].
func (c *BinaryCache) Close() error {
	c.files.close()
	return nil
}

// Info asks the cache about itself, once.
func (c *BinaryCache) Info(ctx context.Context) (Info, error) {
	info, err := c.info.get(ctx, "nix-cache-info", c.fetchInfo)
	if err != nil {
		return Info{}, fmt.Errorf("cache %s: %w", c.uri, err)
	}
	return *info, nil
}

func (c *BinaryCache) fetchInfo(ctx context.Context, name string) (*Info, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, firstContact, errNoContact)
	defer cancel()
	text, err := c.fetch(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if text == nil {
		return nil, fmt.Errorf("this is not a binary cache: it has no %s", name)
	}
	info, err := parseInfo(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if info.StoreDir != storepath.StoreDir {
		return nil, fmt.Errorf("it is for the store directory %s, not %s", info.StoreDir, storepath.StoreDir)
	}
	return info, nil
}

func parseInfo(text string) (*Info, error) {
	info := &Info{StoreDir: storepath.StoreDir, Priority: 50}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "StoreDir":
			info.StoreDir = value
		case "WantMassQuery":
			info.WantMassQuery = value == "1"
		case "Priority":
			n, err := strconv.Atoi(value)
			if err != nil {
				return nil, fmt.Errorf("priority %q is not a number", value)
			}
			info.Priority = n
		}
	}
	return info, nil
}

// Query implements [Store].
func (c *BinaryCache) Query(ctx context.Context, paths []string) (map[string]*daemon.PathInfo, error) {
	found := make(map[string]*daemon.PathInfo, len(paths))
	if len(paths) == 0 {
		return found, nil
	}
	if _, err := c.Info(ctx); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrency)
	for _, path := range paths {
		if info, ok := c.paths.peek(path); ok {
			if info != nil {
				mu.Lock()
				found[path] = info
				mu.Unlock()
			}
			continue
		}
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			info, err := c.paths.get(gctx, path, c.fetchPath)
			if err != nil {
				return fmt.Errorf("cache %s: %s: %w", c.uri, path, err)
			}
			if info != nil {
				mu.Lock()
				defer mu.Unlock()
				found[path] = info
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("cache %s: %w", c.uri, context.Cause(ctx))
	}
	return found, nil
}

func (c *BinaryCache) fetchPath(ctx context.Context, path string) (*daemon.PathInfo, error) {
	if !storepath.Valid(path) {
		return nil, errors.New("not a store path")
	}
	text, err := c.fetch(ctx, storepath.HashPart(path)+".narinfo")
	if err != nil || text == nil {
		return nil, err
	}
	n, err := narinfo.Parse(text)
	if err != nil {
		return nil, err
	}
	if n.StorePath != path {
		return nil, nil // the same hash part with another name: Nix too takes it for missing
	}
	return n.PathInfo(), nil
}

func (c *BinaryCache) fetch(ctx context.Context, name string) ([]byte, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-c.slots }()
	return c.files.fetch(ctx, name)
}
