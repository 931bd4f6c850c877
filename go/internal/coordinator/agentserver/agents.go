package agentserver

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"hercules/internal/coordinator/plan"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

type agentPeer = socket.Peer[agentapi.AgentPayload, agentapi.ServicePayload]

// agents are the connected agents and those that may come back.
type agents struct {
	s      *Server
	sock   *socket.Server[agentapi.AgentPayload, agentapi.ServicePayload]
	ctx    context.Context //nolint:containedctx // the life of the goroutines below
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	byID   map[agentapi.ID]*run
	closed bool
}

// run is one run of an agent process.
type run struct {
	Agent
	startTime time.Time
	connected bool
	// up: the core counts on it
	up bool
	// lost fires when it has been away for too long
	lost *time.Timer
	// mentioned are the tasks that it said something of since it last connected.
	mentioned map[agentapi.ID]bool
}

func newAgents(s *Server) *agents {
	a := &agents{s: s, byID: map[agentapi.ID]*run{}}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	times := s.cfg.Times
	if times.Receive == 0 {
		times.Receive = 75 * time.Second // a healthy agent pings every 30 s
	}
	a.sock = socket.NewServer(socket.ServerConfig[agentapi.AgentPayload, agentapi.ServicePayload]{
		Greeting: func(*http.Request) agentapi.ServicePayload {
			info := s.info()
			return agentapi.ServicePayload{ServiceInfo: &info}
		},
		Identify:     a.identify,
		Receive:      a.receive,
		Store:        s.cfg.Store,
		Times:        times,
		Connected:    a.connected,
		Disconnected: a.disconnected,
		Failed: func(r *http.Request, err error) {
			s.cfg.Log.Warn("agent socket failed", "remote", r.RemoteAddr, "error", err)
		},
		Exception: func(p *agentPeer, message string) {
			s.cfg.Log.Warn("agent reports a protocol error", "agent", p.Identity(), "message", message)
		},
	})
	return a
}

func (a *agents) serve(w http.ResponseWriter, r *http.Request) { a.sock.ServeHTTP(w, r) }

// identify names the agent by its start, which must belong to the session that speaks.
func (a *agents) identify(r *http.Request, p agentapi.AgentPayload) (string, error) {
	if p.Hello == nil {
		return "", errors.New("expected Hello")
	}
	h, sess := p.Hello, sessionOf(r)
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.byID[h.StartInfo.ID]
	if known == nil {
		known = &run{Agent: Agent{Start: h.StartInfo.ID}, startTime: h.StartInfo.StartTime}
		known.Session = sess
		a.byID[h.StartInfo.ID] = known
	}
	if known.Session.ID != sess.ID {
		return "", errors.New("this start of an agent belongs to another session")
	}
	known.Info = h.AgentInfo
	return string(h.StartInfo.ID), nil
}

func (a *agents) connected(p *agentPeer, hello agentapi.AgentPayload) {
	h := hello.Hello
	a.mu.Lock()
	me := a.byID[h.StartInfo.ID]
	if me == nil || a.closed {
		a.mu.Unlock()
		return
	}
	if me.lost != nil {
		me.lost.Stop()
		me.lost = nil
	}
	me.connected, me.up = true, true
	me.mentioned = map[agentapi.ID]bool{}
	// Another start of the same session: the process before this one is gone.
	var before []agentapi.ID
	for id, o := range a.byID {
		if id != me.Start && o.Session.ID == me.Session.ID && !o.connected {
			before = append(before, id)
		}
	}
	agent := me.Agent
	a.mu.Unlock()
	for _, id := range before {
		a.down(id, true)
	}
	a.reconcile(p, agent, h.TasksInProgress)
	a.s.cfg.Log.Info("agent connected", "agent", agent.Start, "hostname", agent.Info.Hostname, "version", agent.Info.AgentVersion)
	a.s.cfg.Core.AgentUp(agent)
}

