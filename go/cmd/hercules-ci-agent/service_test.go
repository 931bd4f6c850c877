package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hercules/internal/coordinator"
	"hercules/internal/coordinator/event"
	"hercules/internal/testnix"
)

// These tests run the program as a service manager would, against a real coordinator, with a real Nix.

// limit bounds everything that a test waits for.
const limit = 80 * time.Second

// rig is a coordinator, a link to it that can be cut, and what an agent needs on disk.
type rig struct {
	*testnix.Store
	t      *testing.T
	c      *coordinator.Coordinator
	link   *link
	config string
}

func newRig(t *testing.T, n testnix.Nix) *rig {
	t.Helper()
	r := &rig{Store: testnix.New(t, testnix.WithNix(n)), t: t}
	c, err := coordinator.Start(t.Context(), coordinator.Config{Dir: filepath.Join(r.Dir(), "coordinator")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	r.c = c
	u, err := url.Parse(c.URL())
	if err != nil {
		t.Fatal(err)
	}
	r.link = newLink(t, u.Host)
	base := filepath.Join(r.Dir(), "agent")
	secrets := filepath.Join(base, "secrets")
	if err := os.MkdirAll(secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"cluster-join-token.key": c.JoinToken() + "\n", "binary-caches.json": "{}"} {
		if err := os.WriteFile(filepath.Join(secrets, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.config = r.File("agent.toml", fmt.Sprintf(`
baseDirectory = %q
apiBaseUrl = %q
concurrentTasks = 3
drainTimeoutSeconds = 60

[nixSettings]
narinfo-cache-negative-ttl = "0"
`, base, "http://"+r.link.address()))
	return r
}

// service is a running agent.
type service struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   safeBuffer
	ended chan struct{}
}

type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (r *rig) start(args ...string) *service {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	s := &service{t: r.t, ended: make(chan struct{})}
	s.cmd = exec.Command(self, append([]string{"--config", r.config}, args...)...)
	s.cmd.Args[0] = name
	s.cmd.Env = r.Env()
	s.cmd.Dir = r.Dir()
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.WaitDelay = 10 * time.Second
	if err := s.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait() // the state says how it ended
		close(s.ended)
	}()
	r.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
		if r.t.Failed() {
			r.t.Logf("the agent's log:\n%.20000s", s.log.String())
		}
	})
	return s
}

func (s *service) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// wait gives the exit status.
func (s *service) wait() int {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(limit):
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		s.t.Fatal("the agent did not end")
	}
	return s.cmd.ProcessState.ExitCode()
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it did not come true that %s", what)
		}
	}
}

// submit starts the job of a default.nix.
func (r *rig) submit(expr string) string {
	r.t.Helper()
	text := testnix.Prelude + expr
	job, err := r.c.Submit(r.t.Context(), coordinator.Job{
		Name: "project",
		Source: coordinator.Source{Ref: "refs/heads/main", Rev: strings.Repeat("a", 40), Archive: func(_ context.Context, w io.Writer) error {
			z := gzip.NewWriter(w)
			a := tar.NewWriter(z)
			if err := a.WriteHeader(&tar.Header{Name: "default.nix", Mode: 0o644, Size: int64(len(text))}); err != nil {
				return err
			}
			if _, err := io.WriteString(a, text); err != nil {
				return err
			}
			if err := a.Close(); err != nil {
				return err
			}
			return z.Close()
		}},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return job
}

func (r *rig) result(job string) *coordinator.Result {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), limit)
	defer cancel()
	result, err := r.c.Wait(ctx, job)
	if err != nil {
		r.t.Fatal(err)
	}
	return result
}

// drvs maps the attributes of a result to their derivations.
func drvs(result *coordinator.Result) map[string]string {
	m := map[string]string{}
	for _, a := range result.Attributes {
		m[strings.Join(a.Path, ".")] = a.Drv
	}
	return m
}

