package daemon

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
)

// Limits of a NAR. File names are longer nowhere that Nix runs; deeper trees can't be made by path names.
const (
	maxNarName   = 1024
	maxNarTarget = 64 << 10
	maxNarDepth  = 16 << 10
)

// narCopier copies one NAR and finds its end, which nothing else on the wire tells. It checks the form strictly, and
// the order of names, but accepts any name that a file can have, also one that is not UTF-8. It uses memory for the
// names on the way down only.
type narCopier struct {
	r *reader
	w *bufio.Writer
}

// copyNar copies a NAR from r to w. Errors are in r.err.
func copyNar(w io.Writer, r *reader) {
	bw, ours := w.(*bufio.Writer)
	if !ours {
		bw = bufio.NewWriterSize(w, bufferSize)
	}
	c := &narCopier{r: r, w: bw}
	c.expect("nix-archive-1")
	c.node(1)
	if !ours && r.err == nil {
		if err := bw.Flush(); err != nil {
			r.fail(&sinkError{err})
		}
	}
}

func (c *narCopier) node(depth int) {
	if depth > maxNarDepth {
		c.r.fail(malformed("NAR deeper than %d directories", maxNarDepth))
	}
	c.expect("(")
	c.expect("type")
	switch kind := c.token(16); {
	case c.r.err != nil:
	case string(kind) == "regular":
		c.regular()
	case string(kind) == "symlink":
		c.expect("target")
		if target := c.token(maxNarTarget); len(target) == 0 || bytes.IndexByte(target, 0) >= 0 {
			c.r.fail(malformed("NAR with a symbolic link to %q", target))
		}
		c.expect(")")
	case string(kind) == "directory":
		c.directory(depth)
	default:
		c.r.fail(malformed("NAR with a node of type %q", kind))
	}
}

func (c *narCopier) regular() {
	token := c.token(16)
	if string(token) == "executable" {
		c.expect("")
		token = c.token(16)
	}
	if string(token) == "contents" {
		n, pad := c.r.length()
		c.writeUint(n)
		c.r.copyTo(c.w, n)
		c.padding(pad)
		token = c.token(16)
	}
	if c.r.err == nil && string(token) != ")" {
		c.r.fail(malformed("NAR with %q in a regular file", token))
	}
}

func (c *narCopier) directory(depth int) {
	var last []byte
	for c.r.err == nil {
		switch token := c.token(16); {
		case c.r.err != nil:
			return
		case string(token) == ")":
			return
		case string(token) != "entry":
			c.r.fail(malformed("NAR with %q in a directory", token))
			return
		}
		c.expect("(")
		c.expect("name")
		name := c.token(maxNarName)
		switch {
		case c.r.err != nil:
			return
		case len(name) == 0, string(name) == ".", string(name) == "..",
			bytes.IndexByte(name, '/') >= 0, bytes.IndexByte(name, 0) >= 0:
			c.r.fail(malformed("NAR with a file named %q", name))
		case last != nil && bytes.Compare(name, last) <= 0:
			c.r.fail(malformed("NAR with %q after %q", name, last))
		}
		last = append(last[:0], name...)
		c.expect("node")
		c.node(depth + 1)
		c.expect(")")
	}
}

// expect copies a token that must be want.
func (c *narCopier) expect(want string) {
	if got := c.token(16); c.r.err == nil && string(got) != want {
		c.r.fail(malformed("NAR with %q where %q belongs", got, want))
	}
}

// token copies a short byte string and returns it; it is valid until the next read.
func (c *narCopier) token(limit int) []byte {
	n, pad := c.r.length()
	if c.r.err != nil {
		return nil
	}
	if n > uint64(limit) {
		if n == msgError {
			// The daemon could not go on and says why, where the NAR should be (daemon.cc, NarFromPath).
			if e := c.r.remoteError(); c.r.err == nil {
				c.r.fail(e)
			}
			return nil
		}
		c.r.fail(malformed("NAR with a name of %d bytes", n))
		return nil
	}
	b, err := c.r.br.Peek(int(n) + pad)
	if err != nil {
		c.r.fail(unexpected(err))
		return nil
	}
	c.writeUint(n)
	c.write(b)
	_, _ = c.r.br.Discard(len(b))
	c.r.checkPadding(b[n:])
	return b[:n]
}

func (c *narCopier) padding(n int) {
	b, err := c.r.br.Peek(n)
	if err != nil {
		c.r.fail(unexpected(err))
		return
	}
	c.r.checkPadding(b)
	c.write(b)
	_, _ = c.r.br.Discard(n)
}

func (c *narCopier) writeUint(n uint64) {
	c.write(binary.LittleEndian.AppendUint64(c.w.AvailableBuffer(), n))
}

func (c *narCopier) write(b []byte) {
	if c.r.err != nil {
		return
	}
	if _, err := c.w.Write(b); err != nil {
		c.r.fail(&sinkError{err})
	}
}
