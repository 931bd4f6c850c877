package tasklog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/nix/daemon"
	"hercules/internal/tasklog"
	"hercules/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector is a receiver of batches.
type collector struct {
	mu      sync.Mutex
	batches [][]agentapi.LogEntry
}

func (c *collector) send(b []agentapi.LogEntry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches = append(c.batches, b)
	return nil
}

func (c *collector) entries() []agentapi.LogEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []agentapi.LogEntry
	for _, b := range c.batches {
		all = append(all, b...)
	}
	return all
}

func line(text string) daemon.Event {
	return daemon.Event{Kind: daemon.EventResult, ID: 1 << 60, Type: daemon.ResBuildLogLine, Fields: []daemon.Field{{IsText: true, Text: text}}}
}

// record runs a log to its end and checks what holds for every log.
func record(t *testing.T, write func(*tasklog.Log)) []agentapi.LogEntry {
	t.Helper()
	var c collector
	l := tasklog.New(t.Context(), tasklog.Options{Send: c.send})
	write(l)
	end := l.Close()
	if err := l.Wait(); err != nil {
		t.Fatal(err)
	}
	all := c.entries()
	for i, e := range all {
		if e.I != uint64(i) {
			t.Fatalf("entry %d has index %d", i, e.I)
		}
	}
	for _, b := range c.batches {
		if len(b) == 0 || len(b) > 100 {
			t.Errorf("a batch has %d entries", len(b))
		}
	}
	want := agentapi.LogEnd{I: uint64(len(all))}
	if len(all) > 0 {
		want.MS = all[len(all)-1].MS
	}
	if end != want {
		t.Errorf("End is %+v, want %+v", end, want)
	}
	return all
}

