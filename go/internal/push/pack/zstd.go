package pack

import (
	"context"
	"errors"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"
)

// encoder for a level, made once: it keeps its tables between archives.
func (p *Packer) encoder(level int) (*zstd.Encoder, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.encoders[level]; e != nil {
		return e, nil
	}
	// By default the fastest: on programs and sources its files are 5 to 8 % larger than those of level 3, for half of the time.
	speed := zstd.SpeedFastest
	if level != 0 {
		speed = zstd.EncoderLevelFromZstd(level)
	}
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(p.workers),
		zstd.WithWindowSize(chunkSize), zstd.WithLowerEncoderMem(true),
		zstd.WithAllLitEntropyCompression(true), zstd.WithEncoderCRC(false)) // a hash is in the narinfo
	if err == nil {
		p.encoders[level] = e
	}
	return e, err
}

// chunked cuts an archive into chunks, which are compressed side by side and written in order.
type chunked struct {
	p    *Packer
	ctx  context.Context //nolint:containedctx // of one call
	enc  *zstd.Encoder
	out  io.Writer
	hash hash.Hash

	fill  []byte // the present chunk
	token bool   // fill counts for the bound on memory
	size  uint64

	order chan *chunk // nil until there is a second chunk
	done  chan error  // of the goroutine that writes
	fail  context.CancelCauseFunc
}

type chunk struct {
	in, out []byte
	done    chan struct{}
}

func (p *Packer) zstd(ctx context.Context, level int, size uint64, out io.Writer, w *input, src func(io.Writer) error) error {
	enc, err := p.encoder(level)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	z := &chunked{p: p, ctx: ctx, enc: enc, out: out, hash: w.hash, fail: cancel}
	// Memory is asked for when the first bytes come: a source may have to wait for something itself, and must not hold
	// memory meanwhile that those before it need.
	if size <= small {
		z.fill = make([]byte, 0, size+1) // one more, so that the end is found without growing
	}
	err = src(z)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = z.close(err)
	w.size = z.size
	return err
}

// take gets memory for a whole chunk.
func (z *chunked) take() error {
	if err := acquire(z.ctx, z.p.chunks); err != nil {
		return err
	}
	z.token = true
	z.fill = z.p.buffer()
	return nil
}

func (p *Packer) buffer() []byte {
	if b, ok := p.buffers.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, chunkSize)
}

func (p *Packer) release(b []byte) {
	if cap(b) >= chunkSize {
		p.buffers.Put(&b)
	}
}

// room makes room for at least one byte.
func (z *chunked) room() error {
	if z.ctx.Err() != nil {
		return context.Cause(z.ctx)
	}
	if len(z.fill) < cap(z.fill) && (z.token || len(z.fill) < small) {
		return nil
	}
	if !z.token { // more than was announced
		old := z.fill
		if err := z.take(); err != nil {
			return err
		}
		z.fill = append(z.fill, old...)
		return nil
	}
	z.submit()
	return z.take()
}

func (z *chunked) Write(b []byte) (int, error) {
	z.hash.Write(b)
	z.size += uint64(len(b))
	n := len(b)
	for len(b) > 0 {
		if err := z.room(); err != nil {
			return 0, err
		}
		k := min(len(b), cap(z.fill)-len(z.fill))
		z.fill = append(z.fill, b[:k]...)
		b = b[k:]
	}
	return n, nil
}

// ReadFrom reads into the chunk itself.
func (z *chunked) ReadFrom(r io.Reader) (total int64, err error) {
	for {
		if err := z.room(); err != nil {
			return total, err
		}
		n, err := r.Read(z.fill[len(z.fill):cap(z.fill)])
		z.hash.Write(z.fill[len(z.fill) : len(z.fill)+n])
		z.fill = z.fill[:len(z.fill)+n]
		z.size += uint64(n)
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// submit has the present chunk compressed.
func (z *chunked) submit() {
	if z.order == nil {
		z.order, z.done = make(chan *chunk, cap(z.p.chunks)), make(chan error, 1)
		go func() { z.done <- z.write() }()
	}
	c := &chunk{in: z.fill, done: make(chan struct{})}
	z.fill, z.token = nil, false
	// Never blocks: no more chunks can be under way than the channel holds.
	z.order <- c
	go func() {
		defer close(c.done)
		if z.p.onCPU(z.ctx, func() error {
			c.out = z.enc.EncodeAll(c.in, z.p.buffer())
			return nil
		}) != nil {
			c.out = nil
		}
	}()
}

// write writes the chunks in their order.
func (z *chunked) write() error {
	var err error
	for c := range z.order {
		<-c.done
		if err == nil && z.ctx.Err() == nil {
			if _, err = z.out.Write(c.out); err != nil {
				z.fail(err)
			}
		}
		z.p.release(c.in)
		z.p.release(c.out)
		<-z.p.chunks
	}
	return err
}

// close compresses what is left, waits for all of it, and gives everything back.
func (z *chunked) close(err error) error {
	if z.order != nil {
		if err == nil && len(z.fill) > 0 {
			z.submit()
		}
		close(z.order)
		if writeErr := <-z.done; writeErr != nil {
			err = writeErr
		}
	} else if err == nil {
		err = z.p.onCPU(z.ctx, func() error {
			var out []byte
			if z.token {
				out = z.p.buffer()
			}
			out = z.enc.EncodeAll(z.fill, out)
			_, err := z.out.Write(out)
			z.p.release(out)
			return err
		})
	}
	if z.token {
		z.p.release(z.fill)
		<-z.p.chunks
	}
	return err
}