func (r *rig) logOf(drv string) string {
	r.t.Helper()
	log, err := r.c.OpenLog(r.t.Context(), drv, false)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	text, err := io.ReadAll(log)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}

// started waits until the builder of the derivation with this name has printed text.
func (r *rig) started(drv, text string) {
	r.t.Helper()
	eventually(r.t, drv+" prints "+text, func() bool {
		log, err := r.c.OpenLog(r.t.Context(), drv, false)
		if err != nil {
			return false
		}
		defer log.Close()
		b, err := io.ReadAll(log)
		return err == nil && strings.Contains(string(b), text)
	})
}

func TestService(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		r := newRig(t, n)
		check := r.start("--test-configuration")
		if status := check.wait(); status != 0 || !strings.Contains(check.log.String(), "the configuration is good") {
			t.Errorf("--test-configuration: status %d", status)
		}
		a := r.start()
		result := r.result(r.submit(`rec {
			seeds = sh "seeds" { } "echo making seeds; echo '\"bread\"' > $out";
			bread = sh (import seeds) { inherit seeds; } "cat $seeds > $out";
			bad = sh "bad" { } "echo oh no; exit 3";
			throws = throw "on purpose";
		}`))
		if result.Status != event.Failed || result.Counts.Good != 2 || result.Counts.Bad != 1 || result.Counts.Errors != 1 {
			t.Errorf("got %+v", result)
		}
		if log := r.logOf(drvs(result)["bad"]); !strings.Contains(log, "oh no\n") || !strings.Contains(log, "the builder ended with exit code 3") {
			t.Errorf("the log of the build:\n%s", log)
		}
		if log := r.logOf(drvs(result)["seeds"]); !strings.Contains(log, "making seeds\n") {
			t.Errorf("the log of the build:\n%s", log)
		}
		a.signal(syscall.SIGTERM)
		if status := a.wait(); status != 0 {
			t.Errorf("after SIGTERM the status is %d", status)
		}
	})
}

// TestKilled: an agent that is killed and comes back is the same session, and its work is done again.
func TestKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	drv := r.Instantiate(`sh "slow" { } "echo it runs; sleep 5; echo > $out"`)
	first := r.start()
	job := r.submit(`{ slow = sh "slow" { } "echo it runs; sleep 5; echo > $out"; good = sh "good" { } "echo > $out"; }`)
	r.started(drv, "it runs")
	key := filepath.Join(r.Dir(), "agent", "secretState", "session.key")
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	first.signal(syscall.SIGKILL)
	first.wait()
	second := r.start()
	result := r.result(job)
	if result.Status != event.Succeeded || result.Counts.Good != 2 {
		t.Errorf("got %+v", result)
	}
	after, err := os.ReadFile(key)
	if err != nil || !bytes.Equal(before, after) || strings.Contains(second.log.String(), "session created") {
		t.Errorf("another session was made: %v", err)
	}
	second.signal(syscall.SIGTERM)
	if status := second.wait(); status != 0 {
		t.Errorf("after SIGTERM the status is %d", status)
	}
}

// TestDrain: asked to stop, the agent finishes what it has and begins nothing new.
func TestDrain(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	drv := r.Instantiate(`sh "slow" { } "echo it runs; sleep 4; echo it ends; echo > $out"`)
	a := r.start()
	job := r.submit(`rec {
		slow = sh "slow" { } "echo it runs; sleep 4; echo it ends; echo > $out";
		after = sh "after" { inherit slow; } "echo > $out";
	}`)
	r.started(drv, "it runs")
	a.signal(syscall.SIGTERM)
	if status := a.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if log := r.logOf(drv); !strings.Contains(log, "it ends\n") {
		t.Errorf("the log is not complete:\n%s", log)
	}
	// What it did not begin is for the next one.
	r.start()
	if result := r.result(job); result.Status != event.Succeeded || result.Counts.Good != 2 {
		t.Errorf("got %+v", result)
	}
}

