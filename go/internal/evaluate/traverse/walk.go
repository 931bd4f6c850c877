package traverse

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/evaluator"
	"hercules/internal/wire/agentapi"
)

var (
	// ErrJobTime is returned when the job took longer than Limits.JobTime. A Message says so too.
	ErrJobTime = errors.New("evaluation took longer than the job is allowed to")
	// errAttributeTime ends an evaluator whose attribute takes too long.
	errAttributeTime = errors.New("evaluation of this attribute took longer than it is allowed to")
	errFinished      = errors.New("the walk is over")
)

const (
	defaultWaiting = 4
	// maxDeferred is how many attributes may wait for builds beyond those that keep their evaluator. Each costs
	// an evaluator that must be started again.
	maxDeferred = 16
	// maxOutbox is how many events may wait for Emit before evaluators get nothing new to do.
	maxOutbox = 20000
	// settleTime is how long the store may take, after the end of a walk, to get what was found.
	settleTime = 10 * time.Second
)

// Walk evaluates the job and emits its events. Errors of the evaluated code are events; the error returned is one
// of Emit, of Realise, of ctx, or of the machinery.
func Walk(ctx context.Context, job Job, deps Deps) error {
	if deps.Slog == nil {
		deps.Slog = slog.New(slog.DiscardHandler)
	}
	deps.Limits.Workers = max(1, deps.Limits.Workers)
	if deps.Limits.Waiting == 0 {
		deps.Limits.Waiting = defaultWaiting
	}
	in, err := newJobInput(&job)
	if err != nil {
		return err
	}
	w := &walk{job: job, in: in, deps: deps, root: &node{state: running}, finished: make(chan struct{})}
	w.cond = sync.NewCond(&w.mu)
	w.order = newOrder(w.root)
	if err := w.prepare(); err != nil {
		return err
	}
	defer os.RemoveAll(w.dir)

	ctx, w.cancel = context.WithCancelCause(ctx)
	defer w.cancel(errFinished)
	w.ctx = ctx
	if t := deps.Limits.JobTime; t > 0 {
		timer := time.AfterFunc(t, w.outOfTime)
		defer timer.Stop()
	}
	stop := context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.stopped = true
		w.cond.Broadcast()
	})
	defer stop()

	var emitting sync.WaitGroup
	emitting.Go(w.emit)
	if deps.Limits.AttributeTime > 0 {
		emitting.Go(w.watchTime)
	}
	w.mu.Lock()
	w.spawn()
	w.mu.Unlock()
	w.workers.Wait()

	w.mu.Lock()
	w.closed = true
	w.cond.Broadcast()
	w.mu.Unlock()
	close(w.finished)
	emitting.Wait()
	switch cause := context.Cause(ctx); {
	case w.err != nil:
		return w.err
	case cause != nil && !errors.Is(cause, errFinished):
		return cause
	}
	return nil
}

// walk is one evaluation.
type walk struct {
	job    Job
	in     *jobInput
	deps   Deps
	dir    string // with the library; only for this walk
	prefix string // of the search path, not to be guessed
	config evaluator.Config
	root   *node

	ctx     context.Context
	cancel  context.CancelCauseFunc
	workers sync.WaitGroup
	// finished is closed when all workers have ended.
	finished chan struct{}
	logMu    sync.Mutex

	mu          sync.Mutex
	cond        *sync.Cond // when anything below changes
	stopped     bool       // ctx is over
	closed      bool       // no more events
	err         error
	order       *order
	outbox      []agentapi.EvaluateEvent
	queue       queue
	pace        pace
	outstanding int // attributes that are not done
	all         []*worker
	computing   int // workers that have something to do and do not wait
	idle        int
	waiting     int
	deferred    int
	loaded      bool // the root is there: more workers make sense
	failures    []*BuildError
}

// prepare writes the library and the configuration of the evaluators.
func (w *walk) prepare() error {
	nonce := make([]byte, 12)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	w.prefix = "hci-" + hex.EncodeToString(nonce)
	dir, err := os.MkdirTemp("", "hci-evaluate-")
	if err != nil {
		return err
	}
	if w.dir, err = filepath.EvalSymlinks(dir); err == nil {
		err = writeLibrary(w.dir, w.in)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return err
	}
	c := w.deps.Evaluator
	c.Dir = w.job.Directory
	c.MemoryLimit = w.deps.Limits.Memory
	c.Own = append(slices.Clone(c.Own), w.dir)
	c.Settings = maps.Clone(c.Settings)
	if c.Settings == nil {
		c.Settings = map[string]string{}
	}
	// No registries: what a flake needs is in its lock file.
	c.Settings["use-registries"] = "false"
	c.Settings["flake-registry"] = ""
	if w.job.Directory != "" {
		system, err := os.ReadFile(filepath.Join(w.job.Directory, "ci-default-system.txt"))
		switch {
		case err == nil:
			c.Settings["system"] = strings.TrimSpace(string(system))
		case !errors.Is(err, os.ErrNotExist):
			_ = os.RemoveAll(w.dir)
			return err
		}
	}
	c.SearchPath = append(slices.Clone(w.job.NixPath), evaluator.SearchPath{Prefix: w.prefix, Path: w.dir})
	for i, p := range w.job.AllowedPaths {
		// Nix compares with what is behind symbolic links.
		if real, err := filepath.EvalSymlinks(p); err == nil && real != p {
			c.SearchPath = append(c.SearchPath, evaluator.SearchPath{Prefix: fmt.Sprintf("%s-real-%d", w.prefix, i), Path: real})
		}
		c.SearchPath = append(c.SearchPath, evaluator.SearchPath{Prefix: fmt.Sprintf("%s-%d", w.prefix, i), Path: p})
	}
	c.Log = w.log
	w.config = c
	return nil
}

