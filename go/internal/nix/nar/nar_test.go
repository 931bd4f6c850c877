package nar_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/nix/nar"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree is a directory with everything that an archive can have.
func tree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	for name, size := range map[string]int{
		"zero": 0, "one": 1, "eight": 8, "a/b/nine": 9, "a/buffer": 64 << 10, "a/less": 64<<10 - 40, "a/more": 64<<10 + 1, "a-b": 1 << 20, "a.b": 3,
		"n\xff": 5, "Grüße": 7,
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte("x"), size), 0o644))
	}
	for range 3 {
		for i := range 200 { // tokens of more than a buffer
			must(t, os.WriteFile(filepath.Join(dir, "a", "b", strings.Repeat("n", 150)+string(rune('A'+i))), nil, 0o644))
		}
	}
	must(t, os.Chmod(filepath.Join(dir, "one"), 0o755))
	must(t, os.Symlink("one", filepath.Join(dir, "link")))
	must(t, os.Symlink(strings.Repeat("l", 3000), filepath.Join(dir, "long")))
	return dir
}

// plain hides that a buffer is an io.ReaderFrom.
type plain struct{ b *bytes.Buffer }

func (p plain) Write(b []byte) (int, error) { return p.b.Write(b) }

func TestDumpIsThatOfNix(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("nix-store")
	if err != nil {
		t.Skip("SKIP: no Nix in PATH")
	}
	dir := tree(t)
	for _, path := range []string{"", "/zero", "/one", "/link", "/empty", "/a-b", "/a"} {
		want, err := exec.CommandContext(t.Context(), program, "--dump", dir+path).Output()
		must(t, err)
		var from, to bytes.Buffer
		must(t, nar.Dump(&from, dir+path))
		must(t, nar.Dump(plain{&to}, dir+path))
		if !bytes.Equal(from.Bytes(), want) || !bytes.Equal(to.Bytes(), want) {
			t.Errorf("%q: the archive is not that of Nix", path)
		}
		if _, err := nar.List(bytes.NewReader(want)); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	text := []byte("some text")
	must(t, os.WriteFile(dir+"/zero", text, 0o644))
	var b bytes.Buffer
	must(t, nar.Dump(&b, dir+"/zero"))
	if !bytes.Equal(b.Bytes(), nar.AppendFile(nil, text)) {
		t.Error("AppendFile differs")
	}
}

func TestListing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/d"
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(dir+"/x", []byte("abc"), 0o755))
	must(t, os.WriteFile(dir+"/q\"", nil, 0o644))
	must(t, os.Symlink("x", dir+"/y"))
	var b bytes.Buffer
	must(t, nar.Dump(&b, dir))
	root, err := nar.List(&b)
	must(t, err)
	want := `{"version":1,"root":{"type":"directory","entries":{"q\"":{"type":"regular","size":0,"narOffset":232},` +
		`"x":{"type":"regular","size":3,"executable":true,"narOffset":448},"y":{"type":"symlink","target":"x"}}}}`
	if diff := cmp.Diff(want, string(nar.Listing(root))); diff != "" {
		t.Error(diff)
	}
}

type failing struct{ left int }

var errFull = errors.New("full")

func (f *failing) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestDumpTellsWriterFromFile(t *testing.T) {
	t.Parallel()
	dir := tree(t)
	for _, left := range []int{0, 70_000, 500_000} {
		err := nar.Dump(&failing{left}, dir)
		if w, ok := errors.AsType[*nar.WriteError](err); !ok || !errors.Is(w, errFull) {
			t.Errorf("error %v", err)
		}
	}
	if err := nar.Dump(&bytes.Buffer{}, dir+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func FuzzList(f *testing.F) {
	f.Add(nar.AppendFile(nil, []byte("text")))
	dir := f.TempDir()
	_ = os.WriteFile(dir+"/x", []byte("abc"), 0o755)
	_ = os.Symlink("x", dir+"/y")
	var b bytes.Buffer
	if err := nar.Dump(&b, dir); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := nar.List(bytes.NewReader(data))
		if err == nil && len(nar.Listing(root)) == 0 {
			t.Error("no listing")
		}
	})
}
