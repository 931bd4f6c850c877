package nar

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A Node is a file in an archive, in the form of Nix's listings (HASH.ls in a binary cache).
type Node struct {
	Type       string // regular, directory or symlink
	Executable bool
	Size       uint64 // of a regular file
	Offset     uint64 // of its contents in the archive
	Target     string // of a symlink
	Entries    []Entry
}

// Entry of a directory.
type Entry struct {
	Name string
	Node *Node
}

// Bounds of an archive: a name, the target of a link, the depth of a tree.
const (
	maxName   = 1024
	maxTarget = 64 << 10
	maxDepth  = 16 << 10
)

// List reads an archive to its end and says what is in it.
func List(r io.Reader) (*Node, error) {
	l := &lister{r: bufio.NewReaderSize(r, bufferSize)}
	l.expect(magic)
	n := l.node(1)
	if l.err == nil {
		if _, err := l.r.ReadByte(); err == nil {
			l.fail("something follows its end")
		} else if !errors.Is(err, io.EOF) {
			l.err = err
		}
	}
	if l.err != nil {
		return nil, fmt.Errorf("archive, at byte %d: %w", l.at, l.err)
	}
	return n, nil
}

// Listing is the text of a listing file.
func Listing(n *Node) []byte {
	return append(n.append([]byte(`{"version":1,"root":`)), '}')
}

func (n *Node) append(b []byte) []byte {
	b = append(b, `{"type":"`...)
	b = append(b, n.Type...)
	b = append(b, '"')
	switch n.Type {
	case "regular":
		b = fmt.Appendf(b, `,"size":%d`, n.Size)
		if n.Executable {
			b = append(b, `,"executable":true`...)
		}
		b = fmt.Appendf(b, `,"narOffset":%d`, n.Offset)
	case "symlink":
		b = appendString(append(b, `,"target":`...), n.Target)
	case "directory":
		b = append(b, `,"entries":{`...)
		for i, e := range n.Entries {
			if i > 0 {
				b = append(b, ',')
			}
			b = e.Node.append(append(appendString(b, e.Name), ':'))
		}
		b = append(b, '}')
	}
	return append(b, '}')
}

// appendString: a name that is not UTF-8 cannot be in JSON as it is; Go writes U+FFFD for what is wrong in it.
func appendString(b []byte, s string) []byte {
	text, _ := json.Marshal(s)
	return append(b, text...)
}

type lister struct {
	r   *bufio.Reader
	at  uint64
	err error
}

func (l *lister) fail(format string, args ...any) {
	if l.err == nil {
		l.err = fmt.Errorf(format, args...)
	}
}

func (l *lister) uint() uint64 {
	var b [8]byte
	l.read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func (l *lister) read(b []byte) {
	if l.err != nil {
		return
	}
	n, err := io.ReadFull(l.r, b)
	l.at += uint64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	l.err = err
}

func (l *lister) token(limit uint64) string {
	n := l.uint()
	if n > limit {
		l.fail("a name of %d bytes", n)
	}
	if l.err != nil {
		return ""
	}
	b := make([]byte, n)
	l.read(b)
	l.pad(n)
	return string(b)
}

func (l *lister) pad(n uint64) {
	b := make([]byte, padding(n))
	l.read(b)
	if !bytes.Equal(b, zeros[:len(b)]) {
		l.fail("padding that is not zero")
	}
}

func (l *lister) expect(want string) {
	if got := l.token(32); l.err == nil && got != want {
		l.fail("%q where %q belongs", got, want)
	}
}

func (l *lister) node(depth int) *Node {
	if depth > maxDepth {
		l.fail("deeper than %d directories", maxDepth)
	}
	l.expect("(")
	l.expect("type")
	n := &Node{Type: l.token(32)}
	if l.err != nil {
		return n
	}
	switch n.Type {
	case "regular":
		l.regular(n)
	case "symlink":
		l.expect("target")
		n.Target = l.token(maxTarget)
		l.expect(")")
	case "directory":
		l.directory(n, depth)
	default:
		l.fail("a node of type %q", n.Type)
	}
	return n
}

func (l *lister) regular(n *Node) {
	t := l.token(32)
	if t == "executable" {
		n.Executable = true
		l.expect("")
		t = l.token(32)
	}
	if t == "contents" {
		n.Size = l.uint()
		n.Offset = l.at
		if l.err == nil && n.Size > 1<<62 {
			l.fail("a file of %d bytes", n.Size)
		}
		if l.err == nil {
			skipped, err := io.CopyN(io.Discard, l.r, int64(n.Size))
			l.at += uint64(skipped)
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			l.err = err
		}
		l.pad(n.Size)
		t = l.token(32)
	}
	if l.err == nil && t != ")" {
		l.fail("%q in a regular file", t)
	}
}

func (l *lister) directory(n *Node, depth int) {
	for last := ""; l.err == nil; {
		t := l.token(32)
		if l.err != nil || t == ")" {
			return
		}
		if t != "entry" {
			l.fail("%q in a directory", t)
			return
		}
		l.expect("(")
		l.expect("name")
		name := l.token(maxName)
		if l.err != nil {
			return
		}
		if name == "" || name == "." || name == ".." || bytes.ContainsAny([]byte(name), "/\x00") {
			l.fail("a file named %q", name)
		}
		if len(n.Entries) > 0 && name <= last {
			l.fail("%q after %q", name, last)
		}
		last = name
		l.expect("node")
		n.Entries = append(n.Entries, Entry{name, l.node(depth + 1)})
		l.expect(")")
	}
}
