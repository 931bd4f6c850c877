package traverse_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/evaluate/traverse"
	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

func TestImportFromDerivation(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
let
  inherit (import ./common.nix) drv;
  generated = name: text: drv name { args = [ "-c" "printf '%s' '${text}' > $out" ]; };
  failing = drv "failing" { args = [ "-c" "exit 1" ]; };
in
{
  a-before = drv "before" { };
  b-good = drv (import (generated "name.nix" "\"good\"")) { };
  c-after = drv "after" { };
  d-two-levels = drv (builtins.readFile (generated (builtins.readFile (generated "one" "two")) "three")) { };
  e-bad = drv (import failing) { };
  f-hidden = let r = builtins.tryEval (import failing); in if r.success then drv "x" { } else drv "hidden" { };
  g-set = { recurseForDerivations = true; x = drv "x" { }; y = drv (builtins.readFile (generated "y" "y")) { }; z = drv "z" { }; };
  z-last = drv "last" { };
}`)
		got := p.walk()
		// What waits comes later than its siblings, but the order is right in itself.
		about := map[string][]string{}
		for _, l := range got {
			if rest, ok := strings.CutPrefix(l, "ifd "); ok {
				_, l, _ = strings.Cut(rest, " ")
				l = "ifd " + l
			}
			name := strings.Join(strings.Split(strings.Split(l, "]")[0], `"`)[1:], "")
			about[name] = append(about[name], l)
		}
		var lines []string
		for _, name := range []string{"a-before", "b-good", "c-after", "d-two-levels", "e-bad", "f-hidden", "g-set x", "g-set z", "g-set y", "z-last"} {
			lines = append(lines, about[name]...)
		}
		failed := "error: the derivation /nix/store/HASH-failing.drv, or a dependency of it, could not be built, and its output is required during evaluation drv=failing.drv type=BuildException"
		for i, l := range lines {
			lines[i] = hashes.ReplaceAllString(l, "/nix/store/HASH-")
		}
		want(t, lines,
			`attribute ["a-before"] Regular before.drv`,
			`ifd ["b-good"] name.nix.drv out false`,
			`ifd ["b-good"] name.nix.drv out true`,
			`attribute ["b-good"] Regular good.drv`,
			`attribute ["c-after"] Regular after.drv`,
			`ifd ["d-two-levels"] one.drv out false`,
			`ifd ["d-two-levels"] one.drv out true`,
			`ifd ["d-two-levels"] two.drv out false`,
			`ifd ["d-two-levels"] two.drv out true`,
			`attribute ["d-two-levels"] Regular three.drv`,
			`ifd ["e-bad"] failing.drv out false`,
			`ifd ["e-bad"] failing.drv out true`,
			`error ["e-bad"] `+failed,
			`ifd ["f-hidden"] failing.drv out false`,
			`ifd ["f-hidden"] failing.drv out true`,
			`error ["f-hidden"] `+failed,
			`attribute ["g-set" "x"] Regular x.drv`,
			`attribute ["g-set" "z"] Regular z.drv`,
			`ifd ["g-set" "y"] y.drv out false`,
			`ifd ["g-set" "y"] y.drv out true`,
			`attribute ["g-set" "y"] Regular y.drv`,
			`attribute ["z-last"] Regular last.drv`,
		)
		for i, e := range ifdIndexes(p) {
			if e != int64(i) {
				t.Errorf("AttributeIFD %d has index %d", i, e)
			}
		}
	})
}

func ifdIndexes(p *project) []int64 {
	var all []int64
	for _, e := range p.events {
		if e.AttributeIFD != nil {
			all = append(all, e.AttributeIFD.Index)
		}
	}
	return all
}

// many attributes, each of which waits for its own build.
const manyIFDs = `
let inherit (import ./common.nix) drv; in
builtins.listToAttrs (builtins.genList (i:
  let n = builtins.toString (100 + i); in
  {
    name = if i / 3 * 3 == i then "p${n}-plain" else "p${n}-waits";
    value = drv (if i / 3 * 3 == i then "plain" else builtins.readFile (drv "gen${n}" { args = [ "-c" "printf done${n} > $out" ]; })) { };
  }) 30)`

