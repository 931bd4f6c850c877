package plan_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"hercules/internal/coordinator/event"
	"hercules/internal/coordinator/plan"
	"hercules/internal/wire/agentapi"
)

// world simulates agents and an evaluation around a planner. Nothing in it takes time: rapid chooses what happens next.
type world struct {
	t      *rapid.T
	p      *plan.Planner
	ids    int
	agents map[agentapi.ID]*simAgent
	names  int

	drvs   []*simDrv
	byPath map[string]*simDrv
	attrs  []simAttr
	ifds   []int // drvs that evaluation needs, in order
	forces map[int]bool
	filter bool

	live     map[agentapi.ID]*simTask
	done     *plan.Result
	outcomes map[string]event.Outcome
}

type simAgent struct {
	slots int
	tasks map[agentapi.ID]*simTask
	plats []string
}

type simDrv struct {
	i        int
	path     string
	platform string
	inputs   []int
	bad      bool
	cached   bool
	breaks   int // how often it will still go wrong for reasons of its own
	good     int // times built well
	forced   bool
	live     int
	ended    bool
	ran      bool
}

type simAttr struct {
	name string
	drv  int
	typ  agentapi.AttributeType
}

type simTask struct {
	id    agentapi.ID
	agent agentapi.ID
	drv   *simDrv
	eval  *simEval
}

// simEval is a try of the evaluation: a script of batches, some of which wait for a build.
type simEval struct {
	batches [][]agentapi.EvaluateEvent
	next    int
	waitFor string
}

func id(i int) agentapi.ID { return agentapi.ID(fmt.Sprintf("00000000-0000-4000-8000-%012x", i)) }

func drvPath(i int) string { return fmt.Sprintf("/nix/store/%032d-d%d.drv", i, i) }

func outPath(i int) string { return fmt.Sprintf("/nix/store/%032d-d%d", i, i) }

func newWorld(t *rapid.T) *world {
	w := &world{t: t, agents: map[agentapi.ID]*simAgent{}, live: map[agentapi.ID]*simTask{}, byPath: map[string]*simDrv{}, forces: map[int]bool{}, outcomes: map[string]event.Outcome{}}
	w.p = plan.New(plan.Options{NewID: func() agentapi.ID { w.ids++; return id(w.ids) }, FailUnfit: true, MaxIFDInputs: rapid.IntRange(1, 5).Draw(t, "maxIFD")})
	n := rapid.IntRange(1, 14).Draw(t, "drvs")
	for i := range n {
		d := &simDrv{i: i, path: drvPath(i), platform: rapid.SampledFrom([]string{"x86_64-linux", "x86_64-linux", "builtin", nobody}).Draw(t, "platform")}
		for j := range i {
			if rapid.IntRange(0, 3).Draw(t, "edge") == 0 {
				d.inputs = append(d.inputs, j)
			}
		}
		d.bad = rapid.IntRange(0, 6).Draw(t, "bad") == 0
		d.cached = rapid.IntRange(0, 9).Draw(t, "cached") == 0
		d.breaks = rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "breaks")
		w.drvs = append(w.drvs, d)
		w.byPath[d.path] = d
	}
	types := []agentapi.AttributeType{agentapi.Regular, agentapi.Regular, agentapi.MustFail, agentapi.MayFail, agentapi.DependenciesOnly, agentapi.EffectType}
	for k := range rapid.IntRange(0, 5).Draw(t, "attrs") {
		w.attrs = append(w.attrs, simAttr{fmt.Sprintf("a%d", k), rapid.IntRange(0, n-1).Draw(t, "attr drv"), rapid.SampledFrom(types).Draw(t, "typ")})
	}
	for range rapid.IntRange(0, 2).Draw(t, "ifds") {
		i := rapid.IntRange(0, n-1).Draw(t, "ifd")
		w.ifds = append(w.ifds, i)
		w.forces[i] = rapid.Bool().Draw(t, "force")
	}
	w.filter = rapid.Bool().Draw(t, "filter")
	return w
}

