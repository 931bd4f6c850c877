package logstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"hercules/internal/coordinator/logstore"
	"hercules/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T) *logstore.Store {
	t.Helper()
	s, err := logstore.Open(filepath.Join(t.TempDir(), "logs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func line(i uint64, s string) agentapi.LogEntry {
	return agentapi.LogEntry{Kind: agentapi.LogResult, I: i, Type: 101, Fields: []agentapi.LogField{agentapi.TextField(s)}}
}

func appendTo(t *testing.T, l *logstore.Log, e ...agentapi.LogEntry) []agentapi.LogEntry {
	t.Helper()
	fresh, err := l.Append(e)
	if err != nil {
		t.Fatal(err)
	}
	return fresh
}

func TestText(t *testing.T) {
	t.Parallel()
	text := func(s string) []agentapi.LogField { return []agentapi.LogField{agentapi.TextField(s)} }
	for _, test := range []struct {
		name  string
		entry agentapi.LogEntry
		want  string
		ok    bool
	}{
		{"builder", agentapi.LogEntry{Kind: agentapi.LogResult, Type: 101, Fields: text("\x1b[32mok")}, "\x1b[32mok", true},
		{"empty line", agentapi.LogEntry{Kind: agentapi.LogResult, Type: 101, Fields: text("")}, "", true},
		{"from a terminal", agentapi.LogEntry{Kind: agentapi.LogMsg, Text: "hi\r"}, "hi", true},
		{"hook", agentapi.LogEntry{Kind: agentapi.LogResult, Type: 107, Fields: text("pushed")}, "post-build-hook: pushed", true},
		{"activity", agentapi.LogEntry{Kind: agentapi.LogStart, Level: 3, Type: 105, Text: "building"}, "building", true},
		{"chatty activity", agentapi.LogEntry{Kind: agentapi.LogStart, Level: 5, Text: "querying"}, "", false},
		{"silent activity", agentapi.LogEntry{Kind: agentapi.LogStart}, "", false},
		{"stop", agentapi.LogEntry{Kind: agentapi.LogStop}, "", false},
		{"phase", agentapi.LogEntry{Kind: agentapi.LogResult, Type: 104, Fields: text("buildPhase")}, "", false},
		{"line without text", agentapi.LogEntry{Kind: agentapi.LogResult, Type: 101}, "", false},
		{"line that is a number", agentapi.LogEntry{Kind: agentapi.LogResult, Type: 101, Fields: []agentapi.LogField{agentapi.IntField(1)}}, "", false},
		{"nothing", agentapi.LogEntry{}, "", false},
	} {
		if got, ok := logstore.Text(&test.entry); got != test.want || ok != test.ok {
			t.Errorf("%s: got %q, %v", test.name, got, ok)
		}
	}
}

func TestAppend(t *testing.T) {
	t.Parallel()
	s := open(t)
	l := s.Create("00000000-0000-4000-8000-000000000001", "../we ird/\x00name")
	if s.Create("00000000-0000-4000-8000-000000000001", "x") != l || s.Log("other") != nil {
		t.Error("a log is not found by its task")
	}
	if filepath.Dir(l.Path()) != filepath.Dir(s.Create("o", "o").Path()) {
		t.Errorf("path %q leads out", l.Path())
	}
	if _, err := os.Stat(l.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file without a log: %v", err)
	}
	appendTo(t, l, line(0, "a"), line(1, "b"))
	if fresh := appendTo(t, l, line(1, "b"), line(2, "c")); len(fresh) != 1 || fresh[0].I != 2 {
		t.Errorf("new are %v", fresh)
	}
	if err := l.End(); err != nil {
		t.Fatal(err)
	}
	appendTo(t, l, line(3, "late"))
	if fresh := appendTo(t, l, line(0, "a")); len(fresh) != 0 {
		t.Errorf("new are %v", fresh)
	}
	b, err := io.ReadAll(l.Open(t.Context(), true))
	if want := "a\nb\nc\nlate\n"; err != nil || string(b) != want {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	s := open(t)
	l := s.Create("1", "x")
	const readers, lines = 4, 2000
	var wg sync.WaitGroup
	var want bytes.Buffer
	got := make([]string, readers)
	for i := range readers {
		wg.Go(func() {
			r := l.Open(t.Context(), true)
			defer func() { _ = r.Close() }()
			b, err := io.ReadAll(r)
			if err != nil {
				t.Error(err)
			}
			got[i] = string(b)
		})
	}
	for i := range uint64(lines) {
		text := strings.Repeat("x", int(i%200))
		appendTo(t, l, line(i, text))
		want.WriteString(text + "\n")
	}
	if err := l.End(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for i := range got {
		if got[i] != want.String() {
			t.Errorf("reader %d got %d bytes, want %d", i, len(got[i]), want.Len())
		}
	}
	// Without following there is no waiting, and with it not beyond the context.
	l2 := s.Create("2", "y")
	if b, err := io.ReadAll(l2.Open(t.Context(), false)); err != nil || len(b) > 0 {
		t.Errorf("got %q, %v", b, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := io.ReadAll(l2.Open(ctx, true)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A write that fails is done over: the agent sends the entries again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "logs")
	s, err := logstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	l := s.Create("1", "x")
	if err := os.RemoveAll(dir); err != nil { // stands for whatever makes writing impossible
		t.Fatal(err)
	}
	if _, err := l.Append([]agentapi.LogEntry{line(0, "a")}); err == nil {
		t.Error("no error")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	appendTo(t, l, line(0, "a"))
	if b, err := io.ReadAll(l.Open(t.Context(), false)); err != nil || string(b) != "a\n" {
		t.Errorf("got %q, %v", b, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A long log does not sit in memory.
func TestMemory(t *testing.T) {
	s := open(t)
	l := s.Create("1", "x")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	text := strings.Repeat("x", 1<<20)
	const mebibytes = 64
	for i := range uint64(mebibytes) {
		appendTo(t, l, line(i, text))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap has grown by %d bytes for a log of %d MiB", grown, mebibytes)
	}
	if st, err := os.Stat(l.Path()); err != nil || st.Size() != mebibytes*(1<<20+1) {
		t.Errorf("file: %v, %v", st, err)
	}
}

func BenchmarkAppend(b *testing.B) {
	s, err := logstore.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	l := s.Create("1", "x")
	entries := make([]agentapi.LogEntry, 100)
	i := uint64(0)
	for b.Loop() {
		for k := range entries {
			entries[k] = line(i, "checking whether the compiler works... yes")
			i++
		}
		if _, err := l.Append(entries); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "lines/s")
	_ = s.Close()
}
