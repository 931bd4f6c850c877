package coordinator

import (
	"context"
	"sync"

	"hercules/internal/coordinator/event"
)

// backlog is how many events a reader may be behind before log lines wait for it.
const backlog = 10000

// hub hands events to readers. State events are queued without limit, since there are only so many of them in a
// job; log lines wait for slow readers.
type hub struct {
	mu     sync.Mutex
	subs   map[*subscription]bool
	closed bool
}

type subscription struct {
	hub   *hub
	out   chan event.Event
	quit  chan struct{}
	once  sync.Once
	queue []event.Event // under hub.mu
	// wake tells the pump that the queue is not empty; room tells log writers that it has been taken.
	wake chan struct{}
	room chan struct{} // closed when there is room; nil when nobody waits
	last bool          // no more events come
}

func newHub() *hub { return &hub{subs: map[*subscription]bool{}} }

func (h *hub) subscribe(ctx context.Context) (<-chan event.Event, func()) {
	s := &subscription{hub: h, out: make(chan event.Event, 64), quit: make(chan struct{}), wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(s.out)
		return s.out, func() {}
	}
	h.subs[s] = true
	go s.pump(ctx) // ends when its reader has what it wants: the channel is closed, stop is called or ctx ends
	return s.out, func() { s.once.Do(func() { close(s.quit) }) }
}

func (s *subscription) pump(ctx context.Context) {
	defer close(s.out)
	defer s.leave()
	var batch []event.Event
	for {
		s.hub.mu.Lock()
		batch, s.queue = s.queue, batch[:0]
		last := s.last
		if s.room != nil {
			close(s.room)
			s.room = nil
		}
		s.hub.mu.Unlock()
		for i := range batch {
			select {
			case s.out <- batch[i]:
			case <-s.quit:
				return
			case <-ctx.Done():
				return
			}
			batch[i] = event.Event{}
		}
		if len(batch) > 0 {
			continue
		}
		if last {
			return
		}
		select {
		case <-s.wake:
		case <-s.quit:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (s *subscription) leave() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.subs, s)
	s.queue = nil
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

func (s *subscription) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// publish queues events for all readers.
func (h *hub) publish(events ...event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.queue = append(s.queue, events...)
		s.notify()
	}
}

// publishLog is publish for log lines: it waits until no reader is far behind.
func (h *hub) publishLog(ctx context.Context, events []event.Event) error {
	for {
		h.mu.Lock()
		var room chan struct{}
		for s := range h.subs {
			if len(s.queue) > backlog {
				if s.room == nil {
					s.room = make(chan struct{})
				}
				room = s.room
				break
			}
		}
		if room == nil {
			for s := range h.subs {
				s.queue = append(s.queue, events...)
				s.notify()
			}
			h.mu.Unlock()
			return nil
		}
		h.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// wanted tells whether anybody listens.
func (h *hub) wanted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs) > 0
}

// close ends the streams after what is queued has been read, or given up by their readers.
func (h *hub) close() {
	h.mu.Lock()
	h.closed = true
	for s := range h.subs {
		s.last = true
		s.notify()
	}
	h.mu.Unlock()
}
