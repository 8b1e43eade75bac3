//! The development root.
