package build_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/build"
	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink takes a log.
type sink struct {
	mu     sync.Mutex
	events []daemon.Event
	more   chan struct{} // gets one for each event, if it has room
}

func newSink() *sink { return &sink{more: make(chan struct{}, 1)} }

func (s *sink) Event(e daemon.Event) {
	s.mu.Lock()
	s.events = append(s.events, e)
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *sink) Line(level daemon.Verbosity, text string) {
	s.Event(daemon.Event{Kind: daemon.EventMessage, Level: level, Text: text})
}

// errors is the text of all messages at level 0.
func (s *sink) errors() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, e := range s.events {
		if e.Kind == daemon.EventMessage && e.Level == daemon.Error {
			b.WriteString(e.Text + "\n")
		}
	}
	return b.String()
}

// messages is the text of all messages.
func (s *sink) messages() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, e := range s.events {
		if e.Kind == daemon.EventMessage {
			b.WriteString(e.Text + "\n")
		}
	}
	return b.String()
}

func (s *sink) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for _, e := range s.events {
		if e.Kind == daemon.EventResult && e.Type == daemon.ResBuildLogLine {
			lines = append(lines, e.Fields[0].Text)
		}
	}
	return lines
}

func (s *sink) await(t *testing.T, line string) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		for _, l := range s.lines() {
			if l == line {
				return
			}
		}
		select {
		case <-s.more:
		case <-timeout:
			t.Fatalf("the log never says %q; it says %q, errors %s", line, s.lines(), s.errors())
		}
	}
}

// fixture is what a test needs to build.
type fixture struct {
	*testnix.Store
	t      *testing.T
	log    *sink
	deps   build.Deps
	posted []agentapi.BuildEvent
}

func setup(t *testing.T, n testnix.Nix, options ...testnix.Option) *fixture {
	t.Helper()
	f := &fixture{Store: testnix.New(t, append(options, testnix.WithNix(n))...), t: t, log: newSink()}
	f.deps = build.Deps{
		Conns:     f.conns(f.Endpoint()),
		Settings:  map[string]string{"narinfo-cache-negative-ttl": "0"},
		Verbosity: daemon.Talkative,
		Trusted:   true,
		Log:       f.log,
		Post: func(_ context.Context, events []agentapi.BuildEvent) error {
			f.posted = append(f.posted, events...)
			return nil
		},
	}
	return f
}

func (f *fixture) conns(ep daemon.Endpoint) *build.Conns {
	c := build.NewConns(ep, true)
	f.t.Cleanup(c.Close)
	return c
}

func (f *fixture) run(drv string, inputs ...string) (agentapi.TaskStatus, error) {
	return build.Run(f.t.Context(), &agentapi.BuildTask{DerivationPath: drv, InputDerivationOutputPaths: inputs}, f.deps)
}

func successful() agentapi.TaskStatus { return agentapi.TaskStatus{Successful: &agentapi.Unit{}} }
func terminated() agentapi.TaskStatus { return agentapi.TaskStatus{Terminated: &agentapi.Unit{}} }

func (f *fixture) expect(got agentapi.TaskStatus, err error, want agentapi.TaskStatus) {
	f.t.Helper()
	if err != nil {
		f.t.Fatalf("error: %v\nlog: %s", err, f.log.messages())
	}
	if d := cmp.Diff(want, got); d != "" {
		f.t.Errorf("status: %s\nlog: %s", d, f.log.errors())
	}
}

// kinds names the events in order.
func kinds(events []agentapi.BuildEvent) []string {
	var k []string
	for _, e := range events {
		switch {
		case e.OutputInfo != nil:
			k = append(k, "OutputInfo "+e.OutputInfo.Name)
		case e.Pushed != nil:
			k = append(k, "Pushed "+e.Pushed.Cache)
		case e.Done != nil:
			k = append(k, fmt.Sprintf("Done %v", *e.Done))
		}
	}
	return k
}

type pusher struct{ fail error }

func (p pusher) Push(_ context.Context, paths []string, _ build.Log, pushed func(string) error) error {
	for _, cache := range []string{"one", "two"} {
		if p.fail != nil {
			return p.fail
		}
		if err := pushed(cache); err != nil {
			return err
		}
	}
	return nil
}

