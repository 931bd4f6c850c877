# A whole repository in miniature: it needs nothing but /bin/sh, so it builds on any machine that has Nix.
#
#   hci run docs/examples/bakery
#
# The bakery turns grain into bread. What depends on what is real, so builds run in order and in parallel, and
# one attribute is only known after something was built (import from derivation).
{ ... }:
let
  # A derivation from a shell script that uses nothing but what every shell has built in.
  sh = name: inputs: script: derivation (inputs // {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-e" (builtins.toFile "${name}.sh" ''
      phase() { printf '@nix { "action": "setPhase", "phase": "%s" }\n' "$1" >&2; }
      show() { while IFS= read -r line; do printf '%s\n' "$line"; done < "$1"; }
      ${script}
    '') ];
  });

  flour = kind: sh "flour-${kind}" { recipe = ./grain + "/${kind}.txt"; } ''
    phase millPhase
    while read -r amount grain; do
      echo "milling $amount g of $grain"
      echo "$amount $grain-flour" >> $out
    done < $recipe
  '';

  dough = name: flours: sh "dough-${name}" { inherit flours; } ''
    phase kneadPhase
    for flour in $flours; do
      echo "kneading $flour"
      show $flour >> $out
    done
    echo "5 salt" >> $out
  '';

  bread = name: dough: sh "bread-${name}" { inherit dough; } ''
    phase bakePhase
    echo "baking ${name}"
    { echo "${name}:"; show $dough; } > $out
    phase checkPhase
    read -r title < $out
    [ "$title" = "${name}:" ]
  '';

  flours = { wheat = flour "wheat"; rye = flour "rye"; spelt = flour "spelt"; };

  breads = {
    baguette = bread "baguette" (dough "white" [ flours.wheat ]);
    country = bread "country" (dough "mixed" [ flours.wheat flours.rye ]);
    black = bread "black" (dough "dark" [ flours.rye flours.spelt ]);
  };

  # Tomorrow's menu is computed by a build, then read by the evaluator: import from derivation.
  menu = import (sh "menu.nix" { inherit (breads) country black; } ''
    echo "choosing from the shelf"
    echo '{ monday = "country"; tuesday = "black"; }' > $out
  '');
in
{
  # What a push asks for. `hci run` evaluates it, builds it, and shows how it went.
  herculesCI = { ... }: {
    onPush.default.outputs = {
      inherit flours breads;

      menu = builtins.mapAttrs (day: name: sh "menu-${day}" { bread = breads.${name}; } ''
        echo "on the menu: ${name}"
        show $bread > $out
      '') menu;

      # May fail: the oven is known to be moody.
      "soufflé" = sh "souffle" { inherit (flours) wheat; } ''
        echo "the soufflé rises …"
        echo "… and falls" >&2
        exit 1
      '' // { ignoreFailure = true; };

      tests = {
        shelf = sh "test-shelf" breads ''
          for loaf in $baguette $country $black; do
            read -r title < $loaf
            echo "found $title"
          done
          echo ok > $out
        '';

        # Must fail: if burnt bread ever passes inspection, the inspection is broken.
        inspection = sh "test-inspection" { } ''
          echo "inspecting burnt bread"
          echo "rejected: charcoal" >&2
          exit 1
        '' // { requireFailure = true; };
      };

      # A shell is not built itself; what it needs is.
      shell = sh "bakery-shell" { inherit (breads) baguette; } "exit 1" // { buildDependenciesOnly = true; };
    };
  };
}
