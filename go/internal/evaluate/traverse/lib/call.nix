# Calling functions as nix-build does: only those that take a set of named arguments.
let
  contains = needle: s: builtins.replaceStrings [ needle ] [ "" ] s != s;

  # functionArgs can't tell `{ }: x` and `{ ... }: x` from `x: x`; the XML form of a function can.
  xml = f: builtins.toXML f;
  takesSet = f: contains "<attrspat" (xml f);
  takesMore = f: contains "ellipsis=\"1\"" (xml f);

  missing =
    names:
    throw ''
      cannot evaluate a function that has an argument without a value ('${builtins.head names}')
      A function at the top is called with what is known there (src); its other arguments need defaults.'';

  supply =
    args: fallback: f:
    let
      formals = builtins.functionArgs f;
      wanted = builtins.filter (n: !formals.${n} && !(args ? ${n})) (builtins.attrNames formals);
      lacking = builtins.filter (n: !(fallback ? ${n})) wanted;
      given = builtins.intersectAttrs (builtins.listToAttrs (
        map (name: {
          inherit name;
          value = null;
        }) wanted
      )) fallback;
    in
    if lacking != [ ] then
      missing lacking
    else
      f ((if takesMore f then args else builtins.intersectAttrs formals args) // given);

  auto =
    args: fallback: f:
    if builtins.isAttrs f && f ? __functor then
      auto args fallback (f.__functor f)
    else if builtins.isFunction f && takesSet f then
      supply args fallback f
    else
      f;
in
{
  # fallback is for arguments that would have no value otherwise.
  root = auto;
  auto = args: auto args { };
}
