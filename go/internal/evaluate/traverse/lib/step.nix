{ emit, descend }:
path: from: to:
let
  node = descend path;
  one =
    i:
    let
      name = builtins.elemAt node.names i;
    in
    emit ([ name ] ++ node.kids.${name}.result);
in
builtins.foldl' (_: one) null (builtins.genList (i: from + i) (to - from))

# Emits the children of the node at path, from the index from up to but not including to.
#
# This is a file of its own, with its comment below: Nix 2.8 reads a file byte by byte up to each line that it shows
# in the trace of an error, and these lines are in the trace of every attribute that fails.
