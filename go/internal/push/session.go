package push

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"

	"github.com/nix-community/go-nix/pkg/nixbase32"
	"golang.org/x/sync/errgroup"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/derivation"
	"hercules/internal/nix/nar"
	"hercules/internal/nix/storepath"
)

const (
	// connections of one push, besides the one that keeps the paths.
	connections = 4
	// share of questions that are worth another connection.
	share = 64
	// maxDerivation bounds the derivations that are read without asking the daemon.
	maxDerivation = 16 << 20
	// maxMemo bounds the paths that are remembered; more than that, and all are forgotten.
	maxMemo = 300_000
)

// memo remembers what the store said of paths, for all pushes. What is at a path does not change, except that it may be
// collected and built again; a hash that is not right any more is found when the path is read.
type memo struct {
	mu    sync.Mutex
	infos map[string]*daemon.PathInfo
}

func (m *memo) get(path string) *daemon.PathInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.infos[path]
}

func (m *memo) put(info *daemon.PathInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.infos == nil || len(m.infos) >= maxMemo {
		m.infos = map[string]*daemon.PathInfo{}
	}
	m.infos[info.Path] = info
}

func (m *memo) drop(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.infos, path)
}

// session is the access to the store of one push: its connections live as long as it, and the temporary roots as long
// as those.
type session struct {
	memo *memo
	root string
	pool *daemon.Pool
	keep *daemon.Conn
	wg   sync.WaitGroup // uploads that use it
}

// begin keeps the paths, with their closures, from being collected.
func begin(ctx context.Context, m *memo, ep daemon.Endpoint, settings map[string]string, paths []string) (*session, error) {
	o := daemon.Options{Settings: settings, Verbosity: daemon.Error}
	keep, err := daemon.Dial(ctx, ep, o)
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		if err := keep.AddTempRoot(ctx, p); err != nil {
			return nil, errors.Join(err, keep.Close())
		}
	}
	return &session{memo: m, root: ep.Root, keep: keep, pool: daemon.NewPool(ep, o, connections)}, nil
}

// end gives the connections back when the uploads that use them are over.
func (s *session) end() {
	s.wg.Wait()
	_ = s.pool.Close()
	_ = s.keep.Close()
}

// errGone: the path is not in the store.
var errGone = errors.New("it is not in the store (any more); garbage collection may have taken it")

// closure gives the closure of the paths, references before what refers to them.
func (s *session) closure(ctx context.Context, roots []string) ([]*daemon.PathInfo, error) {
	infos := map[string]*daemon.PathInfo{}
	for level := roots; len(level) > 0; {
		var unknown []string
		for _, p := range level {
			if _, ok := infos[p]; ok {
				continue
			}
			info := s.memo.get(p)
			if infos[p] = info; info == nil {
				unknown = append(unknown, p)
			}
		}
		found, err := s.infos(ctx, unknown)
		if err != nil {
			return nil, err
		}
		for i, p := range unknown {
			infos[p] = found[i]
			s.memo.put(found[i])
		}
		var next []string
		for _, p := range level {
			for _, ref := range infos[p].References {
				if _, ok := infos[ref]; !ok {
					next = append(next, ref)
				}
			}
		}
		level = next
	}
	return order(roots, infos)
}

// order sorts topologically, without recursion: a chain may be long.
func order(roots []string, infos map[string]*daemon.PathInfo) ([]*daemon.PathInfo, error) {
	type frame struct {
		info *daemon.PathInfo
		next int
	}
	const entered, left = 1, 2
	state := make(map[string]int, len(infos))
	sorted := make([]*daemon.PathInfo, 0, len(infos))
	var stack []frame
	for _, root := range roots {
		if state[root] != 0 {
			continue
		}
		state[root] = entered
		stack = append(stack, frame{info: infos[root]})
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next == len(top.info.References) {
				state[top.info.Path] = left
				sorted = append(sorted, top.info)
				stack = stack[:len(stack)-1]
				continue
			}
			ref := top.info.References[top.next]
			top.next++
			switch {
			case ref == top.info.Path, state[ref] == left:
			case state[ref] == entered:
				return nil, fmt.Errorf("%s and %s refer to each other, which cannot be in a Nix store", ref, top.info.Path)
			default:
				state[ref] = entered
				stack = append(stack, frame{info: infos[ref]})
			}
		}
	}
	return sorted, nil
}

