package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/coordinator/event"
	"hercules/internal/coordinator/plan"
	"hercules/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a planner with the commands that it gave.
type bench struct {
	t    testing.TB
	p    *plan.Planner
	ids  int
	all  []plan.Command
	eval agentapi.ID
}

const agentID = agentapi.ID("a")

func newBench(t testing.TB, o plan.Options, slots int) *bench {
	b := &bench{t: t}
	o.NewID = func() agentapi.ID { b.ids++; return id(b.ids) }
	b.p = plan.New(o)
	b.apply(plan.AgentUp{ID: agentID, Name: "agent", Platforms: []string{"x86_64-linux"}, Features: []string{"kvm"}, Slots: slots})
	return b
}

func (b *bench) apply(e plan.Event) []plan.Command {
	out := b.p.Apply(e)
	b.all = append(b.all, out...)
	return out
}

// job starts a job and its first evaluation.
func (b *bench) job(name string, e plan.JobSubmitted) {
	e.Job = name
	for _, c := range b.apply(e) {
		if s, ok := c.(plan.StartEvaluation); ok {
			b.eval = s.Task
		}
	}
}

func (b *bench) evaluated(events ...agentapi.EvaluateEvent) []plan.Command {
	return b.apply(plan.Evaluated{Task: b.eval, Events: events})
}

func (b *bench) evaluationEnds() []plan.Command {
	return b.apply(plan.TaskFinished{Task: b.eval, Status: successful})
}

var (
	successful = agentapi.TaskStatus{Successful: &agentapi.Unit{}}
	terminated = agentapi.TaskStatus{Terminated: &agentapi.Unit{}}
)

func builds(cs []plan.Command) []plan.StartBuild {
	var out []plan.StartBuild
	for _, c := range cs {
		if s, ok := c.(plan.StartBuild); ok {
			out = append(out, s)
		}
	}
	return out
}

func drvsOf(cs []plan.Command) []string {
	out := []string{}
	for _, s := range builds(cs) {
		out = append(out, s.Drv)
	}
	return out
}

func result(cs []plan.Command) *plan.Result {
	for _, c := range cs {
		if f, ok := c.(plan.FinishJob); ok {
			return &f.Result
		}
	}
	return nil
}

func info(name, platform string, inputs ...string) agentapi.EvaluateEvent {
	in := agentapi.Map[string, agentapi.List[string]]{}
	for _, i := range inputs {
		in[i] = agentapi.List[string]{"out"}
	}
	return agentapi.EvaluateEvent{DerivationInfo: &agentapi.DerivationInfo{
		DerivationPath: name, Platform: platform, InputDerivations: in,
		Outputs: agentapi.Map[string, agentapi.DerivationInfoOutput]{"out": {Path: ptr("out-" + name)}},
	}}
}

func request(name string) agentapi.EvaluateEvent {
	return agentapi.EvaluateEvent{BuildRequest: &agentapi.BuildRequest{DerivationPath: name}}
}

func attribute(name, drv string, typ agentapi.AttributeType) agentapi.EvaluateEvent {
	return agentapi.EvaluateEvent{Attribute: &agentapi.AttributeEvent{ExpressionPath: strings.Split(name, "."), DerivationPath: drv, Typ: typ}}
}

const linux = "x86_64-linux"

