package cli_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hercules/internal/testnix"
)

// shPrelude is what the Nix files of the tests begin with.
const shPrelude = `let
  sh = name: attrs: script: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-e" "-c" script ];
  } // attrs);
in
`

// limit bounds everything that a test waits for.
const limit = 2 * time.Minute

// program is hci as a process of its own.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout output
	stderr output
	ended  chan struct{}
}

// output keeps what is written, for readers at any time.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// repository writes a default.nix and gives its directory.
func repository(t *testing.T, s *testnix.Store, text string) string {
	t.Helper()
	return filepath.Dir(s.File("repo/default.nix", shPrelude+text))
}

// startHCI runs hci in the environment of a store.
func startHCI(t *testing.T, s *testnix.Store, env []string, args ...string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, ended: make(chan struct{})}
	p.cmd = exec.Command(self, args...)
	p.cmd.Args[0] = "hci"
	p.cmd.Env = append(append(append(s.Env(), gitEnv()...), "GOTRACEBACK=all"), env...)
	p.cmd.Dir = s.Dir()
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.WaitDelay = 10 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // the state says how it ended
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("standard output:\n%.20000s\nstandard error:\n%.20000s", p.stdout.String(), p.stderr.String())
		}
	})
	return p
}

// wait gives the exit status. A program that does not end shows where it hangs.
func (p *program) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(limit):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		<-p.ended
		p.t.Fatal("hci did not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *program) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
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

// processes gives the command lines of all processes that have text in it or in their environment.
func processes(text string) []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(line) == 0 {
			continue
		}
		env, _ := os.ReadFile(dir + "/environ")
		if bytes.Contains(line, []byte(text)) || bytes.Contains(env, []byte(text)) {
			found = append(found, filepath.Base(dir)+": "+string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// checkNothingLeft holds hci to leaving no process but the daemon, and no temporary file.
func checkNothingLeft(t *testing.T, s *testnix.Store) {
	t.Helper()
	var left []string
	for _, p := range processes("HOME=" + s.Dir() + "/home") {
		if !strings.Contains(p, "nix-daemon") {
			left = append(left, p)
		}
	}
	if len(left) > 0 {
		t.Errorf("processes are left:\n%s", strings.Join(left, "\n"))
	}
	files, err := filepath.Glob(filepath.Join(s.Dir(), "tmp", "*"))
	files = slices.DeleteFunc(files, func(path string) bool {
		return strings.HasPrefix(filepath.Base(path), "nix-build-") // the daemon's own, when it is killed
	})
	if err != nil || len(files) > 0 {
		t.Errorf("files are left: %q, %v", files, err)
	}
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		marker := "never" + filepath.Base(s.Dir())
		repo := repository(t, s, `{
			good = sh "good" { } "echo > $out";
			never = sh "never" { marker = "`+marker+`"; } "echo running; sleep 100000";
			later = sh "later" { dep = sh "never2" { marker = "`+marker+`"; } "sleep 100000"; } "echo > $out";
		}`)
		p := startHCI(t, s, nil, "run", "-j", "3", repo)
		eventually(t, "the builders run", func() bool {
			return len(processes(marker)) >= 2 && strings.Contains(p.stderr.String(), "built      good")
		})
		p.signal(os.Interrupt)
		if status := p.wait(); status != 130 {
			t.Errorf("exit status %d", status)
		}
		for _, want := range []string{"✔ good     good\n", "- stopped  later\n", "- stopped  never\n", "\nstopped — 3 attributes, 1 built"} {
			if !strings.Contains(p.stdout.String(), want) {
				t.Errorf("standard output does not have %q", want)
			}
		}
		eventually(t, "the builders are dead", func() bool { return len(processes(marker)) == 0 })
		checkNothingLeft(t, s)
	})
}

// TestInterruptedEvaluation: also an evaluation that never ends can be stopped.
func TestInterruptedEvaluation(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	repo := repository(t, s, `{ never = let fib = n: if n < 2 then n else fib (n - 1) + fib (n - 2); in builtins.trace "it runs" (fib 100); }`)
	p := startHCI(t, s, nil, "run", "--json", repo)
	eventually(t, "the evaluation runs", func() bool { return strings.Contains(p.stdout.String(), "it runs") })
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != 130 {
		t.Errorf("exit status %d", status)
	}
	list, err := parseEvents(p.stdout.String())
	if err != nil || len(list) == 0 || list[len(list)-1].text("status") != "cancelled" {
		t.Errorf("the events end wrongly: %v", err)
	}
	checkNothingLeft(t, s)
}

// TestSecondInterrupt: when stopping takes too long for somebody, the next signal ends all at once.
func TestSecondInterrupt(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	marker := "never" + filepath.Base(s.Dir())
	repo := repository(t, s, `{ never = sh "never" { marker = "`+marker+`"; } "sleep 100000"; }`)
	p := startHCI(t, s, nil, "run", repo)
	eventually(t, "the builder runs", func() bool { return len(processes(marker)) > 0 })
	for ended := false; !ended; {
		_ = p.cmd.Process.Signal(os.Interrupt) // fails when it has ended
		select {
		case <-p.ended:
			ended = true
		case <-time.After(time.Millisecond):
		}
	}
	eventually(t, "the builder is dead", func() bool { return len(processes(marker)) == 0 })
	eventually(t, "no process is left", func() bool {
		for _, p := range processes("HOME=" + s.Dir() + "/home") {
			if !strings.Contains(p, "nix-daemon") {
				return false
			}
		}
		return true
	})
}

// TestDaemonDies: the build that it was at could not be done, and that is what is said.
func TestDaemonDies(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		marker := "slow" + filepath.Base(s.Dir())
		repo := repository(t, s, `rec {
			good = sh "good" { } "echo > $out";
			slow = sh "slow" { inherit good; marker = "`+marker+`"; } "sleep 100000";
			after = sh "after" { inherit slow; } "echo > $out";
			throws = throw "on purpose";
		}`)
		p := startHCI(t, s, nil, "run", repo)
		eventually(t, "the builder runs", func() bool { return len(processes(marker)) > 0 })
		s.Kill()
		if status := p.wait(); status != 1 {
			t.Errorf("exit status %d", status)
		}
		for _, want := range []string{
			"✔ good               good\n", "✘ could not build    slow\n", "✘ evaluation error   throws\n",
			"✘ dependency failed  after   because of slow\n", "Nix daemon", "\nfailed — 4 attributes, 1 built, 2 failed, 1 not evaluated",
		} {
			if !strings.Contains(p.stdout.String(), want) {
				t.Errorf("standard output does not have %q", want)
			}
		}
		checkNothingLeft(t, s)
	})
}

