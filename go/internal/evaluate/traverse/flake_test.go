package traverse_test

import (
	"path/filepath"
	"strings"
	"testing"

	"hercules/internal/evaluate/traverse"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

const everyOutput = `
{
  outputs = { self }:
    let
      inherit (import ./common.nix) drv;
      sys = { x86_64-linux = "x"; aarch64-linux = "a"; };
      each = f: builtins.mapAttrs f sys;
      machine = system: {
        options.nixpkgs.hostPlatform.isDefined = false;
        config.nixpkgs.system = system;
        config.system.build.toplevel = drv "machine-${system}" { };
      };
    in
    {
      packages = each (s: n: { default = drv "package-${s}" { }; inherit (self) broken; });
      broken = throw "broken package";
      checks = each (s: n: { c = drv "check-${s}" { }; });
      formatter = each (s: n: drv "formatter-${s}" { });
      devShell = each (s: n: drv "shell-${s}" { });
      devShells = each (s: n: { a = drv "a-${s}" { }; b = "not a derivation"; });
      apps = each (s: n: {
        good = { type = "app"; program = "${drv "app-${s}" { }}/bin/app"; };
        drv = { type = "app"; program = drv "program-${s}" { }; };
        plain = { type = "app"; program = "/bin/sh"; };
        two = { type = "app"; program = "${drv "a" { }}${drv "b" { }}"; };
        wrong = { type = "application"; program = "/bin/sh"; };
      });
      nixosConfigurations.here = machine "x86_64-linux";
      nixosConfigurations.there = machine "aarch64-linux";
      nixosConfigurations.modern = {
        options.nixpkgs.hostPlatform.isDefined = true;
        config.nixpkgs.buildPlatform.system = "x86_64-linux";
        config.system.build.toplevel = drv "modern" { };
      };
      darwinConfigurations.mac = machine "aarch64-darwin";
      templates.good = { description = "d"; path = ./template; };
      templates.noDescription = { path = ./template; };
      templates.noPath = { description = "d"; path = ./missing; };
      effects = { primaryRepo, ref, herculesCI, ciSystems, ... }: {
        deploy = drv "deploy-${if ciSystems == null then "all" else builtins.concatStringsSep "," (builtins.attrNames ciSystems)}" { isEffect = true; };
      };
      overlays = throw "ignored";
      nixosModules = throw "ignored";
      legacyPackages = throw "ignored";
      defaultPackage = throw "ignored";
      lib = throw "ignored";
      hydraJobs = throw "ignored";
    };
}`

func TestFlake(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "flake.nix", everyOutput, "template/file", "x")
		want(t, p.walk(), "config", `onPush "default" flake=true []`)
		p.events = nil
		p.job.Selector = onPush("default")
		p.job.CISystems = []string{"x86_64-linux"}
		golden(t, p.walk())
		for _, ignored := range []string{"lib", "hydraJobs", "defaultPackage"} {
			found := false
			for _, e := range p.log {
				found = found || strings.HasPrefix(e.Text, "trace: Ignoring flake output "+ignored)
			}
			if !found {
				t.Errorf("nothing in the log about %s", ignored)
			}
		}
	})
}

func TestFlakeWithoutSystems(t *testing.T) {
	t.Parallel()
	p := newProject(t, testnix.Versions(t)[0], "flake.nix", everyOutput, "template/file", "x")
	p.job.Selector = onPush("default")
	p.job.Source.OutPath = ""
	golden(t, p.walk())
}

// TestFlakeHerculesCI: what the flake itself says about jobs and systems.
func TestFlakeHerculesCI(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		flake := func(hci string) string {
			return `{ outputs = { self }: let inherit (import ./common.nix) drv; in {
				packages.x86_64-linux.p = drv "p" { };
				packages.aarch64-linux.p = drv "q" { };
				herculesCI = ` + hci + `; }; }`
		}
		p := newProject(t, n, "flake.nix", flake(`{ onPush = { }; }`))
		want(t, p.walk(), "config")

		p = newProject(t, n, "flake.nix", flake(`{ primaryRepo, ... }: { ciSystems = [ "aarch64-linux" ]; onSchedule.${builtins.unsafeDiscardStringContext (builtins.baseNameOf primaryRepo.outPath)}.outputs = { }; }`))
		got := p.walk()
		if len(got) != 3 || !strings.HasSuffix(got[2], `source" flake=true []`) {
			t.Errorf("%q", got)
		}
		p.events = nil
		p.job.Selector = onPush("default")
		p.job.CISystems = []string{"x86_64-linux"}
		want(t, p.walk(), `attribute ["packages" "aarch64-linux" "p"] Regular q.drv`)

		p = newProject(t, n, "flake.nix", flake(`{ ciSystems = "x"; }`))
		p.job.Selector = onPush("default")
		got = p.walk()
		if len(got) == 0 || !strings.Contains(strings.Join(got, "\n"), "Expecting a value of type List, but got type String.") {
			t.Errorf("%q", got)
		}
	})
}

