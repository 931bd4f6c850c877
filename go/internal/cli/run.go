package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"hercules/internal/cli/checkout"
	"hercules/internal/cli/report"
	"hercules/internal/cli/term"
	"hercules/internal/coordinator"
	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// runOptions are the flags of hci run.
type runOptions struct {
	dirty     bool
	jobs      []string
	attrs     []string
	keepGoing bool
	json      bool
	logFile   string
	tasks     int
	systems   []string
	inputs    []string
	nix       string
	cache     string
	settings  []string
	debug     bool
}

func runCommand(streams Streams) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [DIR]",
		Short: "Run the whole CI job of a checkout on this machine",
		Long: `Run the whole CI job of the checkout in DIR (by default the current directory) on this machine: evaluate what it
asks for, build everything in the order of its dependencies, and show how it went. There is no account and no
server; a coordinator and an agent work in this process, with the Nix of this machine.

What is looked for, in this order: nix/ci.nix or ci.nix, flake.nix, default.nix. The committed state is taken; with
--dirty, and where there is no git repository, the files on disk.

Exit status: 0 when all that is required is good, 1 when something failed, 2 for wrong usage or when the job could
not be set up, 130 when interrupted.`,
		Example: `  hci run                          the checkout in this directory
  hci run --dirty                  with what is not committed yet
  hci run --attr 'checks.**'       only these attributes
  hci run --cache ~/.cache/ci      keep results for other runs, other stores and other machines
  hci run --json | jq -c .event    events for scripts, one a line`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("expected one directory, got %q", args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			return run(cmd.Context(), dir, &o, streams)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.dirty, "dirty", false, "take the files on disk, except those that git ignores, instead of the commit")
	f.StringArrayVar(&o.jobs, "job", nil, "run the job herculesCI.onPush.`NAME`, or onSchedule.NAME (repeatable; default: all of onPush)")
	f.StringArrayVar(&o.attrs, "attr", nil, "build only attributes that match `PATH`, where * stands for one name and ** for any (repeatable)")
	f.BoolVar(&o.keepGoing, "keep-going", true, "go on after a failure; --keep-going=false stops at the first one")
	f.BoolVar(&o.json, "json", false, "write events to standard output, one JSON document a line")
	f.StringVar(&o.logFile, "log", "", "write all log lines to `FILE` too")
	f.IntVarP(&o.tasks, "tasks", "j", 0, "how many builds run at once (default: the number of processors, at least 2)")
	f.StringArrayVar(&o.systems, "system", nil, "`SYSTEM` that the default job of a flake is for (repeatable; default: what this machine builds)")
	f.StringArrayVar(&o.inputs, "input", nil, "where the git checkout of an extra input is, as `PROJECT=DIR` (repeatable)")
	f.StringVar(&o.nix, "nix", "nix", "evaluate with this nix `PROGRAM`")
	f.StringVar(&o.cache, "cache", "", "push to the binary cache in `DIR`, which is made, and substitute from it")
	f.StringArrayVar(&o.settings, "option", nil, "a Nix setting, as `NAME=VALUE` (repeatable)")
	f.BoolVar(&o.debug, "debug", false, "say on standard error what coordinator and agent do")
	return cmd
}

func run(ctx context.Context, dir string, o *runOptions, streams Streams) error {
	if o.tasks < 0 {
		return fmt.Errorf("-j %d: the number of tasks must be at least 1", o.tasks)
	}
	inputs, err := parsePairs("--input", o.inputs)
	if err != nil {
		return err
	}
	settings, err := parsePairs("--option", o.settings)
	if err != nil {
		return err
	}
	source, err := checkout.Open(ctx, dir)
	if err != nil {
		return err
	}
	if source.Root != "" && source.Rev == "" && !o.dirty {
		return fmt.Errorf("%s has no commit yet; commit something or take the files as they are with --dirty", source.Root)
	}
	screen := term.New(streams.Err)
	log := runLog(o.debug, streams.Err)

	dirs, err := newRunDirs(source.Name)
	if err != nil {
		return err
	}
	defer dirs.cleanUp()

	c, err := coordinator.Start(ctx, coordinator.Config{Dir: dirs.logs, Log: log})
	if err != nil {
		return err
	}
	defer c.Close()
	// Stopping the job takes a moment after an interrupt; its events must not be cut off by the same signal.
	watching, stopWatching := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWatching(nil)
	events, unsubscribe := c.Subscribe(watching)
	defer unsubscribe()
	caches := ""
	if o.cache != "" {
		served, err := startCache(o.cache, log)
		if err != nil {
			return err
		}
		defer served.close()
		if caches, err = served.binaryCaches(); err != nil {
			return err
		}
		if distrusted(ctx, o.nix, settings) {
			_ = screen.Println(screen.Paint(term.Yellow, "note:") + " the Nix daemon does not trust this user, so it takes nothing from the cache; trusted-users in nix.conf says whom it trusts")
		}
		if !o.json {
			defer func() { fmt.Fprintln(streams.Err, served.summary()) }()
		}
	}
	a, err := startAgent(ctx, agentOptions{
		dir: dirs.agent, url: c.URL(), joinToken: c.JoinToken(), tasks: o.tasks, nix: o.nix, settings: settings, caches: caches, log: log,
	})
	if err != nil {
		return err
	}
	defer a.stop()
	platforms, err := awaitAgent(ctx, a, events)
	if err != nil {
		return err
	}

	job := newJob(ctx, source, o, inputs, platforms)
	if !o.json {
		announce(screen, source, o)
	}
	view, closeView, err := newView(o, screen, streams)
	if err != nil {
		return err
	}
	id, err := c.Submit(ctx, job)
	if err != nil {
		return errors.Join(err, closeView())
	}
	stopping := context.AfterFunc(ctx, func() {
		c.Cancel(id)
		const patience = 15 * time.Second // for the agent to stop its builders
		time.AfterFunc(patience, func() { stopWatching(errors.New("the agent did not stop in time")) })
	})
	defer stopping()
	cancelOnFailure := func() {}
	if !o.keepGoing {
		cancelOnFailure = func() { c.Cancel(id) }
	}
	err = watch(watching, id, events, view, a, cancelOnFailure)
	if err := errors.Join(err, closeView()); err != nil {
		return err
	}
	result, err := c.Wait(watching, id)
	if err != nil {
		return err
	}
	if !o.json {
		if screen.Live() {
			_ = screen.Println("") // what happened ends here, what came of it begins
		}
		out := term.New(streams.Out)
		if err := report.Summary(out, result, c.LogPath); err != nil {
			return err
		}
		fmt.Fprintf(streams.Err, "logs: %s\n", dirs.logs)
	}
	switch {
	case ctx.Err() != nil:
		return &statusError{status: exitInterrupted}
	case result.Status != event.Succeeded:
		return &statusError{status: exitFailed}
	}
	return nil
}