// TestFailureKinds: what went wrong with a build is named for people.
func TestFailureKinds(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		repo := repository(t, s, `{
			good = sh "good" { } "echo > $out";
			exits = sh "exits" { } "echo the last words; exit 7";
			silent = sh "silent" { } "sleep 100000";
			noisy = sh "noisy" { } "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done";
			noOutput = sh "no-output" { } "true";
			mismatch = sh "mismatch" { outputHashMode = "flat"; outputHashAlgo = "sha256";
			  outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; } "echo > $out";
			cycle = sh "cycle" { outputs = [ "out" "two" ]; } "echo $two > $out; echo $out > $two";
			elsewhere = sh "elsewhere" { system = "m68k-linux"; } "echo > $out";
			features = sh "features" { requiredSystemFeatures = [ "kangaroo" ]; } "echo > $out";
			noBuilder = sh "no-builder" { builder = "/no/such/builder"; } "";
			binary = sh "binary" { } ''printf '\000\001\377\376 \033[2J\033]0;title\007 binary\r\n'; exit 1'';
		}`)
		p := startHCI(t, s, nil, "run", "--option", "max-silent-time=3", "--option", "max-build-log-size=1000000", repo)
		if status := p.wait(); status != 1 {
			t.Errorf("exit status %d", status)
		}
		out := p.stdout.String()
		for _, want := range []string{
			"✔ good             good\n",
			"  the builder ended with exit code 7.\n  │ the last words\n  log: ",
			"max-silent-time).\n  log: ",
			"  it printed more than Nix allows (max-build-log-size).\n",
			"  the builder ended well but did not make ",
			"  hash mismatch: it declares sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= but its output is sha256-",
			"  its outputs refer to each other in a cycle.\n",
			"  no agent can build for m68k-linux\n",
			" with features kangaroo\n",
			"/no/such/builder",
			"  binary\n",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("standard output does not have %q", want)
			}
		}
		if strings.ContainsAny(out, "\x00\x01\x1b\r") {
			t.Error("what a builder prints reaches the terminal as it is")
		}
		checkNothingLeft(t, s)
	})
}

// TestHugeLog: what a builder prints costs neither memory nor disk. (A whole gigabyte takes Nix half a minute and more;
// package agent tests that.)
func TestHugeLog(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	repo := repository(t, s, `{
		huge = sh "huge" { } "echo it begins; line=$(head -c 2000 /dev/zero | tr '\\0' x); yes $line | head -n 130000; echo it ends; exit 5";
		good = sh "good" { } "echo > $out";
	}`)
	p := startHCI(t, s, nil, "run", repo)
	if status := p.wait(); status != 1 {
		t.Errorf("exit status %d", status)
	}
	out := p.stdout.String()
	for _, want := range []string{"✔ good    good\n", "✘ failed  huge\n", "  the builder ended with exit code 5.\n", "  │ it ends\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("standard output does not have %q", want)
		}
	}
	if usage, ok := p.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok && usage.Maxrss > memoryFactor*150<<10 {
		t.Errorf("hci took %d MiB of memory", usage.Maxrss>>10)
	}
	_, rest, _ := strings.Cut(out, "  log:        ")
	path, _, _ := strings.Cut(rest, "\n")
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(log, []byte("it begins\n")) || !bytes.Contains(log, []byte("it ends\n")) || len(log) > 250<<20 || !bytes.Contains(log, []byte("left out")) {
		t.Errorf("the log of %d bytes lacks its beginning, its end, or a notice between them", len(log))
	}
	checkNothingLeft(t, s)
}

// TestSixtyThousandAttributes: the limit is said, what came before it counts.
func TestSixtyThousandAttributes(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	repo := repository(t, s, `builtins.listToAttrs (builtins.genList (n: { name = "a${toString n}"; value = sh "good" { } "echo > $out"; }) 60000)`)
	p := startHCI(t, s, nil, "run", repo)
	if status := p.wait(); status != 1 {
		t.Errorf("exit status %d", status)
	}
	for _, want := range []string{
		"✘ Evaluation limit reached: there are more than 50000 attributes, errors and messages, and the rest is left out.",
		"\n✔ 50000 good attributes not listed\n", "\nfailed — 50000 attributes, 1 built\n",
	} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("standard output does not have %q", want)
		}
	}
	checkNothingLeft(t, s)
}
