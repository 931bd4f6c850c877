// Package source gets the sources of an evaluation onto the disk: it makes the work directory, downloads and unpacks
// the archives that a task names, and finds the Nix file to evaluate.
//
// Archives come from repositories that anybody may write to, so nothing in them is trusted. The package must not know
// how an evaluation goes on from there, and it never copies a source into the Nix store: the path of a checkout, with
// the repository's name as its last part, is visible to expressions.
package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// SuitableName says whether an input's metadata "name" may be the name of its directory: agent behaviour, section 3.2.
func SuitableName(name string) bool {
	if name == "" || len(name) > 200 || name[0] == '.' {
		return false
	}
	for i := range len(name) {
		c := name[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && !strings.ContainsRune("+._?=-", rune(c)) {
			return false
		}
	}
	return true
}

func validInputName(name string) bool {
	return name != "" && len(name) <= 200 && !strings.ContainsAny(name, "/\x00")
}

// ProjectError is a mistake in the repository that its people must mend. It is reported as a message of an
// evaluation that as such went well.
type ProjectError struct{ Text string }

func (e *ProjectError) Error() string { return e.Text }

// The Nix files that are looked for, in groups of descending priority: agent behaviour, section 3.3.
var nixFiles = [][]string{{"nix/ci.nix", "ci.nix"}, {"flake.nix"}, {"default.nix"}}

// FindNixFile finds the file to evaluate in a source and returns its path below dir, with slashes. Its failure is a
// *ProjectError unless the directory cannot be read.
func FindNixFile(dir string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	var all []string
	for _, group := range nixFiles {
		all = append(all, group...)
		var found []string
		for _, name := range group {
			ok, err := isFile(root, name)
			if err != nil {
				return "", err
			}
			if ok {
				found = append(found, name)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return "", &ProjectError{fmt.Sprintf("It is not clear which file to evaluate, because the repository has several. "+
				"Keep only one of %s.", Enumerate(found))}
		}
	}
	return "", &ProjectError{fmt.Sprintf("There is nothing to evaluate: the repository has no file %s.", Enumerate(all))}
}

func isFile(root *os.Root, name string) (bool, error) {
	info, err := root.Stat(name)
	switch {
	case err == nil:
		return info.Mode().IsRegular(), nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return false, nil
	}
	if _, lerr := root.Lstat(name); lerr == nil || strings.Contains(err.Error(), "path escapes") {
		return false, &ProjectError{fmt.Sprintf("The file %s cannot be evaluated, because it is reached through a symbolic link "+
			"that leads out of the repository or in a circle.", name)}
	}
	return false, err
}

// Enumerate joins names the way messages do: "a, b, c or d".
func Enumerate(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// systemFile names the system for which a project is evaluated by default.
const systemFile = "ci-default-system.txt"

// DefaultSystem is what the source's ci-default-system.txt says, or empty.
func DefaultSystem(dir string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if ok, err := isFile(root, systemFile); !ok {
		return "", err
	}
	f, err := root.Open(systemFile)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", systemFile, err)
	}
	system := strings.TrimSpace(string(text))
	for i := range len(system) {
		if c := system[i]; c <= ' ' || c > '~' || len(system) > 100 {
			return "", &ProjectError{fmt.Sprintf("The file %s must contain the name of one system, like x86_64-linux.", systemFile)}
		}
	}
	return system, nil
}

// workPrefix begins the names of evaluations' work directories.
const workPrefix = "eval-"

// NewWorkDir makes a private directory below parent, which is made when it is missing.
func NewWorkDir(parent string) (string, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", fmt.Errorf("making the work directory: %w", err)
	}
	dir, err := os.MkdirTemp(parent, workPrefix) // mode 0700
	if err != nil {
		return "", fmt.Errorf("making a directory for this evaluation: %w", err)
	}
	// The evaluator compares paths with links resolved.
	return filepath.EvalSymlinks(dir)
}

// Sweep removes what evaluations of an earlier run of the agent left below parent. Call it before any evaluation
// starts. It returns what it removed.
func Sweep(parent string) (removed []string, err error) {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), workPrefix) {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		if err := RemoveAll(dir); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, dir)
	}
	return removed, errors.Join(errs...)
}

// RemoveAll is os.RemoveAll for trees with directories that their owner may not write to.
func RemoveAll(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	if root, err := os.OpenRoot(filepath.Dir(dir)); err == nil {
		defer root.Close()
		unlock(root, filepath.Base(dir))
	}
	return os.RemoveAll(dir)
}

// unlock makes a directory and those below it writable. It follows no links.
func unlock(root *os.Root, name string) {
	info, err := root.Lstat(name)
	if err != nil || !info.IsDir() {
		return
	}
	_ = root.Chmod(name, 0o700)
	sub, err := root.OpenRoot(name)
	if err != nil {
		return
	}
	defer sub.Close()
	d, err := sub.Open(".")
	if err != nil {
		return
	}
	entries, _ := d.ReadDir(-1)
	d.Close()
	for _, e := range entries {
		if e.IsDir() {
			unlock(sub, e.Name())
		}
	}
}
