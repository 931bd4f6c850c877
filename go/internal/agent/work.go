package agent

import (
	"context"
	"errors"
	"net/http"

	"hercules/internal/agent/setup"
	"hercules/internal/build"
	"hercules/internal/evaluate"
	"hercules/internal/evaluate/report"
	"hercules/internal/evaluate/traverse"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/substituter"
	"hercules/internal/tasklog"
	"hercules/internal/wire/agentapi"
)

// work is what tasks have in common.
type work struct {
	verbosity daemon.Verbosity
	caches    *http.Client // shared, for its connections
	reach     *substituter.Reach
	sources   *http.Client
}

var verbosities = map[string]daemon.Verbosity{
	"Error": daemon.Error, "Warn": daemon.Warn, "Notice": daemon.Notice, "Info": daemon.Info,
	"Talkative": daemon.Talkative, "Chatty": daemon.Chatty, "Debug": daemon.Debug, "Vomit": daemon.Vomit,
}

func (a *agent) prepareWork() work {
	w := work{
		verbosity: max(daemon.Info, verbosities[a.cfg.NixVerbosity]),
		caches:    &http.Client{Transport: cacheTransport()},
	}
	w.reach = substituter.NewReach(substituter.Options{Client: w.caches})
	if a.opt.Transport != nil {
		w.sources = &http.Client{Transport: a.opt.Transport}
	}
	return w
}

func cacheTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 32
	return t
}

func (a *agent) build(t *agentapi.BuildTask) job {
	return job{
		id: t.ID, kind: building, logToken: t.LogToken, attrs: []any{"drv", t.DerivationPath},
		run: func(ctx context.Context, log *tasklog.Log) (agentapi.TaskStatus, error) {
			set, release := a.setups.Take()
			defer release()
			set = a.within(ctx, set, log)
			status, err := build.Run(ctx, t, build.Deps{
				Conns:           a.conns,
				Settings:        set.Settings,
				Verbosity:       a.work.verbosity,
				Trusted:         a.cfg.NixUserIsTrusted,
				RemotePlatforms: a.cfg.RemotePlatformsWithSameFeatures,
				Fetch: build.Caches{
					Program: a.opt.NixProgram, Env: a.opt.Env, Settings: set.ProgramSettings(), URIs: set.Substituters,
				}.Fetch,
				Log: log,
				Post: func(ctx context.Context, events []agentapi.BuildEvent) error {
					return a.api.PostBuildEvents(ctx, t.ID, events)
				},
				Pusher: outputPusher(set),
				Logger: a.log.With("task", t.ID),
			})
			return set.ShownStatus(status), err
		},
	}
}

func (a *agent) evaluation(t *agentapi.EvaluateTask) job {
	return job{
		id: t.ID, kind: evaluation, logToken: t.LogToken, attrs: sourceAttrs(t),
		run: func(ctx context.Context, log *tasklog.Log) (agentapi.TaskStatus, error) {
			set, release := a.setups.Take()
			defer release()
			set = a.within(ctx, set, log)
			caches, closeCaches := a.openCaches(ctx, set, log)
			defer closeCaches()
			status, err := evaluate.Run(ctx, t, evaluate.Deps{
				PostEvents: func(ctx context.Context, events []agentapi.EvaluateEvent) error {
					return a.api.PostEvaluateEvents(ctx, t.ID, set.ShownEvents(events))
				},
				BuildStatus:                  a.api.EvalBuild,
				Log:                          log.Event,
				Slog:                         a.log.With("task", t.ID),
				Endpoint:                     a.store.Endpoint,
				DaemonSettings:               set.Settings,
				NixProgram:                   a.opt.NixProgram,
				NixSettings:                  set.Evaluator,
				Env:                          a.opt.Env,
				NetrcFile:                    set.Netrc,
				AllowInsecureBuiltinFetchers: a.cfg.AllowInsecureBuiltinFetchers,
				Caches:                       caches,
				Pusher:                       derivationPusher(set),
				WorkDirectory:                a.cfg.WorkDirectory,
				HTTPClient:                   a.work.sources,
				APIBaseURL:                   a.cfg.APIBaseURL,
				Limits: traverse.Limits{
					Workers:       a.cfg.EvaluationWorkers,
					Memory:        uint64(max(0, a.cfg.EvaluationMemory())),
					AttributeTime: a.cfg.AttributeTimeout(),
					JobTime:       a.cfg.EvaluationTimeout(),
				},
				PollInterval: a.opt.Times.Poll,
				BatchDelay:   a.opt.Times.Batch,
			})
			if status.Exceptional != nil && ctx.Err() == nil {
				log.Line(daemon.Error, *status.Exceptional)
			}
			return set.ShownStatus(status), err
		},
	}
}

// openCaches opens the substituters for one evaluation: what a cache says is remembered until it ends.
func (a *agent) openCaches(ctx context.Context, set *setup.Setup, log *tasklog.Log) (caches []report.Cache, closeAll func()) {
	var stores []substituter.Store
	for _, uri := range set.Substituters {
		s, err := substituter.Open(ctx, uri, substituter.Options{
			Client: a.work.caches, Netrc: set.Netrc, Nix: a.program("nix-daemon"), Env: a.opt.Env, Settings: set.Settings,
		})
		if err != nil {
			log.Line(daemon.Warn, "warning: "+err.Error())
			continue
		}
		stores = append(stores, s)
		caches = append(caches, s)
	}
	return caches, func() {
		for _, s := range stores {
			if err := s.Close(); err != nil {
				a.log.Debug("closing a cache", "error", err)
			}
		}
	}
}

// sourceAttrs say for the agent's own log what is evaluated.
func sourceAttrs(t *agentapi.EvaluateTask) []any {
	if g := t.Inputs["src"].Git; g != nil {
		attrs := []any{"rev", g.Rev}
		if g.WebURL != nil {
			attrs = append(attrs, "source", *g.WebURL)
		}
		return attrs
	}
	return nil
}

var errEffects = errors.New("effects are not supported by this version of the agent")

func (a *agent) effect(t *agentapi.EffectTask) job {
	return job{
		id: t.ID, kind: effect, logToken: t.LogToken, attrs: []any{"drv", t.DerivationPath},
		run: func(_ context.Context, log *tasklog.Log) (agentapi.TaskStatus, error) {
			log.Line(daemon.Error, errEffects.Error())
			return agentapi.TaskStatus{}, errEffects
		},
	}
}
