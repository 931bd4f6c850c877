// Package localstore finds out how the Nix store of this machine is reached by this user: through the socket of a
// daemon, or through a daemon process of our own where none runs (a bare Debian with nix-bin, a container).
//
// It knows nothing of what is done with the store.
package localstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hercules/internal/nix/daemon"
)

// Options of [Find]. The zero value is for this process.
type Options struct {
	// Getenv reads the environment; nil means os.Getenv.
	Getenv func(string) string
	// Setting reads an effective Nix setting of this user. Only asked when a daemon process is needed; nil means
	// that no setting is known.
	Setting func(name string) (string, bool)
	// Program finds a program of Nix; nil means looking in PATH.
	Program func(name string) (string, error)
}

// Store is a way to the store.
type Store struct {
	Endpoint daemon.Endpoint
	// Why says for people what was chosen, such as "daemon socket /nix/var/nix/daemon-socket/socket".
	Why string
}

// Find chooses the way to the store. In this order:
//
//   - NIX_REMOTE, when it is set: daemon, unix://SOCKET[?root=DIR], local[?root=DIR], ssh-ng://HOST or ssh://HOST;
//   - the socket of the daemon, when something accepts connections there;
//   - when the state directory of Nix can be written or made (which without a daemon means: as root, or in a single-user
//     installation), a process nix-daemon --stdio for each connection.
//
// The error says what to do.
func Find(ctx context.Context, o Options) (Store, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Setting == nil {
		o.Setting = func(string) (string, bool) { return "", false }
	}
	if o.Program == nil {
		o.Program = exec.LookPath
	}
	state := or(o.Getenv("NIX_STATE_DIR"), "/nix/var/nix")
	socket := or(o.Getenv("NIX_DAEMON_SOCKET_PATH"), filepath.Join(state, "daemon-socket", "socket"))

	switch remote := o.Getenv("NIX_REMOTE"); remote {
	case "", "auto":
		socketErr := connectable(ctx, socket)
		if socketErr == nil {
			return viaSocket(socket, "")
		}
		if ctx.Err() != nil {
			return Store{}, ctx.Err()
		}
		stateErr := writable(state)
		if stateErr == nil {
			return spawned(ctx, "local", "", o)
		}
		return Store{}, fmt.Errorf("the Nix store cannot be reached: no Nix daemon answers at %s (%w), and this user cannot use the store directly (%s: %w). "+
			"Start the daemon (systemctl start nix-daemon.socket), or add this user to those allowed to connect (allowed-users in nix.conf; on Debian the group nix-users), or install Nix",
			socket, cause(socketErr), state, stateErr)
	case "daemon":
		if err := connectable(ctx, socket); err != nil {
			return Store{}, fmt.Errorf("NIX_REMOTE is %q, but no Nix daemon answers at %s: %w. Start it (systemctl start nix-daemon.socket)", remote, socket, cause(err))
		}
		return viaSocket(socket, "")
	default:
		return byURL(ctx, remote, o)
	}
}

func byURL(ctx context.Context, remote string, o Options) (Store, error) {
	u, err := url.Parse(remote)
	if err != nil {
		return Store{}, fmt.Errorf("NIX_REMOTE %q is not a store URL: %w", remote, err)
	}
	root := u.Query().Get("root")
	switch {
	case u.Scheme == "unix":
		if err := connectable(ctx, u.Path); err != nil {
			return Store{}, fmt.Errorf("NIX_REMOTE is %q, but no Nix daemon answers there: %w", remote, cause(err))
		}
		return viaSocket(u.Path, root)
	case u.Scheme == "local", u.Scheme == "" && u.Path == "local":
		return spawned(ctx, remote, root, o)
	case u.Scheme == "" && strings.HasPrefix(u.Path, "/"): // Nix: short for local?root=
		return spawned(ctx, remote, u.Path, o)
	case u.Scheme == "ssh-ng", u.Scheme == "ssh":
		host := u.Host
		if u.User != nil {
			host = u.User.Username() + "@" + host
		}
		if host == "" || strings.HasPrefix(host, "-") {
			return Store{}, fmt.Errorf("NIX_REMOTE %q names no host", remote)
		}
		ssh, err := o.Program("ssh")
		if err != nil {
			return Store{}, fmt.Errorf("NIX_REMOTE is %q, but there is no ssh: %w", remote, err)
		}
		return Store{
			Endpoint: daemon.Endpoint{Command: []string{ssh, "-x", "-a", "-o", "BatchMode=yes", "--", host, "nix-daemon", "--stdio"}, Root: root},
			Why:      "nix-daemon on " + host,
		}, nil
	}
	return Store{}, fmt.Errorf("NIX_REMOTE is %q, which is none of daemon, unix://SOCKET, local and ssh-ng://HOST", remote)
}

