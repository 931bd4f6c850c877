package report_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/evaluate/report"
	"hercules/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// posts records what is posted, and insists on one post at a time.
type posts struct {
	t     testing.TB
	delay time.Duration
	fail  error

	mu      sync.Mutex
	busy    bool
	batches [][]agentapi.EvaluateEvent
}

func (p *posts) post(ctx context.Context, events []agentapi.EvaluateEvent) error {
	p.mu.Lock()
	if p.busy {
		p.t.Error("two posts at a time")
	}
	p.busy = true
	p.mu.Unlock()
	if p.delay > 0 {
		select {
		case <-time.After(p.delay):
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = false
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if p.fail != nil {
		return p.fail
	}
	p.batches = append(p.batches, events)
	return nil
}

func (p *posts) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lines []string
	for _, b := range p.batches {
		for i := range b {
			lines = append(lines, show(&b[i]))
		}
	}
	return lines
}

func (p *posts) sizes() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var n []int
	for _, b := range p.batches {
		n = append(n, len(b))
	}
	return n
}

// show is an event as a short line.
func show(e *agentapi.EvaluateEvent) string {
	switch {
	case e.Attribute != nil:
		return fmt.Sprintf("attribute %s %s %s", strings.Join(e.Attribute.ExpressionPath, "."), e.Attribute.DerivationPath, e.Attribute.Typ)
	case e.AttributeError != nil:
		return fmt.Sprintf("error %s %s", strings.Join(e.AttributeError.ExpressionPath, "."), e.AttributeError.ErrorMessage)
	case e.AttributeEffect != nil:
		return "effect " + strings.Join(e.AttributeEffect.ExpressionPath, ".")
	case e.AttributeIFD != nil:
		return fmt.Sprintf("ifd %d", e.AttributeIFD.Index)
	case e.Message != nil:
		return fmt.Sprintf("message %d %s", e.Message.Index, e.Message.Message)
	case e.DerivationInfo != nil:
		return "info " + short(e.DerivationInfo.DerivationPath)
	case e.BuildRequired != nil:
		return fmt.Sprintf("required %d %s!%s", e.BuildRequired.Index, short(e.BuildRequired.DerivationPath), e.BuildRequired.OutputName)
	case e.BuildRequest != nil:
		if e.BuildRequest.ForceRebuild {
			return "rebuild " + short(e.BuildRequest.DerivationPath)
		}
		return "build " + short(e.BuildRequest.DerivationPath)
	case e.SubstitutionQueryResult != nil:
		r := e.SubstitutionQueryResult
		return fmt.Sprintf("cache %s %s!%s %t", r.StoreURI, short(r.Derivation), r.OutputName, r.OutputInfo != nil)
	}
	return "?"
}

func attribute(name string) agentapi.EvaluateEvent {
	return agentapi.EvaluateEvent{Attribute: &agentapi.AttributeEvent{ExpressionPath: agentapi.List[string]{name}, DerivationPath: "d", Typ: agentapi.Regular}}
}

func message(text string) agentapi.EvaluateEvent {
	return agentapi.EvaluateEvent{Message: &agentapi.Message{Typ: agentapi.ErrorMessage, Message: text, Index: 99}}
}

func TestCollectorWaitsForCompany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &posts{t: t}
		c := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
		emit := func(names ...string) {
			for _, n := range names {
				if err := c.Emit(attribute(n)); err != nil {
					t.Fatal(err)
				}
			}
		}
		emit("a", "b")
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		if n := p.sizes(); len(n) != 0 {
			t.Errorf("posted too early: %v", n)
		}
		emit("c")
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if n := p.sizes(); !slices.Equal(n, []int{3}) {
			t.Errorf("after a second: %v", n)
		}
		emit("d")
		if err := c.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		if n := p.sizes(); !slices.Equal(n, []int{3, 1}) {
			t.Errorf("after Flush: %v", n)
		}
		if err := c.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		emit("e")
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if n := p.sizes(); !slices.Equal(n, []int{3, 1, 1}) {
			t.Errorf("after Close: %v", n)
		}
		if err := c.Emit(attribute("f")); err == nil {
			t.Error("an event was taken after Close")
		}
	})
}

func TestCollectorPostsFullBatchesInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &posts{t: t, delay: time.Minute}
		c := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
		var want []string
		for i := range 2500 {
			e := attribute(fmt.Sprint(i))
			want = append(want, show(&e))
			if err := c.Emit(e); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if n := p.sizes(); !slices.Equal(n, []int{1000, 1000, 500}) {
			t.Errorf("sizes %v", n)
		}
		if d := cmp.Diff(want, p.lines()); d != "" {
			t.Error(d)
		}
	})
}

