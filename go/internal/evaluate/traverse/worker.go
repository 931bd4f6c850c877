package traverse

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"hercules/internal/nix/evaluator"
	"hercules/internal/wire/agentapi"
)

// worker is a place for an evaluator. Fields below the line are guarded by walk.mu.
type worker struct {
	walk *walk
	id   int
	stop func() // of the proxy
	used bool   // the evaluator has evaluated attributes

	proc     *evaluator.Process
	batch    run
	pos      int       // the attribute of batch that is evaluated
	since    time.Time // when that began
	waiting  bool
	poisoned bool // remembers the failure of something that will be tried again
	rootRSS  uint64
	unsent   []agentapi.EvaluateEvent
}

// work is the life of a worker. It counts as computing when it starts.
func (wk *worker) work() {
	w := wk.walk
	defer wk.discard()
	if wk.id == 0 {
		if !wk.first() {
			return
		}
	}
	for {
		r := w.take(wk)
		if r == nil {
			return
		}
		if err := wk.evaluate(r); err != nil {
			w.fail(err)
			return
		}
	}
}

// evaluate does a row of siblings, or as much as can be done of it in one command.
func (wk *worker) evaluate(r run) error {
	w := wk.walk
	if wk.proc != nil && (wk.poisoned || wk.tooBig() || wk.used && r[0].fresh) {
		wk.discard()
	}
	if wk.proc == nil {
		if err := wk.start(); err != nil {
			return wk.notStarted(r, err)
		}
	}
	parent, err := evaluator.Strings(r[0].parent.path())
	if err != nil {
		return err
	}
	w.mu.Lock()
	wk.batch, wk.pos, wk.since = r, 0, time.Now()
	begin := wk.since
	w.mu.Unlock()
	first := !wk.used
	wk.used = true
	err = wk.proc.Run(w.ctx, fmt.Sprintf("hci.step %s %d %d", parent, r[0].index, r[0].index+len(r)), wk.result)

	w.mu.Lock()
	defer w.mu.Unlock()
	pos := wk.pos
	wk.batch = nil
	w.pace.done(pos, wk.since.Sub(begin))
	if w.stopped {
		return nil
	}
	if err == nil && pos < len(r) {
		err = errors.New("the evaluator left out attributes")
	}
	if err == nil {
		return nil
	}
	var failing *node
	if pos < len(r) {
		failing = r[pos]
		wk.failed(failing, err, first && pos == 0)
		var rest run
		for _, n := range r[pos+1:] {
			if n.owner == wk && n.state == running {
				rest = append(rest, n)
			}
		}
		w.requeue(contiguous(rest, w))
	}
	if _, crashed := errors.AsType[*evaluator.CrashError](err); crashed {
		wk.poisoned = true
	}
	return nil
}

// contiguous returns the last unbroken row of r, after giving back the others.
func contiguous(r run, w *walk) run {
	for i := 1; i < len(r); i++ {
		if r[i].index != r[i-1].index+1 {
			w.requeue(contiguous(r[i:], w))
			return r[:i]
		}
	}
	return r
}

// failed handles the attribute at which a command ended; walk.mu is held.
func (wk *worker) failed(n *node, err error, alone bool) {
	w := wk.walk
	if n.owner != wk || n.state != running {
		return // somebody else's by now
	}
	if lostStore(err) {
		wk.poisoned = true
		if n.attempts < 2 {
			n.attempts++
			w.requeue(run{n})
			return
		}
	}
	if crash, ok := errors.AsType[*evaluator.CrashError](err); ok {
		// It may have been the attributes before it, or somebody's kill.
		again := !crash.StackOverflow() && !errors.Is(err, errAttributeTime) && n.attempts < 1
		if errors.Is(err, evaluator.ErrMemoryLimit) && alone {
			again = false
		}
		if again {
			n.attempts++
			n.fresh = true
			w.requeue(run{n})
			return
		}
	}
	w.finish(n, []agentapi.EvaluateEvent{w.errorEvent(n.path(), err)}, nil)
}

// lostStore says that an evaluation failed because the daemon went away. Nix does not connect again.
func lostStore(err error) bool {
	e, ok := errors.AsType[*evaluator.EvalError](err)
	if !ok {
		return false
	}
	text := evaluator.StripANSI(e.Message)
	return strings.Contains(text, "connection to remote store '") || strings.Contains(text, "Nix daemon disconnected unexpectedly")
}

