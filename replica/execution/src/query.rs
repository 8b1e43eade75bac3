//! Queries: answered on any thread, many at a time, each from one committed state.
//!
//! A query has an instance to itself, whose memory is filled from the snapshot that it reads. Afterwards the memory
//! is taken back, and the instance waits for the next query; if that reads a later state, the pages that changed in
//! between are read anew, if they are in memory at all. Nothing here waits for the engine, nor makes it wait.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, Weak};

use candid::Principal;
use sha2::{Digest as _, Sha256};

use crate::api::{ErrorCode, OpenError, QueryMessage, QueryReply, Reject};
use crate::engine::read_module;
use crate::instance::{Entry, Live, Program, Ran, Wasm, cannot_start};
use crate::management::{effective_canister_id, unknown};
use crate::messages::{method_of, rejected};
use crate::prepare::{MethodKind, PrepareError, prepare};
use crate::state::{Canister, Spaces, State, Subnet, World};
use crate::store::Snapshot;
use crate::sync::{Mutex, RwLock, lock};
use crate::syscalls::{Call, Mode};
use crate::table::unreadable;
use crate::working::Current;

/// Instances that wait for their next query.
const WARM: usize = 64;

/// Answers queries. Clones share their instances.
#[derive(Clone)]
pub struct Queries {
    shared: Arc<Shared>,
}

/// One committed state, as a query sees it.
#[derive(Clone)]
pub struct Published(Snapshot);

struct Shared {
    wasm: Arc<Wasm>,
    config: Arc<Subnet>,
    published: RwLock<Snapshot>,
    /// Programs in use, by the hash of the module as uploaded.
    programs: Mutex<HashMap<[u8; 32], Weak<Program>>>,
    /// Instances that wait, the longest first.
    warm: Mutex<VecDeque<Warm>>,
}

struct Warm {
    canister: Principal,
    program: Arc<Program>,
    /// The state that its memory shows.
    epoch: u64,
    /// Length of the memory in pages, in that state.
    pages: u64,
    current: Current,
    live: Live,
}

fn internal(text: impl ToString) -> Reject {
    Reject::new(ErrorCode::SubnetOversubscribed, format!("The state cannot be read: {}", text.to_string()))
}

