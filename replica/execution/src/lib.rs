//! Canister execution: wasmtime, the system API, messages, the management canister.
//!
//! An [`Engine`] owns a heap and the canisters on it. A message is executed on the working copy of a
//! canister's memory; what it did becomes one batch of the heap, and shows only once that batch is durable.
//! A message that fails leaves nothing, and neither does a query. The engine opens no socket and reads no
//! clock: messages, time and randomness are passed in.

// The helpers of the tests outside serve those inside.
#[cfg(test)]
extern crate self as execution;

mod api;
#[cfg(feature = "bench")]
pub mod bench;
mod engine;
mod instance;
mod management;
mod messages;
mod prepare;
mod query;
mod stable;
mod state;
mod store;
mod sync;
mod syscalls;
mod table;
#[cfg(test)]
mod tracking_tests;
mod wasm_tables;
mod working;

pub use api::{
    CanisterView, Changes, Config, ErrorCode, IngressMessage, IngressStatus, Limits, Metadata, OpenError,
    Progress, QueryMessage, QueryReply, Randomness, Reject, RejectCode, RequestId, RunError, SubmitError,
    canister_id,
};
pub use engine::Engine;
pub use management::effective_canister_id;
pub use query::{Published, Queries};
