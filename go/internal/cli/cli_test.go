package cli_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hercules/internal/cli"
	"hercules/internal/testnix"
)

var update = flag.Bool("update", false, "write what the scripts print into them")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hci": hci})
}

// hci is the program as cmd/hci has it.
func hci() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Main(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

// TestShapes runs the job of each shape of repository with each Nix there is, and compares all events.
func TestShapes(t *testing.T) {
	t.Parallel()
	first := testnix.Versions(t)[0]
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		runScripts(t, "shapes", n, n.Version == first.Version)
	})
}

// TestScripts is about what people see, and needs one Nix.
func TestScripts(t *testing.T) {
	t.Parallel()
	runScripts(t, "script", testnix.Versions(t)[0], true)
}

// runScripts runs each script with a store of its own.
func runScripts(t *testing.T, dir string, n testnix.Nix, mayUpdate bool) {
	t.Helper()
	scripts, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts in testdata/%s: %v", dir, err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txtar"), func(t *testing.T) {
			t.Parallel()
			s := testnix.New(t, testnix.WithNix(n))
			testscript.Run(t, testscript.Params{
				Files:               []string{script},
				Setup:               func(env *testscript.Env) error { return setup(env, s) },
				Cmds:                map[string]func(*testscript.TestScript, bool, []string){"events": events, "plain": plain, "status": status},
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
				UpdateScripts:       *update && mayUpdate,
				// A command that hangs becomes a failure with its output.
				Deadline: time.Now().Add(3 * time.Minute),
			})
		})
	}
}

// setup makes the environment of a script that of the store, with git's own configuration out of the way.
func setup(env *testscript.Env, s *testnix.Store) error {
	path := env.Getenv("PATH")
	env.Vars = append(env.Vars, s.Env()...)
	env.Vars = append(env.Vars, gitEnv()...)
	env.Vars = append(env.Vars,
		"PATH="+filepath.Dir(s.Program("nix"))+":"+path,
		"XDG_STATE_HOME=",
		"TERM=dumb",
		"STORE="+s.Dir(),
		"DIRECT="+s.DirectRemote(),
	)
	return nil
}

// status N PROGRAM ARG... runs a program and holds it to an exit status.
func status(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM ARG...")
	}
	want := args[0]
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		got = strconv.Itoa(failed.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit status %s, want %s", got, want)
	}
}

func gitEnv() []string {
	return []string{
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=T", "GIT_AUTHOR_EMAIL=t@example.org", "GIT_AUTHOR_DATE=2001-01-01T00:00:00Z",
		"GIT_COMMITTER_NAME=T", "GIT_COMMITTER_EMAIL=t@example.org", "GIT_COMMITTER_DATE=2001-01-01T00:00:00Z",
	}
}
