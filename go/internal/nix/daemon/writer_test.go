package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/storepath"
	"hercules/internal/testnix"
)

// graph has derivations that share dependencies, sources and files, many of them twice.
const graph = testnix.Prelude + `let
	text = builtins.toFile "text" "a text";
	source = ./source;
	base = sh "base" { inherit text; } "cp $text $out";
	list = builtins.genList (i: sh "layer-${toString (i - i / 2 * 2)}-${toString (i / 3)}" {
		inherit base source;
		dep = if i < 4 then base else builtins.elemAt list (i - 4);
		late = builtins.toFile "late-${toString (i / 2)}" "${text} ${toString i}";
	} "echo $dep > $out") 60;
in list`

// writerProxy serves a store with a Writer and returns a connection's endpoint too.
func writerProxy(t testing.TB, s *testnix.Store) (w *daemon.Writer, socket string, ep daemon.Endpoint) {
	t.Helper()
	w = daemon.NewWriter(s.Endpoint(), daemon.Options{}, nil)
	t.Cleanup(func() { _ = w.Close() })
	socket = serve(t, &daemon.Proxy{Upstream: s.Endpoint(), Writer: w})
	ep = s.Endpoint()
	ep.Socket = socket
	return w, socket, ep
}

func graphFile(s *testnix.Store) string {
	s.File("source", "a source")
	return s.File("graph.nix", graph)
}

func flush(t testing.TB, w *daemon.Writer) {
	t.Helper()
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestWriterGivesTheSameStore: with and without a Writer, several evaluators at a time make the same store.
func TestWriterGivesTheSameStore(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		direct, s := newStore(t, n), newStore(t, n)
		want := output(t, direct.Command("nix-instantiate", graphFile(direct)))
		w, socket, _ := writerProxy(t, s)
		other := serve(t, &daemon.Proxy{Upstream: s.Endpoint(), Writer: w})
		file := graphFile(s)
		for round := range 2 { // new, and already there
			var wg sync.WaitGroup
			for _, socket := range []string{socket, socket, other} {
				cmd := through(s, socket, "nix-instantiate", file)
				wg.Go(func() {
					if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != want {
						t.Errorf("round %d: %v\n%s", round, err, out)
					}
				})
			}
			wg.Wait()
			flush(t, w)
		}
		got, wanted := dump(t, s), dump(t, direct)
		if d := cmp.Diff(wanted, got); d != "" {
			t.Errorf("the stores differ (-direct +written):\n%s", d)
		}
		output(t, s.Command("nix-store", "--verify", "--check-contents"))
		// Another Writer finds all of it.
		again, socket, _ := writerProxy(t, s)
		if out := output(t, through(s, socket, "nix-instantiate", file)); out != want {
			t.Errorf("again: %s", out)
		}
		flush(t, again)
	})
}

// dump is all that a store knows of its paths but the time.
func dump(t testing.TB, s *testnix.Store) map[string]daemon.PathInfo {
	t.Helper()
	c := dial(t, s.Endpoint(), daemon.Options{})
	all := map[string]daemon.PathInfo{}
	for _, p := range must(c.QueryAllValidPaths(t.Context()))(t) {
		info, found, err := c.QueryPathInfo(t.Context(), p)
		if err != nil || !found {
			t.Fatalf("%s: %v, %v", p, found, err)
		}
		info.RegistrationTime = 0
		slices.Sort(info.References)
		all[p] = *info
	}
	return all
}

// TestTextInfoIsThatOfTheDaemon: what is answered at once is what the daemon says later.
func TestTextInfoIsThatOfTheDaemon(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		output(t, s.Command("nix-instantiate", graphFile(s)))
		seen := 0
		for path, want := range dump(t, s) {
			if !strings.HasPrefix(want.ContentAddress, "text:") {
				continue
			}
			seen++
			text := must(os.ReadFile(s.Real(path)))(t)
			got := daemon.TextInfo(storepath.Name(path), text, append(want.References, want.References...))
			got.RegistrationTime = 0
			if d := cmp.Diff(&want, got); d != "" {
				t.Errorf("%s (-daemon +computed):\n%s", path, d)
			}
		}
		if seen < 60 {
			t.Errorf("only %d texts", seen)
		}
	})
}

