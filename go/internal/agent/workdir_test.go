package agent

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWorkDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "work")
	for _, d := range []string{"eval-1/sub/deep", "effect-2", "mine", "secure"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"eval-1/sub/deep/file", "eval-1/file", "evaluation", "mine/eval-3", "secure/tmp-netrc1.key"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "eval-1/sub"), 0o555); err != nil {
		t.Fatal(err)
	}
	secure, err := prepareWorkDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(secure)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("mode of the directory for secrets is %v", info.Mode())
	}
	sweep(dir, slog.New(slog.DiscardHandler))
	var left []string
	_ = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); rel != "." {
			left = append(left, rel)
		}
		return err
	})
	slices.Sort(left)
	if d := cmp.Diff([]string{"evaluation", "mine", "mine/eval-3", "secure"}, left); d != "" {
		t.Error(d)
	}
}

func TestWorkDirectoryThatCannotBe(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := prepareWorkDirectory(filepath.Join(file, "work")); err == nil {
		t.Error("no error")
	}
}
