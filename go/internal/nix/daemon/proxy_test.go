package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
)

// serve starts a proxy and returns its socket and a function that ends it.
func serve(t testing.TB, p *daemon.Proxy) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxy")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		_ = os.RemoveAll(dir)
	})
	return socket
}

// through prepares a Nix program that speaks with the store through a proxy.
func through(s *testnix.Store, socket, name string, args ...string) *exec.Cmd {
	cmd := s.Command(name, args...)
	cmd.Env = append(cmd.Env, "NIX_REMOTE=unix://"+socket+"?root="+s.Root())
	return cmd
}

func output(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd.Args, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// records is what the hooks of a proxy saw.
type records struct {
	events
	mu    sync.Mutex
	asked []string
	log   lockedBuffer
}

func (r *records) proxy(s *testnix.Store) *daemon.Proxy {
	return &daemon.Proxy{
		Upstream: s.Endpoint(),
		Hooks: daemon.Hooks{
			Realise: func(_ context.Context, paths []daemon.DerivedPath) error {
				r.mu.Lock()
				defer r.mu.Unlock()
				for _, p := range paths {
					r.asked = append(r.asked, p.String())
				}
				return nil
			},
			Event: r.events.add,
		},
		Log: slog.New(slog.NewTextHandler(&r.log, nil)),
	}
}

func (r *records) hookSaw() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *lockedBuffer) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(b)
}

func (w *lockedBuffer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

func TestNixThroughTheProxy(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		var seen records
		socket := serve(t, seen.proxy(s))
		file := s.File("top.nix", testnix.Prelude+`sh "top" { dep = sh "dep" {} "echo building dep; echo 1 > $out"; }
			"echo building top; cat $dep > $out; echo top >> $out"`)

		drv := output(t, through(s, socket, "nix-instantiate", file))
		if drv != output(t, s.Command("nix-instantiate", file)) {
			t.Error("the proxy changes the derivation")
		}
		out := output(t, through(s, socket, "nix-build", "--no-out-link", file))
		if got := string(must(os.ReadFile(s.Real(out)))(t)); got != "1\ntop\n" {
			t.Errorf("the output is %q", got)
		}
		if want := drv + "!out"; !slices.Contains(seen.hookSaw(), want) {
			t.Errorf("the hook saw %q, not %s", seen.hookSaw(), want)
		}
		if got := seen.lines(); !slices.Equal(got, []string{"building dep", "building top"}) {
			t.Errorf("the log is %q", got)
		}
		for _, args := range [][]string{
			{"nix-store", "-q", "--references", drv},
			{"nix-store", "-q", "--requisites", out},
			{"nix-store", "-q", "--deriver", out},
			{"nix-store", "-q", "--outputs", drv},
			{"nix-store", "-q", "--hash", out},
			{"nix-store", "--verify", "--check-contents"},
			{"nix-store", "--gc", "--print-roots"},
			{"nix-store", "--realise", drv},
			{"nix-store", "--dump", s.Real(out)},
			{"nix", "--extra-experimental-features", "nix-command", "path-info", "--json", "-r", out},
			{"nix", "--extra-experimental-features", "nix-command", "store", "ping"},
			{"nix", "--extra-experimental-features", "nix-command", "store", "ls", out},
		} {
			if got, want := output(t, through(s, socket, args[0], args[1:]...)), output(t, s.Command(args[0], args[1:]...)); strings.ReplaceAll(got, socket, s.Socket()) != want {
				t.Errorf("%q gives\n%s\nand not\n%s", args, got, want)
			}
		}
		fails := s.File("fails.nix", testnix.Prelude+`sh "fails" {} "echo last words; exit 1"`)
		if b, err := through(s, socket, "nix-build", "--no-out-link", fails).CombinedOutput(); err == nil || !strings.Contains(string(b), "last words") {
			t.Errorf("%v: %s", err, b)
		}
		if log := seen.log.String(); log != "" {
			t.Errorf("the proxy logs %s", log)
		}
	})
}

