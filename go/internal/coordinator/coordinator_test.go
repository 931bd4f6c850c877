package coordinator_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/coordinator"
	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A repository without herculesCI: one evaluation, builds in order of the graph, logs, events, result.
func TestLegacyJob(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{})
	events := collect(t, c)
	a := join(t, c, 4)
	job := submit(t, c, legacyJob())

	ev := a.evaluation()
	if ev.Selector.ConfigOrLegacy == nil || ev.IsFlakeJob || ev.CISystems != nil {
		t.Errorf("task: %+v", ev)
	}
	if got := string(ev.InputMetadata["src"]["ref"]); got != `"refs/heads/main"` {
		t.Errorf("ref is %s", got)
	}
	url := ev.OtherInputs["src"]
	if ev.Inputs["src"].ArchiveURL == nil || *ev.Inputs["src"].ArchiveURL != url {
		t.Errorf("inputs: %+v", ev.Inputs)
	}
	for range 2 { // without token, and again, as agents do when they retry
		if got := a.must("GET", strings.TrimPrefix(url, a.base), "", nil, false); string(got) != "a tarball" {
			t.Errorf("source: %q", got)
		}
	}
	a.started(ev.ID)
	a.events(ev.ID)
	a.events(ev.ID, info("lib"), info("app", "lib"), info("bad"), info("user", "bad"), attribute("app", "app", agentapi.Regular),
		request("lib", false), request("app", false), attribute("bad", "bad", agentapi.MayFail), request("bad", false),
		attribute("user", "user", agentapi.Regular), request("user", false),
		attribute("must", "bad", agentapi.MustFail),
		agentapi.EvaluateEvent{AttributeError: &agentapi.AttributeErrorEvent{ExpressionPath: agentapi.List[string]{"broken"}, ErrorMessage: "error: no", Trace: ptr("at x")}},
		agentapi.EvaluateEvent{AttributeEffect: &agentapi.AttributeEffectEvent{
			ExpressionPath: agentapi.List[string]{"deploy"}, DerivationPath: drv("app"),
			SecretsToUse: agentapi.Map[string, agentapi.SecretRef]{"aws": {SimpleSecret: &agentapi.SimpleSecret{Name: "staging"}}},
		}})
	builds := map[string]*agentapi.BuildTask{}
	for range 2 {
		b := a.build()
		builds[b.DerivationPath] = b
	}
	lib, bad := builds[drv("lib")], builds[drv("bad")]
	if lib == nil || bad == nil {
		t.Fatalf("first builds: %v", builds)
	}
	l := a.openLog(bad.LogToken)
	a.started(bad.ID)
	l.entries(buildStart(0, drv("bad")), phase(1, "buildPhase"), buildLine(2, "oops"))
	a.status(bad.ID, terminated)
	l.entries(agentapi.LogEntry{Kind: agentapi.LogMsg, I: 3, Text: "error: builder failed"}) // after the status
	l.end(4)
	a.succeed(lib)
	a.openLog(lib.LogToken).end(0)
	app := a.build()
	if diff := cmp.Diff([]string{out("lib")}, []string(app.InputDerivationOutputPaths)); diff != "" || app.DerivationPath != drv("app") {
		t.Errorf("app: %+v %s", app, diff)
	}
	la := a.openLog(app.LogToken)
	la.entries(buildStart(0, drv("app")))
	la.end(1)
	a.succeed(app)
	a.status(ev.ID, successful)
	a.openLog(ev.LogToken).end(0)

	r := wait(t, c, job)
	if r.Status != event.Failed {
		t.Errorf("status %s", r.Status)
	}
	got := map[string]event.Outcome{}
	for _, at := range r.Attributes {
		got[strings.Join(at.Path, ".")] = at.Outcome
	}
	want := map[string]event.Outcome{
		"app": event.Good, "bad": event.FailedIgnored, "must": event.FailedAsExpected, "user": event.BadDependency,
		"broken": event.EvaluationError, "deploy": event.NotRun,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outcomes: %s", diff)
	}
	counts := event.Counts{Attributes: 6, Good: 1, FailedAsExpected: 1, FailedIgnored: 1, NotRun: 1, Bad: 1, Errors: 1, Builds: 4, Succeeded: 2, Realised: 1, Failed: 2}
	if diff := cmp.Diff(counts, r.Counts); diff != "" {
		t.Errorf("counts: %s", diff)
	}
	b, err := os.ReadFile(c.LogPath(drv("bad")))
	if want := "building '" + drv("bad") + "'\noops\nerror: builder failed\n"; err != nil || string(b) != want {
		t.Errorf("log: %q, %v", b, err)
	}
	rd, err := c.OpenLog(t.Context(), drv("bad"), true)
	if err != nil {
		t.Fatal(err)
	}
	if b2, err := io.ReadAll(rd); err != nil || string(b2) != string(b) {
		t.Errorf("log as a stream: %q, %v", b2, err)
	}
	if err := rd.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.OpenLog(t.Context(), drv("nothing"), false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("log of nothing: %v", err)
	}
	checkEvents(t, events(), job)
}

