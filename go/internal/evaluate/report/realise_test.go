package report_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/evaluate/report"
	"hercules/internal/nix/daemon"
	"hercules/internal/wire/agentapi"
)

// fakeStore has paths, and gets those that the caches have by substitution.
type fakeStore struct {
	mu            sync.Mutex
	valid, caches map[string]bool
	rooted        map[string]bool
	fail          error
}

func newStore() *fakeStore {
	return &fakeStore{valid: map[string]bool{}, caches: map[string]bool{}, rooted: map[string]bool{}}
}

func (s *fakeStore) IsValidPath(_ context.Context, path string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.rooted[path] {
		return false, errors.New("it may be collected meanwhile")
	}
	return s.valid[path], s.fail
}

func (s *fakeStore) EnsurePath(_ context.Context, path string) (unavailable, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.caches[path] {
		s.valid[path] = true
	}
	if !s.valid[path] {
		return errors.New("no substituter has it"), nil
	}
	return nil, nil
}

func (s *fakeStore) AddTempRoot(_ context.Context, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rooted[path] = true
	return nil
}

func (s *fakeStore) cached(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.caches[outPath(name, "out")] = true
}

// ids of attempts.
const (
	first  = agentapi.ID("7c1e0005-52f4-4a6b-9b0d-3e8f6a210033")
	second = agentapi.ID("7c1e0005-52f4-4a6b-9b0d-3e8f6a210044")
)

// script answers polls in turn; the last answer stays. It checks that nothing is asked before it is requested.
type script struct {
	t       *testing.T
	posts   *posts
	answers []*agentapi.EvalBuild
	effects map[int]func() // before the n-th answer
	asked   []time.Time
}

func (s *script) status(_ context.Context, drv string) (*agentapi.EvalBuild, error) {
	requested := false
	for _, l := range s.posts.lines() {
		if l == "build "+short(drv) {
			requested = true
		}
	}
	if !requested {
		s.t.Errorf("polled for %s before its request was posted", drv)
	}
	n := len(s.asked)
	s.asked = append(s.asked, time.Now())
	if f := s.effects[n]; f != nil {
		f()
	}
	return s.answers[min(n, len(s.answers)-1)], nil
}

func TestRealise(t *testing.T) {
	t.Parallel()
	b := func(attempt agentapi.ID, status agentapi.DerivationStatus) *agentapi.EvalBuild {
		return &agentapi.EvalBuild{Attempt: attempt, Status: status}
	}
	tests := []struct {
		name    string
		prepare func(s *fakeStore)
		answers []*agentapi.EvalBuild
		effects map[int]func(s *fakeStore)
		want    []string // events
		err     string
		polls   int
	}{
		{
			name: "valid already: announced, not waited for", prepare: func(s *fakeStore) { s.valid[outPath("plan", "out")] = true },
			want: []string{"required 0 plan!out", "info dep", "info plan", "build plan"},
		},
		{
			name: "in a cache: no need to wait for a build", prepare: func(s *fakeStore) { s.cached("plan") },
			want: []string{"required 0 plan!out", "info dep", "info plan", "build plan"},
		},
		{
			name: "built elsewhere", answers: []*agentapi.EvalBuild{nil, b(first, agentapi.Waiting), b(first, agentapi.Building), b(first, agentapi.BuildSuccess)},
			effects: map[int]func(*fakeStore){3: func(s *fakeStore) { s.cached("plan") }},
			want:    []string{"required 0 plan!out", "info dep", "info plan", "build plan"}, polls: 4,
		},
		{
			name: "fails", answers: []*agentapi.EvalBuild{b(first, agentapi.BuildFailure)},
			want: []string{"required 0 plan!out", "info dep", "info plan", "build plan"}, polls: 1, err: "its build failed",
		},
		{
			name: "a dependency fails", answers: []*agentapi.EvalBuild{nil, b(first, agentapi.DependencyFailure)},
			want: []string{"required 0 plan!out", "info dep", "info plan", "build plan"}, polls: 2, err: "the build of one of its dependencies failed",
		},
		{
			name: "lost, then built again", answers: []*agentapi.EvalBuild{b(first, agentapi.BuildSuccess), b(first, agentapi.BuildSuccess), b(second, agentapi.Building), b(second, agentapi.BuildSuccess)},
			effects: map[int]func(*fakeStore){3: func(s *fakeStore) { s.cached("plan") }},
			want:    []string{"required 0 plan!out", "info dep", "info plan", "build plan", "required 1 plan!out", "rebuild plan"}, polls: 4,
		},
		{
			name: "lost again", answers: []*agentapi.EvalBuild{b(first, agentapi.BuildSuccess), b(second, agentapi.BuildSuccess)},
			want: []string{"required 0 plan!out", "info dep", "info plan", "build plan", "required 1 plan!out", "rebuild plan"}, polls: 2,
			err: `its output "out" at /nix/store/00000000000000000000000000000000-plan did not get here`,
		},
		{
			name: "lost, and the new build fails", answers: []*agentapi.EvalBuild{b(first, agentapi.BuildSuccess), b(second, agentapi.BuildFailure)},
			want: []string{"required 0 plan!out", "info dep", "info plan", "build plan", "required 1 plan!out", "rebuild plan"}, polls: 2,
			err: "its build failed",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &posts{t: t}
				store := newStore()
				if test.prepare != nil {
					test.prepare(store)
				}
				polls := &script{t: t, posts: p, answers: test.answers, effects: map[int]func(){}}
				for n, f := range test.effects {
					polls.effects[n] = func() { f(store) }
				}
				ctx, cancel := context.WithCancel(t.Context())
				events := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
				w := newWorld("plan: dep\ndep:")
				planner := report.NewPlanner(ctx, report.PlannerConfig{Read: w.read, Events: events})
				r := report.NewRealiser(ctx, report.RealiserConfig{
					Events: events, Planner: planner, Read: w.read, Store: store, BuildStatus: polls.status, Fail: func(err error) { t.Error(err) },
				})
				// Several ask at once, in different words.
				var wg sync.WaitGroup
				for i := range 4 {
					wg.Go(func() {
						outputs := []string{"out"}
						if i == 0 {
							outputs = []string{"out", "no such output"}
						}
						err := r.Realise(ctx, daemon.DerivedPath{Path: drvPath("plan"), Outputs: outputs})
						var build *report.BuildError
						switch {
						case test.err == "" && err != nil:
							t.Error(err)
						case test.err != "" && (!errors.As(err, &build) || build.Derivation != drvPath("plan") || !strings.Contains(build.Reason, test.err)):
							t.Errorf("got %v, want %s", err, test.err)
						}
					})
				}
				wg.Wait()
				if err := planner.Finish(); err != nil {
					t.Error(err)
				}
				cancel()
				r.Wait()
				if err := events.Close(t.Context()); err != nil {
					t.Error(err)
				}
				if d := cmp.Diff(test.want, p.lines()); d != "" {
					t.Error(d)
				}
				if len(polls.asked) != test.polls {
					t.Errorf("%d polls, want %d", len(polls.asked), test.polls)
				}
				if !store.rooted[outPath("plan", "out")] {
					t.Error("no temporary root")
				}
			})
		})
	}
}