// errorEvent reports an error of an attribute; walk.mu is held.
func (w *walk) errorEvent(path []string, err error) agentapi.EvaluateEvent {
	if e, ok := errors.AsType[*evaluator.EvalError](err); ok {
		if build := w.buildFailure(e); build != nil {
			return attributeError(path, "error: "+build.Error(), e.Trace, build.Derivation, buildException)
		}
		return attributeError(path, e.Message, e.Trace, "", "")
	}
	if e, ok := errors.AsType[*evaluator.CrashError](err); ok {
		return attributeError(path, crashText(e), "", "", "")
	}
	return attributeError(path, "error: "+err.Error(), "", "", "")
}

// result takes the result of the next attribute of the batch. The evaluator calls it while it handles output.
func (wk *worker) result(data []byte) {
	w := wk.walk
	r, err := parseResult(data)
	w.mu.Lock()
	if wk.pos >= len(wk.batch) {
		w.mu.Unlock()
		return
	}
	n := wk.batch[wk.pos]
	w.mu.Unlock()
	// The path does not change, and reading a derivation takes a while.
	var events []agentapi.EvaluateEvent
	var names []string
	switch {
	case err != nil:
		events = append(events, attributeError(n.path(), "error: "+err.Error(), "", "", ""))
	case r.name != n.name:
		events = append(events, attributeError(n.path(), fmt.Sprintf("error: the names of the attributes change from one evaluation to the next: %q was %q", r.name, n.name), "", "", ""))
	default:
		events, names = r.events(n.path(), w.derivationAttrs), r.names
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	wk.pos++
	wk.since = time.Now()
	if n.owner == wk || n.owner == nil && n.state == pending {
		w.finish(n, events, names)
	}
}

// start starts an evaluator and, unless it is the first, loads the root in it.
func (wk *worker) start() error {
	w := wk.walk
	cfg := w.config
	if w.deps.StartProxy != nil {
		remote, stop, err := w.deps.StartProxy(w.ctx, wk.id, wk.realise)
		if err != nil {
			return fmt.Errorf("opening a store for an evaluator: %w", err)
		}
		cfg.Remote, wk.stop = remote, stop
	}
	p, err := evaluator.Start(w.ctx, cfg)
	if err != nil {
		wk.stopProxy()
		return err
	}
	w.mu.Lock()
	wk.proc, wk.poisoned = p, false
	w.mu.Unlock()
	wk.used = false
	marker, err := evaluator.String(p.Marker())
	if err != nil {
		return err
	}
	err = p.Define("hci", fmt.Sprintf("import <%s/lib> { marker = %s; job = builtins.fromJSON (builtins.readFile <%s/job.json>); }", w.prefix, marker, w.prefix))
	if err != nil {
		return err
	}
	if wk.id == 0 && !w.hasLoaded() {
		return nil
	}
	if err := p.Run(w.ctx, "hci.top", nil); err != nil {
		wk.discard()
		return err
	}
	wk.rootRSS = p.RSS()
	return nil
}

func (w *walk) hasLoaded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.loaded
}

// notStarted decides what becomes of the attributes of an evaluator that could not be started.
func (wk *worker) notStarted(r run, err error) error {
	w := wk.walk
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return nil
	}
	_, evalErr := errors.AsType[*evaluator.EvalError](err)
	_, crash := errors.AsType[*evaluator.CrashError](err)
	if !evalErr && !crash {
		return err
	}
	// The root could be loaded once. What is different now is memory, or time.
	w.deps.Slog.Warn("evaluator could not load the root again", "error", err)
	if r[0].attempts++; r[0].attempts > 2 {
		w.finish(r[0], []agentapi.EvaluateEvent{w.errorEvent(r[0].path(), err)}, nil)
		r = r[1:]
	}
	w.requeue(r)
	return nil
}

// tooBig says that an evaluator should be replaced before it goes over its limit in the middle of an attribute that
// is not to blame. One that is big from the start is kept: another would be no smaller.
func (wk *worker) tooBig() bool {
	limit := wk.walk.deps.Limits.Memory
	if limit == 0 {
		return false
	}
	rss := wk.proc.RSS()
	return rss > limit/10*8 && rss-min(rss, wk.rootRSS) > limit/10
}

// discard ends the evaluator.
func (wk *worker) discard() {
	if wk.proc != nil {
		wk.proc.Close()
	}
	wk.stopProxy()
	wk.walk.mu.Lock()
	wk.proc = nil
	wk.walk.mu.Unlock()
}

func (wk *worker) stopProxy() {
	if wk.stop != nil {
		wk.stop()
		wk.stop = nil
	}
}
