//! The replicated state: records of canisters, queues, call contexts and ingress messages.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use candid::Principal;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::api::{IngressMessage, IngressStatus, Limits, OpenError, Reject, RequestId, canister_id};
use crate::stable::Overlay;
use crate::store::{Batch, Snapshot, SpaceId};
use crate::table::{Record, Table, Transactional, from_cbor, to_cbor};
use crate::working::Ram;

/// Bytes of a wasm page.
pub(crate) const WASM_PAGE: u64 = 64 * 1024;

/// Snapshots are numbered from here on, canisters below. Each number has four heap spaces, whose own numbers the
/// heap wants to be below 2^56.
pub(crate) const FIRST_SNAPSHOT: u64 = 1 << 53;

/// What is stored of one canister beside its memories.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Canister {
    /// Number that its id and its heap spaces come from.
    pub(crate) number: u64,
    pub(crate) controllers: BTreeSet<Principal>,
    pub(crate) cycles: u128,
    pub(crate) run: Run,
    pub(crate) module: Option<ModuleRecord>,
    #[serde(with = "serde_bytes")]
    pub(crate) certified_data: Vec<u8>,
    pub(crate) settings: Settings,
}

/// What changes of a canister with nearly every message; a record of its own, which is short and quickly written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) version: u64,
    /// When `canister_global_timer` runs, in ns since 1970; 0 for never.
    pub(crate) timer_ns: u64,
    /// Length of the stable memory, in wasm pages.
    pub(crate) stable_pages: u64,
    /// Bits of the mutable globals, in order of their index.
    pub(crate) globals: Vec<u128>,
}

impl Record for Progress {
    /// Three numbers of 8 bytes and then one of 16 for each global, little endian.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24 + 16 * self.globals.len());
        for number in [self.version, self.timer_ns, self.stable_pages] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.globals.iter().flat_map(|bits| bits.to_le_bytes()));
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let ([version, timer, stable], globals) = (|| {
            let (numbers, globals) = bytes.split_first_chunk::<24>()?;
            let (numbers, _) = numbers.as_chunks::<8>();
            Some((<[[u8; 8]; 3]>::try_from(numbers).ok()?, globals.as_chunks::<16>()))
        })()
        .filter(|(_, (_, rest))| rest.is_empty())
        .ok_or_else(|| format!("{} bytes are no record of a canister's progress", bytes.len()))?;
        Ok(Self {
            version: u64::from_le_bytes(version),
            timer_ns: u64::from_le_bytes(timer),
            stable_pages: u64::from_le_bytes(stable),
            globals: globals.0.iter().map(|bits| u128::from_le_bytes(*bits)).collect(),
        })
    }
}

/// The uploaded module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ModuleRecord {
    pub(crate) hash: [u8; 32],
    pub(crate) bytes: u64,
}

/// A snapshot of a canister, beside its spaces and chunks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) module: ModuleRecord,
    pub(crate) globals: Vec<u128>,
    pub(crate) stable_pages: u64,
    #[serde(with = "serde_bytes")]
    pub(crate) certified_data: Vec<u8>,
    pub(crate) taken_at_ns: u64,
    /// In bytes, as if nothing were shared.
    pub(crate) total_size: u64,
}

/// Settings that are kept for `canister_status`; only the environment variables have an effect yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) numbers: BTreeMap<String, u128>,
    pub(crate) public_logs: bool,
    pub(crate) environment: BTreeMap<String, String>,
}

/// Whether a canister takes calls.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Run {
    Running,
    /// Waits until its calls are answered; then these stop requests get their reply.
    Stopping(Vec<Waiting>),
    Stopped,
}

/// A call to the management canister whose answer comes later.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) origin: Origin,
    pub(crate) cycles: u128,
}

/// The heap spaces that an instance is filled from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spaces {
    pub(crate) memory: SpaceId,
    pub(crate) tables: SpaceId,
}

impl Canister {
    pub(crate) fn new(number: u64, controllers: BTreeSet<Principal>, cycles: u128) -> Self {
        Self {
            number,
            controllers,
            cycles,
            run: Run::Running,
            module: None,
            certified_data: Vec::new(),
            settings: Settings::default(),
        }
    }

    /// Heap space of the wasm memory.
    pub(crate) fn memory_space(&self) -> SpaceId {
        SpaceId(self.number * 4)
    }

    /// Heap space of the stable memory.
    pub(crate) fn stable_space(&self) -> SpaceId {
        SpaceId(self.number * 4 + 1)
    }

    /// Heap space of the uploaded module.
    pub(crate) fn module_space(&self) -> SpaceId {
        SpaceId(self.number * 4 + 2)
    }

    /// Heap space of the tables, if the program changes them.
    pub(crate) fn table_space(&self) -> SpaceId {
        SpaceId(self.number * 4 + 3)
    }

    /// The spaces that an instance is filled from.
    pub(crate) fn instance_spaces(&self) -> Spaces {
        Spaces { memory: self.memory_space(), tables: self.table_space() }
    }
}

