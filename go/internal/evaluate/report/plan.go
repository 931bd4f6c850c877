package report

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"golang.org/x/sync/errgroup"

	"hercules/internal/nix/daemon"
	"hercules/internal/wire/agentapi"
)

// Cache is a binary cache that can be asked for many paths at once. Paths that it has not are absent from its answer.
type Cache interface {
	URI() string
	Query(ctx context.Context, paths []string) (map[string]*daemon.PathInfo, error)
}

// Pusher copies closures of .drv files to the binary caches that the agent pushes to.
type Pusher interface {
	PushClosure(ctx context.Context, drvPaths []string) error
}

// Kind says what is wanted of a derivation that an evaluation found.
type Kind uint8

const (
	// Whole is for attributes whose derivation is to be built.
	Whole Kind = iota
	// Inputs is for attributes of which only the direct inputs are to be built: shells and effects.
	Inputs
)

// planBatch is how many attributes are planned together, and so share their questions to caches.
const planBatch = 1000

// giveUpAfter failures in a row a cache is not asked again in this evaluation.
const giveUpAfter = 3

// PlannerConfig is what a Planner needs.
type PlannerConfig struct {
	Read   ReadDerivation
	Events *Collector
	Caches []Cache
	Pusher Pusher // nil: there is nothing to push to
	// Warn is told, for the evaluation's log, when a cache does not answer. May be nil.
	Warn func(text string)
	// Fail is told when planning fails, which is fatal for the evaluation. May be nil.
	Fail func(error)
}

// Planner works out what the coordinator has to know of the derivations that an evaluation found: the derivations
// themselves, what caches have, and what is to be built. Agent behaviour, section 3.11. Everything is emitted once an
// evaluation. Planning goes on beside the evaluation and never holds it up.
type Planner struct {
	cfg  PlannerConfig
	ctx  context.Context //nolint:containedctx // that of the evaluation, which owns the planner
	done chan struct{}

	mu    sync.Mutex // protects the graph; held while a closure is read, not while caches are asked
	graph *graph

	qmu    sync.Mutex
	qcond  *sync.Cond
	queue  []wanted
	closed bool
	err    error

	failures []int // of each cache, in a row; used by the planning goroutine only
}

type wanted struct {
	drv  string
	kind Kind
	// announce: not an attribute but the derivation of an import. Only it is requested.
	announce bool
}

// NewPlanner starts a planner. Finish must be called.
func NewPlanner(ctx context.Context, cfg PlannerConfig) *Planner {
	if cfg.Warn == nil {
		cfg.Warn = func(string) {}
	}
	p := &Planner{cfg: cfg, ctx: ctx, done: make(chan struct{}), graph: newGraph(cfg.Read, cfg.Warn), failures: make([]int, len(cfg.Caches))}
	p.qcond = sync.NewCond(&p.qmu)
	go p.run()
	return p
}

// Add plans what the attribute with this derivation asks for. It does not wait. The queue is bounded by the limit on
// attributes, MaxEvents.
func (p *Planner) Add(drv string, kind Kind) { p.add(wanted{drv: drv, kind: kind}) }

func (p *Planner) add(w wanted) {
	p.qmu.Lock()
	defer p.qmu.Unlock()
	p.queue = append(p.queue, w)
	p.qcond.Signal()
}

// Finish returns when everything that was added is planned and emitted, or planning failed.
func (p *Planner) Finish() error {
	p.qmu.Lock()
	p.closed = true
	p.qcond.Signal()
	p.qmu.Unlock()
	<-p.done
	return p.err
}

func (p *Planner) run() {
	defer close(p.done)
	stop := context.AfterFunc(p.ctx, func() {
		p.qmu.Lock()
		defer p.qmu.Unlock()
		p.qcond.Signal()
	})
	defer stop()
	for {
		p.qmu.Lock()
		for len(p.queue) == 0 && !p.closed && p.ctx.Err() == nil {
			p.qcond.Wait()
		}
		n := min(len(p.queue), planBatch)
		batch := p.queue[:n:n]
		p.queue = p.queue[n:]
		p.qmu.Unlock()
		if p.ctx.Err() != nil {
			p.err = context.Cause(p.ctx)
			return
		}
		if n == 0 {
			return
		}
		if err := guard(func() error { return p.plan(batch) }); err != nil {
			p.err = err
			if p.cfg.Fail != nil {
				p.cfg.Fail(err)
			}
			return
		}
	}
}

// PanicError is a mistake in this program, which ends one evaluation and not the agent.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack) }

func guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{v, debug.Stack()}
		}
	}()
	return f()
}

// Announce makes the coordinator build a derivation: it emits what it has to know and then the request. With force
// it asks for a new build although there was one.
func (p *Planner) Announce(ctx context.Context, drv string, force bool) error {
	if err := p.describe(ctx, []string{drv}); err != nil {
		return err
	}
	if err := p.push(ctx, []string{drv}); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.request(p.graph.node(drv), force)
}

// describe emits the DerivationInfo of the closures.
func (p *Planner) describe(ctx context.Context, drvs []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.graph.load(ctx, drvs); err != nil {
		return err
	}
	return p.graph.send(drvs, p.cfg.Events.EmitBulk)
}

func (p *Planner) push(ctx context.Context, drvs []string) error {
	if p.cfg.Pusher == nil || len(drvs) == 0 {
		return nil
	}
	if err := p.cfg.Pusher.PushClosure(ctx, drvs); err != nil {
		return fmt.Errorf("pushing derivations to the binary caches: %w", err)
	}
	return nil
}

// request emits a BuildRequest, without force at most once.
func (p *Planner) request(n *node, force bool) error {
	if n.requested && !force {
		return nil
	}
	n.requested = true
	return p.cfg.Events.EmitBulk(agentapi.EvaluateEvent{BuildRequest: &agentapi.BuildRequest{DerivationPath: n.path, ForceRebuild: force}})
}

// plan does a batch: derivations are described and pushed, then caches are asked, level by level from the attributes
// down and only below what no cache has, then builds are requested, inputs first.
func (p *Planner) plan(batch []wanted) error {
	drvs := make([]string, len(batch))
	for i, w := range batch {
		drvs[i] = w.drv
	}
	if err := p.describe(p.ctx, drvs); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(p.ctx)
	g.Go(func() error { return guard(func() error { return p.push(ctx, drvs) }) })
	g.Go(func() error { return guard(func() error { return p.explore(ctx, batch) }) })
	if err := g.Wait(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range batch {
		n := p.graph.node(w.drv)
		if w.announce {
			if err := p.request(n, false); err != nil {
				return err
			}
			continue
		}
		if err := p.requestInputs(n, w.kind == Inputs); err != nil {
			return err
		}
		if w.kind == Whole {
			if err := p.request(n, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// requestInputs requests what has to be built for n: all of its inputs, or those of which something is missing.
func (p *Planner) requestInputs(n *node, all bool) error {
	for _, e := range n.inputs {
		if (e.node.requested && e.node.walked) || !(all || missing(e)) {
			continue
		}
		e.node.walked = true
		if err := p.requestInputs(e.node, false); err != nil {
			return err
		}
		if err := p.request(e.node, false); err != nil {
			return err
		}
	}
	return nil
}

// missing says whether something of an input that is needed is in no cache.
func missing(e edge) bool {
	for _, name := range e.outputs {
		if o := e.node.output(name); o == nil || !o.have {
			return true
		}
	}
	return false
}

// question is an output that caches are asked for.
type question struct {
	node   *node
	output *output
}

// explore finds out which outputs are available, as far down as matters.
func (p *Planner) explore(ctx context.Context, batch []wanted) error {
	var level []*node // to be built, so that their inputs matter
	var questions []question
	ask := func(n *node, o *output) {
		if o != nil && !o.asked {
			o.asked = true
			questions = append(questions, question{n, o})
		}
	}
	build := func(n *node) {
		if !n.planned {
			n.planned = true
			level = append(level, n)
		}
	}
	p.mu.Lock()
	for _, w := range batch {
		n := p.graph.node(w.drv)
		switch {
		case w.announce:
		case w.kind == Whole:
			for i := range n.outputs {
				ask(n, &n.outputs[i])
			}
			build(n)
		default:
			for _, e := range n.inputs {
				build(e.node)
			}
		}
	}
	p.mu.Unlock()
	for len(level) > 0 || len(questions) > 0 {
		// The outputs of a level's inputs, and with the first level those of the attributes: one round for both.
		for _, n := range level {
			for _, e := range n.inputs {
				for _, name := range e.outputs {
					ask(e.node, e.node.output(name))
				}
			}
		}
		if err := p.answer(ctx, questions); err != nil {
			return err
		}
		parents := level
		level, questions = nil, nil
		for _, n := range parents {
			for _, e := range n.inputs {
				if missing(e) {
					build(e.node)
				}
			}
		}
	}
	return nil
}