func ptr[T any](v T) *T { return &v }

func (w *world) info(i int) agentapi.EvaluateEvent {
	d := w.drvs[i]
	in := agentapi.Map[string, agentapi.List[string]]{}
	for _, j := range d.inputs {
		in[drvPath(j)] = agentapi.List[string]{"out"}
	}
	return agentapi.EvaluateEvent{DerivationInfo: &agentapi.DerivationInfo{
		DerivationPath: d.path, Platform: d.platform, InputDerivations: in,
		Outputs: agentapi.Map[string, agentapi.DerivationInfoOutput]{"out": {Path: ptr(outPath(i))}},
	}}
}

// answer is what the cache says of a derivation.
func (w *world) answer(i int) agentapi.EvaluateEvent {
	q := &agentapi.SubstitutionQueryResult{StoreURI: "https://cache.example", Derivation: drvPath(i), OutputName: "out"}
	if w.drvs[i].cached {
		q.OutputInfo = &agentapi.OutputInfo{Deriver: drvPath(i), Name: "out", Path: outPath(i)}
	}
	return agentapi.EvaluateEvent{SubstitutionQueryResult: q}
}

// script is what an agent would send: inputs before users, requests of what is in no cache.
func (w *world) script() *simEval {
	ev := &simEval{}
	var batch []agentapi.EvaluateEvent
	sent, requested := map[int]bool{}, map[int]bool{}
	var infos func(int)
	infos = func(i int) {
		if sent[i] {
			return
		}
		sent[i] = true
		for _, j := range w.drvs[i].inputs {
			infos(j)
		}
		batch = append(batch, w.info(i))
		if w.drvs[i].cached {
			batch = append(batch, w.answer(i))
		}
	}
	request := func(i int, force bool) {
		batch = append(batch, agentapi.EvaluateEvent{BuildRequest: &agentapi.BuildRequest{DerivationPath: drvPath(i), ForceRebuild: force}})
	}
	query := func(i int) bool {
		batch = append(batch, w.answer(i))
		return w.drvs[i].cached
	}
	var plan func(int)
	plan = func(i int) {
		if requested[i] {
			return
		}
		requested[i] = true
		for _, j := range w.drvs[i].inputs {
			if !query(j) {
				plan(j)
			}
		}
		request(i, false)
	}
	flush := func() {
		if len(batch) > 0 {
			ev.batches = append(ev.batches, batch)
			batch = nil
		}
	}
	for k, i := range w.ifds {
		batch = append(batch, agentapi.EvaluateEvent{BuildRequired: &agentapi.BuildRequired{Index: int64(k), DerivationPath: drvPath(i), OutputName: "out"}})
		infos(i)
		request(i, false)
		flush()
		ev.batches = append(ev.batches, nil) // wait for the last batch's request
		if w.forces[i] {
			request(i, true)
			request(i, true) // as a retried batch would
			flush()
			ev.batches = append(ev.batches, nil)
		}
	}
	for _, a := range w.attrs {
		path := agentapi.List[string]{a.name}
		var report agentapi.EvaluateEvent
		if a.typ == agentapi.EffectType {
			report.AttributeEffect = &agentapi.AttributeEffectEvent{ExpressionPath: path, DerivationPath: drvPath(a.drv)}
		} else {
			report.Attribute = &agentapi.AttributeEvent{ExpressionPath: path, DerivationPath: drvPath(a.drv), Typ: a.typ}
		}
		first := rapid.Bool().Draw(w.t, "attribute first")
		if first {
			batch = append(batch, report)
		}
		infos(a.drv)
		if rapid.IntRange(0, 9).Draw(w.t, "old agent") > 0 {
			switch a.typ {
			case agentapi.DependenciesOnly, agentapi.EffectType:
				for _, j := range w.drvs[a.drv].inputs {
					plan(j)
				}
			default:
				plan(a.drv)
			}
		}
		if !first {
			batch = append(batch, report)
		}
		if rapid.Bool().Draw(w.t, "cut") {
			flush()
		}
	}
	flush()
	return ev
}

