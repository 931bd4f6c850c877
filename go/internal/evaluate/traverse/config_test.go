package traverse_test

import (
	"testing"

	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

const configRepo = `
{ src }:
let inherit (import ./common.nix) drv; in
{
  ignored = throw "not looked at when there is herculesCI";
  herculesCI = { ref, branch, tag, rev, shortRev, primaryRepo, herculesCI, ... }: {
    onPush.b.outputs = throw "outputs are not evaluated here";
    onPush.a = {
      extraInputs.gizmos = { project = "gizmos"; ref = "refs/heads/stable"; };
      extraInputs.tools.project = "tools";
      outputs = { gizmos ? null, ... }: {
        packages = { z = drv "z" { }; a = drv "a" { }; };
        effects.deploy = drv "deploy" { isEffect = true; };
        notEffects.deploy = drv "deploy" { isEffect = true; };
        stop = { recurseForDerivations = false; x = throw "never"; };
        go = { recurseForDerivations = true; x = drv "x" { }; };
        typed = { _type = throw "not evaluated"; x = throw "never"; };
        functor = { __functor = throw "never called"; y = drv "y" { }; };
        broken = { x = throw "broken x"; y = drv "yy" { }; };
        lists = [ (throw "never") ];
        function = x: throw "never";
        args = drv "args" {
          text = "${ref} ${branch} ${builtins.toJSON tag} ${rev} ${shortRev} ${primaryRepo.outPath} ${primaryRepo.remoteHttpUrl} ${herculesCI.apiBaseUrl} ${builtins.toJSON herculesCI.ciSystems}";
        };
        d1.d2.d3.d4.d5.d6.d7.d8.d9 = { d10 = drv "ten" { }; e10 = { d11 = drv "eleven" { }; }; f10 = { }; };
      };
    };
    onPush.off = { enable = false; outputs = { x = drv "off" { }; }; };
    onSchedule.nightly = {
      extraInputs.tools.project = "tools";
      when = { minute = 37; hour = [ 2 14 ]; dayOfWeek = [ "mon" "SUN" "Tue" ]; dayOfMonth = [ 0 31 ]; };
      outputs = { n = drv "n" { }; };
    };
    onSchedule.hourly = { when = { hour = 3; minute = null; }; outputs = { }; };
    onSchedule.any = { outputs = { }; };
    onSchedule.null = { when = null; outputs = { }; };
    unknown = throw "not looked at";
  };
}`

func onPush(name string) agentapi.Selector {
	return agentapi.Selector{OnPush: &agentapi.OnPush{Name: name}}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "ci.nix", configRepo)
		golden(t, p.walk())
	})
}

func TestOnPush(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "ci.nix", configRepo)
		p.job.Selector = onPush("a")
		p.job.CISystems = []string{"x86_64-linux"}
		golden(t, p.walk())
	})
}

func TestDisabledHandlerRunsWhenAskedFor(t *testing.T) {
	t.Parallel()
	p := newProject(t, testnix.Versions(t)[0], "ci.nix", configRepo)
	p.job.Selector = onPush("off")
	golden(t, p.walk())
}

func TestOnSchedule(t *testing.T) {
	t.Parallel()
	p := newProject(t, testnix.Versions(t)[0], "ci.nix", configRepo)
	p.job.Selector = agentapi.Selector{OnSchedule: &agentapi.OnSchedule{Name: "nightly"}}
	golden(t, p.walk())
}