// infos asks for paths, in their order.
func (s *session) infos(ctx context.Context, paths []string) ([]*daemon.PathInfo, error) {
	found := make([]*daemon.PathInfo, len(paths))
	var rest []int
	for i, p := range paths {
		if storepath.IsDerivation(p) {
			if info, _ := s.readDerivation(p); info != nil {
				found[i] = info
				continue
			}
		}
		rest = append(rest, i)
	}
	g, gctx := errgroup.WithContext(ctx)
	workers := min(connections, (len(rest)+share-1)/share)
	for w := range workers {
		part := rest[w*len(rest)/workers : (w+1)*len(rest)/workers]
		g.Go(func() error {
			return s.pool.With(gctx, func(c *daemon.Conn) error {
				for _, i := range part {
					info, ok, err := c.QueryPathInfo(gctx, paths[i])
					switch {
					case err != nil:
						return &pathError{paths[i], err}
					case !ok:
						return &pathError{paths[i], errGone}
					}
					found[i] = info
				}
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return found, nil
}

// pathError is an error about a path.
type pathError struct {
	path string
	err  error
}

func (e *pathError) Error() string { return e.path + ": " + e.err.Error() }
func (e *pathError) Unwrap() error { return e.err }

// readDerivation finds out about a derivation from its file: a push of derivations is thousands of them, and a question to
// the daemon costs more than the file. The path of a derivation is made of its text, so a file that is not right
// shows; then, and when it cannot be read, there is no info. The second result is the archive.
func (s *session) readDerivation(path string) (*daemon.PathInfo, []byte) {
	text, err := readSmall(s.root + path)
	if err != nil {
		return nil, nil
	}
	drv, err := derivation.Parse(text)
	if err != nil {
		return nil, nil
	}
	refs := make([]string, 0, len(drv.InputDrvs)+len(drv.InputSrcs))
	for p := range drv.InputDrvs {
		refs = append(refs, p)
	}
	refs = sortedUnique(append(refs, drv.InputSrcs...))
	if made, err := storepath.MakeTextPath(storepath.Name(path), string(text), refs); err != nil || made != path {
		return nil, nil
	}
	archive := nar.AppendFile(make([]byte, 0, len(text)+160), text)
	sum, flat := sha256.Sum256(archive), sha256.Sum256(text)
	return &daemon.PathInfo{
		Path: path, NarHash: sum[:], NarSize: uint64(len(archive)), References: refs,
		ContentAddress: "text:sha256:" + nixbase32.EncodeToString(flat[:]),
	}, archive
}

// readSmall reads a file that is not executable and not big.
func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o100 != 0 || info.Size() > maxDerivation {
		return nil, errors.ErrUnsupported
	}
	b := make([]byte, info.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}

// nar writes the archive of a path: from the file system where that is this machine's, else from the daemon. Whether it is
// right, its hash tells.
func (s *session) nar(ctx context.Context, info *daemon.PathInfo, w io.Writer) error {
	// On darwin a store may be on a file system without upper and lower case, where Nix changes names.
	if runtime.GOOS != "darwin" {
		if storepath.IsDerivation(info.Path) && info.NarSize < maxDerivation {
			if text, err := readSmall(s.root + info.Path); err == nil {
				_, err := io.Copy(w, bytes.NewReader(nar.AppendFile(make([]byte, 0, len(text)+160), text)))
				return err
			}
		}
		if _, err := os.Lstat(s.root + info.Path); err == nil {
			return gone(nar.Dump(w, s.root+info.Path))
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return s.pool.With(ctx, func(c *daemon.Conn) error {
		err := c.NarFromPath(ctx, info.Path, w)
		if _, ok := errors.AsType[*daemon.RemoteError](err); ok {
			if valid, askErr := c.IsValidPath(ctx, info.Path); askErr == nil && !valid {
				return errGone
			}
		}
		return err
	})
}

// gone explains a file that has vanished.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errGone
	}
	return err
}