func viaSocket(socket, root string) (Store, error) {
	return Store{Endpoint: daemon.Endpoint{Socket: socket, Root: root}, Why: "daemon socket " + socket}, nil
}

// spawned is a daemon process for each connection. It opens the store itself and trusts us: whoever can write the
// store's database needs no permission.
//
// Settings that only matter to the process that builds are given on its command line, where a stock installation
// without a daemon lacks them:
//
//   - build-users-group: root's default is the group nixbld, which only multi-user installations have. Without it Nix
//     refuses every build; set to nothing, builders run as root, which is what a container without that group wants.
//   - no sandbox, where there can be none and the settings allow to go without;
//   - /bin/sh in the sandbox: NixOS and the official installer have it (sandbox-paths), a distribution's package does
//     not. A static busybox serves; a dynamic shell would need its libraries in the sandbox too.
func spawned(ctx context.Context, remote, root string, o Options) (Store, error) {
	program, err := o.Program("nix-daemon")
	if err != nil {
		return Store{}, fmt.Errorf("no Nix daemon runs and none can be started: %w. Install Nix", err)
	}
	command := []string{program, "--stdio"}
	why := "own nix-daemon process"
	group, known := o.Setting("build-users-group")
	if !known && os.Geteuid() == 0 {
		group = "nixbld"
	}
	if group != "" && !groupExists(group) {
		command = append(command, "--option", "build-users-group", "")
		why += ", builders as this user"
		group = ""
	}
	sandbox, _ := o.Setting("sandbox")
	fallback, known := o.Setting("sandbox-fallback")
	if group == "" && sandbox != "false" && (fallback == "true" || !known) {
		// Without build users the sandbox is a user namespace. Where there can be none Nix 2.8 gives up although the
		// setting sandbox-fallback, which is on by default, lets it go on.
		if err := userNamespaces(ctx); err != nil {
			command = append(command, "--option", "sandbox", "false")
			why += ", without a sandbox because this system allows no user namespaces"
			sandbox = "false"
		}
	}
	if runtime.GOOS == "linux" && sandbox != "" && sandbox != "false" {
		paths, _ := o.Setting("sandbox-paths")
		if !slices.ContainsFunc(strings.Fields(paths), isShell) {
			if busybox := staticShell(); busybox != "" {
				command = append(command, "--option", "extra-sandbox-paths", "/bin/sh="+busybox)
			}
		}
	}
	// Without NIX_REMOTE this process would pass us on to a daemon that may appear at the socket later, with other
	// settings.
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "NIX_REMOTE=") })
	env = append(env, "NIX_REMOTE="+remote)
	return Store{Endpoint: daemon.Endpoint{Command: command, Env: env, Root: root}, Why: why}, nil
}

func isShell(path string) bool {
	target, _, _ := strings.Cut(path, "=")
	return strings.TrimSuffix(target, "?") == "/bin/sh"
}

// staticShell finds a busybox where Debian's busybox-static and Alpine's busybox-static put it. A busybox that needs
// shared libraries is in the same place, so look.
func staticShell() string {
	for _, p := range []string{"/bin/busybox", "/bin/busybox.static"} {
		if isStatic(p) {
			return p
		}
	}
	return ""
}

func groupExists(name string) bool {
	_, err := user.LookupGroup(name)
	return err == nil
}

// connectable tells whether something accepts connections at a socket.
func connectable(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return c.Close()
}

// writable tells whether this user can write to a directory, or make it: a store that was never used has none yet.
func writable(dir string) error {
	err := unix.Access(dir, unix.W_OK)
	for errors.Is(err, unix.ENOENT) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		if above := unix.Access(dir, unix.W_OK); !errors.Is(above, unix.ENOENT) {
			return above
		}
	}
	return err
}

// cause is the system's word for an error, without the address that the caller names anyway.
func cause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
