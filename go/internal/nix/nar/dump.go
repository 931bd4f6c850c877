// Package nar makes Nix archives of files, and lists what is in an archive.
//
// It knows the format alone: neither stores nor hashes.
package nar

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	magic = "nix-archive-1"
	// bufferSize is for tokens and for the contents of small files.
	bufferSize = 64 << 10
)

// Dump writes the archive of the file at path, which may be a directory or a symbolic link. Names are bytes and go in
// as they are. The contents of big files are offered to w as an io.ReaderFrom, where it is one.
//
// An error of w comes as a *WriteError.
func Dump(w io.Writer, path string) error {
	d := &dumper{w: w, buf: make([]byte, 0, bufferSize)}
	d.token(magic)
	if err := d.node(path, 0); err != nil {
		return err
	}
	return d.flush()
}

// AppendFile appends the archive of a single file that is not executable, as derivations and other texts are.
func AppendFile(b, contents []byte) []byte {
	for _, t := range []string{magic, "(", "type", "regular", "contents"} {
		b = appendToken(b, t)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(len(contents)))
	b = append(b, contents...)
	b = append(b, zeros[:padding(uint64(len(contents)))]...)
	return appendToken(b, ")")
}

// A WriteError is an error of the writer that takes an archive.
type WriteError struct{ Err error }

func (e *WriteError) Error() string { return e.Err.Error() }
func (e *WriteError) Unwrap() error { return e.Err }

var zeros [8]byte

func padding(n uint64) int { return int(-n & 7) }

func appendToken(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	b = append(b, s...)
	return append(b, zeros[:padding(uint64(len(s)))]...)
}

type dumper struct {
	w   io.Writer
	buf []byte
	big []byte
}

// token is small: names and targets of links are at most 4 KiB.
func (d *dumper) token(s string) {
	d.buf = appendToken(d.buf, s)
}

func (d *dumper) flush() error {
	if len(d.buf) == 0 {
		return nil
	}
	_, err := d.w.Write(d.buf)
	d.buf = d.buf[:0]
	if err != nil {
		return &WriteError{err}
	}
	return nil
}

// room keeps space for the tokens of an entry.
func (d *dumper) room() error {
	if len(d.buf) > bufferSize/2 {
		return d.flush()
	}
	return nil
}

// node writes what is at path; mode is its type where the directory told, or 0.
func (d *dumper) node(path string, mode fs.FileMode) error {
	if err := d.room(); err != nil {
		return err
	}
	d.token("(")
	d.token("type")
	if mode == 0 {
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		mode = info.Mode() | fs.ModePerm // so that it is not 0
	}
	var err error
	switch mode.Type() {
	case 0:
		err = d.regular(path)
	case fs.ModeSymlink:
		var target string
		if target, err = os.Readlink(path); err == nil {
			d.token("symlink")
			d.token("target")
			d.token(target)
		}
	case fs.ModeDir:
		err = d.directory(path)
	default:
		err = fmt.Errorf("%s is neither a file nor a directory nor a symbolic link", path)
	}
	d.token(")")
	return err
}

func (d *dumper) directory(path string) error {
	d.token("directory")
	entries, err := os.ReadDir(path) // in the order of bytes, as an archive has to be
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := d.room(); err != nil {
			return err
		}
		d.token("entry")
		d.token("(")
		d.token("name")
		d.token(e.Name())
		d.token("node")
		if err := d.node(path+"/"+e.Name(), e.Type()|fs.ModePerm); err != nil {
			return err
		}
		d.token(")")
	}
	return nil
}

// regular goes past package os, whose files cost system calls of their own.
func (d *dumper) regular(path string) error {
	fd, err := open(path)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	closed := false
	defer func() {
		if !closed {
			_ = unix.Close(fd)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size < 0 {
		return fmt.Errorf("%s has changed while it was read", path)
	}
	d.token("regular")
	if st.Mode&unix.S_IXUSR != 0 {
		d.token("executable")
		d.token("")
	}
	d.token("contents")
	size := uint64(st.Size)
	d.buf = binary.LittleEndian.AppendUint64(d.buf, size)
	if size > uint64(bufferSize-len(d.buf)) {
		if err := d.flush(); err != nil {
			return err
		}
	}
	if size <= uint64(bufferSize-len(d.buf)) {
		n := len(d.buf)
		d.buf = d.buf[:n+int(size)]
		if err := readFull(fd, d.buf[n:]); err != nil {
			return &fs.PathError{Op: "read", Path: path, Err: err}
		}
	} else {
		f := os.NewFile(uintptr(fd), path)
		closed = true
		err := d.contents(f, size)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	if len(d.buf) > bufferSize-64 {
		if err := d.flush(); err != nil {
			return err
		}
	}
	d.buf = append(d.buf, zeros[:padding(size)]...)
	return nil
}

// contents copies a big file.
func (d *dumper) contents(f *os.File, size uint64) error {
	src := &counter{r: f, left: size}
	if rf, ok := d.w.(io.ReaderFrom); ok {
		_, err := rf.ReadFrom(src)
		return d.copied(src, err)
	}
	if d.big == nil {
		d.big = make([]byte, 4*bufferSize)
	}
	for src.left > 0 {
		n, err := src.Read(d.big)
		if _, werr := d.w.Write(d.big[:n]); werr != nil {
			return &WriteError{werr}
		}
		if err != nil {
			return d.copied(src, nil)
		}
	}
	return nil
}

func (d *dumper) copied(src *counter, err error) error {
	switch {
	case src.err != nil:
		return src.err
	case err != nil:
		return &WriteError{err}
	case src.left > 0:
		return io.ErrUnexpectedEOF
	}
	return nil
}

// counter reads exactly the bytes that are left, and remembers the error of the file.
type counter struct {
	r    *os.File
	left uint64
	err  error
}

func (c *counter) Read(b []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.r.Read(b[:min(uint64(len(b)), c.left)])
	c.left -= uint64(n)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%s has become shorter while it was read", c.r.Name())
		}
		c.err = err
	}
	return n, err
}

func open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			b = b[n:]
		}
	}
	return nil
}
