package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
)

func asRemote(err error, target **daemon.RemoteError) bool { return errors.As(err, target) }

// waitFor asks until the answer is yes; the deadline is only there so that a failure ends.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// events collects what a connection logs.
type events struct {
	mu  sync.Mutex
	all []daemon.Event
}

func (e *events) add(ev daemon.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

// lines are the lines that builders printed.
func (e *events) lines() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for _, ev := range e.all {
		if ev.Kind == daemon.EventResult && ev.Type == daemon.ResBuildLogLine {
			lines = append(lines, ev.Fields[0].Text)
		}
	}
	return lines
}

func outputs(drv string) []daemon.DerivedPath {
	return []daemon.DerivedPath{{Path: drv, Outputs: []string{"*"}}}
}

func TestBuild(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		var log events
		c := dial(t, s.Endpoint(), daemon.Options{Log: log.add, Verbosity: daemon.Info})
		ctx := t.Context()
		drv := s.Instantiate(`let dep = sh "dep" {} "echo building dep; echo 1 > $out"; in
			sh "top" { outputs = [ "out" "doc" ]; inherit dep; } "echo building top; cat $dep > $out; echo 2 > $doc"`)
		want := outputs(drv)

		missing, err := c.QueryMissing(ctx, want)
		if err != nil {
			t.Fatal(err)
		}
		if len(missing.WillBuild) != 2 || !slices.Contains(missing.WillBuild, drv) {
			t.Errorf("missing is %+v", missing)
		}
		paths := must(c.QueryDerivationOutputMap(ctx, drv))(t)
		if len(paths) != 2 || !strings.HasSuffix(paths["doc"], "-top-doc") {
			t.Errorf("the outputs are %q", paths)
		}
		results := must(c.BuildPathsWithResults(ctx, want, daemon.BuildNormal))(t)
		if len(results) != 1 || results[0].Status != daemon.Built || results[0].Path.Path != drv ||
			results[0].Outputs["out"] != paths["out"] || results[0].Outputs["doc"] != paths["doc"] {
			t.Errorf("the results are %+v", results)
		}
		if got := log.lines(); !slices.Equal(got, []string{"building dep", "building top"}) {
			t.Errorf("the log is %q", got)
		}
		var starts, stops int
		for _, ev := range log.all {
			switch {
			case ev.Kind == daemon.EventStart && ev.Type == daemon.ActBuild:
				starts++
				if ev.ID == 0 || !strings.Contains(ev.Text, "building '/nix/store/") || !strings.HasSuffix(ev.Fields[0].Text, ".drv") {
					t.Errorf("the activity is %+v", ev)
				}
			case ev.Kind == daemon.EventStop:
				stops++
			}
		}
		if starts != 2 || stops < 2 {
			t.Errorf("%d builds started, %d activities stopped", starts, stops)
		}
		if derivers := must(c.QueryValidDerivers(ctx, paths["out"]))(t); !slices.Equal(derivers, []string{drv}) {
			t.Errorf("the derivers are %q", derivers)
		}
		info, _, err := c.QueryPathInfo(ctx, paths["out"])
		if err != nil || info.Deriver != drv {
			t.Errorf("info is %+v, %v", info, err)
		}
		results = must(c.BuildPathsWithResults(ctx, want, daemon.BuildNormal))(t)
		if len(results) != 1 || results[0].Status != daemon.AlreadyValid {
			t.Errorf("the second time the results are %+v", results)
		}
		if err := c.BuildPaths(ctx, []daemon.DerivedPath{{Path: paths["out"]}}, daemon.BuildCheck); err != nil {
			t.Error(err)
		}
	})
}

func TestBuildFails(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		ctx := t.Context()
		for _, test := range []struct {
			name, expr string
			settings   map[string]string
			status     []daemon.BuildStatus
			msg        string
		}{
			{
				"fails", `sh "bad" {} "echo some last words; exit 3"`, nil,
				[]daemon.BuildStatus{daemon.PermanentFailure},
				"some last words",
			},
			{
				"dependency fails", `sh "top" { dep = sh "bad-dep" {} "exit 3"; } "echo > $out"`, nil,
				[]daemon.BuildStatus{daemon.DependencyFailed},
				"",
			},
			{
				"times out", `sh "slow" {} "sleep 1000"`,
				map[string]string{"timeout": "1"},
				[]daemon.BuildStatus{daemon.TimedOut},
				"timed out",
			},
			{
				"is silent", `sh "silent" {} "sleep 1000"`,
				map[string]string{"max-silent-time": "1"},
				[]daemon.BuildStatus{daemon.TimedOut},
				"timed out after",
			},
			{
				"log limit", `sh "loud" {} "yes"`,
				map[string]string{"max-build-log-size": "10000"},
				[]daemon.BuildStatus{daemon.LogLimitExceeded},
				"",
			},
			{
				"hash mismatch", `sh "fixed" { outputHashMode = "flat"; outputHashAlgo = "sha256";
					outputHash = "0000000000000000000000000000000000000000000000000000"; } "echo hello > $out"`, nil,
				[]daemon.BuildStatus{daemon.OutputRejected, daemon.PermanentFailure},
				"hash mismatch",
			},
			{
				"no output", `sh "none" {} "true"`, nil,
				[]daemon.BuildStatus{daemon.OutputRejected, daemon.PermanentFailure, daemon.MiscFailure},
				"failed to produce output",
			},
			{
				"wrong system", `sh "alien" { system = "m68k-amiga"; } "echo > $out"`, nil,
				[]daemon.BuildStatus{daemon.InputRejected, daemon.MiscFailure},
				"m68k-amiga",
			},
		} {
			t.Run(test.name, func(t *testing.T) {
				var log events
				c := dial(t, s.Endpoint(), daemon.Options{Settings: test.settings, Log: log.add})
				drv := s.Instantiate(test.expr)
				results, err := c.BuildPathsWithResults(ctx, outputs(drv), daemon.BuildNormal)
				if remote := (*daemon.RemoteError)(nil); asRemote(err, &remote) {
					// So Nix 2.26 reports what it finds out before the build.
					results, err = []daemon.BuildResult{{Status: test.status[0], ErrorMsg: remote.Msg}}, nil
				}
				if err != nil {
					t.Fatal(err)
				}
				if len(results) != 1 || !slices.Contains(test.status, results[0].Status) || !strings.Contains(results[0].ErrorMsg, test.msg) {
					t.Errorf("the results are %+v", results)
				}
				err = c.BuildPaths(ctx, outputs(drv), daemon.BuildNormal)
				var remote *daemon.RemoteError
				if !asRemote(err, &remote) {
					t.Errorf("the error is %v", err)
				}
			})
		}
	})
}

