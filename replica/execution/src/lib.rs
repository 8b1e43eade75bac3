//! Canister execution: wasmtime, the system API, messages, the management canister.

mod api;

pub use api::{
    CanisterView, Config, ErrorCode, IngressMessage, IngressStatus, Limits, Metadata, OpenError, Progress,
    QueryMessage, QueryReply, Randomness, Reject, RejectCode, RequestId, RunError, SubmitError, canister_id,
};

// `Engine` (being written): open(Heap, Config), accept(&mut self, &IngressMessage, now_ns) -> Result<(), Reject>,
// submit(&mut self, IngressMessage, now_ns) -> Result<(), SubmitError>, run(&mut self, now_ns) -> Result<Progress, RunError>,
// status(&RequestId) -> Option<&IngressStatus>, statuses() -> impl Iterator<Item = (&RequestId, &IngressStatus)>,
// query(&mut self, QueryMessage, now_ns) -> QueryReply, canisters() -> impl Iterator<Item = CanisterView<'_>>,
// canister(&Principal) -> Option<CanisterView<'_>>, next_wakeup() -> Option<u64>, heap_status(),
// effective_canister_id(method, arg) -> Option<Principal> (free function, for calls to aaaaa-aa).
