// Package plan decides what happens next: (state, event) → (new state, commands). It keeps the graph of derivations,
// the jobs and their attributes, and matches builds with agents.
//
// It is pure: no clock, no network, no files, no randomness of its own, no goroutine. The same events give the same
// commands. What it must not know is how events arrive and how commands are carried out.
//
// It is one state machine in some 2000 lines; its files are the graph (graph, closure), the matching with agents (queue,
// agents), evaluations with their attributes (evaluation, attribute, filter) and jobs (job).
//
// Cost: work is proportional to the edges of the graph plus the events; nothing scans the graph per event except
// the ranking of critical paths, which is redone only when the graph has grown by half.
package plan

import (
	"maps"
	"slices"

	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// AgentID identifies one run of an agent process: startInfo.id.
type AgentID = agentapi.ID

// Options configure a planner.
type Options struct {
	// NewID makes fresh identifiers for tasks and attempts. Required.
	NewID func() agentapi.ID
	// MaxTries bounds how often a build or an evaluation is started for reasons of its own (agent lost, something
	// broke). Default 3. An honest build failure is never tried again.
	MaxTries int
	// FailUnfit fails builds for which no connected agent is fit; otherwise they wait for one.
	FailUnfit bool
	// MaxIFDInputs bounds how many inputs of an import-from-derivation are planned as builds of their own when the
	// agents have substituters, which probably know them. Beyond it the builder of the derivation realises them.
	// Default 64.
	MaxIFDInputs int
}

// Event is something that happened.
type Event interface{ apply(*Planner) }

// AgentUp says that an agent is connected. Repeated for the same agent it updates its capacity.
type AgentUp struct {
	ID   AgentID
	Name string
	// Platforms and Features restrict what it builds.
	Platforms, Features []string
	// Slots is how many tasks it may have at once; at least 1 is assumed.
	Slots int
	// Substitutes: it has substituters.
	Substitutes bool
}

// AgentDown says that an agent is gone with everything it was doing.
type AgentDown struct{ ID AgentID }

// TaskStarted says that an agent began with a task.
type TaskStarted struct{ Task agentapi.ID }

// TaskFinished is the final status of a task. Repeated, unknown and late ones are ignored.
type TaskFinished struct {
	Task   agentapi.ID
	Status agentapi.TaskStatus
}

// TaskLost says that an agent does not know (any more) of a task that it was given.
type TaskLost struct {
	Task   agentapi.ID
	Reason string
}

// Evaluated is a batch of results of an evaluation.
type Evaluated struct {
	Task   agentapi.ID
	Events []agentapi.EvaluateEvent
}

// Built is a batch of results of a build.
type Built struct {
	Task   agentapi.ID
	Events []agentapi.BuildEvent
}

// JobSubmitted starts a job.
type JobSubmitted struct {
	Job string
	// Handlers to run: "NAME" or "onPush.NAME", "onSchedule.NAME"; empty means all of onPush.
	Handlers []string
	// Filter selects attributes; empty means all.
	Filter Filter
}

// JobCancelled stops a job.
type JobCancelled struct{ Job string }

// Command is something to do, in the order given.
type Command interface{ command() }

// StartEvaluation asks for an evaluation task to be sent.
type StartEvaluation struct {
	Task  agentapi.ID
	Agent AgentID
	Job   string
	// Evaluation names it to observers; Kind is ConfigOrLegacy, OnPush or OnSchedule.
	Evaluation string
	Kind       Kind
	Handler    string
	Inputs     map[string]agentapi.InputDeclaration
}

// Kind is the kind of an evaluation's selector.
type Kind uint8

// The kinds of evaluation.
const (
	ConfigOrLegacy Kind = iota
	OnPush
	OnSchedule
)

// StartBuild asks for a build task to be sent.
type StartBuild struct {
	Task   agentapi.ID
	Agent  AgentID
	Drv    string
	Inputs []string // output paths of the direct input derivations, sorted
	Jobs   []string // that want it
}

// CancelTask asks for a task to be cancelled.
type CancelTask struct {
	Task  agentapi.ID
	Agent AgentID
}

// Fact is something observers of a job are told.
type Fact struct {
	Job  string
	Body event.Body
}

// FinishJob ends a job.
type FinishJob struct {
	Job    string
	Result Result
}

// Result is what became of a job.
type Result struct {
	Status             event.Status
	Counts             event.Counts
	Attributes         []event.AttributeResult
	Failures           []event.BuildFinished
	Messages           []event.Message
	EvaluationFailures []event.EvaluationFinished
}

func (StartEvaluation) command() {}
func (StartBuild) command()      {}
func (CancelTask) command()      {}
func (Fact) command()            {}
func (FinishJob) command()       {}

// Planner is the state.
type Planner struct {
	opts   Options
	agents []*agent // in the order of arrival
	tasks  map[agentapi.ID]*task
	jobs   map[string]*job
	nodes  map[string]*node
	// order has the nodes whose derivation info is known, inputs (normally) first.
	order  []*node
	queues []*queue
	byKey  map[string]*queue
	evals  []*evaluation // that wait for an agent
	// ready counts the nodes in all queues.
	ready int
	seq   uint64
	// edges of the graph, and as of the last ranking
	edges, ranked int
	out           []Command
}

// task is a task that an agent has, of an evaluation or of a node.
type task struct {
	id      agentapi.ID
	agent   *agent
	eval    *evaluation
	node    *node
	started bool
	// dropped: cancelled; it only occupies its slot until the agent is done with it.
	dropped bool
}

// New returns an empty state.
func New(o Options) *Planner {
	if o.NewID == nil {
		panic("plan: Options.NewID is nil")
	}
	if o.MaxTries <= 0 {
		o.MaxTries = 3
	}
	if o.MaxIFDInputs <= 0 {
		o.MaxIFDInputs = 64
	}
	return &Planner{
		opts: o, tasks: map[agentapi.ID]*task{}, jobs: map[string]*job{}, nodes: map[string]*node{}, byKey: map[string]*queue{},
	}
}

// Apply changes the state and returns what is to be done.
func (p *Planner) Apply(e Event) []Command {
	e.apply(p)
	p.dispatch()
	out := p.out
	p.out = nil
	return out
}

func (p *Planner) do(c Command) { p.out = append(p.out, c) }

// tell tells observers of all jobs that want a node.
func (p *Planner) tell(n *node, b event.Body) {
	for _, j := range n.jobs {
		p.do(Fact{Job: j.id, Body: b})
	}
}

// Status answers GET agent/eval-build: nil for a derivation that is not planned.
func (p *Planner) Status(drv string) *agentapi.EvalBuild {
	n := p.nodes[drv]
	if n == nil || n.attempt == "" {
		return nil
	}
	return &agentapi.EvalBuild{Attempt: n.attempt, Status: n.state.wire()}
}

// Live tells whether an agent is meant to work on a task.
func (p *Planner) Live(id agentapi.ID, on AgentID) bool {
	t := p.tasks[id]
	return t != nil && !t.dropped && t.agent.id == on
}

// TasksOf lists what an agent has been given and has not brought to an end, cancelled tasks included.
func (p *Planner) TasksOf(id AgentID) []agentapi.ID {
	for _, a := range p.agents {
		if a.id == id {
			return slices.Sorted(maps.Keys(a.tasks))
		}
	}
	return nil
}
