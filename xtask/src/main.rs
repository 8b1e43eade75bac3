//! What developers of this repository run: up, test, bench, ci.

fn main() {}