// checkEvents looks at the stream of TestLegacyJob: order, and that each is one JSON object.
func checkEvents(t *testing.T, events []event.Event, job string) {
	t.Helper()
	count := map[string]int{}
	for _, e := range events {
		b, err := json.Marshal(e)
		if err != nil {
			t.Errorf("%+v: %v", e, err)
			continue
		}
		var doc map[string]any
		if err := json.Unmarshal(b, &doc); err != nil || strings.ContainsRune(string(b), '\n') {
			t.Errorf("%s: %v", b, err)
		}
		if doc["event"] != e.Body.EventName() || doc["time"] == "" {
			t.Errorf("%s: no name or time", b)
		}
		if _, agent := e.Body.(event.AgentConnected); !agent && doc["job"] != job {
			t.Errorf("%s: not of job %s", b, job)
		}
		count[e.Body.EventName()]++
	}
	want := map[string]int{
		"agent-connected": 1, "job-started": 1, "evaluation-started": 1, "evaluation-progress": 1, "evaluation-finished": 1,
		"attribute": 5, "attribute-error": 1, "attribute-result": 6, "build-queued": 4, "build-started": 3, "build-finished": 4,
		"build-phase": 1, "log": 4, "job-finished": 1,
	}
	if diff := cmp.Diff(want, count); diff != "" {
		t.Errorf("events: %s\n%s", diff, names(events))
	}
}

func TestHandlers(t *testing.T) {
	t.Parallel()
	handlers := []agentapi.EvaluateEvent{
		{JobConfig: &agentapi.JobConfig{}},
		{OnPushHandlerEvent: &agentapi.OnPushHandlerEvent{HandlerName: "default"}},
		{OnPushHandlerEvent: &agentapi.OnPushHandlerEvent{HandlerName: "more", HandlerExtraInputs: agentapi.Map[string, agentapi.InputDeclaration]{
			"gizmos": {SiblingInput: &agentapi.SiblingInput{Project: "gizmos"}},
		}}},
		{OnScheduleHandlerEvent: &agentapi.OnScheduleHandlerEvent{HandlerName: "nightly"}},
	}
	inputs := func(project string, _ *string) (agentapi.ImmutableInput, error) {
		return agentapi.ImmutableInput{Git: &agentapi.ImmutableGitInput{Rev: "b", HTTPURL: "https://example.org/" + project}}, nil
	}
	for _, test := range []struct {
		name     string
		handlers []string
		inputs   func(string, *string) (agentapi.ImmutableInput, error)
		legacy   bool
		want     []string
		status   event.Status
	}{
		{name: "all of onPush", inputs: inputs, want: []string{"onPush.default", "onPush.more"}, status: event.Succeeded},
		{name: "one", handlers: []string{"default"}, want: []string{"onPush.default"}, status: event.Succeeded},
		{name: "schedule", handlers: []string{"onSchedule.nightly"}, want: []string{"onSchedule.nightly"}, status: event.Succeeded},
		{name: "unknown", handlers: []string{"nope"}, status: event.Failed},
		{name: "no inputs to be had", handlers: []string{"more"}, status: event.Errored},
		{name: "no herculesCI", legacy: true, handlers: []string{"default"}, status: event.Failed},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
			a := join(t, c, 2)
			j := legacyJob()
			j.Handlers, j.ExtraInputs = test.handlers, test.inputs
			job := submit(t, c, j)
			ev := a.evaluation()
			if !test.legacy {
				a.events(ev.ID, handlers...)
				a.events(ev.ID, handlers...) // a retried batch
			}
			a.status(ev.ID, successful)
			var got []string
			for range test.want {
				ev := a.evaluation()
				switch s := ev.Selector; {
				case s.OnPush != nil:
					got = append(got, "onPush."+s.OnPush.Name)
					if in := s.OnPush.Inputs["gizmos"].Git; s.OnPush.Name == "more" && (in == nil || in.HTTPURL != "https://example.org/gizmos") {
						t.Errorf("inputs: %+v", s.OnPush.Inputs)
					}
				case s.OnSchedule != nil:
					got = append(got, "onSchedule."+s.OnSchedule.Name)
				}
				a.status(ev.ID, successful)
			}
			if len(test.want) == 2 && got[0] > got[1] {
				got[0], got[1] = got[1], got[0] // sent side by side
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if r := wait(t, c, job); r.Status != test.status {
				t.Errorf("status %s, want %s (%+v)", r.Status, test.status, r)
			}
		})
	}
}

