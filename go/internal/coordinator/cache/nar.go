package cache

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/nix-community/go-nix/pkg/nixbase32"
)

type digest [sha256.Size]byte

func (d digest) String() string { return nixbase32.EncodeToString(d[:]) }

// facts are what is true of a NAR file, as opposed to what a narinfo says of it.
type facts struct {
	File, Nar         digest
	FileSize, NarSize int64
	Compression       string // a value of [compressions], as in a narinfo
}

func (f facts) key() string { return narKey(f.File, f.Compression) }

// compressions and their file name extensions, in the order in which they are looked for.
var compressions = []struct{ name, ext string }{
	{"zstd", ".zst"}, {"xz", ".xz"}, {"none", ""}, {"bzip2", ".bz2"}, {"gzip", ".gz"},
}

func narKey(file digest, compression string) string {
	for _, c := range compressions {
		if c.name == compression {
			return "nar/" + file.String() + ".nar" + c.ext
		}
	}
	return "nar/" + file.String() + ".nar." + compression
}

// parseNarName reads the name of a NAR, <hash>.nar[.ext]; the hash is of sha256, in base 16 or Nix's base 32. The
// extension says nothing that the content does not say better.
func parseNarName(name string) (digest, error) {
	text, ext, ok := strings.Cut(name, ".nar")
	if !ok || ext != "" && (ext[0] != '.' || strings.Trim(ext[1:], nameCharacters) != "") {
		return digest{}, fail(http.StatusBadRequest, "a NAR is named nar/<hash>.nar or nar/<hash>.nar.<compression>")
	}
	d, err := parseDigest(text)
	if err != nil {
		return digest{}, fail(http.StatusBadRequest, "the name of a NAR is its sha256 in base 16 or Nix's base 32: %s", err)
	}
	return d, nil
}

func parseDigest(text string) (digest, error) {
	var b []byte
	var err error
	switch len(text) {
	case 52:
		b, err = nixbase32.DecodeString(text)
	case 64:
		b, err = hex.DecodeString(text)
	default:
		return digest{}, fmt.Errorf("%d characters, not 52 or 64", len(text))
	}
	if err != nil || len(b) != sha256.Size {
		return digest{}, errors.New("malformed hash")
	}
	return digest(b), nil
}

// narMagic begins every NAR.
var narMagic = []byte("\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1\x00\x00\x00")

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// maxWindow bounds the memory of a decompressor: the largest that the compressors' highest levels ask for.
const maxWindow = 128 << 20

// ingest reads a compressed NAR to its end, writes it to w (nil: nowhere) and finds its facts. Memory does not depend
// on the size. Errors of src and w are given as they are, everything else is an httpError.
func (c *Cache) ingest(src io.Reader, w io.Writer) (facts, error) {
	var f facts
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := c.unpack(pr, &f)
		pr.CloseWithError(err) // nil: the rest is drained by nobody, and there is none
		done <- err
	}()
	fileHash := sha256.New()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var size int64
	var srcErr error
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			chunk := (*buf)[:n]
			size += int64(n)
			fileHash.Write(chunk)
			if w != nil {
				if _, err := w.Write(chunk); err != nil {
					srcErr = err
					break
				}
			}
			if _, err := pw.Write(chunk); err != nil {
				break // unpack says why
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			srcErr = err
			break
		}
	}
	pw.CloseWithError(srcErr)
	err := <-done
	if srcErr != nil {
		return facts{}, srcErr
	}
	if err != nil {
		return facts{}, err
	}
	f.FileSize = size
	fileHash.Sum(f.File[:0])
	return f, nil
}

