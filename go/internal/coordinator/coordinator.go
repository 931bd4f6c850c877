// Package coordinator runs jobs: it serves the agent protocol, plans what evaluations ask for, hands out tasks and
// tells observers what happens. `hci run` has one in its own process; it is what hercules-ci-server will grow from.
//
// It ties together the pure decisions (plan), the memory (store), the logs (logstore) and the protocol
// (agentserver), and must not know how an agent does its work.
package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"hercules/internal/coordinator/agentserver"
	"hercules/internal/coordinator/event"
	"hercules/internal/coordinator/logstore"
	"hercules/internal/coordinator/plan"
	"hercules/internal/coordinator/store"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

// Config configures a coordinator. The zero value of everything but Dir is fine.
type Config struct {
	// Dir keeps logs (in logs/) and packed sources (in sources/); it is created.
	Dir string
	// Listen is the address of the HTTP listener, by default a free port on the loopback interface.
	Listen string
	// WaitForAgents keeps builds queued for which no connected agent is fit. By default they fail, which is right
	// where the set of agents does not change.
	WaitForAgents bool
	// LogGrace is how long a finished job waits for the rest of its logs while none of it comes; 10 s.
	LogGrace time.Duration
	// LostAfter is how long a disconnected agent may take to come back; 90 s.
	LostAfter time.Duration
	// Grace is how long an agent that has come back may take to mention a task that it should have; 10 s.
	Grace time.Duration
	// Times of the sockets.
	Times socket.Times
	Log   *slog.Logger
}

// Coordinator is a running coordinator.
type Coordinator struct {
	cfg    Config
	log    *slog.Logger
	url    string
	join   string
	store  store.Store
	logs   *logstore.Store
	server *agentserver.Server
	http   *http.Server
	hub    *hub
	ctx    context.Context //nolint:containedctx // the life of the coordinator
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // also the order of events and of messages to agents
	closed   bool
	planner  *plan.Planner
	jobs     map[string]*jobRun
	tasks    map[agentapi.ID]*taskRun
	newest   map[string]agentapi.ID // task of the newest build, by derivation
	sources  map[string]*source     // by secret
	sessions map[agentapi.ID]agentapi.ID
	names    map[agentapi.ID]string
}

// Start listens and serves until Close. ctx only limits the start.
func Start(ctx context.Context, cfg Config) (*Coordinator, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.LogGrace <= 0 {
		cfg.LogGrace = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	logs, err := logstore.Open(filepath.Join(cfg.Dir, "logs"))
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listening for agents: %w", err)
	}
	c := &Coordinator{
		cfg: cfg, log: cfg.Log, url: "http://" + l.Addr().String(), store: store.NewMemory(), logs: logs, hub: newHub(),
		planner: plan.New(plan.Options{NewID: agentapi.NewID, FailUnfit: !cfg.WaitForAgents}),
		jobs:    map[string]*jobRun{}, tasks: map[agentapi.ID]*taskRun{}, newest: map[string]agentapi.ID{},
		sources: map[string]*source{}, sessions: map[agentapi.ID]agentapi.ID{}, names: map[agentapi.ID]string{},
	}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	tokens := agentserver.NewTokens()
	c.join = tokens.NewJoin()
	c.server = agentserver.New(agentserver.Config{
		BaseURL: c.url, Store: c.store, Core: (*core)(c), Tokens: tokens, Log: cfg.Log, LostAfter: cfg.LostAfter, Grace: cfg.Grace, Times: cfg.Times,
	})
	c.http = &http.Server{
		Handler:           c.server,
		ReadHeaderTimeout: 30 * time.Second, // nobody needs longer to ask
		IdleTimeout:       5 * time.Minute,  // agents keep connections for the next report
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	c.wg.Go(func() {
		if err := c.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("the listener for agents broke", "error", err)
		}
	})
	return c, nil
}

// URL is the apiBaseUrl for agents.
func (c *Coordinator) URL() string { return c.url }

// JoinToken is a cluster join token: what an agent's cluster-join-token.key holds.
func (c *Coordinator) JoinToken() string { return c.join }

