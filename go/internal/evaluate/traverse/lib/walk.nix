{ check, call }:
let
  # Forcing a node must not force the value: the error belongs to the result. (It comes first for the reason in step.nix.)
  node = choose: {
    inherit (choose) result names kids;
  };

  maxDepth = 10;

  isDerivation = v: v ? type && builtins.isString v.type && v.type == "derivation";
  isTrue = v: name: v ? ${name} && builtins.isBool v.${name} && v.${name};

  noBuildPhase = v: v ? phases && builtins.isList v.phases && builtins.length v.phases == 1 && (
    let
      phase = builtins.head v.phases;
    in
    builtins.isString phase && phase == "nobuildPhase"
  );

  # The derivation is instantiated before anything else is looked at.
  derivation =
    effectsAllowed: v:
    let
      drvPath = check.string [ "in attribute \"drvPath\"" ] v.drvPath;
    in
    builtins.seq drvPath (
      if isTrue v "isEffect" then
        [ (if effectsAllowed then "effect" else "misplaced") drvPath ]
      else
        [
          "drv"
          drvPath
          (
            if isTrue v "buildDependenciesOnly" || noBuildPhase v then
              "DependenciesOnly"
            else if isTrue v "ignoreFailure" then
              "MayFail"
            else if isTrue v "requireFailure" then
              "MustFail"
            else
              "Regular"
          )
        ]
    );

  leaf = result: {
    inherit result;
    names = [ ];
    kids = { };
  };

  other = v: leaf [ "other" (builtins.typeOf v) ];

  branch =
    child: v:
    let
      names = builtins.attrNames v;
    in
    {
      inherit names;
      result = [ "set" names ];
      kids = builtins.mapAttrs child v;
    };

  # agent-behaviour 3.7b
  outputs =
    effectsAllowed: depth: v:
    node (
      if !builtins.isAttrs v then
        other v
      else if isDerivation v then
        leaf (derivation effectsAllowed v)
      else if v ? _type || depth < maxDepth && stops v then
        leaf [ "skipped" ]
      else if depth == 0 then
        leaf (if v == { } then [ "skipped" ] else [ "deep" ])
      else
        branch (name: outputs (effectsAllowed || depth == maxDepth && name == "effects") (depth - 1)) v
    );
  stops = v: v ? recurseForDerivations && builtins.isBool v.recurseForDerivations && !v.recurseForDerivations;

  # agent-behaviour 3.8
  legacy =
    autoArguments: isRoot: depth: v:
    node (
      if !builtins.isAttrs v then
        other v
      else if isDerivation v then
        leaf (derivation true v)
      else if !isRoot && !(v ? recurseForDerivations && check.bool [ "in attribute \"recurseForDerivations\"" ] v.recurseForDerivations) then
        leaf [ "skipped" ]
      else if depth <= 0 then
        leaf [ "skipped" ]
      else if v ? __functor then
        legacy autoArguments true (depth - 1) (call.auto autoArguments v)
      else
        branch (_: legacy autoArguments false (depth - 1)) v
    );
in
# The tree of what a walk may visit, evaluated as far as it is asked for. A node has
#   result  what the value is: [ KIND … ]; see result.go for the kinds
#   names   of the attributes below it that are visited, in order
#   kids    the nodes below it
{
  outputs = outputs false maxDepth;
  legacy = autoArguments: legacy autoArguments true maxDepth;
}
