// Package evaluate does evaluation tasks: it fetches the sources, lets package traverse evaluate them, and reports
// what that finds, with everything the coordinator needs to plan builds.
//
// A task is a function of its description and of [Deps]. The package knows no socket of the agent and no HTTP API: what
// it has to say goes to functions in Deps.
package evaluate

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"hercules/internal/evaluate/report"
	"hercules/internal/evaluate/source"
	"hercules/internal/evaluate/traverse"
	"hercules/internal/nix/daemon"
	"hercules/internal/wire/agentapi"
)

// Deps are what an evaluation needs from its surroundings.
type Deps struct {
	// PostEvents delivers events to the coordinator; it retries by itself.
	PostEvents report.Poster
	// BuildStatus asks the coordinator about a build that the evaluation waits for; nil while none is planned. It
	// retries by itself.
	BuildStatus func(ctx context.Context, drv string) (*agentapi.EvalBuild, error)
	// Log takes the evaluation's log. May be nil. One call at a time.
	Log func(daemon.Event)
	// Slog takes what operators may want to know. May be nil.
	Slog *slog.Logger

	// Endpoint of the Nix store.
	Endpoint daemon.Endpoint
	// DaemonSettings are the effective Nix settings of the user, as a Nix client would send them.
	DaemonSettings map[string]string
	// NixProgram is the nix program; empty means "nix" from PATH.
	NixProgram string
	// NixSettings override nix.conf for the evaluators: the agent's nixSettings, substituters and their keys.
	NixSettings map[string]string
	// Env is the environment of the evaluators before this package changes it; nil means the process's own.
	Env []string
	// NetrcFile is the operator's netrc, for example /etc/nix/netrc; it need not exist. NetrcLines follow it.
	NetrcFile  string
	NetrcLines []string
	// AllowInsecureBuiltinFetchers allows expressions to fetch over http:// and git://.
	AllowInsecureBuiltinFetchers bool

	// Caches are asked for what they have.
	Caches []report.Cache
	// Pusher gets derivations into the caches that the agent pushes to; nil when there are none.
	Pusher report.Pusher

	// WorkDirectory of the agent.
	WorkDirectory string
	// HTTPClient fetches sources. It must not add credentials. nil means http.DefaultClient.
	HTTPClient *http.Client
	// APIBaseURL is the normalised URL of the coordinator.
	APIBaseURL string

	Limits       traverse.Limits
	SourceLimits source.Limits

	// PollInterval, BatchDelay and FetchRetry are those of the protocol when zero.
	PollInterval, BatchDelay time.Duration
	FetchRetry               []time.Duration
	// MaxEvents is report.MaxEvents when zero.
	MaxEvents int
}

// ErrCancelled is the error of an evaluation that was cancelled without a cause of its own.
var ErrCancelled = errors.New("the evaluation was cancelled")

// Run does an evaluation. The status is always set; the error says for the agent's own log why it is Exceptional.
// Mistakes in the repository are events, and the status is Successful: agent behaviour, section 3.10.
//
// When it returns, all of its processes have ended and its files are gone.
func Run(ctx context.Context, task *agentapi.EvaluateTask, deps Deps) (status agentapi.TaskStatus, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &report.PanicError{Value: v, Stack: debug.Stack()}
			status = exceptional(explain(err))
		}
	}()
	err = newRun(task, deps).run(ctx)
	switch {
	case err == nil:
		return agentapi.TaskStatus{Successful: &agentapi.Unit{}}, nil
	case ctx.Err() != nil:
		cause := context.Cause(ctx)
		if errors.Is(cause, context.Canceled) {
			cause = ErrCancelled
		}
		return exceptional(cause.Error()), cause
	}
	return exceptional(explain(err)), err
}

// explain is what people are told of an error.
func explain(err error) string {
	if errors.Is(err, report.ErrLimit) {
		return report.ErrLimit.Error()
	}
	if _, ok := errors.AsType[*report.PanicError](err); ok {
		return "an error in the agent itself; its log says more"
	}
	return err.Error()
}

func exceptional(text string) agentapi.TaskStatus { return agentapi.TaskStatus{Exceptional: &text} }

// Sweep removes what evaluations of an earlier run of the agent left in its work directory. Call it at start, before
// any task.
func Sweep(workDirectory string) (removed []string, err error) {
	removed, err = source.Sweep(workDirectory)
	netrcs, globErr := filepath.Glob(filepath.Join(workDirectory, secureDir, netrcPrefix+"*"+netrcSuffix))
	errs := []error{err, globErr}
	for _, f := range netrcs {
		if err := os.Remove(f); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, f)
	}
	return removed, errors.Join(errs...)
}

// run is one evaluation.
type run struct {
	task *agentapi.EvaluateTask
	deps Deps

	logMu sync.Mutex
	dir   string // its work directory
	// started: the sources are there, so that what goes wrong is said in the events.
	started bool

	events   *report.Collector
	planner  *report.Planner
	realiser *report.Realiser
}

func newRun(task *agentapi.EvaluateTask, deps Deps) *run {
	if deps.Slog == nil {
		deps.Slog = slog.New(slog.DiscardHandler)
	}
	return &run{task: task, deps: deps}
}

