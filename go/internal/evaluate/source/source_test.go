package source_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/evaluate/source"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFindNixFile(t *testing.T) {
	t.Parallel()
	const none = "There is nothing to evaluate: the repository has no file nix/ci.nix, ci.nix, flake.nix or default.nix."
	tests := []struct {
		name  string
		files string
		want  string
		err   string
	}{
		{"nothing", "README", "", none},
		{"empty repository", "", "", none},
		{"ci.nix", "ci.nix", "ci.nix", ""},
		{"nix/ci.nix", "nix/ci.nix", "nix/ci.nix", ""},
		{"default.nix", "default.nix", "default.nix", ""},
		{"flake before default", "default.nix flake.nix", "flake.nix", ""},
		{"ci before flake", "ci.nix default.nix flake.nix", "ci.nix", ""},
		{"nix/ci before all", "nix/ci.nix default.nix flake.nix", "nix/ci.nix", ""},
		{"ambiguous", "nix/ci.nix ci.nix flake.nix", "", "It is not clear which file to evaluate, because the repository has several. Keep only one of nix/ci.nix or ci.nix."},
		{"a directory is no file", "ci.nix/x default.nix", "default.nix", ""},
		{"a file nix", "nix flake.nix", "flake.nix", ""},
		{"a link inside", "ci.nix->other other", "ci.nix", ""},
		{"a dangling link", "ci.nix->gone default.nix", "default.nix", ""},
		{"a link to /etc", "ci.nix->/etc/passwd default.nix", "", "The file ci.nix cannot be evaluated, because it is reached through a symbolic link that leads out of the repository or in a circle."},
		{"a directory that is a link out", "nix->.. default.nix", "", "The file nix/ci.nix cannot be evaluated, because it is reached through a symbolic link that leads out of the repository or in a circle."},
		{"a link to itself", "ci.nix->ci.nix", "", "The file ci.nix cannot be evaluated, because it is reached through a symbolic link that leads out of the repository or in a circle."},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for f := range strings.FieldsSeq(test.files) {
				if name, target, ok := strings.Cut(f, "->"); ok {
					if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
						t.Fatal(err)
					}
					continue
				}
				write(t, dir, f, "x")
			}
			got, err := source.FindNixFile(dir)
			if got != test.want {
				t.Errorf("found %q, want %q", got, test.want)
			}
			var project *source.ProjectError
			switch {
			case test.err == "" && err != nil:
				t.Error(err)
			case test.err != "" && (!errors.As(err, &project) || project.Text != test.err):
				t.Errorf("got %v, want %s", err, test.err)
			}
		})
	}
}

func TestEnumerate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ in, want string }{{"", ""}, {"a", "a"}, {"a b", "a or b"}, {"a b c d", "a, b, c or d"}} {
		if got := source.Enumerate(strings.Fields(test.in)); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestSuitableName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"widgets", "a.b", "C++_x?=-", "0"} {
		if !source.SuitableName(name) {
			t.Errorf("%q is not suitable", name)
		}
	}
	for _, name := range []string{"", ".", "..", ".git", "a/b", "a b", "é", "a\n", strings.Repeat("x", 300)} {
		if source.SuitableName(name) {
			t.Errorf("%q is suitable", name)
		}
	}
}

func TestDefaultSystem(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if got, err := source.DefaultSystem(dir); got != "" || err != nil {
		t.Error(got, err)
	}
	write(t, dir, "ci-default-system.txt", "\n aarch64-darwin \n")
	if got, err := source.DefaultSystem(dir); got != "aarch64-darwin" || err != nil {
		t.Error(got, err)
	}
	var project *source.ProjectError
	write(t, dir, "ci-default-system.txt", "x86_64-linux\naarch64-linux")
	if _, err := source.DefaultSystem(dir); !errors.As(err, &project) {
		t.Error(err)
	}
	other := t.TempDir()
	if err := os.Symlink("/etc/hostname", filepath.Join(other, "ci-default-system.txt")); err != nil {
		t.Fatal(err)
	}
	if got, err := source.DefaultSystem(other); !errors.As(err, &project) {
		t.Error(got, err)
	}
}

func TestWorkDirectories(t *testing.T) {
	t.Parallel()
	parent := filepath.Join(t.TempDir(), "not", "there", "yet")
	if removed, err := source.Sweep(parent); err != nil || len(removed) > 0 {
		t.Error(removed, err)
	}
	dir, err := source.NewWorkDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Error(info.Mode(), err)
	}
	// Files that cannot be removed just so, also for users that are not root.
	write(t, dir, "ro/sub/file", "x")
	for _, d := range []string{"ro/sub", "ro"} {
		if err := os.Chmod(filepath.Join(dir, d), 0o500); err != nil {
			t.Fatal(err)
		}
	}
	write(t, parent, "secure/keep", "x")
	write(t, parent, "eval-file", "x")
	removed, err := source.Sweep(parent)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{dir}, removed); d != "" {
		t.Error(d)
	}
	if got := tree(t, parent); got != "eval-file x\nsecure/\nsecure/keep x\n" {
		t.Error(got)
	}
}