func (w *world) apply(e plan.Event) {
	for _, c := range w.p.Apply(e) {
		switch c := c.(type) {
		case plan.StartEvaluation:
			w.start(&simTask{id: c.Task, agent: c.Agent, eval: w.script()})
		case plan.StartBuild:
			d := w.byPath[c.Drv]
			if d.live > 0 {
				w.t.Fatalf("%s is built twice at once", c.Drv)
			}
			if d.good > 0 && !d.forced {
				w.t.Fatalf("%s is built again although it was good", c.Drv)
			}
			for _, j := range d.inputs {
				if s := w.p.Status(drvPath(j)); s != nil && s.Status != agentapi.BuildSuccess && !w.drvs[j].cached {
					w.t.Fatalf("%s is started while its input %s is %s", c.Drv, drvPath(j), s.Status)
				}
			}
			d.live++
			d.ran = true
			a := w.agents[c.Agent]
			if d.platform != "builtin" && !slices.Contains(a.plats, d.platform) {
				w.t.Fatalf("%s for %s on an agent for %v", c.Drv, d.platform, a.plats)
			}
			w.start(&simTask{id: c.Task, agent: c.Agent, drv: d})
		case plan.CancelTask:
			w.t.Fatalf("nothing is to be cancelled")
		case plan.Fact:
			switch b := c.Body.(type) {
			case event.AttributeResult:
				w.outcomes[b.Path[0]] = b.Outcome
			case event.BuildFinished:
				w.byPath[b.Drv].ended = true
			}
		case plan.FinishJob:
			if w.done != nil {
				w.t.Fatalf("the job ended twice")
			}
			w.done = &c.Result
		}
	}
}

func (w *world) start(t *simTask) {
	a := w.agents[t.agent]
	if a == nil {
		w.t.Fatalf("a task for an agent that is not there")
	}
	if w.live[t.id] != nil {
		w.t.Fatalf("task id %s is used twice", t.id)
	}
	w.live[t.id], a.tasks[t.id] = t, t
	load := 0
	for _, t := range a.tasks {
		if t.eval == nil || t.eval.waitFor == "" {
			load++
		}
	}
	// The wait is noticed by the simulation a step later than by the planner: allow the evaluations.
	evals := len(a.tasks) - load
	for _, t := range a.tasks {
		if t.eval != nil && t.eval.waitFor == "" {
			evals++
		}
	}
	if len(a.tasks) > a.slots+evals {
		w.t.Fatalf("agent with %d slots has %d tasks, %d of them evaluations", a.slots, len(a.tasks), evals)
	}
}

func (w *world) end(t *simTask) {
	delete(w.live, t.id)
	delete(w.agents[t.agent].tasks, t.id)
	if t.drv != nil {
		t.drv.live--
	}
}

func (w *world) addAgent() {
	w.names++
	aid := id(1<<40 + w.names)
	plats := []string{"x86_64-linux"}
	a := &simAgent{slots: rapid.IntRange(1, 3).Draw(w.t, "slots"), tasks: map[agentapi.ID]*simTask{}, plats: plats}
	w.agents[aid] = a
	w.apply(plan.AgentUp{ID: aid, Name: fmt.Sprint("agent", w.names), Platforms: plats, Slots: a.slots, Substitutes: rapid.Bool().Draw(w.t, "substitutes")})
}

func sorted[V any](m map[agentapi.ID]V) []agentapi.ID {
	var ids []agentapi.ID
	for k := range m {
		ids = append(ids, k)
	}
	slices.Sort(ids)
	return ids
}

