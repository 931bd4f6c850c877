package testnix_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"hercules/internal/testnix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBuild(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		out := s.Build(`sh "tree" { } "mkdir -p $out/bin; echo hello > $out/bin/x; ls /"`)
		text, err := os.ReadFile(s.Real(out) + "/bin/x")
		if err != nil {
			t.Fatal(err)
		}
		if string(text) != "hello\n" {
			t.Errorf("the output has %q", text)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s is in the machine's own store", out)
		}
		drv := s.Instantiate(`sh "dep" { dep = sh "tree" { } "mkdir $out"; } "echo $dep > $out"`)
		if !strings.HasSuffix(drv, "-dep.drv") {
			t.Errorf("instantiated to %q", drv)
		}
		if got := s.Run("nix-store", "-q", "--deriver", out); !strings.HasSuffix(got, "-tree.drv") {
			t.Errorf("deriver %q", got)
		}
	})
}

func TestRestart(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	out := s.Build(`sh "x" { } "echo > $out"`)
	s.Kill()
	if c, err := net.Dial("unix", s.Socket()); err == nil {
		c.Close()
		t.Error("a killed daemon still listens")
	}
	if _, err := s.TryRun("nix-store", "-q", "--hash", out); err == nil {
		t.Error("a query worked without daemon")
	}
	s.Restart()
	if got := s.Run("nix-store", "-q", "--hash", out); !strings.HasPrefix(got, "sha256:") {
		t.Errorf("after the restart the path has the hash %q", got)
	}
}

func TestKillDuringBuild(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	cmd := s.Command("nix-build", "--no-out-link", "--expr", testnix.Prelude+`sh "x" { } "echo started; sleep 1000"`)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && lines.Text() != "started" {
	}
	s.Kill()
	for lines.Scan() {
	}
	if err := cmd.Wait(); err == nil {
		t.Error("nix-build ended well although its daemon was killed")
	}
}

func TestEnvironmentIsHermetic(t *testing.T) {
	t.Setenv("NIX_CONFIG", "max-jobs = 77")
	s := testnix.New(t)
	if got := s.Run("nix", "show-config"); strings.Contains(got, "max-jobs = 77") {
		t.Error("the user's NIX_CONFIG counts")
	}
}

// TestNothingIsLeftAfterPanic runs this test program again, so that it dies with a daemon running.
func TestNothingIsLeftAfterPanic(t *testing.T) {
	t.Parallel()
	const variable = "TESTNIX_DIE"
	if os.Getenv(variable) != "" {
		s := testnix.New(t)
		s.Run("nix-store", "--add", s.File("f", "x"))
		os.Stdout.WriteString("daemon of " + s.Dir() + "\n")
		os.Exit(3)
	}
	testnix.Versions(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestNothingIsLeftAfterPanic$", "-test.parallel=1")
	cmd.Env = append(os.Environ(), variable+"=1")
	// The watcher holds this pipe too, so the output ends when all is cleaned up.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout, cmd.ExtraFiles = w, []*os.File{w}
	err = errors.Join(cmd.Start(), w.Close())
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	_, rest, ok := strings.Cut(string(out), "daemon of ")
	if !ok {
		t.Skip("SKIP: no store in the inner test: " + string(out))
	}
	dir, _, _ := strings.Cut(rest, "\n")
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is still there", dir)
	}
}

func TestNixVersionScript(t *testing.T) {
	t.Parallel()
	n := testnix.Versions(t)[0]
	target := filepath.Join(t.TempDir(), "suite")
	if err := os.MkdirAll(filepath.Join(target, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "nix-version.sh", "suite", target)
		cmd.Env = []string{"PATH=/nonexistent", "HOME=/nonexistent"}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err == nil || !strings.Contains(out, "apt-get install mmdebstrap") {
		t.Errorf("without mmdebstrap: %v, %s", err, out)
	}
	if err := os.Symlink(filepath.Join(n.Bin, "nix"), filepath.Join(target, "bin", "nix")); err != nil {
		t.Fatal(err)
	}
	if out, err := run(); err != nil || !strings.Contains(out, n.Version) {
		t.Errorf("with all in place: %v, %s", err, out)
	}
}
