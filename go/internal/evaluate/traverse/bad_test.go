package traverse_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/evaluate/traverse"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/evaluator"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

// errorAt gives the error event of an attribute of the first level.
func (p *project) errorAt(name string) *agentapi.AttributeErrorEvent {
	p.t.Helper()
	for _, e := range p.events {
		if e.AttributeError != nil && len(e.AttributeError.ExpressionPath) == 1 && e.AttributeError.ExpressionPath[0] == name {
			return e.AttributeError
		}
	}
	p.t.Fatalf("no error at %s: %q", name, p.lines())
	return nil
}

// names of the attributes that were reported, in order.
func (p *project) attributes() []string {
	var names []string
	for _, e := range p.events {
		if e.Attribute != nil {
			names = append(names, strings.Join(e.Attribute.ExpressionPath, "/"))
		}
	}
	return names
}

// TestErrorText: what people read has the place of the error and colours, and nothing of ours.
func TestErrorText(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "ci.nix", `
			let
			  helper = x: builtins.seq x.missing 1;
			in
			{
			  a = { recurseForDerivations = true; b = helper { }; };
			  c = throw "thrown";
			  d = { type = "derivation"; };
			  e = { type = "derivation"; drvPath = "/etc/passwd"; };
			  f = throw "first\n\nsecond ${"$"}{x}";
			}`)
		p.walk()
		var b *agentapi.AttributeErrorEvent
		for _, e := range p.events {
			if e.AttributeError == nil {
				t.Errorf("unexpected %s", p.line(e))
				continue
			}
			if len(e.AttributeError.ExpressionPath) == 2 {
				b = e.AttributeError
			}
			text := e.AttributeError.ErrorMessage
			if e.AttributeError.Trace != nil {
				text += *e.AttributeError.Trace
			}
			for _, ours := range []string{"hci-evaluate", "«string»", "hci.", "walk.nix", "call.nix", "default.nix"} {
				if strings.Contains(text, ours) {
					t.Errorf("%v has %s:\n%s", e.AttributeError.ExpressionPath, ours, text)
				}
			}
		}
		if b == nil || b.Trace == nil {
			t.Fatalf("no trace: %+v", b)
		}
		plain := evaluator.StripANSI(b.ErrorMessage)
		if !strings.HasPrefix(plain, "error: attribute 'missing' missing\n") || !strings.Contains(plain, "ci.nix:3:") || plain == b.ErrorMessage {
			t.Errorf("message %q", b.ErrorMessage)
		}
		if trace := evaluator.StripANSI(*b.Trace); !strings.Contains(trace, "ci.nix:6:") || strings.Contains(trace, "error:") {
			t.Errorf("trace %s", trace)
		}
		if got := evaluator.StripANSI(p.errorAt("c").ErrorMessage); got != "error: thrown" {
			t.Errorf("message %q", got)
		}
		if got := p.errorAt("d").ErrorMessage; !strings.Contains(got, "drvPath") {
			t.Errorf("message %q", got)
		}
		if got := p.errorAt("e").ErrorMessage; !strings.Contains(got, "/etc/passwd") {
			t.Errorf("message %q", got)
		}
		if got := evaluator.StripANSI(p.errorAt("f").ErrorMessage); !strings.Contains(got, "first\n\n") || !strings.HasSuffix(got, "second ${x}") {
			t.Errorf("message %q", got)
		}
	})
}

// TestRecursion: an endless recursion costs its own attribute.
func TestRecursion(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let inherit (import ./common.nix) drv; in
			builtins.listToAttrs (builtins.genList (i: { name = "a${builtins.toString (10 + i)}"; value = drv "a" { }; }) 20)
			// { a15 = let f = x: 1 + f (x + 1); in drv (builtins.toString (f 1)) { }; }`)
		p.walk()
		if got := evaluator.StripANSI(p.errorAt("a15").ErrorMessage); !strings.HasPrefix(got, "error: stack overflow") {
			t.Errorf("message %q", got)
		}
		if got := p.attributes(); len(got) != 19 || !slices.IsSorted(got) {
			t.Errorf("%q", got)
		}
	})
}

