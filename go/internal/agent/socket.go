package agent

import (
	"context"
	"errors"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

type agentSocket = socket.Agent[agentapi.ServicePayload, agentapi.AgentPayload]

// newSocket makes the agent socket: protocol 3 and 4.
func (a *agent) newSocket(session string) *agentSocket {
	return socket.NewAgent(socket.AgentConfig[agentapi.ServicePayload, agentapi.AgentPayload]{
		URL:   a.urls.agent,
		Token: session,
		Greeting: func(p agentapi.ServicePayload) error {
			if p.ServiceInfo == nil {
				return errors.New("expected ServiceInfo")
			}
			return p.ServiceInfo.CheckVersion()
		},
		// Made anew for each connection: which tasks are in progress changes.
		Hello: func() agentapi.AgentPayload {
			return agentapi.AgentPayload{Hello: &agentapi.Hello{
				AgentInfo: a.agentInfo(), StartInfo: a.startInfo, TasksInProgress: a.tasks.inProgress(),
			}}
		},
		Receive:   a.receive,
		KeepAlive: func() agentapi.AgentPayload { return agentapi.AgentPayload{Ping: &agentapi.Unit{}} },
		Times:     a.opt.Times.Socket,
		Connected: func() {
			a.log.Info("online", "url", a.urls.shown)
			a.status.connected()
		},
		Disconnected: func(err error) {
			if a.ctx.Err() != nil || errors.Is(err, socket.ErrClosed) {
				return
			}
			if a.status.disconnected() {
				a.log.Warn("connection to the coordinator lost; tasks go on, it is tried again", "error", err)
			} else {
				a.log.Warn("no connection to the coordinator, it is tried again", "error", err)
			}
		},
		Exception: func(message string) { a.log.Warn("the coordinator reports an error", "message", message) },
	})
}

// receive acts upon a message. It does not block: the next one may be a cancel.
func (a *agent) receive(_ context.Context, p agentapi.ServicePayload) {
	switch {
	case p.StartEvaluation != nil:
		a.tasks.start(a.evaluation(p.StartEvaluation))
	case p.StartBuild != nil:
		a.tasks.start(a.build(p.StartBuild))
	case p.StartEffect != nil:
		a.tasks.start(a.effect(p.StartEffect))
	case p.Cancel != nil:
		a.tasks.cancel(p.Cancel.TaskID)
	}
}
