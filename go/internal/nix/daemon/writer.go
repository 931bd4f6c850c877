package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// maxDerivationText is the longest derivation that is deferred.
	maxDerivationText = 1 << 20
	// maxBacklog is how many bytes of derivations may wait; beyond it clients do.
	maxBacklog = 32 << 20
	// A batch begins when so many derivations wait, or when the first has waited that long, or when somebody does.
	batchSize  = 256
	batchDelay = 5 * time.Millisecond
)

// A Writer adds derivations to a store for the clients of one or more Proxies, which need not wait for it: it has one
// connection of its own, on which requests are sent without waiting for the answer to the one before. What it adds is
// kept from the garbage collector until it is closed, and it never asks the daemon about a path twice.
//
// Before anybody else is told of a derivation, Flush must have returned nil. Proxies do that for what their clients
// ask. A client that opens the file of a derivation on its own, without having asked whether the path is valid, may
// not find it yet. Nix evaluators ask, except for a path that has lost its context, which restrict-eval forbids.
type Writer struct {
	endpoint Endpoint
	options  Options
	log      *slog.Logger
	ctx      context.Context // until Close
	cancel   context.CancelFunc
	running  sync.WaitGroup
	wake     chan struct{} // has room for one

	mu sync.Mutex
	// known has the paths that are valid, or will be after the request of that number. They are roots, or will be.
	known   map[string]uint64
	queue   []request
	backlog int    // bytes of queue
	asked   uint64 // number of the last request
	done    uint64 // number of the last request that was answered
	started bool
	flushes []flush
	err     error // the first request that failed; nothing is deferred any more
}

// A request is a derivation to add, or, without a text, a valid path to keep.
type request struct {
	path, name string
	text       []byte
	references []string
}

// flush waits for the request of a number.
type flush struct {
	number uint64
	done   chan struct{}
}

var errWriterClosed = errors.New("the writer of derivations is closed")

// NewWriter makes a Writer. It connects when there is something to do. log may be nil.
func NewWriter(ep Endpoint, o Options, log *slog.Logger) *Writer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	w := &Writer{endpoint: ep, options: o, log: log, known: map[string]uint64{}, wake: make(chan struct{}, 1)}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Close ends the connection. What was not flushed may be lost; what waits for a flush gets an error.
func (w *Writer) Close() error {
	w.cancel()
	w.fail(errWriterClosed)
	w.running.Wait()
	return nil
}

// Flush waits until everything that clients were told to be in the store is there. After an error, which all later
// calls return too unless it is that of ctx, some of it is not and will not be.
func (w *Writer) Flush(ctx context.Context) error {
	w.mu.Lock()
	if w.err != nil || w.done == w.asked {
		defer w.mu.Unlock()
		return w.err
	}
	return w.await(ctx, w.asked)
}

// await waits for a request that has not been answered; w.mu is held, and released.
func (w *Writer) await(ctx context.Context, number uint64) error {
	f := flush{number, make(chan struct{})}
	w.flushes = append(w.flushes, f)
	w.mu.Unlock()
	w.rouse()
	select {
	case <-f.done:
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for derivations to be written: %w", cause(ctx))
	}
}

func (w *Writer) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// state of a path.
type pathState int

const (
	unknownPath pathState = iota
	pendingPath           // will be valid after a flush
	storedPath
)

func (w *Writer) state(path string) pathState {
	w.mu.Lock()
	defer w.mu.Unlock()
	number, ok := w.known[path]
	switch {
	case !ok || w.err != nil:
		return unknownPath
	case number > w.done:
		return pendingPath
	}
	return storedPath
}

// add takes a derivation, unless not all that it refers to is known, and then returns false.
func (w *Writer) add(ctx context.Context, r request) bool {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return false
	}
	if _, ok := w.known[r.path]; ok {
		w.mu.Unlock()
		return true
	}
	for _, ref := range r.references {
		if _, ok := w.known[ref]; !ok {
			w.mu.Unlock()
			return false
		}
	}
	w.push(r)
	if w.backlog > maxBacklog {
		// An error is one of the next flush too.
		_ = w.await(ctx, w.asked)
		return true
	}
	w.mu.Unlock()
	return true
}

// keep takes valid paths that a connection, which will last until the next flush, keeps from the garbage collector.
func (w *Writer) keep(paths ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, path := range paths {
		if _, ok := w.known[path]; !ok && w.err == nil {
			w.push(request{path: path})
		}
	}
}

// push appends a request; w.mu is held.
func (w *Writer) push(r request) {
	w.asked++
	w.known[r.path] = w.asked
	w.queue = append(w.queue, r)
	w.backlog += len(r.text)
	if !w.started {
		w.started = true
		w.running.Go(w.run)
	}
	if len(w.queue) == 1 || len(w.queue) == batchSize {
		w.rouse()
	}
}

// take waits for a batch. Empty: the Writer is closed or has failed.
func (w *Writer) take() []request {
	var late <-chan time.Time
	overdue := false
	for {
		w.mu.Lock()
		n := len(w.queue)
		if w.err != nil {
			w.mu.Unlock()
			return nil
		}
		if n >= batchSize || n > 0 && (overdue || len(w.flushes) > 0) {
			n = min(n, batchSize)
			batch := w.queue[:n:n]
			w.queue = w.queue[n:]
			if len(w.queue) == 0 {
				w.queue = nil // and with it the texts
			}
			for _, r := range batch {
				w.backlog -= len(r.text)
			}
			w.mu.Unlock()
			return batch
		}
		w.mu.Unlock()
		if n > 0 && late == nil {
			late = time.After(batchDelay)
		}
		select {
		case <-w.wake:
		case <-late:
			overdue = true
		case <-w.ctx.Done():
			return nil
		}
	}
}

// answered counts n requests as done.
func (w *Writer) answered(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done += uint64(n)
	rest := w.flushes[:0]
	for _, f := range w.flushes {
		if f.number <= w.done {
			close(f.done)
		} else {
			rest = append(rest, f)
		}
	}
	clear(w.flushes[len(rest):])
	w.flushes = rest
}

// fail ends all waiting and all deferring.
func (w *Writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	for _, f := range w.flushes {
		close(f.done)
	}
	w.flushes, w.queue, w.backlog = nil, nil, 0
}

// idle tells that a flush would not wait.
func (w *Writer) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil || w.done == w.asked
}
