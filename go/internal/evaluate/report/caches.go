package report

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/nix-community/go-nix/pkg/nixbase32"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/substituter"
	"hercules/internal/wire/agentapi"
)

// answer asks every cache for all outputs at once and emits the answers.
func (p *Planner) answer(ctx context.Context, questions []question) error {
	var paths []string
	seen := make(map[string]bool, len(questions))
	for _, q := range questions {
		if path := q.output.path; path != "" && !seen[path] {
			seen[path] = true
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 || len(p.cfg.Caches) == 0 {
		return nil
	}
	answers := make([]map[string]*daemon.PathInfo, len(p.cfg.Caches))
	errs := make([]error, len(p.cfg.Caches))
	answered := make([]bool, len(p.cfg.Caches))
	var wg sync.WaitGroup
	for i, c := range p.cfg.Caches {
		if answered[i] = p.failures[i] < giveUpAfter; answered[i] {
			wg.Go(func() { answers[i], errs[i] = c.Query(ctx, paths) })
		}
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for i, err := range errs {
		if err == nil {
			if answered[i] {
				p.failures[i] = 0
			}
			continue
		}
		// A cache that is down makes builds, not errors.
		answered[i] = false
		text := fmt.Sprintf("the binary cache %s does not answer, so what it has may be built again: %v", publicURI(p.cfg.Caches[i].URI()), err)
		if _, ok := errors.AsType[*substituter.UnreachableError](err); ok {
			p.failures[i] = giveUpAfter - 1
		}
		if p.failures[i]++; p.failures[i] == giveUpAfter {
			text += "; it is not asked again in this evaluation"
		}
		p.cfg.Warn(text)
	}
	var events []agentapi.EvaluateEvent
	for _, q := range questions {
		if q.output.path == "" {
			continue
		}
		for i, c := range p.cfg.Caches {
			if !answered[i] {
				continue
			}
			r := &agentapi.SubstitutionQueryResult{StoreURI: publicURI(c.URI()), Derivation: q.node.path, OutputName: q.output.name}
			if info := answers[i][q.output.path]; info != nil {
				q.output.have = true
				r.OutputInfo = outputInfo(q, info)
			}
			events = append(events, agentapi.EvaluateEvent{SubstitutionQueryResult: r})
		}
	}
	return p.cfg.Events.EmitBulk(events...)
}

func outputInfo(q question, info *daemon.PathInfo) *agentapi.OutputInfo {
	refs := make(agentapi.List[string], len(info.References))
	for i, r := range info.References {
		refs[i] = r[strings.LastIndexByte(r, '/')+1:]
	}
	deriver := info.Deriver
	if deriver == "" {
		deriver = q.node.path
	}
	return &agentapi.OutputInfo{
		Deriver: deriver, Name: q.output.name, Path: q.output.path,
		Hash: "sha256:" + nixbase32.EncodeToString(info.NarHash), Size: int64(info.NarSize), References: &refs, //nolint:gosec // sizes of NARs fit
	}
}

// publicURI is a store's URI without credentials.
func publicURI(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || u.User == nil {
		return uri
	}
	u.User = nil
	return u.String()
}