// jobRun is a job beside its plan.
type jobRun struct {
	id    string
	job   Job
	urls  map[string]string // of sources, by identifier
	tasks []agentapi.ID
	done  chan struct{}
	// result is there when done is closed
	result *Result
}

// Submit starts a job and returns its identifier. It starts as soon as there is an agent.
func (c *Coordinator) Submit(_ context.Context, job Job) (string, error) {
	filter, err := plan.ParseFilter(job.Attributes)
	if err != nil {
		return "", err
	}
	archives := map[string]Archive{}
	for name, a := range job.OtherInputs {
		archives[name] = a
	}
	switch {
	case job.Flake && job.Source.Git == nil:
		return "", errors.New("a flake job needs a git source")
	case !job.Flake && job.Source.Archive == nil:
		return "", errors.New("a job needs an archive of its source")
	case !job.Flake:
		archives["src"] = job.Source.Archive
	}
	r := &jobRun{id: string(agentapi.NewID()), job: job, urls: map[string]string{}, done: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return "", errClosed
	}
	for name, a := range archives {
		secret := agentserver.Secret()
		c.sources[secret] = &source{dir: filepath.Join(c.cfg.Dir, "sources"), secret: secret, archive: a, ctx: c.ctx}
		r.urls[name] = c.url + "/sources/" + secret + ".tar.gz"
	}
	c.jobs[r.id] = r
	c.hub.publish(event.Event{Time: time.Now(), Job: r.id, Body: event.JobStarted{Name: job.Name, Ref: job.Source.Ref, Rev: job.Source.Rev}})
	(*core)(c).execute(c.planner.Apply(plan.JobSubmitted{Job: r.id, Handlers: job.Handlers, Filter: filter}))
	return r.id, nil
}

var errClosed = errors.New("the coordinator is closed")

// metadata is inputMetadata (protocol 5.1): ref and rev are required for archives, name gives the directory its name.
func (r *jobRun) metadata() agentapi.Map[string, agentapi.Map[string, json.RawMessage]] {
	src := agentapi.Map[string, json.RawMessage]{}
	for k, v := range map[string]string{"ref": r.job.Source.Ref, "rev": r.job.Source.Rev, "name": r.job.Name} {
		if v == "" && k == "name" {
			continue
		}
		b, err := json.Marshal(v)
		if err == nil {
			src[k] = b
		}
	}
	for k, v := range r.job.Source.Metadata {
		src[k] = v
	}
	return agentapi.Map[string, agentapi.Map[string, json.RawMessage]]{"src": src}
}

// Cancel stops a job; it ends with status Cancelled. Unknown and finished jobs are left alone.
func (c *Coordinator) Cancel(job string) { (*core)(c).Apply(plan.JobCancelled{Job: job}) }

// Subscribe streams everything that happens from now on, in order, until stop is called, the coordinator is closed or
// ctx ends; then the channel is closed. State events are never dropped and never wait for the reader; log lines wait
// when the reader is far behind, which slows the agent's log down and nothing else. Whoever subscribes must read or
// stop.
func (c *Coordinator) Subscribe(ctx context.Context) (events <-chan event.Event, stop func()) {
	return c.hub.subscribe(ctx)
}

// finishJob waits for the rest of the job's logs and then tells that the job is over. It has the lock.
func (c *core) finishJob(f plan.FinishJob) {
	r := c.jobs[f.Job]
	var logs []*taskRun
	for _, id := range r.tasks {
		// Others are cancelled or lost with their agent: theirs may never end.
		if t := c.tasks[id]; t.good && !t.sawEnd || t.drv != "" && !t.sawEnd && failedBuild(f.Result.Failures, id) {
			logs = append(logs, t)
		}
	}
	c.wg.Go(func() {
		grace := time.NewTimer(c.cfg.LogGrace)
		defer grace.Stop()
		for i := 0; i < len(logs); {
			select {
			case <-logs[i].logEnded:
				i++
				continue
			case <-c.ctx.Done():
			case <-grace.C:
				if c.logsMove(logs[i:]) {
					grace.Reset(c.cfg.LogGrace)
					continue
				}
				c.log.Warn("logs have not ended in time", "job", f.Job, "logs", len(logs)-i)
			}
			break
		}
		c.conclude(r, f)
	})
}