impl Queries {
    pub(crate) fn new(wasm: Arc<Wasm>, config: Arc<Subnet>, snapshot: Snapshot) -> Self {
        let shared = Shared {
            wasm,
            config,
            published: RwLock::new(snapshot),
            programs: Mutex::default(),
            warm: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        *self.shared.published.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// The state that was published last.
    pub fn published(&self) -> Published {
        Published(self.shared.published.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Answers a query from the state that was published last. The calling thread needs 2 MiB of stack.
    pub fn query(&self, message: QueryMessage, now_ns: u64) -> QueryReply {
        self.query_at(&self.published(), message, now_ns)
    }

    /// Answers a query from this state.
    pub fn query_at(&self, state: &Published, message: QueryMessage, now_ns: u64) -> QueryReply {
        match self.run(&state.0, message, now_ns) {
            Ok(reply) => QueryReply::Replied(reply),
            Err(reject) => QueryReply::Rejected(reject),
        }
    }

    /// The program that a module is prepared to.
    pub(crate) fn prepare(&self, hash: [u8; 32], module: &[u8]) -> Result<Arc<Program>, PrepareError> {
        if let Some(program) = lock(&self.shared.programs).get(&hash).and_then(Weak::upgrade) {
            return Ok(program);
        }
        let program = Program::new(prepare(module, self.shared.config.limits.module_bytes)?);
        let mut programs = lock(&self.shared.programs);
        programs.retain(|_, program| program.strong_count() > 0);
        programs.insert(hash, Arc::downgrade(&program));
        Ok(program)
    }

    /// The program that is installed in a canister.
    pub(crate) fn program(
        &self,
        snapshot: &Snapshot,
        canister: &Canister,
    ) -> Result<Option<Arc<Program>>, OpenError> {
        let Some(record) = &canister.module else { return Ok(None) };
        if let Some(program) = lock(&self.shared.programs).get(&record.hash).and_then(Weak::upgrade) {
            return Ok(Some(program));
        }
        let Some(module) = read_module(snapshot, canister).map_err(unreadable)? else { return Ok(None) };
        let fault = |why: String| OpenError::Module { canister: crate::canister_id(canister.number), why };
        if Sha256::digest(&module)[..] != record.hash {
            return Err(fault("its hash is not the one recorded".to_owned()));
        }
        self.prepare(record.hash, &module).map(Some).map_err(|error| fault(error.to_string()))
    }

    fn run(&self, snapshot: &Snapshot, message: QueryMessage, now_ns: u64) -> Result<Vec<u8>, Reject> {
        let QueryMessage { sender, canister: id, method, arg, data_certificate } = message;
        let config = self.shared.config.clone();
        if id == Principal::management_canister() {
            let about = effective_canister_id(&method, &arg).filter(|_| method == "canister_status");
            let about = about.ok_or_else(|| unknown(&method))?;
            let mut state = State::load_canister(snapshot, &about).map_err(internal)?;
            let mut program = None;
            if let Some(canister) = state.canisters.get(&about).cloned() {
                state.load_stores(snapshot, canister.number).map_err(internal)?;
                program = self.program(snapshot, &canister).map_err(internal)?;
            }
            let mut world = World::new(snapshot.clone(), state, config, now_ns);
            return world.status_reply(sender, &arg, |_| program.clone());
        }
        let state = State::load_canister(snapshot, &id).map_err(internal)?;
        let canister = state.canisters.get(&id).cloned();
        let program = match &canister {
            Some(canister) => self.program(snapshot, canister).map_err(internal)?,
            None => None,
        };
        let kind = method_of(id, canister.as_ref(), program.as_deref(), &method)?;
        let (mode, export) = match kind {
            MethodKind::Query => (Mode::Query, "canister_query"),
            MethodKind::CompositeQuery => (Mode::CompositeQuery, "canister_composite_query"),
            MethodKind::Update => {
                let text = format!("Error from Canister {id}: Canister has no query method '{method}'");
                return Err(Reject::new(ErrorCode::CanisterMethodNotFound, text));
            }
        };
        let (Some(canister), Some(program)) = (canister, program) else {
            return Err(internal("a canister lost its record"));
        };
        let entry = format!("{export} {method}");
        let mut call = Call::new(mode, id, sender);
        (call.method, call.arg, call.data_certificate) = (method, arg, data_certificate);
        call.limit = config.limits.query_instructions;

        let globals = state.progress.get(&id).map_or(&[][..], |progress| &progress.globals);
        let mut warm = self
            .take(snapshot, id, canister.instance_spaces(), globals, program)
            .map_err(|why| cannot_start(id, &why))?;
        let mut world = World::new(snapshot.clone(), state, config, now_ns);
        let memory64 = warm.program.prepared.memory64;
        let Ran { call, result, .. } = warm.live.run(memory64, &mut world, Entry::Export(&entry), call);
        self.put(warm);
        result?;
        call.answer.map_or_else(
            || {
                let text = format!("Error from Canister {id}: Canister did not reply to the call");
                Err(Reject::new(ErrorCode::CanisterDidNotReply, text))
            },
            |answer| answer.map_err(rejected),
        )
    }

    /// An instance that shows this state.
    fn take(
        &self,
        snapshot: &Snapshot,
        id: Principal,
        spaces: Spaces,
        globals: &[u128],
        program: Arc<Program>,
    ) -> Result<Warm, String> {
        let pages = snapshot.space_pages(spaces.memory).map_err(|error| error.to_string())?.unwrap_or(0);
        let epoch = snapshot.epoch();
        let changed_since = |epoch| {
            let tables =
                program.prepared.tables.as_ref().map(|_| snapshot.changed_since(epoch, spaces.tables));
            Some((snapshot.changed_since(epoch, spaces.memory)?, tables.unwrap_or(Some(Vec::new()))?))
        };
        while let Some(mut warm) = self.waiting(id) {
            let changed = match warm.epoch.cmp(&epoch) {
                _ if warm.pages != pages || !Arc::ptr_eq(&warm.program, &program) => None,
                std::cmp::Ordering::Equal => Some((Vec::new(), Vec::new())),
                std::cmp::Ordering::Less => changed_since(warm.epoch),
                std::cmp::Ordering::Greater => None,
            };
            let Some((changed, changed_tables)) = changed else { continue };
            *warm.current.write().unwrap_or_else(PoisonError::into_inner) = Some(snapshot.clone());
            warm.live.refresh(&changed, &changed_tables)?;
            warm.live.set_globals(&program.prepared, globals);
            warm.epoch = epoch;
            return Ok(warm);
        }
        let current: Current = Arc::new(RwLock::new(Some(snapshot.clone())));
        let limits = &self.shared.config.limits;
        let mut live = Live::attached(&self.shared.wasm, &program, limits, current.clone(), spaces, pages)?;
        live.load_tables()?;
        live.set_globals(&program.prepared, globals);
        Ok(Warm { canister: id, program, epoch, pages, current, live })
    }

    /// Drops the instances that wait.
    pub(crate) fn rest(&self) {
        let waiting = std::mem::take(&mut *lock(&self.shared.warm));
        drop(waiting);
    }

    fn waiting(&self, canister: Principal) -> Option<Warm> {
        let mut warm = lock(&self.shared.warm);
        let at = warm.iter().rposition(|warm| warm.canister == canister)?;
        warm.remove(at)
    }

    /// Takes back what the query did and keeps the instance for the next.
    fn put(&self, warm: Warm) {
        let Warm { canister, program, epoch, pages, current, live } = warm;
        let limits = &self.shared.config.limits;
        // One that cannot be taken back is dropped.
        let Ok(live) = live.rolled_back(&self.shared.wasm, &program, limits) else { return };
        if self.shared.config.ram.is_short() {
            return;
        }
        // A snapshot that is kept holds room on the medium.
        *current.write().unwrap_or_else(PoisonError::into_inner) = None;
        let mut all = lock(&self.shared.warm);
        all.push_back(Warm { canister, program, epoch, pages, current, live });
        let oldest = if all.len() > WARM { all.pop_front() } else { None };
        drop(all);
        drop(oldest);
    }
}
