package store_test

import (
	"encoding/json"
	"errors"
	"testing"

	"hercules/internal/coordinator/store"
	"hercules/internal/wire/agentapi"
)

// TestStore is what every implementation has to pass.
func TestStore(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) store.Store{
		"memory": func(*testing.T) store.Store { return store.NewMemory() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conformance(t, open(t))
		})
	}
}

func conformance(t *testing.T, s store.Store) {
	ctx := t.Context()
	check := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	_, err := s.SessionByToken(ctx, store.HashToken("x"))
	check("unknown session", err, store.ErrNotFound)
	check("session", s.AddSession(ctx, store.HashToken("x"), store.Session{ID: "s", JoinToken: "j"}), nil)
	sess, err := s.SessionByToken(ctx, store.HashToken("x"))
	check("session", err, nil)
	if sess.ID != "s" || sess.JoinToken != "j" {
		t.Errorf("session: %+v", sess)
	}

	_, err = s.Task(ctx, "t")
	check("unknown task", err, store.ErrNotFound)
	_, err = s.TaskByLogToken(ctx, store.HashToken("l"))
	check("unknown log token", err, store.ErrNotFound)
	_, err = s.FinishTask(ctx, "t", agentapi.TaskStatus{Successful: &agentapi.Unit{}})
	check("status of an unknown task", err, store.ErrNotFound)
	check("task", s.AddTask(ctx, store.Task{ID: "t", Drv: "d", LogToken: store.HashToken("l")}), nil)
	for _, get := range []func() (store.Task, error){
		func() (store.Task, error) { return s.Task(ctx, "t") },
		func() (store.Task, error) { return s.TaskByLogToken(ctx, store.HashToken("l")) },
	} {
		task, err := get()
		check("task", err, nil)
		if task.ID != "t" || task.Drv != "d" {
			t.Errorf("task: %+v", task)
		}
	}
	for _, want := range []bool{true, false, false} {
		first, err := s.FinishTask(ctx, "t", agentapi.TaskStatus{Terminated: &agentapi.Unit{}})
		check("status", err, nil)
		if first != want {
			t.Errorf("first: got %v, want %v", first, want)
		}
	}

	for _, want := range []int64{-1, 7} {
		n, err := s.Received(ctx, "peer")
		check("received", err, nil)
		if n != want {
			t.Errorf("received: got %d, want %d", n, want)
		}
		check("received", s.SetReceived(ctx, "peer", 7), nil)
	}

	_, err = s.Result(ctx, "job")
	check("unknown result", err, store.ErrNotFound)
	check("result", s.SetResult(ctx, "job", json.RawMessage(`{}`)), nil)
	r, err := s.Result(ctx, "job")
	check("result", err, nil)
	if string(r) != "{}" {
		t.Errorf("result: %s", r)
	}
}
