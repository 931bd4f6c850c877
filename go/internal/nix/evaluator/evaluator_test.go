package evaluator_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/evaluator"
	"hercules/internal/testnix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts an evaluator on a store of its own and gives what it logs.
func start(t testing.TB, n testnix.Nix, change func(*evaluator.Config)) (*evaluator.Process, func() []daemon.Event) {
	t.Helper()
	s := testnix.New(t, testnix.WithNix(n))
	var mu sync.Mutex
	var log []daemon.Event
	cfg := evaluator.Config{
		Program: s.Program("nix"), Env: s.Env(), Dir: s.Dir(),
		Settings: map[string]string{"restrict-eval": "true"},
		Log: func(e daemon.Event) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, e)
		},
	}
	if change != nil {
		change(&cfg)
	}
	p, err := evaluator.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, func() []daemon.Event {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(log)
	}
}

// run evaluates expressions whose JSON are the results.
func run(p *evaluator.Process, exprs ...string) ([]string, error) {
	var got []string
	expr := "null"
	for _, e := range slices.Backward(exprs) {
		expr = fmt.Sprintf(`builtins.trace ("%sr" + builtins.toJSON (%s)) (%s)`, p.Marker(), e, expr)
	}
	err := p.Run(context.Background(), expr, func(b []byte) { got = append(got, string(b)) })
	return got, err
}

func TestRun(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p, log := start(t, n, nil)
		got, err := run(p, "1 + 1", `"a"`)
		if d := cmp.Diff([]string{"2", `"a"`}, got); d != "" || err != nil {
			t.Errorf("%v\n%s", err, d)
		}
		// What came before an error is there, and the error is the command's own.
		got, err = run(p, "1", `throw "own"`, "2")
		e, ok := errors.AsType[*evaluator.EvalError](err)
		if d := cmp.Diff([]string{"1"}, got); d != "" || !ok || e.Error() != "error: own" || e.Trace != "" {
			t.Errorf("%#v\n%s", err, d)
		}
		// The process goes on after each kind of error, and remembers definitions.
		if err := p.Define("x", `throw "later"`); err != nil {
			t.Fatal(err)
		}
		for expr, text := range map[string]string{
			"x": "error: later", `abort "a"`: "error: evaluation aborted with the following error message: 'a'",
			"{ }.y": "error: attribute 'y' missing", "let z = z; in z": "error: infinite recursion encountered",
			"1 +": "error: syntax error, unexpected ')'", "undefined": "error: undefined variable 'undefined'",
			"assert false; 1": "error: assertion 'false' failed",
		} {
			_, err := run(p, expr)
			if e, ok := errors.AsType[*evaluator.EvalError](err); !ok || !strings.HasPrefix(e.Error(), text) || strings.Contains(e.Message+e.Trace, "«string»") {
				t.Errorf("%s: %#v", expr, err)
			}
		}
		// Somebody else's traces, also those that look like ours, are log.
		before := len(log())
		got, err = run(p, `builtins.trace "@00@r1" (builtins.trace "user\nline" 5)`)
		if d := cmp.Diff([]string{"5"}, got); d != "" || err != nil {
			t.Errorf("%v\n%s", err, d)
		}
		var texts []string
		for _, e := range log()[before:] {
			texts = append(texts, e.Text)
		}
		if d := cmp.Diff([]string{"trace: @00@r1", "trace: user\nline"}, texts); d != "" {
			t.Errorf("log (-want +got):\n%s", d)
		}
		if err := p.Run(t.Context(), "1\n2", nil); err == nil {
			t.Error("a command of two lines is taken")
		}
	})
}