func TestSuccess(t *testing.T) {
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		for _, trusted := range []bool{true, false} {
			t.Run(fmt.Sprintf("prefetched=%v", trusted), func(t *testing.T) {
				t.Parallel()
				f := setup(t, n)
				f.deps.Trusted = trusted
				f.deps.Pusher = pusher{}
				const expr = `let dep = sh "dep" {} "echo dep > $out"; in
					sh "two" { outputs = [ "out" "dev" ]; inherit dep; } ''
						echo hello; echo err >&2; printf 'bin\377\000ary\n'
						echo $dep > $out; mkdir $dev; echo $out > $dev/f
					''`
				dep := f.Build(`sh "dep" {} "echo dep > $out"`)
				drv := f.Instantiate(expr)
				status, err := f.run(drv, dep)
				f.expect(status, err, successful())
				want := []string{"OutputInfo dev", "OutputInfo out", "Pushed one", "Pushed two", "Done true"}
				if d := cmp.Diff(want, kinds(f.posted)); d != "" {
					t.Error(d)
				}
				if d := cmp.Diff([]string{"hello", "err", "bin\xff\x00ary"}, f.log.lines()); d != "" {
					t.Error(d)
				}
				for _, e := range f.posted[:2] {
					o := e.OutputInfo
					if o.Deriver != drv {
						t.Errorf("deriver %s", o.Deriver)
					}
					hash := f.Run("nix-store", "-q", "--hash", o.Path)
					size := f.Run("nix-store", "-q", "--size", o.Path)
					refs := strings.Fields(f.Run("nix-store", "-q", "--references", o.Path))
					if o.Hash != hash || fmt.Sprint(o.Size) != size {
						t.Errorf("%s: hash %s size %d; Nix says %s %s", o.Path, o.Hash, o.Size, hash, size)
					}
					got := []string{}
					for _, r := range *o.References {
						got = append(got, "/nix/store/"+r)
					}
					if d := cmp.Diff(refs, got); d != "" {
						t.Error(d)
					}
				}
				// Built already: the same answer.
				f.posted = nil
				status, err = f.run(drv, dep)
				f.expect(status, err, successful())
				if d := cmp.Diff(want, kinds(f.posted)); d != "" {
					t.Error(d)
				}
			})
		}
	})
}

// A missing input is built along.
func TestMissingInput(t *testing.T) {
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		f := setup(t, n)
		there := f.Build(`sh "there" {} "echo > $out"`)
		dep := f.Instantiate(`sh "dep" {} "echo dep > $out"`)
		out := f.Run("nix-store", "-q", "--outputs", dep)
		drv := f.Instantiate(`sh "top" { dep = sh "dep" {} "echo dep > $out"; } "cat $dep > $out"`)
		status, err := f.run(drv, there, out)
		f.expect(status, err, successful())
		var said bool
		for _, e := range f.log.events {
			said = said || strings.Contains(e.Text, "The input "+out+" is neither here nor in a cache")
			if strings.Contains(e.Text, "The input "+there) {
				t.Error("a present input is said to be missing")
			}
		}
		if !said {
			t.Error("the log does not say that an input is missing")
		}
	})
}

func TestFailures(t *testing.T) {
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		f := setup(t, n, testnix.WithConfig("max-build-log-size = 100000"))
		tests := []struct {
			name     string
			expr     string
			settings map[string]string
			want     []string
		}{
			{"exit code", `sh "bad" {} "echo reason; exit 3"`, nil, []string{"Build of bad.drv failed: the builder ended with exit code 3.", "reason"}},
			{"no output", `sh "bad" {} "true"`, nil, []string{"did not make"}},
			{"timeout", `sh "bad" {} "while :; do sleep 1; done"`, map[string]string{"timeout": "1"}, []string{"it took longer than 1 seconds"}},
			{"silence", `sh "bad" {} "while :; do sleep 1; done"`, map[string]string{"max-silent-time": "1"}, []string{"1 seconds", "max-silent-time"}},
			{
				"dependency", `sh "top" { dep = sh "low" {} "exit 4"; } "echo > $out"`, nil,
				[]string{"Build of top.drv failed: a dependency could not be built.", "-low.drv", "failed with exit code 4"},
			},
			{
				"hash mismatch", `sh "bad" { outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; outputHashMode = "flat"; outputHashAlgo = "sha256"; } "echo hello > $out"`,
				nil,
				[]string{"hash mismatch: it declares sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= but its output is sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM="},
			},
			{
				"output cycle", `sh "bad" { outputs = [ "out" "dev" ]; } "echo $dev > $out; echo $out > $dev"`, nil,
				[]string{"refer to each other in a cycle"},
			},
			{"log limit", `sh "bad" {} "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; echo > $out"`, nil, []string{"it printed more than Nix allows"}},
			{"platform", `sh "bad" { system = "riscv128-plan9"; } "echo > $out"`, nil, []string{"it needs the system riscv128-plan9"}},
			{"features", `sh "bad" { requiredSystemFeatures = [ "warp" ]; } "echo > $out"`, nil, []string{"features warp"}},
		}
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				for _, trusted := range []bool{true, false} {
					if trusted && test.name == "dependency" {
						continue // the prefetched mode has no dependencies
					}
					g := *f
					g.t, g.log = t, newSink()
					g.deps.Trusted, g.deps.Log, g.deps.Settings = trusted, g.log, map[string]string{"narinfo-cache-negative-ttl": "0"}
					for k, v := range test.settings {
						g.deps.Settings[k] = v
					}
					g.posted = nil
					g.deps.Post = func(context.Context, []agentapi.BuildEvent) error { t.Error("an event is posted"); return nil }
					status, err := g.run(g.Instantiate(test.expr))
					g.expect(status, err, terminated())
					for _, want := range test.want {
						if log := g.log.messages(); !strings.Contains(log, want) {
							t.Errorf("trusted=%v: the log lacks %q:\n%s", trusted, want, log)
						}
					}
				}
			})
		}
	})
}

