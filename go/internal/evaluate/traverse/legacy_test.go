package traverse_test

import (
	"testing"

	"hercules/internal/testnix"
)

func TestLegacy(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		p := newProject(t, n, "default.nix", `
			{ src, unused ? throw "not looked at" }:
			let inherit (import ./common.nix) drv; in
			{
			  b = drv "b" { };
			  a = drv "a" { ignoreFailure = true; };
			  must = drv "must" { requireFailure = true; ignoreFailure = "yes"; };
			  shell = drv "shell" { phases = [ "nobuildPhase" ]; };
			  deps = drv "deps" { buildDependenciesOnly = true; ignoreFailure = true; };
			  twoPhases = drv "two" { phases = [ "nobuildPhase" "x" ]; };
			  wrongType = drv "wrong" { isEffect = "true"; phases = "nobuildPhase"; };
			  nested = { recurseForDerivations = true; y = drv "y" { }; "x.y" = drv "xy" { }; _type = "kept"; };
			  notEntered = { z = throw "never"; };
			  badRecurse = { recurseForDerivations = 1; z = throw "never"; };
			  list = [ (throw "never") ];
			  function = x: throw "never";
			  number = 1;
			  thrown = throw "a message\nof two lines";
			  aborted = abort "stop";
			  assertion = assert false; 1;
			  typeError = 1 + "a";
			  missing = { }.attribute;
			  recursion = let x = x; in x;
			  badMarker = drv "bad" { ignoreFailure = throw "in marker"; };
			  effect = drv "effect" { isEffect = true; secretsToUse = builtins.toJSON { aws = "staging"; git.type = "GitToken"; }; };
			  badEffect = drv "bad-effect" { isEffect = true; secretsToUse = builtins.toJSON { aws = 1; }; };
			  oldEffect = drv "old-effect" { isEffect = true; secretsMap = builtins.toJSON { a = "b"; }; };
			  source = drv (builtins.baseNameOf src.outPath + "-" + src.branch + "-" + src.shortRev + "-" + builtins.toString (src.tag == null)) { };
			}`)
		golden(t, p.walk())
	})
}
