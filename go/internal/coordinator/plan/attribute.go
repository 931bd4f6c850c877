package plan

import (
	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// attr is a reported attribute, or an error at one.
type attr struct {
	eval     *evaluation
	path     []string
	drv      *node // nil for an error
	typ      agentapi.AttributeType
	selected bool
	// dead: of a try of the evaluation that was given up
	dead bool
	// aimed: targets are known, pending of them are not over.
	aimed   bool
	targets []*node
	pending int

	outcome event.Outcome
	cause   string
	reason  string
}

func (a *attr) result() event.AttributeResult {
	r := event.AttributeResult{
		Evaluation: a.eval.name, Path: a.path, Type: a.typ, Outcome: a.outcome, OK: a.outcome.OK(), Cause: a.cause, Reason: a.reason,
	}
	if a.drv != nil {
		r.Drv = a.drv.drv
	}
	return r
}

// dependenciesOnly: the derivation itself is not built.
func (a *attr) dependenciesOnly() bool {
	return a.typ == agentapi.DependenciesOnly || a.typ == agentapi.EffectType
}

func (p *Planner) attribute(ev *evaluation, path []string, drv string, typ agentapi.AttributeType, secrets map[string]agentapi.SecretRef) {
	k := key('a', path)
	if ev.attrs[k] != nil {
		return
	}
	if typ == "" {
		typ = agentapi.Regular
	}
	j := ev.job
	a := &attr{eval: ev, path: path, drv: p.node(drv), typ: typ, selected: j.selects(path, false)}
	ev.attrs[k] = a
	ev.order = append(ev.order, a)
	fact := event.Attribute{Evaluation: ev.name, Path: path, Drv: drv, Type: typ, Selected: a.selected}
	if secrets != nil {
		fact.Secrets = secretNames(secrets)
	}
	p.do(Fact{j.id, fact})
	if !a.selected {
		return
	}
	if len(j.filter) > 0 {
		if r := j.ref(a.drv); !r.selected {
			r.selected = true
			p.selectInputs(j, a.drv)
		}
	}
	if a.dependenciesOnly() && !a.drv.known {
		ev.lateInfo[a.drv] = append(ev.lateInfo[a.drv], a)
		return
	}
	p.aim(a)
}

func (p *Planner) attributeError(ev *evaluation, e *agentapi.AttributeErrorEvent) {
	path := pathOf(e.ExpressionPath)
	k := key('e', path)
	if ev.attrs[k] != nil {
		return
	}
	a := &attr{eval: ev, path: path, selected: ev.job.selects(path, true)}
	ev.attrs[k] = a
	ev.order = append(ev.order, a)
	ev.errors++
	fact := event.AttributeError{Evaluation: ev.name, Path: path, Message: e.ErrorMessage, Selected: a.selected}
	fact.Trace, fact.Type, fact.Drv = deref(e.Trace), deref(e.ErrorType), deref(e.ErrorDerivation)
	p.do(Fact{ev.job.id, fact})
	if a.selected {
		p.decide(a, event.EvaluationError, fact.Drv, e.ErrorMessage)
	}
}

// aim finds out which builds decide about an attribute, and counts those that are over.
func (p *Planner) aim(a *attr) {
	a.aimed = true
	if !a.dependenciesOnly() {
		a.targets = []*node{a.drv}
	} else {
		for _, e := range a.drv.inputs {
			a.targets = append(a.targets, e.input)
		}
	}
	a.pending = len(a.targets) + 1
	for _, n := range a.targets {
		r := a.eval.job.ref(n)
		if r.built && !n.state.open() {
			p.target(a)
		} else {
			r.attrs = append(r.attrs, a)
		}
	}
	p.target(a)
}

// target says that one of the targets of an attribute is over.
func (p *Planner) target(a *attr) {
	if a.pending--; a.pending > 0 || a.outcome != "" || a.dead {
		return
	}
	worst := succeeded
	var by *node
	for _, n := range a.targets {
		switch {
		case n.state == succeeded:
		case by == nil, n.state == errored && worst != errored:
			worst, by = n.state, n
		}
	}
	p.judge(a, worst, by)
}

// judge applies the rules of the attribute types to the worst result of the targets.
func (p *Planner) judge(a *attr, s state, by *node) {
	cause, reason := "", ""
	if by != nil {
		reason = by.reason
		cause = cause1(by)
		if cause == a.drv.drv {
			cause = ""
		}
	}
	switch {
	case s == cancelled:
		p.decide(a, event.Stopped, "", "")
	case a.dependenciesOnly():
		switch s {
		case succeeded:
			if a.typ == agentapi.EffectType {
				p.decide(a, event.NotRun, "", "")
			} else {
				p.decide(a, event.Good, "", "")
			}
		case errored:
			p.decide(a, event.BuildError, cause, reason)
		default:
			p.decide(a, event.BadDependency, cause, reason)
		}
	case s == succeeded && a.typ == agentapi.MustFail:
		p.decide(a, event.UnexpectedSuccess, "", "")
	case s == succeeded:
		p.decide(a, event.Good, "", "")
	case a.typ == agentapi.MayFail:
		p.decide(a, event.FailedIgnored, cause, reason)
	case s == errored:
		p.decide(a, event.BuildError, cause, reason)
	case s == depFailed:
		p.decide(a, event.BadDependency, cause, reason)
	case a.typ == agentapi.MustFail:
		p.decide(a, event.FailedAsExpected, "", "")
	default:
		p.decide(a, event.Bad, "", reason)
	}
}

func (p *Planner) decide(a *attr, o event.Outcome, cause, reason string) {
	a.outcome, a.cause, a.reason = o, cause, reason
	p.do(Fact{a.eval.job.id, a.result()})
}

// complete plans for an attribute what its evaluation did not ask for: agents before 0.10.1 leave that to the
// coordinator. ok: the evaluation ran to its end.
func (p *Planner) complete(a *attr, ok bool) {
	if !a.selected || a.outcome != "" || a.dead {
		return
	}
	if !a.aimed {
		p.decide(a, event.EvaluationError, "", "its derivation was not described")
		return
	}
	j := a.eval.job
	for _, n := range a.targets {
		if j.ref(n).built {
			continue
		}
		if !ok {
			p.decide(a, event.EvaluationError, "", "evaluation ended before "+printable(a.path)+" was planned")
			return
		}
		for _, in := range p.closure(j, n, false) {
			p.want(j, in)
		}
		p.want(j, n)
		if !n.known && n.state == waiting {
			p.release(n)
		}
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