func (w *walk) log(e daemon.Event) {
	if w.deps.Log == nil {
		return
	}
	w.logMu.Lock()
	defer w.logMu.Unlock()
	w.deps.Log(e)
}

// emit hands events to the caller, one after the other, until the walk is over.
func (w *walk) emit() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.outbox) == 0 && !w.closed {
			w.cond.Wait()
		}
		if len(w.outbox) == 0 {
			return
		}
		batch := w.outbox
		w.outbox = nil
		w.cond.Broadcast()
		w.mu.Unlock()
		err := w.settle()
		for _, e := range batch {
			if err != nil {
				break
			}
			// What was found is reported also when the time of the job is over.
			err = w.deps.Emit(context.WithoutCancel(w.ctx), e)
		}
		w.mu.Lock()
		if err != nil {
			w.failLocked(err)
			w.outbox = nil
			return
		}
	}
}

// settle waits until all that evaluators were told to be in the store is there; when the walk is over, not for long.
func (w *walk) settle() error {
	if w.deps.Flush == nil {
		return nil
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(w.ctx))
	defer cancel(nil)
	stop := context.AfterFunc(w.ctx, func() {
		select {
		case <-time.After(settleTime):
			cancel(context.Cause(w.ctx))
		case <-ctx.Done():
		}
	})
	defer stop()
	return w.deps.Flush(ctx)
}

// failLocked ends the walk with an error.
func (w *walk) failLocked(err error) {
	if w.err == nil && !w.stopped {
		w.err = err
	}
	w.stopped = true
	w.cancel(err)
	w.cond.Broadcast()
}

func (w *walk) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failLocked(err)
}

func (w *walk) outOfTime() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped || w.closed {
		return
	}
	text := fmt.Sprintf("The evaluation took longer than the %s it is allowed to. It was stopped.", w.deps.Limits.JobTime)
	e := message(text)
	w.order.number(&e)
	w.outbox = append(w.outbox, e)
	w.failLocked(ErrJobTime)
}

// flush moves events whose turn has come to the outbox; w.mu is held.
func (w *walk) flush() {
	if w.stopped {
		return
	}
	w.order.flush(func(e agentapi.EvaluateEvent) { w.outbox = append(w.outbox, e) })
	w.cond.Broadcast()
}

// finish completes a node with its last events and children; w.mu is held.
func (w *walk) finish(n *node, events []agentapi.EvaluateEvent, names []string) {
	if n.state == done {
		return
	}
	n.state, n.complete, n.owner = done, true, nil
	n.waiting = false
	n.events = append(n.events, events...)
	if len(names) > 0 {
		nodes := make([]node, len(names))
		n.children = make([]*node, len(names))
		for i, name := range names {
			nodes[i] = node{parent: n, name: name, index: i}
			n.children[i] = &nodes[i]
		}
		w.outstanding += len(names)
		w.queue.push(n.children)
	}
	if n != w.root {
		w.outstanding--
	}
	w.flush()
	w.spawn()
}

// requeue gives attributes back; w.mu is held.
func (w *walk) requeue(r run) {
	for _, n := range r {
		n.state, n.owner = pending, nil
	}
	w.queue.push(r)
	w.spawn()
	w.cond.Broadcast()
}

// spawn starts another worker when there is work for one; w.mu is held. The first one loads the root.
func (w *walk) spawn() {
	if w.stopped || len(w.all) > 0 && (!w.loaded || w.queue.empty() || w.idle > 0 || w.computing >= w.deps.Limits.Workers) {
		return
	}
	if len(w.all) >= w.deps.Limits.Workers+w.deps.Limits.Waiting {
		return
	}
	wk := &worker{walk: w, id: len(w.all)}
	w.all = append(w.all, wk)
	w.computing++
	w.workers.Go(wk.work)
}

// take waits for attributes to evaluate. Nil means that there will be none.
func (w *walk) take(wk *worker) run {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.computing--
	w.idle++
	defer func() { w.idle-- }()
	for {
		switch {
		case w.stopped || w.outstanding == 0 && w.deferred == 0:
			w.cond.Broadcast()
			return nil
		case !w.queue.empty() && w.computing < w.deps.Limits.Workers && len(w.outbox) < maxOutbox &&
			(w.deferred < maxDeferred || w.waiting < w.deps.Limits.Waiting):
			r := w.queue.take(w.pace.size(w.queue.size(), w.deps.Limits.Workers))
			for _, n := range r {
				n.state, n.owner = running, wk
			}
			w.computing++
			w.spawn()
			return r
		}
		w.cond.Wait()
	}
}

// watchTime ends evaluators whose attribute takes too long.
func (w *walk) watchTime() {
	limit := w.deps.Limits.AttributeTime
	tick := time.NewTicker(min(max(limit/10, 10*time.Millisecond), time.Second))
	defer tick.Stop()
	for {
		select {
		case <-w.finished:
			return
		case <-tick.C:
		}
		w.mu.Lock()
		var late []*evaluator.Process
		for _, wk := range w.all {
			if len(wk.batch) > 0 && !wk.waiting && time.Since(wk.since) > limit {
				late = append(late, wk.proc)
			}
		}
		w.mu.Unlock()
		for _, p := range late {
			p.Kill(errAttributeTime)
		}
	}
}

// unmarshal reads a result whose form is the library's.
func unmarshal(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("result of the evaluator: %w", err)
	}
	return nil
}
