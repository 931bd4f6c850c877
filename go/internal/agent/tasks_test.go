package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/tasklog"
	"hercules/internal/wire/agentapi"
)

// records is what tasks said to the coordinator, in order.
type records struct {
	mu   sync.Mutex
	said []string
}

func (r *records) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *records) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	said := r.said
	r.said = nil
	return said
}

func testTasks(ctx context.Context, limit int) (*tasks, *records) {
	said := &records{}
	r := newTasks(ctx, limit, slog.New(slog.DiscardHandler))
	r.send = func(_ context.Context, p agentapi.AgentPayload) error {
		switch {
		case p.Started != nil:
			said.add("started %s", p.Started.TaskID)
		case p.Cancelled != nil:
			said.add("cancelled %s", p.Cancelled.TaskID)
		}
		return nil
	}
	r.status = func(ctx context.Context, id agentapi.ID, s agentapi.TaskStatus) error {
		switch {
		case s.Successful != nil:
			said.add("%s successful", id)
		case s.Terminated != nil:
			said.add("%s terminated", id)
		default:
			said.add("%s exceptional: %s", id, *s.Exceptional)
		}
		return nil
	}
	r.open = func(ctx context.Context, token string, _ *slog.Logger) (*tasklog.Log, func()) {
		l := tasklog.New(ctx, tasklog.Options{Send: func(b []agentapi.LogEntry) error {
			for _, e := range b {
				said.add("log %s: %s", token, e.Text)
			}
			return nil
		}})
		return l, func() { l.Close(); _ = l.Wait() }
	}
	return r, said
}

// waiting is a task that runs until it is released or stopped.
func waiting(id agentapi.ID, kind string, release <-chan struct{}) job {
	return job{id: id, kind: kind, logToken: string(id), run: func(ctx context.Context, _ *tasklog.Log) (agentapi.TaskStatus, error) {
		select {
		case <-release:
			return agentapi.TaskStatus{Successful: &agentapi.Unit{}}, nil
		case <-ctx.Done():
			return agentapi.TaskStatus{}, context.Cause(ctx)
		}
	}}
}

func check(t *testing.T, said *records, want ...string) {
	t.Helper()
	synctest.Wait()
	got := said.take()
	slices.Sort(got)
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestBuildsDoNotWaitForEvaluations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := testTasks(t.Context(), 1)
		e1, e2, b1, b2 := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
		r.start(waiting("e1", evaluation, e1))
		synctest.Wait()
		r.start(waiting("e2", evaluation, e2))
		synctest.Wait()
		r.start(waiting("b1", building, b1))
		synctest.Wait()
		r.start(waiting("f", effect, b2))
		check(t, said, "started e1", "started b1")
		if d := cmp.Diff(agentapi.List[agentapi.ID]{"b1", "e1", "e2", "f"}, r.inProgress()); d != "" {
			t.Error(d)
		}
		close(b1)
		check(t, said, "b1 successful", "started f")
		close(e1)
		check(t, said, "e1 successful", "started e2")
		close(e2)
		close(b2)
		check(t, said, "e2 successful", "f successful")
		if got := r.inProgress(); got == nil || len(got) != 0 {
			t.Errorf("in progress: %#v", got)
		}
	})
}

func TestSecondStartIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := testTasks(t.Context(), 2)
		release := make(chan struct{})
		r.start(waiting("x", building, release))
		r.start(waiting("x", building, release))
		close(release)
		check(t, said, "started x", "x successful")
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := testTasks(t.Context(), 1)
		r.start(waiting("running", building, nil))
		synctest.Wait()
		r.start(waiting("queued", building, nil))
		check(t, said, "started running")
		r.cancel("unknown")
		r.cancel("queued")
		check(t, said, "cancelled queued", "queued exceptional: cancelled by the coordinator")
		r.cancel("running")
		check(t, said, "cancelled running", "log running: The task was stopped: cancelled by the coordinator.",
			"running exceptional: cancelled by the coordinator")
	})
}

// A task that ends well while it is being cancelled has still ended well.
func TestCancelTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := testTasks(t.Context(), 1)
		r.start(job{id: "x", kind: building, run: func(ctx context.Context, _ *tasklog.Log) (agentapi.TaskStatus, error) {
			<-ctx.Done()
			return agentapi.TaskStatus{Successful: &agentapi.Unit{}}, nil
		}})
		synctest.Wait()
		r.cancel("x")
		check(t, said, "started x", "cancelled x", "x successful")
	})
}

func TestFailuresCostOneTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := testTasks(t.Context(), 1)
		r.start(job{id: "p", kind: building, logToken: "p", run: func(context.Context, *tasklog.Log) (agentapi.TaskStatus, error) {
			panic("boom")
		}})
		check(t, said, "started p", "log p: internal error of the agent: boom", "p exceptional: internal error of the agent: boom")
		r.start(job{id: "e", kind: building, run: func(context.Context, *tasklog.Log) (agentapi.TaskStatus, error) {
			return agentapi.TaskStatus{}, errors.New("no disk")
		}})
		check(t, said, "started e", "e exceptional: no disk")
		r.start(job{id: "n", kind: building, run: func(context.Context, *tasklog.Log) (agentapi.TaskStatus, error) {
			return agentapi.TaskStatus{}, nil
		}})
		check(t, said, "started n", "n exceptional: internal error of the agent: a task ended without status")
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		r, said := testTasks(ctx, 2)
		quick := make(chan struct{})
		r.start(waiting("quick", building, quick))
		r.start(waiting("slow", building, nil))
		check(t, said, "started quick", "started slow")

		limit, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		drained := make(chan struct{})
		begin := time.Now()
		go func() { defer close(drained); r.drain(limit) }()
		synctest.Wait()
		r.start(waiting("late", building, nil)) // not accepted
		close(quick)
		check(t, said, "quick successful")
		<-drained
		if d := time.Since(begin); d != time.Minute {
			t.Errorf("drained in %s", d)
		}
		// What is handed back gets no status.
		check(t, said, "log slow: The task was stopped: the agent is stopping; the task is handed back.")
		stop()
		r.wait()
		check(t, said)
	})
}

func TestDrainOfNothingIsQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := testTasks(t.Context(), 1)
		begin := time.Now()
		r.drain(t.Context())
		if d := time.Since(begin); d != 0 {
			t.Errorf("took %s", d)
		}
	})
}

// The status is repeated for as long as it takes, and the task is in progress meanwhile, but it holds no slot.
func TestStatusThatCannotBeReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := testTasks(t.Context(), 1)
		report := r.status
		back := make(chan struct{})
		r.status = func(ctx context.Context, id agentapi.ID, s agentapi.TaskStatus) error {
			<-back
			return report(ctx, id, s)
		}
		release := make(chan struct{})
		close(release)
		r.start(waiting("a", building, release))
		synctest.Wait()
		r.start(waiting("b", building, release))
		check(t, said, "started a", "started b")
		if got := r.inProgress(); len(got) != 2 {
			t.Errorf("in progress: %v", got)
		}
		close(back)
		check(t, said, "a successful", "b successful")
	})
}
