// Package logstore keeps the logs of tasks, each in a file of its own as plain text, and lets readers follow them.
// It holds nothing but an index in memory. What it must not know is where logs come from.
package logstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"hercules/internal/wire/agentapi"
)

// Store is a directory of logs.
type Store struct {
	dir  string
	mu   sync.Mutex
	logs map[agentapi.ID]*Log
}

// Open makes the directory when it is missing.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory for logs: %w", err)
	}
	return &Store{dir: dir, logs: map[agentapi.ID]*Log{}}, nil
}

// Create begins the log of a task; name is for people and becomes part of the file's name. The file is made with
// the first entry. A second call for the same task returns the same log.
func (s *Store) Create(task agentapi.ID, name string) *Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[task]
	if l == nil {
		l = &Log{path: filepath.Join(s.dir, fileName(name, task))}
		s.logs[task] = l
	}
	return l
}

// Log returns the log of a task, nil when there is none.
func (s *Store) Log(task agentapi.ID) *Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logs[task]
}

// Close ends all logs.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, l := range s.logs {
		errs = append(errs, l.End())
	}
	return errors.Join(errs...)
}

// fileName is a name without surprises, unique by the task.
func fileName(name string, task agentapi.ID) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("+-._?=", r):
			return r
		}
		return '_'
	}, strings.TrimLeft(name, "."))
	if len(clean) > 150 {
		clean = clean[:150]
	}
	id := strings.NewReplacer("/", "_", "\x00", "_").Replace(string(task))
	return clean + "-" + id + ".log"
}

// Log is the log of one task.
type Log struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
	// next is the index of the next entry: entries that come again are dropped.
	next  uint64
	ended bool
	// changed is closed and replaced when there is more to read; nil when nobody waits.
	changed chan struct{}
	buf     []byte
}

// Path is the name of the file, which exists once something was logged.
func (l *Log) Path() string { return l.path }

// Append writes entries and returns those that are new, in order. Entries may come after End: the log socket outlives
// the task's status.
func (l *Log) Append(entries []agentapi.LogEntry) ([]agentapi.LogEntry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(entries) > 0 && entries[0].I < l.next {
		entries = entries[1:]
	}
	if len(entries) == 0 {
		return nil, nil
	}
	l.buf = l.buf[:0]
	for i := range entries {
		if line, ok := Text(&entries[i]); ok {
			l.buf = append(append(l.buf, line...), '\n')
		}
	}
	if len(l.buf) > 0 {
		if err := l.write(); err != nil {
			return nil, err
		}
	}
	l.next = entries[len(entries)-1].I + 1
	if cap(l.buf) > 1<<16 {
		l.buf = nil
	}
	l.wake()
	return entries, nil
}

func (l *Log) write() error {
	if l.file == nil {
		f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return fmt.Errorf("writing a log: %w", err)
		}
		l.file = f
	}
	// At a fixed place, so that a write that failed in the middle is done over when the entries come again.
	n, err := l.file.WriteAt(l.buf, l.size)
	if err != nil {
		return fmt.Errorf("writing a log: %w", err)
	}
	l.size += int64(n)
	return nil
}

func (l *Log) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// End says that nothing more is expected: readers that follow get to the end of the file.
func (l *Log) End() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.wake()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// Ended tells whether End was called.
func (l *Log) Ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// Open reads the log as text from its beginning. With follow a read at the end waits for more until the log ends or
// ctx does.
func (l *Log) Open(ctx context.Context, follow bool) io.ReadCloser {
	return &reader{ctx: ctx, log: l, follow: follow}
}

type reader struct {
	ctx    context.Context //nolint:containedctx // io.Reader has no place for it
	log    *Log
	follow bool
	file   *os.File
	at     int64
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		l := r.log
		l.mu.Lock()
		size, ended := l.size, l.ended
		var changed chan struct{}
		if size <= r.at && !ended && r.follow {
			if l.changed == nil {
				l.changed = make(chan struct{})
			}
			changed = l.changed
		}
		l.mu.Unlock()
		if size > r.at {
			if r.file == nil {
				f, err := os.Open(l.path)
				if err != nil {
					return 0, err
				}
				r.file = f
			}
			n, err := r.file.ReadAt(p[:min(int64(len(p)), size-r.at)], r.at)
			r.at += int64(n)
			if n > 0 || len(p) == 0 {
				return n, nil
			}
			return 0, err
		}
		if changed == nil {
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

func (r *reader) Close() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}

// The numbers of Nix's activities and results that a text log is made of (protocol 6.3).
const (
	ActivityBuild    = 105
	ResultBuildLine  = 101
	ResultSetPhase   = 104
	ResultPostBuild  = 107
	levelTalkative   = 4
	carriageReturn   = "\r"
	postBuildHookTag = "post-build-hook: "
)

// Text is the line that stands for an entry in a plain text log; ok is false for entries without one.
func Text(e *agentapi.LogEntry) (line string, ok bool) {
	switch e.Kind {
	case agentapi.LogMsg:
		line = e.Text
	case agentapi.LogStart:
		if e.Text == "" || e.Level > levelTalkative {
			return "", false
		}
		line = e.Text
	case agentapi.LogResult:
		if len(e.Fields) == 0 || !e.Fields[0].IsText {
			return "", false
		}
		switch e.Type {
		case ResultBuildLine:
			line = e.Fields[0].Text
		case ResultPostBuild:
			line = postBuildHookTag + e.Fields[0].Text
		default:
			return "", false
		}
	default:
		return "", false
	}
	// Effects log from a terminal, where lines end in \r\n.
	return strings.TrimSuffix(strings.TrimSuffix(line, "\n"), carriageReturn), true
}

// Phase is the build phase that an entry begins.
func Phase(e *agentapi.LogEntry) (phase string, ok bool) {
	if e.Kind == agentapi.LogResult && e.Type == ResultSetPhase && len(e.Fields) > 0 && e.Fields[0].IsText {
		return e.Fields[0].Text, true
	}
	return "", false
}

// Builds is the derivation whose builder an entry starts.
func Builds(e *agentapi.LogEntry) (drv string, ok bool) {
	if e.Kind == agentapi.LogStart && e.Type == ActivityBuild && len(e.Fields) > 0 && e.Fields[0].IsText {
		return e.Fields[0].Text, true
	}
	return "", false
}
