//! Node hardware specifications as data, a probe of the running machine, and checks with a fix text each.
