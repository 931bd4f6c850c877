package coordinator_test

import (
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"hercules/internal/coordinator"
	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// TestManyBuilds does 500 builds over the protocol and says what they cost beside the builds themselves, scripted agent
// included.
func TestManyBuilds(t *testing.T) {
	c := startCoordinator(t, coordinator.Config{})
	events, stop := c.Subscribe(t.Context())
	var wg sync.WaitGroup
	seen := 0
	wg.Go(func() {
		for range events {
			seen++
		}
	})
	a := join(t, c, 8)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	const n = 500
	var batch []agentapi.EvaluateEvent
	for i := range n {
		name := fmt.Sprint("d", i)
		batch = append(batch, info(name), attribute(name, name, agentapi.Regular), request(name, false))
	}
	begin, cpu := time.Now(), cpuTime(t)
	a.events(ev.ID, batch...)
	a.status(ev.ID, successful)
	a.openLog(ev.LogToken).end(0)
	for range n {
		b := a.build()
		l := a.openLog(b.LogToken)
		l.entries(buildStart(0, b.DerivationPath), phase(1, "buildPhase"), buildLine(2, "hello"))
		l.end(3)
		a.succeed(b)
		_ = l.ws.CloseNow()
	}
	r := wait(t, c, job)
	if r.Counts.Good != n || r.Counts.Realised != n {
		t.Errorf("counts: %+v", r.Counts)
	}
	t.Logf("%d builds: %v a build, %v CPU a build", n, time.Since(begin)/n, (cpuTime(t)-cpu)/n)
	stop()
	wg.Wait()
	if seen < 6*n {
		t.Errorf("saw %d events", seen)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A reader that is slow holds up log lines, not the work, and misses none of them.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Second})
	events, stop := c.Subscribe(t.Context())
	a := join(t, c, 2)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	a.events(ev.ID, info("app"), attribute("app", "app", agentapi.Regular), request("app", false))
	b := a.build()
	l := a.openLog(b.LogToken)
	const batches = 200 // of 100 lines: more than a reader may be behind
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for k := range uint64(batches) {
			var entries []agentapi.LogEntry
			for i := range uint64(100) {
				entries = append(entries, buildLine(100*k+i, "x"))
			}
			l.entries(entries...)
		}
		l.end(100 * batches)
	}()
	for begin := time.Now(); !c.Congested(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > limit {
			t.Fatal("log lines do not wait for the reader")
		}
	}
	a.succeed(b)
	a.status(ev.ID, successful)
	select {
	case <-sent:
		t.Error("log lines did not wait for the reader")
	case <-time.After(1100 * time.Millisecond): // longer than the grace: the job waits for its reader
	}
	lines := 0
	for e := range events {
		if _, ok := e.Body.(event.Log); ok {
			lines++
		}
		if _, ok := e.Body.(event.JobFinished); ok {
			break
		}
	}
	if lines != 100*batches {
		t.Errorf("got %d lines, want %d", lines, 100*batches)
	}
	stop()
	wait(t, c, job)
	r, err := c.OpenLog(t.Context(), b.DerivationPath, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got, err := io.ReadAll(r); err != nil || len(got) != 2*100*batches {
		t.Errorf("log has %d bytes, %v", len(got), err)
	}
}

// What is queued when the coordinator closes still reaches its readers.
func TestCloseFlushes(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{})
	events, _ := c.Subscribe(t.Context())
	for range 200 {
		submit(t, c, legacyJob())
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range events {
		n++
	}
	if n != 200 {
		t.Errorf("got %d events, want 200", n)
	}
	if _, err := c.Submit(t.Context(), legacyJob()); err == nil {
		t.Error("a job after the end: no error")
	}
	after, _ := c.Subscribe(t.Context())
	if _, open := <-after; open {
		t.Error("an event after the end")
	}
}
