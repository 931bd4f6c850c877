package traverse

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/evaluator"
	"hercules/internal/wire/agentapi"
)

// errLater is what an evaluator is told when its attribute must wait without it. Nobody sees it: the attribute is
// evaluated again by another one.
var errLater = errors.New("evaluation of this attribute goes on later")

// realise is asked by the proxy when the evaluator of this worker wants paths to be valid.
func (wk *worker) realise(ctx context.Context, paths []daemon.DerivedPath) error {
	w := wk.walk
	w.mu.Lock()
	p := wk.proc
	w.mu.Unlock()
	if p != nil {
		p.Sync() // so that pos is right
	}
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		return errFinished
	}
	if wk.pos >= len(wk.batch) {
		blocking := wk.id == 0 && !w.loaded
		w.mu.Unlock()
		return w.realised(ctx, w.realiseAll(ctx, paths, blocking))
	}
	n := wk.batch[wk.pos]
	owned := n.owner == wk && n.state == running
	if !owned && n.state == pending {
		n.state, n.owner, owned = running, wk, true
	}
	// The siblings behind it need not wait.
	var rest run
	for _, m := range wk.batch[wk.pos+1:] {
		if m.owner == wk && m.state == running {
			rest = append(rest, m)
		}
	}
	if owned && n.knows(paths) {
		w.mu.Unlock()
		return w.realised(ctx, w.realiseAll(ctx, paths, false))
	}
	// A plain path, such as the source of an input, is no import from derivation, and not worth a change of order.
	owned = owned && slices.ContainsFunc(paths, func(p daemon.DerivedPath) bool { return p.Outputs != nil })
	ifds := w.ifdEvents(n, paths)
	if owned {
		n.events = append(n.events, ifds(false)...)
		n.waiting = true
	}
	if owned && w.waiting >= w.deps.Limits.Waiting {
		wk.postpone(n, paths, ifds)
		w.requeue(contiguous(rest, w))
		w.mu.Unlock()
		return errLater
	}
	started := time.Since(wk.since)
	wk.waiting = true
	w.waiting++
	w.computing--
	w.flush()
	w.requeue(contiguous(rest, w))
	w.mu.Unlock()

	err := w.realiseAll(ctx, paths, false)

	w.mu.Lock()
	wk.waiting = false
	wk.since = time.Now().Add(-started)
	w.waiting--
	w.computing++
	if owned {
		n.events = append(n.events, ifds(true)...)
		// It stays in the order where it was: its result is on its way.
		w.flush()
	}
	w.cond.Broadcast()
	w.mu.Unlock()
	return w.realised(ctx, err)
}

// postpone lets an attribute wait without its evaluator; walk.mu is held. The evaluator remembers the failure that
// it is given, so it is not used again.
func (wk *worker) postpone(n *node, paths []daemon.DerivedPath, ifds func(bool) []agentapi.EvaluateEvent) {
	w := wk.walk
	n.state, n.owner = deferred, nil
	wk.poisoned = true
	w.deferred++
	w.flush()
	w.workers.Go(func() {
		err := w.realiseAll(w.ctx, paths, false)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.deferred--
		if w.stopped {
			return
		}
		n.events = append(n.events, ifds(true)...)
		if b, ok := errors.AsType[*BuildError](err); ok {
			w.finish(n, []agentapi.EvaluateEvent{attributeError(n.path(), "error: "+b.Error(), "", b.Derivation, buildException)}, nil)
			return
		}
		if err != nil {
			w.failLocked(err)
			return
		}
		n.remember(paths)
		n.waiting = false
		w.requeue(run{n})
		w.flush()
	})
}

// knows says whether the attribute has waited for all of these before.
func (n *node) knows(paths []daemon.DerivedPath) bool {
	return !slices.ContainsFunc(paths, func(p daemon.DerivedPath) bool { return !n.realised[pathKey(p)] })
}

func (n *node) remember(paths []daemon.DerivedPath) {
	if n.realised == nil {
		n.realised = map[string]bool{}
	}
	for _, p := range paths {
		n.realised[pathKey(p)] = true
	}
}

func pathKey(p daemon.DerivedPath) string { return p.Path + "!" + strings.Join(p.Outputs, ",") }

// ifdEvents makes the events of an attribute that begins or ends to wait.
func (w *walk) ifdEvents(n *node, paths []daemon.DerivedPath) func(finished bool) []agentapi.EvaluateEvent {
	path := n.path()
	return func(finished bool) []agentapi.EvaluateEvent {
		var events []agentapi.EvaluateEvent
		for _, p := range paths {
			for _, output := range w.outputs(p) {
				events = append(events, agentapi.EvaluateEvent{AttributeIFD: &agentapi.AttributeIFDEvent{
					ExpressionPath: path, DerivationPath: p.Path, DerivationOutput: output, Done: finished,
				}})
			}
		}
		return events
	}
}

// outputs of a derived path by name; none for a plain store path.
func (w *walk) outputs(p daemon.DerivedPath) []string {
	if !slices.Contains(p.Outputs, "*") {
		return p.Outputs
	}
	if names, err := w.derivationOutputs(p.Path); err == nil {
		return names
	}
	return []string{"out"}
}

// realiseAll makes all paths valid at the same time. The error is that of the first path that has one.
func (w *walk) realiseAll(ctx context.Context, paths []daemon.DerivedPath, blocking bool) error {
	if w.deps.Realise == nil {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(w.ctx, func() { cancel(context.Cause(w.ctx)) })
	defer stop()
	errs := make([]error, len(paths))
	var wg sync.WaitGroup
	for i, p := range paths {
		wg.Go(func() { errs[i] = w.deps.Realise(ctx, p, blocking) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// realised turns an outcome into what the evaluator is told. A failed build gets a number, by which it is found
// again in whatever error it leads to.
func (w *walk) realised(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return err // the evaluator is gone, which is noticed elsewhere
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	b, ok := errors.AsType[*BuildError](err)
	if !ok {
		if !w.stopped {
			w.failLocked(err)
		}
		return err
	}
	i := slices.IndexFunc(w.failures, func(f *BuildError) bool { return *f == *b })
	if i < 0 {
		i = len(w.failures)
		w.failures = append(w.failures, b)
	}
	return fmt.Errorf("%s:%d: %w", w.prefix, i, b)
}

// buildFailure finds the failed build behind an error, nil when there is none; walk.mu is held.
func (w *walk) buildFailure(e *evaluator.EvalError) *BuildError {
	re := regexp.MustCompile(regexp.QuoteMeta(w.prefix) + `:(\d+):`)
	m := re.FindStringSubmatch(e.Message + "\n" + e.Trace)
	if m == nil {
		return nil
	}
	i, err := strconv.Atoi(m[1])
	if err != nil || i >= len(w.failures) {
		return nil
	}
	return w.failures[i]
}