func TestOutcomes(t *testing.T) {
	t.Parallel()
	broke := agentapi.TaskStatus{Exceptional: ptr("broke")}
	for _, test := range []struct {
		typ    agentapi.AttributeType
		status agentapi.TaskStatus
		on     string // what the status is of: the attribute's derivation or its input
		want   event.Outcome
		job    event.Status
	}{
		{agentapi.Regular, successful, "app", event.Good, event.Succeeded},
		{agentapi.Regular, terminated, "app", event.Bad, event.Failed},
		{agentapi.Regular, terminated, "dep", event.BadDependency, event.Failed},
		{agentapi.Regular, broke, "app", event.BuildError, event.Failed},
		{agentapi.MustFail, successful, "app", event.UnexpectedSuccess, event.Failed},
		{agentapi.MustFail, terminated, "app", event.FailedAsExpected, event.Succeeded},
		{agentapi.MustFail, terminated, "dep", event.BadDependency, event.Failed},
		{agentapi.MustFail, broke, "app", event.BuildError, event.Failed},
		{agentapi.MayFail, successful, "app", event.Good, event.Succeeded},
		{agentapi.MayFail, terminated, "app", event.FailedIgnored, event.Succeeded},
		{agentapi.MayFail, terminated, "dep", event.FailedIgnored, event.Succeeded},
		{agentapi.MayFail, broke, "app", event.FailedIgnored, event.Succeeded},
		{agentapi.DependenciesOnly, successful, "dep", event.Good, event.Succeeded},
		{agentapi.DependenciesOnly, terminated, "dep", event.BadDependency, event.Failed},
		{agentapi.DependenciesOnly, broke, "dep", event.BuildError, event.Failed},
		{agentapi.EffectType, successful, "dep", event.NotRun, event.Succeeded},
		{agentapi.EffectType, terminated, "dep", event.BadDependency, event.Failed},
	} {
		t.Run(fmt.Sprintf("%s %s", test.typ, test.want), func(t *testing.T) {
			b := newBench(t, plan.Options{}, 3)
			b.job("j", plan.JobSubmitted{})
			b.evaluated(info("dep", linux), info("app", linux, "dep"), attribute("x", "app", test.typ), request("dep"))
			if test.typ != agentapi.DependenciesOnly && test.typ != agentapi.EffectType {
				b.evaluated(request("app"))
			}
			b.evaluationEnds()
			for i := 0; i < len(b.all); i++ {
				if s, ok := b.all[i].(plan.StartBuild); ok {
					status := successful
					if s.Drv == test.on {
						status = test.status
					}
					b.apply(plan.TaskFinished{Task: s.Task, Status: status})
				}
			}
			r := result(b.all)
			if r == nil || len(r.Attributes) != 1 || r.Attributes[0].Outcome != test.want || r.Status != test.job {
				t.Errorf("got %+v, want %s and %s", r, test.want, test.job)
			}
			if test.want == event.BadDependency && r.Attributes[0].Cause != "dep" {
				t.Errorf("cause %q", r.Attributes[0].Cause)
			}
		})
	}
}

// The longest chain of what is needed goes first; what an evaluation waits for goes before that.
func TestOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t, plan.Options{}, 1)
	b.job("j", plan.JobSubmitted{})
	events := []agentapi.EvaluateEvent{}
	for i := range 5 {
		events = append(events, info(fmt.Sprint("leaf", i), linux), request(fmt.Sprint("leaf", i)))
	}
	events = append(events, info("c0", linux), request("c0"))
	for i := 1; i < 5; i++ {
		events = append(events, info(fmt.Sprint("c", i), linux, fmt.Sprint("c", i-1)), request(fmt.Sprint("c", i)))
	}
	b.evaluated(events...)
	if got := drvsOf(b.all); len(got) > 0 {
		t.Fatalf("the evaluation has the only slot, and %v is started", got)
	}
	cs := b.evaluated(agentapi.EvaluateEvent{BuildRequired: &agentapi.BuildRequired{DerivationPath: "ifd", OutputName: "out"}}, info("ifd", linux), request("ifd"))
	got := drvsOf(cs)
	if diff := cmp.Diff([]string{"ifd"}, got); diff != "" {
		t.Fatal(diff)
	}
	b.apply(plan.TaskFinished{Task: builds(cs)[0].Task, Status: successful})
	cs = b.evaluationEnds()
	for s := builds(cs); len(s) > 0; {
		got = append(got, s[0].Drv)
		s = builds(b.apply(plan.TaskFinished{Task: s[0].Task, Status: successful}))
	}
	want := []string{"ifd", "c0", "c1", "c2", "c3"}
	if diff := cmp.Diff(want, got[:5]); diff != "" || len(got) != 11 {
		t.Errorf("%v: %s", got, diff)
	}
}

