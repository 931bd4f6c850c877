package derivation_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	gonix "github.com/nix-community/go-nix/pkg/derivation"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/derivation"
	"hercules/internal/nix/storepath"
	"hercules/internal/testnix"
)

const hash = "00bgd045z0d4icpbc2yyz4gx48ak44la"

func TestForms(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.drv")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		d, err := derivation.Parse(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := string(d.Append(nil)); got != string(text) {
			t.Errorf("%s is written as\n%s", name, got)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	d, err := derivation.Parse([]byte(`Derive([("dev","/nix/store/` + hash + `-x-dev","",""),("out","","r:sha256","")],` +
		`[("/nix/store/` + hash + `-a.drv",["dev","out"])],["/nix/store/` + hash + `-src"],"x86_64-linux","/bin/sh",` +
		`["-c","echo \"a\\b\"\n\t\r\q"],[("bytes","` + "\xff\x00" + `"),("requiredSystemFeatures"," kvm\tbig-parallel kvm ")])`))
	if err != nil {
		t.Fatal(err)
	}
	want := &derivation.Derivation{
		Outputs: map[string]derivation.Output{
			"dev": {Path: "/nix/store/" + hash + "-x-dev"},
			"out": {HashAlgo: "r:sha256"},
		},
		InputDrvs: map[string][]string{"/nix/store/" + hash + "-a.drv": {"dev", "out"}},
		InputSrcs: []string{"/nix/store/" + hash + "-src"},
		Platform:  "x86_64-linux", Builder: "/bin/sh",
		Args: []string{"-c", "echo \"a\\b\"\n\t\rq"},
		Env:  map[string]string{"bytes": "\xff\x00", "requiredSystemFeatures": " kvm\tbig-parallel kvm "},
	}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"big-parallel", "kvm"}, d.RequiredSystemFeatures()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"dev": "/nix/store/" + hash + "-x-dev"}, d.OutputPaths()); diff != "" {
		t.Error(diff)
	}
	if d.IsFixed() || d.HasKnownPaths() {
		t.Error("a floating output is taken for a fixed or known one")
	}
	in := "/nix/store/" + hash + "-in"
	b := d.ToBasic([]string{in, in})
	if diff := cmp.Diff([]string{in, "/nix/store/" + hash + "-src"}, b.Inputs); diff != "" {
		t.Error(diff)
	}
	if got := b.Outputs["out"]; got != (daemon.DerivationOutput{HashAlgo: "r:sha256"}) {
		t.Errorf("output of the basic derivation: %v", got)
	}
}

