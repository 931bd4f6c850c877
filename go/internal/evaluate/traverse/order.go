package traverse

import "hercules/internal/wire/agentapi"

// node is an attribute that was found. Its fields are guarded by walk.mu.
type node struct {
	parent *node
	name   string
	index  int // among its siblings

	state    state
	owner    *worker // who evaluates it
	attempts int     // evaluators that ended while they were at it
	fresh    bool    // wants an evaluator that has done nothing else
	// realised has what the attribute has waited for already, in case it is evaluated again.
	realised map[string]bool

	// What order needs.
	events   []agentapi.EvaluateEvent
	waiting  bool // for an import from derivation
	complete bool // no more events
	children []*node
}

type state uint8

const (
	pending state = iota
	running
	deferred // waits for a build without an evaluator
	done
)

// path of the attribute; the root's is empty, not nil.
func (n *node) path() []string {
	depth := 0
	for m := n; m.parent != nil; m = m.parent {
		depth++
	}
	p := make([]string, depth)
	for m := n; m.parent != nil; m = m.parent {
		depth--
		p[depth] = m.name
	}
	return p
}

// order puts the events of attributes that were evaluated at the same time into the order of a walk that does one
// after the other, depth first. What waits for a build is passed by; its events, and those of what is below it,
// come as soon as they can, in order among themselves.
type order struct {
	streams [][]*node // stacks of nodes whose turn it is
	ifds    int64
	msgs    int64
}

func newOrder(root *node) *order { return &order{streams: [][]*node{{root}}} }

// flush hands out the events whose turn has come.
func (o *order) flush(emit func(agentapi.EvaluateEvent)) {
	for i := 0; i < len(o.streams); i++ {
		rest := o.advance(o.streams[i], emit) // may add streams
		o.streams[i] = rest
	}
	live := o.streams[:0]
	for _, s := range o.streams {
		if len(s) > 0 {
			live = append(live, s)
		}
	}
	clear(o.streams[len(live):])
	o.streams = live
}

func (o *order) advance(stack []*node, emit func(agentapi.EvaluateEvent)) []*node {
	alone := len(stack) == 1
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		for _, e := range n.events {
			o.number(&e)
			emit(e)
		}
		n.events = nil
		switch {
		case n.complete:
			stack = stack[:len(stack)-1]
			for i := len(n.children) - 1; i >= 0; i-- {
				stack = append(stack, n.children[i])
			}
			n.children = nil
			alone = false
		case n.waiting && !alone:
			stack = stack[:len(stack)-1]
			o.streams = append(o.streams, []*node{n})
		default:
			return stack
		}
	}
	return nil
}

// number gives the events their index where they leave, so that indices are in order.
func (o *order) number(e *agentapi.EvaluateEvent) {
	switch {
	case e.AttributeIFD != nil:
		e.AttributeIFD.Index = o.ifds
		o.ifds++
	case e.Message != nil:
		e.Message.Index = o.msgs
		o.msgs++
	}
}