func TestCollectorBoundsMasses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &posts{t: t, delay: time.Hour}
		c := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
		emitted := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ; emitted < 20_000; emitted++ {
				if err := c.EmitBulk(agentapi.EvaluateEvent{DerivationInfo: &agentapi.DerivationInfo{}}); err != nil {
					t.Error(err)
				}
			}
		}()
		synctest.Wait()
		if emitted > 10_000 {
			t.Errorf("%d events in memory", emitted)
		}
		if err := c.Emit(attribute("a")); err != nil { // does not wait
			t.Error(err)
		}
		<-done
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if n := len(p.lines()); n != 20_001 {
			t.Errorf("%d events posted", n)
		}
	})
}

func TestCollectorNumbersAndDropsRepetitions(t *testing.T) {
	t.Parallel()
	p := &posts{t: t}
	c := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
	m := message("one")
	events := []agentapi.EvaluateEvent{
		m, attribute("a"), attribute("a"), message("two"),
		{AttributeIFD: &agentapi.AttributeIFDEvent{Index: 7}},
		{AttributeIFD: &agentapi.AttributeIFDEvent{Index: 7}},
		{BuildRequired: &agentapi.BuildRequired{OutputName: "out"}},
		{BuildRequired: &agentapi.BuildRequired{OutputName: "out"}},
		{AttributeError: &agentapi.AttributeErrorEvent{ExpressionPath: []string{"a"}, ErrorMessage: "x"}},
		{Attribute: &agentapi.AttributeEvent{ExpressionPath: []string{"a", "b"}}},
		{Attribute: &agentapi.AttributeEvent{ExpressionPath: []string{"a.b"}}},
		{Attribute: &agentapi.AttributeEvent{}},
	}
	for _, e := range events {
		if err := c.Emit(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"message 0 one", "attribute a d Regular", "message 1 two", "ifd 0", "ifd 1", "required 0 !out", "required 1 !out", "error a x", "attribute a.b  ", "attribute a.b  ", "attribute   "}
	if d := cmp.Diff(want, p.lines()); d != "" {
		t.Error(d)
	}
	if m.Message.Index != 99 {
		t.Error("the caller's event was changed")
	}
}

func TestCollectorLimit(t *testing.T) {
	t.Parallel()
	p := &posts{t: t}
	c := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post, Contact: "https://ci.example"})
	var err error
	n := 0
	for ; err == nil; n++ {
		e := attribute(fmt.Sprint(n))
		if n%2 == 1 {
			e = message("m")
		}
		err = c.Emit(e)
		if n%10 == 0 && err == nil { // does not count
			err = c.EmitBulk(agentapi.EvaluateEvent{DerivationInfo: &agentapi.DerivationInfo{}})
		}
	}
	if !errors.Is(err, report.ErrLimit) || err.Error() != "Evaluation limit reached." {
		t.Errorf("got %v", err)
	}
	if n != 50_001 {
		t.Errorf("the limit came with event %d", n)
	}
	if err := c.Emit(attribute("more")); !errors.Is(err, report.ErrLimit) {
		t.Errorf("got %v", err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
	lines := p.lines()
	want := "message 25000 Evaluation limit reached: there are more than 50000 attributes, errors and messages, and the rest is left out. " +
		"Spread them over several jobs, or ask at https://ci.example."
	if got := lines[len(lines)-1]; got != want {
		t.Errorf("the last event is %q", got)
	}
	if len(lines) != 50_000+5_000+1 {
		t.Errorf("%d events", len(lines))
	}
}

func TestCollectorPostFailureIsFinal(t *testing.T) {
	t.Parallel()
	want := errors.New("no coordinator")
	var failed error
	p := &posts{t: t, fail: want}
	c := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post, Fail: func(err error) { failed = err }})
	if err := c.Emit(attribute("a")); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(t.Context()); !errors.Is(err, want) {
		t.Errorf("Flush: %v", err)
	}
	if err := c.Emit(attribute("b")); !errors.Is(err, want) {
		t.Errorf("Emit: %v", err)
	}
	if err := c.Close(t.Context()); !errors.Is(err, want) {
		t.Errorf("Close: %v", err)
	}
	if !errors.Is(failed, want) {
		t.Errorf("Fail: %v", failed)
	}
}

func TestCollectorEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		p := &posts{t: t, delay: time.Hour}
		c := report.NewCollector(ctx, report.CollectorConfig{Post: p.post})
		if err := c.Emit(attribute("a")); err != nil {
			t.Fatal(err)
		}
		want := errors.New("cancelled")
		time.AfterFunc(time.Minute, func() { cancel(want) })
		start := time.Now()
		if err := c.Flush(t.Context()); !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
		if err := c.Close(t.Context()); !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d > 2*time.Minute {
			t.Errorf("took %v", d)
		}
	})
}