// TestSchema has what people get wrong in herculesCI.
func TestSchema(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text     string
		selector agentapi.Selector
		want     []string
	}{
		"not a set": {"{ herculesCI = [ ]; }", agentapi.Selector{}, []string{
			"config",
			`error [] error: Expecting a value of type Attrs, but got type List.
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"function gives a string": {`{ herculesCI = { ... }: "x"; }`, agentapi.Selector{}, []string{
			"config",
			`error [] error: Expecting a value of type Attrs, but got type String.
in function result
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"missing handler": {`{ herculesCI = { onPush.a.outputs = { }; }; }`, onPush("b"), []string{
			`error [] error: Attribute "b" is missing.
in attribute "onPush"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"handler with a strange name": {`{ herculesCI = { onPush = { }; }; }`, onPush("a\"b${c}\n\\"), []string{
			`error [] error: Attribute "a\"b${c}\n\\" is missing.
in attribute "onPush"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"no onPush": {`{ herculesCI = { }; }`, onPush("b"), []string{
			`error [] error: Attribute "onPush" is missing.
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"no outputs": {`{ herculesCI.onPush.b = { }; }`, onPush("b"), []string{
			`error [] error: Attribute "outputs" is missing.
in attribute "b"
in attribute "onPush"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"outputs give a list": {`{ herculesCI.onPush.b.outputs = { ... }: [ ]; }`, onPush("b"), []string{
			`error [] error: Expecting a value of type Attrs, but got type List.
in function result
in attribute "outputs"
in attribute "b"
in attribute "onPush"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"handlers before a wrong one": {`{ herculesCI.onPush = { a.outputs = { }; b.enable = 1; }; }`, agentapi.Selector{}, []string{
			"config",
			`onPush "a" flake=false []`,
			`error [] error: Expecting a value of type Bool, but got type Int.
in attribute "enable"
in attribute "b"
in attribute "onPush"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"project is missing": {`{ herculesCI.onPush.a.extraInputs.x = { }; }`, agentapi.Selector{}, []string{
			"config",
			`error [] error: Attribute "project" is missing.
in attribute "x"
in attribute "extraInputs"
in attribute "a"
in attribute "onPush"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"project has context": {`{ herculesCI.onPush.a.extraInputs.x.project = "${(import ./common.nix).drv "p" { }}"; }`, agentapi.Selector{}, []string{
			"config",
			`error [] error: Expecting a plain string, but the string "/nix/store/HASH-p" depends on a store path.
in attribute "project"
in attribute "x"
in attribute "extraInputs"
in attribute "a"
in attribute "onPush"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"hour": {`{ herculesCI.onSchedule.a.when.hour = [ 1 24 ]; }`, agentapi.Selector{}, []string{
			"config",
			`error [] error: Expecting a number from 0 to 23, but got 24.
in list item 1
in attribute "hour"
in attribute "when"
in attribute "a"
in attribute "onSchedule"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"empty list": {`{ herculesCI.onSchedule.a.when.dayOfMonth = [ ]; }`, agentapi.Selector{}, []string{
			"config",
			`error [] error: Expecting a list with at least one item, but it is empty.
in attribute "dayOfMonth"
in attribute "when"
in attribute "a"
in attribute "onSchedule"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"day": {`{ herculesCI.onSchedule.a.when.dayOfWeek = [ "Monday" ]; }`, agentapi.Selector{}, []string{
			"config",
			`error [] error: Expecting a day of the week (Mon, Tue, Wed, Thu, Fri, Sat, Sun), but got "Monday".
in list item 0
in attribute "dayOfWeek"
in attribute "when"
in attribute "a"
in attribute "onSchedule"
in attribute "herculesCI"
in file "DIR/ci.nix"`,
		}},
		"root is a list": {`[ ]`, agentapi.Selector{}, []string{
			`error [] error: Expecting a value of type Attrs, but got type List.
in file "DIR/ci.nix"`,
		}},
		"root is a lambda": {`x: { }`, agentapi.Selector{}, []string{
			`error [] error: Expecting a value of type Attrs, but got type Lambda.
in file "DIR/ci.nix"`,
		}},
		"root is a string": {`"${"x"}"`, agentapi.Selector{}, []string{
			`error [] error: Expecting a value of type Attrs, but got type String.
in file "DIR/ci.nix"`,
		}},
		"argument without value": {`{ src, nixpkgs }: { }`, agentapi.Selector{}, []string{
			`error [] error: cannot evaluate a function that has an argument without a value ('nixpkgs')
A function at the top is called with what is known there (src); its other arguments need defaults.`,
		}},
		"syntax error": {"{\n a = ;\n b = 1;\n}\n", agentapi.Selector{}, []string{
			`error [] error: syntax error, unexpected ';'
at DIR/ci.nix:2:6:
1| {
2|  a = ;
|      ^
3|  b = 1;`,
		}},
		"functions that take anything": {`{ ... }: let e = { }: { a.x = 1; }; in builtins.seq (e { }) { }`, agentapi.Selector{}, nil},
		"empty formals":                {`{ }: { }`, agentapi.Selector{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
				p := newProject(t, n, "ci.nix", c.text)
				if c.selector != (agentapi.Selector{}) {
					p.job.Selector = c.selector
				}
				p.whole = true
				want(t, p.walk(), c.want...)
			})
		})
	}
}
