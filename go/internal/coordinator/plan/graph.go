package plan

import (
	"maps"
	"slices"
	"strings"

	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// state is the state of a node's current attempt.
type state uint8

const (
	idle    state = iota // not to be built: assumed available
	waiting              // for inputs, or for its derivation info
	ready                // in a queue
	running
	succeeded
	failed
	depFailed
	errored
	cancelled
)

func (s state) open() bool { return s == waiting || s == ready || s == running }
func (s state) bad() bool  { return s == failed || s == depFailed || s == errored }

// wire is the derivation status of the protocol. An attempt that could not be done must still end the polling of
// evaluations (gotcha 24), so it counts as a failure.
func (s state) wire() agentapi.DerivationStatus {
	switch s {
	case running:
		return agentapi.Building
	case succeeded:
		return agentapi.BuildSuccess
	case depFailed:
		return agentapi.DependencyFailure
	case failed, errored, cancelled:
		return agentapi.BuildFailure
	}
	return agentapi.Waiting
}

func (s state) status() event.Status {
	switch s {
	case succeeded:
		return event.Succeeded
	case failed:
		return event.Failed
	case depFailed:
		return event.DependencyFailed
	case cancelled:
		return event.Cancelled
	}
	return event.Errored
}

// node is a derivation.
type node struct {
	drv      string
	known    bool // derivation info has arrived
	platform string
	features []string
	outputs  map[string]string // path by name, as far as known
	inputs   []*edge
	users    []*edge

	state   state
	urgent  bool // an evaluation waits for it or for something that needs it
	rank    int32
	attempt agentapi.ID
	tries   int
	task    *task
	// unmet counts the inputs that block it, plus one while its derivation info is unknown.
	unmet  int
	queue  *queue
	index  int // in the queue
	seq    uint64
	avoid  []AgentID // that could not do it
	cause  string    // of a dependency failure
	reason string

	// inCache has the outputs of which some cache said that it has them; missing: some cache said no.
	inCache map[string]bool
	missing bool

	jobs    []*job        // unfinished ones that want it
	waiters []*evaluation // that wait for it
}

// edge says that user needs outputs of input.
type edge struct {
	user, input *node
	outputs     []string
	blocks      bool // counted in user.unmet
}

// inCache tells whether a cache has all that is needed of the input.
func (e *edge) inCache() bool {
	if len(e.input.inCache) == 0 {
		return false
	}
	for _, o := range e.outputs {
		if !e.input.inCache[o] {
			return false
		}
	}
	return true
}

func (p *Planner) node(drv string) *node {
	n := p.nodes[drv]
	if n == nil {
		n = &node{drv: drv, index: -1}
		p.nodes[drv] = n
	}
	return n
}

// learn takes in derivation info; the first counts.
func (p *Planner) learn(info *agentapi.DerivationInfo) *node {
	n := p.node(info.DerivationPath)
	if n.known {
		return n
	}
	n.known = true
	n.platform = info.Platform
	n.features = slices.Clone([]string(info.RequiredSystemFeatures))
	slices.Sort(n.features)
	n.features = slices.Compact(n.features)
	if n.outputs == nil {
		n.outputs = make(map[string]string, len(info.Outputs))
	}
	for name, o := range info.Outputs {
		if o.Path != nil {
			n.outputs[name] = *o.Path
		}
	}
	n.inputs = make([]*edge, 0, len(info.InputDerivations))
	edges := make([]edge, len(info.InputDerivations))
	for drv, outs := range info.InputDerivations {
		if drv == n.drv {
			continue // no derivation needs itself; refuse to wait for that
		}
		e := &edges[len(n.inputs)]
		*e = edge{user: n, input: p.node(drv), outputs: []string(outs)}
		n.inputs = append(n.inputs, e)
	}
	// Maps come in any order; commands must not.
	slices.SortFunc(n.inputs, func(a, b *edge) int { return strings.Compare(a.input.drv, b.input.drv) })
	for _, e := range n.inputs {
		e.input.users = append(e.input.users, e)
	}
	p.order = append(p.order, n)
	p.edges += len(n.inputs)
	if n.state == waiting {
		if p.blockOnInputs(n) {
			p.release(n)
		}
	}
	return n
}

// want makes sure that a node is built for a job.
func (p *Planner) want(j *job, n *node) {
	r := j.ref(n)
	if r.built {
		return
	}
	r.built = true
	n.jobs = append(n.jobs, j)
	switch n.state {
	case idle, cancelled, errored:
		p.attempt(n)
	case waiting, ready, running:
		j.open++
		p.do(Fact{j.id, event.BuildQueued{Drv: n.drv, Attempt: n.attempt, Platform: n.platform, IFD: n.urgent}})
		if n.task != nil && n.task.started {
			p.do(Fact{j.id, event.BuildStarted{Drv: n.drv, Attempt: n.attempt, Task: n.task.id, Agent: n.task.agent.name}})
		}
	default:
		fact := n.finished("")
		p.do(Fact{j.id, fact})
		j.count(fact)
		p.settleAttrs(r)
	}
}

// finished describes the end of a node's attempt.
func (n *node) finished(t agentapi.ID) event.BuildFinished {
	f := event.BuildFinished{Drv: n.drv, Attempt: n.attempt, Task: t, Status: n.state.status(), Cause: n.cause, Reason: n.reason}
	if n.state == succeeded {
		f.Outputs = maps.Clone(n.outputs)
	}
	return f
}

// attempt starts a new attempt to build a node that some job wants.
func (p *Planner) attempt(n *node) {
	n.attempt = p.opts.NewID()
	n.state, n.tries, n.cause, n.reason, n.avoid = waiting, 0, "", "", nil
	for _, j := range n.jobs {
		j.open++
	}
	p.tell(n, event.BuildQueued{Drv: n.drv, Attempt: n.attempt, Platform: n.platform, IFD: len(n.waiters) > 0})
	n.unmet = 1 // keeps it from being released before all is counted, or before its info is there
	for _, e := range n.users {
		p.block(e)
	}
	if n.known && p.blockOnInputs(n) {
		p.release(n)
	}
}

// blockOnInputs counts what a waiting node waits for; it reports false when the node has failed by that.
func (p *Planner) blockOnInputs(n *node) bool {
	for _, e := range n.inputs {
		if e.input.state.bad() && !e.inCache() {
			p.failDependents(n, e)
			return false
		}
	}
	for _, e := range n.inputs {
		p.block(e)
	}
	return true
}

// block makes the user of an edge wait for the input where it must and can.
func (p *Planner) block(e *edge) {
	if e.blocks || !e.input.state.open() || (e.user.state != waiting && e.user.state != ready) || e.inCache() {
		return
	}
	if e.user.state == ready {
		p.dequeue(e.user)
		e.user.state = waiting
	}
	e.blocks = true
	e.user.unmet++
	if e.user.urgent {
		p.haste(e.input)
	}
}

// release takes one blocker off a waiting node.
func (p *Planner) release(n *node) {
	if n.unmet--; n.unmet == 0 && n.state == waiting {
		p.enqueue(n)
	}
}

func (p *Planner) unblock(e *edge) {
	if e.blocks {
		e.blocks = false
		p.release(e.user)
	}
}

// end gives the current attempt of a node its final state and tells everybody whom it concerns.
func (p *Planner) end(n *node, s state, t *task, cause, reason string) {
	work := []*node{n}
	n.cause, n.reason = cause, reason
	for first := true; len(work) > 0; first = false {
		n := work[len(work)-1]
		work = work[:len(work)-1]
		if !first {
			s, t = depFailed, nil
		}
		p.dequeue(n)
		n.state, n.task = s, nil
		id := agentapi.ID("")
		if t != nil {
			id = t.id
		}
		fact := n.finished(id)
		p.tell(n, fact)
		for _, e := range n.inputs {
			e.blocks = false
		}
		n.unmet = 0
		for _, e := range n.users {
			if !e.blocks {
				continue
			}
			if !s.bad() {
				p.unblock(e)
				continue
			}
			e.user.cause = cause1(n)
			e.blocks = false
			if e.user.state == waiting {
				// Left by its other inputs at once, so that it is put on the list only once.
				for _, other := range e.user.inputs {
					other.blocks = false
				}
				e.user.unmet = 0
				work = append(work, e.user)
			}
		}
		p.settle(n, fact)
	}
}

// cause1 is the derivation whose failure is the cause of a failure of a user of n.
func cause1(n *node) string {
	if n.state == depFailed && n.cause != "" {
		return n.cause
	}
	return n.drv
}

func (p *Planner) failDependents(n *node, e *edge) {
	p.end(n, depFailed, nil, cause1(e.input), "")
}

// settle updates the jobs and evaluations that waited for a node.
func (p *Planner) settle(n *node, fact event.BuildFinished) {
	for _, ev := range n.waiters {
		ev.waits--
	}
	n.waiters = nil
	// A job that finishes here leaves n.jobs.
	for _, j := range slices.Clone(n.jobs) {
		j.open--
		j.count(fact)
		p.settleAttrs(j.refs[n])
		p.checkJob(j)
	}
}

func (p *Planner) settleAttrs(r *ref) {
	attrs := r.attrs
	r.attrs = nil
	for _, a := range attrs {
		p.target(a)
	}
}

// drop takes a node out of the plan for a job that is cancelled.
func (p *Planner) drop(j *job, n *node) {
	n.jobs = slices.DeleteFunc(n.jobs, func(o *job) bool { return o == j })
	if len(n.jobs) > 0 || !n.state.open() {
		return
	}
	if n.task != nil {
		p.cancel(n.task)
	}
	p.end(n, cancelled, nil, "", "")
}

// cancel gives a task up; it keeps its slot until the agent is done with it.
func (p *Planner) cancel(t *task) {
	if !t.dropped {
		t.dropped = true
		p.do(CancelTask{Task: t.id, Agent: t.agent.id})
	}
}

// haste puts a node and what it still waits for before everything else.
func (p *Planner) haste(n *node) {
	for work := []*node{n}; len(work) > 0; {
		n := work[len(work)-1]
		work = work[:len(work)-1]
		if n.urgent {
			continue
		}
		n.urgent = true
		if n.state == ready {
			p.dequeue(n)
			p.enqueue(n)
		}
		for _, e := range n.inputs {
			if e.blocks {
				work = append(work, e.input)
			}
		}
	}
}
