package house_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// moduleRoot is the directory of go.mod, seen from here.
var moduleRoot = filepath.Join("..", "..")

const module = "hercules/"

// layers says which parts of internal/ a part may import, besides its own packages. What is not named here is not
// allowed: a new part gets its line.
var layers = map[string][]string{
	// Leaves.
	"atomicfile": {}, "logging": {}, "proc": {}, "systemd": {}, "version": {},
	// Messages and transport, which do no work; Nix without a word of CI.
	"wire":    {},
	"nix":     {"proc", "atomicfile"},
	"formats": {"wire"},
	// Files of operators.
	"config":  {"formats", "atomicfile"},
	"secrets": {"formats", "config", "atomicfile"},
	// The kinds of work.
	"tasklog":  {"wire", "nix"},
	"evaluate": {"tasklog", "wire", "nix", "secrets", "proc", "atomicfile", "version"},
	"push":     {"nix", "secrets", "formats", "proc", "atomicfile"},
	"build":    {"tasklog", "wire", "nix", "secrets", "proc", "atomicfile", "version"},
	// The two ends of the protocol do not know each other.
	"agent":       {"evaluate", "build", "push", "tasklog", "wire", "nix", "config", "secrets", "formats", "proc", "atomicfile", "systemd", "logging", "version"},
	"coordinator": {"tasklog", "wire", "nix", "secrets", "formats", "atomicfile", "logging", "version"},
	"cli":         {"agent", "coordinator", "evaluate", "build", "push", "tasklog", "wire", "nix", "config", "secrets", "formats", "proc", "atomicfile", "systemd", "logging", "version"},
	// For tests alone.
	"testnix": {"nix", "proc"}, "bench": {}, "house": {},
}

// testOnly may be imported by tests alone, and by each other.
var testOnly = []string{"testnix", "fake", "bench", "house"}

// large packages, with the reason.
var large = map[string]string{
	"internal/nix/daemon":        "client and proxy are two ends of one codec with some fifty operations; parted, the codec would have to be exported",
	"internal/coordinator/cache": "uploads by two protocols, publishing and collecting share the locks that keep closures whole, which nobody else may hold",
	"internal/coordinator/plan":  "the decisions of the coordinator share one state, and nothing of it is to be seen from outside",
	"internal/evaluate/traverse": "the two ways to walk share commands and batching, and their Nix is beside them",
}

const maxLines = 1500

type pkg struct {
	dir     string              // from the root of the module
	imports map[string][]string // of its own module, by file; without tests
	doc     string
	name    string
	lines   int
}

