//! The launch digest and the ID block against a real processor's and against independent implementations'.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../common/mod.rs"]
mod common;
mod explain;
mod firmware;
mod id_block;
mod known;
mod must_fail;
mod oracles;
mod python;