// TestUnfinishedFile: the repl of older Nix waits for more when a file ends too early.
func TestUnfinishedFile(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "cut.nix"), []byte("{\n  a = 1;\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		p, log := start(t, n, func(c *evaluator.Config) {
			c.SearchPath = []evaluator.SearchPath{{Prefix: "dir", Path: dir}}
		})
		if err := p.Define("cut", "import <dir/cut.nix>"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		before := len(log())
		for _, expr := range []string{"cut", "import <dir/cut.nix>"} {
			expr = `builtins.trace "` + p.Marker() + `r1" (` + expr + `)`
			err := p.Run(ctx, expr, nil)
			e, ok := errors.AsType[*evaluator.EvalError](err)
			if !ok || !strings.HasPrefix(e.Error(), "error: syntax error, unexpected end of file") || !strings.Contains(e.Error(), dir+"/cut.nix:") {
				t.Errorf("%s: %#v", expr, err)
			}
		}
		if events := log()[before:]; len(events) != 0 {
			t.Errorf("it logged %+v", events)
		}
		// What comes next is not taken for the rest.
		if got, err := run(p, "1 + 1"); err != nil || !slices.Equal(got, []string{"2"}) {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestCrash(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p, _ := start(t, n, nil)
		got, err := run(p, `"before"`, "let f = x: 1 + f (x + 1); in f 1")
		if len(got) != 1 {
			t.Errorf("results %q", got)
		}
		if n.AtLeast(2, 24) {
			if e, ok := errors.AsType[*evaluator.EvalError](err); !ok || !strings.HasPrefix(e.Error(), "error: stack overflow") {
				t.Errorf("%#v", err)
			}
		} else {
			c, ok := errors.AsType[*evaluator.CrashError](err)
			if !ok || !c.StackOverflow() {
				t.Errorf("%#v", err)
			}
			if err := p.Run(t.Context(), "1", nil); !errors.Is(err, c) {
				t.Errorf("after the end: %v", err)
			}
		}

		p, _ = start(t, n, nil)
		pid := p.PID()
		time.AfterFunc(200*time.Millisecond, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		_, err = run(p, endless)
		if c, ok := errors.AsType[*evaluator.CrashError](err); !ok || c.State != "signal: killed" || c.Reason != nil {
			t.Errorf("%#v", err)
		}

		p, _ = start(t, n, nil)
		reason := errors.New("reason")
		victim := p
		time.AfterFunc(200*time.Millisecond, func() { victim.Kill(reason) })
		if _, err = run(p, endless); !errors.Is(err, reason) {
			t.Errorf("%#v", err)
		}

		p, _ = start(t, n, func(c *evaluator.Config) { c.MemoryLimit = 200 << 20 })
		if _, err = run(p, "builtins.length (builtins.filter (x: x == [ ]) (builtins.genList (x: [ x x x x ]) 40000000))"); !errors.Is(err, evaluator.ErrMemoryLimit) {
			t.Errorf("%#v", err)
		}

		p, _ = start(t, n, nil)
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(200*time.Millisecond, func() { cancel(reason) })
		if err := p.Run(ctx, endless, nil); !errors.Is(err, reason) {
			t.Errorf("%#v", err)
		}
	})
}

const endless = `let l = builtins.genList (x: x) 30000; in builtins.foldl' (a: _: builtins.foldl' (b: _: builtins.foldl' (c: _: c) 0 l) 0 l) 0 l`

func TestNotNix(t *testing.T) {
	t.Parallel()
	if _, err := evaluator.Start(t.Context(), evaluator.Config{Program: "/nonexistent/nix", Dir: filepath.Join(t.TempDir(), "missing")}); err == nil {
		t.Error("no error")
	}
	p, err := evaluator.Start(t.Context(), evaluator.Config{Program: "/nonexistent/nix"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Run(t.Context(), "1", nil); err == nil || !strings.Contains(err.Error(), "/nonexistent/nix") {
		t.Errorf("%v", err)
	}
}

func TestEnviron(t *testing.T) {
	t.Parallel()
	got := evaluator.Environ([]string{"HOME=/x", "IN_NIX_SHELL=1", "NIXPKGS_ALLOW_UNFREE=1", "NIXOS_CONFIG=x", "NIX_PATH=x", "NIX_REMOTE=y"})
	if d := cmp.Diff([]string{"HOME=/x", "NIX_REMOTE=y"}, got); d != "" {
		t.Error(d)
	}
}

func TestSearchPath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in  evaluator.SearchPath
		bad bool
	}{
		{evaluator.SearchPath{Prefix: "a", Path: "/x=y"}, false},
		{evaluator.SearchPath{Path: "/x"}, false},
		{evaluator.SearchPath{Path: "/x=y"}, true},
		{evaluator.SearchPath{Prefix: "a=b", Path: "/x"}, true},
		{evaluator.SearchPath{Prefix: "a", Path: "https://x"}, true},
		{evaluator.SearchPath{Prefix: "a", Path: ""}, true},
	} {
		if _, err := evaluator.JoinSearchPath([]evaluator.SearchPath{c.in}); (err != nil) != c.bad {
			t.Errorf("%+v: %v", c.in, err)
		}
	}
}

func TestLines(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3<<20)
	lines, dropped := evaluator.Lines("@k@", []byte("a\nb"), []byte("c\n\n"), []byte(long), []byte("y\nd\n@k@"), []byte(long+"\nunfinished"))
	if d := cmp.Diff([]string{"a", "bc", "", "d", "@k@" + long}, lines); d != "" || dropped != len(long)+1 {
		t.Errorf("%d bytes dropped, lines %d", dropped, len(lines))
	}
}

