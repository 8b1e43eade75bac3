//! PID 1 of the confidential guest.

fn main() {}
