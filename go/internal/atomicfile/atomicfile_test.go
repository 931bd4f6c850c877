package atomicfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"hercules/internal/atomicfile"
)

func TestWriteReplacesContentAndMode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	for _, c := range []struct {
		data string
		mode fs.FileMode
	}{{"first, longer", 0o600}, {"second", 0o644}, {"", 0o400}} {
		if err := atomicfile.Write(path, []byte(c.data), c.mode); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != c.data || st.Mode().Perm() != c.mode {
			t.Errorf("got %q mode %v, want %q mode %v", got, st.Mode().Perm(), c.data, c.mode)
		}
	}
	wantOnly(t, filepath.Dir(path), "f")
}

func TestWriteFailureLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// A directory that is not empty cannot be renamed over.
	path := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(path, []byte("data"), 0o600); err == nil {
		t.Fatal("replacing a directory succeeded")
	}
	wantOnly(t, dir, "d")
	if err := atomicfile.Write(filepath.Join(dir, "missing", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: got %v", err)
	}
}

func TestReaderNeverSeesAPart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	content := [2][]byte{make([]byte, 100_000), make([]byte, 50_000)}
	for i := range content[1] {
		content[1][i] = 'b'
	}
	if err := atomicfile.Write(path, content[0], 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		for i := range 50 {
			if err := atomicfile.Write(path, content[i%2], 0o600); err != nil {
				t.Error(err)
			}
		}
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			break
		}
		if len(got) != len(content[0]) && len(got) != len(content[1]) {
			t.Errorf("read %d bytes, a part", len(got))
			break
		}
	}
	wg.Wait()
}

func wantOnly(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("%s holds %v, want only %s", dir, entries, name)
	}
}
