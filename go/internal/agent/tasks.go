package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"hercules/internal/tasklog"
	"hercules/internal/wire/agentapi"
)

// Kinds of task.
const (
	evaluation = "evaluation"
	building   = "build"
	effect     = "effect"
)

// job is a task that the coordinator has sent.
type job struct {
	id       agentapi.ID
	kind     string
	logToken string
	attrs    []any // for the agent's own log
	run      func(ctx context.Context, log *tasklog.Log) (agentapi.TaskStatus, error)
}

var (
	errCancelled = errors.New("cancelled by the coordinator")
	// errHandedBack is the cause of the end of tasks that the agent gives up because it stops. They get no status: the
	// coordinator gives them to another agent when it gets the goodbye (protocol 1.7).
	errHandedBack = errors.New("the agent is stopping; the task is handed back")
)

// handBackTime is what tasks that are handed back may take to stop.
const handBackTime = 3 * time.Second

// tasks runs tasks side by side and keeps what is in progress. It owns their goroutines.
//
// # Limits
//
// The coordinator knows how many tasks it may give to this agent, and the agent does not rely on it: what is over the
// limit waits, in the order of arrival, before it is started. Evaluations are counted apart from builds and effects. An
// evaluation may need builds (import from derivation), and these may come to this very agent; waiting behind the
// evaluation that waits for them, they would never start. Nothing that is counted as a build waits for another task, so
// there is always progress, also with concurrentTasks = 1.
type tasks struct {
	ctx    context.Context // ends: stop everything now
	log    *slog.Logger
	slots  map[string]chan struct{}
	send   func(context.Context, agentapi.AgentPayload) error
	status func(context.Context, agentapi.ID, agentapi.TaskStatus) error
	// open begins the log of a task; finish ends it and waits for its delivery.
	open   func(ctx context.Context, token string, log *slog.Logger) (tl *tasklog.Log, finish func())
	notify func(running map[string]int)

	running sync.WaitGroup // tasks, and messages about them
	logs    sync.WaitGroup // logs that are being delivered

	mu       sync.Mutex
	stopping bool
	tasks    map[agentapi.ID]*task
}

type task struct {
	job
	cancel  context.CancelCauseFunc
	started bool
}

func newTasks(ctx context.Context, limit int, log *slog.Logger) *tasks {
	builds := make(chan struct{}, limit)
	return &tasks{
		ctx: ctx,
		log: log,
		slots: map[string]chan struct{}{
			evaluation: make(chan struct{}, limit),
			building:   builds,
			effect:     builds,
		},
		notify: func(map[string]int) {},
		tasks:  map[agentapi.ID]*task{},
	}
}

// inProgress are the tasks for the hello: all that were accepted and whose status is not yet known to the coordinator.
func (r *tasks) inProgress() agentapi.List[agentapi.ID] {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.AppendSeq(agentapi.List[agentapi.ID]{}, slices.Values(slices.Sorted(maps.Keys(r.tasks))))
}

// start accepts a task. It does not block.
func (r *tasks) start(j job) {
	log := r.log.With("task", j.id, "kind", j.kind).With(j.attrs...)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stopping || r.ctx.Err() != nil:
		log.Info("task not accepted because the agent is stopping")
		return
	case r.tasks[j.id] != nil:
		log.Warn("second start of a running task ignored")
		return
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	t := &task{job: j, cancel: cancel}
	r.tasks[j.id] = t
	r.running.Go(func() {
		defer cancel(nil)
		r.perform(ctx, t, log)
		r.mu.Lock()
		delete(r.tasks, j.id)
		r.changed()
		r.mu.Unlock()
	})
}

// cancel stops a task. The answer Cancelled is only sent for a task that is known (protocol 1.5).
func (r *tasks) cancel(id agentapi.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tasks[id]
	if t == nil {
		r.log.Debug("cancel of an unknown task", "task", id)
		return
	}
	r.log.Info("task cancelled", "task", id)
	t.cancel(errCancelled)
	r.running.Go(func() {
		_ = r.send(r.ctx, agentapi.AgentPayload{Cancelled: &agentapi.TaskRef{TaskID: id}})
	})
}

// perform sees a task through to the report of its status.
func (r *tasks) perform(ctx context.Context, t *task, log *slog.Logger) {
	status := r.execute(ctx, t, log)
	if errors.Is(context.Cause(ctx), errHandedBack) || r.ctx.Err() != nil {
		log.Info("task handed back")
		return
	}
	// From here on only the end of the agent stops it: a cancelled task has to be reported too.
	if err := r.status(r.ctx, t.id, status); err != nil {
		log.Error("the status of a task could not be reported", "error", err)
	}
}