func TestBuildDerivation(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		c := dial(t, s.Endpoint(), daemon.Options{})
		ctx := t.Context()
		input := must(c.AddTextToStore(ctx, "input", "the input\n", nil))(t)
		drv := s.Instantiate(fmt.Sprintf(`sh "basic" { input = builtins.storePath %s; } "cat $input > $out; echo \"$greeting\" >> $out"`, input))
		out := must(c.QueryDerivationOutputMap(ctx, drv))(t)["out"]
		result, err := c.BuildDerivation(ctx, drv, &daemon.BasicDerivation{
			Outputs:  map[string]daemon.DerivationOutput{"out": {Path: out}},
			Inputs:   []string{input},
			Platform: "x86_64-linux",
			Builder:  "/bin/sh",
			Args:     []string{"-e", "-c", "cat $input > $out; echo \"$greeting\" >> $out"},
			Env:      map[string]string{"out": out, "input": input, "greeting": "as sent, not as stored"},
		}, daemon.BuildNormal)
		if err != nil {
			t.Fatal(err)
		}
		if result.Status != daemon.Built || result.ErrorMsg != "" {
			t.Errorf("the result is %+v", result)
		}
		if got := string(must(os.ReadFile(s.Endpoint().Root + out))(t)); got != "the input\nas sent, not as stored\n" {
			t.Errorf("the output is %q", got)
		}
	})
}

func TestSettingsReachTheBuild(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		c := dial(t, s.Endpoint(), daemon.Options{Settings: map[string]string{"cores": "7", "keep-going": "true", "max-jobs": "2"}})
		drv := s.Instantiate(`sh "cores" {} "echo $NIX_BUILD_CORES > $out"`)
		results := must(c.BuildPathsWithResults(t.Context(), outputs(drv), daemon.BuildNormal))(t)
		if got := string(must(os.ReadFile(s.Endpoint().Root + results[0].Outputs["out"]))(t)); got != "7\n" {
			t.Errorf("NIX_BUILD_CORES is %q", got)
		}
		if _, err := daemon.Dial(t.Context(), s.Endpoint(), daemon.Options{Settings: map[string]string{"cores": "many"}}); err == nil ||
			!strings.Contains(err.Error(), `cores = "many"`) {
			t.Errorf("the error is %v", err)
		}
	})
}

func TestCancelKillsTheBuilder(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		var log events
		ctx, cancel := context.WithCancelCause(t.Context())
		mark := uniqueMark()
		started := make(chan struct{})
		var once sync.Once
		c := dial(t, s.Endpoint(), daemon.Options{Log: func(e daemon.Event) {
			log.add(e)
			if e.Kind == daemon.EventResult && e.Type == daemon.ResBuildLogLine {
				once.Do(func() { close(started) })
			}
		}})
		drv := s.Instantiate(`sh "endless" {} "echo started; sleep ` + mark + `"`)
		why := errors.New("nobody wants it")
		done := make(chan error, 1)
		go func() {
			_, err := c.BuildPathsWithResults(ctx, outputs(drv), daemon.BuildNormal)
			done <- err
		}()
		<-started
		waitFor(t, func() bool { return len(sleepers(mark)) > 0 })
		pids := sleepers(mark)
		cancel(why)
		err := <-done
		if !errors.Is(err, why) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "BuildPathsWithResults") {
			t.Errorf("the error is %v", err)
		}
		for _, pid := range pids {
			waitFor(t, func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
		}
		if _, err := c.IsValidPath(t.Context(), noPath); err == nil || !c.Broken() {
			t.Errorf("the connection goes on: %v", err)
		}
	})
}

// sleepers are the processes "sleep MARK".
func sleepers(mark string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		b, _ := os.ReadFile(file)
		if slices.Contains(strings.Split(string(b), "\x00"), mark) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

var marks atomic.Int64

// uniqueMark is a time to sleep that no other process sleeps.
func uniqueMark() string { return strconv.Itoa(100_000_000 + 100*os.Getpid() + int(marks.Add(1))) }
