package plan

import (
	"slices"

	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

func (e AgentUp) apply(p *Planner) {
	var a *agent
	for _, o := range p.agents {
		if o.id == e.ID {
			a = o
		}
	}
	if a == nil {
		a = &agent{id: e.ID, tasks: map[agentapi.ID]*task{}}
		p.agents = append(p.agents, a)
	}
	a.name, a.slots, a.substitutes = e.Name, max(e.Slots, 1), e.Substitutes
	a.platforms, a.features = set(e.Platforms), set(e.Features)
	p.refit()
}

func (p *Planner) refit() {
	for _, q := range p.queues {
		q.fits = 0
		for _, a := range p.agents {
			if q.fitsAgent(a) {
				q.fits++
			}
		}
	}
}

func (e AgentDown) apply(p *Planner) {
	i := slices.IndexFunc(p.agents, func(a *agent) bool { return a.id == e.ID })
	if i < 0 {
		return
	}
	a := p.agents[i]
	p.agents = slices.Delete(p.agents, i, i+1)
	p.refit()
	lost := make([]agentapi.ID, 0, len(a.tasks))
	for id := range a.tasks {
		lost = append(lost, id)
	}
	slices.Sort(lost)
	for _, id := range lost {
		TaskLost{Task: id, Reason: "agent " + a.name + " is gone"}.apply(p)
	}
}

func (e TaskStarted) apply(p *Planner) {
	if t := p.tasks[e.Task]; t != nil && !t.dropped {
		p.started(t)
	}
}

func (p *Planner) started(t *task) {
	if t.started {
		return
	}
	t.started = true
	if t.eval != nil {
		p.do(Fact{t.eval.job.id, event.EvaluationStarted{Evaluation: t.eval.name, Task: t.id, Agent: t.agent.name}})
		return
	}
	p.tell(t.node, event.BuildStarted{Drv: t.node.drv, Attempt: t.node.attempt, Task: t.id, Agent: t.agent.name})
}

// take removes a task that is over, however; nil when there is none.
func (p *Planner) take(id agentapi.ID) *task {
	t := p.tasks[id]
	if t == nil {
		return nil
	}
	delete(p.tasks, id)
	delete(t.agent.tasks, id)
	if t.dropped {
		return nil
	}
	return t
}

func (e TaskLost) apply(p *Planner) {
	switch t := p.take(e.Task); {
	case t == nil:
	case t.eval != nil:
		p.retryEvaluation(t, e.Reason)
	default:
		p.retryBuild(t, e.Reason)
	}
}

func (e TaskFinished) apply(p *Planner) {
	t := p.take(e.Task)
	if t == nil {
		return
	}
	p.started(t) // the status may overtake Started (gotcha 16)
	if t.eval != nil {
		p.evaluationFinished(t, e.Status)
		return
	}
	switch {
	case e.Status.Successful != nil:
		p.end(t.node, succeeded, t, "", "")
	case e.Status.Terminated != nil:
		p.end(t.node, failed, t, "", "")
	default:
		reason := "no status"
		if e.Status.Exceptional != nil {
			reason = *e.Status.Exceptional
		}
		p.retryBuild(t, reason)
	}
}

// retryBuild continues an attempt with a new task when the old one was not able to tell good from bad.
func (p *Planner) retryBuild(t *task, reason string) {
	n := t.node
	if n.tries >= p.opts.MaxTries {
		p.end(n, errored, t, "", reason)
		return
	}
	p.tell(n, event.BuildRetried{Drv: n.drv, Task: t.id, Reason: reason})
	n.task = nil
	n.avoid = append(n.avoid, t.agent.id)
	// An input may have been asked for again in the meantime.
	n.state, n.unmet = waiting, 1
	if p.blockOnInputs(n) {
		p.release(n)
	}
}

func (e Built) apply(p *Planner) {
	t := p.tasks[e.Task]
	if t == nil || t.node == nil || t.dropped {
		return
	}
	for i := range e.Events {
		o := e.Events[i].OutputInfo
		if o == nil || o.Deriver != t.node.drv {
			continue
		}
		if t.node.outputs == nil {
			t.node.outputs = map[string]string{}
		}
		t.node.outputs[o.Name] = o.Path
	}
}

func set(xs []string) map[string]bool {
	m := make(map[string]bool, len(xs))
	for _, x := range xs {
		m[x] = true
	}
	return m
}
