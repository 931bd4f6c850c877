package daemon

import (
	"context"
	"fmt"
)

// AddTempRoot keeps path from being collected as garbage while the connection lasts.
func (c *Conn) AddTempRoot(ctx context.Context, path string) error {
	if err := checkPaths(path); err != nil {
		return err
	}
	return c.call(ctx, opAddTempRoot, func() { c.w.string(path) }, c.done)
}

// AddIndirectRoot registers link, a symbolic link somewhere in the file system to a store path, as a root.
func (c *Conn) AddIndirectRoot(ctx context.Context, link string) error {
	return c.call(ctx, opAddIndirectRoot, func() { c.w.string(link) }, c.done)
}

// FindRoots returns the roots: store paths by the links that keep them.
func (c *Conn) FindRoots(ctx context.Context) (map[string]string, error) {
	roots := map[string]string{}
	err := c.call(ctx, opFindRoots, nil, func() {
		c.r.each(func() {
			link := c.r.string()
			roots[link] = c.r.path()
		})
	})
	if err != nil {
		return nil, err
	}
	return roots, nil
}

// GCAction is what CollectGarbage does.
type GCAction uint64

// The actions.
const (
	GCReturnLive GCAction = iota
	GCReturnDead
	GCDeleteDead
	GCDeleteSpecific
)

// CollectGarbage deletes or lists paths, at most maxFreed bytes (0: without bound). Only GCDeleteSpecific takes paths.
func (c *Conn) CollectGarbage(ctx context.Context, action GCAction, paths []string, maxFreed uint64) (
	affected []string, freed uint64, err error,
) {
	if err := checkPaths(paths...); err != nil {
		return nil, 0, err
	}
	if (action == GCDeleteSpecific) != (len(paths) > 0) {
		return nil, 0, fmt.Errorf("collecting garbage: paths belong to the deletion of specific paths only")
	}
	if maxFreed == 0 {
		maxFreed = 1<<64 - 1
	}
	err = c.call(ctx, opCollectGarbage, func() {
		c.w.uint(uint64(action))
		if c.proto.has(featureGCReferrers) {
			if len(paths) == 0 {
				c.w.uint(1) // the whole store
			} else {
				c.w.uint(0)
				c.w.strings(paths)
				c.w.bool(false) // referrers too
			}
		} else {
			c.w.strings(paths)
		}
		c.w.bool(false) // ignore liveness
		c.w.uint(maxFreed)
		c.w.uint(0)
		c.w.uint(0)
		c.w.uint(0)
	}, func() {
		affected = c.r.strings()
		freed = c.r.uint()
		c.r.uint()
	})
	return affected, freed, err
}

// AddSignatures adds signatures ("KEY:BASE64") to a path. For trusted users.
func (c *Conn) AddSignatures(ctx context.Context, path string, signatures []string) error {
	if err := checkPaths(path); err != nil {
		return err
	}
	return c.call(ctx, opAddSignatures, func() {
		c.w.string(path)
		c.w.strings(signatures)
	}, c.done)
}

// VerifyStore checks the store, with contents also every file in it, and tells whether errors were found and left. They
// are in the log.
func (c *Conn) VerifyStore(ctx context.Context, contents, repair bool) (errorsLeft bool, err error) {
	err = c.call(ctx, opVerifyStore, func() {
		c.w.bool(contents)
		c.w.bool(repair)
	}, func() { errorsLeft = c.r.bool() })
	return errorsLeft, err
}