// step lets one task go on.
func (w *world) step() {
	ids := sorted(w.live)
	if len(ids) == 0 {
		w.t.Fatalf("the job is stuck: nothing runs and it is not over")
	}
	t := w.live[rapid.SampledFrom(ids).Draw(w.t, "task")]
	if t.eval == nil {
		w.stepBuild(t)
		return
	}
	ev := t.eval
	if ev.waitFor != "" {
		s := w.p.Status(ev.waitFor)
		if s == nil {
			w.t.Fatalf("%s is not planned", ev.waitFor)
		}
		if s.Status == agentapi.Waiting || s.Status == agentapi.Building {
			// Polled again later; somebody else must be able to go on.
			others := 0
			for _, o := range w.live {
				if o.eval == nil {
					others++
				}
			}
			if others == 0 {
				w.t.Fatalf("evaluation waits for %s, which is %s, and nothing is being built", ev.waitFor, s.Status)
			}
			return
		}
		ev.waitFor = ""
	}
	if ev.next == len(ev.batches) {
		w.end(t)
		w.apply(plan.TaskFinished{Task: t.id, Status: agentapi.TaskStatus{Successful: &agentapi.Unit{}}})
		w.apply(plan.TaskFinished{Task: t.id, Status: agentapi.TaskStatus{Exceptional: ptr("late")}})
		return
	}
	b := ev.batches[ev.next]
	ev.next++
	if b == nil {
		last := ev.batches[ev.next-2]
		ev.waitFor = last[len(last)-1].BuildRequest.DerivationPath
		return
	}
	for _, e := range b {
		if e.BuildRequest != nil && e.BuildRequest.ForceRebuild {
			w.byPath[e.BuildRequest.DerivationPath].forced = true
		}
	}
	w.apply(plan.Evaluated{Task: t.id, Events: b})
	if rapid.IntRange(0, 4).Draw(w.t, "again") == 0 {
		w.apply(plan.Evaluated{Task: t.id, Events: b})
	}
}

func (w *world) stepBuild(t *simTask) {
	if rapid.Bool().Draw(w.t, "started") {
		w.apply(plan.TaskStarted{Task: t.id})
	}
	d := t.drv
	s := agentapi.TaskStatus{}
	switch {
	case d.breaks > 0:
		d.breaks--
		s.Exceptional = ptr("broke")
	case !w.deserves(d.i):
		s.Terminated = &agentapi.Unit{}
	default:
		d.good++
		d.forced = false
		s.Successful = &agentapi.Unit{}
	}
	w.end(t)
	w.apply(plan.TaskFinished{Task: t.id, Status: s})
	w.apply(plan.TaskStarted{Task: t.id})
}

// deserves says from first principles whether a derivation can be built: by itself and with all that it needs. Who
// builds an input, a task of its own or the builder of its user, makes no difference.
func (w *world) deserves(i int) bool {
	d := w.drvs[i]
	for _, j := range d.inputs {
		if !w.drvs[j].cached && !w.deserves(j) {
			return false
		}
	}
	return !d.bad && d.platform != nobody
}

// nobody is a platform for which there is no agent.
const nobody = "riscv64-linux"

// TestSimulation lets random jobs meet random agents: whatever happens, the job ends, nothing that was good is built
// again, no evaluation waits for ever, and the result of each attribute is what its derivations deserve.
func TestSimulation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		job := plan.JobSubmitted{Job: "j"}
		if w.filter {
			f, err := plan.ParseFilter([]string{"a0", "a1", "a2"})
			if err != nil {
				t.Fatal(err)
			}
			job.Filter = f
		}
		w.apply(job)
		w.addAgent()
		losses := rapid.IntRange(0, 2).Draw(t, "losses")
		for steps := 0; w.done == nil; steps++ {
			if steps > 5000 {
				t.Fatalf("the job does not end")
			}
			switch k := rapid.IntRange(0, 19).Draw(t, "what"); {
			case k == 0 && len(w.agents) < 4:
				w.addAgent()
			case k == 1 && losses > 0:
				// A loss counts as a try of all that the agent had.
				gone := rapid.SampledFrom(sorted(w.agents)).Draw(t, "lost")
				broken := false
				for _, task := range w.agents[gone].tasks {
					broken = broken || task.drv != nil && task.drv.breaks == 0
				}
				if broken {
					break
				}
				losses--
				for _, task := range w.agents[gone].tasks {
					delete(w.live, task.id)
					if task.drv != nil {
						task.drv.live--
						task.drv.breaks--
					}
				}
				delete(w.agents, gone)
				w.apply(plan.AgentDown{ID: gone})
				if len(w.agents) == 0 {
					w.addAgent()
				}
			default:
				w.step()
			}
		}
		w.check()
	})
}

