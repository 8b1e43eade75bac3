//! The types that cross the engine's border: messages in, statuses and replies out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use candid::Principal;
use serde::{Deserialize, Serialize};

use crate::store::CommitError;

/// Representation-independent hash of a request (Interface Specification, "Request ids").
pub type RequestId = [u8; 32];

/// An update call from outside. The caller has checked its signature and delegation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressMessage {
    /// Request id; the engine executes each id at most once.
    pub request_id: RequestId,
    /// Authenticated sender.
    pub sender: Principal,
    /// Receiving canister; `aaaaa-aa` is the management canister.
    pub canister: Principal,
    /// Method name.
    pub method: String,
    /// Argument, as sent.
    #[serde(with = "serde_bytes")]
    pub arg: Vec<u8>,
    /// Time in ns since 1970 after which the message must not start any more.
    pub expiry_ns: u64,
}

/// A query call from outside; it never changes state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryMessage {
    /// Authenticated sender.
    pub sender: Principal,
    /// Receiving canister; the management canister answers `canister_status` and the like.
    pub canister: Principal,
    /// Method name.
    pub method: String,
    /// Argument, as sent.
    pub arg: Vec<u8>,
    /// Certificate that `ic0.data_certificate_copy` shows the canister: CBOR, proving its certified data.
    pub data_certificate: Option<Vec<u8>>,
}

/// The answer to a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryReply {
    /// The canister replied with these bytes.
    Replied(Vec<u8>),
    /// The canister or the engine refused.
    Rejected(Reject),
}

/// Where an ingress message stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IngressStatus {
    /// Durable in the queue, not yet started.
    Received,
    /// Started; waits for calls that it made.
    Processing,
    /// Finished with a reply.
    Replied(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Finished with a reject.
    Rejected(Reject),
    /// Finished; the answer is not kept any more.
    Done,
}

impl IngressStatus {
    /// Name in the state tree (`/request_status/ID/status`).
    pub fn name(&self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Processing => "processing",
            Self::Replied(_) => "replied",
            Self::Rejected(_) => "rejected",
            Self::Done => "done",
        }
    }
}

/// Why a call was not answered with a reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error_code}: {message}")]
pub struct Reject {
    /// Class of the failure.
    pub code: RejectCode,
    /// Text for people.
    pub message: String,
    /// Exact reason.
    pub error_code: ErrorCode,
}

impl Reject {
    /// A reject whose class follows from the exact reason.
    pub fn new(error_code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code: error_code.class(), message: message.into(), error_code }
    }
}

/// Reject codes of the Interface Specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RejectCode {
    /// Fatal system error; retrying is no use.
    SysFatal = 1,
    /// Transient system error; retrying may help.
    SysTransient = 2,
    /// Destination is not there.
    DestinationInvalid = 3,
    /// The canister rejected explicitly.
    CanisterReject = 4,
    /// The canister trapped or broke a rule.
    CanisterError = 5,
    /// Outcome not known (best-effort calls).
    SysUnknown = 6,
}

impl RejectCode {
    /// The number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// Exact reasons, with the numbers that Internet Computer replicas give; shown as `IC0503`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names say it; the numbers are the field's")]
pub enum ErrorCode {
    SubnetOversubscribed = 101,
    CanisterQueueFull = 201,
    IngressMessageTimeout = 202,
    CanisterOutOfCycles = 207,
    CanisterNotFound = 301,
    CanisterRejectedMessage = 406,
    UnknownManagementMessage = 407,
    InvalidManagementPayload = 408,
    CanisterTrapped = 502,
    CanisterCalledTrap = 503,
    CanisterContractViolation = 504,
    CanisterInvalidWasm = 505,
    CanisterDidNotReply = 506,
    CanisterOutOfMemory = 507,
    CanisterStopped = 508,
    CanisterStopping = 509,
    CanisterNotStopped = 510,
    CanisterStoppingCancelled = 511,
    CanisterInvalidController = 512,
    CanisterFunctionNotFound = 513,
    CanisterNonEmpty = 514,
    CanisterInstructionLimitExceeded = 522,
    CanisterMethodNotFound = 536,
    CanisterWasmModuleNotFound = 537,
}

impl ErrorCode {
    /// The class that this reason belongs to.
    pub fn class(self) -> RejectCode {
        match self {
            Self::SubnetOversubscribed
            | Self::CanisterQueueFull
            | Self::IngressMessageTimeout
            | Self::CanisterOutOfCycles
            | Self::CanisterStoppingCancelled => RejectCode::SysTransient,
            Self::CanisterNotFound => RejectCode::DestinationInvalid,
            Self::CanisterRejectedMessage | Self::UnknownManagementMessage => RejectCode::CanisterReject,
            _ => RejectCode::CanisterError,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IC{:04}", *self as u16)
    }
}

/// A private or public custom section `icp:… NAME`, readable under `/canister/ID/metadata/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Anyone may read it; otherwise controllers only.
    pub public: bool,
    /// Content of the section.
    pub content: Vec<u8>,
}

/// What the state tree shows of one canister.
#[derive(Debug, Clone, Copy)]
pub struct CanisterView<'a> {
    /// The canister.
    pub id: Principal,
    /// SHA-256 of the module as it was uploaded; none while no code is installed.
    pub module_hash: Option<&'a [u8; 32]>,
    /// Its controllers.
    pub controllers: &'a BTreeSet<Principal>,
    /// At most 32 bytes that it had certified.
    pub certified_data: &'a [u8],
    /// Custom sections by name; none while no code is installed.
    pub metadata: Option<&'a BTreeMap<String, Metadata>>,
}