// logsMove tells whether lines of these logs have come of late, or would have if a reader were quicker.
func (c *core) logsMove(logs []*taskRun) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range logs {
		if t.held || time.Since(t.lastLog) < c.cfg.LogGrace {
			return true
		}
	}
	return false
}

func failedBuild(failures []event.BuildFinished, task agentapi.ID) bool {
	for i := range failures {
		if failures[i].Task == task {
			return true
		}
	}
	return false
}

func (c *core) conclude(r *jobRun, f plan.FinishJob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := f.Result
	for _, id := range r.tasks {
		if t := c.tasks[id]; t.drv != "" && t.good && t.realised {
			res.Counts.Realised++
		}
	}
	for i := range res.Failures {
		if t := c.tasks[res.Failures[i].Task]; t != nil {
			res.Failures[i].DurationMS = t.took
		}
	}
	for i := range res.EvaluationFailures {
		if t := c.tasks[res.EvaluationFailures[i].Task]; t != nil {
			res.EvaluationFailures[i].DurationMS = t.took
		}
	}
	now := time.Now()
	r.result = &Result{
		Job: r.id, Status: res.Status, Counts: res.Counts, Attributes: res.Attributes, Failures: res.Failures,
		Messages: res.Messages, EvaluationFailures: res.EvaluationFailures,
	}
	if b, err := json.Marshal(r.result); err != nil {
		c.log.Error("a result could not be encoded", "job", r.id, "error", err)
	} else if err := c.store.SetResult(c.ctx, r.id, b); err != nil {
		c.log.Error("a result could not be kept", "job", r.id, "error", err)
	}
	c.hub.publish(event.Event{Time: now, Job: r.id, Body: event.JobFinished{Status: res.Status, Counts: res.Counts}})
	close(r.done)
}

// Wait returns the result of a job when it is finished and its logs have ended (or were given up).
func (c *Coordinator) Wait(ctx context.Context, job string) (*Result, error) {
	c.mu.Lock()
	r := c.jobs[job]
	c.mu.Unlock()
	if r == nil {
		return nil, fmt.Errorf("job %s: %w", job, store.ErrNotFound)
	}
	select {
	case <-r.done:
		return r.result, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.ctx.Done():
		select {
		case <-r.done:
			return r.result, nil
		default:
			return nil, errClosed
		}
	}
}

// newestLog is the log of the newest build of a derivation, nil when there is none.
func (c *Coordinator) newestLog(drv string) *logstore.Log {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.tasks[c.newest[drv]]; t != nil {
		return t.log
	}
	return nil
}

// OpenLog reads the log of the newest build of a derivation as plain text; follow keeps reading until the log ends.
// The error is fs.ErrNotExist when there was no build.
func (c *Coordinator) OpenLog(ctx context.Context, drv string, follow bool) (io.ReadCloser, error) {
	l := c.newestLog(drv)
	if l == nil {
		return nil, fmt.Errorf("log of %s: %w", drv, fs.ErrNotExist)
	}
	return l.Open(ctx, follow), nil
}

// LogPath is the file with the plain text log of the newest build of a derivation, "" when there is none. The file
// is there once the build has logged something.
func (c *Coordinator) LogPath(drv string) string {
	if l := c.newestLog(drv); l != nil {
		return l.Path()
	}
	return ""
}

// TaskLogPath is LogPath for the log of a task, for example of an evaluation.
func (c *Coordinator) TaskLogPath(task agentapi.ID) string {
	if l := c.logs.Log(task); l != nil {
		return l.Path()
	}
	return ""
}

// Close stops serving and forgets everything but the logs. Agents should be stopped before.
func (c *Coordinator) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.hub.close()
	c.server.Close()
	err := c.http.Close()
	c.wg.Wait()
	return errors.Join(err, c.logs.Close())
}
