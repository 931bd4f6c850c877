package substituter

import (
	"context"
	"sync"
)

// memo remembers answers by key; of several who ask for the same at once, one asks and the others wait. Errors are
// not remembered. The zero value is ready.
type memo[K comparable, V any] struct {
	mu      sync.Mutex
	entries map[K]*entry[V]
}

type entry[V any] struct {
	done  chan struct{}
	value V
	err   error
	// abandoned: the one who asked went away; whoever waited asks again.
	abandoned bool
}

// peek gives an answer that is there.
func (m *memo[K, V]) peek(key K) (value V, ok bool) {
	m.mu.Lock()
	e := m.entries[key]
	m.mu.Unlock()
	if e == nil {
		return value, false
	}
	select {
	case <-e.done:
		return e.value, e.err == nil
	default:
		return value, false
	}
}

// put remembers an answer.
func (m *memo[K, V]) put(key K, value V) {
	e := &entry[V]{done: make(chan struct{}), value: value}
	close(e.done)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries == nil {
		m.entries = map[K]*entry[V]{}
	}
	m.entries[key] = e
}

// get gives the answer for key, asking for it when it is not there.
func (m *memo[K, V]) get(ctx context.Context, key K, ask func(context.Context, K) (V, error)) (V, error) {
	for {
		m.mu.Lock()
		e := m.entries[key]
		if e == nil {
			e = &entry[V]{done: make(chan struct{})}
			if m.entries == nil {
				m.entries = map[K]*entry[V]{}
			}
			m.entries[key] = e
			m.mu.Unlock()
			return m.lead(ctx, key, e, ask)
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			var none V
			return none, context.Cause(ctx)
		case <-e.done:
			if !e.abandoned {
				return e.value, e.err
			}
		}
	}
}

func (m *memo[K, V]) lead(ctx context.Context, key K, e *entry[V], ask func(context.Context, K) (V, error)) (V, error) {
	e.value, e.err = ask(ctx, key)
	e.abandoned = e.err != nil && ctx.Err() != nil
	if e.err != nil {
		m.mu.Lock()
		delete(m.entries, key)
		m.mu.Unlock()
	}
	close(e.done)
	return e.value, e.err
}