// reconcile compares what the agent does with what it should do (protocol 4.2).
func (a *agents) reconcile(p *agentPeer, agent Agent, inProgress []agentapi.ID) {
	for _, id := range inProgress {
		if !a.s.cfg.Core.Live(id, agent.Start) {
			// It was given to somebody else or is not wanted any more. If it is only its status that has to be told
			// again, cancelling does no harm: the first status counts.
			_ = p.Send(agentapi.ServicePayload{Cancel: &agentapi.TaskRef{TaskID: id}})
		}
	}
	var missing []agentapi.ID
	for _, id := range a.s.cfg.Core.TasksOf(agent.Start) {
		if !slices.Contains(inProgress, id) {
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		a.wg.Go(func() { a.suspect(p, agent.Start, missing) })
	}
}

// suspect gives up tasks of which the agent says nothing although it has been told of them.
func (a *agents) suspect(p *agentPeer, start agentapi.ID, missing []agentapi.ID) {
	if p.Flush(a.ctx) != nil {
		return
	}
	select {
	case <-a.ctx.Done():
		return
	case <-time.After(a.s.cfg.Grace):
	}
	for _, id := range missing {
		a.mu.Lock()
		r := a.byID[start]
		gone := r != nil && !r.mentioned[id]
		a.mu.Unlock()
		if gone {
			a.s.cfg.Log.Warn("agent may not know of its task", "task", id, "agent", start)
			a.s.cfg.Core.Apply(plan.TaskLost{Task: id, Reason: "the agent does not know of the task"})
		}
	}
}

func (a *agents) disconnected(p *agentPeer, err error) {
	a.mu.Lock()
	r := a.byID[agentapi.ID(p.Identity())]
	if r == nil || a.closed || errors.Is(err, socket.ErrReplaced) {
		a.mu.Unlock()
		return
	}
	a.s.cfg.Log.Info("agent disconnected", "agent", r.Start, "error", err)
	r.connected = false
	// The next process of the same agent may be here before the end of this one is noticed.
	replaced := false
	for _, o := range a.byID {
		replaced = replaced || o != r && o.Session.ID == r.Session.ID && o.connected
	}
	if r.up && !replaced {
		r.lost = time.AfterFunc(a.s.cfg.LostAfter, func() { a.expire(r) })
	}
	a.mu.Unlock()
	if replaced {
		a.down(r.Start, true)
	}
}

// expire gives up an agent that has not come back.
func (a *agents) expire(r *run) {
	a.mu.Lock()
	gone := !a.closed && !r.connected && a.byID[r.Start] == r
	a.mu.Unlock()
	if gone {
		a.down(r.Start, true)
	}
}

func (a *agents) goodbye(start, session agentapi.ID) {
	a.mu.Lock()
	r := a.byID[start]
	mine := r != nil && r.Session.ID == session
	a.mu.Unlock()
	if mine {
		a.down(start, false)
	}
}

// down tells the core that an agent is gone. The socket's counters stay, in case that it is not.
func (a *agents) down(start agentapi.ID, lost bool) {
	a.mu.Lock()
	r := a.byID[start]
	if r == nil || !r.up || a.closed {
		a.mu.Unlock()
		return
	}
	r.up = false
	if r.lost != nil {
		r.lost.Stop()
		r.lost = nil
	}
	a.mu.Unlock()
	a.s.cfg.Log.Info("agent is gone", "agent", start, "lost", lost)
	a.s.cfg.Core.AgentDown(start, lost)
}

func (a *agents) receive(_ context.Context, p *agentPeer, _ int64, m agentapi.AgentPayload) error {
	start := agentapi.ID(p.Identity())
	var task agentapi.ID
	switch {
	case m.Started != nil:
		task = m.Started.TaskID
	case m.Cancelled != nil:
		task = m.Cancelled.TaskID
	default:
		return nil // Ping: being acknowledged is all it wants
	}
	a.mu.Lock()
	if r := a.byID[start]; r != nil && r.mentioned != nil {
		r.mentioned[task] = true
	}
	a.mu.Unlock()
	// Cancelled is followed by a status, and that is what counts (gotcha 20).
	if m.Started != nil && a.s.cfg.Core.Live(task, start) {
		a.s.cfg.Core.Apply(plan.TaskStarted{Task: task})
	}
	return nil
}

func (a *agents) close() {
	a.mu.Lock()
	a.closed = true
	for _, r := range a.byID {
		if r.lost != nil {
			r.lost.Stop()
		}
	}
	a.mu.Unlock()
	a.cancel()
	a.sock.Close()
	a.wg.Wait()
}