func TestOddNames(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		names := []string{
			"", " ", "\"", "\\", "$", "${x}", "$${x}", "''${x}''", "a.b", "a\nb", "a\r\tb", "é", "日本", "😀", "\x01\x1b[0m", "@nix {}", ":q", "'", "`", "a\"; abort \"x",
		}
		slices.Sort(names)
		list, err := json.Marshal(names)
		if err != nil {
			t.Fatal(err)
		}
		p := newProject(t, n, "default.nix", `
			let inherit (import ./common.nix) drv; in
			builtins.listToAttrs (builtins.map (name: {
			  inherit name;
			  value = { recurseForDerivations = true; ${name} = { recurseForDerivations = true; x = drv "x" { }; ${name + "!"} = throw "bad"; }; };
			}) (builtins.fromJSON (builtins.readFile ./names.json)))`, "names.json", string(list))
		p.walk()
		var want, got [][]string
		for _, name := range names {
			want = append(want, []string{name, name, "x"}, []string{name, name, name + "!"})
		}
		for _, e := range p.events {
			switch {
			case e.Attribute != nil:
				got = append(got, e.Attribute.ExpressionPath)
			case e.AttributeError != nil:
				got = append(got, e.AttributeError.ExpressionPath)
			}
		}
		sort := func(l [][]string) { slices.SortFunc(l, slices.Compare[[]string]) }
		sort(want)
		if d := cmp.Diff(want, sorted(got, sort)); d != "" {
			t.Errorf("paths (-want +got):\n%s", d)
		}
	})
}

func sorted(l [][]string, sort func([][]string)) [][]string {
	l = slices.Clone(l)
	sort(l)
	return l
}

func TestManyAttributes(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		const count = 60000
		p := newProject(t, n, "default.nix", fmt.Sprintf(`
			builtins.listToAttrs (builtins.genList (i: { name = "attribute-${builtins.toString (100000 + i)}"; value = throw "no"; }) 100)
			// builtins.listToAttrs (builtins.genList (i: {
			  name = "set-${builtins.toString (100000 + i)}"; value = { type = "derivation"; drvPath = "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x.drv"; }; }) %d)`, count))
		p.walk()
		if len(p.events) != count+100 {
			t.Fatalf("%d events", len(p.events))
		}
		if got := p.attributes(); len(got) != count || !slices.IsSorted(got) {
			t.Errorf("%d attributes", len(got))
		}
	})
}

// TestMemoryLimit: an attribute that needs too much costs itself and nothing else.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let inherit (import ./common.nix) drv; in
			builtins.listToAttrs (builtins.genList (i: { name = "a${builtins.toString (10 + i)}"; value = drv "a" { }; }) 10)
			// { a15 = let l = builtins.genList (x: { a = x; b = [ x x x x ]; }) 40000000; in drv (builtins.toString (builtins.length (builtins.filter (x: x.b == [ ]) l))) { }; }`)
		p.deps.Limits.Memory = 300 << 20
		p.walk()
		if got := p.errorAt("a15").ErrorMessage; !strings.Contains(got, "more memory") {
			t.Errorf("message %q", got)
		}
		if got := p.attributes(); len(got) != 9 || !slices.IsSorted(got) {
			t.Errorf("%q", got)
		}
	})
}

// endless never ends and uses neither stack nor memory.
const endless = `builtins.foldl' (a: _: builtins.foldl' (b: _: builtins.foldl' (c: _: c) 0 l) 0 l) 0 l`

func TestAttributeTime(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let inherit (import ./common.nix) drv; l = builtins.genList (x: x) 30000; in
			builtins.listToAttrs (builtins.genList (i: { name = "a${builtins.toString (10 + i)}"; value = drv "a" { }; }) 10)
			// { a15 = drv (builtins.toString (`+endless+`)) { }; }`)
		p.deps.Limits.AttributeTime = time.Second
		p.walk()
		if got := p.errorAt("a15").ErrorMessage; !strings.Contains(got, "longer than") {
			t.Errorf("message %q", got)
		}
		if got := p.attributes(); len(got) != 9 || !slices.IsSorted(got) {
			t.Errorf("%q", got)
		}
	})
}

func TestJobTime(t *testing.T) {
	t.Parallel()
	p := newProject(t, testnix.Versions(t)[0], "default.nix", `let l = builtins.genList (x: x) 30000; in `+endless)
	p.deps.Limits.JobTime = 500 * time.Millisecond
	if err := traverse.Walk(t.Context(), p.job, p.deps); !errors.Is(err, traverse.ErrJobTime) {
		t.Errorf("error %v", err)
	}
	want(t, p.lines(), "message 0 Error The evaluation took longer than the 500ms it is allowed to. It was stopped.")
}

