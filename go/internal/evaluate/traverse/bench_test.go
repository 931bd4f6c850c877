package traverse_test

import (
	"io"
	"testing"
	"time"

	"hercules/internal/evaluate/traverse"
	"hercules/internal/testnix"
)

// compare measures a walk against nix-instantiate of the same file, with the same daemon and all derivations
// already there.
func compare(b *testing.B, text string, workers int) {
	for _, n := range testnix.Versions(b) {
		b.Run("nix-"+n.Version, func(b *testing.B) {
			p := newProject(b, n, "default.nix", text)
			p.deps.Limits = traverse.Limits{Workers: workers}
			p.walk()
			var ours, theirs time.Duration
			for b.Loop() {
				p.events = nil
				start := time.Now()
				p.walk()
				ours += time.Since(start)
				start = time.Now()
				cmd := p.store.Command("nix-instantiate", p.dir+"/default.nix")
				cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
				theirs += time.Since(start)
			}
			b.ReportMetric(float64(ours)/float64(theirs), "x-nix-instantiate")
			b.ReportMetric(float64(len(p.events))*float64(b.N)/ours.Seconds(), "attributes/s")
		})
	}
}

func BenchmarkCheap(b *testing.B) {
	compare(b, `builtins.listToAttrs (builtins.genList (i: {
		name = "attribute-${builtins.toString i}";
		value = derivation { name = "d${builtins.toString i}"; system = "x86_64-linux"; builder = "/bin/sh"; };
	}) 5000)`, 1)
}

func BenchmarkCheapTwoWorkers(b *testing.B) {
	compare(b, `builtins.listToAttrs (builtins.genList (i: {
		name = "attribute-${builtins.toString i}";
		value = derivation { name = "d${builtins.toString i}"; system = "x86_64-linux"; builder = "/bin/sh"; };
	}) 5000)`, 2)
}

func BenchmarkHeavy(b *testing.B) {
	compare(b, `builtins.listToAttrs (builtins.genList (i: {
		name = "attribute-${builtins.toString i}";
		value = derivation {
			name = "d${builtins.toString (builtins.foldl' (a: x: a + x * i) 0 (builtins.genList (x: x) 500000))}";
			system = "x86_64-linux"; builder = "/bin/sh";
		};
	}) 60)`, 2)
}
