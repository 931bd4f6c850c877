package agent_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/agent"
	"hercules/internal/coordinator"
	"hercules/internal/logging"
	"hercules/internal/nix/localstore"
	"hercules/internal/testnix"
)

// run does the job of one file default.nix with a coordinator and an agent that does one task at a time.
func runJob(t *testing.T, n testnix.Nix, tasks int, expr string) (*coordinator.Result, *coordinator.Coordinator) {
	t.Helper()
	s := testnix.New(t, testnix.WithNix(n))
	s.Instantiate(`sh "first" {} ""`) // see newRig
	log := &safeBuffer{}
	logger := logging.New(log, slog.LevelDebug, logging.Plain)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", log)
		}
	})
	c, err := coordinator.Start(t.Context(), coordinator.Config{Dir: filepath.Join(s.Dir(), "coordinator"), Log: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{t: t, Store: s, log: log, wire: &wire{}}
	base := filepath.Join(s.Dir(), "agent", "secrets")
	if err := os.MkdirAll(base, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"cluster-join-token.key": c.JoinToken(), "binary-caches.json": "{}"} {
		if err := os.WriteFile(filepath.Join(base, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := r.configFor(c.URL(), map[string]any{"concurrentTasks": tasks})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- agent.Run(ctx, cfg, agent.Options{
			Log: logger, NixProgram: s.Program("nix"), Env: s.Env(), Times: quick,
			Store: &localstore.Store{Endpoint: s.Endpoint(), Why: "test"},
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	job, err := c.Submit(t.Context(), coordinator.Job{
		Name: "project",
		Source: coordinator.Source{Ref: "refs/heads/main", Rev: strings.Repeat("a", 40), Archive: func(_ context.Context, w io.Writer) error {
			z := gzip.NewWriter(w)
			a := tar.NewWriter(z)
			if err := a.WriteHeader(&tar.Header{Name: "default.nix", Mode: 0o644, Size: int64(len(expr))}); err != nil {
				return err
			}
			if _, err := io.WriteString(a, expr); err != nil {
				return err
			}
			if err := a.Close(); err != nil {
				return err
			}
			return z.Close()
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	wait, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	result, err := c.Wait(wait, job)
	if err != nil {
		t.Fatal(err)
	}
	return result, c
}

// A whole job against the real coordinator, with an import from derivation, and an agent that does one task of a kind at
// a time: the evaluation that waits must not keep its build from being done.
func TestWholeJob(t *testing.T) {
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		result, c := runJob(t, n, 1, testnix.Prelude+`
			let dep = sh "dep" {} "echo dep > $out"; in {
				good = sh "good" { inherit dep; } "echo hello; cat $dep > $out";
				bad = sh "bad" {} "echo sorry; exit 3";
				worse = sh "worse" { bad = sh "bad" {} "echo sorry; exit 3"; } "echo > $out";
				wrong = throw "no such thing";
				imported = import (sh "generated" {} "echo '\"generated\"' > $out") + "";
				named = sh (import (sh "generated" {} "echo '\"generated\"' > $out")) {} "echo > $out";
			}`)
		got := map[string]string{}
		for _, a := range result.Attributes {
			got[strings.Join(a.Path, ".")] = string(a.Outcome)
		}
		want := map[string]string{"good": "good", "bad": "bad", "worse": "bad-dependency", "wrong": "evaluation-error", "named": "good"}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		for _, f := range result.Failures {
			if !strings.HasSuffix(f.Drv, "-bad.drv") {
				continue
			}
			l, err := c.OpenLog(t.Context(), f.Drv, false)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(l)
			_ = l.Close()
			if err != nil || !strings.Contains(string(text), "sorry") || !strings.Contains(string(text), "the builder ended with exit code 3") {
				t.Errorf("log of the failed build: %v:\n%s", err, text)
			}
		}
		if len(result.Failures) == 0 {
			t.Error("no failed builds")
		}
	})
}

// TestManyBuilds says what a trivial build costs through coordinator and agent.
func TestManyBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: not in short mode")
	}
	const n = 100
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	result, _ := runJob(t, testnix.Versions(t)[0], 2, testnix.Prelude+fmt.Sprintf(`
		builtins.listToAttrs (builtins.genList (i: { name = "x${toString i}"; value = sh "x${toString i}" {} "echo > $out"; }) %d)`, n))
	took := time.Since(begin)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if len(result.Attributes) != n || result.Counts.Good != n {
		t.Errorf("counts: %+v", result.Counts)
	}
	t.Logf("%d builds in %s, heap %d MiB", n, took.Round(time.Millisecond), after.HeapInuse>>20)
}
