# What a walk asks for. Every function makes results with emit, one trace each, so that what was found before an
# error is known and the error belongs to what came next.
{ marker, job }:
let
  check = import ./check.nix;
  call = import ./call.nix;

  emit = value: builtins.trace (marker + "r" + builtins.toJSON value) null;

  isFlake = job.flake != null;
  file = builtins.toString job.file;

  # String paths, so that nothing is copied to the store.
  src = job.source;

  root =
    if isFlake then
      builtins.getFlake job.flake
    else
      call.root { inherit src; } autoArguments (import file);

  autoArguments = builtins.mapAttrs (
    _: a: if a.metadata == null then a.path else a.metadata // { outPath = a.path; }
  ) job.autoArguments;

  rootTrail = if isFlake then [ "in flake ${job.flake}" ] else [ "in file ${builtins.toJSON file}" ];
  checkedRoot = check.attrs rootTrail root;

  args = {
    inherit (src) rev shortRev ref branch tag;
    primaryRepo = src // (if isFlake then { inherit (root) outPath; } else { });
    herculesCI = {
      inherit (job) apiBaseUrl ciSystems;
    };
  };

  hasConfig = isFlake || checkedRoot ? herculesCI;

  configTrail = (if callable configValue then [ "in function result" ] else [ ]) ++ [ "in attribute \"herculesCI\"" ] ++ rootTrail;
  configValue = if isFlake then root.outputs.herculesCI or { } else root.herculesCI;
  callable = v: builtins.isFunction v || builtins.isAttrs v && v ? __functor;
  calledConfig = check.attrs configTrail (if callable configValue then configValue args else configValue);
  config =
    if isFlake then
      import ./flake.nix {
        inherit check callable args;
        flake = root;
        herculesCI = calledConfig;
        trail = configTrail;
      }
    else
      calledConfig;

  jobs = import ./jobs.nix { inherit check callable config; trail = configTrail; };

  inputs = builtins.mapAttrs (
    _: i: builtins.getFlake (if i.archive == null then i.flake else "path:" + archivePath i.archive)
  ) job.inputs;
  archivePath = url: builtins.unsafeDiscardStringContext (builtins.toString (builtins.fetchTarball url));

  walk = import ./walk.nix { inherit check call; };
  tree =
    if hasConfig then
      walk.outputs (jobs.outputs job.handlerKind job.handlerName inputs)
    else
      walk.legacy autoArguments checkedRoot;

  descend = builtins.foldl' (node: name: node.kids.${name}) tree;
in
{
  # Whether there is a herculesCI attribute. Its value is not looked at.
  begin = builtins.seq checkedRoot (emit hasConfig);

  archive = name: emit (archivePath job.inputs.${name}.archive);

  handlers = builtins.seq config (
    builtins.seq (jobs.handlers "onPush" emit) (jobs.handlers "onSchedule" emit)
  );

  top = emit ([ "" ] ++ tree.result);

  step = import ./step.nix { inherit emit descend; };
}
