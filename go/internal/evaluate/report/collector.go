// Package report turns what an evaluation finds into the events that the coordinator gets: it collects and posts
// events in batches, adds what the coordinator needs to plan builds (derivations, what caches have, what to build),
// and gets the outputs that the evaluation itself needs built.
//
// It must not know how an evaluation comes by its attributes, nor how events travel: a [Poster] takes them.
package report

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"hercules/internal/wire/agentapi"
)

// Limits of the protocol: agent protocol, section 2.4 and 5.3.
const (
	// MaxBatch is the largest number of events in one post.
	MaxBatch = 1000
	// DefaultDelay is the longest time an event waits for others to go with.
	DefaultDelay = time.Second
	// MaxEvents is how many attributes, effects, errors and messages an evaluation may have together.
	MaxEvents = 50_000
	// bulkBacklog is how many events may wait to be posted before those that come in masses have to wait.
	bulkBacklog = 8 * MaxBatch
)

// ErrLimit says that an evaluation has more than MaxEvents events of the kinds that count.
//
//lint:ignore ST1005 the words of agent protocol, section 5.3
var ErrLimit = errors.New("Evaluation limit reached.")

// Poster delivers events, in order, and returns when they are delivered. It retries by itself: its failure is final.
type Poster func(ctx context.Context, events []agentapi.EvaluateEvent) error

// CollectorConfig says how events are collected.
type CollectorConfig struct {
	Post Poster
	// Delay is the longest time an event waits for others to go with; 0 is DefaultDelay.
	Delay time.Duration
	// MaxEvents of the kinds that count; 0 is MaxEvents.
	MaxEvents int
	// Contact is named in the message about the limit: whom to ask.
	Contact string
	// Fail is told when posting fails, which is fatal for the evaluation. May be nil.
	Fail func(error)
}

// Collector posts events in the order in which they come, one batch at a time. It gives each kind its running index
// and drops what repeats an event that is idempotent. It may be used by several goroutines.
type Collector struct {
	cfg    CollectorConfig
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	cond    *sync.Cond // signals every change of the fields below
	pending []agentapi.EvaluateEvent
	urgent  bool // post what there is without waiting for more
	closed  bool
	err     error
	emitted uint64 // events ever put into pending
	posted  uint64

	counted                       int
	messages, ifds, buildRequired int64
	seen                          map[string]struct{}
}

// NewCollector starts a collector. Close must be called.
func NewCollector(ctx context.Context, cfg CollectorConfig) *Collector {
	if cfg.Delay <= 0 {
		cfg.Delay = DefaultDelay
	}
	if cfg.MaxEvents <= 0 {
		cfg.MaxEvents = MaxEvents
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &Collector{cfg: cfg, cancel: cancel, done: make(chan struct{}), seen: make(map[string]struct{})}
	c.cond = sync.NewCond(&c.mu)
	// A waiter on cond can't see the end of ctx by itself.
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	go func() {
		defer close(c.done)
		defer stop()
		c.run(ctx)
	}()
	return c
}

// Emit adds an event and never waits for the network. Its error is final: the limit is reached, or posting failed.
func (c *Collector) Emit(ev agentapi.EvaluateEvent) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.emit(ev)
}

// EmitBulk adds events that come in masses. It waits while too many are to be posted.
func (c *Collector) EmitBulk(events ...agentapi.EvaluateEvent) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ev := range events {
		for len(c.pending) >= bulkBacklog && c.err == nil {
			c.cond.Wait()
		}
		if err := c.emit(ev); err != nil {
			return err
		}
	}
	return nil
}

func (c *Collector) emit(ev agentapi.EvaluateEvent) error {
	if c.err != nil {
		return c.err
	}
	if c.closed {
		return errors.New("the evaluation's events are closed")
	}
	if key := countedKey(&ev); key != "" || ev.Message != nil {
		if key != "" {
			if _, dup := c.seen[key]; dup {
				return nil
			}
			c.seen[key] = struct{}{}
		}
		if c.counted++; c.counted > c.cfg.MaxEvents {
			// The last event of an evaluation that is too large says so. What else is pending is still posted.
			c.push(agentapi.EvaluateEvent{Message: &agentapi.Message{Index: c.messages, Typ: agentapi.ErrorMessage, Message: c.limitText()}})
			c.messages++
			c.closed, c.err = true, ErrLimit
			return ErrLimit
		}
	}
	c.push(c.indexed(ev))
	return nil
}

