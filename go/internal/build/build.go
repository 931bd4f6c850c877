// Package build does the build task of the agent protocol: it gets the inputs and the derivation into the store, has
// Nix build it, and reports the outputs.
//
// A build is a function of its task. The package knows neither sockets nor HTTP nor files of configuration: what it
// needs is in [Deps].
package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/nix-community/go-nix/pkg/nixbase32"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/derivation"
	"hercules/internal/nix/storepath"
	"hercules/internal/wire/agentapi"
)

// Deps is what a build needs.
type Deps struct {
	// Conns gives connections to the Nix daemon.
	Conns *Conns
	// Settings are the Nix settings for this task: the user's own, those of the agent's configuration, and
	// substituters, keys and netrc of the caches.
	Settings map[string]string
	// Verbosity of the log.
	Verbosity daemon.Verbosity
	// Trusted says that the configuration declares this user as trusted by the daemon.
	Trusted bool
	// RemotePlatforms are systems that this machine itself does not have; Nix's remote builders do.
	RemotePlatforms []string
	// Fetch gets the text of a derivation from the caches, without its closure. Optional; it returns nil when no
	// cache has it.
	Fetch func(ctx context.Context, drvPath string) ([]byte, error)
	// Log is the log of the task.
	Log Log
	// Post reports events.
	Post func(context.Context, []agentapi.BuildEvent) error
	// Pusher uploads outputs; nil when there are no caches to push to.
	Pusher Pusher
	// Logger is for the agent's own log.
	Logger *slog.Logger
}

// Log is where the log of the build goes; package tasklog has it.
type Log interface {
	Event(daemon.Event)
	Line(level daemon.Verbosity, text string)
}

// Pusher uploads store paths with their closures to all caches. After each cache it calls pushed.
type Pusher interface {
	Push(ctx context.Context, paths []string, log Log, pushed func(cache string) error) error
}