func TestCopyThroughTheProxy(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		from, to := newStore(t, n), newStore(t, n)
		var seen records
		socket := serve(t, seen.proxy(to))
		out := from.Build(`sh "top" { dep = sh "dep" {} "dd if=/dev/urandom of=$out bs=1M count=3"; } "mkdir $out; echo $dep > $out/dep; yes | head -c 300000 > $out/yes"`)
		output(t, from.Command("nix", "--extra-experimental-features", "nix-command", "copy", "--no-check-sigs",
			"--to", "unix://"+socket+"?root="+to.Root(), out))
		back := newStore(t, n)
		cmd := back.Command("nix", "--extra-experimental-features", "nix-command", "copy", "--no-check-sigs",
			"--from", "unix://"+socket+"?root="+to.Root(), out)
		output(t, cmd)
		want := output(t, from.Command("nix-store", "--dump", from.Real(out)))
		for _, s := range []*testnix.Store{to, back} {
			if got := output(t, s.Command("nix-store", "--dump", s.Real(out))); got != want {
				t.Errorf("%s differs", s.Real(out))
			}
		}
		if log := seen.log.String(); log != "" {
			t.Errorf("the proxy logs %s", log)
		}
	})
}

func TestHookRefusesAndWaits(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		entered, ended := make(chan struct{}), make(chan error)
		socket := serve(t, &daemon.Proxy{Upstream: s.Endpoint(), Hooks: daemon.Hooks{
			Realise: func(ctx context.Context, paths []daemon.DerivedPath) error {
				if strings.Contains(paths[0].Path, "-forever") {
					close(entered)
					<-ctx.Done()
					ended <- context.Cause(ctx)
					return ctx.Err()
				}
				return fmt.Errorf("%s may not be built here", filepath.Base(paths[0].Path))
			},
		}})
		file := s.File("ifd.nix", testnix.Prelude+`import (sh "imported" {} "echo 1 > $out")`)
		b, err := through(s, socket, "nix-instantiate", "--eval", "--read-write-mode", file).CombinedOutput()
		if err == nil || !strings.Contains(string(b), "-imported.drv may not be built here") {
			t.Errorf("%v: %s", err, b)
		}
		// A refusal leaves the connection usable.
		ep := s.Endpoint()
		ep.Socket = socket
		c := dial(t, ep, daemon.Options{})
		for range 2 {
			var remote *daemon.RemoteError
			if err := c.EnsurePath(t.Context(), noPath); !asRemote(err, &remote) || !strings.Contains(remote.Msg, "may not be built here") {
				t.Errorf("the error is %v", err)
			}
		}
		forever := s.File("forever.nix", testnix.Prelude+`import (sh "forever" {} "echo 1 > $out")`)
		cmd := through(s, socket, "nix-instantiate", "--eval", "--read-write-mode", forever)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-entered
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the hook ends with %v", err)
		}
		_ = cmd.Wait()
	})
}

func TestProxyForcesSettings(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		socket := serve(t, &daemon.Proxy{Upstream: s.Endpoint(), Options: daemon.Options{
			Settings: map[string]string{"cores": "13", "sandbox-build-dir": "/forced"},
		}})
		file := s.File("cores.nix", testnix.Prelude+`sh "cores" {} "echo $NIX_BUILD_CORES $NIX_BUILD_TOP > $out"`)
		out := output(t, through(s, socket, "nix-build", "--no-out-link", "--cores", "2", file))
		if got := string(must(os.ReadFile(s.Real(out)))(t)); got != "13 /forced\n" {
			t.Errorf("the output is %q", got)
		}
	})
}

func TestClientLeavesDuringABuild(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		socket := serve(t, &daemon.Proxy{Upstream: s.Endpoint()})
		mark := uniqueMark()
		file := s.File("endless.nix", testnix.Prelude+`sh "endless" {} "sleep `+mark+`"`)
		cmd := through(s, socket, "nix-build", "--no-out-link", file)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return len(sleepers(mark)) > 0 })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		waitFor(t, func() bool { return len(sleepers(mark)) == 0 })
	})
}

func TestNoDaemonBehindTheProxy(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		for _, ep := range []daemon.Endpoint{
			{Socket: "/nonexistent/socket"},
			{Command: []string{"/bin/sh", "-c", "echo no daemon today >&2; exit 1"}},
			{Command: []string{"/bin/sh", "-c", "echo Welcome to this shell; cat >/dev/null"}},
		} {
			socket := serve(t, &daemon.Proxy{Upstream: ep})
			b, err := through(s, socket, "nix-store", "-q", "--hash", noPath).CombinedOutput()
			if err == nil || !strings.Contains(string(b), "/nonexistent/socket") && !strings.Contains(string(b), "no daemon today") &&
				!strings.Contains(string(b), "not a Nix daemon") {
				t.Errorf("%v: %v: %s", ep, err, b)
			}
		}
	})
}