// TestEvaluatorReadsWhatIsDeferred: files are there when an evaluator opens them, and derivations when it builds them.
func TestEvaluatorReadsWhatIsDeferred(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		_, socket, _ := writerProxy(t, s)
		for i, expr := range []string{
			`builtins.substring 0 7 (builtins.readFile (sh "read" {} "").drvPath)`,
			`import (builtins.toFile "x.nix" ''"Derive" + "("'')`,
			`builtins.readFile (builtins.toFile "z.drv" "Derive(")`,
			`import (sh "ifd" { dep = sh "dep" {} "echo '\"Derive(\"' > $out"; } "cat $dep > $out")`,
			`let d = sh "thrice" {} ""; in builtins.seq d.drvPath (builtins.seq (sh "thrice" {} "").drvPath (builtins.substring 0 7 (builtins.readFile d.drvPath)))`,
		} {
			file := s.File(fmt.Sprintf("read%d.nix", i), testnix.Prelude+expr)
			if i == 2 {
				// Some versions refuse it; none may get stuck or find no file.
				b, err := through(s, socket, "nix-instantiate", "--eval", "--read-write-mode", file).CombinedOutput()
				if err == nil || !strings.Contains(string(b), "z.drv") || strings.Contains(string(b), "No such file") {
					t.Errorf("%s: %v: %s", expr, err, b)
				}
				_, socket, _ = writerProxy(t, s)
				continue
			}
			if got := output(t, through(s, socket, "nix-instantiate", "--eval", "--read-write-mode", file)); got != `"Derive("` {
				t.Errorf("%s: %s", expr, got)
			}
		}
	})
}

// TestWriterKeepsFromGarbage: what was deferred outlives its client, and not the Writer.
func TestWriterKeepsFromGarbage(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		file := graphFile(s)
		for round := range 2 {
			w, socket, _ := writerProxy(t, s)
			drvs := strings.Fields(output(t, through(s, socket, "nix-instantiate", file)))
			flush(t, w)
			if round == 1 {
				s.Restart() // takes the roots with it
				if drv := output(t, through(s, socket, "nix-instantiate", "--expr", testnix.Prelude+`sh "more" {} ""`)); drv == "" {
					t.Error("nothing is instantiated after a restart")
				}
				flush(t, w)
			}
			output(t, s.Command("nix-store", "--gc"))
			for _, drv := range drvs {
				if _, err := os.Stat(s.Real(drv)); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			}
			_ = w.Close()
			waitFor(t, func() bool { // until the daemon has seen that it was closed
				output(t, s.Command("nix-store", "--gc"))
				_, err := os.Stat(s.Real(drvs[0]))
				return err != nil
			})
		}
	})
}

// text is a file of a store.
type text struct {
	path, name, text string
	refs             []string
}

// texts are the derivations and files of the graph, what is referred to first.
func texts(t testing.TB, n testnix.Nix) []text {
	t.Helper()
	s := newStore(t, n)
	output(t, s.Command("nix-instantiate", graphFile(s)))
	infos := dump(t, s)
	var all []text
	seen := map[string]bool{}
	var visit func(path string)
	visit = func(path string) {
		if seen[path] {
			return
		}
		seen[path] = true
		info := infos[path]
		for _, r := range info.References {
			visit(r)
		}
		if strings.HasPrefix(info.ContentAddress, "text:") {
			all = append(all, text{path, storepath.Name(path), string(must(os.ReadFile(s.Real(path)))(t)), info.References})
		}
	}
	for path := range infos {
		visit(path)
	}
	return all
}

// addSource adds what the graph refers to besides texts.
func addSource(t testing.TB, s *testnix.Store) {
	t.Helper()
	output(t, s.Command("nix-store", "--add", s.File("source", "a source")))
}

