package plan

import (
	"container/heap"
	"slices"
	"strings"

	"hercules/internal/wire/agentapi"
)

// agent is a connected agent.
type agent struct {
	id        AgentID
	name      string
	platforms map[string]bool
	features  map[string]bool
	slots     int
	// substitutes: it has substituters
	substitutes bool
	tasks       map[agentapi.ID]*task
}

// free tells how many tasks more the agent may have. An evaluation that waits for an import from derivation does
// nothing, so it lends its slot to what it waits for: with one slot that is what keeps the agent from waiting for
// ever (protocol, gotcha 26).
func (a *agent) free(urgent bool) int {
	n := a.slots - len(a.tasks)
	if urgent {
		for _, t := range a.tasks {
			if t.eval != nil && t.eval.waits > 0 {
				n++
			}
		}
	}
	return n
}

// queue has the ready nodes of one platform and set of features.
type queue struct {
	platform string
	features []string
	heap     nodeHeap
	// fits is how many connected agents can build them.
	fits int
}

func (q *queue) fitsAgent(a *agent) bool {
	if q.platform != "" && q.platform != "builtin" && !a.platforms[q.platform] {
		return false
	}
	for _, f := range q.features {
		if !a.features[f] {
			return false
		}
	}
	return true
}

func (q *queue) unfit() string {
	s := "no agent can build for " + q.platform
	if len(q.features) > 0 {
		s += " with features " + strings.Join(q.features, ", ")
	}
	return s
}

// nodeHeap orders what evaluations wait for first, then the longest chain of dependents, then age.
type nodeHeap []*node

func before(a, b *node) bool {
	if a.urgent != b.urgent {
		return a.urgent
	}
	if a.rank != b.rank {
		return a.rank > b.rank
	}
	return a.seq < b.seq
}

func (h nodeHeap) Len() int           { return len(h) }
func (h nodeHeap) Less(i, j int) bool { return before(h[i], h[j]) }
func (h nodeHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *nodeHeap) Push(x any) {
	n := x.(*node)
	n.index = len(*h)
	*h = append(*h, n)
}

func (h *nodeHeap) Pop() any {
	old := *h
	n := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	n.index = -1
	return n
}

func (p *Planner) queueOf(n *node) *queue {
	if n.queue != nil && n.queue.platform == n.platform {
		return n.queue
	}
	key := n.platform + "\x00" + strings.Join(n.features, "\x00")
	q := p.byKey[key]
	if q == nil {
		q = &queue{platform: n.platform, features: n.features}
		for _, a := range p.agents {
			if q.fitsAgent(a) {
				q.fits++
			}
		}
		p.byKey[key] = q
		p.queues = append(p.queues, q)
	}
	n.queue = q
	return q
}

func (p *Planner) enqueue(n *node) {
	n.state = ready
	p.seq++
	n.seq = p.seq
	heap.Push(&p.queueOf(n).heap, n)
	p.ready++
}

func (p *Planner) dequeue(n *node) {
	if n.index >= 0 {
		heap.Remove(&n.queue.heap, n.index)
		p.ready--
	}
}

// rerank computes for each node the length of the longest chain of open nodes that need it. Inputs are learnt
// before their users, so one pass from the newest to the oldest does it; where that order is broken the result is
// only a worse guess.
func (p *Planner) rerank() {
	p.ranked = p.edges
	for _, n := range p.order {
		n.rank = 0
	}
	for i := len(p.order) - 1; i >= 0; i-- {
		n := p.order[i]
		if !n.state.open() {
			continue
		}
		for _, e := range n.inputs {
			e.input.rank = max(e.input.rank, n.rank+1)
		}
	}
	for _, q := range p.queues {
		heap.Init(&q.heap)
	}
}

// dispatch gives work to the agents that have room.
func (p *Planner) dispatch() {
	if p.edges > p.ranked+p.ranked/2+32 {
		p.rerank()
	}
	if p.opts.FailUnfit && len(p.agents) > 0 && p.ready > 0 {
		p.failUnfit()
	}
	for len(p.evals) > 0 {
		a := p.roomiest(func(*agent) bool { return true }, false)
		if a == nil {
			break
		}
		ev := p.evals[0]
		p.evals = p.evals[1:]
		p.startEvaluation(ev, a)
	}
	for p.ready > 0 {
		n, a := p.match()
		if n == nil {
			break
		}
		p.startBuild(n, a)
	}
	p.unstick()
}

// match finds the first node in order for which an agent has room, and that agent.
func (p *Planner) match() (*node, *agent) {
	var best *node
	var on *agent
	for _, q := range p.queues {
		if len(q.heap) == 0 || q.fits == 0 {
			continue
		}
		n := q.heap[0]
		if best != nil && !before(n, best) {
			continue
		}
		if a := p.roomiest(q.fitsAgent, n.urgent); a != nil {
			best, on = n, a
		}
	}
	if best == nil || len(best.avoid) == 0 || !slices.Contains(best.avoid, on.id) {
		return best, on
	}
	// It went wrong there: try elsewhere if anybody else has room.
	q := best.queue
	if a := p.roomiest(func(a *agent) bool { return q.fitsAgent(a) && !slices.Contains(best.avoid, a.id) }, best.urgent); a != nil {
		on = a
	}
	return best, on
}

// roomiest returns the agent with the most free slots of those that fit, nil if none has any.
func (p *Planner) roomiest(fits func(*agent) bool, urgent bool) *agent {
	var best *agent
	most := 0
	for _, a := range p.agents {
		if n := a.free(urgent); n > most && fits(a) {
			best, most = a, n
		}
	}
	return best
}

func (p *Planner) failUnfit() {
	for _, q := range p.queues {
		for q.fits == 0 && len(q.heap) > 0 {
			p.end(q.heap[0], errored, nil, "", q.unfit())
		}
	}
}

// unstick ends builds that wait for each other. Real derivations can't, but derivation info is what an agent says.
func (p *Planner) unstick() {
	if p.ready > 0 || len(p.tasks) > 0 || len(p.evals) > 0 {
		return
	}
	for _, j := range p.jobs {
		if j.open == 0 {
			continue
		}
		for _, n := range p.order {
			if n.state == waiting {
				p.end(n, errored, nil, "", "its inputs need it themselves")
			}
		}
		return
	}
}

func (p *Planner) startBuild(n *node, a *agent) {
	p.dequeue(n)
	t := &task{id: p.opts.NewID(), agent: a, node: n}
	p.tasks[t.id], a.tasks[t.id], n.task = t, t, t
	n.state = running
	n.tries++
	paths := []string{}
	for _, e := range n.inputs {
		for _, o := range e.outputs {
			if path, ok := e.input.outputs[o]; ok {
				paths = append(paths, path)
			}
		}
	}
	slices.Sort(paths)
	jobs := make([]string, len(n.jobs))
	for i, j := range n.jobs {
		jobs[i] = j.id
	}
	p.do(StartBuild{Task: t.id, Agent: a.id, Drv: n.drv, Inputs: slices.Compact(paths), Jobs: jobs})
}
