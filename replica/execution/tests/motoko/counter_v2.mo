persistent actor Counter {
  var count : Nat = 0;
  var name : Text = "two";
  public func inc() : async Nat { count += 1; count };
  public query func get() : async Nat { count };
  public query func title() : async Text { name };
}
