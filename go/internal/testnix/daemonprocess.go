package testnix

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// daemonProcess is a running nix-daemon. It forks for each connection, into sessions of their own.
type daemonProcess struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// start starts the daemon. The socket is listening when it returns: a client that comes before the daemon is
// ready waits in the queue.
func (s *Store) start() {
	s.t.Helper()
	if err := os.Remove(s.Socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	l, err := net.Listen("unix", s.Socket())
	if err != nil {
		s.t.Fatal(err)
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	file, err := ul.File()
	if err != nil {
		s.t.Fatal(err)
	}
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}

	// The daemon takes its socket as systemd hands it over: descriptor 3, with its own process id said.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0"`, s.Program("nix-daemon"))
	cmd.Env = append(s.environment(s.DirectRemote()), "NIX_DAEMON_SOCKET_PATH="+s.Socket())
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{file}
	ownGroup(cmd)
	err = cmd.Start()
	// Only the daemon holds the socket from here on: when it dies, clients see that.
	err = errors.Join(err, l.Close(), file.Close(), log.Close())
	if err != nil {
		s.t.Fatalf("starting nix-daemon: %v", err)
	}
	unwatch, err := watch(cmd.Process.Pid, s.dir)
	if err != nil {
		killTree(cmd.Process.Pid)
		_ = cmd.Wait()
		s.t.Fatalf("watching nix-daemon: %v", err)
	}
	d := &daemonProcess{cmd: cmd, exited: make(chan struct{})}
	go func() {
		defer close(d.exited)
		_ = cmd.Wait() // it never ends well: it is killed
		unwatch()
	}()
	s.d = d
	s.t.Cleanup(func() {
		d.kill()
		if s.t.Failed() {
			if text := s.DaemonLog(); text != "" {
				s.t.Logf("nix-daemon wrote:\n%s", text)
			}
		}
	})
}

// watch starts a shell that kills the daemon and removes the directory when this process ends without having done
// so: a test that panics or runs out of time does not clean up. unwatch ends it.
func watch(pid int, dir string) (unwatch func(), err error) {
	cmd := exec.Command("/bin/sh", "-c", `read -r done && exit; kill -9 "$1"; chmod -R u+w "$2"; rm -rf "$2"`,
		"sh", strconv.Itoa(pid), dir)
	ownGroup(cmd) // the terminal's interrupt is not for it
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_, _ = stdin.Write([]byte("done\n"))
		_ = cmd.Wait() // closes the pipe; nobody asks how it went
	}, nil
}

func (s *Store) logFile() string { return filepath.Join(s.dir, "daemon.log") }

// DaemonLog is what the daemon wrote to standard error so far.
func (s *Store) DaemonLog() string {
	text, err := os.ReadFile(s.logFile())
	if err != nil {
		return "" // no daemon has been started
	}
	return string(text)
}

// Kill kills the daemon, the processes that serve its connections and their builders, as a crash of the machine's
// service would, and returns when they are dead.
func (s *Store) Kill() { s.d.kill() }

// Restart kills the daemon and starts another on the same store and socket.
func (s *Store) Restart() {
	s.t.Helper()
	s.d.kill()
	s.start()
}

func (d *daemonProcess) kill() {
	select {
	case <-d.exited:
		return
	default:
	}
	killTree(d.cmd.Process.Pid)
	<-d.exited
}
