package agent

import (
	"encoding/json"
	"os"
	"slices"
	"strings"

	"hercules/internal/formats"
	"hercules/internal/version"
	"hercules/internal/wire/agentapi"
)

// censored stands for a substituter with a user or password in it (protocol 4.2).
const censored = "<URI censored; might contain secret>"

// reloadError is a label of the agent's own, if the operator has none of that name: what is wrong with the files that
// it should have taken over. The protocol has no field for it. Without trouble the label is not there.
const reloadError = "reloadError"

// agentInfo describes this agent to the coordinator, as it is now.
func (a *agent) agentInfo() agentapi.AgentInfo {
	n := a.nixInfo
	set, problem := a.setups.State()
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
		a.log.Warn("this machine does not know its name", "error", err)
	}
	platforms := slices.Sorted(slices.Values(a.nix.Platforms()))
	for _, p := range a.cfg.RemotePlatformsWithSameFeatures {
		if !slices.Contains(platforms, p) {
			platforms = append(platforms, p)
		}
	}
	labels := agentapi.Map[string, json.RawMessage]{}
	for name, value := range a.cfg.Labels {
		labels[name] = value
	}
	if _, taken := labels[reloadError]; problem != "" && !taken {
		labels[reloadError], _ = json.Marshal(problem)
	}
	substituters := agentapi.List[string]{}
	for _, s := range set.Substituters {
		if strings.Contains(s, "@") {
			s = censored
		}
		substituters = append(substituters, s)
	}
	return agentapi.AgentInfo{
		Hostname:                 hostname,
		AgentVersion:             version.Agent(),
		NixVersion:               a.nix.Version().Text,
		NixClientProtocolVersion: int64(n.client),
		NixDaemonProtocolVersion: int64(n.daemon),
		Platforms:                platforms,
		SystemFeatures:           slices.AppendSeq(agentapi.List[string]{}, slices.Values(slices.Sorted(slices.Values(a.nix.SystemFeatures())))),
		CachixPushCaches:         set.Caches.PushCaches(formats.KindCachixCache),
		PushCaches:               set.Caches.PushCaches(),
		Substituters:             substituters,
		ConcurrentTasks:          int64(a.cfg.ConcurrentTasks),
		Labels:                   labels,
	}
}
