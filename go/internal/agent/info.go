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

// agentInfo describes this agent to the coordinator.
func (a *agent) agentInfo(n nixInfo) agentapi.AgentInfo {
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
	substituters := agentapi.List[string]{}
	for _, s := range a.substituters() {
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
		CachixPushCaches:         a.caches.PushCaches(formats.KindCachixCache),
		PushCaches:               a.caches.PushCaches(),
		Substituters:             substituters,
		ConcurrentTasks:          int64(a.cfg.ConcurrentTasks),
		Labels:                   labels,
	}
}

// substituters are where Nix may get paths from: agent-behaviour 5.3.
func (a *agent) substituters() []string {
	var ours, cachix []string
	for _, c := range a.caches.Caches {
		if c.Kind == formats.KindNixCache {
			ours = append(ours, c.StoreURI)
		} else {
			cachix = append(cachix, "https://"+c.Name+".cachix.org")
		}
	}
	return unique(slices.Concat(ours, a.nix.Substituters(), cachix))
}

func (a *agent) publicKeys() []string {
	var ours, cachix []string
	for _, c := range a.caches.Caches {
		if c.Kind == formats.KindNixCache {
			ours = append(ours, c.PublicKeys...)
		} else {
			cachix = append(cachix, c.PublicKeys...)
		}
	}
	return unique(slices.Concat(ours, a.nix.TrustedPublicKeys(), cachix))
}

// unique keeps the first of equal ones. A slash at the end makes no difference to Nix.
func unique(list []string) []string {
	seen := map[string]bool{}
	out := []string{}
	for _, s := range list {
		if key := strings.TrimRight(s, "/"); s != "" && !seen[key] {
			seen[key] = true
			out = append(out, s)
		}
	}
	return out
}