func TestDynamicInputs(t *testing.T) {
	t.Parallel()
	const text = `DrvWithVersion("xp-dyn-drv",[("out","","","")],[("/a.drv",["out"]),` +
		`("/b.drv",(["x"],[("out",["dev","out"]),("out2",([],[("deep",["out"])]))]))],[],"s","b",[],[])`
	d, err := derivation.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]derivation.DynamicInput{"/b.drv": {
		"out":  {Outputs: []string{"dev", "out"}},
		"out2": {Dynamic: map[string]derivation.DynamicInput{"deep": {Outputs: []string{"out"}}}},
	}}
	if diff := cmp.Diff(want, d.DynamicInputs); diff != "" {
		t.Error(diff)
	}
	if got := string(d.Append(nil)); got != text {
		t.Errorf("written as %s", got)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	const good = `Derive([("out","/o","","")],[],[],"s","b",["a\n"],[("k","v")])`
	if _, err := derivation.Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for i := range len(good) {
		if _, err := derivation.Parse([]byte(good[:i])); err == nil {
			t.Errorf("cut after %d bytes is taken: %s", i, good[:i])
		}
	}
	for text, want := range map[string]string{
		good + "x": "1 bytes after the end",
		"":         "does not begin with",
		strings.Replace(good, `("k","v")`, `("k","v"),("k","w")`, 1):                 `variable "k" twice`,
		strings.Replace(good, `("out",`, `("out","/o","",""),("out",`, 1):            `output "out" twice`,
		strings.Replace(good, `,[],[],`, `,[("/a",[]),("/a",[])],[],`, 1):            `input "/a" twice`,
		strings.Replace(good, `,[],[],`, `,[("/a",([],[]))],[],`, 1):                 `expected '['`,
		strings.Replace(good, `"s","b"`, `"s",,"b"`, 1):                              `expected '"', found ','`,
		`DrvWithVersion("2",[],[],[],"","",[],[])`:                                   `unknown version "2"`,
		`DrvWithVersion("xp-dyn-drv",[],[("/a",` + strings.Repeat(`([],[("o",`, 100): "nested deeper",
	} {
		_, err := derivation.Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
}

func TestStructuredAttrs(t *testing.T) {
	t.Parallel()
	d := &derivation.Derivation{Env: map[string]string{
		"__json": `{"requiredSystemFeatures":["kvm","a b"],"name":"x","n":1}`, "requiredSystemFeatures": "not this",
	}}
	if diff := cmp.Diff([]string{"a b", "kvm"}, d.RequiredSystemFeatures()); diff != "" {
		t.Error(diff)
	}
	if got, ok := d.Attr("name"); !ok || got != "x" {
		t.Errorf("name: %q, %t", got, ok)
	}
	if got, ok := d.Attr("n"); ok {
		t.Errorf("a number as text: %q", got)
	}
	d.Env["__json"] = "{"
	if got := d.RequiredSystemFeatures(); got != nil {
		t.Errorf("features of malformed attributes: %q", got)
	}
	if _, ok, err := d.StructuredAttrs(); !ok || err == nil {
		t.Error("malformed attributes are taken")
	}
}

// fixtures is an expression with what is unusual in derivations; extra needs ca-derivations.
const fixtures = `rec {
  plain = sh "plain" { outputs = [ "out" "dev" ]; requiredSystemFeatures = [ "kvm" ]; } "echo \"q\" 'x' \\n \t\${x}";
  dependent = sh "dependent" { inherit plain; dev = plain.dev; src = builtins.toFile "src" "s"; } "echo\nmany\r\nlines";
  fixed = sh "fixed" { outputHash = "0000000000000000000000000000000000000000000000000000"; outputHashAlgo = "sha256"; outputHashMode = "recursive"; } "";
  structured = sh "structured" { __structuredAttrs = true; requiredSystemFeatures = [ "a" ]; l = [ 1 { x = "ü\n"; } ]; } "";
}`

func TestDerivationsOfNix(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n), testnix.WithConfig("extra-experimental-features = ca-derivations"))
		drvs := strings.Fields(s.Instantiate(strings.TrimSuffix(fixtures, "}") + `
			floating = sh "floating" { __contentAddressed = true; outputHashAlgo = "sha256"; outputHashMode = "recursive"; } "";
			deferred = sh "deferred" { inherit floating; } "";
		}`))
		if len(drvs) != 6 {
			t.Fatalf("%d derivations", len(drvs))
		}
		show := []string{"derivation", "show"}
		if !n.AtLeast(2, 14) {
			show = []string{"show-derivation"}
		}
		for _, path := range drvs {
			d, err := derivation.Read(s.Root(), path)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(s.Real(path))
			if err != nil {
				t.Fatal(err)
			}
			if got := d.Append(nil); string(got) != string(text) {
				t.Errorf("%s is\n%s\nand is written as\n%s", path, text, got)
			}
			refs := slices.Concat(d.InputSrcs, slices.Collect(maps.Keys(d.InputDrvs)))
			if got, err := storepath.MakeTextPath(storepath.Name(path), string(text), refs); err != nil || got != path {
				t.Errorf("path of %s computed as %q, %v", path, got, err)
			}
			compareShown(t, d, s.Run("nix", append(show, path)...))
			switch storepath.Name(path) {
			case "fixed.drv":
				if !d.IsFixed() || !d.HasKnownPaths() {
					t.Errorf("%s is not seen as fixed", path)
				}
			case "floating.drv", "deferred.drv":
				if d.IsFixed() || d.HasKnownPaths() {
					t.Errorf("%s is not seen as one with unknown paths", path)
				}
			case "structured.drv":
				if diff := cmp.Diff([]string{"a"}, d.RequiredSystemFeatures()); diff != "" {
					t.Error(diff)
				}
			case "plain.drv":
				if diff := cmp.Diff([]string{"kvm"}, d.RequiredSystemFeatures()); diff != "" {
					t.Error(diff)
				}
			}
		}
	})
}

