package plan

import (
	"fmt"
	"slices"
	"strings"

	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// job is an unfinished job.
type job struct {
	id       string
	handlers []string
	filter   Filter
	matched  []bool // of filter
	evals    []*evaluation
	running  int // evaluations that are not over
	// open counts the nodes of this job whose attempt has not ended.
	open     int
	refs     map[*node]*ref
	order    []*node // keys of refs in the order in which they came
	counts   event.Counts
	failures []event.BuildFinished
	messages []event.Message
	broken   []event.EvaluationFinished
}

// ref is what a job thinks of a node.
type ref struct {
	requested bool // by an evaluation
	selected  bool // a selected attribute needs it; only kept with a filter
	built     bool // wanted, see Planner.want
	attrs     []*attr
}

func (j *job) ref(n *node) *ref {
	r := j.refs[n]
	if r == nil {
		r = &ref{}
		j.refs[n] = r
		j.order = append(j.order, n)
	}
	return r
}

// selects tells whether an attribute passes the filter and notes which patterns were of use.
func (j *job) selects(path []string, isError bool) bool {
	if len(j.filter) == 0 {
		return true
	}
	ok := false
	for i, p := range j.filter {
		if p.Match(path, isError) {
			j.matched[i], ok = true, true
		}
	}
	return ok
}

// count takes the end of an attempt into the sums.
func (j *job) count(f event.BuildFinished) {
	switch f.Status {
	case event.Cancelled:
		return
	case event.Succeeded:
		j.counts.Succeeded++
	default:
		j.counts.Failed++
		j.failures = append(j.failures, f)
	}
	j.counts.Builds++
}

func (e JobSubmitted) apply(p *Planner) {
	if p.jobs[e.Job] != nil {
		return
	}
	j := &job{id: e.Job, handlers: e.Handlers, filter: e.Filter, matched: make([]bool, len(e.Filter)), refs: map[*node]*ref{}}
	p.jobs[j.id] = j
	p.addEvaluation(&evaluation{job: j, kind: ConfigOrLegacy})
}

func (e JobCancelled) apply(p *Planner) {
	j := p.jobs[e.Job]
	if j == nil {
		return
	}
	for _, ev := range j.evals {
		if ev.over {
			continue
		}
		if ev.task != nil {
			p.cancel(ev.task)
		}
		p.endEvaluation(ev, event.Cancelled, "")
	}
	p.evals = slices.DeleteFunc(p.evals, func(ev *evaluation) bool { return ev.job == j })
	delete(p.jobs, j.id)
	for _, n := range j.order {
		if j.refs[n].built {
			wasOpen := n.state.open()
			p.drop(j, n)
			if wasOpen && n.state == cancelled {
				p.do(Fact{j.id, n.finished("")})
			}
		}
	}
	for _, ev := range j.evals {
		for _, a := range ev.order {
			if a.selected && a.outcome == "" {
				p.decide(a, event.Stopped, "", "")
			}
		}
	}
	p.do(FinishJob{Job: j.id, Result: j.result(event.Cancelled)})
}

// message is an error of the whole job, as if an evaluation had reported it.
func (p *Planner) message(ev *evaluation, typ agentapi.MessageType, text string) {
	m := event.Message{Evaluation: ev.name, Type: typ, Message: text}
	p.do(Fact{ev.job.id, m})
	if typ == agentapi.ErrorMessage {
		ev.job.messages = append(ev.job.messages, m)
	}
}

// checkJob ends a job when nothing of it is left to do.
func (p *Planner) checkJob(j *job) {
	if j.running > 0 || j.open > 0 || p.jobs[j.id] != j {
		return
	}
	for i, pat := range j.filter {
		if !j.matched[i] {
			p.message(j.evals[0], agentapi.ErrorMessage, "no attribute matches "+pat.String())
		}
	}
	delete(p.jobs, j.id)
	for _, n := range j.order {
		if j.refs[n].built {
			n.jobs = slices.DeleteFunc(n.jobs, func(o *job) bool { return o == j })
		}
	}
	for _, ev := range j.evals {
		for _, a := range ev.order {
			if a.selected && a.outcome == "" {
				p.decide(a, event.BuildError, "", "its builds were not reported")
			}
		}
	}
	r := j.result("")
	switch {
	case len(r.EvaluationFailures) > 0:
		r.Status = event.Errored
	case r.Counts.Messages > 0 || r.Counts.Bad > 0 || r.Counts.Errors > 0:
		r.Status = event.Failed
	default:
		r.Status = event.Succeeded
	}
	p.do(FinishJob{Job: j.id, Result: r})
}

func (j *job) result(s event.Status) Result {
	r := Result{Status: s, Counts: j.counts, Failures: j.failures, Messages: j.messages, EvaluationFailures: j.broken}
	r.Counts.Messages = len(j.messages)
	for _, ev := range j.evals {
		for _, a := range ev.order {
			if !a.selected {
				continue
			}
			r.Attributes = append(r.Attributes, a.result())
			r.Counts.Attributes++
			switch a.outcome {
			case event.Good:
				r.Counts.Good++
			case event.FailedAsExpected:
				r.Counts.FailedAsExpected++
			case event.FailedIgnored:
				r.Counts.FailedIgnored++
			case event.NotRun:
				r.Counts.NotRun++
			case event.EvaluationError:
				r.Counts.Errors++
			default:
				r.Counts.Bad++
			}
		}
	}
	return r
}

// addHandlers plans the evaluations of the handlers that a configuration has declared.
func (p *Planner) addHandlers(config *evaluation) {
	j := config.job
	if !config.configured {
		if len(j.handlers) > 0 {
			p.message(config, agentapi.ErrorMessage, "there is no herculesCI, so there are no jobs to choose from (asked for "+strings.Join(j.handlers, ", ")+")")
		}
		return
	}
	for _, h := range config.handlers {
		if h.selected {
			p.addEvaluation(&evaluation{job: j, name: h.fullName(), kind: h.kind, handler: h.name, inputs: h.inputs})
		}
	}
	for _, want := range j.handlers {
		if !slices.ContainsFunc(config.handlers, func(h handler) bool { return h.is(want) }) {
			names := make([]string, len(config.handlers))
			for i, h := range config.handlers {
				names[i] = h.fullName()
			}
			p.message(config, agentapi.ErrorMessage, fmt.Sprintf("there is no job %s; there are: %s", want, strings.Join(names, ", ")))
		}
	}
}

// handler is a job that herculesCI declares.
type handler struct {
	kind     Kind
	name     string
	inputs   map[string]agentapi.InputDeclaration
	selected bool
}

func (h handler) fullName() string { return h.kind.String() + "." + h.name }

// is tells whether a name given by a person means this handler.
func (h handler) is(name string) bool {
	return name == h.fullName() || h.kind == OnPush && name == h.name
}

func (k Kind) String() string {
	switch k {
	case OnPush:
		return "onPush"
	case OnSchedule:
		return "onSchedule"
	}
	return ""
}