func TestCancel(t *testing.T) {
	t.Parallel()
	p := newProject(t, testnix.Versions(t)[0], "default.nix", `let l = builtins.genList (x: x) 30000; in { a = `+endless+`; b = 1 + ""; }`)
	p.deps.Limits.Workers = 2
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("task is cancelled")
	p.onEvent = func(agentapi.EvaluateEvent) { t.Error("an event out of order") }
	time.AfterFunc(300*time.Millisecond, func() { cancel(stopped) })
	if err := traverse.Walk(ctx, p.job, p.deps); !errors.Is(err, stopped) {
		t.Errorf("error %v", err)
	}
}

// TestEmitFails: the first error of the taker ends the walk.
func TestEmitFails(t *testing.T) {
	t.Parallel()
	p := newProject(t, testnix.Versions(t)[0], "default.nix", `builtins.listToAttrs (builtins.genList (i: { name = "a${builtins.toString i}"; value = throw "x"; }) 1000)`)
	full := errors.New("limit reached")
	calls := 0
	p.deps.Emit = func(context.Context, agentapi.EvaluateEvent) error {
		if calls++; calls == 10 {
			return full
		}
		return nil
	}
	if err := traverse.Walk(t.Context(), p.job, p.deps); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	if calls != 10 {
		t.Errorf("%d calls", calls)
	}
}