func TestMissingDerivation(t *testing.T) {
	t.Parallel()
	f := setup(t, testnix.Versions(t)[0])
	_, err := f.run("/nix/store/00000000000000000000000000000000-gone.drv")
	if err == nil || !strings.Contains(err.Error(), "neither in the store of this machine nor in a cache") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"", "/etc/passwd", "/nix/store/../../etc/passwd", "/nix/store/00000000000000000000000000000000-no-derivation"} {
		if _, err := f.run(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
	if _, err := f.run("/nix/store/00000000000000000000000000000000-gone.drv", "/etc/passwd"); err == nil {
		t.Error("no error for an input that is no store path")
	}
}

// The derivation can come from a cache without its closure.
func TestFetchedDerivation(t *testing.T) {
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		f, other := setup(t, n), testnix.New(t, testnix.WithNix(n))
		const expr = `sh "top" { dep = sh "dep" {} "echo dep > $out"; } "cat $dep > $out"`
		drv := other.Instantiate(expr)
		dep := f.Build(`sh "dep" {} "echo dep > $out"`)
		full, empty := "file://"+filepath.Join(f.Dir(), "full"), "file://"+filepath.Join(f.Dir(), "empty")
		other.Run("nix", "copy", "--no-check-sigs", "--derivation", "--to", full, drv)
		f.deps.Fetch = build.Caches{
			Program: f.Program("nix"), Env: f.Env(), URIs: []string{"file:///nonexistent/cache", empty, full},
		}.Fetch
		status, err := f.run(drv, dep)
		f.expect(status, err, successful())
		if d := cmp.Diff([]string{"OutputInfo out", "Done true"}, kinds(f.posted)); d != "" {
			t.Error(d)
		}
		if _, err := f.TryRun("nix-store", "--check-validity", drv); err == nil {
			t.Error("the derivation came with its closure")
		}

		// Another text under the name of the derivation is not used.
		lie := f.Instantiate(`sh "lie" {} "echo > $out"`)
		text, err := os.ReadFile(f.Real(lie))
		if err != nil {
			t.Fatal(err)
		}
		if err := build.Authentic(drv, text); err == nil {
			t.Error("a wrong text is taken for the derivation")
		}
		if err := build.Authentic(lie, text); err != nil {
			t.Error(err)
		}
	})
}

func TestReportingFails(t *testing.T) {
	t.Parallel()
	f := setup(t, testnix.Versions(t)[0])
	drv := f.Instantiate(`sh "x" {} "echo > $out"`)
	f.deps.Pusher = pusher{errors.New("cache is full")}
	_, err := f.run(drv)
	if err == nil || !strings.Contains(err.Error(), "cache is full") {
		t.Errorf("got %v", err)
	}
	if d := cmp.Diff([]string{"OutputInfo out"}, kinds(f.posted)); d != "" {
		t.Error(d)
	}
	if !strings.Contains(f.log.errors(), "The build succeeded, but") {
		t.Errorf("log: %s", f.log.errors())
	}
}

