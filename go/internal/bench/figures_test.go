//go:build bench

package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"hercules/internal/testnix"
)

// figure prints one line. Below says that smaller values are better.
func figure(name string, value float64, unit string, limit float64, below bool) {
	verdict, sign := "ok", "≤"
	if !below {
		sign = "≥"
	}
	if (below && value > limit) || (!below && value < limit) {
		verdict = "MISSED"
	}
	fmt.Printf("%-44s %10.2f %-8s (limit %s %g) %s\n", name, value, unit, sign, limit, verdict)
}

// programs builds the programs as they are shipped, and gives their directory.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", dir, "hercules/cmd/...").CombinedOutput()
	if err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return dir
}

// run is what a run of a program told.
type run struct {
	wall time.Duration
	// times of the first and last event of each name, from the start of the process.
	first, last map[string]time.Duration
	counts      map[string]int
	peakKiB     uint64
	final       map[string]any // the job-finished event
}

// hci runs `hci run --json` and reads its events.
func hci(t *testing.T, bin string, store *testnix.Store, args ...string) *run {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "hci"), append([]string{"run", "--json"}, args...)...)
	cmd.Env = append(store.Env(), "XDG_STATE_HOME="+t.TempDir(), "PATH="+os.Getenv("PATH"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{first: map[string]time.Duration{}, last: map[string]time.Duration{}, counts: map[string]int{}}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(stdout)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		var e struct {
			Event string    `json:"event"`
			Time  time.Time `json:"time"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
			t.Fatalf("event %q: %v", scanner.Text(), err)
		}
		at := e.Time.Sub(start)
		if _, ok := r.first[e.Event]; !ok {
			r.first[e.Event] = at
		}
		r.last[e.Event] = at
		r.counts[e.Event]++
		if e.Event == "job-finished" {
			_ = json.Unmarshal(scanner.Bytes(), &r.final)
			// The process waits for nothing but us now: its peak is behind it.
			r.peakKiB = peak(t, cmd.Process.Pid)
		}
	}
	err = cmd.Wait()
	r.wall = time.Since(start)
	if err != nil {
		t.Fatalf("hci run: %v\n%s", err, stderr.String())
	}
	return r
}

// peak is the largest resident set that a process has had, its children not included, in KiB.
func peak(t *testing.T, pid int) uint64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // it ended
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n
		}
	}
	return 0
}

// timed runs a Nix program and says how long it took.
func timed(store *testnix.Store, name string, args ...string) (string, time.Duration) {
	start := time.Now()
	out := store.Run(name, args...)
	return out, time.Since(start)
}

// project makes a directory with a default.nix.
func project(t *testing.T, expr string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "default.nix"), []byte(expr), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// cheap is a set of n derivations, each a text of its own.
func cheap(n int, salt string) string {
	return fmt.Sprintf(`builtins.listToAttrs (builtins.genList (i: {
  name = "a${toString i}";
  value = derivation { name = "cheap-${toString i}"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo %s > $out" ]; };
}) %d)`, salt, n)
}

// heavy is a set of n derivations that each take some 100 ms of pure computation.
func heavy(n, work int, salt string) string {
	return fmt.Sprintf(`let busy = i: builtins.foldl' (a: b: builtins.bitXor (a + b) i) 0 (builtins.genList (x: x) %d); in
builtins.listToAttrs (builtins.genList (i: {
  name = "a${toString i}";
  value = derivation { name = "heavy-${toString i}-${toString (busy i)}"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo %s > $out" ]; };
}) %d)`, work, salt, n)
}

func newStore(t *testing.T) *testnix.Store {
	return testnix.New(t, testnix.WithConfig("max-jobs = "+strconv.Itoa(runtime.NumCPU())))
}

func evaluation(r *run) time.Duration { return r.last["evaluation-finished"] - r.first["evaluation-started"] }

func TestFigures(t *testing.T) {
	bin := programs(t)

	t.Run("a", func(t *testing.T) {
		store := newStore(t)
		// The first run of each warms the caches of the kernel.
		for i, name := range []string{"", "new"} {
			nixFile := filepath.Join(project(t, cheap(5000, fmt.Sprint("nix", i))), "default.nix")
			oursDir := project(t, cheap(5000, fmt.Sprint("hci", i)))
			_, nix := timed(store, "nix-instantiate", "--quiet", nixFile)
			ours := hci(t, bin, store, "--attr", "nothing", oursDir)
			if got := ours.counts["attribute"]; got != 5000 {
				t.Fatalf("%d attributes", got)
			}
			if name != "" {
				figure("a. evaluate 5000 cheap attributes, "+name, evaluation(ours).Seconds()/nix.Seconds(), "× nix", 1.5, true)
			}
			if i == 1 {
				_, nix := timed(store, "nix-instantiate", "--quiet", nixFile)
				ours := hci(t, bin, store, "--attr", "nothing", oursDir)
				figure("a. evaluate 5000 cheap attributes, again", evaluation(ours).Seconds()/nix.Seconds(), "× nix", 1.5, true)
			}
		}
	})

	t.Run("b", func(t *testing.T) {
		store := newStore(t)
		const work = 300_000
		nixFile := filepath.Join(project(t, heavy(200, work, "nix")), "default.nix")
		oursDir := project(t, heavy(200, work, "hci"))
		_, nix := timed(store, "nix-instantiate", "--quiet", nixFile)
		ours := hci(t, bin, store, "--attr", "nothing", oursDir)
		fmt.Printf("   (one heavy attribute takes nix-instantiate %d ms; %d processors)\n", nix.Milliseconds()/200, runtime.NumCPU())
		figure("b. evaluate 200 heavy attributes", evaluation(ours).Seconds()/nix.Seconds(), "× nix", 0.75, true)
	})

	t.Run("c", func(t *testing.T) {
		store := newStore(t)
		nixFile := filepath.Join(project(t, cheap(500, "nix")), "default.nix")
		drvs := strings.Fields(store.Run("nix-instantiate", "--quiet", nixFile))
		_, nix := timed(store, "nix-store", append([]string{"--realise", "--quiet"}, drvs...)...)
		ours := hci(t, bin, store, project(t, cheap(500, "hci")))
		if got := ours.counts["build-finished"]; got != 500 {
			t.Fatalf("%d builds", got)
		}
		builds := ours.last["build-finished"] - ours.first["build-queued"]
		figure("c. build 500 trivial derivations", builds.Seconds()/nix.Seconds(), "× nix", 1.25, true)
		figure("e. peak memory of hci run during c", float64(ours.peakKiB)/1024, "MiB", 250, true)
		agentMemory(t, bin, store)
	})

	t.Run("d", derivationInfo)

	t.Run("f", func(t *testing.T) {
		store := newStore(t)
		demo, err := filepath.Abs("../../../docs/examples/bakery")
		if err != nil {
			t.Fatal(err)
		}
		ours := hci(t, bin, store, "--dirty", demo)
		figure("f. hci run to first build, demo", ours.first["build-started"].Seconds(), "s", 1.5, true)
	})
}
