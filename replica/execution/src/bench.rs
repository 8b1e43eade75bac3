//! What `cargo bench -p execution` measures: the parts of execution that the heap's figures speak of.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use candid::Principal;
use heap::{Heap, Key, OpenOptions};

use crate::api::{Config, IngressMessage, Limits, QueryMessage, QueryReply, canister_id};
use crate::engine::Engine;
use crate::instance::{Code, Entry, Program, START_ENTRY};
use crate::prepare::{prepare, prepare_untracked};
use crate::state::Spaces;
use crate::store::{PAGE, Page, SpaceId};
use crate::syscalls::{Call, Mode};
use crate::working::{Loader, Ram, Working};

/// Why something could not be measured.
pub type Failure = Box<dyn std::error::Error>;

/// A medium for a benchmark.
pub type Medium = Box<dyn heap::Media>;

/// Seconds on some clock that only goes forward.
pub type Clock = fn() -> f64;

const NOW: u64 = 1_700_000_000_000_000_000;

fn engine(medium: Medium, plain: bool) -> Result<Engine, Failure> {
    let options = OpenOptions { create: true, ..OpenOptions::default() };
    let key = if plain { Key::plain() } else { Key::new([7; 32]) };
    let (heap, _) = Heap::open(medium, &key, &options)?;
    let config = Config {
        subnet_id: Principal::self_authenticating([1; 32]),
        node_id: Principal::self_authenticating([2; 32]),
        root_public_key_der: Vec::new(),
        canister_range: (0, 1000),
        randomness: Box::new(|| [5; 32]),
        limits: Limits::default(),
        lazy_memory: true,
    };
    Ok(Engine::open(heap, config)?)
}

/// An engine with one canister.
pub struct Node {
    engine: Engine,
    canister: Principal,
    sent: u64,
}

impl Node {
    /// Installs a module on a blank medium.
    pub fn new(medium: Medium, plain: bool, module: &[u8]) -> Result<Self, Failure> {
        let mut node = Self { engine: engine(medium, plain)?, canister: canister_id(0), sent: 0 };
        let create = ic_management_canister_types::ProvisionalCreateCanisterWithCyclesArgs::default();
        let management = Principal::management_canister();
        node.update(management, "provisional_create_canister_with_cycles", candid::encode_one(create)?)?;
        let install = ic_management_canister_types::InstallCodeArgs {
            mode: ic_management_canister_types::CanisterInstallMode::Install,
            canister_id: node.canister,
            wasm_module: module.to_vec(),
            arg: candid::encode_args(())?,
            sender_canister_version: None,
        };
        node.update(management, "install_code", candid::encode_one(install)?)?;
        Ok(node)
    }

    fn update(&mut self, canister: Principal, method: &str, arg: Vec<u8>) -> Result<(), Failure> {
        self.sent += 1;
        let mut request_id = [0; 32];
        request_id[..8].copy_from_slice(&self.sent.to_le_bytes());
        let sender = Principal::self_authenticating([3; 32]);
        let method = method.to_owned();
        let message =
            IngressMessage { request_id, sender, canister, method, arg, expiry_ns: NOW + 1_000_000_000 };
        self.engine.submit(message, NOW)?;
        while !self.engine.run(NOW)?.idle {}
        match self.engine.status(&request_id) {
            Some(crate::IngressStatus::Replied(_)) => Ok(()),
            other => Err(format!("the update was not answered: {other:?}").into()),
        }
    }

    /// Makes an update call, durable when this returns.
    pub fn call(&mut self, method: &str, arg: &[u8]) -> Result<(), Failure> {
        self.update(self.canister, method, arg.to_vec())
    }

    /// Seconds for one durable update call.
    pub fn seconds_per_call(
        &mut self,
        clock: Clock,
        method: &str,
        arg: &[u8],
        calls: u32,
    ) -> Result<f64, Failure> {
        let start = clock();
        for _ in 0..calls {
            self.call(method, arg)?;
            // As the replica does after each round; what queries see cannot be used again.
            self.engine.take_changes();
            self.engine.publish();
        }
        Ok((clock() - start) / f64::from(calls))
    }

    /// Seconds for one durable run of `canister_global_timer`: program and heap, without the queue of ingress
    /// messages and the records of their status.
    pub fn seconds_per_task(&mut self, clock: Clock, calls: u32) -> Result<f64, Failure> {
        let start = clock();
        for _ in 0..calls {
            let kept = self.engine.task(self.canister, crate::messages::TIMER);
            self.engine.commit(kept)?;
            self.engine.publish();
        }
        Ok((clock() - start) / f64::from(calls))
    }