// Run does a build. The status is Successful, or Terminated when Nix said no: then the log says why. An error means
// that the build could not be done or not be reported, and its text is for people; no status goes with it.
func Run(ctx context.Context, task *agentapi.BuildTask, d Deps) (agentapi.TaskStatus, error) {
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	var outputs []agentapi.OutputInfo
	var failure string
	err := d.Conns.With(ctx, daemon.Options{Settings: d.Settings, Verbosity: d.Verbosity, Log: d.Log.Event}, func(c *daemon.Conn) error {
		var err error
		outputs, failure, err = realise(ctx, c, task, d)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return agentapi.TaskStatus{}, context.Cause(ctx)
	case err != nil:
		d.Log.Line(daemon.Error, err.Error())
		return agentapi.TaskStatus{}, err
	case failure != "":
		d.Log.Line(daemon.Error, failure)
		return agentapi.TaskStatus{Terminated: &agentapi.Unit{}}, nil
	}
	if err := report(ctx, outputs, d); err != nil {
		if ctx.Err() != nil {
			return agentapi.TaskStatus{}, context.Cause(ctx)
		}
		d.Log.Line(daemon.Error, "The build succeeded, but: "+err.Error())
		return agentapi.TaskStatus{}, err
	}
	return agentapi.TaskStatus{Successful: &agentapi.Unit{}}, nil
}

// realise gets the outputs into the store. A failure is the word of Nix that it can't be built.
func realise(ctx context.Context, c *daemon.Conn, task *agentapi.BuildTask, d Deps) (outputs []agentapi.OutputInfo, failure string, err error) {
	drvPath := task.DerivationPath
	for _, p := range append([]string{drvPath}, task.InputDerivationOutputPaths...) {
		if err := storepath.Check(p); err != nil {
			return nil, "", fmt.Errorf("the task names a path that cannot be in a store: %w", err)
		}
	}
	if !storepath.IsDerivation(drvPath) {
		return nil, "", fmt.Errorf("the task asks to build %s, which is not a derivation", drvPath)
	}
	complete, err := ensureInputs(ctx, c, task.InputDerivationOutputPaths, d.Log)
	if err != nil {
		return nil, "", err
	}
	drv, present, err := getDerivation(ctx, c, drvPath, d)
	if err != nil {
		return nil, "", err
	}
	reason := whyFullClosure(complete, drv.Platform, c.Trusted(), d)
	d.Logger.Debug("build mode chosen", "drv", drvPath, "full_closure", reason != "", "reason", reason)

	var result *daemon.BuildResult
	if reason == "" {
		result, err = c.BuildDerivation(ctx, drvPath, drv.ToBasic(task.InputDerivationOutputPaths), daemon.BuildNormal)
	} else {
		result, err = buildClosure(ctx, c, drvPath, present)
	}
	if remote, ok := errors.AsType[*daemon.RemoteError](err); ok {
		return nil, Explain(drvPath, daemon.MiscFailure, remote.Msg), nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("building %s: %w", drvPath, err)
	}
	switch result.Status {
	case daemon.Built, daemon.Substituted, daemon.AlreadyValid, daemon.ResolvesToAlreadyValid:
	default:
		return nil, Explain(drvPath, result.Status, result.ErrorMsg), nil
	}
	outputs, err = outputInfos(ctx, c, drvPath, drv, result)
	return outputs, "", err
}

// ensureInputs makes the inputs of a derivation valid and keeps them from being collected while this connection lives.
// It reports whether all are there; which are not, the log says.
//
// Asking Nix to realise store paths does both for all of them in one round trip: each becomes a temporary root, is
// found valid or is substituted, in parallel.
func ensureInputs(ctx context.Context, c *daemon.Conn, paths []string, log Log) (complete bool, err error) {
	if len(paths) == 0 {
		return true, nil
	}
	wanted := make([]daemon.DerivedPath, len(paths))
	for i, p := range paths {
		wanted[i] = daemon.DerivedPath{Path: p}
	}
	results, err := c.BuildPathsWithResults(ctx, wanted, daemon.BuildNormal)
	why := map[string]string{}
	if remote, ok := errors.AsType[*daemon.RemoteError](err); ok {
		log.Line(daemon.Warn, remote.Msg)
	} else if err != nil {
		return false, fmt.Errorf("getting the inputs: %w", err)
	} else if !slices.ContainsFunc(results, failed) {
		return true, nil
	}
	for _, r := range results {
		if failed(r) {
			why[r.Path.Path] = r.ErrorMsg
		}
	}
	// One failure makes Nix give up the others too, so ask what is there, and try what is not one by one.
	valid, err := c.QueryValidPaths(ctx, paths, false)
	if err != nil {
		return false, fmt.Errorf("asking for the inputs: %w", err)
	}
	complete = true
	for _, p := range paths {
		if slices.Contains(valid, p) {
			continue
		}
		err := c.EnsurePath(ctx, p)
		if err == nil {
			continue
		}
		remote, ok := errors.AsType[*daemon.RemoteError](err)
		if !ok {
			return false, fmt.Errorf("getting input %s: %w", p, err)
		}
		complete = false
		text := cmpOr(why[p], remote.Msg)
		log.Line(daemon.Warn, fmt.Sprintf("The input %s is neither here nor in a cache; it will be built. (%s)", p, strings.TrimSpace(text)))
	}
	return complete, nil
}

func failed(r daemon.BuildResult) bool {
	switch r.Status {
	case daemon.Built, daemon.Substituted, daemon.AlreadyValid, daemon.ResolvesToAlreadyValid:
		return false
	}
	return true
}

// whyFullClosure chooses how to build: agent-behaviour 4, step 3. The empty string means that Nix is given the
// derivation with its inputs as sources, and needs no other derivation.
func whyFullClosure(complete bool, platform string, trust daemon.Trust, d Deps) string {
	switch {
	case !d.Trusted:
		return "the configuration does not declare this user as trusted"
	case trust == daemon.NotTrusted:
		return "the daemon does not trust this user"
	case !complete:
		return "inputs are missing"
	case slices.Contains(d.RemotePlatforms, platform):
		return "the platform is one of the remote builders"
	case strings.TrimSpace(d.Settings["max-jobs"]) == "0":
		return "this machine builds nothing itself"
	}
	return ""
}

// buildClosure builds all outputs by the ordinary operation, after having fetched the derivation with its closure.
func buildClosure(ctx context.Context, c *daemon.Conn, drvPath string, present bool) (*daemon.BuildResult, error) {
	if !present {
		if err := c.EnsurePath(ctx, drvPath); err != nil {
			return nil, err
		}
	}
	// The build operation itself makes the derivation and its outputs temporary roots.
	results, err := c.BuildPathsWithResults(ctx, []daemon.DerivedPath{{Path: drvPath, Outputs: []string{"*"}}}, daemon.BuildNormal)
	if err != nil {
		return nil, err
	}
	if len(results) != 1 {
		return nil, fmt.Errorf("the Nix daemon gave %d results for one derivation", len(results))
	}
	return &results[0], nil
}

// outputInfos describes the outputs, by name.
func outputInfos(ctx context.Context, c *daemon.Conn, drvPath string, drv *derivation.Derivation, r *daemon.BuildResult) ([]agentapi.OutputInfo, error) {
	infos := make([]agentapi.OutputInfo, 0, len(drv.Outputs))
	for _, name := range slices.Sorted(maps.Keys(drv.Outputs)) {
		p := cmpOr(drv.Outputs[name].Path, r.Outputs[name])
		if p == "" {
			return nil, fmt.Errorf("nix built %s but does not say where its output %s is", drvPath, name)
		}
		info, found, err := c.QueryPathInfo(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("asking for output %s of %s: %w", name, drvPath, err)
		}
		if !found {
			return nil, fmt.Errorf("nix built %s but its output %s is not in the store", drvPath, p)
		}
		refs := make(agentapi.List[string], len(info.References))
		for i, ref := range info.References {
			refs[i] = storepath.Base(ref)
		}
		infos = append(infos, agentapi.OutputInfo{
			Deriver:    drvPath,
			Name:       name,
			Path:       p,
			Hash:       "sha256:" + nixbase32.EncodeToString(info.NarHash),
			Size:       int64(info.NarSize),
			References: &refs,
		})
	}
	return infos, nil
}

// report posts and pushes: agent-behaviour 4.
func report(ctx context.Context, outputs []agentapi.OutputInfo, d Deps) error {
	events := make([]agentapi.BuildEvent, len(outputs))
	paths := make([]string, len(outputs))
	for i := range outputs {
		events[i] = agentapi.BuildEvent{OutputInfo: &outputs[i]}
		paths[i] = outputs[i].Path
	}
	if err := d.Post(ctx, events); err != nil {
		return fmt.Errorf("reporting the outputs: %w", err)
	}
	if d.Pusher != nil {
		err := d.Pusher.Push(ctx, paths, d.Log, func(cache string) error {
			if err := d.Post(ctx, []agentapi.BuildEvent{{Pushed: &agentapi.Pushed{Cache: cache}}}); err != nil {
				return fmt.Errorf("reporting the upload to %s: %w", cache, err)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("uploading the outputs: %w", err)
		}
	}
	done := true
	if err := d.Post(ctx, []agentapi.BuildEvent{{Done: &done}}); err != nil {
		return fmt.Errorf("reporting the end of the build: %w", err)
	}
	return nil
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
