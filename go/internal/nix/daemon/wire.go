package daemon

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// Everything on the wire is made of 64 bit little-endian numbers, and of byte strings: their length as such a number,
// their bytes, zeros up to a multiple of eight (serialise.hh).

const (
	bufferSize = 64 << 10
	// maxMessage is the memory that the texts and lists of one reply, one request or one log message may take. Bulk data
	// (NARs, the contents of files) is streamed and not counted. A QueryAllValidPaths of a million paths takes about 100 MB.
	maxMessage = 512 << 20
	// elementCost is what an element of a list is counted with besides its bytes.
	elementCost = 32
)

// A malformedError is a breach of the protocol by the other side.
type malformedError struct{ what string }

func (e *malformedError) Error() string { return "malformed message: " + e.what }

func malformed(format string, args ...any) error {
	return &malformedError{fmt.Sprintf(format, args...)}
}

// reader decodes. The first error stays in err; from then on every method returns a zero value.
type reader struct {
	br     *bufio.Reader
	err    error
	budget int
}

func newReader(r io.Reader) *reader {
	return &reader{br: bufio.NewReaderSize(r, bufferSize), budget: maxMessage}
}

// begin starts a message: it may take maxMessage bytes of memory.
func (r *reader) begin() { r.budget = maxMessage }

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *reader) spend(n int) bool {
	if n > r.budget {
		r.fail(malformed("larger than %d bytes", maxMessage))
		return false
	}
	r.budget -= n
	return true
}

// uint reads a number. Only here the end of the input between two values is io.EOF and not io.ErrUnexpectedEOF.
func (r *reader) uint() uint64 {
	if r.err != nil {
		return 0
	}
	b, err := r.br.Peek(8)
	if err != nil {
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		r.fail(err)
		return 0
	}
	v := binary.LittleEndian.Uint64(b)
	_, _ = r.br.Discard(8)
	return v
}

func (r *reader) bool() bool { return r.uint() != 0 }

// length reads the length of a byte string and gives it with the number of zeros after it.
func (r *reader) length() (n uint64, pad int) {
	n = r.uint()
	return n, int(-n & 7)
}

func (r *reader) string() string {
	b := r.bytes()
	return string(b)
}

// bytes reads a byte string. The result is valid until the next read.
func (r *reader) bytes() []byte {
	n64, pad := r.length()
	if r.err != nil {
		return nil
	}
	if n64 > maxMessage {
		r.fail(malformed("text of %d bytes", n64))
		return nil
	}
	n := int(n64)
	if !r.spend(n + elementCost) {
		return nil
	}
	if n+pad <= r.br.Size() {
		b, err := r.br.Peek(n + pad)
		if err != nil {
			r.fail(unexpected(err))
			return nil
		}
		_, _ = r.br.Discard(n + pad)
		r.checkPadding(b[n:])
		return b[:n]
	}
	// The buffer grows as the bytes arrive, so that a length alone takes no memory.
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r.br, int64(n+pad)); err != nil {
		r.fail(unexpected(err))
		return nil
	}
	b := buf.Bytes()
	r.checkPadding(b[n:])
	return b[:n]
}

func (r *reader) checkPadding(b []byte) {
	for _, c := range b {
		if c != 0 {
			r.fail(malformed("padding is not zero"))
		}
	}
}

// count reads the length of a list.
func (r *reader) count() uint64 {
	n := r.uint()
	if n > maxMessage/elementCost {
		r.fail(malformed("list of %d elements", n))
		return 0
	}
	return n
}

// each calls f for every element of a list.
func (r *reader) each(f func()) {
	for n := r.count(); n > 0 && r.err == nil; n-- {
		if r.spend(elementCost) {
			f()
		}
	}
}

func (r *reader) strings() []string {
	var ss []string
	r.each(func() { ss = append(ss, r.string()) })
	return ss
}

func (r *reader) stringMap() map[string]string {
	m := map[string]string{}
	r.each(func() {
		k := r.string()
		m[k] = r.string()
	})
	return m
}

// copyTo moves n bytes to w, out of the buffer and without another copy.
func (r *reader) copyTo(w io.Writer, n uint64) {
	for n > 0 && r.err == nil {
		if _, err := r.br.Peek(1); err != nil {
			r.fail(unexpected(err))
			return
		}
		k := int(min(n, uint64(r.br.Buffered())))
		b, _ := r.br.Peek(k)
		if _, err := w.Write(b); err != nil {
			r.fail(&sinkError{err})
			return
		}
		_, _ = r.br.Discard(k)
		n -= uint64(k)
	}
}

// sinkError is an error of the writer that data is copied to, in contrast to one of the connection it comes from.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return e.err.Error() }
func (e *sinkError) Unwrap() error { return e.err }

// unexpected is err, where the input must not end.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// writer encodes into a buffer. Errors stay in the buffer and come out of flush.
type writer struct {
	bw *bufio.Writer
}

func newWriter(w io.Writer) *writer { return &writer{bufio.NewWriterSize(w, bufferSize)} }

func (w *writer) flush() error { return w.bw.Flush() }

func (w *writer) uint(v uint64) {
	b := binary.LittleEndian.AppendUint64(w.bw.AvailableBuffer(), v)
	_, _ = w.bw.Write(b)
}

func (w *writer) bool(v bool) {
	if v {
		w.uint(1)
	} else {
		w.uint(0)
	}
}

var zeros [8]byte

func (w *writer) string(s string) {
	w.uint(uint64(len(s)))
	_, _ = w.bw.WriteString(s)
	_, _ = w.bw.Write(zeros[:-len(s)&7])
}

func (w *writer) strings(ss []string) {
	w.uint(uint64(len(ss)))
	for _, s := range ss {
		w.string(s)
	}
}

// stringMap writes m in the order of its keys.
func (w *writer) stringMap(m map[string]string) {
	w.uint(uint64(len(m)))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		w.string(k)
		w.string(m[k])
	}
}
