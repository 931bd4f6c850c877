package coordinator

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"hercules/internal/coordinator/agentserver"
	"hercules/internal/coordinator/event"
	"hercules/internal/coordinator/logstore"
	"hercules/internal/coordinator/plan"
	"hercules/internal/coordinator/store"
	"hercules/internal/wire/agentapi"
)

// core carries out what the planner decides. It is the agentserver's Core.
type core Coordinator

var _ agentserver.Core = (*core)(nil)

// taskRun is what the coordinator knows of a task beside the plan.
type taskRun struct {
	drv, evaluation string
	jobs            []string
	begun           time.Time
	log             *logstore.Log
	logEnded        chan struct{} // closed with the log's end
	sawEnd          bool
	// realised: its builder ran
	realised, good bool
	took           int64 // ms
	// lastLog is when entries came; held: they wait for a reader of events
	lastLog time.Time
	held    bool
}

// Apply implements agentserver.Core.
func (c *core) Apply(e plan.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.execute(c.planner.Apply(e))
	}
}

// execute runs with the lock held, so that commands and events go out in the order of the decisions.
func (c *core) execute(commands []plan.Command) {
	now := time.Now()
	events := make([]event.Event, 0, len(commands))
	var finished []plan.FinishJob
	for _, cmd := range commands {
		switch cmd := cmd.(type) {
		case plan.Fact:
			events = append(events, event.Event{Time: now, Job: cmd.Job, Body: c.complete(cmd.Body, now)})
		case plan.StartBuild:
			c.startBuild(cmd)
		case plan.StartEvaluation:
			c.startEvaluation(cmd)
		case plan.CancelTask:
			c.send(cmd.Agent, agentapi.ServicePayload{Cancel: &agentapi.TaskRef{TaskID: cmd.Task}})
		case plan.FinishJob:
			finished = append(finished, cmd)
		}
	}
	if len(events) > 0 {
		c.hub.publish(events...)
	}
	for _, f := range finished {
		c.finishJob(f)
	}
}

// complete adds what the planner can't know: times.
func (c *core) complete(b event.Body, now time.Time) event.Body {
	switch b := b.(type) {
	case event.BuildStarted:
		if t := c.tasks[b.Task]; t != nil && t.begun.IsZero() {
			t.begun = now
		}
	case event.EvaluationStarted:
		if t := c.tasks[b.Task]; t != nil && t.begun.IsZero() {
			t.begun = now
		}
	case event.BuildFinished:
		if t := c.tasks[b.Task]; t != nil {
			t.good = b.Status == event.Succeeded
			t.took = t.duration(now)
			b.DurationMS = t.took
		}
		return b
	case event.EvaluationFinished:
		if t := c.tasks[b.Task]; t != nil {
			t.took = t.duration(now)
			b.DurationMS = t.took
			t.good = !b.Retry && b.Status != event.Cancelled
		}
		return b
	}
	return b
}

func (t *taskRun) duration(now time.Time) int64 {
	if t.begun.IsZero() {
		return 0
	}
	return now.Sub(t.begun).Milliseconds()
}

func (c *core) send(agent agentapi.ID, m agentapi.ServicePayload) {
	if err := c.server.Send(agent, m); err != nil {
		c.log.Error("a message could not be sent", "agent", agent, "error", err)
		if id := taskID(m); id != "" {
			c.wg.Go(func() { c.notSent(id, err) })
		}
	}
}

// notSent ends a task that no agent will hear of, and that has no log therefore. It must be called without the lock.
func (c *core) notSent(id agentapi.ID, err error) {
	c.mu.Lock()
	c.endLog(id)
	c.mu.Unlock()
	c.Apply(plan.TaskFinished{Task: id, Status: exceptional(err)})
}

func taskID(m agentapi.ServicePayload) agentapi.ID {
	switch {
	case m.StartBuild != nil:
		return m.StartBuild.ID
	case m.StartEvaluation != nil:
		return m.StartEvaluation.ID
	}
	return ""
}

