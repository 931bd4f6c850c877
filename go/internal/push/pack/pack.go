// Package pack compresses archives on their way to a binary cache and hashes them before and after, in bounded memory
// and on all processors.
//
// It knows neither caches nor stores.
package pack

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os/exec"
	"runtime"
	"strconv"
	"sync"

	"github.com/klauspost/compress/zstd"

	"hercules/internal/proc"
)

// Methods of compression, as a narinfo names them.
const (
	None = "none"
	Zstd = "zstd"
	XZ   = "xz"
	Gzip = "gzip"
)

// Compression is how an archive is compressed.
type Compression struct {
	Method string
	// Level in the numbers of the method; 0 is the method's default.
	Level int
	// Parallel lets xz use all processors for one archive, at some cost in size and memory. Zstd always does.
	Parallel bool
}

// Extension of the file of a compressed archive, with its dot.
func (c Compression) Extension() string {
	switch c.Method {
	case Zstd:
		return ".zst"
	case XZ:
		return ".xz"
	case Gzip:
		return ".gz"
	}
	return ""
}

// Check says why this cannot be done here.
func (c Compression) Check() error {
	limit := 9
	switch c.Method {
	case None:
		return nil
	case Zstd:
		limit = 22
	case XZ:
		if _, err := exec.LookPath("xz"); err != nil {
			return fmt.Errorf("compression xz needs the program xz: %w", err)
		}
	case Gzip:
	default:
		return fmt.Errorf("compression %q is not known here; zstd, xz, gzip and none are", c.Method)
	}
	if c.Level < 0 || c.Level > limit {
		return fmt.Errorf("compression level %d of %s: 1 to %d, or 0 for its default, are expected", c.Level, c.Method, limit)
	}
	return nil
}

// Result is what an archive came to.
type Result struct {
	NarHash  [sha256.Size]byte
	NarSize  uint64
	FileHash [sha256.Size]byte
	FileSize uint64
}

const (
	// chunkSize is what is compressed at once, as a zstd frame of its own: big enough that compression loses little
	// (the window of level 3 is 2 MiB), small enough that several processors have work with one archive.
	chunkSize = 4 << 20
	// small archives do not count for the bound on memory.
	small = 256 << 10
	// maxWorkers bounds memory on machines with many processors.
	maxWorkers = 16
)

// Packer shares processors and memory among the archives that are compressed at once.
type Packer struct {
	workers int
	cpu     chan struct{} // one for each compression that runs
	chunks  chan struct{} // one for each chunk in memory

	mu       sync.Mutex
	encoders map[int]*zstd.Encoder // by level
	buffers  sync.Pool             // of *[]byte with capacity chunkSize
}

// New makes a Packer for all processors that this process may use.
func New() *Packer {
	n := min(runtime.GOMAXPROCS(0), maxWorkers)
	return &Packer{workers: n, cpu: make(chan struct{}, n), chunks: make(chan struct{}, 2*n+2), encoders: map[int]*zstd.Encoder{}}
}

// Pack compresses what src writes into dst. The writer that src gets is also an io.ReaderFrom; size is about how much
// it will be. An error of dst or of the compression is returned as it is, also when src wraps it.
func (p *Packer) Pack(ctx context.Context, c Compression, size uint64, dst io.Writer, src func(io.Writer) error) (Result, error) {
	out := &hashed{w: dst, hash: sha256.New()}
	w := &input{ctx: ctx, hash: sha256.New()}
	var err error
	switch c.Method {
	case Zstd:
		err = p.zstd(ctx, c.Level, size, out, w, src)
	case None:
		w.w = out
		err = w.run(src)
	case Gzip:
		err = p.onCPU(ctx, func() error {
			level := c.Level
			if level == 0 {
				level = gzip.DefaultCompression
			}
			z, err := gzip.NewWriterLevel(out, level)
			if err != nil {
				return err
			}
			w.w = z
			if err := w.run(src); err != nil {
				return err
			}
			return z.Close()
		})
	case XZ:
		err = p.onCPU(ctx, func() error { return runXZ(ctx, c, out, w, src) })
	default:
		err = c.Check()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Result{}, err
	}
	r := Result{NarSize: w.size, FileSize: out.size}
	w.hash.Sum(r.NarHash[:0])
	out.hash.Sum(r.FileHash[:0])
	return r, nil
}

func (p *Packer) onCPU(ctx context.Context, f func() error) error {
	if err := acquire(ctx, p.cpu); err != nil {
		return err
	}
	defer func() { <-p.cpu }()
	return f()
}

func acquire(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// input is what a source writes to: it hashes.
type input struct {
	ctx  context.Context //nolint:containedctx // of one call
	w    io.Writer
	hash hash.Hash
	size uint64
	err  error // of w
}

func (w *input) Write(b []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	w.hash.Write(b)
	w.size += uint64(len(b))
	n, err := w.w.Write(b)
	if err != nil {
		w.err = err
	}
	return n, err
}

// run runs the source and prefers the reason of an error to what the source makes of it.
func (w *input) run(src func(io.Writer) error) error {
	err := src(w)
	if w.err != nil {
		return w.err
	}
	return err
}

// hashed is the compressed side.
type hashed struct {
	w    io.Writer
	hash hash.Hash
	size uint64
}

func (w *hashed) Write(b []byte) (int, error) {
	w.hash.Write(b)
	w.size += uint64(len(b))
	return w.w.Write(b)
}

// runXZ has the xz program do it: no library for Go comes near it in speed.
func runXZ(ctx context.Context, c Compression, out io.Writer, w *input, src func(io.Writer) error) error {
	level := 6 // its own default
	if c.Level != 0 {
		level = c.Level
	}
	threads := "-T1"
	if c.Parallel {
		threads = "-T0"
	}
	cmd := proc.Command(ctx, "xz", "-q", "-c", threads, "-"+strconv.Itoa(level))
	cmd.Stdout = out
	var stderr tail
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("compression: %w", err)
	}
	w.w = stdin
	err = w.run(src)
	if err != nil && w.err == nil {
		// The archive has no end; what was written so far must not look like one that has.
		_ = cmd.Cancel()
	}
	closeErr := stdin.Close()
	if waitErr := cmd.Wait(); waitErr != nil && (err == nil || w.err != nil) {
		return fmt.Errorf("compression: xz: %w: %s", waitErr, stderr)
	}
	return errors.Join(err, closeErr)
}

// tail keeps the beginning of what a program says.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	*t = append(*t, b[:min(len(b), max(0, 1000-len(*t)))]...)
	return len(b), nil
}