// watch shows the events of a job until it is finished.
func watch(ctx context.Context, id string, events <-chan event.Event, view report.View, a *localAgent, onFailure func()) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return context.Cause(ctx)
			}
			if err := view.Handle(e); err != nil {
				return err
			}
			if failed(e) {
				onFailure()
			}
			if _, ok := e.Body.(event.JobFinished); ok && e.Job == id {
				return nil
			}
		case now := <-ticker.C:
			if err := view.Tick(now); err != nil {
				return err
			}
		case err := <-a.failed:
			return err
		}
	}
}

// failed says whether an event means that the job will fail.
func failed(e event.Event) bool {
	switch body := e.Body.(type) {
	case event.AttributeResult:
		return !body.OK
	case event.AttributeError:
		return body.Selected
	case event.Message:
		return body.Type == agentapi.ErrorMessage
	}
	return false
}

func announce(s *term.Screen, source *checkout.Checkout, o *runOptions) {
	what := source.Dir
	if source.Root != "" && !o.dirty && source.Rev != "" {
		what += " at " + source.Rev[:min(len(source.Rev), 12)]
	}
	_ = s.Println(what)
	if source.Root != "" && source.Changed && !o.dirty {
		_ = s.Println(s.Paint(term.Yellow, "note:") + " there are changes that are not committed; --dirty takes them in")
	}
	if source.Submodules && !o.dirty {
		_ = s.Println(s.Paint(term.Yellow, "note:") + " submodules are not part of the source")
	}
}

// newView makes the view that the flags ask for. The returned function closes it and the log file.
func newView(o *runOptions, screen *term.Screen, streams Streams) (report.View, func() error, error) {
	var view report.View = report.NewLines(screen)
	if o.json {
		view = report.NewJSON(streams.Out)
	}
	if o.logFile == "" {
		return view, view.Close, nil
	}
	f, err := os.Create(o.logFile)
	if err != nil {
		return nil, nil, fmt.Errorf("--log: %w", err)
	}
	view = report.NewTee(view, f)
	return view, func() error { return errors.Join(view.Close(), f.Close()) }, nil
}

func runLog(debug bool, w io.Writer) *slog.Logger {
	if !debug {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// runDirs are the directories of one run: logs stay, the rest goes.
type runDirs struct{ logs, agent string }

// keepRuns is how many runs' logs are kept.
const keepRuns = 20

func newRunDirs(name string) (*runDirs, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // the XDG specification: a relative path is to be ignored
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("finding a place for logs: %w; set XDG_STATE_HOME", err)
		}
		state = filepath.Join(home, ".local", "state")
	}
	runs := filepath.Join(state, "hercules-ci", "runs")
	if err := mkdirPrivate(runs); err != nil {
		return nil, fmt.Errorf("making a place for logs: %w; XDG_STATE_HOME names another", err)
	}
	prune(runs, keepRuns-1)
	logs, err := os.MkdirTemp(runs, time.Now().UTC().Format("20060102-150405")+"-"+filepath.Base(name)+"-")
	if err != nil {
		return nil, fmt.Errorf("making a place for logs: %w; XDG_STATE_HOME names another", err)
	}
	agent, err := os.MkdirTemp("", "hci-run-")
	if err != nil {
		return nil, fmt.Errorf("making a temporary directory: %w; TMPDIR names another place", err)
	}
	return &runDirs{logs: logs, agent: agent}, nil
}

func mkdirPrivate(dir string) error { return os.MkdirAll(dir, 0o700) }

func (d *runDirs) cleanUp() { _ = os.RemoveAll(d.agent) }

// prune removes the oldest runs but keep. Their names sort by time.
func prune(runs string, keep int) {
	entries, err := os.ReadDir(runs)
	if err != nil {
		return
	}
	for i := 0; i < len(entries)-keep; i++ {
		_ = os.RemoveAll(filepath.Join(runs, entries[i].Name()))
	}
}
