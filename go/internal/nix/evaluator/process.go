package evaluator

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/proc"
)

const defaultStack = 256 << 20

// Process is one running evaluator. Its methods may be called from any goroutine, Run by one at a time.
type Process struct {
	cfg    Config
	marker string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr *os.File
	raw    syscall.RawConn
	tmp    string

	gone    chan struct{} // closed when the process has ended and all it said was handled
	watched sync.WaitGroup

	mu     sync.Mutex // everything below; held while output is handled
	lines  lineBuffer
	cur    *command
	tail   []string // the last lines that were no structured messages
	reason error    // why it was killed
	crash  *CrashError
	// defined are the definitions so far, as they are written in a let.
	defined []string
}

// command is a command under way.
type command struct {
	onResult func([]byte)
	ok       bool
	lastErr  string
	done     chan struct{}
}

// Marker starts every result. Expressions that produce results need it: builtins.trace (marker + "r" + text).
func (p *Process) Marker() string { return p.marker }

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Start starts an evaluator. It ends when ctx ends, at the latest with Close.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	if cfg.Program == "" {
		cfg.Program = "nix"
	}
	searchPath, err := joinSearchPath(cfg.SearchPath)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("making a marker: %w", err)
	}
	tmp, err := os.MkdirTemp("", "nix-evaluator-")
	if err != nil {
		return nil, err
	}
	p := &Process{cfg: cfg, marker: "@" + hex.EncodeToString(nonce) + "@", tmp: tmp, gone: make(chan struct{})}
	p.lines.keep = []byte(p.marker)

	stack := cfg.StackSize
	if stack == 0 {
		stack = defaultStack
	}
	args := append([]string{"-c", stackScript, "sh", strconv.FormatUint(stack>>10, 10), cfg.Program}, cfg.arguments()...)
	args = append(args, "repl")
	cmd := proc.CommandGrace(ctx, 0, "sh", args...)
	cmd.Dir = cfg.Dir
	cmd.Env = cfg.environment()
	// The repl writes a history; the user's own is not the place for our commands.
	cmd.Env = append(cmd.Env, "NIX_PATH="+searchPath, "XDG_DATA_HOME="+tmp, keepStacks(cmd.Env))
	p.cmd = cmd
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		_ = os.RemoveAll(tmp)
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		_ = p.stdin.Close()
		_ = os.RemoveAll(tmp)
		return nil, err
	}
	cmd.Stderr = w
	p.stderr = r
	if p.raw, err = r.SyscallConn(); err == nil {
		err = cmd.Start()
	}
	_ = w.Close()
	if err != nil {
		_ = p.stdin.Close()
		_ = r.Close()
		_ = os.RemoveAll(tmp)
		return nil, fmt.Errorf("starting %s: %w", cfg.Program, err)
	}
	p.watched.Go(func() { _ = p.raw.Read(p.drain) })
	p.watched.Go(p.wait)
	if cfg.MemoryLimit > 0 {
		p.watched.Go(p.watchMemory)
	}
	return p, nil
}

// stackScript raises the stack limit as far as it is allowed and becomes the program.
const stackScript = `ulimit -s "$1" 2>/dev/null || ulimit -s "$(ulimit -H -s)" 2>/dev/null; shift; exec "$@"`

func (c *Config) arguments() []string {
	args := []string{"--extra-experimental-features", "nix-command flakes", "--log-format", "internal-json", "--show-trace"}
	for _, k := range slices.Sorted(maps.Keys(c.Settings)) {
		args = append(args, "--option", k, c.Settings[k])
	}
	return args
}

// environment is the environment of the program without NIX_PATH.
func (c *Config) environment() []string {
	env := c.Env
	if env == nil {
		env = Environ(os.Environ())
	}
	out := make([]string, 0, len(env)+3)
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if name == "NIX_PATH" || name == "XDG_DATA_HOME" || name == "NIX_REMOTE" && c.Remote != "" {
			continue
		}
		out = append(out, kv)
	}
	if c.Remote != "" {
		out = append(out, "NIX_REMOTE="+c.Remote)
	}
	return out
}

