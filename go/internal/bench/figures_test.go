//go:build bench

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hercules/internal/testnix"
)

// repetitions of each comparison, as long as they fit into the budget. Both sides take turns, and the figure is the
// median of the ratios: what else the machine does hits both.
const (
	repetitions = 3
	budget      = 25 * time.Second
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
	fmt.Printf("%-46s %9.2f %-7s (limit %s %g) %s\n", name, value, unit, sign, limit, verdict)
}

// compare measures ours against theirs, alternating which is first, and gives the median of the ratios.
func compare(theirs, ours func(i int) time.Duration) float64 {
	var ratios []float64
	begin := time.Now()
	for i := 0; i < repetitions && (i == 0 || time.Since(begin) < budget); i++ {
		var a, b time.Duration
		if i%2 == 0 {
			a, b = theirs(i), ours(i)
		} else {
			b = ours(i)
			a = theirs(i)
		}
		if testing.Verbose() {
			fmt.Printf("   nix %.2f s, ours %.2f s\n", a.Seconds(), b.Seconds())
		}
		ratios = append(ratios, b.Seconds()/a.Seconds())
	}
	return median(ratios)
}

func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[n/2] + values[(n-1)/2]) / 2
}

// timed runs a Nix program and says how long it took.
func timed(store *testnix.Store, name string, args ...string) time.Duration {
	start := time.Now()
	store.Run(name, args...)
	return time.Since(start)
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

// cheap is a set of n derivations. What a salt makes is new to the store.
func cheap(n int, salt string) string {
	return fmt.Sprintf(`builtins.listToAttrs (builtins.genList (i: {
  name = "a${toString i}";
  value = derivation { name = "cheap-${toString i}"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo %s > $out" ]; };
}) %d)`, salt, n)
}

// heavy is a set of n derivations that each take some 100 ms of pure computation.
func heavy(n int, salt string) string {
	return fmt.Sprintf(`let busy = i: builtins.foldl' (a: b: builtins.bitXor (a + b) i) 0 (builtins.genList (x: x) 300000); in
builtins.listToAttrs (builtins.genList (i: {
  name = "a${toString i}";
  value = derivation { name = "heavy-${toString i}-${toString (busy i)}"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo %s > $out" ]; };
}) %d)`, salt, n)
}

func newStore(t *testing.T) *testnix.Store {
	return testnix.New(t, testnix.WithConfig("max-jobs = "+strconv.Itoa(runtime.NumCPU())))
}

// TestFigures prints the figures. What breaks fails; a figure that misses its limit only says so.
func TestFigures(t *testing.T) {
	if runtime.NumCPU() < 2 {
		fmt.Println("(the limits are for two processors or more)")
	}
	bin := programs(t)

	t.Run("a", func(t *testing.T) {
		store := newStore(t)
		files := make([]string, repetitions)
		dirs := make([]string, repetitions)
		for i := range repetitions {
			files[i] = filepath.Join(project(t, cheap(5000, fmt.Sprint("nix", i))), "default.nix")
			dirs[i] = project(t, cheap(5000, fmt.Sprint("hci", i)))
		}
		theirs := func(i int) time.Duration { return timed(store, "nix-instantiate", "--quiet", files[i]) }
		ours := func(i int) time.Duration { return evaluate(t, bin, store, dirs[i], 5000) }
		figure("a. evaluate 5000 cheap attributes, new", compare(theirs, ours), "× nix", 1.5, true)
		figure("a. evaluate 5000 cheap attributes, again", compare(theirs, ours), "× nix", 1.5, true)
	})

	t.Run("b", func(t *testing.T) {
		store := newStore(t)
		ratio := compare(
			func(i int) time.Duration {
				file := filepath.Join(project(t, heavy(200, fmt.Sprint("nix", i))), "default.nix")
				return timed(store, "nix-instantiate", "--quiet", file)
			},
			func(i int) time.Duration {
				return evaluate(t, bin, store, project(t, heavy(200, fmt.Sprint("hci", i))), 200)
			})
		figure("b. evaluate 200 heavy attributes", ratio, "× nix", 0.75, true)
	})

	t.Run("c", func(t *testing.T) {
		store := newStore(t)
		var peak uint64
		ratio := compare(
			func(i int) time.Duration {
				file := filepath.Join(project(t, cheap(500, fmt.Sprint("nix", i))), "default.nix")
				drvs := strings.Fields(store.Run("nix-instantiate", "--quiet", file))
				args := []string{"--realise", "--quiet", "-j", strconv.Itoa(runtime.NumCPU())}
				return timed(store, "nix-store", append(args, drvs...)...)
			},
			func(i int) time.Duration {
				r := hci(t, bin, store, "-j", strconv.Itoa(runtime.NumCPU()), project(t, cheap(500, fmt.Sprint("hci", i))))
				r.want(t, "build-finished", 500)
				peak = max(peak, r.peakKiB)
				return r.between("build-started", "build-finished")
			})
		figure("c. build 500 trivial derivations", ratio, "× nix", 1.25, true)
		figure("e. peak memory of hci run, 500 builds", float64(peak)/1024, "MiB", 250, true)
		agentMemory(t, bin, store)
	})

	t.Run("d", derivationInfo)

	t.Run("f", func(t *testing.T) {
		demo, err := filepath.Abs("../../../docs/examples/bakery")
		if err != nil {
			t.Fatal(err)
		}
		times := make([]float64, repetitions)
		for i := range times {
			// Everything is new to a new store.
			r := hci(t, bin, newStore(t), "--dirty", demo)
			if r.counts["build-started"] == 0 {
				t.Fatal("nothing was built")
			}
			times[i] = r.first["build-started"].Seconds()
		}
		figure("f. hci run to the first build of the demo", median(times), "s", 1.5, true)
	})
}

// evaluate lets hci evaluate a directory, and gives the time from the start of the task to its last event. A single
// attribute is built: none at all would be a failure.
func evaluate(t *testing.T, bin string, store *testnix.Store, dir string, attributes int) time.Duration {
	t.Helper()
	r := hci(t, bin, store, "--attr", "a0", dir)
	r.want(t, "attribute", attributes)
	return r.between("evaluation-started", "evaluation-finished")
}
