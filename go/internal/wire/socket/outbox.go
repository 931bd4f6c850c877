package socket

import (
	"context"
	"sync"
	"time"
)

// outbox keeps messages in order until they are acknowledged. It outlives connections.
type outbox struct {
	mu sync.Mutex
	// items[:sent] were written to the present connection; items[:numbered] have a number, which never changes.
	items          []item
	sent, numbered int
	// next is the number of the next message that gets one.
	next int64
	// limit is how many messages without number there may be; 0: no limit.
	limit int
	// progress is when the other side last acknowledged, or when it got something to acknowledge.
	progress time.Time
	// added and released count messages since the beginning.
	added, released int64
	closed          bool
	// wake tells the writer of the present connection that there is something to write.
	wake chan struct{}
	// changed is closed when a waiter should look again; nil when there is none.
	changed chan struct{}
}

type item struct {
	n       int64
	payload []byte
}

func newOutbox(first int64, limit int) *outbox {
	return &outbox{next: first, limit: limit, wake: make(chan struct{}, 1)}
}

func (o *outbox) notify() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// broadcast wakes those who wait. It needs the lock.
func (o *outbox) broadcast() {
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}

// wait unlocks, waits for a change and locks again.
func (o *outbox) wait(ctx context.Context) error {
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	changed := o.changed
	o.mu.Unlock()
	defer o.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// put adds a message, when there is room.
func (o *outbox) put(ctx context.Context, payload []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if o.closed {
			return ErrClosed
		}
		if o.limit == 0 || len(o.items)-o.numbered < o.limit {
			o.add(payload)
			return nil
		}
		if err := o.wait(ctx); err != nil {
			return err
		}
	}
}

// tryPut adds a message when there is room now, also after close.
func (o *outbox) tryPut(payload []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.limit == 0 || len(o.items)-o.numbered < o.limit {
		o.add(payload)
	}
}

func (o *outbox) add(payload []byte) {
	o.items = append(o.items, item{payload: payload})
	o.added++
	o.notify()
}

// close refuses further messages.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.broadcast()
}

// drained waits until all that was put so far is acknowledged.
func (o *outbox) drained(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for target := o.added; o.released < target; {
		if err := o.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// unacked is the number of messages that are kept.
func (o *outbox) unacked() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.items)
}

// connected starts a connection on which the other side said that it has everything up to n.
func (o *outbox) connected(n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.release(n)
	o.sent = 0
	// Numbers up to n would be taken for repetitions. Only a message that was never sent may get another.
	o.next = max(o.next, n+1)
	o.notify()
}

// ack releases all messages up to and including n (section 3.4).
func (o *outbox) ack(n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.release(n)
}

func (o *outbox) release(n int64) {
	k := 0
	for k < o.numbered && o.items[k].n <= n {
		o.items[k].payload = nil
		k++
	}
	if k == 0 {
		return
	}
	o.items = o.items[k:]
	o.numbered -= k
	o.sent = max(0, o.sent-k)
	o.released += int64(k)
	o.progress = time.Now()
	o.broadcast()
}

// take appends up to limit messages to write now, in order.
func (o *outbox) take(batch []item, limit int) []item {
	o.mu.Lock()
	defer o.mu.Unlock()
	end := min(len(o.items), o.sent+limit)
	if end == o.sent {
		return batch
	}
	if o.sent == 0 {
		o.progress = time.Now()
	}
	for ; o.numbered < end; o.numbered++ {
		o.items[o.numbered].n = o.next
		o.next++
	}
	batch = append(batch, o.items[o.sent:end]...)
	o.sent = end
	o.broadcast()
	return batch
}

// patience is how long to wait for the next acknowledgement; false when none is awaited.
func (o *outbox) patience(limit time.Duration) (time.Duration, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sent == 0 {
		return 0, false
	}
	return limit - time.Since(o.progress), true
}