func (r *tasks) execute(ctx context.Context, t *task, log *slog.Logger) agentapi.TaskStatus {
	slot := r.slots[t.kind]
	select {
	case slot <- struct{}{}:
	default:
		log.Info("task waits for its turn", "limit", cap(slot))
		select {
		case slot <- struct{}{}:
		case <-ctx.Done():
			return exceptional(context.Cause(ctx))
		}
	}
	defer func() { <-slot }()
	if ctx.Err() != nil {
		return exceptional(context.Cause(ctx))
	}
	begin := time.Now()
	log.Info("task started")
	r.mu.Lock()
	t.started = true
	r.changed()
	r.mu.Unlock()
	if err := r.send(ctx, agentapi.AgentPayload{Started: &agentapi.TaskRef{TaskID: t.id}}); err != nil {
		return exceptional(context.Cause(ctx))
	}
	tl, finish := r.open(ctx, t.logToken, log)
	status := r.guard(ctx, t, tl, log)
	r.logs.Go(finish)
	outcome, why := "successful", ""
	switch {
	case status.Terminated != nil:
		outcome = "failed"
	case status.Exceptional != nil:
		outcome, why = "exceptional", *status.Exceptional
	}
	attrs := []any{"outcome", outcome, "duration", time.Since(begin).Round(time.Millisecond)}
	if why != "" {
		attrs = append(attrs, "reason", why)
	}
	log.Info("task finished", attrs...)
	return status
}

// guard runs the work of a task. Whatever goes wrong costs this task alone.
func (r *tasks) guard(ctx context.Context, t *task, tl *tasklog.Log, log *slog.Logger) (status agentapi.TaskStatus) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("a task crashed; this is a bug of the agent", "panic", p, "stack", string(debug.Stack()))
			status = exceptional(fmt.Errorf("internal error of the agent: %v", p))
			tl.Line(0, *status.Exceptional)
		}
	}()
	status, err := t.run(ctx, tl)
	none := status == agentapi.TaskStatus{}
	switch {
	case ctx.Err() != nil && status.Successful == nil && status.Terminated == nil:
		tl.Line(0, "The task was stopped: "+context.Cause(ctx).Error()+".")
		return exceptional(context.Cause(ctx))
	case none && err == nil:
		err = errors.New("internal error of the agent: a task ended without status")
		fallthrough
	case none:
		return exceptional(err)
	case err != nil:
		log.Error("task failed", "error", err)
	}
	return status
}

var ansi = regexp.MustCompile("\x1b\\[[0-9;]*m")

// exceptional is the status of a task that could not be done. Nix colours its errors; a status is plain text.
func exceptional(err error) agentapi.TaskStatus {
	text := ansi.ReplaceAllString(err.Error(), "")
	return agentapi.TaskStatus{Exceptional: &text}
}

// drain stops accepting, and waits until all tasks are reported and their logs delivered, or ctx ends. Then it hands
// back what is left.
func (r *tasks) drain(ctx context.Context) {
	r.mu.Lock()
	r.stopping = true
	left := len(r.tasks)
	r.mu.Unlock()
	if left > 0 {
		r.log.Info("waiting for tasks to finish", "tasks", left)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.running.Wait()
		r.logs.Wait()
	}()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	r.mu.Lock()
	for id, t := range r.tasks {
		r.log.Info("task is handed back to the coordinator", "task", id)
		t.cancel(errHandedBack)
	}
	r.mu.Unlock()
	// Builders die and logs end in a moment, where the coordinator is there to take them.
	grace := time.NewTimer(handBackTime)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
	case <-r.ctx.Done():
	}
}

// wait returns when no goroutine is left. The context given to newTasks has ended.
func (r *tasks) wait() {
	r.mu.Lock()
	r.stopping = true
	r.mu.Unlock()
	r.running.Wait()
	r.logs.Wait()
}

// changed tells how many tasks run. Called with mu held.
func (r *tasks) changed() {
	counts := map[string]int{}
	for _, t := range r.tasks {
		if t.started {
			counts[t.kind]++
		}
	}
	r.notify(counts)
}

// alive reports, for the watchdog, that the table of tasks is not stuck.
func (r *tasks) alive(ctx context.Context) error {
	free := make(chan struct{})
	go func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		close(free)
	}()
	select {
	case <-free:
		return nil
	case <-ctx.Done():
		return errors.New("the table of tasks is locked")
	}
}
