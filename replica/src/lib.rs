//! The replica: Internet Computer interface, certification and the node's main loop.
//!
//! The way of a message: [`server`] (TLS) and [`http`] take its bytes, [`authentication`] makes of them an
//! `Authenticated` value, which cannot be made otherwise, the [`executor`] hands it to the engine in a batch;
//! what was committed shows in the [`certified_state`], and from there the client gets its certificate.

pub mod authentication;
pub mod certified_state;
pub mod clock;
pub mod config;
mod encoding;
pub mod envelope;
pub mod evidence;
pub mod executor;
pub mod hash_tree;
pub mod http;
pub mod keys;
pub mod metrics;
pub mod node;
pub mod pulse;
pub mod read_state;
pub mod request_id;
pub mod server;
pub mod signature;
pub mod state_tree;
mod sys;
#[cfg(test)]
mod testing;
pub mod tls;
