persistent actor Store {
  type Tree = ?{ key : Nat; text : Text; left : Tree; right : Tree };
  var tree : Tree = null;
  var next : Nat = 0;
  var kept : Nat = 0;

  func add(tree : Tree, key : Nat, text : Text) : Tree {
    switch tree {
      case null { kept += 1; ?{ key; text; left = null; right = null } };
      case (?node) {
        if (key < node.key) { ?{ node with left = add(node.left, key, text) } }
        else if (key > node.key) { ?{ node with right = add(node.right, key, text) } }
        else { ?{ node with text } };
      };
    };
  };

  // A tree that grows, by texts: work for the allocator and the collector.
  public func fill(count : Nat) : async Nat {
    var i = 0;
    while (i < count) {
      tree := add(tree, next * 7919 % 1000003, "entry " # debug_show next);
      next += 1;
      i += 1;
    };
    kept;
  };

  // Arithmetic in place.
  public func churn(rounds : Nat) : async Nat {
    let table : [var Nat64] = [var 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    var round = 0;
    while (round < rounds) {
      for (i in table.keys()) { table[i] := table[i] *% 6364136223846793005 +% 1442695040888963407 };
      round += 1;
    };
    rounds;
  };

  public func fail() : async () {
    tree := add(tree, 5, "lost");
    assert false;
  };
  public query func size() : async Nat { kept };
};
