package evaluate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hercules/internal/evaluate/source"
	"hercules/internal/evaluate/traverse"
	"hercules/internal/nix/evaluator"
	"hercules/internal/wire/agentapi"
)

const srcInput = "src"

// job gets the sources and says what is to be evaluated.
func (r *run) job(ctx context.Context) (traverse.Job, error) {
	src, ok := r.task.Inputs[srcInput]
	if !ok {
		return traverse.Job{}, errors.New("the task does not say what its source is (inputs.src)")
	}
	job := traverse.Job{
		IsFlakeJob: r.task.IsFlakeJob,
		Source:     gitSource(src, r.task.InputMetadata[srcInput]),
		Selector:   r.task.Selector,
		APIBaseURL: r.deps.APIBaseURL,
	}
	if s := r.task.CISystems; s != nil {
		job.CISystems = slices.AppendSeq([]string{}, maps.Keys(*s)) // not nil: no system at all is a restriction
		slices.Sort(job.CISystems)
	}
	if r.task.IsFlakeJob {
		return r.flakeJob(job, src)
	}
	return r.fileJob(ctx, job)
}

// flakeJob: the evaluator fetches the source itself.
func (r *run) flakeJob(job traverse.Job, src agentapi.ImmutableInput) (traverse.Job, error) {
	if src.Git == nil {
		return job, errors.New("the source of a flake job must be a git commit, and the task has another kind of input")
	}
	job.Flake = traverse.GitFlakeRef(src.Git.HTTPURL, src.Git.Ref, src.Git.Rev)
	job.Directory = filepath.Join(r.dir, "flake")
	return job, os.Mkdir(job.Directory, 0o700)
}

func (r *run) fileJob(ctx context.Context, job traverse.Job) (traverse.Job, error) {
	if _, ok := r.task.OtherInputs[srcInput]; !ok {
		return job, errors.New("the task does not say where its source is (otherInputs.src)")
	}
	var inputs []source.Input
	for _, name := range slices.Sorted(maps.Keys(r.task.OtherInputs)) {
		in := source.Input{Name: name, URL: r.task.OtherInputs[name]}
		_ = json.Unmarshal(r.task.InputMetadata[name]["name"], &in.Directory) // Anything but a string is not used.
		inputs = append(inputs, in)
	}
	fetcher := source.Fetcher{Client: r.deps.HTTPClient, Limits: r.deps.SourceLimits, Retry: r.deps.FetchRetry, Note: r.warn}
	where, err := fetcher.FetchAll(ctx, r.dir, inputs)
	if err != nil {
		return job, fmt.Errorf("fetching the sources: %w", err)
	}
	project := where[srcInput]
	job.Directory, job.Source.OutPath = project, project
	for _, in := range inputs {
		job.AllowedPaths = append(job.AllowedPaths, where[in.Name])
	}
	for _, e := range r.task.NixPath {
		path, err := subPath(where, e.Value)
		if err != nil {
			return job, fmt.Errorf("the task's nixPath: %w", err)
		}
		sp := evaluator.SearchPath{Path: path}
		if e.Prefix != nil {
			sp.Prefix = *e.Prefix
		}
		job.NixPath = append(job.NixPath, sp)
	}
	job.AutoArguments = make(map[string]traverse.AutoArgument, len(r.task.AutoArguments))
	for name, a := range r.task.AutoArguments {
		path, err := subPath(where, a)
		if err != nil {
			return job, fmt.Errorf("the task's argument %q: %w", name, err)
		}
		job.AutoArguments[name] = traverse.AutoArgument{Path: path, Metadata: r.task.InputMetadata[a.Path]}
	}
	// A mistake in this file is better told in words of ours than as an error of Nix.
	if _, err := source.DefaultSystem(project); err != nil {
		return job, err
	}
	file, err := source.FindNixFile(project)
	if err != nil {
		return job, err
	}
	if file == "flake.nix" {
		job.Flake = traverse.LocalFlakeRef(project)
	} else {
		job.File = filepath.Join(project, filepath.FromSlash(file))
	}
	return job, nil
}

func subPath(where map[string]string, p agentapi.SubPathOf) (string, error) {
	dir, ok := where[p.Path]
	if !ok {
		return "", fmt.Errorf("it refers to the input %q, which the task does not have", p.Path)
	}
	if p.SubPath == nil || *p.SubPath == "" {
		return dir, nil
	}
	if !filepath.IsLocal(*p.SubPath) {
		return "", fmt.Errorf("the path %q leads out of the input %q", *p.SubPath, p.Path)
	}
	return filepath.Join(dir, *p.SubPath), nil
}

