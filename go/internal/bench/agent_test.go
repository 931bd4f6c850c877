//go:build bench

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"hercules/internal/cli/checkout"
	"hercules/internal/coordinator"
	"hercules/internal/coordinator/event"
	"hercules/internal/testnix"
)

// agentMemory measures the program hercules-ci-agent, which works for a coordinator in this process: when it has just
// joined, and at most while it evaluates and builds 500 derivations.
func agentMemory(t *testing.T, bin string, store *testnix.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c, err := coordinator.Start(ctx, coordinator.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	events, unsubscribe := c.Subscribe(ctx)
	defer unsubscribe()

	base := t.TempDir()
	config, err := json.Marshal(map[string]any{
		"apiBaseUrl": c.URL(), "baseDirectory": base, "concurrentTasks": runtime.NumCPU(),
		"nixSettings": map[string]string{"narinfo-cache-negative-ttl": "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"agent.json": string(config), "secrets/cluster-join-token.key": c.JoinToken(), "secrets/binary-caches.json": "{}",
	} {
		file := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := store.Command(filepath.Join(bin, "hercules-ci-agent"), "--config", filepath.Join(base, "agent.json"))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() error {
		ended = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		return cmd.Wait()
	}
	defer func() {
		if !ended {
			err := end()
			t.Logf("the agent ended with %v:\n%s", err, log.String())
		}
	}()

	await(t, ctx, events, func(b event.Body) bool { _, ok := b.(event.AgentConnected); return ok })
	idle := memory(t, cmd.Process.Pid, "VmRSS")
	source, err := checkout.Open(ctx, project(t, cheap(500, "agent")))
	if err != nil {
		t.Fatal(err)
	}
	job, err := c.Submit(ctx, coordinator.Job{Name: "bench", Source: coordinator.Source{
		Ref: "refs/heads/main", Rev: "0000000000000000000000000000000000000000",
		Archive: func(ctx context.Context, w io.Writer) error { return source.Tarball(ctx, w, true) },
	}})
	if err != nil {
		t.Fatal(err)
	}
	await(t, ctx, events, func(b event.Body) bool { _, ok := b.(event.JobFinished); return ok })
	peak := memory(t, cmd.Process.Pid, "VmHWM")
	result, err := c.Wait(ctx, job)
	if err != nil || result.Status != event.Succeeded {
		t.Fatalf("the job ended with %+v, %v", result, err)
	}
	if err := end(); err != nil {
		t.Fatalf("the agent ended with %v:\n%s", err, log.String())
	}
	figure("e. memory of the agent when it has joined", float64(idle)/1024, "MiB", 80, true)
	figure("e. peak memory of the agent, 500 builds", float64(peak)/1024, "MiB", 250, true)
}

// await reads events until one is the right one.
func await(t *testing.T, ctx context.Context, events <-chan event.Event, right func(event.Body) bool) {
	t.Helper()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatal("the coordinator ended")
			}
			if right(e.Body) {
				return
			}
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
	}
}