// TestKilledEvaluator: somebody kills evaluators in the middle of a command, and everything is still reported.
func TestKilledEvaluator(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let inherit (import ./common.nix) drv; in
			builtins.listToAttrs (builtins.genList (i: { name = "a${builtins.toString (1000 + i)}"; value = builtins.trace "at ${builtins.toString i}" (builtins.seq (builtins.foldl' builtins.add 0 (builtins.genList (x: x) 20000)) (drv "a${builtins.toString i}" { })); }) 400)`)
		var pids sync.Map
		killed := 0
		p.onEvent = func(e agentapi.EvaluateEvent) {
			if e.Attribute == nil || killed >= 3 {
				return
			}
			if name := e.Attribute.ExpressionPath[0]; strings.HasSuffix(name, "00") {
				killed += p.killOne(&pids)
			}
		}
		p.walk()
		if killed == 0 {
			t.Error("nothing was killed")
		}
		if got := p.attributes(); len(got) != 400 || !slices.IsSorted(got) {
			t.Errorf("%d attributes", len(got))
		}
	})
}

// killOne kills an evaluator of this test that was not killed before.
func (p *project) killOne(seen *sync.Map) int {
	if runtime.GOOS != "linux" {
		p.t.Skip("SKIP: finds evaluators by /proc")
	}
	for _, f := range mustGlob("/proc/[0-9]*/environ") {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), "HOME="+p.store.Dir()+"/") || !strings.Contains(string(b), "NIX_PATH=hci-") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/environ", &pid); err != nil {
			continue
		}
		if _, again := seen.LoadOrStore(pid, true); again {
			continue
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return 1
	}
	return 0
}

// TestDaemonDies: the daemon goes away in the middle; there is an error that says so, and the walk ends.
func TestDaemonDies(t *testing.T) {
	t.Parallel()
	p := newProject(t, testnix.Versions(t)[0], "default.nix", `
		let inherit (import ./common.nix) drv; in
		{ a = drv "a" { }; b = drv "b" { }; c = throw "needs no daemon"; }`)
	p.deps.StartProxy = func(context.Context, int, func(context.Context, []daemon.DerivedPath) error) (string, func(), error) {
		return "unix://" + filepath.Join(p.store.Dir(), "nobody") + "?root=" + p.store.Root(), func() {}, nil
	}
	p.walk()
	if got := p.errorAt("a").ErrorMessage; !strings.Contains(got, "cannot connect to") && !strings.Contains(got, "remote store") {
		t.Errorf("message %q", got)
	}
	if got := p.errorAt("c").ErrorMessage; !strings.Contains(got, "needs no daemon") {
		t.Errorf("message %q", got)
	}
}

// TestRestricted: what may be read and fetched.
func TestRestricted(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let
			  inherit (import ./common.nix) drv;
			  bad = e: builtins.deepSeq e 1;
			in
			{
			  a-inside = drv (builtins.readFile ./dir/name) { };
			  a-string = { src }: 1;
			  a-path = drv (builtins.head (builtins.attrNames (builtins.readDir <pkgs>))) { };
			  a-prefix = drv (import <pkgs/name.nix>) { };
			  a-env = drv "env${builtins.getEnv "HOME"}" { };
			  a-system = drv builtins.currentSystem { };
			  a-time = drv (builtins.typeOf builtins.currentTime) { };
			  b-etc = bad (builtins.readFile /etc/passwd);
			  b-parent = bad (builtins.readFile (./. + "/../secret"));
			  b-link = bad (builtins.readFile ./link);
			  b-linkdir = bad (builtins.readDir ./linkdir);
			  b-unknown = bad (import <nixpkgs>);
			  b-string = bad (import "/etc/passwd");
			  b-home = bad (builtins.readDir ~/.);
			  c-http = bad (builtins.fetchurl "http://127.0.0.1:1/x");
			  c-file = bad (builtins.fetchurl "file:///etc/passwd");
			  c-tarball = bad (builtins.fetchTarball "http://127.0.0.1:1/x.tar.gz");
			  c-git = bad (builtins.fetchGit "/etc");
			}`, "dir/name", "inside")
		p.store.File("secret", "secret")
		p.store.File("pkgs/name.nix", `"by-prefix"`)
		for link, target := range map[string]string{"link": "/etc/passwd", "linkdir": "/etc"} {
			if err := os.Symlink(target, filepath.Join(p.dir, link)); err != nil {
				t.Fatal(err)
			}
		}
		p.job.NixPath = []evaluator.SearchPath{{Prefix: "pkgs", Path: filepath.Join(filepath.Dir(p.dir), "pkgs")}}
		p.store.File("project/ci-default-system.txt", "riscv64-linux\n")
		var good, bad []string
		for _, e := range p.walkEvents() {
			switch {
			case e.Attribute != nil:
				good = append(good, e.Attribute.ExpressionPath[0]+" "+e.Attribute.DerivationPath[44:])
			case e.AttributeError != nil:
				bad = append(bad, e.AttributeError.ExpressionPath[0])
				text := evaluator.StripANSI(e.AttributeError.ErrorMessage)
				if !strings.Contains(text, "restricted mode") && !strings.Contains(text, "forbidden") && !strings.Contains(text, "was not found in the Nix search path") {
					t.Errorf("%s: %s", e.AttributeError.ExpressionPath, text)
				}
			}
		}
		want(t, good, "a-env env.drv", "a-inside inside.drv", "a-path name.nix.drv", "a-prefix by-prefix.drv", "a-system riscv64-linux.drv", "a-time int.drv")
		want(t, bad, "b-etc", "b-home", "b-link", "b-linkdir", "b-parent", "b-string", "b-unknown", "c-file", "c-git", "c-http", "c-tarball")
		if _, err := os.ReadDir(filepath.Join(p.store.Root(), "nix/store")); err == nil {
			for _, f := range mustGlob(p.store.Root() + "/nix/store/*-project") {
				t.Errorf("the checkout is in the store: %s", f)
			}
		}
	})
}

func (p *project) walkEvents() []agentapi.EvaluateEvent {
	p.walk()
	return p.events
}

func TestAutoArguments(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let inherit (import ./common.nix) drv; in
			{
			  __functor = self: { pkgs, meta, src ? null, other ? "default" }: {
			    a = drv (builtins.baseNameOf pkgs) { };
			    b = drv "${meta.rev}-${builtins.baseNameOf meta}" { };
			    c = drv other { };
			    d = { recurseForDerivations = true; __functor = self: { ... }: { x = drv "deep" { }; }; };
			    e = { __functor = throw "not entered"; };
			  };
			  ignored = throw "never";
			}`)
		p.job.AutoArguments = map[string]traverse.AutoArgument{
			"pkgs": {Path: p.dir},
			"meta": {Path: p.dir, Metadata: map[string]json.RawMessage{"rev": json.RawMessage(`"cafe"`)}},
		}
		want(t, p.walk(),
			`attribute ["a"] Regular project.drv`,
			`attribute ["b"] Regular cafe-project.drv`,
			`attribute ["c"] Regular default.drv`,
			`attribute ["d" "x"] Regular deep.drv`,
		)
	})
}