// builderGone waits until nothing runs with the marker in its command line.
func builderGone(t *testing.T, marker string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for exec.Command("pgrep", "-f", "--", marker).Run() == nil {
		if time.Now().After(deadline) {
			t.Fatal("the builder still runs")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestCancel(t *testing.T) {
	if _, err := exec.LookPath("pgrep"); err != nil {
		t.Skip("SKIP: no pgrep")
	}
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		for _, stdio := range []bool{false, true} {
			t.Run(fmt.Sprintf("stdio=%v", stdio), func(t *testing.T) {
				t.Parallel()
				f := setup(t, n)
				if stdio {
					f.deps.Conns = f.conns(f.StdioEndpoint())
				}
				marker := "marker-" + filepath.Base(f.Dir())
				drv := f.Instantiate(fmt.Sprintf(`sh "endless" {} "echo running; while :; do sleep 1; done # %s"`, marker))
				stopped := errors.New("stopped by the test")
				ctx, cancel := context.WithCancelCause(t.Context())
				result := make(chan error, 1)
				go func() {
					_, err := build.Run(ctx, &agentapi.BuildTask{DerivationPath: drv}, f.deps)
					result <- err
				}()
				f.log.await(t, "running")
				if exec.Command("pgrep", "-f", "--", marker).Run() != nil {
					t.Fatal("the builder does not run")
				}
				cancel(stopped)
				if err := <-result; !errors.Is(err, stopped) {
					t.Errorf("got %v", err)
				}
				builderGone(t, marker)
				// The next build is not disturbed.
				status, err := f.run(f.Instantiate(`sh "next" {} "echo > $out"`))
				f.expect(status, err, successful())
			})
		}
	})
}

func TestDaemonDies(t *testing.T) {
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		f := setup(t, n)
		drv := f.Instantiate(`sh "endless" {} "echo running; while :; do sleep 1; done"`)
		result := make(chan error, 1)
		go func() {
			_, err := f.run(drv)
			result <- err
		}()
		f.log.await(t, "running")
		f.Kill()
		err := <-result
		if err == nil || !strings.Contains(err.Error(), "the Nix daemon closed the connection") {
			t.Errorf("got %v", err)
		}
		if !strings.Contains(f.log.errors(), "the Nix daemon closed the connection") {
			t.Errorf("log: %s", f.log.errors())
		}
		if _, err := f.run(drv); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
			t.Errorf("without a daemon: %v", err)
		}
		f.Restart()
		status, err := f.run(f.Instantiate(`sh "next" {} "echo > $out"`))
		f.expect(status, err, successful())
	})
}

// A connection that waits for reuse while the daemon is restarted costs nothing.
func TestDaemonRestartsBetweenBuilds(t *testing.T) {
	t.Parallel()
	f := setup(t, testnix.Versions(t)[0])
	for i := range 3 {
		status, err := f.run(f.Instantiate(fmt.Sprintf(`sh "x%d" {} "echo > $out"`, i)))
		f.expect(status, err, successful())
		f.Kill()
		f.Restart()
	}
}

// The events of a build go to its own log, also on a connection that was used before.
func TestLogsAreNotMixed(t *testing.T) {
	t.Parallel()
	f := setup(t, testnix.Versions(t)[0])
	var drvs []string
	for i := range 8 {
		drvs = append(drvs, f.Instantiate(fmt.Sprintf(`sh "x%d" {} "echo line %d; echo > $out"`, i, i)))
	}
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := w; i < len(drvs); i += 2 {
				log := newSink()
				deps := f.deps
				deps.Log, deps.Post = log, func(context.Context, []agentapi.BuildEvent) error { return nil }
				if _, err := build.Run(t.Context(), &agentapi.BuildTask{DerivationPath: drvs[i]}, deps); err != nil {
					t.Error(err)
				}
				if d := cmp.Diff([]string{fmt.Sprintf("line %d", i)}, log.lines()); d != "" {
					t.Error(d)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkOverhead is a build that Nix need not do: what is left is ours and the daemon's answers.
func BenchmarkOverhead(b *testing.B) {
	s := testnix.New(b)
	dep := s.Build(`sh "dep" {} "echo dep > $out"`)
	drv := s.Instantiate(`sh "x" { dep = sh "dep" {} "echo dep > $out"; } "echo > $out"`)
	s.Run("nix-store", "-r", drv)
	for _, mode := range []struct {
		name    string
		ep      daemon.Endpoint
		trusted bool
	}{{"socket/reused", s.Endpoint(), true}, {"socket/new", s.Endpoint(), false}, {"stdio/reused", s.StdioEndpoint(), true}, {"stdio/new", s.StdioEndpoint(), false}} {
		b.Run(mode.name, func(b *testing.B) {
			conns := build.NewConns(mode.ep, mode.trusted)
			defer conns.Close()
			deps := build.Deps{
				Conns: conns, Log: newSink(), Trusted: true,
				Post: func(context.Context, []agentapi.BuildEvent) error { return nil },
			}
			for b.Loop() {
				if _, err := build.Run(b.Context(), &agentapi.BuildTask{DerivationPath: drv, InputDerivationOutputPaths: []string{dep}}, deps); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
