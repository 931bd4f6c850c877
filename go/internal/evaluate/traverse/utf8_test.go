package traverse_test

import (
	"os"
	"path/filepath"
	"testing"

	"hercules/internal/testnix"
)

// TestNamesThatAreNotUTF8 come from names of files. Nothing can be said about such an attribute in JSON, but the
// others are there.
func TestNamesThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			let inherit (import ./common.nix) drv; in
			{
			  a = drv "a" { };
			  files = builtins.mapAttrs (_: _: drv "x" { }) (builtins.readDir ./files) // { recurseForDerivations = true; };
			  z = drv "z" { };
			}`, "files/b", "", "files/c", "")
		if err := os.WriteFile(filepath.Join(p.dir, "files", "b\xff"), nil, 0o644); err != nil {
			t.Skipf("SKIP: this file system wants UTF-8: %v", err)
		}
		got := p.walk()
		if len(got) < 3 || got[0] != `attribute ["a"] Regular a.drv` || got[len(got)-1] != `attribute ["z"] Regular z.drv` {
			t.Errorf("%q", got)
		}
	})
}