// compareShown compares with nix show-derivation, whose JSON has had several forms.
func compareShown(t *testing.T, d *derivation.Derivation, shown string) {
	t.Helper()
	type member struct {
		Args    []string
		Builder string
		System  string
		Env     map[string]string
		Outputs map[string]struct{ Path string }
	}
	var document map[string]json.RawMessage
	if err := json.Unmarshal([]byte(shown), &document); err != nil {
		t.Fatal(err)
	}
	if inner, ok := document["derivations"]; ok { // since Nix 2.32, with a version beside it
		document = nil
		if err := json.Unmarshal(inner, &document); err != nil {
			t.Fatal(err)
		}
	}
	if len(document) != 1 {
		t.Fatalf("nix shows %d derivations", len(document))
	}
	for _, raw := range document {
		var m member
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		env := maps.Clone(d.Env)
		if _, ok := m.Env["__json"]; !ok {
			delete(env, "__json") // newer Nix shows the attributes apart
		}
		got := member{Args: d.Args, Builder: d.Builder, System: d.Platform, Env: env, Outputs: m.Outputs}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Error(diff)
		}
		for name, o := range m.Outputs {
			if o.Path == "" {
				continue // not known, or fixed and left out by newer Nix
			}
			if have := d.Outputs[name].Path; strings.TrimPrefix(have, "/nix/store/") != strings.TrimPrefix(o.Path, "/nix/store/") {
				t.Errorf("output %s: %q, Nix shows %q", name, have, o.Path)
			}
		}
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, "nix/store")
	if err := os.MkdirAll(filepath.Join(dir, hash+"-dir.drv"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/etc/passwd", "/nix/store/" + hash + "-x", "/nix/store/" + hash + "-dir.drv"} {
		if _, err := derivation.Read(root, path); err == nil {
			t.Errorf("%s was read", path)
		}
	}
	if _, err := derivation.Read(root, "/nix/store/"+hash+"-x.drv"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.drv")
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`Derive([],[],[],"","",[],[])`))
	f.Add([]byte(`DrvWithVersion("xp-dyn-drv",[],[("/b",(["x"],[("out",["y"])]))],[],"","",["\\\""],[])`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := derivation.Parse(text)
		if err != nil {
			return
		}
		written := d.Append(nil)
		again, err := derivation.Parse(written)
		if err != nil {
			t.Fatalf("what was written is refused: %v\n%s", err, written)
		}
		if second := again.Append(nil); string(second) != string(written) {
			t.Errorf("written twice:\n%s\n%s", written, second)
		}
	})
}

func TestAgreesWithGoNix(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/typical.drv")
	if err != nil {
		t.Fatal(err)
	}
	d, err := derivation.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	other, err := gonix.ReadDerivation(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(other.Env, d.Env); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(other.InputDerivations, d.InputDrvs); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkParse(b *testing.B) {
	text, err := os.ReadFile("testdata/typical.drv")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := derivation.Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	text, err := os.ReadFile("testdata/typical.drv")
	if err != nil {
		b.Fatal(err)
	}
	d, err := derivation.Parse(text)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, 2*len(text))
	b.ReportAllocs()
	for b.Loop() {
		buf = d.Append(buf[:0])
	}
}