func TestConversion(t *testing.T) {
	t.Parallel()
	const act = 9288674231451649
	got := record(t, func(l *tasklog.Log) {
		for _, e := range []daemon.Event{
			{Kind: daemon.EventMessage, Level: daemon.Warn, Text: "hello"},
			{
				Kind: daemon.EventStart, Level: daemon.Info, ID: act, Parent: 7, Type: daemon.ActBuild, Text: "building",
				Fields: []daemon.Field{{IsText: true, Text: "/nix/store/x.drv"}, {Int: 1<<64 - 1}},
			},
			line("ok"),
			{Kind: daemon.EventResult, ID: act, Type: daemon.ResProgress, Fields: []daemon.Field{{Int: 1}}},
			{Kind: daemon.EventResult, ID: act, Type: daemon.ResSetExpected, Fields: []daemon.Field{{Int: 1}}},
			{Kind: daemon.EventResult, ID: act, Type: daemon.ResSetPhase, Fields: []daemon.Field{{IsText: true, Text: "buildPhase"}}},
			{Kind: daemon.EventStop, ID: act},
			line("bin\xff\xfe\x00ary"),
		} {
			l.Event(e)
		}
		l.Line(daemon.Error, "caf\xe9")
	})
	for i := range got {
		got[i].MS = 0
	}
	want := []agentapi.LogEntry{
		{Kind: agentapi.LogMsg, Level: 1, Text: "hello"},
		{
			Kind: agentapi.LogStart, I: 1, Level: 3, Act: act, Parent: 7, Type: 105, Text: "building",
			Fields: []agentapi.LogField{{IsText: true, Text: "/nix/store/x.drv"}, {Int: 1<<64 - 1}},
		},
		{Kind: agentapi.LogResult, I: 2, Act: 1 << 60, Type: 101, Fields: []agentapi.LogField{{IsText: true, Text: "ok"}}},
		{Kind: agentapi.LogResult, I: 3, Act: act, Type: 104, Fields: []agentapi.LogField{{IsText: true, Text: "buildPhase"}}},
		{Kind: agentapi.LogStop, I: 4, Act: act},
		{Kind: agentapi.LogResult, I: 5, Act: 1 << 60, Type: 101, Fields: []agentapi.LogField{{IsText: true, Text: "bin\uFFFD\x00ary"}}},
		{Kind: agentapi.LogMsg, I: 6, Level: 0, Text: "caf\uFFFD"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestEmptyLog(t *testing.T) {
	t.Parallel()
	if got := record(t, func(*tasklog.Log) {}); len(got) != 0 {
		t.Errorf("got %d entries", len(got))
	}
}

// text is what a reader sees of an entry.
func text(e agentapi.LogEntry) string {
	if e.Kind == agentapi.LogResult && len(e.Fields) > 0 {
		return e.Fields[0].Text
	}
	return e.Text
}

func TestLimits(t *testing.T) {
	t.Parallel()
	const soft = 40_000 + 49_900
	tests := []struct {
		name    string
		lines   int
		entries int
		skipped int
	}{
		{"below the limit", soft, soft, 0},
		{"the tail is complete", soft + 10_000, soft + 1 + 10_000, 0},
		{"one is left out", soft + 10_001, soft + 1 + 10_000 + 2, 1},
		{"many are left out", 1_000_000, soft + 1 + 10_000 + 2, 1_000_000 - soft - 10_000},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := record(t, func(l *tasklog.Log) {
				for i := range test.lines {
					l.Event(line(fmt.Sprint(i)))
				}
			})
			if len(got) != test.entries {
				t.Fatalf("got %d entries, want %d", len(got), test.entries)
			}
			if test.lines <= soft {
				return
			}
			if n := got[soft]; n.Kind != agentapi.LogMsg || n.Level != 0 || !strings.Contains(n.Text, "limit") {
				t.Errorf("the notice is %+v", n)
			}
			tail := got[soft+1:]
			if test.skipped > 0 {
				for _, n := range []agentapi.LogEntry{tail[0], tail[len(tail)-1]} {
					if n.Kind != agentapi.LogMsg || !strings.Contains(n.Text, fmt.Sprint(test.skipped)+" lines") {
						t.Errorf("the frame of the tail is %+v", n)
					}
				}
				tail = tail[1 : len(tail)-1]
			}
			for i, e := range tail {
				if want := fmt.Sprint(test.lines - len(tail) + i); text(e) != want {
					t.Fatalf("line %d of the tail is %q, want %q", i, text(e), want)
				}
			}
		})
	}
}

func TestOnlyVisibleAfterTheFirstLimit(t *testing.T) {
	t.Parallel()
	phase := daemon.Event{Kind: daemon.EventResult, Type: daemon.ResSetPhase, Fields: []daemon.Field{{IsText: true, Text: "p"}}}
	got := record(t, func(l *tasklog.Log) {
		for range 40_000 {
			l.Event(phase)
		}
		l.Event(phase)
		l.Event(daemon.Event{Kind: daemon.EventStop})
		l.Event(daemon.Event{Kind: daemon.EventStart})
		l.Event(daemon.Event{Kind: daemon.EventStart, Text: "start"})
		l.Line(daemon.Info, "")
		l.Line(daemon.Info, "message")
		l.Event(line(""))
	})
	var kinds []agentapi.LogKind
	for _, e := range got[40_000:] {
		kinds = append(kinds, e.Kind)
	}
	if d := cmp.Diff([]agentapi.LogKind{agentapi.LogStart, agentapi.LogMsg, agentapi.LogResult}, kinds); d != "" {
		t.Error(d)
	}
}

func TestLongLines(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("äöü€", 1<<19) // 4.5 MiB
	got := record(t, func(l *tasklog.Log) {
		l.Event(line(long))
		l.Line(daemon.Info, long)
		l.Event(daemon.Event{Kind: daemon.EventStart, Text: long, Fields: []daemon.Field{{IsText: true, Text: long}}})
	})
	var lines, messages strings.Builder
	for _, e := range got {
		if len(text(e)) > 1<<20 || !utf8.ValidString(text(e)) {
			t.Fatalf("entry %d has %d bytes, valid: %v", e.I, len(text(e)), utf8.ValidString(text(e)))
		}
		switch e.Kind {
		case agentapi.LogResult:
			lines.WriteString(text(e))
		case agentapi.LogMsg:
			messages.WriteString(text(e))
		}
	}
	if lines.String() != long || messages.String() != long {
		t.Error("the parts of a long line are not the line")
	}
}

// A builder that prints a gigabyte must not cost a gigabyte.
func TestGigabyteOfLog(t *testing.T) {
	t.Parallel()
	for _, width := range []int{1 << 10, 64 << 10} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			t.Parallel()
			body := bytes.Repeat([]byte{'x'}, width)
			// The receiver forgets at once.
			l := tasklog.New(t.Context(), tasklog.Options{Send: func([]agentapi.LogEntry) error { return nil }})
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for range (1 << 30) / width {
				l.Event(line(string(body)))
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 200<<20 {
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
			if end := l.Close(); end.I > 100_000 {
				t.Errorf("%d entries", end.I)
			}
			if err := l.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestALoneLineGoesAtOnceAndABurstTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c collector
		l := tasklog.New(t.Context(), tasklog.Options{Send: c.send})
		start := time.Now()
		l.Event(line("lone"))
		synctest.Wait()
		if got := len(c.entries()); got != 1 || time.Since(start) != 0 {
			t.Errorf("%d entries after %s", got, time.Since(start))
		}
		for range 10 {
			l.Event(line("burst"))
		}
		synctest.Wait()
		if got := len(c.entries()); got != 1 {
			t.Errorf("%d entries: the burst was not gathered", got)
		}
		time.Sleep(6 * time.Millisecond)
		synctest.Wait()
		if len(c.batches) != 2 || len(c.batches[1]) != 10 {
			t.Errorf("batches: %d", len(c.batches))
		}
		time.Sleep(time.Second)
		l.Event(line("late"))
		if end := l.Close(); end.I != 12 || end.MS != 1006 {
			t.Errorf("end: %+v", end)
		}
		if err := l.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestStuckReceiver(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	var c collector
	l := tasklog.New(ctx, tasklog.Options{Send: func(b []agentapi.LogEntry) error {
		<-release
		return c.send(b)
	}})
	big := strings.Repeat("x", 1<<20)
	blocked := make(chan struct{})
	go func() {
		defer close(blocked)
		for range 100 { // 100 MiB do not fit
			l.Event(line(big))
		}
	}()
	select {
	case <-blocked:
		t.Error("the writer was not held back")
	case <-time.After(200 * time.Millisecond):
	}
	cancel() // the task is cancelled: its log must not keep it
	<-blocked
	end := l.Close()
	close(release)
	if err := l.Wait(); err != nil {
		t.Error(err)
	}
	all := c.entries()
	if uint64(len(all)) != end.I || !strings.Contains(all[len(all)-1].Text, "entries of this log were lost") {
		t.Errorf("%d entries, end %+v", len(all), end)
	}
}

func TestBrokenReceiver(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	l := tasklog.New(t.Context(), tasklog.Options{Send: func([]agentapi.LogEntry) error { return broken }})
	for i := range 200_000 {
		l.Event(line(fmt.Sprint(i)))
	}
	l.Close()
	if err := l.Wait(); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestConcurrentWriters(t *testing.T) {
	t.Parallel()
	got := record(t, func(l *tasklog.Log) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i := range 1000 {
					l.Linef(daemon.Info, "%d", i)
				}
			})
		}
		wg.Wait()
	})
	if len(got) != 8000 {
		t.Errorf("%d entries", len(got))
	}
}

func BenchmarkLines(b *testing.B) {
	for _, n := range []int{80_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				l := tasklog.New(b.Context(), tasklog.Options{Send: func([]agentapi.LogEntry) error { return nil }})
				for range n {
					l.Event(line("cc -O2 -c -o main.o main.c"))
				}
				l.Close()
				_ = l.Wait()
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}