// TestWriterStress: connections that add, ask and leave at random see a store in which what they added is valid.
func TestWriterStress(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		all := texts(t, n)
		s := newStore(t, n)
		addSource(t, s)
		w, _, ep := writerProxy(t, s)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 1))
				var c *daemon.Conn
				for k, x := range all {
					if c == nil {
						var err error
						if c, err = daemon.Dial(context.Background(), ep, daemon.Options{}); err != nil {
							t.Error(err)
							return
						}
					}
					if got, err := c.AddTextToStore(context.Background(), x.name, x.text, x.refs); err != nil || got != x.path {
						t.Errorf("%s: %s, %v", x.path, got, err)
					}
					old := all[rng.IntN(k+1)]
					var ok bool
					var err error
					switch rng.IntN(8) {
					case 0:
						ok, err = c.IsValidPath(context.Background(), old.path)
					case 1:
						_, ok, err = c.QueryPathInfo(context.Background(), old.path)
					case 2:
						err = c.AddTempRoot(context.Background(), old.path)
						ok = true
						if err == nil {
							ok, err = c.IsValidPath(context.Background(), old.path)
						}
					case 3:
						var b strings.Builder
						err = c.NarFromPath(context.Background(), old.path, &b)
						ok = strings.Contains(b.String(), old.text)
					case 4:
						ok, err = c.IsValidPath(context.Background(), noPath)
						ok = !ok
					case 5:
						_ = c.Close()
						c, ok = nil, true
					case 6:
						err = w.Flush(context.Background())
						_, statErr := os.Stat(s.Real(old.path))
						ok = statErr == nil
					default:
						ok = true
					}
					if !ok || err != nil {
						t.Errorf("%s: %v, %v", old.path, ok, err)
					}
				}
				if c != nil {
					_ = c.Close()
				}
			})
		}
		wg.Wait()
		flush(t, w)
		infos := dump(t, s)
		for _, x := range all {
			if got := infos[x.path]; !slices.Equal(got.References, x.refs) {
				t.Errorf("%s refers to %q, not %q", x.path, got.References, x.refs)
			}
		}
	})
}

// TestDaemonRestartsDuringWrites: nothing that was acknowledged is lost.
func TestDaemonRestartsDuringWrites(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		all := texts(t, n)
		s := newStore(t, n)
		addSource(t, s)
		w, _, ep := writerProxy(t, s)
		c := must(daemon.Dial(t.Context(), ep, daemon.Options{}))(t)
		defer func() { _ = c.Close() }()
		for i, x := range all {
			if i%25 == 24 {
				s.Restart()
			}
			if _, err := c.AddTextToStore(t.Context(), x.name, x.text, x.refs); err != nil {
				// It was not one to defer, and the daemon of this connection is gone.
				_ = c.Close()
				c = must(daemon.Dial(t.Context(), ep, daemon.Options{}))(t)
				if _, err := c.AddTextToStore(t.Context(), x.name, x.text, x.refs); err != nil {
					t.Fatal(err)
				}
			}
		}
		flush(t, w)
		output(t, s.Command("nix-store", "--gc"))
		infos := dump(t, s)
		for _, x := range all {
			if _, ok := infos[x.path]; !ok && strings.HasSuffix(x.name, ".drv") {
				t.Errorf("%s is missing", x.path)
			}
		}
	})
}

