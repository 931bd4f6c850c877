package daemon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// NarFromPath writes the NAR of path to w while it arrives. When w fails, the connection is lost.
func (c *Conn) NarFromPath(ctx context.Context, path string, w io.Writer) error {
	if err := checkPaths(path); err != nil {
		return err
	}
	return c.call(ctx, opNarFromPath, func() { c.w.string(path) }, func() { copyNar(w, c.r) })
}

// AddToStoreNar adds a path with its NAR, of which info tells path, hash, size and references.
func (c *Conn) AddToStoreNar(ctx context.Context, info *PathInfo, nar io.Reader, o AddOptions) error {
	if err := checkInfo(info); err != nil {
		return err
	}
	return c.stream(ctx, opAddToStoreNar, func() {
		c.w.string(info.Path)
		c.w.pathInfo(info)
		c.w.bool(o.Repair)
		c.w.bool(o.DontCheckSignatures)
	}, func(w *frameWriter) error {
		return w.nar(info, nar)
	}, nil)
}

// NarSource is a path for AddMultipleToStore.
type NarSource struct {
	Info *PathInfo
	// Open is called when it is the path's turn.
	Open func() (io.ReadCloser, error)
}

// AddMultipleToStore adds paths in one operation. References come before what refers to them.
func (c *Conn) AddMultipleToStore(ctx context.Context, paths []NarSource, o AddOptions) error {
	for _, p := range paths {
		if err := checkInfo(p.Info); err != nil {
			return err
		}
	}
	return c.stream(ctx, opAddMultipleToStore, func() {
		c.w.bool(o.Repair)
		c.w.bool(o.DontCheckSignatures)
	}, func(w *frameWriter) error {
		enc := newWriter(w)
		enc.uint(uint64(len(paths)))
		for _, p := range paths {
			// In the form of 1.16, whatever was agreed on.
			enc.string(p.Info.Path)
			enc.pathInfo(p.Info)
			if err := enc.flush(); err != nil {
				return err
			}
			nar, err := p.Open()
			if err != nil {
				return err
			}
			if err := errors.Join(w.nar(p.Info, nar), nar.Close()); err != nil {
				return err
			}
		}
		return enc.flush()
	}, nil)
}

// AddTextToStore adds a file with the given text and references and returns its path.
func (c *Conn) AddTextToStore(ctx context.Context, name, text string, refs []string) (path string, err error) {
	if !validName(name) {
		return "", fmt.Errorf("%q is not the name of a store path", name)
	}
	if err := checkPaths(refs...); err != nil {
		return "", err
	}
	err = c.stream(ctx, opAddToStore, func() { c.w.addText(name, refs) }, func(w *frameWriter) error {
		_, err := io.WriteString(w, text)
		return err
	}, func() {
		path = c.r.path()
		c.r.pathInfo(path)
	})
	return path, err
}

// addText writes the arguments of AddToStore for a text, without the text.
func (w *writer) addText(name string, refs []string) {
	w.string(name)
	w.string(textMethod)
	w.strings(refs)
	w.bool(false) // repair
}

func checkInfo(info *PathInfo) error {
	if len(info.NarHash) != 32 {
		return fmt.Errorf("adding %s: the NAR hash has %d bytes, not 32", info.Path, len(info.NarHash))
	}
	if info.Deriver != "" && !validPath(info.Deriver) {
		return fmt.Errorf("adding %s: the deriver %q is not a store path", info.Path, info.Deriver)
	}
	return checkPaths(append([]string{info.Path}, info.References...)...)
}

// stream runs an operation whose last argument is a stream that send writes. The daemon may log, and fail, while it
// reads, so both ways go on at the same time.
func (c *Conn) stream(ctx context.Context, o op, args func(), send func(*frameWriter) error, result func()) error {
	return c.guard(ctx, o.String(), func() error {
		c.w.uint(uint64(o))
		args()
		answer := make(chan error, 1)
		listening := false
		if c.frame == nil {
			c.frame = make([]byte, 8, 8+frameSize)
		}
		f := &frameWriter{w: c.w, buf: c.frame[:8]}
		f.onFrame = func() error {
			if !listening {
				listening = true
				go func() { answer <- c.answer(result) }()
			}
			if len(answer) > 0 {
				return errAnswered
			}
			return nil
		}
		err := send(f)
		if err == nil {
			err = f.end()
		}
		if err != nil && !errors.Is(err, errAnswered) && f.err == nil {
			// What we were to send can't be had. The daemon must not take the beginning for the whole.
			c.t.hangUp()
			if listening {
				<-answer
			}
			return &sourceError{err}
		}
		if errors.Is(err, errAnswered) {
			c.w.uint(0)
			err = c.w.flush()
		}
		if !listening {
			// It all fit into one frame: no second goroutine was needed.
			if err != nil {
				return c.explain(err)
			}
			return c.answer(result)
		}
		if said := <-answer; said != nil {
			return said
		}
		return err
	})
}

// errAnswered stops a stream that the daemon does not want to the end.
var errAnswered = errors.New("the daemon answered before the end of the data")

// sourceError is an error of the data that was to be sent.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

const frameSize = 32 << 10

// frameWriter cuts a stream into frames: a length, that many bytes, without padding; length 0 ends the stream
// (serialise.hh, FramedSink).
type frameWriter struct {
	w *writer
	// buf is the next frame, its first eight bytes are for the length.
	buf []byte
	// onFrame is called before a full frame is sent.
	onFrame func() error
	err     error // of the connection
}

func (f *frameWriter) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		k := min(len(b), cap(f.buf)-len(f.buf))
		f.buf = append(f.buf, b[:k]...)
		b, n = b[k:], n+k
		if len(f.buf) == cap(f.buf) {
			if err := f.frame(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// ReadFrom reads into the frames.
func (f *frameWriter) ReadFrom(r io.Reader) (n int64, err error) {
	for {
		k, err := r.Read(f.buf[len(f.buf):cap(f.buf)])
		f.buf = f.buf[:len(f.buf)+k]
		n += int64(k)
		if len(f.buf) == cap(f.buf) {
			if err := f.frame(); err != nil {
				return n, err
			}
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func (f *frameWriter) frame() error {
	if err := f.onFrame(); err != nil {
		return err
	}
	f.put()
	f.err = f.w.flush()
	return f.err
}

func (f *frameWriter) put() {
	binary.LittleEndian.PutUint64(f.buf, uint64(len(f.buf)-8))
	_, _ = f.w.bw.Write(f.buf)
	f.buf = f.buf[:8]
}

// end sends what is left and the end.
func (f *frameWriter) end() error {
	if len(f.buf) > 8 {
		f.put()
	}
	f.w.uint(0)
	f.err = f.w.flush()
	return f.err
}

// nar sends a NAR, which must have the size that info tells.
func (f *frameWriter) nar(info *PathInfo, nar io.Reader) error {
	n, err := f.ReadFrom(io.LimitReader(nar, int64(info.NarSize)+1))
	if err == nil && n != int64(info.NarSize) {
		err = fmt.Errorf("adding %s: its NAR has %d bytes or more, not %d", info.Path, n, info.NarSize)
	}
	return err
}
