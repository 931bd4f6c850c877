# Types of values that people write, with a trail that says where a wrong one is. Trails are innermost first.
let
  typeName =
    v:
    {
      set = "Attrs";
      list = "List";
      string = "String";
      int = "Int";
      bool = "Bool";
      null = "Null";
      path = "Path";
      float = "Float";
      lambda = "Lambda";
    }
    .${builtins.typeOf v} or (builtins.typeOf v);
in
rec {
  fail = trail: message: throw (builtins.concatStringsSep "\n  " ([ message ] ++ trail));

  expect =
    type: ok: trail: v:
    if ok v then v else fail trail "Expecting a value of type ${type}, but got type ${typeName v}.";

  attrs = expect "Attrs" builtins.isAttrs;
  string = expect "String" builtins.isString;
  bool = expect "Bool" builtins.isBool;
  int = expect "Int" builtins.isInt;
  list = expect "List" builtins.isList;

  plainString =
    trail: v:
    let
      s = string trail v;
    in
    if builtins.hasContext s then
      fail trail "Expecting a plain string, but the string ${builtins.toJSON (builtins.unsafeDiscardStringContext s)} depends on a store path."
    else
      s;

  enter = name: trail: [ "in attribute ${builtins.toJSON name}" ] ++ trail;
  item = n: trail: [ "in list item ${builtins.toString n}" ] ++ trail;


  # Attributes of a set, checked: absent is an error, or the default.
  get = name: f: trail: set: if set ? ${name} then f (enter name trail) set.${name} else fail trail "Attribute ${builtins.toJSON name} is missing.";
  getOr = default: name: f: trail: set: if set ? ${name} then f (enter name trail) set.${name} else default;
  nullable = f: trail: v: if v == null then null else f trail v;
  mapItems = f: trail: l: builtins.genList (i: f (item i trail) (builtins.elemAt l i)) (builtins.length l);
}
