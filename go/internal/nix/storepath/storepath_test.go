package storepath_test

import (
	"encoding/hex"
	"strings"
	"testing"

	gonix "github.com/nix-community/go-nix/pkg/storepath"

	"hercules/internal/nix/storepath"
	"hercules/internal/testnix"
)

const hash = "00bgd045z0d4icpbc2yyz4gx48ak44la"

func TestValid(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]bool{
		"/nix/store/" + hash + "-hello-1.0+x_y?z=Q":               true,
		"/nix/store/" + hash + "-.hidden":                         true,
		"/nix/store/" + hash + "-...":                             true,
		"/nix/store/" + hash + "-" + strings.Repeat("a", 211):     true,
		"/nix/store/" + hash + "-" + strings.Repeat("a", 212):     false,
		"/nix/store/" + hash + "-":                                false,
		"/nix/store/" + hash:                                      false,
		"/nix/store/" + hash + "-.":                               false,
		"/nix/store/" + hash + "-..":                              false,
		"/nix/store/" + hash + "-.-x":                             false,
		"/nix/store/" + hash + "-..-x":                            false,
		"/nix/store/" + hash + "-a b":                             false,
		"/nix/store/" + hash + "-a/b":                             false,
		"/nix/store/" + hash + "-ä":                               false,
		"/nix/store/" + hash + "-a\x00":                           false,
		"/nix/store/" + strings.Replace(hash, "0", "e", 1) + "-x": false,
		"/nix/store/" + strings.ToUpper(hash) + "-x":              false,
		"/nix/store/../etc/passwd":                                false,
		"/nix/store/":                                             false,
		"/nix/store":                                              false,
		"/gnu/store/" + hash + "-x":                               false,
		hash + "-x":                                               false,
		"":                                                        false,
	} {
		if got := storepath.Valid(path); got != want {
			t.Errorf("Valid(%q) = %t", path, got)
		}
		if err := storepath.Check(path); (err == nil) != want {
			t.Errorf("Check(%q) = %v", path, err)
		}
	}
}

func TestParts(t *testing.T) {
	t.Parallel()
	const path = "/nix/store/" + hash + "-net-tools-1.60.drv"
	for _, c := range []struct{ what, got, want string }{
		{"Base", storepath.Base(path), hash + "-net-tools-1.60.drv"},
		{"Name", storepath.Name(path), "net-tools-1.60.drv"},
		{"HashPart", storepath.HashPart(path), hash},
		{"Name of nothing", storepath.Name(""), ""},
		{"HashPart of nothing", storepath.HashPart("/nix/store/x"), "x"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %q, want %q", c.what, c.got, c.want)
		}
	}
	if !storepath.IsDerivation(path) || storepath.IsDerivation("/nix/store/"+hash+"-x") {
		t.Error("IsDerivation")
	}
	if got, ok := storepath.Of(path + "/bin/x"); !ok || got != path {
		t.Errorf("Of gives %q, %t", got, ok)
	}
	if got, ok := storepath.Of("/nix/store/.links/x"); ok {
		t.Errorf("Of(.links) gives %q", got)
	}
	if got, err := storepath.ParseBase(hash + "-x"); err != nil || got != "/nix/store/"+hash+"-x" {
		t.Errorf("ParseBase: %q, %v", got, err)
	}
}

func TestPathsAreThoseOfNix(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		a := s.Run("nix-instantiate", "--eval", "--strict", "--expr", `builtins.toFile "a" "one\n"`)
		a = strings.Trim(a, `"`)
		b := strings.Trim(s.Run("nix-instantiate", "--eval", "--strict", "--expr",
			`builtins.toFile "b" "see ${builtins.toFile "a" "one\n"}"`), `"`)
		if got, err := storepath.MakeTextPath("a", "one\n", nil); err != nil || got != a {
			t.Errorf("text: %q, %v; Nix has %q", got, err, a)
		}
		if got, err := storepath.MakeTextPath("b", "see "+a, []string{a, a}); err != nil || got != b {
			t.Errorf("text with reference: %q, %v; Nix has %q", got, err, b)
		}

		file := s.File("f", "contents")
		for _, c := range []struct {
			algo      string
			recursive bool
		}{{"sha256", false}, {"sha256", true}, {"sha1", false}, {"sha1", true}, {"sha512", true}, {"md5", false}} {
			args, hashArgs := []string{"--add-fixed"}, []string{"--type", c.algo}
			if c.recursive {
				args = append(args, "--recursive")
			} else {
				hashArgs = append(hashArgs, "--flat")
			}
			want := s.Run("nix-store", append(args, c.algo, file)...)
			sum, err := hex.DecodeString(s.Run("nix-hash", append(hashArgs, file)...))
			if err != nil {
				t.Fatal(err)
			}
			got, err := storepath.MakeFixedOutputPath("f", c.recursive, c.algo, sum, nil)
			if err != nil || got != want {
				t.Errorf("%v: %q, %v; Nix has %q", c, got, err, want)
			}
		}
	})
	if got, err := storepath.MakeTextPath("a b", "", nil); err == nil {
		t.Errorf("a path with a space in its name: %q", got)
	}
}

func FuzzValid(f *testing.F) {
	f.Add("/nix/store/" + hash + "-hello")
	f.Add("/nix/store/" + hash + "-..")
	f.Add("/nix/store/" + hash + "-a/b")
	f.Fuzz(func(t *testing.T, path string) {
		if !storepath.Valid(path) {
			return
		}
		if got := "/nix/store/" + storepath.HashPart(path) + "-" + storepath.Name(path); got != path {
			t.Errorf("the parts of %q make %q", path, got)
		}
		if strings.Contains(storepath.Base(path), "/") {
			t.Errorf("%q has a slash in its base", path)
		}
		if _, err := gonix.FromAbsolutePath(path); err != nil && len(storepath.Name(path)) < 200 {
			t.Errorf("go-nix refuses %q: %v", path, err)
		}
	})
}
