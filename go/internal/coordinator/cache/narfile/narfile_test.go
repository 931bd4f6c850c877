package narfile_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"hercules/internal/coordinator/cache/narfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// zeros is the NAR of a file of n zeros.
func zeros(n int64) (r io.Reader, size int64) {
	var head, tail bytes.Buffer
	text := func(b *bytes.Buffer, words ...string) {
		for _, w := range words {
			_ = binary.Write(b, binary.LittleEndian, uint64(len(w)))
			b.WriteString(w)
			b.Write(make([]byte, (8-len(w)%8)%8))
		}
	}
	text(&head, "nix-archive-1", "(", "type", "regular", "contents")
	_ = binary.Write(&head, binary.LittleEndian, uint64(n))
	text(&tail, ")")
	return io.MultiReader(&head, io.LimitReader(zero{}, n), &tail), int64(head.Len()+tail.Len()) + n
}

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestRead(t *testing.T) {
	r, size := zeros(800)
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	f, err := narfile.Read(iotest.OneByteReader(bytes.NewReader(plain)), &out, size)
	if err != nil || f.Compression != "none" || f.NarSize != size || f.Nar != sha256.Sum256(plain) || f.File != f.Nar || f.FileSize != size {
		t.Errorf("%+v %v", f, err)
	}
	if !bytes.Equal(out.Bytes(), plain) {
		t.Error("something else was written")
	}
	var e *narfile.Error
	if _, err := narfile.Read(bytes.NewReader(plain), nil, size-1); !errors.As(err, &e) || !e.TooLarge {
		t.Errorf("too large: %v", err)
	}
	broken := errors.New("broken")
	if _, err := narfile.Read(io.MultiReader(bytes.NewReader(plain[:100]), iotest.ErrReader(broken)), nil, size); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
	if _, err := narfile.Read(bytes.NewReader(plain), failing{broken}, size); !errors.Is(err, broken) {
		t.Errorf("a writer that fails: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestMemory reads a NAR of half a GiB, which is a few kB compressed.
func TestMemory(t *testing.T) {
	const n = 512 << 20
	r, size := zeros(n)
	pr, pw := io.Pipe()
	go func() {
		z, err := zstd.NewWriter(pw, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
		if err == nil {
			if _, err = io.Copy(z, r); err == nil {
				err = z.Close()
			}
		}
		pw.CloseWithError(err)
	}()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f, err := narfile.Read(pr, nil, 1<<40)
	runtime.ReadMemStats(&after)
	if err != nil || f.NarSize != size {
		t.Fatalf("%+v %v", f, err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 { // of both ends together
		t.Errorf("%d bytes were allocated for %d", used, size)
	}
}

func TestNames(t *testing.T) {
	d := narfile.Digest(sha256.Sum256(nil))
	for _, name := range []string{d.String() + ".nar", d.String() + ".nar.zst", strings.Repeat("0", 64) + ".nar.xz"} {
		if _, err := narfile.ParseName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{
		"", ".nar", d.String(), d.String() + ".narx", d.String() + ".nar./", d.String() + ".nar.a/b", d.String()[1:] + ".nar",
		strings.Repeat("e", 52) + ".nar", strings.Repeat("g", 64) + ".nar", "../" + d.String() + ".nar", strings.Repeat("z", 52) + ".nar",
	} {
		if got, err := narfile.ParseName(name); err == nil {
			t.Errorf("%q: %s", name, got)
		}
	}
	for _, c := range narfile.Compressions() {
		name := strings.TrimPrefix(narfile.Key(d, c), "nar/")
		if got, err := narfile.ParseName(name); err != nil || got != d {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}