// TestSecondSignal: the second signal does not wait for anything.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	drv := r.Instantiate(`sh "never" { } "echo it runs; sleep 100000"`)
	a := r.start()
	r.submit(`{ never = sh "never" { } "echo it runs; sleep 100000"; }`)
	r.started(drv, "it runs")
	a.signal(syscall.SIGTERM)
	eventually(t, "it begins to leave", func() bool { return strings.Contains(a.log.String(), "agent is leaving") })
	a.signal(syscall.SIGTERM)
	begin := time.Now()
	a.wait()
	if d := time.Since(begin); d > 45*time.Second {
		t.Errorf("it took %s; the time to finish is 60 s", d)
	}
}

// TestCutOff: what happens while the network is away for more than a minute comes in afterwards, all and once.
func TestCutOff(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIP: more than a minute, not in short mode")
	}
	r := newRig(t, testnix.Versions(t)[0])
	const script = `for i in $(seq 1 160); do echo line $i; sleep 0.5; done; echo > $out`
	drv := r.Instantiate(`sh "talks" { } "` + strings.ReplaceAll(script, "$", `\$`) + `"`)
	r.start()
	job := r.submit(`{ talks = sh "talks" { } "` + strings.ReplaceAll(script, "$", `\$`) + `"; }`)
	r.started(drv, "line 3\n")
	r.link.cut()
	time.Sleep(65 * time.Second) // the outage
	if strings.Contains(r.logOf(drv), "line 60\n") {
		t.Error("the link is not cut")
	}
	r.link.mend()
	result := r.result(job)
	if result.Status != event.Succeeded {
		t.Errorf("got %+v", result)
	}
	var want strings.Builder
	for i := range 160 {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	if log := r.logOf(drv); !strings.Contains(log, want.String()) || strings.Count(log, "line ") != 160 {
		t.Errorf("the log:\n%s", log)
	}
}

// link forwards TCP connections until it is cut. Then nothing passes, and nobody is told.
type link struct {
	l      net.Listener
	target string
	mu     sync.Mutex
	open   chan struct{} // closed while the link works
	wg     sync.WaitGroup
	conns  map[net.Conn]bool
	done   bool
}

func newLink(t *testing.T, target string) *link {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Addr().String()) != len(target) {
		t.Skipf("SKIP: the addresses %s and %s are not of the same length", l.Addr(), target)
	}
	k := &link{l: l, target: target, open: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(k.open)
	k.wg.Go(k.serve)
	t.Cleanup(func() {
		k.mend()
		_ = l.Close()
		k.mu.Lock()
		k.done = true
		for c := range k.conns {
			_ = c.Close()
		}
		k.mu.Unlock()
		k.wg.Wait()
	})
	return k
}

func (k *link) address() string { return k.l.Addr().String() }

func (k *link) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = make(chan struct{})
}

func (k *link) mend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.open:
	default:
		close(k.open)
	}
}

func (k *link) wait() {
	k.mu.Lock()
	open := k.open
	k.mu.Unlock()
	<-open
}

func (k *link) add(c net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.done {
		_ = c.Close()
		return false
	}
	k.conns[c] = true
	return true
}

func (k *link) serve() {
	for {
		near, err := k.l.Accept()
		if err != nil {
			return
		}
		k.wg.Go(func() {
			if !k.add(near) {
				return
			}
			k.wait()
			var d net.Dialer
			far, err := d.DialContext(context.Background(), "tcp", k.target)
			if err != nil || !k.add(far) {
				_ = near.Close()
				return
			}
			k.wg.Go(func() { k.forward(near, far) })
			k.forward(far, near)
		})
	}
}

func (k *link) forward(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		k.wait()
		if n > 0 {
			// The coordinator tells agents its address, which must lead through the link too. Both have ports of five digits.
			if _, err := to.Write(bytes.ReplaceAll(buf[:n], []byte(k.target), []byte(k.address()))); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
