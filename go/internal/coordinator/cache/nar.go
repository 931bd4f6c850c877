package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync"

	"hercules/internal/coordinator/cache/narfile"
	"hercules/internal/coordinator/cache/storage"
)

// readNar is [narfile.Read] with errors for the client.
func (c *Cache) readNar(src io.Reader, w io.Writer) (narfile.Facts, error) {
	f, err := narfile.Read(src, w, c.o.MaxNarSize)
	if e, ok := errors.AsType[*narfile.Error](err); ok {
		status := http.StatusUnprocessableEntity
		if e.TooLarge {
			status = http.StatusRequestEntityTooLarge
		}
		return f, fail(status, "%s", e)
	}
	return f, err
}

// factsCache remembers the facts of NARs, so that the narinfo that follows an upload costs nothing.
type factsCache struct {
	mu sync.Mutex
	m  map[narfile.Digest]narfile.Facts
}

const maxFacts = 1 << 16

func (fc *factsCache) put(f narfile.Facts) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	if fc.m == nil || len(fc.m) >= maxFacts {
		fc.m = map[narfile.Digest]narfile.Facts{}
	}
	fc.m[f.File] = f
}

func (fc *factsCache) get(file narfile.Digest) (narfile.Facts, bool) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	f, ok := fc.m[file]
	return f, ok
}

func (fc *factsCache) drop(file narfile.Digest) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	delete(fc.m, file)
}

// findNar looks for a NAR by the hash of its file.
func (c *Cache) findNar(ctx context.Context, file narfile.Digest) (storage.File, error) {
	if f, ok := c.facts.get(file); ok {
		if st, err := c.storage.Stat(ctx, f.Key()); err == nil {
			return st, nil
		}
	}
	for _, comp := range narfile.Compressions() {
		st, err := c.storage.Stat(ctx, narfile.Key(file, comp))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return st, err
		}
	}
	return storage.File{}, fmt.Errorf("NAR %s: %w", file, fs.ErrNotExist)
}

// narFacts are the facts of a NAR in the storage: remembered, or found again.
func (c *Cache) narFacts(ctx context.Context, file narfile.Digest) (narfile.Facts, error) {
	st, err := c.findNar(ctx, file)
	if err != nil {
		return narfile.Facts{}, err
	}
	if f, ok := c.facts.get(file); ok {
		return f, nil
	}
	r, _, err := c.storage.Open(ctx, st.Key)
	if err != nil {
		return narfile.Facts{}, err
	}
	defer r.Close()
	f, err := c.readNar(ctxReader{ctx, r}, nil)
	if err == nil && (f.File != file || f.Key() != st.Key) {
		err = errors.New("another content than its name says")
	}
	if err != nil {
		return narfile.Facts{}, fmt.Errorf("stored %s: %w", st.Key, err)
	}
	c.facts.put(f)
	return f, nil
}

// putNar takes an upload: it becomes a file of the storage, though nothing refers to it yet.
func (c *Cache) putNar(ctx context.Context, body io.Reader, check func(narfile.Facts) error) (narfile.Facts, error) {
	s, err := storage.NewSpool(c.tmp(), "nar-", c.space)
	if err != nil {
		return narfile.Facts{}, err
	}
	defer s.Discard()
	f, err := c.readNar(body, s)
	if err != nil {
		return narfile.Facts{}, err
	}
	return f, c.keepNar(ctx, s, f, check)
}

// keepNar gives a spooled NAR to the storage unless it is there.
func (c *Cache) keepNar(ctx context.Context, s *storage.Spool, f narfile.Facts, check func(narfile.Facts) error) error {
	if err := check(f); err != nil {
		return err
	}
	// Here, so that the lock below is not held for as long as a large file takes.
	if err := s.Finish(!c.o.NoSync); err != nil {
		return err
	}
	// Not while paths disappear: the file that is found must not be about to go.
	c.publishing.RLock()
	defer c.publishing.RUnlock()
	defer c.lockPath(f.File[0])()
	if st, err := c.findNar(ctx, f.File); err == nil {
		c.mark(ctx, st.Key)
		c.facts.put(f)
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	size := s.Size()
	if err := c.storage.Put(ctx, f.Key(), s.HandOver()); err != nil {
		c.space.Give(size)
		return err
	}
	c.facts.put(f)
	return nil
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// copyAll is io.Copy by large pieces.
func copyAll(w io.Writer, r io.Reader) (int64, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *buf)
}