func TestRealiseAllOutputsAndPlainPaths(t *testing.T) {
	t.Parallel()
	p := &posts{t: t}
	events := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
	ctx, cancel := context.WithCancel(t.Context())
	w := newWorld("a:")
	planner := report.NewPlanner(ctx, report.PlannerConfig{Read: w.read, Events: events})
	store := newStore()
	store.valid[outPath("a", "out")], store.valid[outPath("a", "dev")] = true, true
	r := report.NewRealiser(ctx, report.RealiserConfig{Events: events, Planner: planner, Read: w.read, Store: store})
	if err := r.Realise(ctx, daemon.DerivedPath{Path: outPath("x", "out")}); err != nil {
		t.Error(err)
	}
	if err := r.Realise(ctx, daemon.DerivedPath{Path: drvPath("a"), Outputs: []string{"*"}}); err != nil {
		t.Error(err)
	}
	if err := r.Realise(ctx, daemon.DerivedPath{Path: drvPath("gone"), Outputs: []string{"*"}}); err != nil {
		t.Errorf("%v: a derivation that does not exist is the store's to refuse", err)
	}
	if len(store.rooted) != 2 {
		t.Errorf("rooted %v", store.rooted)
	}
	if err := planner.Finish(); err != nil {
		t.Error(err)
	}
	cancel()
	r.Wait()
	if err := events.Close(t.Context()); err != nil {
		t.Error(err)
	}
	count := map[string]int{}
	for _, l := range p.lines() {
		count[l]++
	}
	if count["info a"] != 1 || count["build a"] != 1 {
		t.Errorf("got %v", count)
	}
}

func TestRealiseFatalFailures(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		store  error
		status error
	}{
		{"store", errors.New("daemon is gone"), nil},
		{"coordinator", nil, errors.New("no answer for 7 minutes")},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := &posts{t: t}
			events := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
			ctx, cancel := context.WithCancel(t.Context())
			w := newWorld("a:")
			planner := report.NewPlanner(ctx, report.PlannerConfig{Read: w.read, Events: events})
			store := newStore()
			store.fail = test.store
			var fatal error
			r := report.NewRealiser(ctx, report.RealiserConfig{
				Events: events, Planner: planner, Read: w.read, Store: store, Fail: func(err error) { fatal = err },
				BuildStatus: func(context.Context, string) (*agentapi.EvalBuild, error) { return nil, test.status },
			})
			want := fmt.Sprint(errors.Join(test.store, test.status))
			err := r.Realise(ctx, daemon.DerivedPath{Path: drvPath("a"), Outputs: []string{"out"}})
			for _, err := range []error{err, fatal} {
				var build *report.BuildError
				if err == nil || !strings.Contains(err.Error(), want) || errors.As(err, &build) {
					t.Errorf("got %v", err)
				}
			}
			_ = planner.Finish()
			cancel()
			r.Wait()
			_ = events.Close(t.Context())
		})
	}
}

func TestRealiseIsCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &posts{t: t}
		events := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
		ctx, cancel := context.WithCancelCause(t.Context())
		w := newWorld("a:")
		planner := report.NewPlanner(ctx, report.PlannerConfig{Read: w.read, Events: events})
		r := report.NewRealiser(ctx, report.RealiserConfig{
			Events: events, Planner: planner, Read: w.read, Store: newStore(), Fail: func(err error) { t.Error(err) },
			BuildStatus: func(context.Context, string) (*agentapi.EvalBuild, error) { return nil, nil },
		})
		want := errors.New("stop")
		time.AfterFunc(time.Hour, func() { cancel(want) })
		if err := r.Realise(ctx, daemon.DerivedPath{Path: drvPath("a"), Outputs: []string{"out"}}); !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
		if err := planner.Finish(); err != nil && !errors.Is(err, want) {
			t.Error(err)
		}
		r.Wait()
		if err := events.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
