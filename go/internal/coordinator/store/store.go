// Package store is what a coordinator remembers: sessions of agents, tasks, counters of the sockets, results of
// jobs. Memory is the implementation for a coordinator that lives as long as its one job; the interface is made so
// that a database can stand behind it: every method is one transaction, and keys are given by the caller.
//
// Tokens are known by their hash only. The package must not know what anything that it stores means.
package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"sync"

	"hercules/internal/wire/agentapi"
)

// ErrNotFound says that there is no such thing.
var ErrNotFound = errors.New("not found")

// Hash stands for a token.
type Hash [sha256.Size]byte

// HashToken returns the hash of a token.
func HashToken(token string) Hash { return sha256.Sum256([]byte(token)) }

// Session is what an agent gets for a cluster join token. It outlives processes of the agent.
type Session struct {
	ID agentapi.ID
	// JoinToken is the identifier of the join token that it was made with.
	JoinToken string
	// Info is what the agent said of itself then.
	Info agentapi.AgentInfo
}

// Task is a task that was given to an agent.
type Task struct {
	ID agentapi.ID
	// Session and Start tell to which agent and which run of it.
	Session, Start agentapi.ID
	LogToken       Hash
	// Jobs that it is for, and what it does: an evaluation of that name, or the build of Drv.
	Jobs       []string
	Evaluation string
	Drv        string
}

// Store remembers.
type Store interface {
	Sessions
	Tasks
	// Received and SetReceived are the counters of a socket's incoming messages (wire/socket.Store).
	Received(ctx context.Context, identity string) (int64, error)
	SetReceived(ctx context.Context, identity string, n int64) error
	// SetResult keeps the result of a finished job; Result returns it or ErrNotFound.
	SetResult(ctx context.Context, job string, result json.RawMessage) error
	Result(ctx context.Context, job string) (json.RawMessage, error)
}

// Sessions are the agents that may talk to the coordinator.
type Sessions interface {
	AddSession(ctx context.Context, token Hash, s Session) error
	SessionByToken(ctx context.Context, token Hash) (Session, error)
}

// Tasks are all tasks ever given out.
type Tasks interface {
	AddTask(ctx context.Context, t Task) error
	Task(ctx context.Context, id agentapi.ID) (Task, error)
	TaskByLogToken(ctx context.Context, token Hash) (Task, error)
	// FinishTask keeps the first final status; first tells whether this was it.
	FinishTask(ctx context.Context, id agentapi.ID, s agentapi.TaskStatus) (first bool, err error)
}

// Memory keeps everything in memory.
type Memory struct {
	mu       sync.RWMutex
	sessions map[Hash]Session
	tasks    map[agentapi.ID]*memoryTask
	byLog    map[Hash]*memoryTask
	received map[string]int64
	results  map[string]json.RawMessage
}

type memoryTask struct {
	Task
	status *agentapi.TaskStatus
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{
		sessions: map[Hash]Session{}, tasks: map[agentapi.ID]*memoryTask{}, byLog: map[Hash]*memoryTask{},
		received: map[string]int64{}, results: map[string]json.RawMessage{},
	}
}

// AddSession implements Sessions.
func (m *Memory) AddSession(_ context.Context, token Hash, s Session) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions[token] = s
	return nil
}

// SessionByToken implements Sessions.
func (m *Memory) SessionByToken(_ context.Context, token Hash) (Session, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s, ok := m.sessions[token]
	if !ok {
		return Session{}, ErrNotFound
	}
	return s, nil
}

// AddTask implements Tasks.
func (m *Memory) AddTask(_ context.Context, t Task) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	mt := &memoryTask{Task: t}
	m.tasks[t.ID], m.byLog[t.LogToken] = mt, mt
	return nil
}

// Task implements Tasks.
func (m *Memory) Task(_ context.Context, id agentapi.ID) (Task, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if t := m.tasks[id]; t != nil {
		return t.Task, nil
	}
	return Task{}, ErrNotFound
}

// TaskByLogToken implements Tasks.
func (m *Memory) TaskByLogToken(_ context.Context, token Hash) (Task, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if t := m.byLog[token]; t != nil {
		return t.Task, nil
	}
	return Task{}, ErrNotFound
}

// FinishTask implements Tasks.
func (m *Memory) FinishTask(_ context.Context, id agentapi.ID, s agentapi.TaskStatus) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tasks[id]
	if t == nil {
		return false, ErrNotFound
	}
	if t.status != nil {
		return false, nil
	}
	t.status = &s
	return true, nil
}

// Received implements Store.
func (m *Memory) Received(_ context.Context, identity string) (int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if n, ok := m.received[identity]; ok {
		return n, nil
	}
	return -1, nil
}

// SetReceived implements Store.
func (m *Memory) SetReceived(_ context.Context, identity string, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.received[identity] = n
	return nil
}

// SetResult implements Store.
func (m *Memory) SetResult(_ context.Context, job string, result json.RawMessage) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.results[job] = result
	return nil
}

// Result implements Store.
func (m *Memory) Result(_ context.Context, job string) (json.RawMessage, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if r, ok := m.results[job]; ok {
		return r, nil
	}
	return nil, ErrNotFound
}