// TestFailedWriteSurfaces: of a deferred derivation that can't be written, the client and Flush learn.
func TestFailedWriteSurfaces(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		all := slices.DeleteFunc(texts(t, n), func(x text) bool { return !strings.HasSuffix(x.name, ".drv") })
		for name, spoil := range map[string]func(s *testnix.Store){
			"the daemon is gone":  func(s *testnix.Store) { s.Kill(); _ = os.Remove(s.Socket()) },
			"it is no derivation": func(*testnix.Store) {},
			"the store is no directory": func(s *testnix.Store) {
				dir := filepath.Join(s.Root(), "nix/store")
				if err := errors.Join(os.Rename(dir, dir+"-away"), os.WriteFile(dir, nil, 0o644)); err != nil {
					t.Error(err)
				}
			},
		} {
			t.Run(name, func(t *testing.T) {
				s := newStore(t, n)
				addSource(t, s)
				w, _, ep := writerProxy(t, s)
				c := dial(t, ep, daemon.Options{})
				base := text{name: all[0].name, text: all[0].text}
				// The base derivation refers to a text.
				for _, x := range texts(t, n) {
					if slices.Contains(all[0].refs, x.path) {
						_ = must(c.AddTextToStore(t.Context(), x.name, x.text, x.refs))(t)
					}
				}
				if got := must(c.AddTextToStore(t.Context(), base.name, base.text, all[0].refs))(t); got != all[0].path {
					t.Fatalf("the path is %s", got)
				}
				flush(t, w)
				spoil(s)
				x := text{name: "fails.drv", text: strings.Replace(base.text, "base", "else", 1)}
				if name == "it is no derivation" {
					x.text = "Derive("
				}
				refs := []string{all[0].path}
				if _, err := c.AddTextToStore(t.Context(), x.name, x.text, refs); err != nil {
					t.Fatalf("it was not deferred: %v", err)
				}
				_, _, err := c.QueryPathInfo(t.Context(), noPath)
				if err == nil || !strings.Contains(err.Error(), "writing derivations") {
					t.Errorf("the client is told %v", err)
				}
				for range 2 {
					if err := w.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "writing derivations") {
						t.Errorf("Flush: %v", err)
					}
				}
			})
		}
	})
}

// TestFlushEndsWithItsContext: also when nothing else does.
func TestFlushEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	w := daemon.NewWriter(daemon.Endpoint{Command: []string{"/bin/sh", "-c", "cat >/dev/null"}}, daemon.Options{}, nil)
	socket := serve(t, &daemon.Proxy{Upstream: s.Endpoint(), Writer: w})
	output(t, through(s, socket, "nix-instantiate", "--expr", testnix.Prelude+`sh "x" {} ""`))
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() { waiting <- w.Flush(ctx) }()
	closed := make(chan error, 1)
	go func() { closed <- w.Flush(t.Context()) }()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("Flush: %v", err)
	}
	_ = w.Close()
	if err := <-closed; err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Flush: %v", err)
	}
	if err := w.Flush(t.Context()); err == nil {
		t.Error("Flush succeeds after Close")
	}
}

// TestLargeAndOddTexts: what is not deferred reaches the daemon as it was sent.
func TestLargeAndOddTexts(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		w, _, ep := writerProxy(t, s)
		c := dial(t, ep, daemon.Options{})
		for _, x := range []text{
			{name: "empty", text: ""},
			{name: "plain", text: "Derive("},
			{name: "large", text: strings.Repeat("x", 3<<20)},
		} {
			path := must(c.AddTextToStore(t.Context(), x.name, x.text, nil))(t)
			if want := must(storepath.MakeTextPath(x.name, x.text, nil))(t); path != want {
				t.Errorf("%s is at %s, not %s", x.name, path, want)
			}
			if got := must(os.ReadFile(s.Real(path)))(t); string(got) != x.text {
				t.Errorf("%s has %d bytes, not %d", path, len(got), len(x.text))
			}
		}
		// A derivation of which the daemon can say whether it is one; a large one is not deferred.
		big := output(t, through(s, ep.Socket, "nix-instantiate", "--expr", testnix.Prelude+
			`sh "big" { x = builtins.concatStringsSep "" (builtins.genList (i: "0123456789abcdef") 100000); } ""`))
		flush(t, w)
		if info, err := os.Stat(s.Real(big)); err != nil || info.Size() < 1_600_000 {
			t.Errorf("%v, %v", info, err)
		}
		var remote *daemon.RemoteError
		if _, err := c.AddTextToStore(t.Context(), "large.drv", "Derive("+strings.Repeat("x", 3<<20), nil); !asRemote(err, &remote) {
			t.Errorf("a large text that is no derivation: %v", err)
		}
		if _, err := c.AddTextToStore(t.Context(), "text.drv", "no derivation", nil); !asRemote(err, &remote) {
			t.Errorf("a text that is no derivation: %v", err)
		}
		if _, err := c.AddTextToStore(t.Context(), "ref", "x", []string{noPath}); !asRemote(err, &remote) {
			t.Errorf("a reference to nothing: %v", err)
		}
		flush(t, w)
	})
}
