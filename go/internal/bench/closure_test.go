//go:build bench

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nix-community/go-nix/pkg/nixbase32"

	"hercules/internal/evaluate/report"
	"hercules/internal/nix/derivation"
	"hercules/internal/wire/agentapi"
)

// closureSize is about that of a desktop in Nixpkgs.
const closureSize = 20_000

// derivationInfo measures how fast a closure is described to the coordinator: files are read and parsed, put into
// order, and encoded as they are posted.
func derivationInfo(t *testing.T) {
	root := t.TempDir()
	top := writeClosure(t, root)
	rates := make([]float64, repetitions)
	for i := range rates {
		runtime.GC()
		start := time.Now()
		n := describe(t, root, top)
		rates[i] = float64(n) / time.Since(start).Seconds()
		if n != closureSize {
			t.Fatalf("%d derivations described", n)
		}
	}
	figure("d. describe a closure of 20000 derivations", median(rates), "drv/s", 20_000, false)
}

func describe(t *testing.T, root, top string) int {
	t.Helper()
	var described atomic.Int64
	collector := report.NewCollector(t.Context(), report.CollectorConfig{
		Post: func(_ context.Context, events []agentapi.EvaluateEvent) error {
			body, err := agentapi.Marshal(&events)
			if err == nil && len(body) == 0 {
				err = fmt.Errorf("nothing to post")
			}
			for _, e := range events {
				if e.DerivationInfo != nil {
					described.Add(1)
				}
			}
			return err
		},
	})
	planner := report.NewPlanner(t.Context(), report.PlannerConfig{
		Read: func(_ context.Context, path string) (*derivation.Derivation, error) {
			return derivation.Read(root, path)
		},
		Events: collector,
	})
	planner.Add(top, report.Whole)
	if err := planner.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := collector.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return int(described.Load())
}

// writeClosure makes derivations like those of Nixpkgs: some 3 kB, a dozen inputs, thirty variables.
func writeClosure(t *testing.T, root string) (top string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, "nix/store"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := func(kind byte, i int) string {
		hash := make([]byte, 20)
		hash[0], hash[9], hash[18], hash[19] = kind, byte(i*7), byte(i>>8), byte(i)
		return fmt.Sprintf("/nix/store/%s-package-%d.%d", nixbase32.EncodeToString(hash), i, i%17)
	}
	for i := range closureSize {
		d := &derivation.Derivation{
			Outputs:   map[string]derivation.Output{"out": {Path: path('o', i)}, "dev": {Path: path('v', i)}},
			InputDrvs: map[string][]string{},
			InputSrcs: []string{"/nix/store/00000000000000000000000000000000-builder.sh", path('s', i/10)},
			Platform:  "x86_64-linux", Builder: path('o', 0) + "/bin/bash", Args: []string{"-e", "/nix/store/00000000000000000000000000000000-builder.sh"},
			Env: map[string]string{"out": path('o', i), "dev": path('v', i), "requiredSystemFeatures": "", "buildPhase": strings.Repeat("make $flags \\\n", 60)},
		}
		for k := range 26 {
			d.Env[fmt.Sprintf("variable%d", k)] = fmt.Sprintf("the \"value\" of %d: %s/lib", k, path('o', i/2+k))
		}
		if i > 0 {
			d.InputDrvs[path('d', i-1)+".drv"] = []string{"out"}
		}
		for k := range 11 {
			if in := i * k / 11; in < i {
				d.InputDrvs[path('d', in)+".drv"] = []string{"dev", "out"}
			}
		}
		top = path('d', i) + ".drv"
		if err := os.WriteFile(filepath.Join(root, top), d.Append(nil), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	return top
}