func (c *Collector) push(ev agentapi.EvaluateEvent) {
	c.pending = append(c.pending, ev)
	c.emitted++
	if len(c.pending) == 1 || len(c.pending) >= MaxBatch {
		c.cond.Broadcast()
	}
}

// indexed gives the kinds that have an index their next one. The event's own contents are not changed.
func (c *Collector) indexed(ev agentapi.EvaluateEvent) agentapi.EvaluateEvent {
	switch {
	case ev.Message != nil:
		m := *ev.Message
		m.Index, ev.Message = c.messages, &m
		c.messages++
	case ev.AttributeIFD != nil:
		m := *ev.AttributeIFD
		m.Index, ev.AttributeIFD = c.ifds, &m
		c.ifds++
	case ev.BuildRequired != nil:
		m := *ev.BuildRequired
		m.Index, ev.BuildRequired = c.buildRequired, &m
		c.buildRequired++
	}
	return ev
}

// countedKey is not empty for the kinds that count and have a key: agent protocol, section 5.3.
func countedKey(ev *agentapi.EvaluateEvent) string {
	var kind string
	var path []string
	switch {
	case ev.Attribute != nil:
		kind, path = "a", ev.Attribute.ExpressionPath
	case ev.AttributeEffect != nil:
		kind, path = "f", ev.AttributeEffect.ExpressionPath
	case ev.AttributeError != nil:
		kind, path = "e", ev.AttributeError.ExpressionPath
	default:
		return ""
	}
	var b strings.Builder
	b.WriteString(kind)
	for _, p := range path {
		b.WriteByte(0) // Nix strings have no zero bytes.
		b.WriteString(p)
	}
	return b.String()
}

func (c *Collector) limitText() string {
	text := fmt.Sprintf("Evaluation limit reached: there are more than %d attributes, errors and messages, and the rest is left out. "+
		"Spread them over several jobs", c.cfg.MaxEvents)
	if c.cfg.Contact != "" {
		text += ", or ask at " + c.cfg.Contact
	}
	return text + "."
}

// Flush returns when everything that was emitted before it is posted.
func (c *Collector) Flush(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cond.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	want := c.emitted
	for c.posted < want {
		if c.err != nil && !errors.Is(c.err, ErrLimit) {
			return c.err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.urgent = true
		c.cond.Broadcast()
		c.cond.Wait()
	}
	return nil
}

// Close posts what is left and ends the collector. Its error is that of posting, never ErrLimit.
func (c *Collector) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	err := c.Flush(ctx)
	c.mu.Lock()
	if c.err == nil || errors.Is(c.err, ErrLimit) {
		c.err = errors.New("the evaluation's events are closed")
	}
	c.cond.Broadcast()
	c.mu.Unlock()
	c.cancel()
	<-c.done
	return err
}

func (c *Collector) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil || errors.Is(c.err, ErrLimit) {
		c.err = err
	}
	c.cond.Broadcast()
}

// run posts batches until there is an error that is not the limit.
func (c *Collector) run(ctx context.Context) {
	for {
		batch, ok := c.next()
		if !ok {
			return
		}
		err := c.cfg.Post(ctx, batch)
		if err != nil {
			c.fail(err)
			if c.cfg.Fail != nil {
				c.cfg.Fail(err)
			}
			return
		}
		c.mu.Lock()
		c.posted += uint64(len(batch))
		c.cond.Broadcast()
		c.mu.Unlock()
	}
}

// next waits for the next batch: a full one, or what there is when it is urgent or the first event is old.
func (c *Collector) next() ([]agentapi.EvaluateEvent, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	over := func() bool { return c.err != nil && !errors.Is(c.err, ErrLimit) }
	for len(c.pending) == 0 && !over() {
		c.urgent = false
		c.cond.Wait()
	}
	due := false
	timer := time.AfterFunc(c.cfg.Delay, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		due = true
		c.cond.Broadcast()
	})
	defer timer.Stop()
	for len(c.pending) < MaxBatch && !due && !c.urgent && !c.closed && !over() {
		c.cond.Wait()
	}
	if over() {
		return nil, false
	}
	n := min(len(c.pending), MaxBatch)
	batch := make([]agentapi.EvaluateEvent, n)
	copy(batch, c.pending)
	rest := copy(c.pending, c.pending[n:])
	clear(c.pending[rest:]) // The events of a large evaluation are not kept alive by the slice.
	c.pending = c.pending[:rest]
	return batch, true
}