func TestParseMessage(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]*daemon.Event{
		`@nix {"action":"msg","level":1,"msg":"m","raw_msg":"r"}`: {Kind: daemon.EventMessage, Level: 1, Text: "m"},
		`@nix {"action":"start","fields":["/nix/store/x",7],"id":18446744073709551615,"level":3,"parent":2,"text":"t","type":105}`: {
			Kind: daemon.EventStart, Level: 3, ID: 18446744073709551615, Parent: 2, Type: 105, Text: "t",
			Fields: []daemon.Field{{IsText: true, Text: "/nix/store/x"}, {Int: 7}},
		},
		`@nix {"action":"stop","id":5}`:                                 {Kind: daemon.EventStop, ID: 5},
		`@nix {"action":"result","fields":["line"],"id":5,"type":101}`:  {Kind: daemon.EventResult, ID: 5, Type: 101, Fields: []daemon.Field{{IsText: true, Text: "line"}}},
		`@nix {"action":"result","fields":[{"a":1}],"id":5,"type":101}`: nil,
		`@nix {"action":"other"}`:                                       nil,
		`@nix {"action":"msg"`:                                          nil,
		`{"action":"msg","level":1,"msg":"m"}`:                          nil,
		`@nix {"action":"start","id":-1}`:                               nil,
		`warning: something`:                                            nil,
		``:                                                              nil,
	} {
		got, ok := evaluator.ParseMessage([]byte(line))
		if ok != (want != nil) {
			t.Errorf("%s: %v", line, ok)
		} else if ok {
			if d := cmp.Diff(*want, got); d != "" {
				t.Errorf("%s (-want +got):\n%s", line, d)
			}
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add([]byte(`@nix {"action":"start","fields":["/nix/store/x",7],"id":18446744073709551615,"level":3,"parent":2,"text":"t","type":105}`))
	f.Add([]byte(`@nix {"action":"msg","level":0,"msg":"trace: \u0000\ud800"}`))
	f.Add([]byte(`@nix {"action":"stop","id":5}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, ok := evaluator.ParseMessage(line)
		if ok && (e.Kind < daemon.EventMessage || e.Kind > daemon.EventResult) {
			t.Errorf("kind %d", e.Kind)
		}
		// However the stream is cut, the lines are the same.
		text := append(slices.Clone(line), '\n')
		whole, _ := evaluator.Lines("@@@", text)
		for cut := range min(len(text), 64) {
			got, _ := evaluator.Lines("@@@", text[:cut], text[cut:])
			if !slices.Equal(got, whole) {
				t.Fatalf("cut at %d: %q, want %q", cut, got, whole)
			}
		}
	})
}

func FuzzParseError(f *testing.F) {
	f.Add("\x1b[31;1merror:\x1b[0m bad\n\n       \x1b[34;1mat \x1b[35;1m/own/x.nix:5:9\x1b[0m:\n\n            4| {\n\n       … while evaluating x\n\n       at /user/y.nix:1:1:\n")
	f.Add("\x1b[31;1merror:\x1b[0m\n       … while calling\n         at /own/x.nix:1:1:\n            1| x\n\n       … from\n         at /user/x.nix:1:1:\n\n       \x1b[31;1merror:\x1b[0m bad\n       at «string»:1:1:\n            1| x\n             | ^\n")
	f.Add("error:\n       …")
	f.Fuzz(func(t *testing.T, text string) {
		e := evaluator.ParseError(text, []string{"/own"})
		if e.Message == "" && strings.TrimSpace(text) != "" {
			t.Errorf("no message")
		}
		if len(e.Message)+len(e.Trace) > len(text)+100 {
			t.Errorf("%d bytes became %d", len(text), len(e.Message)+len(e.Trace))
		}
	})
}

// FuzzString sends strings through real Nix.
func FuzzString(f *testing.F) {
	for _, s := range []string{"", "a", `"`, `\`, "${x}", "$${x}", "''", "\n\r\t", "é日😀", "\x01\x7f\x1b[0m", "\u2028\ufffd\U0010ffff", "@nix {}"} {
		f.Add(s)
	}
	p, _ := start(f, testnix.Versions(f)[0], nil)
	var mu sync.Mutex
	f.Fuzz(func(t *testing.T, s string) {
		expr, err := evaluator.String(s)
		if err != nil {
			if strings.ToValidUTF8(s, "") == s && !strings.Contains(s, "\x00") {
				t.Errorf("%q is refused", s)
			}
			return
		}
		mu.Lock()
		defer mu.Unlock()
		got, err := run(p, expr, "{ ${"+expr+"} = 1; }")
		if err != nil || len(got) != 2 {
			t.Fatalf("%q: %v %q", s, err, got)
		}
		var back string
		if err := json.Unmarshal([]byte(got[0]), &back); err != nil || back != s {
			t.Errorf("%q came back as %q (%v)", s, back, err)
		}
		var set map[string]int
		if err := json.Unmarshal([]byte(got[1]), &set); err != nil || set[s] != 1 {
			t.Errorf("the attribute %q came back as %v (%v)", s, set, err)
		}
	})
}

func TestStringsAllVersions(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p, _ := start(t, n, nil)
		list := []string{"", `"`, `\`, "${x}", "$${x}", "\n\r\t", "é日😀", "\x01\x7f\x1b", "\u2028\ufffd\U0010ffff", strings.Repeat("long ", 5000)}
		expr, err := evaluator.Strings(list)
		if err != nil {
			t.Fatal(err)
		}
		got, err := run(p, expr)
		if err != nil || len(got) != 1 {
			t.Fatalf("%v %q", err, got)
		}
		var back []string
		if err := json.Unmarshal([]byte(got[0]), &back); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(list, back); d != "" {
			t.Error(d)
		}
	})
}