/// Who waits for the answer to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Origin {
    /// An ingress message.
    Ingress(RequestId),
    /// A callback of a canister.
    Canister { caller: Principal, callback: u64 },
    /// Nobody: timer or heartbeat.
    System,
}

/// One entry of the queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Message {
    Ingress(IngressMessage),
    Request(Request),
    Response(Response),
}

/// A call, whoever made it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) origin: Origin,
    pub(crate) caller: Principal,
    pub(crate) callee: Principal,
    pub(crate) method: String,
    #[serde(with = "serde_bytes")]
    pub(crate) arg: Vec<u8>,
    pub(crate) cycles: u128,
}

/// The answer to a call between canisters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Response {
    pub(crate) canister: Principal,
    pub(crate) callback: u64,
    pub(crate) result: Result<ByteBuf, Reject>,
    pub(crate) refund: u128,
}

/// A call that was started and may wait for calls of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CallContext {
    pub(crate) canister: Principal,
    pub(crate) origin: Origin,
    pub(crate) caller: Principal,
    pub(crate) answered: bool,
    /// Cycles that came with the call and were not accepted.
    pub(crate) cycles: u128,
    /// Calls whose answer has not come.
    pub(crate) outstanding: u64,
    /// Instructions executed so far in this context.
    pub(crate) instructions: u64,
}

/// What runs when an answer comes: indices into table 0 and the values passed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Callback {
    pub(crate) canister: Principal,
    pub(crate) context: u64,
    pub(crate) callee: Principal,
    pub(crate) reply: Closure,
    pub(crate) reject: Closure,
    pub(crate) cleanup: Option<Closure>,
}

/// A function of table 0 and its argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Closure {
    pub(crate) function: u64,
    pub(crate) environment: u64,
}

/// Where an ingress message stands and how long that is remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StatusRecord {
    pub(crate) status: IngressStatus,
    /// Who sent the message.
    pub(crate) sender: Principal,
    /// Who it was sent to.
    pub(crate) canister: Principal,
    /// Forgotten after this time once it is final, in ns since 1970.
    pub(crate) keep_until_ns: u64,
}

/// Numbers that only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// Next id of a message, call context or callback.
    pub(crate) id: u64,
    /// Canister numbers given out by `create_canister`.
    pub(crate) canisters: u64,
}

macro_rules! cbor {
    ($($record:ty),*) => {
        $(impl Record for $record {
            fn encode(&self) -> Vec<u8> {
                to_cbor(self)
            }
            fn decode(bytes: &[u8]) -> Result<Self, String> {
                from_cbor(bytes)
            }
        })*
    };
}
cbor!(Counters, Canister, Message, CallContext, Callback, StatusRecord, ByteBuf, SnapshotRecord);

/// All tables.
pub(crate) struct State {
    pub(crate) counters: Table<(), Counters>,
    pub(crate) canisters: Table<Principal, Canister>,
    /// One for each canister.
    pub(crate) progress: Table<Principal, Progress>,
    pub(crate) messages: Table<u64, Message>,
    pub(crate) contexts: Table<u64, CallContext>,
    pub(crate) callbacks: Table<u64, Callback>,
    pub(crate) statuses: Table<RequestId, StatusRecord>,
    /// By the number of the canister or snapshot, and the hash.
    pub(crate) chunks: Table<(u64, [u8; 32]), ByteBuf>,
    /// By the numbers of the canister and of the snapshot.
    pub(crate) snapshots: Table<(u64, u64), SnapshotRecord>,
}

impl State {
    fn empty() -> Self {
        Self {
            counters: Table::new(b'n'),
            canisters: Table::new(b'c'),
            progress: Table::new(b'e'),
            messages: Table::new(b'm'),
            contexts: Table::new(b'x'),
            callbacks: Table::new(b'b'),
            statuses: Table::new(b's'),
            chunks: Table::new(b'k'),
            snapshots: Table::new(b'p'),
        }
    }

    pub(crate) fn load(snapshot: &Snapshot) -> Result<Self, OpenError> {
        let mut state = Self::empty();
        state.tables().into_iter().try_for_each(|table| table.load(snapshot))?;
        Ok(state)
    }

    /// What a query to this canister needs: its records.
    pub(crate) fn load_canister(snapshot: &Snapshot, id: &Principal) -> Result<Self, OpenError> {
        let mut state = Self::empty();
        state.canisters.load_one(snapshot, id)?;
        state.progress.load_one(snapshot, id)?;
        Ok(state)
    }

    /// Also its stored chunks and snapshots.
    pub(crate) fn load_stores(&mut self, snapshot: &Snapshot, number: u64) -> Result<(), OpenError> {
        self.chunks.load_range(snapshot, &number.to_be_bytes())?;
        self.snapshots.load_range(snapshot, &number.to_be_bytes())
    }

    fn tables(&mut self) -> [&mut dyn Transactional; 9] {
        [
            &mut self.counters,
            &mut self.canisters,
            &mut self.progress,
            &mut self.messages,
            &mut self.contexts,
            &mut self.callbacks,
            &mut self.statuses,
            &mut self.chunks,
            &mut self.snapshots,
        ]
    }

