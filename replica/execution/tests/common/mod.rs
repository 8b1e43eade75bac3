//! An engine on a medium in memory, and short ways to talk to it.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use candid::{CandidType, Principal};
use execution::{
    Config, Engine, IngressMessage, IngressStatus, Limits, QueryMessage, QueryReply, Reject, RequestId,
    canister_id,
};
use heap::MemMedia;
use heap::{Heap, Key, OpenOptions};
use ic_management_canister_types::{
    CanisterIdRecord, CanisterInstallMode, InstallCodeArgs, UpgradeFlags, WasmMemoryPersistence,
};

pub const SECOND: u64 = 1_000_000_000;

pub struct Node {
    pub engine: Engine,
    pub media: MemMedia,
    pub now: u64,
    sent: u64,
    limits: Limits,
    lazy: bool,
}

pub fn controller() -> Principal {
    Principal::self_authenticating([7; 32])
}

pub fn limits() -> Limits {
    Limits { update_instructions: 50_000_000, query_instructions: 50_000_000, ..Limits::default() }
}

fn engine(media: &MemMedia, limits: Limits, create: bool, lazy_memory: bool) -> Engine {
    let options = OpenOptions { create, ..OpenOptions::default() };
    let (heap, _) = Heap::open(Box::new(media.clone()), &Key::new([3; 32]), &options).unwrap();
    let mut next = 0;
    let config = Config {
        subnet_id: Principal::self_authenticating([1; 32]),
        node_id: Principal::self_authenticating([2; 32]),
        root_public_key_der: b"root key".to_vec(),
        canister_range: (0x1000, 0x1fff),
        randomness: Box::new(move || {
            next += 1;
            [next; 32]
        }),
        limits,
        lazy_memory,
    };
    Engine::open(heap, config).unwrap()
}

impl Node {
    pub fn new() -> Self {
        Self::with(limits(), 64 << 20)
    }

    pub fn with(limits: Limits, bytes: usize) -> Self {
        Self::choosing(limits, bytes, true)
    }

    /// `lazy`: memories are read page by page rather than as a whole.
    pub fn choosing(limits: Limits, bytes: usize, lazy: bool) -> Self {
        let media = MemMedia::new(bytes);
        let engine = engine(&media, limits.clone(), true, lazy);
        Self { engine, media, now: 1_700_000_000 * SECOND, sent: 0, limits, lazy }
    }

    /// As after a power cut: nothing survives but the medium.
    pub fn reopen(&mut self) {
        self.engine = engine(&self.media, self.limits.clone(), false, self.lazy);
    }

    /// The same after a restart with other limits.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.reopen();
    }

    pub fn message(&mut self, canister: Principal, method: &str, arg: Vec<u8>) -> IngressMessage {
        self.sent += 1;
        let mut request_id = [0; 32];
        request_id[..8].copy_from_slice(&self.sent.to_be_bytes());
        let method = method.to_owned();
        let expiry_ns = self.now + 120 * SECOND;
        IngressMessage { request_id, sender: controller(), canister, method, arg, expiry_ns }
    }

    /// Queues a call without executing it.
    pub fn send(&mut self, canister: Principal, method: &str, arg: Vec<u8>) -> RequestId {
        let message = self.message(canister, method, arg);
        let id = message.request_id;
        self.engine.submit(message, self.now).unwrap();
        assert_eq!(self.engine.status(&id), Some(&IngressStatus::Received));
        id
    }

    pub fn run(&mut self) {
        while !self.engine.run(self.now).unwrap().idle {}
    }

    pub fn answer(&self, id: &RequestId) -> Result<Vec<u8>, Reject> {
        match self.engine.status(id).unwrap() {
            IngressStatus::Replied(reply) => Ok(reply.clone()),
            IngressStatus::Rejected(reject) => Err(reject.clone()),
            other => panic!("no answer: {other:?}"),
        }
    }

    pub fn update(&mut self, canister: Principal, method: &str, arg: Vec<u8>) -> Result<Vec<u8>, Reject> {
        let id = self.send(canister, method, arg);
        self.run();
        self.answer(&id)
    }

    pub fn query(&mut self, canister: Principal, method: &str) -> Result<Vec<u8>, Reject> {
        let method = method.to_owned();
        let message =
            QueryMessage { sender: controller(), canister, method, arg: Vec::new(), data_certificate: None };
        match self.engine.query(message, self.now) {
            QueryReply::Replied(reply) => Ok(reply),
            QueryReply::Rejected(reject) => Err(reject),
        }
    }

    pub fn manage(&mut self, method: &str, arg: impl CandidType) -> Result<Vec<u8>, Reject> {
        self.update(Principal::management_canister(), method, candid::encode_one(arg).unwrap())
    }

    pub fn create(&mut self) -> Principal {
        let arg = ic_management_canister_types::ProvisionalCreateCanisterWithCyclesArgs::default();
        let reply = self.manage("provisional_create_canister_with_cycles", arg).unwrap();
        candid::decode_one::<CanisterIdRecord>(&reply).unwrap().canister_id
    }

    pub fn install(
        &mut self,
        canister_id: Principal,
        mode: CanisterInstallMode,
        wasm_module: &[u8],
    ) -> Result<Vec<u8>, Reject> {
        let wasm_module = wasm_module.to_vec();
        let arg = candid::encode_args(()).unwrap();
        let args = InstallCodeArgs { mode, canister_id, wasm_module, arg, sender_canister_version: None };
        self.manage("install_code", args)
    }

    /// Creates a canister with this module.
    pub fn deploy(&mut self, wasm: &[u8]) -> Principal {
        let id = self.create();
        self.install(id, CanisterInstallMode::Install, wasm).unwrap();
        id
    }

    pub fn deploy_wat(&mut self, text: &str) -> Principal {
        self.deploy(&wat::parse_str(text).unwrap())
    }
}

pub fn upgrade(keep: Option<WasmMemoryPersistence>) -> CanisterInstallMode {
    CanisterInstallMode::Upgrade(Some(UpgradeFlags { skip_pre_upgrade: None, wasm_memory_persistence: keep }))
}

/// Numbers of 8 bytes each, little endian.
pub fn numbers(reply: &[u8]) -> Vec<u64> {
    reply.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

pub fn nobody() -> Principal {
    canister_id(0x1f00)
}
