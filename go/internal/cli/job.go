package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"

	"hercules/internal/cli/checkout"
	"hercules/internal/coordinator"
	"hercules/internal/wire/agentapi"
)

// newJob describes the job of a checkout.
func newJob(ctx context.Context, source *checkout.Checkout, o *runOptions, inputs map[string]string, platforms []string) coordinator.Job {
	systems := o.systems
	if len(systems) == 0 {
		systems = platforms
	}
	job := coordinator.Job{
		Name:       source.Name,
		Handlers:   o.jobs,
		Attributes: o.attrs,
		CISystems:  systems,
		Source: coordinator.Source{
			Ref: source.Ref,
			Rev: source.Rev,
			Archive: func(ctx context.Context, w io.Writer) error {
				return source.Tarball(ctx, w, o.dirty)
			},
			Metadata: map[string]json.RawMessage{},
		},
		ExtraInputs: func(project string, ref *string) (agentapi.ImmutableInput, error) {
			return extraInput(ctx, inputs, project, ref)
		},
	}
	if job.Source.Rev == "" {
		// An expression that looks at rev should not fail only because nothing is committed yet.
		job.Source.Rev = strings.Repeat("0", 40)
	}
	if flakeJob(ctx, source, o.dirty) {
		job.Flake = true
		git := gitInput(source)
		job.Source.Git = &git
	}
	return job
}

// flakeJob says whether Nix should fetch the source itself, as a flake. Only the commit of a whole repository can be
// fetched that way; files on disk and directories of a repository are unpacked and then found to be a flake.
func flakeJob(ctx context.Context, source *checkout.Checkout, dirty bool) bool {
	if dirty || !source.AtRoot() {
		return false
	}
	return source.Has(ctx, "flake.nix", false) && !source.Has(ctx, "ci.nix", false) && !source.Has(ctx, "nix/ci.nix", false)
}

func gitInput(source *checkout.Checkout) agentapi.ImmutableGitInput {
	name := source.Name
	return agentapi.ImmutableGitInput{
		Rev:     source.Rev,
		Ref:     source.Ref,
		HTTPURL: (&url.URL{Scheme: "file", Path: source.Root}).String(),
		Name:    &name,
	}
}

// extraInput finds another project's checkout among those given with --input.
func extraInput(ctx context.Context, inputs map[string]string, project string, ref *string) (agentapi.ImmutableInput, error) {
	dir, ok := inputs[project]
	if !ok {
		return agentapi.ImmutableInput{}, fmt.Errorf("the job needs the project %s as an input; say where its checkout is with --input %s=DIR", project, project)
	}
	other, err := checkout.Open(ctx, dir)
	if err != nil {
		return agentapi.ImmutableInput{}, fmt.Errorf("--input %s=%s: %w", project, dir, err)
	}
	if !other.AtRoot() || other.Rev == "" {
		return agentapi.ImmutableInput{}, fmt.Errorf("--input %s=%s: not the top directory of a git checkout with a commit", project, dir)
	}
	if ref != nil && *ref != other.Ref {
		return agentapi.ImmutableInput{}, fmt.Errorf("--input %s=%s: the job asks for %s, but %s is checked out", project, dir, *ref, other.Ref)
	}
	git := gitInput(other)
	return agentapi.ImmutableInput{Git: &git}, nil
}

// parsePairs reads NAME=VALUE flags.
func parsePairs(flag string, values []string) (map[string]string, error) {
	pairs := map[string]string{}
	for _, value := range values {
		name, rest, ok := strings.Cut(value, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%s %q: expected NAME=VALUE", flag, value)
		}
		if _, twice := pairs[name]; twice {
			return nil, fmt.Errorf("%s: %s is given twice", flag, name)
		}
		pairs[name] = rest
	}
	return pairs, nil
}