// git makes a repository of the files of the project and gives its commit.
func (p *project) git(dir string, args ...string) string {
	p.t.Helper()
	cmd := p.store.Command("/usr/bin/env", append([]string{"git", "-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		p.t.Skipf("SKIP: git %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

// TestGitFlake: a commit of a repository, with a locked input and an extra input.
func TestGitFlake(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		flake := func(dep string) string {
			return `{
			inputs.dep.url = "git+file://` + dep + `";
			outputs = { self, dep }: let inherit (import ./common.nix) drv; in {
				herculesCI = { primaryRepo, ... }: {
					onPush.a.outputs = { gizmos, ... }: {
						x = drv (builtins.readFile "${gizmos}/name") { };
						rev = drv self.rev { };
						flake = drv gizmos.value { };
						input = drv dep.value { };
					};
				};
			}; }`
		}
		p := newProject(t, n, "flake.nix", "")
		other := filepath.Dir(p.store.File("gizmos/flake.nix", `{ outputs = { self }: { value = "from-gizmos"; }; }`))
		p.store.File("gizmos/name", "gizmo-name")
		p.store.File("project/flake.nix", flake(other))
		commit := func(dir string) string {
			p.git(dir, "init", "-q")
			p.git(dir, "add", "-A")
			p.git(dir, "commit", "-q", "-m", "m")
			return p.git(dir, "rev-parse", "HEAD")
		}
		gizmos := commit(other)
		// Inputs are subject to the restrictions, too.
		p.deps.Evaluator.Settings["allowed-uris"] = "git+file:// file://"
		p.job.AllowedPaths = append(p.job.AllowedPaths, other)
		use := func(rev string) []string {
			p.events = nil
			p.job.Flake = traverse.GitFlakeRef("file://"+p.dir, "refs/heads/main", rev)
			p.job.Selector = agentapi.Selector{OnPush: &agentapi.OnPush{Name: "a", Inputs: agentapi.Map[string, agentapi.ImmutableInput]{
				"gizmos": {Git: &agentapi.ImmutableGitInput{HTTPURL: "file://" + other, Ref: "refs/heads/main", Rev: gizmos}},
			}}}
			return p.walk()
		}
		refused := func(when string, got []string) {
			if len(got) != 1 || !strings.Contains(got[0], `error [] error: the lock file of flake git+file://`) || !strings.Contains(got[0], "nix flake lock") {
				t.Errorf("%s: %q", when, got)
			}
		}
		refused("without lock file", use(commit(p.dir)))

		lock := p.store.Command("nix", "--extra-experimental-features", "nix-command flakes", "flake", "lock", "path:"+p.dir)
		if out, err := lock.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		rev := commit(p.dir)
		want(t, use(rev),
			`attribute ["flake"] Regular from-gizmos.drv`,
			`attribute ["input"] Regular from-gizmos.drv`,
			`attribute ["rev"] Regular `+rev+`.drv`,
			`attribute ["x"] Regular gizmo-name.drv`,
		)
		p.store.File("project/flake.nix", strings.Replace(flake(other), `";`, `?ref=main";`, 1))
		p.git(p.dir, "commit", "-q", "-a", "-m", "another input")
		refused("with an old lock file", use(p.git(p.dir, "rev-parse", "HEAD")))
		if s := p.git(p.dir, "status", "--porcelain"); s != "" {
			t.Errorf("the checkout is changed: %s", s)
		}

		// A local flake is refused without being locked as well.
		p.events = nil
		p.job.Flake = traverse.LocalFlakeRef(p.dir)
		if got := p.walk(); len(got) != 1 || !strings.Contains(got[0], "nix flake lock") {
			t.Errorf("local: %q", got)
		}
		if s := p.git(p.dir, "status", "--porcelain"); s != "" {
			t.Errorf("the checkout is changed: %s", s)
		}
	})
}

// TestFlakeErrors: what is wrong with a flake is an error of the root.
func TestFlakeErrors(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		for text, part := range map[string]string{
			`{ outputs = { self }: throw "no outputs"; }`:                          "no outputs",
			`{ inputs.x.url = "some-registry-name"; outputs = { self, x }: { }; }`: "nix flake lock",
			`{ outputs = { self`: "syntax error",
			`{ outputs = { self }: { herculesCI = throw "in herculesCI"; }; }`:                     "in herculesCI",
			`{ outputs = { self }: { herculesCI = 1; }; }`:                                         "Expecting a value of type Attrs, but got type Int.",
			`{ outputs = { self }: { herculesCI.onPush.default.outputs = throw "in outputs"; }; }`: "in outputs",
		} {
			p := newProject(t, n, "flake.nix", text)
			p.job.Selector = onPush("default")
			got := p.walk()
			if len(got) != 1 || !strings.HasPrefix(got[0], "error [] ") || !strings.Contains(got[0], part) {
				t.Errorf("%s: %q", text, got)
			}
		}
	})
}

func TestGitFlakeRef(t *testing.T) {
	t.Parallel()
	for _, c := range [][4]string{
		{"https://forge.example/a/b.git", "refs/heads/main", "abc", "git+https://forge.example/a/b.git?ref=refs%2Fheads%2Fmain&rev=abc"},
		{"https://forge.example/a?x=1", "", "abc", "git+https://forge.example/a?x=1&rev=abc"},
		{"git@forge.example:a/b.git", "r&rev=evil#x", "", "git+ssh://git@forge.example/a/b.git?ref=r%26rev%3Devil%23x"},
		{"/srv/a b.git", "", "", "git+file:///srv/a%20b.git"},
		{"git+ssh://h/x", "", "", "git+ssh://h/x"},
	} {
		if got := traverse.GitFlakeRef(c[0], c[1], c[2]); got != c[3] {
			t.Errorf("%v: got %s", c, got)
		}
	}
}