func (w *world) check() {
	t := w.t
	if len(w.live) > 0 {
		t.Fatalf("the job is over while %d tasks run", len(w.live))
	}
	for _, d := range w.drvs {
		s := w.p.Status(d.path)
		if s == nil {
			if d.ran {
				t.Fatalf("%s was built and is not planned", d.path)
			}
			continue
		}
		if !d.ended {
			t.Fatalf("%s: nobody was told of its end", d.path)
		}
		if got, want := s.Status == agentapi.BuildSuccess, w.deserves(d.i); got != want {
			t.Fatalf("%s: %s, and it is possible: %v", d.path, s.Status, want)
		}
		blocked := slices.ContainsFunc(d.inputs, func(j int) bool {
			s := w.p.Status(drvPath(j))
			return s != nil && s.Status != agentapi.BuildSuccess && !w.drvs[j].cached
		})
		switch {
		case s.Status == agentapi.DependencyFailure && (d.good > 0 || !blocked),
			s.Status == agentapi.BuildFailure && !d.ran && d.platform != nobody:
			t.Fatalf("%s: %s, ran: %v, an input failed: %v", d.path, s.Status, d.ran, blocked)
		}
	}
	seen := map[string]bool{}
	good := true
	for k, a := range w.attrs {
		selected := !w.filter || k < 3
		seen[a.name] = selected
		got, told := w.outcomes[a.name]
		if told != selected {
			t.Fatalf("%s: selected %v, told %v", a.name, selected, told)
		}
		if !selected {
			continue
		}
		want := w.want(a)
		if got != want {
			t.Fatalf("%s of type %s: got %s, want %s", a.name, a.typ, got, want)
		}
		good = good && want.OK()
	}
	if w.filter {
		for _, name := range []string{"a0", "a1", "a2"} {
			good = good && seen[name]
		}
	}
	want := event.Succeeded
	if !good {
		want = event.Failed
	}
	if w.done.Status != want {
		t.Fatalf("job: got %s, want %s (%+v)", w.done.Status, want, w.done)
	}
}

// want is what the outcome of an attribute should be, given the results of the builds.
func (w *world) want(a simAttr) event.Outcome {
	status := func(i int) agentapi.DerivationStatus { return w.p.Status(drvPath(i)).Status }
	unfit := func(i int) bool { return status(i) == agentapi.BuildFailure && !w.drvs[i].ran }
	if a.typ == agentapi.DependenciesOnly || a.typ == agentapi.EffectType {
		out := event.Good
		if a.typ == agentapi.EffectType {
			out = event.NotRun
		}
		for _, j := range w.drvs[a.drv].inputs {
			if status(j) != agentapi.BuildSuccess && out != event.BuildError {
				out = event.BadDependency
				if unfit(j) {
					out = event.BuildError
				}
			}
		}
		return out
	}
	switch s := status(a.drv); {
	case s == agentapi.BuildSuccess && a.typ == agentapi.MustFail:
		return event.UnexpectedSuccess
	case s == agentapi.BuildSuccess:
		return event.Good
	case a.typ == agentapi.MayFail:
		return event.FailedIgnored
	case unfit(a.drv):
		return event.BuildError
	case s == agentapi.DependencyFailure:
		return event.BadDependency
	case a.typ == agentapi.MustFail:
		return event.FailedAsExpected
	}
	return event.Bad
}