// unpack decompresses r to its very end.
func (c *Cache) unpack(r io.Reader, f *facts) error {
	in := bufio.NewReaderSize(r, 64<<10)
	magic, err := in.Peek(6)
	if err != nil && len(magic) == 0 {
		if errors.Is(err, io.EOF) {
			return fail(http.StatusUnprocessableEntity, "the NAR is empty")
		}
		return err
	}
	var out io.Reader = in
	switch {
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		// One goroutine: this one. Two uploads at once are worth more than one that is quicker.
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		defer d.Close()
		f.Compression, out = "zstd", d
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		if out, err = xz.NewReader(in, maxWindow); err != nil {
			return fail(http.StatusUnprocessableEntity, "the NAR is not well-formed xz: %s", err)
		}
		f.Compression = "xz"
	case bytes.HasPrefix(magic, []byte("BZh")):
		f.Compression, out = "bzip2", bzip2.NewReader(in)
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		if out, err = gzip.NewReader(in); err != nil {
			return fail(http.StatusUnprocessableEntity, "the NAR is not well-formed gzip: %s", err)
		}
		f.Compression = "gzip"
	case bytes.HasPrefix(magic, narMagic[:6]):
		f.Compression = "none"
	default:
		return fail(http.StatusUnprocessableEntity, "this is neither a NAR nor one compressed with zstd, xz, bzip2 or gzip")
	}
	h := sha256.New()
	n, err := c.hashNar(h, out)
	if err != nil {
		if isHTTPError(err) {
			return err
		}
		return fail(http.StatusUnprocessableEntity, "decompressing the NAR (%s): %s", f.Compression, err)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return fail(http.StatusUnprocessableEntity, "there is something after the end of the compressed NAR")
	}
	f.NarSize = n
	h.Sum(f.Nar[:0])
	return nil
}

func (c *Cache) hashNar(h hash.Hash, r io.Reader) (int64, error) {
	head := make([]byte, len(narMagic))
	if n, err := io.ReadFull(r, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return 0, err
	} else if !bytes.Equal(head[:n], narMagic) {
		return 0, fail(http.StatusUnprocessableEntity, "what was compressed is not a NAR")
	}
	h.Write(head)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	size := int64(len(head))
	for {
		n, err := r.Read(*buf)
		h.Write((*buf)[:n])
		if size += int64(n); size > c.o.MaxNarSize {
			return 0, fail(http.StatusRequestEntityTooLarge, "the NAR is larger than %d bytes", c.o.MaxNarSize)
		}
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// factsCache remembers the facts of NARs, so that the narinfo that follows an upload costs nothing.
type factsCache struct {
	mu sync.Mutex
	m  map[digest]facts
}

const maxFacts = 1 << 16

func (fc *factsCache) put(f facts) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	if fc.m == nil || len(fc.m) >= maxFacts {
		fc.m = map[digest]facts{}
	}
	fc.m[f.File] = f
}

func (fc *factsCache) get(file digest) (facts, bool) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	f, ok := fc.m[file]
	return f, ok
}

func (fc *factsCache) drop(file digest) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	delete(fc.m, file)
}

// findNar looks for a NAR by the hash of its file.
func (c *Cache) findNar(ctx context.Context, file digest) (File, error) {
	if f, ok := c.facts.get(file); ok {
		if st, err := c.storage.Stat(ctx, f.key()); err == nil {
			return st, nil
		}
	}
	for _, comp := range compressions {
		st, err := c.storage.Stat(ctx, narKey(file, comp.name))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return st, err
		}
	}
	return File{}, fmt.Errorf("NAR %s: %w", file, fs.ErrNotExist)
}

// narFacts are the facts of a NAR in the storage: remembered, or found again.
func (c *Cache) narFacts(ctx context.Context, file digest) (facts, error) {
	st, err := c.findNar(ctx, file)
	if err != nil {
		return facts{}, err
	}
	if f, ok := c.facts.get(file); ok {
		return f, nil
	}
	r, _, err := c.storage.Open(ctx, st.Key)
	if err != nil {
		return facts{}, err
	}
	defer r.Close()
	f, err := c.ingest(ctxReader{ctx, r}, nil)
	if err == nil && (f.File != file || f.key() != st.Key) {
		err = errors.New("another content than its name says")
	}
	if err != nil {
		return facts{}, fmt.Errorf("stored %s: %w", st.Key, err)
	}
	c.facts.put(f)
	return f, nil
}

// putNar takes an upload: it becomes a file of the storage, though nothing refers to it yet.
func (c *Cache) putNar(ctx context.Context, body io.Reader, check func(facts) error) (facts, error) {
	s, err := c.newSpool("nar-")
	if err != nil {
		return facts{}, err
	}
	defer s.discard()
	f, err := c.ingest(body, s)
	if err != nil {
		return facts{}, err
	}
	return f, c.keepNar(ctx, s, f, check)
}

// keepNar gives a spooled NAR to the storage unless it is there.
func (c *Cache) keepNar(ctx context.Context, s *spool, f facts, check func(facts) error) error {
	if err := check(f); err != nil {
		return err
	}
	// Here, so that the lock below is not held for as long as a large file takes.
	if err := s.finish(!c.o.NoSync); err != nil {
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
	size := s.size
	if err := c.storage.Put(ctx, f.key(), s.handOver()); err != nil {
		c.space.give(size)
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
