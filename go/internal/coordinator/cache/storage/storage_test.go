package storage_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/coordinator/cache/storage"
)

func TestDisk(t *testing.T) {
	t.Parallel()
	for _, sync := range []bool{true, false} {
		root, tmp := t.TempDir(), t.TempDir()
		d, err := storage.NewDisk(root, 0o755, sync)
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		if _, err := d.Stat(ctx, "nar/x"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat: %v", err)
		}
		if _, err := d.Stat(ctx, "nar"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a directory: %v", err)
		}
		file := filepath.Join(tmp, "file")
		if err := os.WriteFile(file, []byte("one"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.Put(ctx, "deep/er/x", file); err != nil {
			t.Fatal(err)
		}
		if err := d.PutBytes(ctx, "x.narinfo", []byte("old"), tmp); err != nil {
			t.Fatal(err)
		}
		r, f, err := d.Open(ctx, "x.narinfo")
		if err != nil || f.Size != 3 {
			t.Fatal(f, err)
		}
		if err := d.PutBytes(ctx, "x.narinfo", []byte("newer"), tmp); err != nil {
			t.Fatal(err)
		}
		if err := d.Touch(ctx, "x.narinfo", time.Unix(1000, 0)); err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(r); err != nil || string(data) != "old" {
			t.Errorf("an open file changed: %q %v", data, err)
		}
		r.Close()
		if f, err := d.Stat(ctx, "x.narinfo"); err != nil || f.Size != 5 || !f.Time.Equal(time.Unix(1000, 0)) {
			t.Error(f, err)
		}
		var keys []string
		list := func(f storage.File) error {
			keys = append(keys, f.Key)
			return nil
		}
		if err := errors.Join(d.List(ctx, "", list), d.List(ctx, "deep/", list), d.List(ctx, "none/", list)); err != nil {
			t.Fatal(err)
		}
		slices.Sort(keys)
		if diff := cmp.Diff([]string{"deep/er/x", "deep/er/x", "x.narinfo"}, keys); diff != "" {
			t.Error(diff)
		}
		if err := errors.Join(d.Delete(ctx, "x.narinfo"), d.Delete(ctx, "x.narinfo"), d.Flush(ctx)); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
			t.Errorf("temporary files: %v %v", left, err)
		}
		// A failing Put leaves nothing, under either name.
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.Put(ctx, "deep", file); err == nil {
			t.Error("put a file over a directory")
		}
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file is left: %v", err)
		}
	}
}

func TestSpool(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	space := &storage.Space{Dir: dir, Max: 3 << 20}
	a, err := storage.NewSpool(dir, "a-", space)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(make([]byte, 2_500_000)); err != nil {
		t.Fatal(err)
	}
	b, err := storage.NewSpool(dir, "b-", space)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(make([]byte, 1_000_000)); !storage.IsNoSpace(err) {
		t.Errorf("want no space: %v", err)
	}
	b.Discard()
	b.Discard()
	if err := errors.Join(a.Finish(true), a.Finish(true)); err != nil || space.Used() != 2_500_000 {
		t.Errorf("%d used: %v", space.Used(), err)
	}
	r, err := a.Reopen()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); err != nil || n != a.Size() {
		t.Errorf("%d bytes, %v", n, err)
	}
	a.Discard()
	if left, _ := os.ReadDir(dir); len(left) != 0 || space.Used() != 0 {
		t.Errorf("left: %v, %d used", left, space.Used())
	}
	full := &storage.Space{Dir: dir, Reserve: 1 << 62}
	if err := full.Take(1); !errors.Is(err, storage.ErrNoSpace) || full.Used() != 0 {
		t.Errorf("reserve: %v, %d used", err, full.Used())
	}
}
