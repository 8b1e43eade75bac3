import Prim "mo:⛔";

/// A journal. Each entry also goes to one place on each of 64 pages, so that a torn state shows.
persistent actor {
  let pages = 64;
  // Natural numbers on a page.
  let width = 512;

  var entries : [var Nat] = Prim.Array_init<Nat>(64, 0);
  var count : Nat = 0;
  let copies : [var Nat] = Prim.Array_init<Nat>(pages * width, 0);

  /// The place of the entry.
  public func append(entry : Nat) : async Nat {
    if (count == entries.size()) {
      let before = entries;
      entries := Prim.Array_init<Nat>(2 * count, 0);
      var at = 0;
      while (at < count) { entries[at] := before[at]; at += 1 };
    };
    let place = count;
    entries[place] := entry;
    var page = 0;
    while (page < pages) { copies[page * width + entry % width] := entry; page += 1 };
    count += 1;
    place
  };

  /// All entries, and whether all pages say the same.
  public query func read() : async { entries : [Nat]; whole : Bool } {
    var whole = true;
    var at = width;
    while (at < pages * width) { whole := whole and copies[at] == copies[at % width]; at += 1 };
    { entries = Prim.Array_tabulate<Nat>(count, func at { entries[at] }); whole }
  };
};
