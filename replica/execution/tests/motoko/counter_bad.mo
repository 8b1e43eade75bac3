persistent actor Counter {
  var count : Text = "";
  public query func get() : async Text { count };
}