// packages parses all packages of the module, for every platform.
func packages(t *testing.T) []*pkg {
	t.Helper()
	found := map[string]*pkg{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(moduleRoot, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "tools") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, file, src, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(moduleRoot, filepath.Dir(file))
		if err != nil {
			return err
		}
		p := found[rel]
		if p == nil {
			p = &pkg{dir: filepath.ToSlash(rel), imports: map[string][]string{}, name: f.Name.Name}
			found[rel] = p
		}
		p.doc += f.Doc.Text()
		if !ast.IsGenerated(f) {
			p.lines += codeLines(src)
		}
		for _, imp := range f.Imports {
			if to, ok := strings.CutPrefix(strings.Trim(imp.Path.Value, `"`), module); ok {
				p.imports[filepath.Base(file)] = append(p.imports[filepath.Base(file)], to)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []*pkg
	for _, p := range found {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pkg) int { return strings.Compare(a.dir, b.dir) })
	if len(all) < 10 {
		t.Fatalf("only %d packages found", len(all))
	}
	return all
}

// codeLines counts the lines that are neither blank nor a comment alone: explaining more must cost nothing.
func codeLines(src []byte) int {
	n := 0
	for line := range bytes.Lines(src) {
		if line = bytes.TrimSpace(line); len(line) > 0 && !bytes.HasPrefix(line, []byte("//")) {
			n++
		}
	}
	return n
}

// part is the first name below internal/, or "cmd".
func part(dir string) string {
	rest, ok := strings.CutPrefix(dir, "internal/")
	if !ok {
		rest = dir
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

func TestImportsGoDown(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		from := part(p.dir)
		allowed, known := layers[from]
		if from == "cmd" {
			allowed, known = []string{"cli", "agent", "config", "secrets", "proc", "systemd", "logging", "version"}, true
		}
		if !known {
			t.Errorf("%s: no line for %q in the layers of this test: which parts may it import?", p.dir, from)
			continue
		}
		for file, imports := range p.imports {
			for _, to := range imports {
				if target := part(to); target != from && !slices.Contains(allowed, target) {
					t.Errorf("%s/%s imports %s: %s may import %v", p.dir, file, to, from, allowed)
				}
			}
		}
	}
}

// TestLayersHaveNoCircle: a table that allows a circle would be no order.
func TestLayersHaveNoCircle(t *testing.T) {
	t.Parallel()
	var visit func(name string, path []string)
	visit = func(name string, path []string) {
		if slices.Contains(path, name) {
			t.Fatalf("a circle: %v", append(path, name))
		}
		for _, to := range layers[name] {
			if _, ok := layers[to]; !ok {
				t.Errorf("%s may import %s, which is not there", name, to)
			}
			visit(to, append(slices.Clone(path), name))
		}
	}
	for name := range layers {
		visit(name, nil)
	}
}

func TestTestPackagesAreForTests(t *testing.T) {
	t.Parallel()
	isTest := func(dir string) bool {
		return slices.ContainsFunc(strings.Split(dir, "/"), func(s string) bool {
			return slices.ContainsFunc(testOnly, func(name string) bool { return s == name || name == "fake" && strings.HasPrefix(s, "fake") })
		})
	}
	for _, p := range packages(t) {
		for file, imports := range p.imports {
			for _, to := range imports {
				if isTest(to) && !isTest(p.dir) {
					t.Errorf("%s/%s imports %s, which is for tests", p.dir, file, to)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		want := "Package " + p.name + " "
		if p.name == "main" {
			want = "Command " + path.Base(p.dir) + " "
		}
		if !strings.HasPrefix(p.doc, want) {
			t.Errorf("%s: its doc comment does not begin with %q", p.dir, want)
		}
	}
}

func TestNoPackageIsTooLarge(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		switch {
		case p.lines <= maxLines && large[p.dir] != "":
			t.Errorf("%s has %d lines of code and needs no reason any more", p.dir, p.lines)
		case p.lines > maxLines && large[p.dir] == "":
			t.Errorf("%s has %d lines of code, more than %d: split it, or give the reason in this test", p.dir, p.lines, maxLines)
		}
	}
}

// TestFilesNameNoMachine: neither the directory that this checkout happens to be in, nor the hosts that modules happen
// to come from, belong in any file. Checksum files are made by tools.
func TestFilesNameNoMachine(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs(filepath.Join(moduleRoot, ".."))
	if err != nil {
		t.Fatal(err)
	}
	proxies, err := exec.CommandContext(t.Context(), "go", "env", "GOPROXY").Output()
	if err != nil {
		t.Fatal(err)
	}
	var hosts []string
	for _, m := range regexp.MustCompile(`https?://([^/,|\s]+)`).FindAllStringSubmatch(string(proxies), -1) {
		hosts = append(hosts, m[1])
	}
	unfinished := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)
	for _, file := range tracked(t, root) {
		content, err := os.ReadFile(filepath.Join(root, file))
		if err != nil || bytes.IndexByte(content, 0) >= 0 {
			continue // removed on disk, or not text
		}
		// A checkout in / or /src says nothing about a machine, nor does a directory above it such as /root or /tmp.
		if strings.Count(root, "/") > 1 && bytes.Contains(content, []byte(root)) {
			t.Errorf("%s names the directory of this checkout, %s", file, root)
		}
		for _, host := range hosts {
			if bytes.Contains(content, []byte(host)) && !strings.HasSuffix(file, ".sum") {
				t.Errorf("%s names the host %s", file, host)
			}
		}
		if m := unfinished.Find(content); m != nil && strings.HasSuffix(file, ".go") {
			t.Errorf("%s says %s; write down the work elsewhere", file, m)
		}
	}
}

func tracked(t *testing.T, root string) []string {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("SKIP: no git")
	}
	out, err := exec.CommandContext(t.Context(), "git", "-C", root, "ls-files", "-z").Output()
	if err != nil {
		t.Skip("SKIP: this is no git checkout: ", err)
	}
	files := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if len(files) < 10 {
		t.Fatalf("only %d files", len(files))
	}
	return files
}
