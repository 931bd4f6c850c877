package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"hercules/internal/tasklog"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

// logDelivery is how long a log may be on its way after the end of its task (protocol 3.5).
const logDelivery = 10 * time.Minute

var errLogGivenUp = errors.New("the log was not acknowledged in time and is given up")

// logs opens the log socket of each task.
type logs struct {
	ctx      context.Context // ends: give up all logs now
	url      string
	hello    agentapi.LogHello
	times    socket.Times
	delivery time.Duration
}

// taskLog is the log of a task on its way to the coordinator.
type taskLog struct {
	*tasklog.Log
	ctx      context.Context
	cancel   context.CancelCauseFunc
	socket   *socket.Agent[agentapi.ServiceInfo, agentapi.LogMessage]
	run      sync.WaitGroup
	delivery time.Duration
	log      *slog.Logger
}

// open begins the log of a task. It waits for nothing: the socket is opened beside the task, and entries wait in memory
// until it is. When ctx, which is the task's, ends, the log does not hold the task up any more.
func (l *logs) open(ctx context.Context, token string, log *slog.Logger) (tl *tasklog.Log, finish func()) {
	t := &taskLog{delivery: l.delivery, log: log}
	t.ctx, t.cancel = context.WithCancelCause(l.ctx)
	t.socket = socket.NewAgent(socket.AgentConfig[agentapi.ServiceInfo, agentapi.LogMessage]{
		URL:       l.url,
		Token:     token,
		Greeting:  agentapi.ServiceInfo.CheckVersion,
		Hello:     func() agentapi.LogMessage { return agentapi.LogMessage{Hello: &l.hello} },
		Receive:   func(context.Context, agentapi.ServiceInfo) {},
		KeepAlive: func() agentapi.LogMessage { return entries(agentapi.List[agentapi.LogEntry]{}) },
		Times:     l.times,
		Disconnected: func(err error) {
			if t.ctx.Err() == nil && !errors.Is(err, socket.ErrClosed) {
				log.Warn("log socket is not connected, it is tried again", "error", err)
			}
		},
		Exception: func(message string) { log.Warn("the coordinator reports an error on a log socket", "message", message) },
	})
	t.run.Go(func() { _ = t.socket.Run(t.ctx) })
	t.Log = tasklog.New(ctx, tasklog.Options{
		Send: func(batch []agentapi.LogEntry) error { return t.socket.Send(t.ctx, entries(batch)) },
		Log:  log,
	})
	return t.Log, t.finish
}

func entries(batch agentapi.List[agentapi.LogEntry]) agentapi.LogMessage {
	return agentapi.LogMessage{LogEntries: &batch}
}

// finish ends the log after its task, and waits until the coordinator has it, for ten minutes at most.
func (t *taskLog) finish() {
	timer := time.AfterFunc(t.delivery, func() { t.cancel(errLogGivenUp) })
	defer timer.Stop()
	defer t.run.Wait()
	defer t.cancel(nil)
	end := t.Close()
	err := t.Wait()
	if err == nil {
		err = t.socket.Send(t.ctx, agentapi.LogMessage{End: &end})
	}
	if err == nil {
		err = t.socket.Close(t.ctx)
	}
	if err != nil {
		t.log.Warn("the log of a task was not delivered completely", "error", err)
	}
}
