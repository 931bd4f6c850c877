package setup

import (
	"log/slog"
	"sync"
)

// Holder has the newest setup, and keeps earlier ones for as long as tasks use them.
type Holder struct {
	log *slog.Logger

	mu      sync.Mutex
	newest  *Setup
	users   map[*Setup]int
	problem string // why the newest is not what the files say; empty when it is
}

// NewHolder has a first setup.
func NewHolder(log *slog.Logger, first *Setup) *Holder {
	return &Holder{log: log, newest: first, users: map[*Setup]int{}}
}

// Take gives the newest setup, which stays usable until it is released.
func (h *Holder) Take() (s *Setup, release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s = h.newest
	h.users[s]++
	return s, sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.users[s]--
		h.clear(s)
	})
}

// Replace makes s, which may be nil at the end, the newest.
func (h *Holder) Replace(s *Setup) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.newest
	h.newest = s
	h.clear(old)
}

// clear removes a setup that nobody can use any more.
func (h *Holder) clear(s *Setup) {
	if s == nil || s == h.newest || h.users[s] > 0 {
		return
	}
	delete(h.users, s)
	s.Remove(h.log)
}

// State is the newest setup, to look at, and what is wrong with the files that it was to be made of.
func (h *Holder) State() (newest *Setup, problem string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.newest, h.problem
}

// SetProblem says why the newest setup is not what the files say; empty when it is.
func (h *Holder) SetProblem(problem string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problem = problem
}
