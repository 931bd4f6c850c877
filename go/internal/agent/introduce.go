package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"hercules/internal/agent/setup"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/storepath"
)

// introduced remembers which lists of caches the Nix daemon has met.
//
// Old Nix keeps for each cache a row in a database, and takes a new one when two of its processes meet a cache at
// the same time for the first time; the first process then fails with "constraint failed", and with it the build (seen
// with 2.8; not with 2.26 and 2.34). So the first task with a list of caches lets the daemon ask each of them, and the
// others wait for it.
type introduced struct {
	mu    sync.Mutex
	done  map[string]bool
	under map[string]chan struct{} // closed when it was tried
}

// introduction bounds the waiting for a cache that accepts connections and then says nothing.
const introduction = 20 * time.Second

// absent is a path that no cache has.
const absent = storepath.StoreDir + "/00000000000000000000000000000000-absent"

// introduce lets the daemon meet the caches of a setup. It is only a precaution: an error is left to the task itself.
func (a *agent) introduce(ctx context.Context, set *setup.Setup) {
	caches := set.Settings["substituters"]
	if !strings.Contains(caches, "://") {
		return
	}
	i := &a.introduced
	i.mu.Lock()
	tried, waiting := i.under[caches]
	if !i.done[caches] && !waiting {
		if i.under == nil {
			i.under, i.done = map[string]chan struct{}{}, map[string]bool{}
		}
		tried = make(chan struct{})
		i.under[caches] = tried
	}
	done := i.done[caches]
	i.mu.Unlock()
	switch {
	case done:
		return
	case waiting:
		select {
		case <-tried:
		case <-ctx.Done():
		}
		return
	}
	good := false
	defer func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.done[caches] = good
		delete(i.under, caches)
		close(tried)
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, introduction, errors.New("a cache takes too long to answer"))
	defer cancel()
	err := a.conns.With(ctx, daemon.Options{Settings: set.Settings, Verbosity: a.work.verbosity}, func(c *daemon.Conn) error {
		_, err := c.QuerySubstitutablePaths(ctx, []string{absent})
		return err
	})
	if err != nil {
		a.log.Debug("the daemon cannot ask all caches", "error", err)
	}
	good = err == nil
}
