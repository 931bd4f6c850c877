package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/agent"
	"hercules/internal/config"
	"hercules/internal/logging"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/localstore"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

// asAgent makes this test binary an agent: it is the name of a configuration file.
const asAgent = "HERCULES_TEST_AGENT_CONFIG"

func TestMain(m *testing.M) {
	if path := os.Getenv(asAgent); path != "" {
		cfg, err := config.Load(path)
		if err == nil {
			err = agent.Serve(context.Background(), cfg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// quick are times that make a lost connection come back soon.
var quick = agent.Times{
	Socket: socket.Times{Reconnect: 50 * time.Millisecond, KeepAlive: 100 * time.Millisecond},
	Poll:   20 * time.Millisecond, Batch: 20 * time.Millisecond,
}

// rig is a store, a coordinator and what an agent between them needs.
type rig struct {
	*testnix.Store
	t       *testing.T
	c       *scripted
	wire    *wire
	cfg     *config.Config
	log     *safeBuffer
	service agent.Service
	stop    func() // ends the agent in order and waits
	kill    func() // ends it at once and waits
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newRig(t *testing.T, n testnix.Nix) *rig {
	t.Helper()
	r := &rig{t: t, Store: testnix.New(t, testnix.WithNix(n)), c: newCoordinator(t), log: &safeBuffer{}}
	// The first use makes the store's database, and Nix 2.8 does not let two do that at the same time.
	r.Instantiate(`sh "first" {} ""`)
	r.wire = newWire(t, r.c.server.URL)
	r.c.base = r.wire.url()
	base := filepath.Join(r.Dir(), "agent")
	secretFiles := map[string]string{"cluster-join-token.key": r.c.join + "\n", "binary-caches.json": "{}"}
	if err := os.MkdirAll(filepath.Join(base, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range secretFiles {
		if err := os.WriteFile(filepath.Join(base, "secrets", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.cfg = r.config(map[string]any{})
	t.Cleanup(func() {
		for _, secret := range []string{r.c.join, "signature-secret", "c2lnbmF0dXJlLXNlY3JldA", "log-secret"} {
			if strings.Contains(r.log.String(), secret) {
				t.Errorf("the agent's log shows a secret: %q", secret)
			}
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", r.log)
		}
	})
	return r
}

// file is the text of a configuration file.
func (r *rig) file(url string, extra map[string]any) []byte {
	settings := map[string]any{
		"apiBaseUrl":          url,
		"baseDirectory":       filepath.Join(r.Dir(), "agent"),
		"concurrentTasks":     2,
		"drainTimeoutSeconds": 20,
		"nixUserIsTrusted":    true,
		"nixSettings":         map[string]string{"narinfo-cache-negative-ttl": "0"},
		"logLevel":            "DebugS",
		"labels":              map[string]any{"rack": "b2", "spare": nil},
	}
	for k, v := range extra {
		settings[k] = v
	}
	b, err := json.Marshal(settings)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rig) config(extra map[string]any) *config.Config {
	r.t.Helper()
	return r.configFor(r.wire.url(), extra)
}

func (r *rig) configFor(url string, extra map[string]any) *config.Config {
	r.t.Helper()
	cfg, err := config.Parse("agent.json", r.file(url, extra), func(string) string { return "" })
	if err != nil {
		r.t.Fatal(err)
	}
	cfg.EvaluationWorkers = 1
	return cfg
}

func (r *rig) options() agent.Options {
	return agent.Options{
		Log:        logging.New(r.log, slog.LevelDebug, logging.Plain),
		NixProgram: r.Program("nix"),
		Env:        r.Env(),
		Store:      &localstore.Store{Endpoint: r.Endpoint(), Why: "test"},
		Times:      quick,
	}
}

// start runs an agent in this process.
func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	drain := make(chan struct{})
	result := make(chan error, 1)
	opt := r.options()
	opt.Drain = drain
	opt.Service = r.service
	go func() { result <- agent.Run(ctx, r.cfg, opt) }()
	var once sync.Once
	wait := func() {
		once.Do(func() {
			select {
			case err := <-result:
				if err != nil {
					r.t.Errorf("the agent ended with %v", err)
				}
			case <-time.After(time.Minute):
				r.t.Error("the agent does not end")
			}
		})
		cancel()
	}
	r.stop = func() {
		select {
		case <-drain:
		default:
			close(drain)
		}
		wait()
	}
	r.kill = func() { cancel(); wait() }
	r.t.Cleanup(r.kill)
}

func TestJoinAndBuild(t *testing.T) {
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		r := newRig(t, n)
		r.start()
		r.c.await("a ping", func() bool { return r.c.pings > 0 })

		h := r.c.hellos[0]
		if h.AgentInfo.NixVersion != n.Version || h.AgentInfo.ConcurrentTasks != 2 || len(h.AgentInfo.Platforms) == 0 ||
			h.AgentInfo.Hostname == "" || h.AgentInfo.NixDaemonProtocolVersion < 1<<8+32 {
			t.Errorf("agent info: %+v", h.AgentInfo)
		}
		if d := cmp.Diff(agentapi.Map[string, json.RawMessage]{"rack": json.RawMessage(`"b2"`), "spare": json.RawMessage(`null`)}, h.AgentInfo.Labels); d != "" {
			t.Error(d)
		}
		key := filepath.Join(r.Dir(), "agent", "secretState", "session.key")
		info, err := os.Stat(key)
		if err != nil {
			t.Fatal(err)
		}
		if text, _ := os.ReadFile(key); info.Mode() != 0o600 || string(text) != r.c.sessions[0] {
			t.Errorf("session.key has mode %v and %d bytes", info.Mode(), len(text))
		}

		dep := r.Build(`sh "dep" {} "echo dep > $out"`)
		good := r.c.build(r.Instantiate(`sh "good" { dep = sh "dep" {} "echo dep > $out"; } "printf 'h\\303\\251llo\\nbin\\377\\000ary\\n'; cat $dep > $out"`), dep)
		bad := r.c.build(r.Instantiate(`sh "bad" {} "echo no; exit 7"`))
		gone := r.c.build("/nix/store/00000000000000000000000000000000-gone.drv")
		if got := r.c.finished(good); got != "Successful" {
			t.Errorf("good: %s", got)
		}
		if d := cmp.Diff([]string{"héllo", "bin\uFFFD\x00ary"}, r.c.lines(good)); d != "" {
			t.Error(d)
		}
		if len(good.events) != 2 || good.events[0].OutputInfo == nil || good.events[1].Done == nil {
			t.Errorf("events: %+v", good.events)
		}
		if got := r.c.finished(bad); got != "Terminated" || len(bad.events) != 0 {
			t.Errorf("bad: %s", got)
		}
		if log := r.c.errors(bad); !strings.Contains(log, "the builder ended with exit code 7") {
			t.Errorf("log of bad: %s", log)
		}
		if got := r.c.finished(gone); !strings.HasPrefix(got, "Exceptional the derivation /nix/store/0000") {
			t.Errorf("gone: %s", got)
		}
		r.stop()
		if len(r.c.goodbyes) != 1 || r.c.goodbyes[0].ID != h.StartInfo.ID || !r.c.goodbyes[0].StartTime.Equal(h.StartInfo.StartTime) {
			t.Errorf("goodbyes: %+v", r.c.goodbyes)
		}

		// The next start uses the session again, and is another run.
		r.start()
		r.c.await("the second hello", func() bool { return len(r.c.hellos) == 2 })
		if len(r.c.sessions) != 1 || r.c.hellos[1].StartInfo.ID == h.StartInfo.ID {
			t.Errorf("%d sessions, start ids %s %s", len(r.c.sessions), h.StartInfo.ID, r.c.hellos[1].StartInfo.ID)
		}
		r.stop()
	})
}

func TestCancelAndEffect(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("pgrep"); err != nil {
		t.Skip("SKIP: no pgrep")
	}
	r := newRig(t, testnix.Versions(t)[0])
	r.start()
	marker := "marker-" + filepath.Base(r.Dir())
	endless := r.c.build(r.Instantiate(fmt.Sprintf(`sh "endless" {} "echo running; while :; do sleep 1; done # %s"`, marker)))
	r.c.awaitLine(endless, "running")

	effect, token := r.c.task()
	r.c.send(agentapi.ServicePayload{StartEffect: &agentapi.EffectTask{
		ID: effect.id, DerivationPath: "/nix/store/00000000000000000000000000000000-effect.drv", LogToken: token, ProjectID: agentapi.NewID(),
	}})
	if got := r.c.finished(effect); got != "Exceptional effects are not supported by this version of the agent" {
		t.Errorf("effect: %s", got)
	}

	r.c.cancel(endless)
	if got := r.c.finished(endless); got != "Exceptional cancelled by the coordinator" {
		t.Errorf("cancelled: %s", got)
	}
	r.c.await("Cancelled", func() bool { return endless.cancelled == 1 })
	deadline := time.Now().Add(30 * time.Second)
	for exec.Command("pgrep", "-f", "--", marker).Run() == nil {
		if time.Now().After(deadline) {
			t.Fatal("the builder still runs")
		}
		time.Sleep(20 * time.Millisecond)
	}
	next := r.c.build(r.Instantiate(`sh "next" {} "echo > $out"`))
	if got := r.c.finished(next); got != "Successful" {
		t.Errorf("next: %s", got)
	}
}

// While the connection is cut, tasks go on; nothing is lost and nothing comes twice.
func TestCutOff(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	r.start()
	// The builder counts for as long as the connection is up and down; it has no other way to hear of us than time.
	drv := r.Instantiate(`sh "chatty" {} "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; echo > $out"`)
	short := r.Instantiate(`sh "short" {} "sleep 1; echo done; echo > $out"`)
	long, brief := r.c.build(drv), r.c.build(short)
	r.c.awaitLine(long, "line 5")
	for range 3 {
		r.wire.set(true)
		time.Sleep(400 * time.Millisecond) // the cut itself
		hellos := 0
		r.c.mu.Lock()
		hellos = len(r.c.hellos)
		r.c.mu.Unlock()
		r.wire.set(false)
		r.c.await("a new hello", func() bool { return len(r.c.hellos) > hellos })
	}
	for _, rec := range []*taskRecord{long, brief} {
		if got := r.c.finished(rec); got != "Successful" {
			t.Errorf("status: %s", got)
		}
	}
	var want []string
	for i := range 300 {
		want = append(want, fmt.Sprintf("line %d", i))
	}
	if d := cmp.Diff(want, r.c.lines(long)); d != "" {
		t.Error(d)
	}
	for _, h := range r.c.hellos[1:] {
		if h.StartInfo.ID != r.c.hellos[0].StartInfo.ID {
			t.Error("the start id changed")
		}
	}
	if !slices.Contains(r.c.hellos[1].TasksInProgress, long.id) {
		t.Errorf("in progress after the first cut: %v", r.c.hellos[1].TasksInProgress)
	}
}

func TestDaemonDies(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	r.start()
	rec := r.c.build(r.Instantiate(`sh "endless" {} "echo running; while :; do sleep 1; done"`))
	r.c.awaitLine(rec, "running")
	r.Kill()
	if got := r.c.finished(rec); !strings.Contains(got, "the Nix daemon closed the connection") {
		t.Errorf("status: %s", got)
	}
	r.Restart()
	next := r.c.build(r.Instantiate(`sh "next" {} "echo > $out"`))
	if got := r.c.finished(next); got != "Successful" {
		t.Errorf("next: %s", got)
	}
}

// A build that prints a gigabyte costs the agent little memory, and its log has a beginning and an end.
func TestGigabyteOfLog(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIP: half a minute, not in short mode")
	}
	r := newRig(t, testnix.Versions(t)[0])
	r.start()
	const width, lines = 8 << 10, 1 << 17
	rec := r.c.build(r.Instantiate(fmt.Sprintf(`sh "loud" {} "yes $(printf '%%0%dd' 7) | head -n %d; echo last; echo > $out"`, width-1, lines)))
	if got := r.c.finished(rec); got != "Successful" {
		t.Fatalf("status: %s", got)
	}
	if n := len(rec.log); n > 100_003 || n < 20_000 {
		t.Errorf("%d entries", n)
	}
	got := r.c.lines(rec)
	if len(got[0]) != width-1 {
		t.Fatalf("the first line has %d bytes", len(got[0]))
	}
	if got[len(got)-1] != "last" {
		t.Errorf("the last line has %d bytes", len(got[len(got)-1]))
	}
	if !strings.Contains(r.c.errors(rec), "lines are left out here") {
		t.Error("the log does not say that something is left out")
	}
}

// Tasks that run when the agent is asked to stop end well; what does not end in time is handed back without status.
func TestLeave(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	r.cfg = r.config(map[string]any{"drainTimeoutSeconds": 3})
	service := &recorder{}
	r.service = service
	r.start()
	endless := r.c.build(r.Instantiate(`sh "endless" {} "echo running; while :; do sleep 1; done"`))
	short := r.c.build(r.Instantiate(`sh "short" {} "echo running; sleep 1; echo > $out"`))
	r.c.awaitLine(endless, "running")
	r.c.awaitLine(short, "running")
	r.stop()
	if got := r.c.finished(short); got != "Successful" {
		t.Errorf("short: %s", got)
	}
	if len(r.c.goodbyes) != 1 || len(endless.statuses) != 0 {
		t.Errorf("%d goodbyes, statuses of the endless build: %v", len(r.c.goodbyes), endless.statuses)
	}
	r.c.await("the end of the log of what was handed back", func() bool { return endless.end != nil })
	if log := r.c.errors(endless); !strings.Contains(log, "handed back") {
		t.Errorf("log of the endless build: %s", log)
	}
	said := service.take()
	if said[0] != "READY online; idle" || !slices.Contains(said, "STATUS online; running 2 builds") ||
		!slices.Contains(said, "STOPPING leaving; running 2 builds") || !slices.Contains(said, "ALIVE") {
		t.Errorf("the service manager heard %q", said)
	}
}

// recorder is a service manager.
type recorder struct {
	mu   sync.Mutex
	said []string
}

func (r *recorder) say(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, what)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.said
}

func (r *recorder) Ready(s string)    { r.say("READY " + s) }
func (r *recorder) Status(s string)   { r.say("STATUS " + s) }
func (r *recorder) Stopping(s string) { r.say("STOPPING " + s) }

func (r *recorder) Watch(ctx context.Context, alive func(context.Context) error) {
	<-ctx.Done()
	if err := alive(context.WithoutCancel(ctx)); err == nil {
		r.say("ALIVE")
	}
}

// process runs the agent as a program of its own.
func (r *rig) process() *exec.Cmd {
	r.t.Helper()
	path := filepath.Join(r.Dir(), "agent.json")
	if err := os.WriteFile(path, r.file(r.wire.url(), nil), 0o600); err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(r.Env(), asAgent+"="+path)
	cmd.Stderr = r.log
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// A killed agent comes back as the same session, another run, and without its tasks.
func TestKilledProcessRejoins(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	first := r.process()
	rec := r.c.build(r.Instantiate(`sh "endless" {} "echo running; while :; do sleep 1; done"`))
	r.c.awaitLine(rec, "running")
	stale := filepath.Join(r.Dir(), "agent", "work", "eval-123")
	if err := os.Mkdir(stale, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()

	second := r.process()
	r.c.await("the second hello", func() bool { return len(r.c.hellos) == 2 })
	if len(r.c.sessions) != 1 || r.c.hellos[0].StartInfo.ID == r.c.hellos[1].StartInfo.ID || len(r.c.hellos[1].TasksInProgress) != 0 {
		t.Errorf("%d sessions, hellos %+v", len(r.c.sessions), r.c.hellos)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("the leftover is still there: %v", err)
	}
	next := r.c.build(r.Instantiate(`sh "next" {} "echo > $out"`))
	if got := r.c.finished(next); got != "Successful" {
		t.Errorf("next: %s", got)
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if len(r.c.goodbyes) != 1 {
		t.Errorf("goodbyes: %v", r.c.goodbyes)
	}
}

// The second signal does not wait for anything.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	p := r.process()
	rec := r.c.build(r.Instantiate(`sh "endless" {} "echo running; while :; do sleep 1; done"`))
	r.c.awaitLine(rec, "running")
	begin := time.Now()
	for range 2 {
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for !strings.Contains(r.log.String(), "asked to stop") {
			time.Sleep(5 * time.Millisecond)
		}
	}
	_ = p.Wait()
	if d := time.Since(begin); d > 15*time.Second {
		t.Errorf("took %s", d) // the time to finish is 20 s
	}
}

func TestRefusedStart(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	base := filepath.Join(r.Dir(), "agent")
	write := func(name, text string) string {
		path := filepath.Join(r.Dir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name     string
		settings map[string]any
		change   func(*agent.Options)
		check    bool // --test-configuration finds it too
		want     string
	}{
		{name: "good", check: true},
		{"negative ttl", map[string]any{"nixSettings": map[string]string{}}, nil, true, "narinfo-cache-negative-ttl"},
		{"no caches file", map[string]any{"binaryCachesPath": base + "/none.json"}, nil, true, base + "/none.json"},
		{"broken caches file", map[string]any{"binaryCachesPath": write("broken.json", `{"x": 1}`)}, nil, true, "expected an object"},
		{
			"bad Cachix key",
			map[string]any{"binaryCachesPath": write("cachix.json", `{"x": {"kind": "CachixCache", "publicKeys": [], "signingKeys": ["hush-hush"]}}`)},
			nil, true, "signing key",
		},
		{"no join token", map[string]any{"clusterJoinTokenPath": base + "/none.key"}, nil, true, base + "/none.key"},
		{"nobody there", map[string]any{"apiBaseUrl": "http://127.0.0.1:1"}, nil, true, "cannot be reached"},
		{"no Nix", nil, func(o *agent.Options) { o.NixProgram = "/nonexistent/nix" }, true, "Install it"},
		{"no directory", map[string]any{"workDirectory": write("file", "") + "/work"}, nil, true, "workDirectory"},
		{"no daemon", nil, func(o *agent.Options) {
			o.Store = nil
			o.Env = append(o.Env, "NIX_REMOTE=unix:///nonexistent")
		}, false, "no Nix daemon answers there"},
		{"no daemon at the given store", nil, func(o *agent.Options) {
			o.Store = &localstore.Store{Endpoint: daemon.Endpoint{Socket: "/nonexistent"}, Why: "test"}
		}, false, "cannot be used"},
		{"wrong join token", map[string]any{"clusterJoinTokenPath": write("other.key", jwt(`{"sub":"t$other"}`))}, nil, false, "401"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg, opt := r.config(test.settings), r.options()
			if test.change != nil {
				test.change(&opt)
			}
			err := agent.Check(t.Context(), cfg, opt)
			if !test.check {
				if err != nil {
					t.Errorf("the configuration test says %v", err)
				}
				err = agent.Run(t.Context(), cfg, opt)
			}
			switch {
			case test.want == "" && err != nil:
				t.Errorf("got %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want %q", err, test.want)
			case err != nil && strings.Contains(err.Error(), "hush-hush"):
				t.Errorf("the error shows a key: %v", err)
			}
		})
	}
	if info, err := os.Stat(filepath.Join(base, "work", "secure")); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("the directory for secrets: %v, %v", info, err)
	}
}
