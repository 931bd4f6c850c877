package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// status is the line that the service manager shows.
type status struct {
	service Service

	mu      sync.Mutex
	ready   bool
	online  bool
	leaving bool
	running map[string]int
	wrong   string // what is wrong with files that were changed
}

func (s *status) problem(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wrong == text {
		return
	}
	s.wrong = text
	s.service.Status(s.line())
}

func (s *status) connected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.online = true
	if !s.ready && !s.leaving {
		s.ready = true
		s.service.Ready(s.line())
		return
	}
	s.service.Status(s.line())
}

// disconnected reports whether there was a connection before.
func (s *status) disconnected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.online
	s.online = false
	s.service.Status(s.line())
	return was
}

func (s *status) stopping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
	s.service.Stopping(s.line())
}

func (s *status) tasks(running map[string]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = running
	s.service.Status(s.line())
}

func (s *status) line() string {
	what := "not connected to the coordinator, trying again"
	switch {
	case s.leaving:
		what = "leaving"
	case s.online:
		what = "online"
	}
	var doing []string
	for _, kind := range []string{evaluation, building, effect} {
		switch n := s.running[kind]; n {
		case 0:
		case 1:
			doing = append(doing, "1 "+kind)
		default:
			doing = append(doing, fmt.Sprintf("%d %ss", n, kind))
		}
	}
	line := what + "; idle"
	if len(doing) > 0 {
		line = what + "; running " + strings.Join(doing, ", ")
	}
	if s.wrong != "" {
		line += "; the last good secrets are used, because the new ones are wrong: " + s.wrong
	}
	return line
}

// noService is for programs that no service manager watches.
type noService struct{}

func (noService) Ready(string)                                       {}
func (noService) Status(string)                                      {}
func (noService) Stopping(string)                                    {}
func (noService) Watch(context.Context, func(context.Context) error) {}