    pub(crate) fn discard(&mut self) {
        self.tables().into_iter().for_each(Transactional::discard);
    }

    pub(crate) fn write(&self, batch: &mut Batch<'_>) {
        let tables: [&dyn Transactional; 9] = [
            &self.counters,
            &self.canisters,
            &self.progress,
            &self.messages,
            &self.contexts,
            &self.callbacks,
            &self.statuses,
            &self.chunks,
            &self.snapshots,
        ];
        tables.into_iter().for_each(|table| table.write(batch));
    }

    pub(crate) fn settle(&mut self) {
        self.tables().into_iter().for_each(Transactional::settle);
    }

    fn counters(&mut self) -> &mut Counters {
        if self.counters.get(&()).is_none() {
            self.counters.insert((), Counters::default());
        }
        #[expect(clippy::expect_used, reason = "inserted above")]
        self.counters.get_mut(&()).expect("counters are there")
    }

    /// A number that nothing refers to.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        let counters = self.counters();
        counters.id += 1;
        counters.id
    }

    /// Takes a number back that nothing refers to, if it is the last one given out. So what is over with the message
    /// that began it leaves nothing to be stored.
    pub(crate) fn give_back_id(&mut self, id: u64) {
        if self.counters().id != id {
            return;
        }
        self.counters().id -= 1;
        let before = self.counters.committed().get(&()).map(Box::as_ref);
        if before == self.counters.get(&()) {
            self.counters.forget(&());
        }
    }

    /// Puts a message at the end of the queue.
    pub(crate) fn enqueue(&mut self, message: Message) {
        let id = self.fresh_id();
        self.messages.insert(id, message);
    }
}

/// All that a message may read or change, beside the memory of its canister. It belongs to the engine, and to
/// the program while one runs.
pub(crate) struct World {
    /// The last committed state.
    pub(crate) snapshot: Snapshot,
    pub(crate) state: State,
    /// Pages of stable memory that the current message wrote.
    pub(crate) overlay: Overlay,
    pub(crate) config: Arc<Subnet>,
    /// Time that canisters see, in ns since 1970.
    pub(crate) now_ns: u64,
}

/// What does not change while the engine runs.
pub(crate) struct Subnet {
    pub(crate) subnet_id: Principal,
    pub(crate) root_public_key_der: Vec<u8>,
    pub(crate) canister_range: (u64, u64),
    pub(crate) limits: Limits,
    pub(crate) ram: Arc<Ram>,
}

impl World {
    /// A state with nothing pending.
    pub(crate) fn new(snapshot: Snapshot, state: State, config: Arc<Subnet>, now_ns: u64) -> Lent<Self> {
        Lent::new(Self { snapshot, state, overlay: Overlay::default(), config, now_ns })
    }

    /// Forgets what the current message changed.
    pub(crate) fn discard(&mut self) {
        self.state.discard();
        self.overlay.clear();
    }

    /// Makes a canister without code; `wanted` is an id of this subnet's range that is not taken.
    pub(crate) fn create_canister(
        &mut self,
        controllers: BTreeSet<Principal>,
        cycles: u128,
        wanted: Option<u64>,
    ) -> Option<Principal> {
        let (first, last) = self.config.canister_range;
        let number = match wanted {
            Some(number) => number,
            None => loop {
                let counters = self.state.counters();
                let number = first.checked_add(counters.canisters)?;
                counters.canisters += 1;
                // It may have been asked for by number before.
                if self.state.canisters.get(&canister_id(number)).is_none() {
                    break number;
                }
            },
        };
        let id = canister_id(number);
        if !(first..=last).contains(&number)
            || number >= FIRST_SNAPSHOT
            || self.state.canisters.get(&id).is_some()
        {
            return None;
        }
        self.state.canisters.insert(id, Canister::new(number, controllers, cycles));
        self.state.progress.insert(id, Progress::default());
        Some(id)
    }
}

/// A value that is lent to the running program and always comes back.
pub(crate) struct Lent<T>(Option<Box<T>>);

impl<T> Lent<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(Box::new(value)))
    }

    /// The place that the value is lent to.
    pub(crate) fn nothing() -> Self {
        Self(None)
    }
}

impl<T> Deref for Lent<T> {
    type Target = T;
    #[expect(
        clippy::expect_used,
        reason = "the engine is not reachable while its program runs, nor the reverse"
    )]
    fn deref(&self) -> &T {
        self.0.as_deref().expect("the value is here")
    }
}

impl<T> DerefMut for Lent<T> {
    #[expect(
        clippy::expect_used,
        reason = "the engine is not reachable while its program runs, nor the reverse"
    )]
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_deref_mut().expect("the value is here")
    }
}

impl From<IngressMessage> for Request {
    fn from(ingress: IngressMessage) -> Self {
        Self {
            origin: Origin::Ingress(ingress.request_id),
            caller: ingress.sender,
            callee: ingress.canister,
            method: ingress.method,
            arg: ingress.arg,
            cycles: 0,
        }
    }
}
