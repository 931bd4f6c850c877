package agent

import (
	"context"
	"maps"
	"strings"

	"hercules/internal/agent/setup"
	"hercules/internal/nix/daemon"
	"hercules/internal/tasklog"
)

// within is the setup for a task: without the caches that cannot be reached now, and with the others known to Nix.
func (a *agent) within(ctx context.Context, set *setup.Setup, log *tasklog.Log) *setup.Setup {
	log.Hide(set.Hidden()...)
	set = a.reachable(ctx, set, log)
	a.introduce(ctx, set)
	return set
}

// reachable is the setup without the caches that cannot be reached now. Nix would come to the same end, but each of its
// daemon processes retries a host that is not there for some five seconds before it builds.
func (a *agent) reachable(ctx context.Context, set *setup.Setup, log *tasklog.Log) *setup.Setup {
	usable, failed := a.work.reach.Among(ctx, set.Substituters)
	if len(failed) == 0 {
		return set
	}
	for _, f := range failed {
		log.Line(daemon.Warn, "warning: "+f.Err.Error()+"; this task does without it")
	}
	s := *set
	s.Substituters = usable
	// A daemon that does not trust us takes fewer caches than it has, without a word.
	s.Settings = maps.Clone(set.Settings)
	s.Settings["substituters"] = strings.Join(usable, " ")
	return &s
}
