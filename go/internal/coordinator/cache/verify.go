package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"hercules/internal/coordinator/cache/storage"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
)

// VerifyOptions say what [Cache.Verify] does about what it finds.
type VerifyOptions struct {
	// Remove removes damaged paths and all that refer to them, so that they can be pushed again.
	Remove bool
}

// Problem is a damaged path.
type Problem struct {
	Hash string // the hash part of the store path
	Path string // the store path, if that much can be read
	Err  error
}

func (p Problem) String() string {
	name := p.Path
	if name == "" {
		name = p.Hash
	}
	return name + ": " + p.Err.Error()
}

// Verify reads everything and gives the paths whose narinfo, NAR, signature or references are not right.
func (c *Cache) Verify(ctx context.Context, o VerifyOptions) ([]Problem, error) {
	problems, err := c.verify(ctx, o)
	if err != nil {
		return problems, fmt.Errorf("verify %s: %w", c.o.Name, err)
	}
	return problems, nil
}

func (c *Cache) verify(ctx context.Context, o VerifyOptions) ([]Problem, error) {
	c.collecting.Lock() // or else what is just being removed would look damaged
	defer c.collecting.Unlock()
	var hashes []string
	err := c.storage.List(ctx, "", func(f storage.File) error {
		if isNarinfo(f.Key) {
			hashes = append(hashes, strings.TrimSuffix(f.Key, narinfoExt))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var problems []Problem
	bad, nars := map[string]bool{}, map[string]bool{}
	referrers := map[string][]string{}
	for _, hash := range hashes {
		n, badNar, err := c.verifyPath(ctx, hash)
		if ctx.Err() != nil {
			return problems, ctx.Err()
		}
		if n == nil && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		p := Problem{Hash: hash, Err: err}
		if n != nil {
			p.Path = n.StorePath
			for _, ref := range n.References {
				referrers[storepath.HashPart(ref)] = append(referrers[storepath.HashPart(ref)], hash)
			}
		}
		if err != nil {
			problems = append(problems, p)
			bad[hash] = true
			if badNar {
				nars[n.URL] = true
			}
		}
	}
	if o.Remove {
		err = c.removeBad(ctx, bad, nars, referrers)
	}
	return problems, err
}

// verifyPath gives the narinfo, if it is readable, and what is wrong; badNar says that it is the NAR.
func (c *Cache) verifyPath(ctx context.Context, hash string) (n *narinfo.NarInfo, badNar bool, err error) {
	if n, err = c.readNarinfo(ctx, hash); err != nil {
		return nil, false, err
	}
	if storepath.HashPart(n.StorePath) != hash {
		return n, false, fmt.Errorf("its narinfo is of %s", n.StorePath)
	}
	want, err := narFile(n)
	if err != nil {
		return n, false, err
	}
	r, _, err := c.storage.Open(ctx, n.URL)
	if err != nil {
		return n, false, fmt.Errorf("its NAR: %w", err)
	}
	defer r.Close()
	f, err := c.readNar(ctxReader{ctx, r}, nil)
	if err != nil {
		return n, isHTTPError(err), fmt.Errorf("%s: %w", n.URL, err)
	}
	if f.File != want {
		return n, true, fmt.Errorf("%s has the hash %s", n.URL, f.File)
	}
	if err := compare(n, f); err != nil {
		return n, false, err
	}
	if err := c.checkSignatures(n); err != nil {
		return n, false, err
	}
	return n, false, c.checkReferences(ctx, n)
}

// removeBad removes damaged paths after all that refer to them.
func (c *Cache) removeBad(ctx context.Context, bad, nars map[string]bool, referrers map[string][]string) error {
	c.publishing.Lock()
	defer c.publishing.Unlock()
	var order []string // a path after its references
	seen := map[string]bool{}
	var visit func(hash string)
	visit = func(hash string) {
		if seen[hash] {
			return
		}
		seen[hash] = true
		for _, r := range referrers[hash] {
			visit(r)
		}
		order = append(order, hash)
	}
	for hash := range bad {
		visit(hash)
	}
	for _, hash := range order {
		st, err := c.storage.Stat(ctx, narinfoKey(hash))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := c.storage.Delete(ctx, st.Key); err != nil {
			return err
		}
		c.count.paths.Add(-1)
		c.space.Give(st.Size)
	}
	if err := c.storage.Flush(ctx); err != nil {
		return err
	}
	// A damaged NAR would be taken for the right one when it is pushed again. All its paths are gone.
	for key := range nars {
		st, err := c.storage.Stat(ctx, key)
		if err != nil {
			continue
		}
		if err := c.deleteFile(ctx, &graph{}, st, false, &Collected{}); err != nil {
			return err
		}
	}
	return nil
}
