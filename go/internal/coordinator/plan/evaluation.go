package plan

import (
	"encoding/binary"
	"fmt"
	"strings"

	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// evaluation is one evaluation of a job; each try is another task.
type evaluation struct {
	job     *job
	name    string
	kind    Kind
	handler string
	inputs  map[string]agentapi.InputDeclaration

	task  *task
	tries int
	over  bool
	// waits counts the builds that it waits for (import from derivation).
	waits int
	results
}

// results is what the current try has reported. A new try begins with none.
type results struct {
	attrs      map[string]*attr
	order      []*attr
	errors     int
	learnt     int
	requests   int
	messages   map[int64]bool
	ifds       map[int64]bool
	required   map[int64]bool
	imports    map[*node]bool // import-from-derivation
	forced     map[*node]bool
	unknown    []*node // requested before their derivation info
	lateInfo   map[*node][]*attr
	configured bool
	handlers   []handler
}

func newResults() results {
	return results{
		attrs: map[string]*attr{}, messages: map[int64]bool{}, ifds: map[int64]bool{}, required: map[int64]bool{},
		imports: map[*node]bool{}, forced: map[*node]bool{}, lateInfo: map[*node][]*attr{},
	}
}

func (p *Planner) addEvaluation(ev *evaluation) {
	ev.results = newResults()
	ev.job.evals = append(ev.job.evals, ev)
	ev.job.running++
	p.evals = append(p.evals, ev)
}

func (p *Planner) startEvaluation(ev *evaluation, a *agent) {
	t := &task{id: p.opts.NewID(), agent: a, eval: ev}
	p.tasks[t.id], a.tasks[t.id], ev.task = t, t, t
	ev.tries++
	p.do(StartEvaluation{
		Task: t.id, Agent: a.id, Job: ev.job.id, Evaluation: ev.name, Kind: ev.kind, Handler: ev.handler, Inputs: ev.inputs,
	})
}

func (p *Planner) retryEvaluation(t *task, reason string) {
	ev := t.eval
	if ev.tries >= p.opts.MaxTries {
		p.endEvaluation(ev, event.Errored, reason)
		return
	}
	p.do(Fact{ev.job.id, event.EvaluationFinished{
		Evaluation: ev.name, Task: t.id, Status: event.Errored, Reason: reason, Attributes: len(ev.order), Errors: ev.errors, Retry: true,
	}})
	ev.task = nil
	for _, a := range ev.order {
		a.dead = true
	}
	ev.results = newResults()
	p.evals = append(p.evals, ev)
}

// evaluationFinished takes the final status. What an evaluation could not do, it could not do for reasons that stay:
// the agent has tried the transient ones again itself. So it is not repeated.
func (p *Planner) evaluationFinished(t *task, s agentapi.TaskStatus) {
	switch {
	case s.Successful != nil:
		p.endEvaluation(t.eval, event.Succeeded, "")
	case s.Terminated != nil:
		p.endEvaluation(t.eval, event.Failed, "")
	case s.Exceptional != nil:
		p.endEvaluation(t.eval, event.Errored, *s.Exceptional)
	default:
		p.endEvaluation(t.eval, event.Errored, "no status")
	}
}

func (p *Planner) endEvaluation(ev *evaluation, s event.Status, reason string) {
	j := ev.job
	fact := event.EvaluationFinished{Evaluation: ev.name, Status: s, Reason: reason, Attributes: len(ev.order) - ev.errors, Errors: ev.errors}
	if ev.task != nil {
		fact.Task = ev.task.id
	}
	ev.task, ev.over = nil, true
	p.do(Fact{j.id, fact})
	if s == event.Cancelled {
		j.running--
		return
	}
	if s != event.Succeeded {
		j.broken = append(j.broken, fact)
	}
	for _, n := range ev.unknown {
		if !n.known && n.state == waiting {
			p.release(n) // nothing more will be said of it: let any agent try
		}
	}
	for i := 0; i < len(ev.order); i++ {
		p.complete(ev.order[i], s == event.Succeeded)
	}
	if ev.kind == ConfigOrLegacy && s == event.Succeeded {
		p.addHandlers(ev)
	}
	p.rerank()
	j.running--
	p.checkJob(j)
}

func (e Evaluated) apply(p *Planner) {
	t := p.tasks[e.Task]
	if t == nil || t.eval == nil || t.dropped || len(e.Events) == 0 {
		return
	}
	p.started(t)
	ev := t.eval
	for i := range e.Events {
		p.evaluated(ev, t.agent, &e.Events[i])
	}
	p.do(Fact{ev.job.id, event.EvaluationProgress{
		Evaluation: ev.name, Attributes: len(ev.order) - ev.errors, Errors: ev.errors, Derivations: ev.learnt, Requested: ev.requests,
	}})
}

// evaluated takes in one result. Each kind is idempotent under its key (protocol 5.3).
func (p *Planner) evaluated(ev *evaluation, on *agent, e *agentapi.EvaluateEvent) {
	switch {
	case e.DerivationInfo != nil:
		p.derivationInfo(ev, e.DerivationInfo)
	case e.BuildRequest != nil:
		p.buildRequest(ev, on, e.BuildRequest)
	case e.SubstitutionQueryResult != nil:
		p.substitution(e.SubstitutionQueryResult)
	case e.Attribute != nil:
		p.attribute(ev, pathOf(e.Attribute.ExpressionPath), e.Attribute.DerivationPath, e.Attribute.Typ, nil)
	case e.AttributeEffect != nil:
		p.attribute(ev, pathOf(e.AttributeEffect.ExpressionPath), e.AttributeEffect.DerivationPath, agentapi.EffectType, e.AttributeEffect.SecretsToUse)
	case e.AttributeError != nil:
		p.attributeError(ev, e.AttributeError)
	case e.AttributeIFD != nil:
		if a := e.AttributeIFD; !ev.ifds[a.Index] {
			ev.ifds[a.Index] = true
			p.do(Fact{ev.job.id, event.AttributeIFD{
				Evaluation: ev.name, Path: pathOf(a.ExpressionPath), Drv: a.DerivationPath, Output: a.DerivationOutput, Done: a.Done,
			}})
		}
	case e.BuildRequired != nil:
		if b := e.BuildRequired; !ev.required[b.Index] {
			ev.required[b.Index] = true
			ev.imports[p.node(b.DerivationPath)] = true
			p.do(Fact{ev.job.id, event.BuildRequired{Evaluation: ev.name, Drv: b.DerivationPath, Output: b.OutputName}})
		}
	case e.Message != nil:
		if m := e.Message; !ev.messages[m.Index] {
			ev.messages[m.Index] = true
			p.message(ev, m.Typ, m.Message)
		}
	case e.JobConfig != nil:
		ev.configured = ev.kind == ConfigOrLegacy
	case e.OnPushHandlerEvent != nil:
		h := e.OnPushHandlerEvent
		p.handler(ev, handler{kind: OnPush, name: h.HandlerName, inputs: h.HandlerExtraInputs}, nil)
	case e.OnScheduleHandlerEvent != nil:
		h := e.OnScheduleHandlerEvent
		p.handler(ev, handler{kind: OnSchedule, name: h.HandlerName, inputs: h.HandlerExtraInputs}, &h.When)
	}
}

func (p *Planner) handler(ev *evaluation, h handler, when *agentapi.TimeConstraints) {
	for _, o := range ev.handlers {
		if o.kind == h.kind && o.name == h.name {
			return
		}
	}
	h.selected = h.kind == OnPush && len(ev.job.handlers) == 0
	for _, name := range ev.job.handlers {
		h.selected = h.selected || h.is(name)
	}
	ev.handlers = append(ev.handlers, h)
	p.do(Fact{ev.job.id, event.Handler{Name: h.name, Kind: h.kind.String(), Selected: h.selected, When: when}})
}

func (p *Planner) derivationInfo(ev *evaluation, info *agentapi.DerivationInfo) {
	ev.learnt++
	n := p.learn(info)
	if len(ev.job.filter) > 0 && ev.job.ref(n).selected {
		p.selectInputs(ev.job, n)
	}
	late := ev.lateInfo[n]
	delete(ev.lateInfo, n)
	for _, a := range late {
		p.aim(a)
	}
}

func (p *Planner) buildRequest(ev *evaluation, on *agent, b *agentapi.BuildRequest) {
	j, n := ev.job, p.node(b.DerivationPath)
	r := j.ref(n)
	if !r.requested {
		r.requested = true
		ev.requests++
	}
	isImport := ev.imports[n]
	if len(j.filter) > 0 && !r.selected && !isImport {
		return
	}
	if !n.known {
		ev.unknown = append(ev.unknown, n)
	}
	if isImport {
		p.importWanted(ev, on, n)
	} else {
		p.want(j, n)
	}
	// The earlier result is unusable: another attempt, once for each evaluation that says so (5.3.8). While one
	// is open it is already another than the one that was unusable.
	if b.ForceRebuild && !ev.forced[n] {
		ev.forced[n] = true
		if !n.state.open() {
			if isImport {
				p.wait(ev, n)
			}
			p.attempt(n)
			p.haste(n)
		}
	}
}

// importWanted plans an import from derivation with its inputs, for which no request is sent.
func (p *Planner) importWanted(ev *evaluation, on *agent, n *node) {
	j := ev.job
	if !n.state.open() && n.state != idle && n.state != cancelled {
		p.want(j, n)
		return
	}
	for _, in := range p.closure(j, n, on.substitutes) {
		p.want(j, in)
	}
	p.wait(ev, n)
	p.want(j, n)
	if n.state.open() {
		p.haste(n)
	}
}

func (p *Planner) wait(ev *evaluation, n *node) {
	for _, w := range n.waiters {
		if w == ev {
			return
		}
	}
	n.waiters = append(n.waiters, ev)
	ev.waits++
}

func (p *Planner) substitution(s *agentapi.SubstitutionQueryResult) {
	n := p.node(s.Derivation)
	if s.OutputInfo == nil {
		n.missing = true
		return
	}
	if n.inCache[s.OutputName] {
		return
	}
	if n.inCache == nil {
		n.inCache = map[string]bool{}
	}
	n.inCache[s.OutputName] = true
	for _, e := range n.users {
		if e.blocks && e.inCache() {
			p.unblock(e)
		}
	}
}

// selectInputs marks what a selected attribute needs and builds what of it has been requested.
func (p *Planner) selectInputs(j *job, n *node) {
	for work := []*node{n}; len(work) > 0; {
		n := work[len(work)-1]
		work = work[:len(work)-1]
		for _, e := range n.inputs {
			if r := j.ref(e.input); !r.selected {
				r.selected = true
				work = append(work, e.input)
			}
		}
		if r := j.ref(n); r.requested && !r.built {
			p.want(j, n)
		}
	}
}

// key makes an unambiguous map key of an attribute path.
func key(kind byte, path []string) string {
	b := []byte{kind}
	for _, s := range path {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	return string(b)
}

// secretNames describes secrets for people: the name on the agent, or that it is a token for git.
func secretNames(m map[string]agentapi.SecretRef) map[string]string {
	out := make(map[string]string, len(m))
	for k, r := range m {
		switch {
		case r.SimpleSecret != nil:
			out[k] = r.SimpleSecret.Name
		case r.GitToken != nil:
			out[k] = "(git token)"
		}
	}
	return out
}

// pathOf is a path that is never nil: the root encodes as [].
func pathOf(l agentapi.List[string]) []string { return append([]string{}, l...) }

func printable(path []string) string {
	if len(path) == 0 {
		return "the root"
	}
	return fmt.Sprintf("%q", strings.Join(path, "."))
}