func exceptional(err error) agentapi.TaskStatus {
	text := err.Error()
	return agentapi.TaskStatus{Exceptional: &text}
}

// later applies an event that comes up while another is carried out.
func (c *core) later(e plan.Event) { c.wg.Go(func() { c.Apply(e) }) }

// begin records a task before the agent can speak of it, and returns its log token.
func (c *core) begin(id, agent agentapi.ID, t store.Task, logName string) (logToken string, err error) {
	logToken = agentserver.Secret()
	t.ID, t.Start, t.Session, t.LogToken = id, agent, c.sessions[agent], store.HashToken(logToken)
	if err := c.store.AddTask(c.ctx, t); err != nil {
		return "", err
	}
	c.tasks[id] = &taskRun{
		drv: t.Drv, evaluation: t.Evaluation, jobs: t.Jobs, log: c.logs.Create(id, logName), logEnded: make(chan struct{}),
	}
	for _, j := range t.Jobs {
		if r := c.jobs[j]; r != nil {
			r.tasks = append(r.tasks, id)
		}
	}
	return logToken, nil
}

func (c *core) startBuild(cmd plan.StartBuild) {
	token, err := c.begin(cmd.Task, cmd.Agent, store.Task{Drv: cmd.Drv, Jobs: cmd.Jobs}, drvName(cmd.Drv))
	if err != nil {
		c.later(plan.TaskFinished{Task: cmd.Task, Status: exceptional(err)})
		return
	}
	c.newest[cmd.Drv] = cmd.Task
	c.send(cmd.Agent, agentapi.ServicePayload{StartBuild: &agentapi.BuildTask{
		ID: cmd.Task, DerivationPath: cmd.Drv, LogToken: token, InputDerivationOutputPaths: agentapi.List[string](cmd.Inputs),
	}})
}

// drvName is the name of a derivation without directory, hash and suffix.
func drvName(drv string) string {
	_, name, _ := strings.Cut(path.Base(drv), "-")
	return strings.TrimSuffix(name, ".drv")
}

func (c *core) startEvaluation(cmd plan.StartEvaluation) {
	name := "evaluation"
	if cmd.Evaluation != "" {
		name += "-" + cmd.Evaluation
	}
	token, err := c.begin(cmd.Task, cmd.Agent, store.Task{Evaluation: cmd.Evaluation, Jobs: []string{cmd.Job}}, name)
	if err != nil {
		c.later(plan.TaskFinished{Task: cmd.Task, Status: exceptional(err)})
		return
	}
	r := c.jobs[cmd.Job]
	if len(cmd.Inputs) == 0 {
		c.send(cmd.Agent, agentapi.ServicePayload{StartEvaluation: r.task(cmd, token, nil)})
		return
	}
	// Finding out about extra inputs may ask a network.
	c.wg.Go(func() {
		inputs, err := r.resolve(cmd)
		if err != nil {
			c.notSent(cmd.Task, err)
			return
		}
		task := r.task(cmd, token, inputs)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.planner.Live(cmd.Task, cmd.Agent) && !c.closed {
			c.send(cmd.Agent, agentapi.ServicePayload{StartEvaluation: task})
		}
	})
}

// EvalBuild implements agentserver.Core.
func (c *core) EvalBuild(drv string) *agentapi.EvalBuild {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.planner.Status(drv)
}

// Live implements agentserver.Core.
func (c *core) Live(task, start agentapi.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.planner.Live(task, start)
}

// TasksOf implements agentserver.Core.
func (c *core) TasksOf(start agentapi.ID) []agentapi.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.planner.TasksOf(start)
}