func TestFlakeJob(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
	a := join(t, c, 1)
	job := submit(t, c, coordinator.Job{
		Flake: true, CISystems: []string{"x86_64-linux"},
		Credentials: []agentapi.Credential{{URL: "https://example.org", Username: "u", Password: "p"}},
		Source:      coordinator.Source{Ref: "refs/heads/main", Rev: "abc", Git: &agentapi.ImmutableGitInput{HTTPURL: "file:///checkout"}},
	})
	ev := a.evaluation()
	git := ev.Inputs["src"].Git
	if !ev.IsFlakeJob || git == nil || git.Rev != "abc" || git.Ref != "refs/heads/main" || git.HTTPURL != "file:///checkout" || len(ev.OtherInputs) != 0 {
		t.Errorf("task: %+v, git %+v", ev, git)
	}
	if _, ok := (*ev.CISystems)["x86_64-linux"]; !ok || len(*ev.ExtraGitCredentials) != 1 {
		t.Errorf("task: %+v", ev)
	}
	a.status(ev.ID, exceptional("no network"))
	r := wait(t, c, job)
	if r.Status != event.Errored || len(r.EvaluationFailures) != 1 || r.EvaluationFailures[0].Reason != "no network" {
		t.Errorf("result: %+v", r)
	}
}

func TestSubmitErrors(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{})
	for name, j := range map[string]coordinator.Job{
		"no archive":  {},
		"no git":      {Flake: true},
		"bad pattern": {Source: coordinator.Source{Archive: archive("")}, Attributes: []string{"a..b"}},
	} {
		if _, err := c.Submit(t.Context(), j); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := c.Wait(t.Context(), "nothing"); err == nil {
		t.Error("waiting for nothing: no error")
	}
}

