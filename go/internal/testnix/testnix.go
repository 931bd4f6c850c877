// Package testnix gives a test a Nix of its own: a private chroot store, a real nix-daemon that serves it on a
// socket, and an environment in which Nix's programs see nothing of the user's configuration.
//
// It is imported by tests only. It knows Nix and no continuous integration. What it needs and cannot find (Nix, a
// static busybox for the sandbox's /bin/sh, user namespaces) makes the test skip with the reason.
package testnix

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hercules/internal/nix/daemon"
)

// runLimit bounds every program that a helper of this package runs: a hanging Nix becomes a message.
const runLimit = 5 * time.Minute

// Store is a private store with its daemon. Paths in it look like /nix/store/…; their contents are below
// [Store.Root].
type Store struct {
	t    testing.TB
	nix  Nix
	dir  string
	conf []string
	d    *daemonProcess
}

// Option changes what [New] makes.
type Option func(*Store)

// WithNix takes this Nix rather than the first one found.
func WithNix(n Nix) Option { return func(s *Store) { s.nix = n } }

// WithConfig adds lines to the nix.conf that the daemon and the programs of the test read. Later lines win.
func WithConfig(lines ...string) Option {
	return func(s *Store) { s.conf = append(s.conf, lines...) }
}

// New makes a store and starts its daemon; both are gone when the test ends.
//
// Builds run in the sandbox, where /bin/sh is busybox with all of its applets, and there are no substituters.
func New(t testing.TB, options ...Option) *Store {
	t.Helper()
	s := &Store{t: t}
	for _, option := range options {
		option(s)
	}
	if s.nix.Bin == "" {
		s.nix = Versions(t)[0]
	}
	shell, err := sandboxShell()
	if err != nil {
		t.Skip("SKIP: " + err.Error())
	}
	if err := sandboxPossible(); err != nil {
		t.Skip("SKIP: the sandbox does not work here: " + err.Error())
	}

	s.dir = tempDir(t)
	s.conf = append([]string{
		"build-users-group =",
		"experimental-features = nix-command flakes",
		"sandbox = true",
		"sandbox-fallback = false",
		// Not extra-: newer Debian packages have a default that names a file of another package.
		"sandbox-paths = /bin/sh=" + shell,
		"substituters =",
		"trusted-users = *",
	}, s.conf...)
	for _, d := range []string{"etc", "home", "tmp", "root"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.WriteConfig()
	s.start()
	s.setUp()
	return s
}

// setUp makes the store's directories: Nix fails when two connections that are the first ones do it at once. A
// configuration that lets nobody connect is the test's own business.
func (s *Store) setUp() {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if conn, err := daemon.Dial(ctx, s.Endpoint(), daemon.Options{}); err == nil {
		_ = conn.Close() // it was only to be opened
	}
}

// WriteConfig writes nix.conf again, with more lines at its end. Programs and connections that start afterwards
// see it.
func (s *Store) WriteConfig(lines ...string) {
	s.t.Helper()
	s.conf = append(s.conf, lines...)
	text := strings.Join(s.conf, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(s.dir, "etc", "nix.conf"), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// Nix is the Nix that serves the store.
func (s *Store) Nix() Nix { return s.nix }

// Root is where the store is in this machine's file system: the contents of /nix/store/x are at
// Root()+"/nix/store/x".
func (s *Store) Root() string { return filepath.Join(s.dir, "root") }

// Real is where the contents of a store path are.
func (s *Store) Real(path string) string { return s.Root() + path }

// Dir is a directory for files of the test, removed with the store. Unlike t.TempDir it has a short name.
func (s *Store) Dir() string { return s.dir }

// Socket is the daemon's socket.
func (s *Store) Socket() string { return filepath.Join(s.dir, "sock") }

// Endpoint reaches the daemon through its socket.
func (s *Store) Endpoint() daemon.Endpoint {
	return daemon.Endpoint{Socket: s.Socket(), Root: s.Root()}
}

// StdioEndpoint reaches the store through a nix-daemon --stdio that opens it directly.
func (s *Store) StdioEndpoint() daemon.Endpoint {
	return daemon.Endpoint{
		Command: []string{s.Program("nix-daemon"), "--stdio"},
		Env:     s.environment(s.DirectRemote()),
		Root:    s.Root(),
	}
}

// NixRemote is the store's URI through the daemon.
func (s *Store) NixRemote() string { return "unix://" + s.Socket() + "?root=" + s.Root() }

// DirectRemote is the store's URI for a program that opens it without the daemon.
func (s *Store) DirectRemote() string { return "local?root=" + s.Root() }

// Env is a whole environment for Nix programs of the test. Nothing of the process's own is in it.
func (s *Store) Env() []string { return s.environment(s.NixRemote()) }

func (s *Store) environment(remote string) []string {
	return []string{
		"HOME=" + filepath.Join(s.dir, "home"),
		"LC_ALL=C.UTF-8",
		"NIX_CONF_DIR=" + filepath.Join(s.dir, "etc"),
		"NIX_PATH=",
		"NIX_REMOTE=" + remote,
		"NIX_USER_CONF_FILES=",
		"PATH=" + s.nix.Bin + ":/usr/local/bin:/usr/bin:/bin",
		"TMPDIR=" + filepath.Join(s.dir, "tmp"),
	}
}

// Program is the path of a program of this Nix, such as "nix-store".
func (s *Store) Program(name string) string { return filepath.Join(s.nix.Bin, name) }

// Command prepares a program in the store's environment. A name without a slash is one of this Nix. It is killed
// when the test ends.
func (s *Store) Command(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	if !strings.Contains(name, "/") {
		name = s.Program(name)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), runLimit)
	s.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = s.Env()
	cmd.Dir = s.dir
	ownGroup(cmd)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Run runs a program in the store's environment and gives what it wrote to standard output, without the newline at
// its end. The test ends when the program fails.
func (s *Store) Run(name string, args ...string) string {
	s.t.Helper()
	out, err := s.TryRun(name, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// TryRun is [Store.Run] for a program that may fail; the error has what it wrote to standard error.
func (s *Store) TryRun(name string, args ...string) (string, error) {
	s.t.Helper()
	cmd := s.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	out := strings.TrimSuffix(stdout.String(), "\n")
	if err != nil {
		return out, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

// File writes a file below [Store.Dir] and gives its path.
func (s *Store) File(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, "files", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// Instantiate evaluates an expression to a derivation and gives its .drv path, which is in the store afterwards.
// The expression may call sh, see [Prelude].
func (s *Store) Instantiate(expr string) string {
	s.t.Helper()
	return s.Run("nix-instantiate", "--quiet", "--expr", Prelude+expr)
}

// Build builds what an expression evaluates to and gives the path of its first output.
func (s *Store) Build(expr string) string {
	s.t.Helper()
	out := s.Run("nix-build", "--quiet", "--no-out-link", "--expr", Prelude+expr)
	first, _, _ := strings.Cut(out, "\n")
	return first
}

// Prelude is put before the expressions of [Store.Instantiate] and [Store.Build]: `sh name attrs script` is a
// derivation that runs a script.
const Prelude = `let
  sh = name: attrs: script: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-e" "-c" script ];
  } // attrs);
in
`

// Copy copies store paths with their closures to another store and fails the test when that does not work.
func (s *Store) Copy(to string, paths ...string) {
	s.t.Helper()
	s.Run("nix", append([]string{"copy", "--no-check-sigs", "--to", to}, paths...)...)
}

func tempDir(t testing.TB) string {
	t.Helper()
	base := os.TempDir()
	if len(base) > 40 { // a Unix socket's name has at most 107 bytes
		base = "/tmp"
	}
	dir, err := os.MkdirTemp(base, "testnix-")
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // Nix refuses links on the way to a store
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeAll(dir); err != nil {
			t.Errorf("removing the test's store: %v", err)
		}
	})
	return dir
}

// removeAll removes a tree with a store in it, whose directories are read-only.
func removeAll(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && err == nil {
			if info, e := d.Info(); e == nil && info.Mode()&0o700 != 0o700 {
				return os.Chmod(path, 0o700)
			}
			return nil
		}
		if err != nil && d != nil && d.IsDir() {
			return nil // read again by RemoveAll, which says why it fails
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir)
}
