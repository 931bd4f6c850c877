package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// transport is a two-way stream to a daemon.
type transport interface {
	io.Reader
	io.Writer
	// CloseWrite ends what we say; the daemon then ends too.
	CloseWrite() error
	// hangUp closes both ways at once and does not wait. The daemon notices and stops its builders.
	hangUp()
	// wait returns when all that belongs to the connection is gone; after hangUp.
	wait()
	// pending tells that a read would not block: there is something, or the end.
	pending() bool
	// lastWords is what the daemon's process wrote to its stderr, or empty.
	lastWords() string
}

func dialTransport(ctx context.Context, ep Endpoint) (transport, error) {
	if ep.Socket != "" {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", ep.Socket)
		if err != nil {
			return nil, fmt.Errorf("connecting to the Nix daemon: %w", err)
		}
		return &socket{UnixConn: conn.(*net.UnixConn)}, nil
	}
	if len(ep.Command) == 0 {
		return nil, errors.New("connecting to the Nix daemon: neither a socket nor a command is given")
	}
	return spawn(ep)
}

type socket struct{ *net.UnixConn }

func (s *socket) hangUp()           { _ = s.Close() }
func (s *socket) wait()             {}
func (s *socket) pending() bool     { return readable(s.UnixConn) }
func (s *socket) lastWords() string { return "" }

// How long a daemon process may take to leave after its input ended, and after SIGTERM.
const (
	leaveTime     = 2 * time.Second
	terminateTime = 5 * time.Second
)

// process is a daemon that speaks over its standard input and output.
type process struct {
	cmd    *exec.Cmd
	in     *os.File // its input
	out    *os.File // its output
	stderr tail
	done   chan struct{} // closed when it is reaped
	leave  sync.Once
}

func spawn(ep Endpoint) (*process, error) {
	p := &process{done: make(chan struct{})}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		_, _ = childIn.Close(), in.Close()
		return nil, err
	}
	p.in, p.out = in, out
	p.cmd = exec.Command(ep.Command[0], ep.Command[1:]...)
	p.cmd.Env = ep.Env
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = childIn, childOut, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A grandchild (the master process of ssh) may keep stderr open.
	p.cmd.WaitDelay = time.Second
	err = p.cmd.Start()
	_, _ = childIn.Close(), childOut.Close()
	if err != nil {
		_, _ = in.Close(), out.Close()
		return nil, fmt.Errorf("starting the Nix daemon: %w", err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	return p, nil
}

func (p *process) Read(b []byte) (int, error)  { return p.out.Read(b) }
func (p *process) Write(b []byte) (int, error) { return p.in.Write(b) }
func (p *process) CloseWrite() error           { return p.in.Close() }

// hangUp lets the process leave by itself, and makes it when it does not.
func (p *process) hangUp() {
	p.leave.Do(func() {
		_, _ = p.in.Close(), p.out.Close()
		go func() {
			for _, step := range []struct {
				after  time.Duration
				signal syscall.Signal
			}{{leaveTime, syscall.SIGTERM}, {terminateTime, syscall.SIGKILL}} {
				timer := time.NewTimer(step.after)
				select {
				case <-p.done:
					timer.Stop()
					return
				case <-timer.C:
					_ = syscall.Kill(-p.cmd.Process.Pid, step.signal)
				}
			}
		}()
	})
}

func (p *process) wait()         { <-p.done }
func (p *process) pending() bool { return readable(p.out) }

func readable(c syscall.Conn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	ready := true
	err = raw.Control(func(fd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		ready = n != 0 && !errors.Is(err, unix.EINTR)
	})
	return ready || err != nil
}

// lastWords waits a moment for the process to end: its output ends before its reason is known.
func (p *process) lastWords() string {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	}
	words := strings.TrimSpace(p.stderr.String())
	if words != "" {
		return words
	}
	select {
	case <-p.done:
		return fmt.Sprintf("%s: %v", p.cmd.Path, p.cmd.ProcessState)
	default:
		return ""
	}
}

// tail keeps the last bytes written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 8 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if over := len(t.b) - tailSize; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
