package checkout_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/cli/checkout"
)

func git(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=T", "GIT_AUTHOR_EMAIL=t@example.org", "GIT_COMMITTER_NAME=T", "GIT_COMMITTER_EMAIL=t@example.org")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// repository has a commit with a file, a program, a link and a directory, and then changes of every kind.
func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "main")
	git(t, dir, "remote", "add", "origin", "https://forge.example/acme/widgets.git")
	write(t, filepath.Join(dir, "default.nix"), "{ }\n", 0o644)
	write(t, filepath.Join(dir, "bin/run"), "#!/bin/sh\n", 0o755)
	write(t, filepath.Join(dir, "old"), "old\n", 0o644)
	write(t, filepath.Join(dir, ".gitignore"), "secret\n", 0o644)
	if err := os.Symlink("bin/run", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-q", "-m", "first")
	return dir
}

func open(t *testing.T, dir string) *checkout.Checkout {
	t.Helper()
	c, err := checkout.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// unpack gives name → "text", "text*" when executable, "-> target" for links, "/" for directories.
func unpack(t *testing.T, c *checkout.Checkout, dirty bool) map[string]string {
	t.Helper()
	var buf bytes.Buffer
	if err := c.Tarball(t.Context(), &buf, dirty); err != nil {
		t.Fatal(err)
	}
	zr, err := gzip.NewReader(&buf)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for tr := tar.NewReader(zr); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		switch header.Typeflag {
		case tar.TypeReg:
			text, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			files[header.Name] = string(text)
			if header.Mode&0o111 != 0 {
				files[header.Name] += "*"
			}
		case tar.TypeSymlink:
			files[header.Name] = "-> " + header.Linkname
		}
	}
}

func TestCommittedStateIgnoresTheWorkTree(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	write(t, filepath.Join(dir, "default.nix"), "{ changed = 1; }\n", 0o644)
	write(t, filepath.Join(dir, "new"), "new\n", 0o644)
	c := open(t, dir)
	if !c.Changed || !c.AtRoot() || c.Name != "widgets" || c.Ref != "refs/heads/main" || len(c.Rev) != 40 {
		t.Errorf("got %+v", c)
	}
	want := map[string]string{
		"source/default.nix": "{ }\n",
		"source/bin/run":     "#!/bin/sh\n*",
		"source/old":         "old\n",
		"source/.gitignore":  "secret\n",
		"source/link":        "-> bin/run",
	}
	if diff := cmp.Diff(want, unpack(t, c, false)); diff != "" {
		t.Error(diff)
	}
}

func TestDirtyTakesWhatGitDoesNotIgnore(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	write(t, filepath.Join(dir, "default.nix"), "{ changed = 1; }\n", 0o644)
	write(t, filepath.Join(dir, "new file"), "new\n", 0o644)
	write(t, filepath.Join(dir, "secret"), "hunter2\n", 0o644)
	if err := os.Remove(filepath.Join(dir, "old")); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"source/default.nix": "{ changed = 1; }\n",
		"source/bin/run":     "#!/bin/sh\n*",
		"source/new file":    "new\n",
		"source/.gitignore":  "secret\n",
		"source/link":        "-> bin/run",
	}
	if diff := cmp.Diff(want, unpack(t, open(t, dir), true)); diff != "" {
		t.Error(diff)
	}
}

func TestDirectoryInsideARepository(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	c := open(t, filepath.Join(dir, "bin"))
	if c.AtRoot() || c.Name != "bin" {
		t.Errorf("got %+v", c)
	}
	if !c.Has(t.Context(), "run", false) || c.Has(t.Context(), "default.nix", false) {
		t.Error("Has looks outside the directory or misses what is in it")
	}
	want := map[string]string{"source/run": "#!/bin/sh\n*"}
	if diff := cmp.Diff(want, unpack(t, c, false)); diff != "" {
		t.Error(diff)
	}
}

func TestDirectoryWithoutGit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ci.nix"), "{ }\n", 0o644)
	c := open(t, dir)
	if c.Root != "" || c.Rev != "" {
		t.Errorf("got %+v", c)
	}
	want := map[string]string{"source/ci.nix": "{ }\n"}
	if diff := cmp.Diff(want, unpack(t, c, false)); diff != "" {
		t.Error(diff)
	}
}

func TestRepositoryWithoutACommitSaysWhatToDo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "main")
	write(t, filepath.Join(dir, "ci.nix"), "{ }\n", 0o644)
	err := open(t, dir).Tarball(t.Context(), io.Discard, false)
	if err == nil || err.Error() != dir+" has no commit yet; commit something or take the files as they are with --dirty" {
		t.Errorf("got %v", err)
	}
}

func TestDetachedHeadOnATag(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	git(t, dir, "tag", "v1")
	git(t, dir, "checkout", "-q", "--detach")
	if c := open(t, dir); c.Ref != "refs/tags/v1" {
		t.Errorf("ref is %s", c.Ref)
	}
}

func TestOpenRefusesAFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "", 0o644)
	if _, err := checkout.Open(t.Context(), path); err == nil {
		t.Error("a file was taken for a checkout")
	}
}
