// Package tasklog turns the log of a task, as Nix's structured logger gives it, into the numbered log entries of the
// agent protocol: it filters, limits, cleans, numbers, times and batches them.
//
// It knows neither sockets nor tasks: whoever makes a [Log] says where batches go.
//
// # Limits
//
// Section 6.4 of the protocol specification: progress reports are never sent; the first 40,000 entries pass; then
// only what a reader sees passes; after 49,900 of those a notice is sent and from then on only the last 10,000 are
// kept, to be sent at the end between two notices that say how many are missing. So a builder that prints a gigabyte
// costs no more than one that prints a hundred thousand lines.
//
// The specification limits entries and not bytes. To keep the memory of the agent bounded there are limits of our
// own, which ordinary logs never meet: a text of more than 1 MiB is split, the tail also begins after 256 MiB of
// text, and it holds at most 16 MiB.
package tasklog

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/wire/agentapi"
)

// Limits of protocol specification 6.4, and ours.
const (
	maxBatch     = 100    // entries that travel together
	maxAll       = 40_000 // entries of any kind
	maxVisible   = 49_900 // visible entries after those
	maxTail      = 10_000 // visible entries kept for the end
	maxText      = 1 << 20
	maxBytes     = 256 << 20
	maxTailBytes = 16 << 20
	maxQueued    = 64 << 20 // bytes that wait for the receiver; then the builder has to wait
	warnQueued   = 16 << 20
)

// Options of a [Log]. Only Send is required.
type Options struct {
	// Send takes a batch of 1 to 100 entries and keeps it. It may block; calls are in order, one at a time.
	// After it has failed, everything else is dropped.
	Send func([]agentapi.LogEntry) error
	// Gather is how long entries that follow a batch closely are collected. A line after a pause goes at once.
	// Default 5 ms.
	Gather time.Duration
	// Now is the clock. Default [time.Now].
	Now func() time.Time
	// Log gets warnings about a receiver that is too slow.
	Log *slog.Logger
}

// Log is the log of one task. Its methods can be called concurrently.
type Log struct {
	opt   Options
	ctx   context.Context
	start time.Time
	wake  chan struct{} // the sender has something to do
	done  chan struct{} // the sender has ended

	hide atomic.Pointer[strings.Replacer] // nil: nothing

	mu      sync.Mutex
	secrets []string              // that hide replaces
	room    *sync.Cond            // something was sent, or will never be
	full    [][]agentapi.LogEntry // complete batches
	current []agentapi.LogEntry   // the batch that is being filled
	queued  int                   // bytes in full and current
	warned  bool
	closed  bool
	err     error // from Send

	seen    int    // entries that passed the first filter
	visible int    // visible ones after maxAll
	bytes   int    // of text that was passed on
	next    uint64 // index of the next entry
	lastMS  uint64
	lost    uint64 // entries dropped because the task was cancelled while the receiver was stuck
	tail    *ring  // not nil after the soft limit
}

// New starts a log. While more than 64 MiB wait to be sent, entries block, until ctx ends: then they are dropped and
// counted. Close it when the task is over.
func New(ctx context.Context, o Options) *Log {
	if o.Gather == 0 {
		o.Gather = 5 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Log{opt: o, ctx: ctx, start: o.Now(), wake: make(chan struct{}, 1), done: make(chan struct{})}
	l.room = sync.NewCond(&l.mu)
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.room.Broadcast()
	})
	go func() {
		defer close(l.done)
		defer stop()
		l.deliver()
	}()
	return l
}

// Line adds a message.
func (l *Log) Line(level daemon.Verbosity, text string) {
	l.Event(daemon.Event{Kind: daemon.EventMessage, Level: level, Text: text})
}

// Linef adds a message.
func (l *Log) Linef(level daemon.Verbosity, format string, args ...any) {
	l.Line(level, fmt.Sprintf(format, args...))
}

// Event adds an event of Nix's logger. The log keeps the event's fields.
func (l *Log) Event(e daemon.Event) {
	if e.Kind == daemon.EventResult && (e.Type == daemon.ResProgress || e.Type == daemon.ResSetExpected) {
		return
	}
	e = l.without(e)
	if size(e) > maxText {
		for part := range split(e) {
			l.add(part)
		}
		return
	}
	l.add(e)
}

