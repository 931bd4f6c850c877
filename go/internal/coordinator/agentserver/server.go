// Package agentserver is the coordinator's side of the agent protocol: HTTP endpoints, the agent socket, the log
// sockets and the source tarballs. It checks tokens and shapes, answers the way agents need it, and hands on what
// was said. It must not decide what happens with it.
//
// What agents make of answers (protocol 2.1) rules the details: a success is exactly 200, JSON has a JSON content
// type, and a final status is accepted whatever became of the task, since it is reported again for ever otherwise.
package agentserver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"time"

	"hercules/internal/coordinator/plan"
	"hercules/internal/coordinator/store"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

// Core is what the server hands things on to. Its methods may be called at the same time; they must not block for
// long, but for Log, which may wait as long as its context lives.
type Core interface {
	// Apply takes results of tasks: TaskStarted, TaskFinished, TaskLost, Evaluated, Built.
	Apply(plan.Event)
	// EvalBuild answers how the build of a derivation is going; nil: it is not planned.
	EvalBuild(drv string) *agentapi.EvalBuild
	// Live tells whether an agent is meant to have a task.
	Live(task, start agentapi.ID) bool
	// TasksOf lists the tasks that an agent is meant to have.
	TasksOf(start agentapi.ID) []agentapi.ID
	// AgentUp says that an agent is connected (again); AgentDown that it will not come back.
	AgentUp(Agent)
	AgentDown(start agentapi.ID, lost bool)
	// Log takes entries of a task's log, LogEnd its end.
	Log(ctx context.Context, t store.Task, entries []agentapi.LogEntry) error
	LogEnd(t store.Task)
	// Source returns what the secret of a source URL stands for.
	Source(ctx context.Context, secret string) (path string, found bool, err error)
}

// Agent is one run of an agent.
type Agent struct {
	Start   agentapi.ID
	Session store.Session
	Info    agentapi.AgentInfo
}

// Config configures a server.
type Config struct {
	// BaseURL is where agents reach the server: scheme and host.
	BaseURL string
	Store   store.Store
	Core    Core
	Tokens  *Tokens
	Log     *slog.Logger
	// LostAfter is how long a disconnected agent may take to come back before its tasks are given to others; 90 s.
	LostAfter time.Duration
	// Grace is how long an agent that has come back may take to mention a task that it should have; 10 s.
	Grace time.Duration
	// MaxBody limits request bodies; 256 MiB: a batch has up to 1000 events of any size.
	MaxBody int64
	// Times of the sockets.
	Times socket.Times
}

// Server serves the agent protocol.
type Server struct {
	cfg    Config
	agents *agents
	logs   *socket.Server[agentapi.LogMessage, agentapi.ServiceInfo]
	mux    *http.ServeMux
}

// New returns a server.
func New(cfg Config) *Server {
	if cfg.LostAfter <= 0 {
		cfg.LostAfter = 90 * time.Second
	}
	if cfg.Grace <= 0 {
		cfg.Grace = 10 * time.Second
	}
	if cfg.MaxBody <= 0 {
		cfg.MaxBody = 256 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.BaseURL = strings.TrimRight(cfg.BaseURL, "/")
	s := &Server{cfg: cfg, mux: http.NewServeMux()}
	s.agents = newAgents(s)
	s.logs = s.newLogs()
	m := s.mux
	m.HandleFunc("GET /api/v1/agent/service-info", s.serviceInfo)
	m.HandleFunc("POST /api/v1/agent/session", s.createSession)
	m.HandleFunc("POST /api/v1/agent/goodbye", s.session(s.goodbye))
	m.HandleFunc("GET /api/v1/agent/eval-build/{drv}", s.session(s.evalBuild))
	m.HandleFunc("POST /api/v1/tasks/{task}", s.session(s.taskStatus))
	m.HandleFunc("POST /api/v1/tasks/{task}/eval", s.session(s.evaluateEvents))
	m.HandleFunc("POST /api/v1/tasks/{task}/build", s.session(s.buildEvents))
	m.HandleFunc("POST /api/v1/tasks/log", func(w http.ResponseWriter, r *http.Request) { fail(w, http.StatusNotFound, "no such endpoint") })
	m.HandleFunc("GET /api/v1/agent-socket", s.session(s.agents.serve))
	m.HandleFunc("GET /api/v1/logs/build/socket", s.logSocket)
	m.HandleFunc("GET /sources/{file}", s.source)
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fail(w, http.StatusNotFound, "no such endpoint") })
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Send queues a message for an agent; it is kept until the agent acknowledges it.
func (s *Server) Send(start agentapi.ID, m agentapi.ServicePayload) error {
	return s.agents.sock.Peer(string(start)).Send(m)
}

