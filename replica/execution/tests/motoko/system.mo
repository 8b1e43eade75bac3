persistent actor System {
  type Management = actor { raw_rand : () -> async Blob };
  transient let ic : Management = actor "aaaaa-aa";
  var last : Blob = "";
  public func random() : async Blob { last := await ic.raw_rand(); last };
  public query func get() : async Blob { last };
  func twice(n : Nat) : async Nat { n * 2 };
  public func four() : async Nat { await twice(await twice(1)) };
}