func TestFit(t *testing.T) {
	t.Parallel()
	feature := info("f", linux)
	feature.DerivationInfo.RequiredSystemFeatures = agentapi.List[string]{"kvm"}
	missing := info("m", linux)
	missing.DerivationInfo.RequiredSystemFeatures = agentapi.List[string]{"big-parallel", "kvm"}
	events := []agentapi.EvaluateEvent{
		info("other", "aarch64-linux"), info("b", "builtin"), feature, missing, request("other"), request("b"), request("f"), request("m"),
		attribute("m", "m", agentapi.Regular),
	}
	b := newBench(t, plan.Options{FailUnfit: true}, 9)
	b.job("j", plan.JobSubmitted{})
	got := drvsOf(b.evaluated(events...))
	slices.Sort(got)
	if diff := cmp.Diff([]string{"b", "f"}, got); diff != "" {
		t.Error(diff)
	}
	for i := 0; i < len(b.all); i++ {
		if s, ok := b.all[i].(plan.StartBuild); ok {
			b.apply(plan.TaskFinished{Task: s.Task, Status: successful})
		}
	}
	r := result(b.evaluationEnds())
	if r == nil || len(r.Failures) != 2 || r.Attributes[0].Reason != "no agent can build for x86_64-linux with features big-parallel, kvm" {
		t.Errorf("result: %+v", r)
	}

	// Otherwise they wait for an agent that can.
	b = newBench(t, plan.Options{}, 9)
	b.job("j", plan.JobSubmitted{})
	b.evaluated(events...)
	cs := b.apply(plan.AgentUp{ID: "arm", Platforms: []string{"aarch64-linux"}, Slots: 1})
	if diff := cmp.Diff([]string{"other"}, drvsOf(cs)); diff != "" {
		t.Error(diff)
	}
}

// What is in a cache needs no build of its own before its users start.
func TestInCache(t *testing.T) {
	t.Parallel()
	answer := func(yes bool) agentapi.EvaluateEvent {
		r := &agentapi.SubstitutionQueryResult{StoreURI: "c", Derivation: "dep", OutputName: "out"}
		if yes {
			r.OutputInfo = &agentapi.OutputInfo{Deriver: "other", Name: "out", Path: "out-dep"}
		}
		return agentapi.EvaluateEvent{SubstitutionQueryResult: r}
	}
	b := newBench(t, plan.Options{}, 9)
	b.job("j", plan.JobSubmitted{})
	cs := b.evaluated(info("dep", linux), info("app", linux, "dep"), answer(false), request("dep"), request("app"))
	if diff := cmp.Diff([]string{"dep"}, drvsOf(cs)); diff != "" {
		t.Error(diff)
	}
	cs = b.evaluated(answer(true))
	if diff := cmp.Diff([]string{"app"}, drvsOf(cs)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"out-dep"}, builds(cs)[0].Inputs); diff != "" {
		t.Error(diff)
	}
}

// Outputs whose path is known only after the build.
func TestFloatingOutput(t *testing.T) {
	t.Parallel()
	b := newBench(t, plan.Options{}, 9)
	b.job("j", plan.JobSubmitted{})
	dep := info("dep", linux)
	dep.DerivationInfo.Outputs["out"] = agentapi.DerivationInfoOutput{}
	cs := b.evaluated(dep, info("app", linux, "dep"), request("dep"), request("app"))
	task := builds(cs)[0].Task
	b.apply(plan.Built{Task: task, Events: []agentapi.BuildEvent{{OutputInfo: &agentapi.OutputInfo{Deriver: "dep", Name: "out", Path: "found"}}}})
	cs = b.apply(plan.TaskFinished{Task: task, Status: successful})
	if diff := cmp.Diff([]string{"found"}, builds(cs)[0].Inputs); diff != "" {
		t.Error(diff)
	}
}