// Close drops the sockets and waits for what uses them.
func (s *Server) Close() {
	s.agents.close()
	s.logs.Close()
}

// info is the coordinator's description of itself. Both sockets are here (protocol 2.3).
func (s *Server) info() agentapi.ServiceInfo {
	return agentapi.ServiceInfo{Version: agentapi.Version{2, 0}, AgentSocketBaseURL: s.cfg.BaseURL, BulkSocketBaseURL: s.cfg.BaseURL}
}

func (s *Server) serviceInfo(w http.ResponseWriter, _ *http.Request) {
	info := s.info()
	s.reply(w, &info)
}

type sessionKey struct{}

// sessionOf returns the session that a request was made with.
func sessionOf(r *http.Request) store.Session {
	sess, _ := r.Context().Value(sessionKey{}).(store.Session)
	return sess
}

// session lets only requests with a session token pass.
func (s *Server) session(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token, ok := bearer(r)
		if !ok {
			fail(w, http.StatusUnauthorized, "no session token")
			return
		}
		sess, err := s.cfg.Store.SessionByToken(r.Context(), store.HashToken(token))
		switch {
		case errors.Is(err, store.ErrNotFound):
			s.cfg.Log.Debug("session token refused", "path", r.URL.Path)
			fail(w, http.StatusUnauthorized, "the session token is not known here")
		case err != nil:
			s.broken(w, err)
		default:
			next(w, r.WithContext(context.WithValue(r.Context(), sessionKey{}, sess)))
		}
	}
}

func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return token, ok && strings.EqualFold(scheme, "Bearer") && token != ""
}

// read decodes a JSON body; it answers itself when that goes wrong.
func (s *Server) read(w http.ResponseWriter, r *http.Request, into any) bool {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		fail(w, http.StatusUnsupportedMediaType, "expected application/json")
		return false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.cfg.MaxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		fail(w, http.StatusRequestEntityTooLarge, "the body is too large")
		return false
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "the body was cut off")
		return false
	}
	if err := agentapi.Unmarshal(body, into); err != nil {
		s.cfg.Log.Warn("a body could not be decoded", "path", r.URL.Path, "error", err)
		fail(w, http.StatusBadRequest, "body: "+err.Error())
		return false
	}
	return true
}

// reply answers 200 with a JSON document.
func (s *Server) reply(w http.ResponseWriter, v any) {
	b, err := agentapi.Marshal(v)
	if err != nil {
		s.broken(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	_, _ = w.Write(b)
}

// done answers 200 without a result.
func done(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.WriteHeader(http.StatusOK)
}

func (s *Server) broken(w http.ResponseWriter, err error) {
	s.cfg.Log.Error("a request could not be served", "error", err)
	fail(w, http.StatusInternalServerError, "internal error")
}

// fail answers with the error shape of the client API; agents look at the status only.
func fail(w http.ResponseWriter, status int, message string) {
	doc := struct {
		ErrorTags agentapi.List[string] `json:"errorTags"`
		Message   string                `json:"message"`
	}{agentapi.List[string]{}, message}
	b, err := agentapi.Marshal(&doc)
	if err != nil {
		b = []byte(`{"errorTags":[],"message":""}`)
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}