// AgentUp implements agentserver.Core.
func (c *core) AgentUp(a agentserver.Agent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.sessions[a.Start] = a.Session.ID
	c.names[a.Start] = a.Info.Hostname
	c.hub.publish(event.Event{Time: time.Now(), Body: event.AgentConnected{
		Agent: a.Info.Hostname, Hostname: a.Info.Hostname, Version: a.Info.AgentVersion, Nix: a.Info.NixVersion,
		Platforms: slices.Clone([]string(a.Info.Platforms)), Tasks: a.Info.ConcurrentTasks,
	}})
	c.execute(c.planner.Apply(plan.AgentUp{
		ID: a.Start, Name: a.Info.Hostname, Platforms: a.Info.Platforms, Features: a.Info.SystemFeatures,
		Slots: int(max(1, min(a.Info.ConcurrentTasks, 1<<20))), Substitutes: len(a.Info.Substituters) > 0,
	}))
}

// AgentDown implements agentserver.Core.
func (c *core) AgentDown(start agentapi.ID, lost bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.hub.publish(event.Event{Time: time.Now(), Body: event.AgentGone{Agent: c.names[start], Lost: lost}})
	// An agent that dies sends no end of its logs.
	for _, id := range c.planner.TasksOf(start) {
		c.endLog(id)
	}
	c.execute(c.planner.Apply(plan.AgentDown{ID: start}))
}

// Log implements agentserver.Core.
func (c *core) Log(ctx context.Context, t store.Task, entries []agentapi.LogEntry) error {
	now := time.Now()
	c.mu.Lock()
	run := c.tasks[t.ID]
	if run != nil {
		run.lastLog = now
	}
	c.mu.Unlock()
	if run == nil {
		return nil // of an earlier coordinator
	}
	fresh, err := run.log.Append(entries)
	if err != nil {
		c.log.Error("a log could not be written", "task", t.ID, "error", err)
		return err
	}
	if run.drv != "" {
		for i := range fresh {
			if drv, ok := logstore.Builds(&fresh[i]); ok && drv == run.drv {
				c.mu.Lock()
				run.realised = true
				c.mu.Unlock()
			}
		}
	}
	if !c.hub.wanted() {
		return nil
	}
	if events := logEvents(t, run.jobs, fresh, now); len(events) > 0 {
		// The entries are written: a reader that is too slow for ctx misses lines, the log does not.
		c.hold(run, true)
		defer c.hold(run, false)
		return c.hub.publishLog(ctx, events)
	}
	return nil
}

// hold notes that the lines of a log may be waiting for a reader.
func (c *core) hold(run *taskRun, held bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	run.held = held
}

func logEvents(t store.Task, jobs []string, entries []agentapi.LogEntry, now time.Time) []event.Event {
	events := make([]event.Event, 0, len(entries))
	for i := range entries {
		e := &entries[i]
		var body event.Body
		if phase, ok := logstore.Phase(e); ok && t.Drv != "" {
			body = event.BuildPhase{Drv: t.Drv, Task: t.ID, Phase: phase}
		} else if line, ok := logstore.Text(e); ok {
			body = event.Log{
				Task: t.ID, Drv: t.Drv, Evaluation: t.Evaluation, Builder: e.Kind == agentapi.LogResult, Level: e.Level, Line: line,
			}
		} else {
			continue
		}
		for _, j := range jobs {
			events = append(events, event.Event{Time: now, Job: j, Body: body})
		}
	}
	return events
}

// LogEnd implements agentserver.Core.
func (c *core) LogEnd(t store.Task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLog(t.ID)
}

func (c *core) endLog(id agentapi.ID) {
	run := c.tasks[id]
	if run == nil || run.sawEnd {
		return
	}
	run.sawEnd = true
	close(run.logEnded)
	if err := run.log.End(); err != nil {
		c.log.Error("a log could not be closed", "task", id, "error", err)
	}
}

// Source implements agentserver.Core.
func (c *core) Source(ctx context.Context, secret string) (string, bool, error) {
	c.mu.Lock()
	s := c.sources[secret]
	c.mu.Unlock()
	if s == nil {
		return "", false, nil
	}
	file, err := s.pack(ctx)
	if err != nil {
		return "", true, err
	}
	return file, true, nil
}
