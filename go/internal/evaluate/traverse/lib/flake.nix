# The herculesCI of a flake: its own, with a default job made of the flake's outputs (agent-behaviour 3.7a).
{
  check,
  callable,
  args,
  flake,
  herculesCI,
  trail,
}:
let
  listToSet =
    l:
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value = [ ];
      }) l
    );
  own = check.getOr null "ciSystems" (check.nullable (t: v: check.mapItems check.plainString t (check.list t v))) trail herculesCI;
  ciSystems = if own != null then listToSet own else args.herculesCI.ciSystems;

  wanted = system: ciSystems == null || ciSystems ? ${system};
  filterSystems = v: if ciSystems == null then v else builtins.intersectAttrs ciSystems v;

  outputTrail = name: check.enter name [ ];
  perSystem = name: f: v: builtins.mapAttrs f (filterSystems (check.attrs (outputTrail name) v));
  isDerivation = v: builtins.isAttrs v && v ? type && builtins.isString v.type && v.type == "derivation";

  keep = name: perSystem name (_: v: v);

  shell = path: v:
    if isDerivation v then
      v // { buildDependenciesOnly = true; }
    else
      throw "The development shell ${builtins.concatStringsSep "." path} is not a derivation.";

  app =
    system: name: v:
    let
      path = "apps.${system}.${name}";
      t = check.attrs [ "in the app ${path}" ] v;
      program = t.program or (throw "The app ${path} has no attribute program.");
      context = builtins.getContext program;
      drvs = builtins.filter (p: context.${p} ? outputs || context.${p} ? allOutputs) (builtins.attrNames context);
    in
    if t.type or null != "app" then
      throw "The app ${path} does not have the attribute type = \"app\"."
    else if !builtins.isString program then
      { inherit program; }
    else if builtins.length drvs == 1 then
      {
        type = "derivation";
        drvPath = builtins.head drvs;
      }
    else
      throw "The program of the app ${path} must be in the output of one derivation, but the string refers to ${toString (builtins.length drvs)} derivations.";

  platform = p: if builtins.isString p then p else p.system;
  systemOf =
    c:
    if c.options.nixpkgs.hostPlatform.isDefined or false then
      platform c.config.nixpkgs.buildPlatform
    else
      c.config.nixpkgs.localSystem.system or c.config.nixpkgs.system;
  configurations =
    output: v:
    builtins.mapAttrs (
      name: c:
      let
        system = systemOf c;
      in
      if ciSystems == null || wanted system then
        { config.system.build.toplevel = c.config.system.build.toplevel; }
      else
        builtins.trace "Ignoring flake output ${output}.${name}: its system ${system} is not one of the ciSystems." { }
    ) (check.attrs (outputTrail output) v);

  template =
    name: v:
    let
      t = [ "in the template ${builtins.toJSON name}" ];
      set = check.attrs t v;
      description = check.get "description" check.string t set;
      path = check.get "path" (_: p: p) t set;
      text =
        if builtins.isPath path then
          builtins.toString path
        else if builtins.isString path then
          builtins.unsafeDiscardStringContext path
        else
          builtins.unsafeDiscardStringContext "${path}";
      # The store may be somewhere else physically, and then the path of a source says so.
      inStore = builtins.replaceStrings [ (builtins.storeDir + "/") ] [ "" ] text != text;
    in
    builtins.seq description (
      if inStore && builtins.pathExists (if builtins.isAttrs path then "${path}" else path) then
        null
      else
        check.fail t "The path ${text} of a template must exist in the store."
    );

  ignored = _: _: null;
  deprecated = name: _: builtins.trace "Ignoring flake output ${name}: it is deprecated." null;
  unknown = name: _: builtins.trace "Ignoring flake output ${name}." null;

  translators = {
    packages = keep;
    checks = keep;
    formatter = keep;
    devShell = name: perSystem name (system: shell [ name system ]);
    devShells =
      name:
      perSystem name (
        system: v: builtins.mapAttrs (n: shell [ name system n ]) (check.attrs [ "in devShells.${system}" ] v)
      );
    apps =
      name: perSystem name (system: v: builtins.mapAttrs (app system) (check.attrs [ "in apps.${system}" ] v));
    nixosConfigurations = configurations;
    darwinConfigurations = configurations;
    templates = name: v: builtins.mapAttrs template (check.attrs (outputTrail name) v);
    effects = _: v: if callable v then v (args // { inherit ciSystems; }) else v;

    herculesCI = ignored;
    overlays = ignored;
    submodules = ignored;
    nixosModules = ignored;
    darwinModules = ignored;
    legacyPackages = ignored;

    defaultApp = deprecated;
    defaultPackage = deprecated;
    defaultTemplate = deprecated;
    defaultBundler = deprecated;
    overlay = deprecated;
  };

  translate = name: (translators.${name} or unknown) name;
in
herculesCI
// (
  if herculesCI ? onPush then
    { }
  else
    { onPush.default.outputs = builtins.mapAttrs translate flake.outputs; }
)