// keepStacks is a setting for glibc, besides those that are there. Nix makes a thread for each derivation that it
// writes; with the size of stack that the evaluator needs, glibc would not keep the stacks of threads that ended, and
// map and unmap one for each derivation (a quarter of the time of 5,000 cheap attributes). Other C libraries ignore it.
func keepStacks(env []string) string {
	const name, setting = "GLIBC_TUNABLES", "glibc.pthread.stack_cache_size=1073741824"
	for _, e := range slices.Backward(env) {
		if tunables, ok := strings.CutPrefix(e, name+"="); ok && tunables != "" {
			return name + "=" + tunables + ":" + setting
		}
	}
	return name + "=" + setting
}

// Environ is env without what would leak the surroundings into an evaluation.
func Environ(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		return strings.HasPrefix(kv, "IN_NIX_SHELL=") || strings.HasPrefix(kv, "NIX_PATH=") ||
			strings.HasPrefix(kv, "NIXPKGS_") || strings.HasPrefix(kv, "NIXOS_")
	})
}

func joinSearchPath(sp []SearchPath) (string, error) {
	var parts []string
	for _, e := range sp {
		// A URL would be downloaded; a colon, or an equals sign in the prefix, would make another entry of it.
		if strings.Contains(e.Path, ":") || strings.ContainsAny(e.Prefix, ":=") || strings.ContainsRune(e.Path, 0) ||
			e.Prefix == "" && strings.Contains(e.Path, "=") || e.Path == "" {
			return "", fmt.Errorf("search path entry %q: Nix can't take this path on its search path because of a ':' or '=' in it", e.Prefix+"="+e.Path)
		}
		if e.Prefix != "" {
			parts = append(parts, e.Prefix+"="+e.Path)
		} else {
			parts = append(parts, e.Path)
		}
	}
	return strings.Join(parts, ":"), nil
}

// Run evaluates an expression, which must be one line of printable ASCII, to weak head normal form. Each result
// is handed to onResult as it is made. A failed evaluation is an [*EvalError]; the process goes on. If the process
// ends, the error is a [*CrashError].
func (p *Process) Run(ctx context.Context, expr string, onResult func([]byte)) error {
	if i := strings.IndexFunc(expr, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
		return fmt.Errorf("command has a character at %d that nix repl can't take", i)
	}
	c := &command{onResult: onResult, done: make(chan struct{})}
	p.mu.Lock()
	if p.crash != nil {
		p.mu.Unlock()
		return p.crash
	}
	p.cur = c
	p.mu.Unlock()

	// The last line is evaluated also when the first fails. The one between ends a command that the repl takes for
	// unfinished, see unfinished; otherwise it does nothing.
	text := `builtins.seq (` + expr + `) (builtins.trace "` + p.marker + `k" null)` + "\n" +
		"let x = null; in x\n" +
		`builtins.trace "` + p.marker + `." null` + "\n"
	if _, err := io.WriteString(p.stdin, text); err != nil && !ended(err) {
		return fmt.Errorf("writing to nix repl: %w", err)
	}
	select {
	case <-c.done:
	case <-p.gone:
	case <-ctx.Done():
		p.Kill(context.Cause(ctx))
		<-p.gone
		return context.Cause(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cur = nil
	select {
	case <-c.done: // what came before the end counts
	default:
		return p.crash
	}
	if c.ok {
		return nil
	}
	if !unfinished(c.lastErr) {
		return parseError(c.lastErr, p.cfg.Own)
	}
	defined := strings.Join(p.defined, "")
	p.mu.Unlock()
	defer p.mu.Lock()
	return p.explainUnfinished(ctx, defined, expr)
}

// Define binds a name for later commands. The expression is not evaluated now: its errors are those of the commands
// that use it.
func (p *Process) Define(name, expr string) error {
	p.mu.Lock()
	p.defined = append(p.defined, name+" = "+expr+"; ")
	p.mu.Unlock()
	if _, err := io.WriteString(p.stdin, name+" = "+expr+"\n"); err != nil && !ended(err) {
		return fmt.Errorf("writing to nix repl: %w", err)
	}
	return nil
}

// ended says that an error of writing only means that the process is gone, of which there is better news.
func ended(err error) bool { return errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrClosed) }

// Sync handles everything that the process has written until now. When a request of the process arrives on
// another way (its store), Sync makes sure that what it said before is known.
func (p *Process) Sync() {
	_ = p.raw.Control(func(fd uintptr) { p.drain(fd) })
}

// Kill ends the process; the reason is in the CrashError that a command under way gets.
func (p *Process) Kill(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.crash != nil {
		return // the process id may belong to somebody else by now
	}
	if p.reason == nil {
		p.reason = reason
	}
	_ = proc.Reap(p.cmd)
}

// Close ends the process and waits for it.
func (p *Process) Close() {
	_ = p.stdin.Close()
	p.Kill(ErrClosed)
	p.watched.Wait()
	_ = os.RemoveAll(p.tmp)
}

// Gone is closed when the process has ended.
func (p *Process) Gone() <-chan struct{} { return p.gone }

func (p *Process) wait() {
	err := p.cmd.Wait()
	_ = proc.Reap(p.cmd)
	p.Sync()
	p.mu.Lock()
	p.crash = newCrash(err, p.cmd.ProcessState, p.reason, p.tail)
	p.mu.Unlock()
	close(p.gone)
	_ = p.stderr.Close() // something else may still have the other end
}

// drain reads until there is nothing more for now. It answers whether the stream is at its end.
func (p *Process) drain(fd uintptr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	buf := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buf)
	for {
		n, err := syscall.Read(int(fd), *buf)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return false
		case err != nil || n <= 0:
			return true
		}
		p.lines.feed((*buf)[:n], p.line)
	}
}

var readBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// line handles a line of output; p.mu is held.
func (p *Process) line(line []byte, dropped int) {
	if dropped > 0 {
		p.log(daemon.Event{Kind: daemon.EventMessage, Level: daemon.Warn, Text: fmt.Sprintf("(a message of %d bytes was left out)", dropped)})
		return
	}
	m, ok := ParseMessage(line)
	if !ok {
		text := string(bytes.ToValidUTF8(line, []byte("\uFFFD")))
		if text == "" {
			return
		}
		p.tail = append(p.tail, text)
		if len(p.tail) > 20 {
			p.tail = p.tail[1:]
		}
		p.log(daemon.Event{Kind: daemon.EventMessage, Level: daemon.Info, Text: text})
		return
	}
	if m.Kind != daemon.EventMessage || m.Level != daemon.Error {
		if m.Level == daemon.Notice && strings.HasSuffix(strings.TrimSpace(m.Text), "Type :? for help.") {
			return // the repl's welcome, which is for people at a keyboard
		}
		p.log(m)
		return
	}
	if rest, ok := strings.CutPrefix(m.Text, "trace: "+p.marker); ok && rest != "" {
		p.result(rest)
		return
	}
	if p.cur != nil && isError(m.Text) {
		// Only the last one can be the command's own.
		if p.cur.lastErr != "" {
			p.log(daemon.Event{Kind: daemon.EventMessage, Level: daemon.Error, Text: p.cur.lastErr})
		}
		p.cur.lastErr = m.Text
		return
	}
	p.log(m)
}

func (p *Process) result(s string) {
	if p.cur == nil {
		return
	}
	switch s[0] {
	case 'r':
		if p.cur.onResult != nil {
			p.cur.onResult([]byte(s[1:]))
		}
	case 'k':
		p.cur.ok = true
	case '.':
		if p.cur.ok && p.cur.lastErr != "" {
			p.log(daemon.Event{Kind: daemon.EventMessage, Level: daemon.Error, Text: p.cur.lastErr})
		}
		close(p.cur.done)
		p.cur = nil
	}
}

func (p *Process) log(e daemon.Event) {
	if p.cfg.Log != nil {
		p.cfg.Log(e)
	}
}

// RSS is the resident memory in bytes, 0 when it is not known.
func (p *Process) RSS() uint64 { return residentMemory(p.PID()) }

const memoryInterval = 100 * time.Millisecond

func (p *Process) watchMemory() {
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	for {
		select {
		case <-p.gone:
			return
		case <-tick.C:
			if p.RSS() > p.cfg.MemoryLimit {
				p.Kill(ErrMemoryLimit)
			}
		}
	}
}