func (l *Log) add(e daemon.Event) {
	ms := l.ms()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.err != nil {
		return
	}
	if l.tail != nil {
		if visible(e) {
			l.tail.push(tailEntry{e, ms})
		}
		return
	}
	l.seen++
	if l.seen > maxAll {
		if !visible(e) {
			return
		}
		l.visible++
	}
	if l.visible > maxVisible || l.bytes > maxBytes {
		l.tail = &ring{}
		if visible(e) {
			l.tail.push(tailEntry{e, ms})
		}
		l.put(notice(fmt.Sprintf("This log has reached its limit of about %d lines. The work goes on; of what follows only the last %d lines are kept, and shown when it ends.",
			l.next, maxTail)), ms)
		return
	}
	n := size(e)
	for l.queued > 0 && l.queued+n > maxQueued && l.ctx.Err() == nil && !l.closed && l.err == nil {
		l.room.Wait()
	}
	if l.closed || l.err != nil {
		return
	}
	if l.queued+n > maxQueued && l.queued > 0 {
		l.lost++
		return
	}
	l.bytes += n
	l.put(e, ms)
	if l.queued > warnQueued && !l.warned {
		l.warned = true
		l.opt.Log.Warn("log entries are produced faster than the coordinator takes them", "waiting_bytes", l.queued)
	}
}

// put numbers an entry and queues it, without looking at limits.
func (l *Log) put(e daemon.Event, ms uint64) {
	if l.current == nil {
		l.current = make([]agentapi.LogEntry, 0, 8)
	}
	entry := convert(e, l.next, ms)
	l.current = append(l.current, entry)
	l.next++
	l.lastMS = ms
	l.queued += entrySize(&entry)
	if len(l.current) == maxBatch {
		l.full = append(l.full, l.current)
		l.current = nil
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Close ends the log: what was kept back is queued, and what comes later is ignored. It does not wait; see [Log.Wait].
// It returns what the End message of the protocol says.
func (l *Log) Close() agentapi.LogEnd {
	ms := l.ms()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		if l.tail != nil {
			skipped, kept := l.tail.dropped, l.tail.len()
			if skipped > 0 {
				l.put(notice(fmt.Sprintf("%d lines are left out here. The last %d lines follow.", skipped, kept)), ms)
			}
			for t := range l.tail.all() {
				l.put(t.e, t.ms)
			}
			l.tail = nil
			if skipped > 0 {
				l.put(notice(fmt.Sprintf("End of the log. %d lines before the last %d were left out.", skipped, kept)), ms)
			}
		}
		if l.lost > 0 {
			l.put(notice(fmt.Sprintf("%d entries of this log were lost: the task was stopped while nobody received its log.", l.lost)), ms)
		}
		l.room.Broadcast()
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return agentapi.LogEnd{I: l.next, MS: l.lastMS}
}

// Wait waits until everything before [Log.Close] was handed to Send, or Send failed, whose error it returns.
func (l *Log) Wait() error {
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// deliver calls Send until the log is closed and everything is sent.
func (l *Log) deliver() {
	var last time.Time // when the last batch went out
	var timer *time.Timer
	for {
		l.mu.Lock()
		var batch []agentapi.LogEntry
		var wait time.Duration
		switch {
		case len(l.full) > 0:
			batch, l.full[0] = l.full[0], nil
			l.full = l.full[1:]
		case len(l.current) > 0:
			// The delay is by the real clock, whatever the clock of the entries.
			wait = l.opt.Gather - time.Since(last)
			if l.closed || wait <= 0 {
				wait = 0
				batch, l.current = l.current, nil
			}
		case l.closed:
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()

		switch {
		case batch != nil:
			err := l.opt.Send(batch)
			last = time.Now()
			l.sent(batch, err)
			if err != nil {
				return
			}
		case wait > 0:
			if timer == nil {
				timer = time.NewTimer(wait)
				defer timer.Stop()
			} else {
				timer.Reset(wait)
			}
			l.await(timer.C)
		default:
			<-l.wake
		}
	}
}

// await returns when the time is over, a batch is full or the log is closed.
func (l *Log) await(timeout <-chan time.Time) {
	for {
		select {
		case <-timeout:
			return
		case <-l.wake:
			l.mu.Lock()
			ready := l.closed || len(l.full) > 0
			l.mu.Unlock()
			if ready {
				return
			}
		}
	}
}

func (l *Log) sent(batch []agentapi.LogEntry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range batch {
		l.queued -= entrySize(&batch[i])
	}
	if err != nil {
		l.err = err
		l.full, l.current, l.tail, l.queued = nil, nil, nil, 0
	}
	l.room.Broadcast()
}

func (l *Log) ms() uint64 {
	return uint64(max(0, l.opt.Now().Sub(l.start).Milliseconds()))
}