func (r *run) run(ctx context.Context) (err error) {
	if r.dir, err = source.NewWorkDir(r.deps.WorkDirectory); err != nil {
		return err
	}
	defer func() {
		if rmErr := source.RemoveAll(r.dir); rmErr != nil {
			r.deps.Slog.Warn("evaluation left files behind", "path", r.dir, "error", rmErr)
		}
	}()
	taskCtx := ctx
	ctx, fail := context.WithCancelCause(taskCtx)
	defer fail(nil)
	r.events = report.NewCollector(taskCtx, report.CollectorConfig{
		Post: r.deps.PostEvents, Delay: r.deps.BatchDelay, MaxEvents: r.deps.MaxEvents, Contact: r.deps.APIBaseURL, Fail: fail,
	})
	err = r.evaluate(ctx, fail)
	if cause := context.Cause(ctx); cause != nil {
		err = cause // Of all that fails when the evaluation is ended, only the reason for its end is of interest.
	}
	var project *source.ProjectError
	if errors.As(err, &project) {
		err = r.message(project.Text)
	} else if err != nil && r.started && !told(err) && taskCtx.Err() == nil {
		if msgErr := r.message("The evaluation could not be finished: " + explain(err)); msgErr != nil {
			err = errors.Join(err, msgErr)
		}
	}
	// What was found before a failure is still reported.
	if closeErr := r.events.Close(taskCtx); err == nil {
		err = closeErr
	}
	return err
}

// told: the message of a limit is among the events already.
func told(err error) bool {
	return errors.Is(err, report.ErrLimit) || errors.Is(err, traverse.ErrJobTime)
}

func (r *run) message(text string) error {
	err := r.events.Emit(agentapi.EvaluateEvent{Message: &agentapi.Message{Typ: agentapi.ErrorMessage, Message: text}})
	if errors.Is(err, report.ErrLimit) {
		return nil
	}
	return err
}

// evaluate does everything between the work directory and the last event.
func (r *run) evaluate(ctx context.Context, fail func(error)) (err error) {
	job, err := r.job(ctx)
	if err != nil {
		return err
	}
	r.started = true
	netrc, err := r.writeNetrc()
	if err != nil {
		return err
	}
	defer netrc.remove()
	store := newStore(r.deps.Endpoint, daemon.Options{Settings: r.deps.DaemonSettings, Verbosity: daemon.Info, Log: r.log})
	defer store.close()
	writer := daemon.NewWriter(r.deps.Endpoint, store.options, r.deps.Slog)
	defer func() { _ = writer.Close() }()
	sockets, removeSockets, err := socketDir(r.dir)
	if err != nil {
		return err
	}
	defer removeSockets()

	// Planning and builds end when this function does, and before its events are closed.
	inner, cancel := context.WithCancelCause(ctx)
	r.planner = report.NewPlanner(inner, report.PlannerConfig{
		Read: store.readDerivation, Events: r.events, Caches: r.deps.Caches, Pusher: r.deps.Pusher, Warn: r.warn, Fail: fail,
	})
	r.realiser = report.NewRealiser(inner, report.RealiserConfig{
		Events: r.events, Planner: r.planner, Read: store.readDerivation, Store: store, BuildStatus: r.deps.BuildStatus, Poll: r.deps.PollInterval, Fail: fail,
	})
	defer func() {
		if err == nil {
			err = r.planner.Finish()
		}
		cancel(nil)
		_ = r.planner.Finish()
		r.realiser.Wait()
	}()

	return traverse.Walk(ctx, job, traverse.Deps{
		Evaluator:  r.evaluator(job, netrc),
		Limits:     r.deps.Limits,
		StoreRoot:  r.deps.Endpoint.Root,
		Emit:       r.emit,
		Realise:    r.realise,
		StartProxy: r.proxies(sockets, writer),
		Flush:      writer.Flush,
		Log:        r.log,
		Slog:       r.deps.Slog,
	})
}

// emit takes an event of the traversal and has its derivation planned, without waiting for that.
func (r *run) emit(_ context.Context, ev agentapi.EvaluateEvent) error {
	if err := r.events.Emit(ev); err != nil {
		return err
	}
	switch {
	case ev.Attribute != nil && ev.Attribute.Typ == agentapi.DependenciesOnly:
		r.planner.Add(ev.Attribute.DerivationPath, report.Inputs)
	case ev.Attribute != nil:
		r.planner.Add(ev.Attribute.DerivationPath, report.Whole)
	case ev.AttributeEffect != nil:
		r.planner.Add(ev.AttributeEffect.DerivationPath, report.Inputs)
	}
	return nil
}

func (r *run) realise(ctx context.Context, p daemon.DerivedPath, _ bool) error {
	err := r.realiser.Realise(ctx, p)
	var build *report.BuildError
	if errors.As(err, &build) {
		return &traverse.BuildError{Derivation: build.Derivation, Reason: build.Reason}
	}
	return err
}

func (r *run) log(e daemon.Event) {
	if r.deps.Log == nil {
		return
	}
	r.logMu.Lock()
	defer r.logMu.Unlock()
	r.deps.Log(e)
}

func (r *run) warn(text string) {
	r.log(daemon.Event{Kind: daemon.EventMessage, Level: daemon.Warn, Text: "warning: " + text})
	r.deps.Slog.Warn("evaluation", "task", string(r.task.ID), "warning", strings.TrimSpace(text))
}