    /// Seconds for one update call while other threads, which `place` puts where they may run, ask queries as fast
    /// as they can; and the number of queries that they had answered in the meantime.
    pub fn seconds_per_call_with_readers(
        &mut self,
        clock: Clock,
        method: &str,
        query: &str,
        calls: u32,
        readers: usize,
        place: impl Fn() + Sync,
    ) -> Result<(f64, u64), Failure> {
        let (done, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        let queries = self.engine.queries();
        let arg = candid::encode_args(())?;
        let message = QueryMessage {
            sender: Principal::anonymous(),
            canister: self.canister,
            method: query.to_owned(),
            arg: arg.clone(),
            data_certificate: None,
        };
        std::thread::scope(|scope| {
            for _ in 0..readers {
                let (queries, message, done, answered, place) =
                    (&queries, &message, &done, &answered, &place);
                let read = move || {
                    place();
                    while !done.load(Ordering::Relaxed) {
                        let reply = queries.query(message.clone(), NOW);
                        if matches!(reply, QueryReply::Replied(_)) {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                };
                std::thread::Builder::new().stack_size(8 << 20).spawn_scoped(scope, read)?;
            }
            let mut per_call = || {
                let start = clock();
                for _ in 0..calls {
                    self.call(method, &arg)?;
                    self.engine.take_changes();
                    self.engine.publish();
                }
                Ok((clock() - start) / f64::from(calls))
            };
            let seconds = per_call();
            done.store(true, Ordering::Relaxed);
            seconds.map(|seconds| (seconds, answered.load(Ordering::Relaxed)))
        })
    }
}

/// The same program twice: with its stores marked, and without.
pub struct Pair {
    node: Node,
    tracked: Code,
    plain: Code,
}

impl Pair {
    /// Installs a module. Nothing that it does is committed.
    pub fn new(module: &[u8]) -> Result<Self, Failure> {
        let node = Node::new(Box::new(heap::MemMedia::new(64 << 20)), true, module)?;
        let limit = Limits::default().module_bytes;
        let mut pair = Self {
            node,
            tracked: Code::new(Program::new(prepare(module, limit)?)),
            plain: Code::new(Program::new(prepare_untracked(module, limit)?)),
        };
        let engine = &mut pair.node.engine;
        for code in [&mut pair.tracked, &mut pair.plain] {
            // Of a canister that does not exist.
            let spaces = Spaces { memory: SpaceId(1 << 30), tables: SpaceId(1 << 31) };
            code.instantiate(&engine.wasm, &Limits::default(), engine.current.clone(), spaces)?;
            code.write_data()?;
            for (entry, mode) in [(START_ENTRY, Mode::Start), (Entry::Export("canister_init"), Mode::Init)] {
                run(engine, code, pair.node.canister, mode, entry, &candid::encode_args(())?)?;
            }
        }
        Ok(pair)
    }

    /// Seconds for one call, of the marked program if `tracked`; what was marked is taken note of, as a commit would.
    pub fn time(&mut self, clock: Clock, tracked: bool, method: &str, arg: &[u8]) -> Result<f64, Failure> {
        let (engine, canister) = (&mut self.node.engine, self.node.canister);
        let code = if tracked { &mut self.tracked } else { &mut self.plain };
        let entry = format!("canister_update {method}");
        let start = clock();
        run(engine, code, canister, Mode::Update, Entry::Export(&entry), arg)?;
        Ok(clock() - start)
    }

    /// Time of one call without anything around it but the entry into the program.
    pub fn bare(&mut self, clock: Clock, method: &str, calls: u32) -> Result<f64, Failure> {
        Ok(self.plain.bare(clock, &format!("canister_update {method}"), calls)?)
    }
}

fn run(
    engine: &mut Engine,
    code: &mut Code,
    canister: Principal,
    mode: Mode,
    entry: Entry<'_>,
    arg: &[u8],
) -> Result<(), Failure> {
    let mut call = Call::new(mode, canister, Principal::anonymous());
    call.arg = arg.to_vec();
    call.limit = 1 << 50;
    let ran = code.run(&engine.wasm, &mut engine.world, &engine.current, entry, call);
    code.collect();
    code.settle();
    engine.world.discard();
    Ok(ran.result?)
}

/// Seconds for taking back changes of this many pages, at random places of a memory of 256 MiB; and seconds for
/// copying as many pages to such places.
pub fn roll_back(clock: Clock, pages: usize, rounds: usize) -> Result<(f64, f64), Failure> {
    const MEMORY: u64 = 65536;
    let current = Arc::new(crate::sync::RwLock::new(None));
    let loader = Loader::whole(Arc::new(Ram::new(0)));
    let mut working = Working::new(&loader, current.clone(), SpaceId(0))?;
    working.make_for_bench(MEMORY)?;
    let mut other = Working::new(&loader, current, SpaceId(0))?;
    other.make_for_bench(MEMORY)?;
    let mut random = 88_172_645_463_325_252u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % MEMORY
    };
    let copies: Vec<Box<Page>> = (0..pages).map(|at| Box::new([at as u8; PAGE])).collect();
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let places: Vec<u64> = (0..pages).map(|_| next()).collect();
        for page in &places {
            assert!(working.write_bytes(page * PAGE as u64 + 100, &[1; 8])?, "inside");
        }
        let start = clock();
        working.roll_back()?;
        ours.push(clock() - start);
        working.afford(u64::MAX);
        let places: Vec<u64> = (0..pages).map(|_| next()).collect();
        for page in &places {
            other.overwrite_for_bench(*page, &[7; 8]);
        }
        let start = clock();
        for (page, copy) in places.iter().zip(&copies) {
            other.overwrite_for_bench(*page, black_box(&copy[..]));
        }
        reference.push(clock() - start);
    }
    Ok((median(&mut ours), median(&mut reference)))
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A medium in shared memory, like NVRAM, or in a file.
pub fn medium(shared: bool, path: &Path, bytes: u64) -> Result<Medium, Failure> {
    if !shared {
        return Ok(Box::new(heap::FileMedia::open_or_create(path, bytes)?));
    }
    let file = std::fs::File::create(path)?;
    file.set_len(bytes)?;
    Ok(Box::new(heap::BarMedia::open(path)?))
}
