# onPush and onSchedule of herculesCI (agent-behaviour 3.6).
{
  check,
  callable,
  config,
  trail,
}:
let
  inherit (check) enter get getOr nullable fail;

  handlersOf = kind: getOr { } kind check.attrs trail config;

  extraInput = trail: v: {
    project = get "project" check.plainString trail (check.attrs trail v);
    ref = getOr null "ref" (nullable check.plainString) trail v;
  };
  extraInputs =
    trail: v:
    let
      set = check.attrs trail v;
    in
    builtins.mapAttrs (name: extraInput (enter name trail)) set;

  handler =
    kind: name:
    let
      t = enter name (enter kind trail);
      h = check.attrs t (handlersOf kind).${name};
    in
    if !getOr true "enable" check.bool t h then
      [ ]
    else
      [
        {
          inherit kind name;
          extraInputs = getOr { } "extraInputs" extraInputs t h;
          when = if kind == "onSchedule" then getOr null "when" (nullable time) t h else null;
        }
      ];

  range =
    lo: hi: trail: v:
    let
      i = check.int trail v;
    in
    if i < lo || i > hi then
      fail trail "Expecting a number from ${toString lo} to ${toString hi}, but got ${toString i}."
    else
      i;

  nonEmpty =
    f: trail: v:
    let
      l = check.list trail v;
    in
    if l == [ ] then fail trail "Expecting a list with at least one item, but it is empty." else check.mapItems f trail l;

  hours = trail: v: if builtins.isInt v then [ (range 0 23 trail v) ] else nonEmpty (range 0 23) trail (check.expect "Int or List" builtins.isList trail v);

  days = [ "Mon" "Tue" "Wed" "Thu" "Fri" "Sat" "Sun" ];
  chars = s: builtins.genList (i: builtins.substring i 1 s) (builtins.stringLength s);
  lower = builtins.replaceStrings (chars "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (chars "abcdefghijklmnopqrstuvwxyz");
  day =
    trail: v:
    let
      s = check.string trail v;
      found = builtins.filter (d: lower d == lower s) days;
    in
    if found == [ ] then
      fail trail "Expecting a day of the week (${builtins.concatStringsSep ", " days}), but got ${builtins.toJSON s}."
    else
      builtins.head found;

  time =
    trail: v:
    let
      set = check.attrs trail v;
      field = name: f: getOr null name (nullable f) trail set;
    in
    {
      minute = field "minute" (range 0 59);
      hour = field "hour" hours;
      dayOfWeek = field "dayOfWeek" (nonEmpty day);
      dayOfMonth = field "dayOfMonth" (nonEmpty (range 0 31));
    };
in
{
  # One after the other, so that those before a wrong one are reported.
  handlers =
    kind: emit:
    builtins.foldl' (_: name: builtins.foldl' (_: emit) null (handler kind name)) null (
      builtins.attrNames (handlersOf kind)
    );

  outputs =
    kind: name: inputs:
    let
      kindTrail = enter kind trail;
      set = get kind check.attrs trail config;
      t = enter name kindTrail;
      h = get name check.attrs kindTrail set;
      outputs = get "outputs" (_: v: v) t h;
      ot = enter "outputs" t;
    in
    if callable outputs then
      check.attrs ([ "in function result" ] ++ ot) (outputs inputs)
    else
      check.attrs ot outputs;
}
