package testnix

import (
	"cmp"
	"context"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// VersionsVariable names a list of directories, separated by colons, that hold further Nixes as SUITE/bin/nix.
// Unset, it is ~/.cache/hercules-nix, which nix-version.sh fills; set and empty, only the Nix of PATH counts.
const VersionsVariable = "HERCULES_NIX_VERSIONS"

// Nix is an installed Nix.
type Nix struct {
	Bin     string // the directory of its programs
	Version string // such as "2.8.0"
}

// Major and minor of the version.
func (n Nix) numbers() (major, minor int) {
	parts := strings.SplitN(n.Version, ".", 3)
	if len(parts) < 2 {
		return 0, 0
	}
	major, _ = strconv.Atoi(parts[0])
	minor, _ = strconv.Atoi(parts[1])
	return major, minor
}

// AtLeast tells whether this Nix is major.minor or newer.
func (n Nix) AtLeast(major, minor int) bool {
	a, b := n.numbers()
	return a > major || a == major && b >= minor
}

var versions = sync.OnceValue(findVersions)

// Versions are the Nixes found: the one of PATH first, then others by version. It skips the test when there is
// none.
func Versions(t testing.TB) []Nix {
	t.Helper()
	found := versions()
	if len(found) == 0 {
		t.Skip("SKIP: no Nix in PATH; on Debian: apt-get install nix-bin")
	}
	return found
}

// ForEachVersion runs a parallel subtest with each Nix found.
func ForEachVersion(t *testing.T, f func(t *testing.T, n Nix)) {
	t.Helper()
	for _, n := range Versions(t) {
		t.Run("nix-"+n.Version, func(t *testing.T) {
			t.Parallel()
			f(t, n)
		})
	}
}

func findVersions() []Nix {
	var found []Nix
	if program, err := exec.LookPath("nix"); err == nil {
		if program, err = filepath.Abs(program); err == nil {
			found = appendNix(found, filepath.Dir(program))
		}
	}
	var others []Nix
	for _, dir := range versionDirs() {
		programs, _ := filepath.Glob(filepath.Join(dir, "*", "bin", "nix"))
		for _, program := range programs {
			others = appendNix(others, filepath.Dir(program))
		}
	}
	slices.SortStableFunc(others, func(a, b Nix) int {
		am, an := a.numbers()
		bm, bn := b.numbers()
		return cmp.Or(cmp.Compare(am, bm), cmp.Compare(an, bn), cmp.Compare(a.Version, b.Version))
	})
	for _, n := range others {
		if !slices.ContainsFunc(found, func(o Nix) bool { return o.Version == n.Version }) {
			found = append(found, n)
		}
	}
	return found
}

func versionDirs() []string {
	if list, set := os.LookupEnv(VersionsVariable); set {
		return filepath.SplitList(list)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	return []string{filepath.Join(cache, "hercules-nix")}
}

// appendNix adds the Nix of a directory when it runs.
func appendNix(list []Nix, bin string) []Nix {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "nix"), "--version").Output()
	if err != nil {
		return list
	}
	fields := strings.Fields(string(out)) // "nix (Nix) 2.8.0"
	if len(fields) == 0 {
		return list
	}
	return append(list, Nix{Bin: bin, Version: fields[len(fields)-1]})
}

// sandboxShell finds a busybox that needs no libraries: the sandbox has none.
var sandboxShell = sync.OnceValues(func() (string, error) {
	program, err := exec.LookPath("busybox")
	if err != nil {
		return "", errors.New("no busybox in PATH; on Debian: apt-get install busybox-static")
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		return "", err
	}
	file, err := elf.Open(program)
	if err != nil {
		return "", err
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return "", errors.New(program + " is not static; on Debian: apt-get install busybox-static")
		}
	}
	return program, nil
})