// TestSiblingsDoNotWait holds every build back until all attributes that need none have been reported.
func TestSiblingsDoNotWait(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		for _, limits := range []traverse.Limits{{Workers: 1, Waiting: 100}, {Workers: 2, Waiting: 2}, {Workers: 1, Waiting: 16}} {
			p := newProject(t, n, "default.nix", strings.ReplaceAll(manyIFDs, ") 30)", ") 24)"))
			p.deps.Limits = limits
			plain := 8
			if limits.Waiting == 2 {
				// 18 may wait at the same time: 2 with an evaluator, 16 without.
				plain = 8
			}
			release := make(chan struct{})
			var once sync.Once
			seen := 0
			p.onEvent = func(e agentapi.EvaluateEvent) {
				if e.Attribute != nil && strings.HasSuffix(e.Attribute.ExpressionPath[0], "plain") {
					if seen++; seen == plain {
						once.Do(func() { close(release) })
					}
				}
			}
			p.realise = func(ctx context.Context, _ daemon.DerivedPath) error {
				select {
				case <-release:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Minute):
					return errors.New("siblings wait for a build")
				}
			}
			attributes := map[string]string{}
			p.walk()
			for _, e := range p.events {
				if e.Attribute != nil {
					name := e.Attribute.ExpressionPath[0]
					if attributes[name] != "" {
						t.Errorf("%s is reported twice", name)
					}
					attributes[name] = e.Attribute.DerivationPath
				}
				if e.AttributeError != nil {
					t.Errorf("%+v: %s", e.AttributeError.ExpressionPath, e.AttributeError.ErrorMessage)
				}
			}
			if len(attributes) != 24 {
				t.Errorf("%+v: %d attributes", limits, len(attributes))
			}
			for name, drv := range attributes {
				num, _, _ := strings.Cut(name[1:], "-")
				if strings.HasSuffix(name, "waits") && !strings.HasSuffix(drv, "-done"+num+".drv") {
					t.Errorf("%s is %s", name, drv)
				}
			}
		}
	})
}

// TestSharedImportFromDerivation: everything waits for the same build.
func TestSharedImportFromDerivation(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let
			  inherit (import ./common.nix) drv;
			  plan = builtins.readFile (drv "plan" { args = [ "-c" "printf planned > $out" ]; });
			in
			builtins.listToAttrs (builtins.genList (i: { name = "a${builtins.toString i}"; value = drv "${plan}${builtins.toString i}" { }; }) 100)`)
		p.deps.Limits = traverse.Limits{Workers: 2, Waiting: 1}
		p.walk()
		attributes := 0
		for _, e := range p.events {
			if e.Attribute != nil {
				attributes++
			}
			if e.AttributeError != nil {
				t.Error(p.line(e))
			}
		}
		if attributes != 100 {
			t.Errorf("%d attributes", attributes)
		}
	})
}

// TestRootWaits: the root itself needs a build. It blocks, and there are no events of attributes about it.
func TestRootWaits(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let inherit (import ./common.nix) drv; in
			import (drv "root" { args = [ "-c" "echo '{ drv }: { a = drv \"a\" { }; }' > $out" ]; }) { inherit drv; }`)
		var blocking []bool
		build := p.deps.Realise
		p.deps.Realise = func(ctx context.Context, path daemon.DerivedPath, b bool) error {
			p.mu.Lock()
			blocking = append(blocking, b)
			p.mu.Unlock()
			return build(ctx, path, b)
		}
		want(t, p.walk(), `attribute ["a"] Regular a.drv`)
		if len(blocking) == 0 || !blocking[0] {
			t.Errorf("blocking: %v", blocking)
		}
	})
}

func TestRootFailsToBuild(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `import ((import ./common.nix).drv "root" { args = [ "-c" "exit 1" ]; })`)
		got := p.walk()
		if len(got) != 1 || !strings.Contains(got[0], "could not be built") || !strings.HasSuffix(got[0], "drv=root.drv type=BuildException") {
			t.Errorf("%q", got)
		}
	})
}

// TestRealiseFails: a failure that is not the build's ends the walk.
func TestRealiseFails(t *testing.T) {
	t.Parallel()
	p := newProject(t, testnix.Versions(t)[0], "default.nix", manyIFDs)
	broken := errors.New("coordinator is away")
	p.deps.Realise = func(ctx context.Context, path daemon.DerivedPath, _ bool) error {
		return fmt.Errorf("asking: %w", broken)
	}
	if err := traverse.Walk(t.Context(), p.job, p.deps); !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
}

// TestKilledWhileWaiting: an evaluator that is killed while its attribute waits costs nothing.
func TestKilledWhileWaiting(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let inherit (import ./common.nix) drv; in
			{ a = drv (builtins.readFile (drv "gen" { args = [ "-c" "printf done > $out" ]; })) { }; b = drv "b" { }; }`)
		p.deps.Limits.Workers = 1
		var again atomic.Bool
		p.realise = func(ctx context.Context, _ daemon.DerivedPath) error {
			if again.Swap(true) {
				return nil
			}
			var seen sync.Map
			killed := 0
			for p.killOne(&seen) == 1 {
				killed++
			}
			if killed == 0 {
				return errors.New("no evaluator to kill")
			}
			<-ctx.Done()
			return context.Cause(ctx)
		}
		p.walk()
		got := p.attributes()
		slices.Sort(got)
		if d := cmp.Diff([]string{"a", "b"}, got); d != "" {
			t.Errorf("%s\n%q", d, p.lines())
		}
	})
}
