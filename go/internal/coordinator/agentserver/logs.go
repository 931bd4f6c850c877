package agentserver

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"hercules/internal/coordinator/store"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

// keepLog is how long the socket's state of a log outlives its last connection after its end: as long as agents try.
const keepLog = 10 * time.Minute

type logPeer = socket.Peer[agentapi.LogMessage, agentapi.ServiceInfo]

type logKey struct{}

// newLogs makes the log sockets. Their peers are told apart by task: each has a log token of its own.
func (s *Server) newLogs() *socket.Server[agentapi.LogMessage, agentapi.ServiceInfo] {
	var mu sync.Mutex
	tasks := map[string]store.Task{}
	taskOf := func(p *logPeer) store.Task {
		mu.Lock()
		defer mu.Unlock()
		return tasks[p.Identity()]
	}
	var logs *socket.Server[agentapi.LogMessage, agentapi.ServiceInfo]
	logs = socket.NewServer(socket.ServerConfig[agentapi.LogMessage, agentapi.ServiceInfo]{
		Greeting: func(*http.Request) agentapi.ServiceInfo { return s.info() },
		Identify: func(r *http.Request, m agentapi.LogMessage) (string, error) {
			if m.Hello == nil {
				return "", errors.New("expected Hello")
			}
			t, _ := r.Context().Value(logKey{}).(store.Task)
			identity := string(t.ID)
			mu.Lock()
			defer mu.Unlock()
			tasks[identity] = t
			return identity, nil
		},
		Receive: func(ctx context.Context, p *logPeer, _ int64, m agentapi.LogMessage) error {
			switch {
			case m.LogEntries != nil && len(*m.LogEntries) > 0:
				return s.cfg.Core.Log(ctx, taskOf(p), *m.LogEntries)
			case m.End != nil:
				s.cfg.Core.LogEnd(taskOf(p))
			}
			return nil
		},
		Times: s.cfg.Times,
		Failed: func(r *http.Request, err error) {
			s.cfg.Log.Debug("log socket failed", "remote", r.RemoteAddr, "error", err)
		},
		Disconnected: func(p *logPeer, err error) {
			identity := p.Identity()
			s.cfg.Log.Debug("log socket closed", "task", identity, "error", err)
			// Forgotten later; what comes after that all the same is told apart by the index of the entries.
			time.AfterFunc(keepLog, func() {
				if p.Connected() {
					return
				}
				logs.Forget(identity)
				mu.Lock()
				delete(tasks, identity)
				mu.Unlock()
			})
		},
	})
	return logs
}

// logSocket lets in whoever has the log token of a task.
func (s *Server) logSocket(w http.ResponseWriter, r *http.Request) {
	token, ok := bearer(r)
	if !ok {
		fail(w, http.StatusUnauthorized, "no log token")
		return
	}
	t, err := s.cfg.Store.TaskByLogToken(r.Context(), store.HashToken(token))
	switch {
	case errors.Is(err, store.ErrNotFound):
		fail(w, http.StatusUnauthorized, "the log token is not known here")
	case err != nil:
		s.broken(w, err)
	default:
		s.logs.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), logKey{}, t)))
	}
}