// The closure of an import from derivation is planned when it is small or known to be nowhere; otherwise it is left
// to substituters and the builder.
func TestImportClosure(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name        string
		substitutes bool
		missing     bool
		want        string
	}{
		{"without substituters", false, false, "d0"},
		{"probably in a cache", true, false, "d9"},
		{"known to be in none", true, true, "d8"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, plan.Options{MaxIFDInputs: 4}, 1)
			b.apply(plan.AgentUp{ID: agentID, Platforms: []string{linux}, Slots: 1, Substitutes: test.substitutes})
			b.job("j", plan.JobSubmitted{})
			events := []agentapi.EvaluateEvent{{BuildRequired: &agentapi.BuildRequired{DerivationPath: "d9", OutputName: "out"}}, info("d0", linux)}
			for i := 1; i < 10; i++ {
				events = append(events, info(fmt.Sprint("d", i), linux, fmt.Sprint("d", i-1)))
			}
			if test.missing {
				events = append(events, agentapi.EvaluateEvent{SubstitutionQueryResult: &agentapi.SubstitutionQueryResult{StoreURI: "c", Derivation: "d8", OutputName: "out"}})
			}
			if diff := cmp.Diff([]string{test.want}, drvsOf(b.evaluated(append(events, request("d9"))...))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Derivation info is what an agent says; if that makes no sense the job must end all the same.
func TestCycle(t *testing.T) {
	t.Parallel()
	b := newBench(t, plan.Options{}, 9)
	b.job("j", plan.JobSubmitted{})
	b.evaluated(info("self", linux, "self"), info("x", linux, "z"), info("y", linux, "x"), info("z", linux, "y"), attribute("x", "x", agentapi.Regular),
		request("self"), request("x"), request("y"), request("z"), request("undescribed"), attribute("u", "undescribed", agentapi.Regular))
	b.evaluationEnds()
	for i := 0; i < len(b.all); i++ {
		if s, ok := b.all[i].(plan.StartBuild); ok {
			b.apply(plan.TaskFinished{Task: s.Task, Status: successful})
		}
	}
	r := result(b.all)
	if r == nil || r.Status != event.Failed || r.Counts.Succeeded != 2 || r.Counts.Failed != 3 {
		t.Errorf("result: %+v", r)
	}
}

// Two jobs share a build; the end of one leaves it to the other.
func TestSharedBuild(t *testing.T) {
	t.Parallel()
	b := newBench(t, plan.Options{}, 9)
	for _, j := range []string{"one", "two"} {
		b.job(j, plan.JobSubmitted{})
		b.evaluated(info("app", linux), attribute("app", "app", agentapi.Regular), request("app"))
		b.evaluationEnds()
	}
	s := builds(b.all)
	if len(s) != 1 {
		t.Fatalf("built %d times", len(s))
	}
	for _, c := range b.apply(plan.JobCancelled{Job: "one"}) {
		if _, ok := c.(plan.CancelTask); ok {
			t.Error("the build is cancelled although another job wants it")
		}
	}
	if r := result(b.apply(plan.TaskFinished{Task: s[0].Task, Status: successful})); r == nil || r.Status != event.Succeeded {
		t.Errorf("result: %+v", r)
	}
	// A third comes when it is there already.
	b.job("three", plan.JobSubmitted{})
	b.evaluated(attribute("app", "app", agentapi.Regular), request("app"))
	if r := result(b.evaluationEnds()); r == nil || r.Status != event.Succeeded || r.Counts.Good != 1 {
		t.Errorf("result: %+v", r)
	}
	if got := builds(b.all); len(got) != 1 {
		t.Errorf("built %d times", len(got))
	}
}

func TestAttributeErrors(t *testing.T) {
	t.Parallel()
	filter, err := plan.ParseFilter([]string{"a.b", "nothing"})
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, plan.Options{}, 1)
	b.job("j", plan.JobSubmitted{Filter: filter})
	b.evaluated(
		agentapi.EvaluateEvent{AttributeError: &agentapi.AttributeErrorEvent{ExpressionPath: agentapi.List[string]{"a"}, ErrorMessage: "above"}},
		agentapi.EvaluateEvent{AttributeError: &agentapi.AttributeErrorEvent{ExpressionPath: agentapi.List[string]{"a"}, ErrorMessage: "above"}},
		agentapi.EvaluateEvent{AttributeError: &agentapi.AttributeErrorEvent{ExpressionPath: agentapi.List[string]{"c"}, ErrorMessage: "elsewhere"}},
		agentapi.EvaluateEvent{Message: &agentapi.Message{Typ: agentapi.TraceMessage, Message: "no harm"}},
	)
	r := result(b.evaluationEnds())
	if r == nil || r.Status != event.Failed || r.Counts.Errors != 1 || len(r.Messages) != 1 || r.Messages[0].Message != "no attribute matches nothing" {
		t.Errorf("result: %+v", r)
	}
}

func TestPatterns(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, path string
		isError       bool
		want          bool
	}{
		{"a", "a", false, true},
		{"a", "b", false, false},
		{"a", "a/b", false, true},
		{"a.b", "a", false, false},
		{"a.b", "a", true, true},
		{"a.b", "", true, true},
		{"a.b", "c", true, false},
		{"a.b", "a/c", true, false},
		{"a.*", "a/b/c", false, true},
		{"a.*.c", "a/b/c", false, true},
		{"a.*.c", "a/b/d", false, false},
		{"*", "a", false, true},
		{"*", "", false, false},
		{"**.c", "a/b/c", false, true},
		{"**.c", "c", false, true},
		{"**.c", "a/b", false, false},
		{"**.c", "a/b", true, true},
		{"a.**.z", "a/z", false, true},
		{"**", "", false, true},
		{`a."b.c"`, "a/b.c", false, true},
		{`a."*"`, "a/b", false, false},
		{`a."*"`, "a/*", false, true},
		{"x86_64-*.h?llo", "x86_64-linux/hello", false, true},
	} {
		f, err := plan.ParseFilter([]string{test.pattern})
		if err != nil {
			t.Errorf("%s: %v", test.pattern, err)
			continue
		}
		path := strings.Split(test.path, "/")
		if test.path == "" {
			path = nil
		}
		if got := f[0].Match(path, test.isError); got != test.want {
			t.Errorf("%s on %q (error %v): got %v", test.pattern, test.path, test.isError, got)
		}
	}
	for _, bad := range []string{"", ".", "a.", ".a", "a..b", `"a`, `"a"b`, "[", `a."b`} {
		if _, err := plan.ParsePattern(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func FuzzParsePattern(f *testing.F) {
	for _, s := range []string{"a.b", "**.x", `a."b.c".*`, "[a-z]*", `"`, "a..b"} {
		f.Add(s, "a.b")
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		p, err := plan.ParsePattern(pattern)
		if err != nil {
			return
		}
		attr := strings.Split(path, ".")
		if p.Match(attr, false) && !p.Match(attr, true) {
			t.Errorf("%q matches %q but not its error", pattern, path)
		}
		if p.Match(attr, false) && !p.Match(append(attr, "below"), false) {
			t.Errorf("%q matches %q but nothing below", pattern, path)
		}
	})
}

// big is a job with a graph of n derivations, each with up to 8 inputs, fed as an agent would.
func big(t testing.TB, n int, finish bool) {
	b := newBench(t, plan.Options{}, 64)
	b.job("j", plan.JobSubmitted{})
	name := func(i int) string { return fmt.Sprintf("/nix/store/%032d-x.drv", i) }
	var running []plan.StartBuild
	done := 0
	take := func(cs []plan.Command) {
		if result(cs) != nil {
			done++
		}
		running = append(running, builds(cs)...)
		b.all = nil
	}
	var batch []agentapi.EvaluateEvent
	for i := range n {
		var in []string
		for k := 1; k <= 8; k++ {
			if j := i - k*k*7; j >= 0 {
				in = append(in, name(j))
			}
		}
		batch = append(batch, info(name(i), linux, in...), request(name(i)))
		if len(batch) >= 1000 {
			take(b.evaluated(batch...))
			batch = nil
		}
	}
	take(b.evaluated(append(batch, attribute("x", name(n-1), agentapi.Regular))...))
	take(b.evaluationEnds())
	built := 0
	for finish && len(running) > 0 {
		s := running[0]
		running = running[1:]
		built++
		take(b.apply(plan.TaskFinished{Task: s.Task, Status: successful}))
	}
	if finish && (built != n || done != 1) {
		t.Fatalf("built %d of %d, ended %d times", built, n, done)
	}
}

var bigGraph = 100_000

// A graph of 100,000 derivations is no trouble: what this guards against is a scan per event, which would take minutes.
func TestBigGraph(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	big(t, bigGraph, true)
	t.Logf("%d derivations planned and built in %v", bigGraph, time.Since(begin))
}

func BenchmarkGraph(b *testing.B) {
	for b.Loop() {
		big(b, bigGraph, false)
	}
}