// With one slot an evaluation that waits lends it to what it waits for.
func TestImportFromDerivation(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
	a := join(t, c, 1)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	a.started(ev.ID)
	if s := a.evalBuild(drv("gen")); s != nil {
		t.Errorf("before the request: %+v", s)
	}
	a.events(ev.ID, info("other"), attribute("other", "other", agentapi.Regular), request("other", false))
	a.quiet() // its slot is taken
	a.events(ev.ID, required(0, "gen"), info("dep"), info("gen", "dep"), request("gen", false))
	dep := a.build()
	if dep.DerivationPath != drv("dep") {
		t.Fatalf("got %s, want the input of the import", dep.DerivationPath)
	}
	if s := a.evalBuild(drv("gen")); s == nil || s.Status != agentapi.Waiting {
		t.Errorf("while its input is built: %+v", s)
	}
	a.succeed(dep)
	gen := a.build()
	first := a.evalBuild(drv("gen"))
	if first == nil || first.Status != agentapi.Building || gen.DerivationPath != drv("gen") {
		t.Fatalf("while it is built: %+v", first)
	}
	a.succeed(gen)
	if s := a.evalBuild(drv("gen")); s == nil || s.Status != agentapi.BuildSuccess || s.Attempt != first.Attempt {
		t.Errorf("built: %+v", s)
	}
	// Not to be had from any cache: another attempt, once, though the batch is repeated (gotcha 25).
	batch := []agentapi.EvaluateEvent{required(1, "gen"), request("gen", true)}
	a.events(ev.ID, batch...)
	again := a.build()
	a.events(ev.ID, batch...)
	second := a.evalBuild(drv("gen"))
	if second.Attempt == first.Attempt || second.Status != agentapi.Building || again.ID == gen.ID {
		t.Errorf("forced: %+v after %+v", second, first)
	}
	a.succeed(again)
	a.events(ev.ID, batch...)
	a.quiet()
	if s := a.evalBuild(drv("gen")); *s != (agentapi.EvalBuild{Attempt: second.Attempt, Status: agentapi.BuildSuccess}) {
		t.Errorf("forced and built: %+v", s)
	}
	a.status(ev.ID, successful)
	a.succeed(a.build())
	if r := wait(t, c, job); r.Status != event.Succeeded {
		t.Errorf("result: %+v", r)
	}
}

func TestAttributeFilter(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
	a := join(t, c, 4)
	j := legacyJob()
	j.Attributes = []string{"packages.*.app"}
	job := submit(t, c, j)
	ev := a.evaluation()
	a.events(ev.ID, info("lib"), info("other"), info("app", "lib"), request("lib", false), request("other", false),
		attribute("packages.x86_64-linux.other", "other", agentapi.Regular), request("app", false),
		attribute("packages.x86_64-linux.app", "app", agentapi.Regular))
	a.status(ev.ID, successful)
	for _, want := range []string{"lib", "app"} {
		b := a.build()
		if b.DerivationPath != drv(want) {
			t.Errorf("built %s, want %s", b.DerivationPath, want)
		}
		a.succeed(b)
	}
	r := wait(t, c, job)
	if r.Status != event.Succeeded || len(r.Attributes) != 1 {
		t.Errorf("result: %+v", r)
	}
	a.quiet()
}

func TestCancel(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{})
	events := collect(t, c)
	a := join(t, c, 2)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	a.events(ev.ID, info("app"), attribute("app", "app", agentapi.Regular), request("app", false))
	b := a.build()
	a.started(b.ID)
	a.settled()
	c.Cancel(job)
	c.Cancel(job)
	c.Cancel("nothing")
	r := wait(t, c, job)
	if r.Status != event.Cancelled || len(r.Attributes) != 1 || r.Attributes[0].Outcome != event.Stopped {
		t.Errorf("result: %+v", r)
	}
	cancelled := map[agentapi.ID]bool{}
	for range 2 {
		p := a.receive()
		if p.Cancel == nil {
			t.Fatalf("got %+v, want a cancel", p)
		}
		cancelled[p.Cancel.TaskID] = true
	}
	if !cancelled[ev.ID] || !cancelled[b.ID] {
		t.Errorf("cancelled: %v", cancelled)
	}
	if s := a.evalBuild(drv("app")); s == nil || s.Status != agentapi.BuildFailure {
		t.Errorf("a poll must come to an end: %+v", s)
	}
	// In either order (gotcha 20).
	a.status(b.ID, exceptional("thread killed"))
	a.send(agentapi.AgentPayload{Cancelled: &agentapi.TaskRef{TaskID: b.ID}})
	a.send(agentapi.AgentPayload{Cancelled: &agentapi.TaskRef{TaskID: ev.ID}})
	a.status(ev.ID, exceptional("thread killed"))
	a.settled()
	events()
	// The slots are free again.
	submit(t, c, legacyJob())
	a.evaluation()
}
