// Package narfile reads the NAR files of binary caches: which compression they have, and what their hashes and sizes
// really are. It trusts nothing that it reads, needs the same memory for every size, and knows no cache.
package narfile

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/nix-community/go-nix/pkg/nixbase32"
)

// Error says what is wrong with a file.
type Error struct {
	TooLarge bool
	text     string
}

func (e *Error) Error() string { return e.text }

func bad(format string, args ...any) error { return &Error{text: fmt.Sprintf(format, args...)} }

const nameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

// Digest is a sha256 hash.
type Digest [sha256.Size]byte

// String is the hash in Nix's base 32.
func (d Digest) String() string { return nixbase32.EncodeToString(d[:]) }

// Facts are what is true of a NAR file, as opposed to what a narinfo says of it.
type Facts struct {
	File, Nar         Digest
	FileSize, NarSize int64
	Compression       string // a value of [Compressions], as in a narinfo
}

// Key is where the file belongs.
func (f Facts) Key() string { return Key(f.File, f.Compression) }

// Compressions are those that can be read, the likeliest first.
func Compressions() []string {
	names := make([]string, len(compressions))
	for i, c := range compressions {
		names[i] = c.name
	}
	return names
}

var compressions = []struct{ name, ext string }{
	{"zstd", ".zst"}, {"xz", ".xz"}, {"none", ""}, {"bzip2", ".bz2"}, {"gzip", ".gz"},
}

// Key is the name that a NAR file has in a cache.
func Key(file Digest, compression string) string {
	for _, c := range compressions {
		if c.name == compression {
			return "nar/" + file.String() + ".nar" + c.ext
		}
	}
	return "nar/" + file.String() + ".nar." + compression
}

// ParseName reads the name of a NAR, <hash>.nar[.ext]; the hash is of sha256, in base 16 or Nix's base 32. The
// extension says nothing that the content does not say better.
func ParseName(name string) (Digest, error) {
	text, ext, ok := strings.Cut(name, ".nar")
	if !ok || ext != "" && (ext[0] != '.' || strings.Trim(ext[1:], nameCharacters) != "") {
		return Digest{}, errors.New("a NAR is named nar/<hash>.nar or nar/<hash>.nar.<compression>")
	}
	d, err := ParseDigest(text)
	if err != nil {
		return Digest{}, fmt.Errorf("the name of a NAR is its sha256 in base 16 or Nix's base 32: %s", err)
	}
	return d, nil
}

// ParseDigest reads a sha256 in base 16 or Nix's base 32.
func ParseDigest(text string) (Digest, error) {
	var b []byte
	var err error
	switch len(text) {
	case 52:
		b, err = nixbase32.DecodeString(text)
	case 64:
		b, err = hex.DecodeString(text)
	default:
		return Digest{}, fmt.Errorf("%d characters, not 52 or 64", len(text))
	}
	if err != nil || len(b) != sha256.Size {
		return Digest{}, errors.New("malformed hash")
	}
	return Digest(b), nil
}

// narMagic begins every NAR.
var narMagic = []byte("\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1\x00\x00\x00")

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// MaxWindow bounds the memory of a decompressor: the largest that the compressors' highest levels ask for.
const MaxWindow = 128 << 20

// Read reads a compressed NAR to its end, writes it to w (nil: nowhere) and finds its facts. Memory does not depend
// on the size. Errors of src and w are given as they are, everything else is an [Error]. Uncompressed it may have max
// bytes.
func Read(src io.Reader, w io.Writer, max int64) (Facts, error) {
	var f Facts
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := unpack(pr, &f, max)
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
		return Facts{}, srcErr
	}
	if err != nil {
		return Facts{}, err
	}
	f.FileSize = size
	fileHash.Sum(f.File[:0])
	return f, nil
}

// unpack decompresses r to its very end.
func unpack(r io.Reader, f *Facts, max int64) error {
	in := bufio.NewReaderSize(r, 64<<10)
	magic, err := in.Peek(6)
	if err != nil && len(magic) == 0 {
		if errors.Is(err, io.EOF) {
			return bad("the NAR is empty")
		}
		return err
	}
	var out io.Reader = in
	switch {
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		// One goroutine: this one. Two uploads at once are worth more than one that is quicker.
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(MaxWindow))
		if err != nil {
			return err
		}
		defer d.Close()
		f.Compression, out = "zstd", d
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		if out, err = xz.NewReader(in, MaxWindow); err != nil {
			return bad("the NAR is not well-formed xz: %s", err)
		}
		f.Compression = "xz"
	case bytes.HasPrefix(magic, []byte("BZh")):
		f.Compression, out = "bzip2", bzip2.NewReader(in)
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		if out, err = gzip.NewReader(in); err != nil {
			return bad("the NAR is not well-formed gzip: %s", err)
		}
		f.Compression = "gzip"
	case bytes.HasPrefix(magic, narMagic[:6]):
		f.Compression = "none"
	default:
		return bad("this is neither a NAR nor one compressed with zstd, xz, bzip2 or gzip")
	}
	h := sha256.New()
	n, err := hashNar(h, out, max)
	if err != nil {
		if _, ok := errors.AsType[*Error](err); ok {
			return err
		}
		return bad("decompressing the NAR (%s): %s", f.Compression, err)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return bad("there is something after the end of the compressed NAR")
	}
	f.NarSize = n
	h.Sum(f.Nar[:0])
	return nil
}

func hashNar(h hash.Hash, r io.Reader, max int64) (int64, error) {
	head := make([]byte, len(narMagic))
	if n, err := io.ReadFull(r, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return 0, err
	} else if !bytes.Equal(head[:n], narMagic) {
		return 0, bad("what was compressed is not a NAR")
	}
	h.Write(head)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	size := int64(len(head))
	for {
		n, err := r.Read(*buf)
		h.Write((*buf)[:n])
		if size += int64(n); size > max {
			return 0, &Error{TooLarge: true, text: fmt.Sprintf("the NAR is larger than %d bytes", max)}
		}
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return 0, err
		}
	}
}