/// Gives 32 bytes from a cryptographically secure generator.
pub type Randomness = Box<dyn FnMut() -> [u8; 32] + Send>;

/// Limits that keep one message from using up the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Instructions of one update, timer, heartbeat or callback.
    pub update_instructions: u64,
    /// Instructions of one query.
    pub query_instructions: u64,
    /// Instructions of one installation or upgrade, all steps together.
    pub install_instructions: u64,
    /// Instructions of one `canister_inspect_message`.
    pub inspect_instructions: u64,
    /// Instructions after which [`crate::Engine::run`] starts no further message.
    pub round_instructions: u64,
    /// Largest wasm memory with 32-bit addresses, in bytes.
    pub memory32_bytes: u64,
    /// Largest wasm memory with 64-bit addresses, in bytes.
    pub memory64_bytes: u64,
    /// Largest stable memory, in bytes.
    pub stable_bytes: u64,
    /// Most bytes of stable memory that one message may change, in whole pages of 4 KiB.
    pub stable_change_bytes: u64,
    /// Largest module, as uploaded and unpacked, in bytes.
    pub module_bytes: u64,
    /// Messages that may wait in the queue before ingress is refused.
    pub queue: usize,
    /// Bytes of the machine's memory that programs must leave available; 0: they may use all there is. Memories take
    /// room only where they are touched; a message that finds none is undone and refused.
    pub spare_ram_bytes: u64,
}

impl Default for Limits {
    /// The Internet Computer's limits, and none of the machine's.
    fn default() -> Self {
        Self {
            update_instructions: 40_000_000_000,
            query_instructions: 5_000_000_000,
            install_instructions: 300_000_000_000,
            inspect_instructions: 200_000_000,
            round_instructions: 7_000_000_000,
            memory32_bytes: 4 << 30,
            memory64_bytes: 6 << 30,
            stable_bytes: 500 << 30,
            stable_change_bytes: 2 << 30,
            module_bytes: 100 << 20,
            queue: 10_000,
            spare_ram_bytes: 0,
        }
    }
}

/// What an engine must be told.
pub struct Config {
    /// Subnet id (`ic0.subnet_self`).
    pub subnet_id: Principal,
    /// Id of this node.
    pub node_id: Principal,
    /// Public key of the root of trust, DER (`ic0.root_key`).
    pub root_public_key_der: Vec<u8>,
    /// First and last canister number of this subnet; see [`canister_id`].
    pub canister_range: (u64, u64),
    /// Where `raw_rand` comes from.
    pub randomness: Randomness,
    /// Limits per message.
    pub limits: Limits,
    /// Read pages of memories when they are touched, where the machine offers userfaultfd. Otherwise a memory is
    /// read as a whole when its canister is first called.
    pub lazy_memory: bool,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("subnet_id", &self.subnet_id)
            .field("node_id", &self.node_id)
            .field("canister_range", &self.canister_range)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The id of the canister with this number: 8 bytes big endian, then 1, 1.
pub fn canister_id(number: u64) -> Principal {
    let mut bytes = [1; 10];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Principal::from_slice(&bytes)
}

/// How far [`crate::Engine::run`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Messages and tasks executed and committed.
    pub executed: usize,
    /// Nothing more to do at this time; otherwise call again.
    pub idle: bool,
}

/// What outsiders may see changed, since this was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Ingress messages whose status changed or was forgotten.
    pub requests: BTreeSet<RequestId>,
    /// Canisters that were made or deleted, or whose [`CanisterView`] changed.
    pub canisters: BTreeSet<Principal>,
}

/// Why the engine did not take an ingress message.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The request id is known already: poll its status. Nothing was changed.
    #[error("request is known already; read its status instead of sending it again")]
    Duplicate,
    /// The queue is full or the message is expired.
    #[error("message refused: {0}")]
    Refused(Reject),
    /// The heap did not make it durable; the message is not queued.
    #[error(
        "message could not be made durable; free space on the heap's medium or check it, then send again"
    )]
    Commit(#[source] CommitError),
}

/// Why the engine cannot go on. Nothing that was not committed is visible.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Not even the failure of a message could be made durable.
    #[error("commit of a message failed twice; check the heap's medium, then restart the replica")]
    Commit(#[source] CommitError),
}

/// Why an engine could not start from a heap.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A record does not decode.
    #[error(
        "record {key} of the heap does not decode: {why}; it was written by another version, start that one"
    )]
    Record {
        /// Key in hex.
        key: String,
        /// What the decoder said.
        why: String,
    },
    /// The module of a canister is not accepted any more.
    #[error(
        "module of canister {canister} is refused: {why}; it was installed by another version, start that one"
    )]
    Module {
        /// The canister.
        canister: Principal,
        /// What is wrong with it.
        why: String,
    },
    /// Something in the heap cannot be read.
    #[error("the heap cannot be read: {why}")]
    Read {
        /// What is wrong with it.
        why: String,
    },
    /// wasmtime does not start on this machine.
    #[error("wasmtime cannot be set up on this machine: {0}")]
    Wasmtime(String),
}
