package evaluate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/derivation"
)

// An evaluation has so many connections to the store at most, besides those of its evaluators: for questions, which
// are short, and for substitution, which is not.
const (
	questions     = 4
	substitutions = 8
)

// maxDerivation bounds a .drv file that comes through the daemon.
const maxDerivation = 64 << 20

// store is the evaluation's own access to the Nix store.
type store struct {
	endpoint daemon.Endpoint
	options  daemon.Options
	pool     *daemon.Pool
	slow     *daemon.Pool

	// roots is the connection that holds the temporary roots: they last as long as it does.
	mu    sync.Mutex
	roots *daemon.Conn
	kept  []string
}

func newStore(ep daemon.Endpoint, o daemon.Options) *store {
	return &store{endpoint: ep, options: o, pool: daemon.NewPool(ep, o, questions), slow: daemon.NewPool(ep, o, substitutions)}
}

func (s *store) close() {
	_ = s.pool.Close()
	_ = s.slow.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.roots != nil {
		_ = s.roots.Close()
	}
}

func (s *store) IsValidPath(ctx context.Context, path string) (valid bool, err error) {
	err = s.pool.With(ctx, func(c *daemon.Conn) (err error) {
		valid, err = c.IsValidPath(ctx, path)
		return err
	})
	return valid, err
}

func (s *store) EnsurePath(ctx context.Context, path string) (unavailable, err error) {
	for range 2 { // A daemon may be restarted under a connection.
		err = s.slow.With(ctx, func(c *daemon.Conn) error { return c.EnsurePath(ctx, path) })
		if remote, ok := errors.AsType[*daemon.RemoteError](err); ok {
			return remote, nil
		}
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func (s *store) AddTempRoot(ctx context.Context, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.roots != nil {
		err := s.roots.AddTempRoot(ctx, path)
		if err == nil || !s.roots.Broken() {
			s.kept = append(s.kept, path)
			return err
		}
		_ = s.roots.Close() // The daemon was restarted: what it kept for us is to be kept again.
		s.roots = nil
	}
	conn, err := daemon.Dial(ctx, s.endpoint, s.options)
	if err != nil {
		return err
	}
	s.roots = conn
	s.kept = append(s.kept, path)
	for _, p := range s.kept {
		if err := conn.AddTempRoot(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// readDerivation reads the file itself where it can be reached, and through the daemon otherwise.
func (s *store) readDerivation(ctx context.Context, path string) (*derivation.Derivation, error) {
	d, err := derivation.Read(s.endpoint.Root, path)
	var pathErr *os.PathError
	if err == nil || !errors.As(err, &pathErr) {
		return d, err
	}
	var text []byte
	if daemonErr := s.pool.With(ctx, func(c *daemon.Conn) (err error) {
		var b bytes.Buffer
		if err := c.NarFromPath(ctx, path, &limitedWriter{w: &b, left: maxDerivation}); err != nil {
			return err
		}
		text, err = fileOfNAR(b.Bytes())
		return err
	}); daemonErr != nil {
		return nil, fmt.Errorf("%w; and from the daemon: %w", err, daemonErr)
	}
	return derivation.Parse(text)
}

// fileOfNAR is the contents of the one file that a NAR consists of.
func fileOfNAR(nar []byte) ([]byte, error) {
	next := func() (text []byte, ok bool) {
		if len(nar) < 8 {
			return nil, false
		}
		n := binary.LittleEndian.Uint64(nar)
		nar = nar[8:]
		if n > uint64(len(nar)) {
			return nil, false
		}
		text = nar[:n]
		nar = nar[min(uint64(len(nar)), (n+7)&^7):]
		return text, true
	}
	for _, want := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		if got, ok := next(); !ok || string(got) != want {
			return nil, errors.New("it is not a file")
		}
	}
	text, ok := next()
	if !ok {
		return nil, io.ErrUnexpectedEOF
	}
	return text, nil
}

type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errors.New("the file is too large")
	}
	return l.w.Write(p)
}

// maxSocketPath: sun_path has 104 bytes on Darwin and 108 on Linux.
const maxSocketPath = 100

// socketDir is where the sockets of proxies go: in dir if that is short enough.
func socketDir(dir string) (string, func(), error) {
	if len(filepath.Join(dir, "s1000000")) <= maxSocketPath {
		return dir, func() {}, nil
	}
	for _, parent := range []string{os.TempDir(), "/tmp"} {
		if len(parent) > maxSocketPath-30 {
			continue
		}
		d, err := os.MkdirTemp(parent, "hci-")
		if err != nil {
			return "", nil, fmt.Errorf("making a directory for sockets: %w", err)
		}
		return d, func() { _ = os.RemoveAll(d) }, nil
	}
	return "", nil, fmt.Errorf("the work directory %s has too long a name for sockets, and so has TMPDIR", dir)
}

// proxies starts a proxy for each evaluator. They share a writer, so that what several of them find is written once.
func (r *run) proxies(dir string, writer *daemon.Writer) func(context.Context, int, func(context.Context, []daemon.DerivedPath) error) (string, func(), error) {
	var mu sync.Mutex
	count := 0
	return func(ctx context.Context, worker int, onRealise func(context.Context, []daemon.DerivedPath) error) (string, func(), error) {
		mu.Lock()
		count++
		path := filepath.Join(dir, "s"+strconv.Itoa(count))
		mu.Unlock()
		l, err := net.Listen("unix", path)
		if err != nil {
			return "", nil, fmt.Errorf("listening for evaluator %d: %w", worker, err)
		}
		serving, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		proxy := &daemon.Proxy{
			Upstream: r.deps.Endpoint,
			Options:  daemon.Options{Settings: r.deps.DaemonSettings},
			Hooks:    daemon.Hooks{Realise: onRealise},
			Writer:   writer,
			Log:      r.deps.Slog,
		}
		go func() {
			defer close(done)
			if err := proxy.Serve(serving, l); err != nil && serving.Err() == nil {
				r.deps.Slog.Error("store proxy of an evaluator ended", "task", string(r.task.ID), "error", err)
			}
		}()
		stop := func() {
			// What is not written yet may refer to what only these connections keep from the garbage collector.
			_ = writer.Flush(ctx)
			cancel()
			_ = l.Close()
			<-done
			_ = os.Remove(path)
		}
		return nixRemote(path, r.deps.Endpoint.Root), stop, nil
	}
}

// nixRemote is a value of NIX_REMOTE. root is where the store is mounted.
func nixRemote(socket, root string) string {
	remote := "unix://" + socket
	if root != "" {
		remote += "?root=" + root
	}
	return remote
}