// gitSource is what expressions are told of the source: agent behaviour, section 3.4.
func gitSource(in agentapi.ImmutableInput, metadata agentapi.Map[string, json.RawMessage]) traverse.GitSource {
	if g := in.Git; g != nil {
		text := func(s *string) string {
			if s == nil {
				return ""
			}
			return *s
		}
		return traverse.GitSource{
			Ref: g.Ref, Rev: g.Rev, RemoteHTTPURL: g.HTTPURL, RemoteSSHURL: g.SSHURL,
			WebURL: text(g.WebURL), ForgeType: text(g.ForgeType), Owner: text(g.Owner), Name: text(g.Name),
		}
	}
	var s traverse.GitSource
	_ = json.Unmarshal(metadata["ref"], &s.Ref)
	_ = json.Unmarshal(metadata["rev"], &s.Rev)
	return s
}

// Schemes of what expressions may fetch: agent behaviour, section 3.5.
const (
	allowedURIs  = "ssh:// https:// git+ssh:// git+https:// github: gitlab: sourcehut:"
	insecureURIs = " http:// git://"
)

// evaluator is how evaluators are started for a job.
func (r *run) evaluator(job traverse.Job, netrc *netrcFiles) evaluator.Config {
	uris := allowedURIs
	if r.deps.AllowInsecureBuiltinFetchers {
		uris += insecureURIs
	}
	uris += r.localURIs(job)
	env := r.deps.Env
	if env == nil {
		env = os.Environ()
	}
	env = evaluator.Environ(env)
	env = append(withNixConfig(env, r.deps.NixSettings), netrc.gitEnvironment()...)
	return evaluator.Config{
		Program: r.deps.NixProgram,
		Env:     env,
		// These win over the environment: the configuration of an agent must not be able to open them.
		Settings: map[string]string{
			"restrict-eval":  "true",
			"allowed-uris":   uris,
			"netrc-file":     netrc.path,
			"use-registries": "false",
		},
	}
}

// localURIs are those of sources on this machine: the checkout of a local flake, and the repositories that a task
// names with a file URL, which is how a developer's own checkout is evaluated.
func (r *run) localURIs(job traverse.Job) string {
	var b strings.Builder
	if !r.task.IsFlakeJob {
		for _, scheme := range []string{"git+file://", "path:", "file://"} {
			b.WriteString(" " + scheme + job.Directory)
		}
	}
	inputs := slices.Collect(maps.Values(r.task.Inputs))
	if p := r.task.Selector.OnPush; p != nil {
		inputs = slices.AppendSeq(inputs, maps.Values(p.Inputs))
	}
	if s := r.task.Selector.OnSchedule; s != nil {
		inputs = slices.AppendSeq(inputs, maps.Values(s.ExtraInputs))
	}
	for _, in := range inputs {
		switch {
		case in.Git != nil:
			if u, err := url.Parse(in.Git.HTTPURL); err == nil && u.Scheme == "file" && !strings.ContainsAny(in.Git.HTTPURL, " \n") {
				b.WriteString(" git+" + in.Git.HTTPURL + " " + in.Git.HTTPURL)
			}
		case in.ArchiveURL != nil && !r.deps.AllowInsecureBuiltinFetchers:
			// The task itself names it, not the expression, so it may be plain http, such as a coordinator on loopback.
			if u, err := url.Parse(*in.ArchiveURL); err == nil && u.Scheme == "http" && !strings.ContainsAny(*in.ArchiveURL, " \n") {
				b.WriteString(" " + *in.ArchiveURL)
			}
		}
	}
	return b.String()
}

// withNixConfig adds settings to NIX_CONFIG: unlike arguments, an environment can't be read by others.
func withNixConfig(env []string, settings map[string]string) []string {
	if len(settings) == 0 {
		return env
	}
	const name = "NIX_CONFIG="
	text := ""
	env = slices.DeleteFunc(env, func(kv string) bool {
		v, ok := strings.CutPrefix(kv, name)
		if ok {
			text = strings.TrimRight(v, "\n") + "\n"
		}
		return ok
	})
	oneLine := strings.NewReplacer("\n", " ", "\r", " ")
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		text += k + " = " + oneLine.Replace(settings[k]) + "\n"
	}
	return append(env, name+text)
}
