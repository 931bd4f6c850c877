package localstore_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hercules/internal/nix/localstore"
)

func listen(t *testing.T) string {
	t.Helper()
	// Socket names are short; the test's own directory may not be.
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path
}

func TestFind(t *testing.T) {
	t.Parallel()
	socket := listen(t)
	// A device is no directory, not even for root.
	writable, unwritable, fresh := t.TempDir(), "/dev/null/nix", filepath.Join(t.TempDir(), "var", "nix")
	program := func(name string) (string, error) { return "/bin/" + name, nil }
	tests := []struct {
		name    string
		env     map[string]string
		setting map[string]string
		program func(string) (string, error)
		socket  string
		root    string
		command string // joined with spaces; * for anything at the end
		remote  string // NIX_REMOTE of the command
		err     string
	}{
		{name: "a daemon runs", env: map[string]string{"NIX_DAEMON_SOCKET_PATH": socket, "NIX_STATE_DIR": writable}, socket: socket},
		{name: "auto", env: map[string]string{"NIX_REMOTE": "auto", "NIX_DAEMON_SOCKET_PATH": socket}, socket: socket},
		{
			name: "no daemon, but we own the store", env: map[string]string{"NIX_STATE_DIR": writable},
			setting: map[string]string{"build-users-group": ""},
			command: "/bin/nix-daemon --stdio", remote: "local",
		},
		{
			name: "the store was never used", env: map[string]string{"NIX_STATE_DIR": fresh},
			setting: map[string]string{"build-users-group": ""},
			command: "/bin/nix-daemon --stdio", remote: "local",
		},
		{
			name: "the group of builders does not exist", env: map[string]string{"NIX_STATE_DIR": writable},
			setting: map[string]string{"build-users-group": "no-such-group-here"},
			command: "/bin/nix-daemon --stdio --option build-users-group ", remote: "local",
		},
		{
			name: "the sandbox has a shell", env: map[string]string{"NIX_STATE_DIR": writable},
			setting: map[string]string{"build-users-group": "", "sandbox": "true", "sandbox-paths": "/x /bin/sh=/opt/busybox"},
			command: "/bin/nix-daemon --stdio", remote: "local",
		},
		{name: "nothing", env: map[string]string{"NIX_STATE_DIR": unwritable}, err: "systemctl start nix-daemon.socket"},
		{
			name: "no program", env: map[string]string{"NIX_STATE_DIR": writable},
			program: func(string) (string, error) { return "", errors.New("not found") }, err: "Install Nix",
		},
		{name: "daemon is wanted", env: map[string]string{"NIX_REMOTE": "daemon", "NIX_STATE_DIR": writable}, err: "no Nix daemon answers"},
		{name: "unix", env: map[string]string{"NIX_REMOTE": "unix://" + socket + "?root=/chroot"}, socket: socket, root: "/chroot"},
		{name: "unix, nobody there", env: map[string]string{"NIX_REMOTE": "unix://" + unwritable}, err: "no Nix daemon answers"},
		{
			name: "local chroot", env: map[string]string{"NIX_REMOTE": "local?root=/chroot"}, setting: map[string]string{"build-users-group": ""},
			root: "/chroot", command: "/bin/nix-daemon --stdio", remote: "local?root=/chroot",
		},
		{
			name: "path", env: map[string]string{"NIX_REMOTE": "/chroot"}, setting: map[string]string{"build-users-group": ""},
			root: "/chroot", command: "/bin/nix-daemon --stdio", remote: "/chroot",
		},
		{
			name: "ssh", env: map[string]string{"NIX_REMOTE": "ssh-ng://builder@host.example"},
			command: "/bin/ssh -x -a -o BatchMode=yes -- builder@host.example nix-daemon --stdio",
		},
		{name: "ssh option as host", env: map[string]string{"NIX_REMOTE": "ssh-ng://-oProxyCommand=x"}, err: "names no host"},
		{name: "unknown", env: map[string]string{"NIX_REMOTE": "s3://bucket"}, err: "none of daemon"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.program == nil {
				test.program = program
			}
			s, err := localstore.Find(t.Context(), localstore.Options{
				Getenv:  func(name string) string { return test.env[name] },
				Setting: func(name string) (string, bool) { v, ok := test.setting[name]; return v, ok },
				Program: test.program,
			})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %+v, %v; want an error with %q", s, err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.Endpoint.Socket != test.socket || s.Endpoint.Root != test.root {
				t.Errorf("got socket %q root %q", s.Endpoint.Socket, s.Endpoint.Root)
			}
			if got := strings.Join(s.Endpoint.Command, " "); got != test.command {
				t.Errorf("got command %q, want %q", got, test.command)
			}
			if test.remote != "" && !slices.Contains(s.Endpoint.Env, "NIX_REMOTE="+test.remote) {
				t.Errorf("the command's environment lacks NIX_REMOTE=%s", test.remote)
			}
			if s.Why == "" {
				t.Error("no reason")
			}
		})
	}
}

// A shell is put into the sandbox only where a static one is found.
func TestShellOfTheSandbox(t *testing.T) {
	t.Parallel()
	s, err := localstore.Find(t.Context(), localstore.Options{
		Getenv:  func(name string) string { return map[string]string{"NIX_STATE_DIR": t.TempDir()}[name] },
		Setting: func(name string) (string, bool) { return map[string]string{"sandbox": "true"}[name], true },
		Program: func(name string) (string, error) { return name, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.Index(s.Endpoint.Command, "extra-sandbox-paths"); i >= 0 {
		if v := s.Endpoint.Command[i+1]; !strings.HasPrefix(v, "/bin/sh=/bin/busybox") {
			t.Errorf("got %q", v)
		}
	} else if localstore.IsStatic("/bin/busybox") {
		t.Error("the static busybox of this machine is not used")
	}
}
