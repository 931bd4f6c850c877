package agentserver

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"time"

	"hercules/internal/coordinator/plan"
	"hercules/internal/coordinator/store"
	"hercules/internal/wire/agentapi"
)

// createSession makes a session for the bearer of a cluster join token.
func (s *Server) createSession(w http.ResponseWriter, r *http.Request) {
	token, _ := bearer(r)
	join, ok := s.cfg.Tokens.CheckJoin(token)
	if !ok {
		s.cfg.Log.Warn("join token refused", "remote", r.RemoteAddr)
		fail(w, http.StatusUnauthorized, "the cluster join token is not known here")
		return
	}
	var body agentapi.CreateAgentSession
	if !s.read(w, r, &body) {
		return
	}
	sess := store.Session{ID: agentapi.NewID(), JoinToken: join, Info: body.AgentInfo}
	key := s.cfg.Tokens.NewSession(join, sess.ID)
	if err := s.cfg.Store.AddSession(r.Context(), store.HashToken(key), sess); err != nil {
		s.broken(w, err)
		return
	}
	s.cfg.Log.Info("session created", "session", sess.ID, "hostname", body.AgentInfo.Hostname)
	s.reply(w, &key)
}

func (s *Server) goodbye(w http.ResponseWriter, r *http.Request) {
	var start agentapi.StartInfo
	if !s.read(w, r, &start) {
		return
	}
	s.agents.goodbye(start.ID, sessionOf(r).ID)
	done(w)
}

// evalBuild answers the polling of evaluations. 404 would be an error to them: unknown is null.
func (s *Server) evalBuild(w http.ResponseWriter, r *http.Request) {
	s.reply(w, ptr(s.cfg.Core.EvalBuild(r.PathValue("drv"))))
}

func ptr[T any](v T) *T { return &v }

// task finds the task of a request. It must have been given to the session that speaks of it (gotcha 34).
func (s *Server) task(w http.ResponseWriter, r *http.Request) (t store.Task, known, ok bool) {
	id, valid := agentapi.ParseID(r.PathValue("task"))
	if !valid {
		return t, false, true
	}
	t, err := s.cfg.Store.Task(r.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return t, false, true
	}
	if err != nil {
		s.broken(w, err)
		return t, false, false
	}
	if t.Session != sessionOf(r).ID {
		s.cfg.Log.Warn("a session speaks of a task that it was not given", "task", id, "session", sessionOf(r).ID)
		return t, false, true
	}
	return t, true, true
}

// taskStatus takes the final status of a task: the first counts, all are answered with 200 (protocol 2.4).
func (s *Server) taskStatus(w http.ResponseWriter, r *http.Request) {
	var status agentapi.TaskStatus
	if !s.read(w, r, &status) {
		return
	}
	t, known, ok := s.task(w, r)
	if !ok {
		return
	}
	if known {
		first, err := s.cfg.Store.FinishTask(r.Context(), t.ID, status)
		if err != nil {
			s.broken(w, err)
			return
		}
		if first {
			s.cfg.Core.Apply(plan.TaskFinished{Task: t.ID, Status: status})
		}
	}
	done(w)
}

// evaluateEvents takes results of an evaluation. Those of unknown tasks are dropped with a 200: an error would be
// repeated for minutes and change nothing.
func (s *Server) evaluateEvents(w http.ResponseWriter, r *http.Request) {
	var events agentapi.List[agentapi.EvaluateEvent]
	if !s.read(w, r, &events) {
		return
	}
	t, known, ok := s.task(w, r)
	if !ok {
		return
	}
	if known && t.Drv == "" {
		s.cfg.Core.Apply(plan.Evaluated{Task: t.ID, Events: events})
	}
	done(w)
}

func (s *Server) buildEvents(w http.ResponseWriter, r *http.Request) {
	var events agentapi.List[agentapi.BuildEvent]
	if !s.read(w, r, &events) {
		return
	}
	t, known, ok := s.task(w, r)
	if !ok {
		return
	}
	if known && t.Drv != "" {
		s.cfg.Core.Apply(plan.Built{Task: t.ID, Events: events})
	}
	done(w)
}

// source serves a tarball. There is no token: whoever knows the URL may have it (protocol 2.6).
func (s *Server) source(w http.ResponseWriter, r *http.Request) {
	secret, ok := strings.CutSuffix(r.PathValue("file"), ".tar.gz")
	if !ok {
		fail(w, http.StatusNotFound, "no such source")
		return
	}
	path, found, err := s.cfg.Core.Source(r.Context(), secret)
	switch {
	case err != nil:
		s.cfg.Log.Error("a source could not be packed", "error", err)
		fail(w, http.StatusInternalServerError, "the source could not be packed: "+err.Error())
		return
	case !found:
		fail(w, http.StatusNotFound, "no such source")
		return
	}
	f, err := os.Open(path)
	if err != nil {
		s.broken(w, err)
		return
	}
	defer func() { _ = f.Close() }()
	w.Header().Set("Content-Type", "application/gzip")
	http.ServeContent(w, r, "", time.Time{}, f)
}
