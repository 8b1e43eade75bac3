//! The engine: takes messages, executes them one after the other, and makes each durable before it shows.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use candid::Principal;

use crate::api::{
    CanisterView, Changes, Config, ErrorCode, IngressMessage, IngressStatus, OpenError, Progress,
    QueryMessage, QueryReply, Randomness, Reject, RequestId, RunError, SubmitError,
};
use crate::instance::{Code, Program, Wasm, cannot_start};
use crate::messages::{HEARTBEAT, TIMER};
use crate::query::Queries;
use crate::state::{Canister, Lent, Message, Origin, Run, State, StatusRecord, Subnet, World};
use crate::store::{Batch, CommitError, Heap, PAGE, Page, ReadError, Snapshot, SpaceId, Status};
use crate::sync::RwLock;
use crate::working::{Current, Loader, Ram};

/// Time between two heartbeats of a canister, in ns.
const HEARTBEAT_NS: u64 = 1_000_000_000;
/// Time between two searches for answers that are kept long enough, in ns.
const SWEEP_NS: u64 = 10_000_000_000;

/// Executes canisters over a heap. One thread owns it.
pub struct Engine {
    heap: Heap,
    pub(crate) world: Lent<World>,
    pub(crate) wasm: Arc<Wasm>,
    /// The last committed state, from which the canisters' memories are filled.
    pub(crate) current: Current,
    pub(crate) queries: Queries,
    pub(crate) randomness: Randomness,
    /// Code of those canisters that have some.
    pub(crate) codes: BTreeMap<Principal, Code>,
    /// Instructions executed in this run.
    pub(crate) instructions: u64,
    heartbeat_ns: u64,
    sweep_ns: u64,
    changes: Changes,
}

/// What of an execution is to be committed beside the pending records.
pub(crate) enum Kept {
    Nothing,
    /// Memory and globals of a canister.
    Memory(Principal),
    /// New code, with its memory.
    Code(Box<NewCode>),
    /// Whole spaces, and what becomes of the code that used them.
    Spaces(Vec<SpaceChange>, CodeChange),
}

impl Kept {
    /// The canister whose instance has changes.
    fn canister(&self) -> Option<Principal> {
        match self {
            Self::Memory(id) => Some(*id),
            Self::Code(new) => Some(new.canister),
            Self::Nothing | Self::Spaces(..) => None,
        }
    }
}

/// A change of all spaces of a canister or snapshot, by its number.
pub(crate) enum SpaceChange {
    Clone { from: u64, to: u64 },
    Delete { number: u64 },
}

/// A change of a canister's code beside its installation.
pub(crate) enum CodeChange {
    Same,
    Gone(Principal),
    New(Principal, Arc<Program>),
}

/// Code that was installed and not committed yet.
pub(crate) struct NewCode {
    pub(crate) canister: Principal,
    pub(crate) code: Code,
    /// The module as uploaded, padded with zeros to whole pages.
    pub(crate) module: Vec<u8>,
    /// Its memory takes the place of the one that was there, rather than changing it.
    pub(crate) new_memory: bool,
}

impl Engine {
    /// Takes over a heap and what is on it: canisters, queues, statuses. Calls under way go on with
    /// [`run`](Self::run).
    pub fn open(heap: Heap, config: Config) -> Result<Self, OpenError> {
        let Config {
            subnet_id, root_public_key_der, canister_range, randomness, limits, lazy_memory, ..
        } = config;
        let ram = Arc::new(Ram::new(limits.spare_ram_bytes));
        let loader = if lazy_memory { Loader::lazy(ram.clone()) } else { Loader::whole(ram.clone()) };
        let wasm = Wasm::new(loader);
        let wasm = Arc::new(wasm.map_err(|error| OpenError::Wasmtime(format!("{error:#}")))?);
        let config = Arc::new(Subnet { subnet_id, root_public_key_der, canister_range, limits, ram });
        let snapshot = heap.snapshot();
        let queries = Queries::new(wasm.clone(), config.clone(), snapshot.clone());
        let state = State::load(&snapshot)?;
        let mut codes = BTreeMap::new();
        for (id, canister) in state.canisters.committed() {
            if let Some(program) = queries.program(&snapshot, canister)? {
                codes.insert(*id, Code::new(program));
            }
        }
        let changes = Changes {
            requests: state.statuses.committed().keys().copied().collect(),
            canisters: state.canisters.committed().keys().copied().collect(),
        };
        let current = Arc::new(RwLock::new(Some(snapshot.clone())));
        let world = World::new(snapshot, state, config, 0);
        Ok(Self {
            heap,
            world,
            wasm,
            current,
            queries,
            randomness,
            codes,
            instructions: 0,
            heartbeat_ns: 0,
            sweep_ns: 0,
            changes,
        })
    }

    /// Sets the time that canisters see; it never goes back.
    fn set_time(&mut self, now_ns: u64) {
        self.world.now_ns = self.world.now_ns.max(now_ns);
    }

    /// Whether an ingress message may be submitted: the canister is there and would take it. Changes nothing.
    pub fn accept(&mut self, message: &IngressMessage, now_ns: u64) -> Result<(), Reject> {
        self.set_time(now_ns);
        let IngressMessage { canister, sender, method, arg, .. } = message;
        if *canister == Principal::management_canister() {
            return self.accept_management(*sender, method, arg);
        }
        self.method(*canister, method)?;
        self.inspect(*canister, *sender, method, arg)
    }

    /// Queues an ingress message; when it returns, message and status are durable.
    pub fn submit(&mut self, message: IngressMessage, now_ns: u64) -> Result<(), SubmitError> {
        self.set_time(now_ns);
        let refuse = |code, text: &str| Err(SubmitError::Refused(Reject::new(code, text)));
        let World { state, config, now_ns, .. } = &mut *self.world;
        if state.statuses.get(&message.request_id).is_some() {
            return Err(SubmitError::Duplicate);
        }
        if *now_ns > message.expiry_ns {
            return refuse(
                ErrorCode::IngressMessageTimeout,
                "The ingress message is expired; sign a new one",
            );
        }
        if state.messages.committed().len() >= config.limits.queue {
            return refuse(ErrorCode::CanisterQueueFull, "The queue is full; try again later");
        }
        let record = StatusRecord {
            status: IngressStatus::Received,
            sender: message.sender,
            canister: message.canister,
            keep_until_ns: message.expiry_ns,
        };
        state.statuses.insert(message.request_id, record);
        state.enqueue(Message::Ingress(message));
        self.commit(Kept::Nothing).map_err(|error| {
            self.world.discard();
            SubmitError::Commit(error)
        })
    }

    /// Executes due timers and heartbeats and queued messages, until there is nothing to do or the budget of
    /// instructions is used up. Each message is durable before its effects show.
    pub fn run(&mut self, now_ns: u64) -> Result<Progress, RunError> {
        self.set_time(now_ns);
        self.instructions = 0;
        let mut progress = Progress::default();
        self.sweep().map_err(RunError::Commit)?;
        for (canister, export) in self.due_tasks() {
            self.step(
                |engine| engine.task(canister, export),
                |engine, _| engine.world.begin_task(canister, export),
            )?;
            progress.executed += 1;
        }
        while self.instructions < self.world.config.limits.round_instructions {
            let Some((id, _)) = self.world.state.messages.committed().first_key_value() else {
                progress.idle = true;
                break;
            };
            let id = *id;
            self.step(
                |engine| {
                    let message = engine.world.state.messages.committed().get(&id).cloned();
                    let kept = message.map_or(Kept::Nothing, |message| engine.process(*message));
                    engine.world.state.messages.remove(&id);
                    kept
                },
                |engine, reject| {
                    if let Some(lost) = engine.world.state.messages.remove(&id) {
                        engine.give_up(lost, reject);
                    }
                },
            )?;
            progress.executed += 1;
        }
        Ok(progress)
    }

    /// Executes and commits. If the commit fails, all is undone and `give_up` commits the failure instead. What did not
    /// find memory is executed once more, after what waits in memory for its next message was dropped.
    fn step(
        &mut self,
        execute: impl Fn(&mut Self) -> Kept,
        give_up: impl FnOnce(&mut Self, Reject),
    ) -> Result<(), RunError> {
        let ram = self.world.config.ram.clone();
        if ram.is_short() {
            self.drop_instances();
        }
        // Whether somebody else was refused is not of interest.
        ram.refused();
        let mut kept = execute(self);
        if ram.refused() {
            self.undo(kept.canister());
            self.drop_instances();
            kept = execute(self);
        }
        let canister = kept.canister();
        let Err(error) = self.commit(kept) else { return Ok(()) };
        tracing::error!("a message could not be committed: {error}");
        self.undo(canister);
        let text =
            format!("The message was executed and undone, for its effects could not be stored: {error}");
        give_up(self, Reject::new(ErrorCode::SubnetOversubscribed, text));
        self.commit(Kept::Nothing).map_err(|error| {
            self.world.discard();
            RunError::Commit(error)
        })
    }

    fn undo(&mut self, canister: Option<Principal>) {
        match canister {
            Some(id) => self.roll_back(id),
            None => self.world.discard(),
        }
    }

    /// Gives back the memory of canisters and of those that answer queries; what is called next is read again.
    fn drop_instances(&mut self) {
        self.codes.values_mut().for_each(Code::rest);
        self.queries.rest();
        if self.world.config.ram.look() {
            tracing::warn!("the machine is short of memory; messages that touch much of it are refused");
        }
    }

    /// Answers a message that cannot be executed.
    fn give_up(&mut self, message: Message, reject: Reject) {
        match message {
            Message::Ingress(ingress) => {
                self.world.respond(&Origin::Ingress(ingress.request_id), Err(reject), 0);
            }
            Message::Request(request) => self.world.respond(&request.origin, Err(reject), request.cycles),
            Message::Response(response) => self.world.drop_response(&response, reject),
        }
    }

    /// Makes the pending changes durable and then visible. After an error they are still pending.
    pub(crate) fn commit(&mut self, mut kept: Kept) -> Result<(), CommitError> {
        match &mut kept {
            Kept::Memory(id) => {
                if let Some(code) = self.codes.get_mut(id) {
                    collect(&mut self.world, code, *id, 1);
                }
            }
            Kept::Code(new) => collect(&mut self.world, &mut new.code, new.canister, 0),
            Kept::Nothing | Kept::Spaces(..) => {}
        }
        let mut batch = Batch::new();
        let record = |id| self.world.state.canisters.get(id);
        match &kept {
            Kept::Nothing => {}
            Kept::Memory(id) => {
                if let (Some(canister), Some(code)) = (record(id), self.codes.get(id)) {
                    code.write_memory(canister.memory_space(), &mut batch);
                }
            }
            Kept::Code(new) => {
                if let Some(canister) = record(&new.canister) {
                    if new.new_memory {
                        batch.delete_space(canister.memory_space());
                    }
                    batch.delete_space(canister.table_space());
                    new.code.write_memory(canister.memory_space(), &mut batch);
                    let (pages, _) = new.module.as_chunks::<PAGE>();
                    batch.resize(canister.module_space(), pages.len() as u64);
                    for (number, page) in (0..).zip(pages) {
                        batch.put_page(canister.module_space(), number, page);
                    }
                }
            }
            Kept::Spaces(changes, _) => {
                for change in changes {
                    match change {
                        SpaceChange::Clone { from, to } => {
                            for (from, to) in spaces_of(*from).into_iter().zip(spaces_of(*to)) {
                                batch.clone_space(from, to);
                            }
                        }
                        SpaceChange::Delete { number } => {
                            for space in spaces_of(*number) {
                                batch.delete_space(space);
                            }
                        }
                    }
                }
            }
        }
        // Messages come in, are answered and free what is stored when canisters find no room any more.
        if matches!(kept, Kept::Memory(_) | Kept::Code(_)) {
            batch.leave_room();
        }
        self.world.overlay.commit(&mut batch);
        self.world.state.write(&mut batch);
        if !batch.is_empty() {
            self.heap.commit(&batch)?;
            let snapshot = self.heap.snapshot();
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(snapshot.clone());
            self.world.snapshot = snapshot;
        }
        self.note_changes();
        self.world.state.settle();
        self.world.overlay.clear();
        match kept {
            Kept::Code(mut new) => {
                new.code.settle();
                self.codes.insert(new.canister, new.code);
            }
            Kept::Memory(id) => {
                if let Some(code) = self.codes.get_mut(&id) {
                    code.settle();
                }
            }
            Kept::Spaces(_, CodeChange::Gone(id)) => {
                self.codes.remove(&id);
            }
            Kept::Spaces(_, CodeChange::New(id, program)) => {
                self.codes.insert(id, Code::new(program));
            }
            Kept::Nothing | Kept::Spaces(_, CodeChange::Same) => {}
        }
        Ok(())
    }

    /// Remembers which of the pending changes outsiders may see.
    fn note_changes(&mut self) {
        let Self { world, changes, .. } = self;
        changes.requests.extend(world.state.statuses.pending().map(|(id, ..)| *id));
        let canisters = world.state.canisters.pending();
        let canisters = canisters.filter(|(_, before, after)| {
            !before.zip(*after).is_some_and(|(one, other)| looks_like(one, other))
        });
        changes.canisters.extend(canisters.map(|(id, ..)| *id));
    }

    /// What outsiders may see that changed since the last time this was asked; at first, all there is.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Makes sure that the instance of a canister with code exists.
    pub(crate) fn attach(&mut self, id: Principal) -> Result<(), Reject> {
        match self.codes.get_mut(&id) {
            Some(code) => {
                code.attach(&self.wasm, &self.world, &self.current, &id).map_err(|why| cannot_start(id, &why))
            }
            None => Ok(()),
        }
    }

    fn beats(&self, id: &Principal, canister: &Canister) -> bool {
        matches!(canister.run, Run::Running)
            && self.codes.get(id).is_some_and(|code| code.program.prepared.heartbeat)
    }

    /// When a canister's timer is due, if ever.
    fn timer(&self, id: &Principal, canister: &Canister) -> Option<u64> {
        let time = self.world.state.progress.committed().get(id)?.timer_ns;
        let waits = time > 0 && matches!(canister.run, Run::Running) && self.codes.contains_key(id);
        waits.then_some(time)
    }

    fn due_tasks(&mut self) -> Vec<(Principal, &'static str)> {
        let now = self.world.now_ns;
        let beat = now >= self.heartbeat_ns.saturating_add(HEARTBEAT_NS);
        let mut due = Vec::new();
        for (id, canister) in self.world.state.canisters.committed() {
            if beat && self.beats(id, canister) {
                due.push((*id, HEARTBEAT));
            }
            if self.timer(id, canister).is_some_and(|timer| timer <= now) {
                due.push((*id, TIMER));
            }
        }
        if beat {
            self.heartbeat_ns = now;
        }
        due
    }

    /// When [`run`](Self::run) will next have something to do, in ns since 1970; none if only a new message
    /// can bring that about.
    pub fn next_wakeup(&self) -> Option<u64> {
        let state = &self.world.state;
        if !state.messages.committed().is_empty() {
            return Some(self.world.now_ns);
        }
        let canisters = state.canisters.committed().iter();
        let times = canisters.flat_map(|(id, canister)| {
            let beat = self.beats(id, canister).then(|| self.heartbeat_ns.saturating_add(HEARTBEAT_NS));
            [beat, self.timer(id, canister)]
        });
        times.flatten().min()
    }

    /// Forgets answers that were kept long enough.
    fn sweep(&mut self) -> Result<(), CommitError> {
        let now = self.world.now_ns;
        if now < self.sweep_ns {
            return Ok(());
        }
        self.sweep_ns = now.saturating_add(SWEEP_NS);
        let old = self.world.state.statuses.committed().iter().filter(|(_, record)| {
            let open = matches!(record.status, IngressStatus::Received | IngressStatus::Processing);
            !open && record.keep_until_ns < now
        });
        let old: Vec<RequestId> = old.map(|(id, _)| *id).collect();
        for id in old {
            self.world.state.statuses.remove(&id);
        }
        self.commit(Kept::Nothing)
    }

    /// Where an ingress message stands; none if it is not known (any more).
    pub fn status(&self, id: &RequestId) -> Option<&IngressStatus> {
        self.world.state.statuses.committed().get(id).map(|record| &record.status)
    }

    /// Who sent an ingress message, and to whom; none if it is not known (any more).
    pub fn requester(&self, id: &RequestId) -> Option<(Principal, Principal)> {
        self.world.state.statuses.committed().get(id).map(|record| (record.sender, record.canister))
    }

    /// All known ingress messages, by request id.
    pub fn statuses(&self) -> impl Iterator<Item = (&RequestId, &IngressStatus)> {
        self.world.state.statuses.committed().iter().map(|(id, record)| (id, &record.status))
    }

    /// Answers a query from the last committed state, which it does not change. Other threads use
    /// [`queries`](Self::queries).
    pub fn query(&mut self, message: QueryMessage, now_ns: u64) -> QueryReply {
        self.set_time(now_ns);
        self.publish();
        self.queries.query(message, self.world.now_ns)
    }

    /// Answers queries on other threads, from the state that was last [published](Self::publish).
    pub fn queries(&self) -> Queries {
        self.queries.clone()
    }

    /// Lets queries see all that is committed.
    pub fn publish(&self) {
        self.queries.publish(self.world.snapshot.clone());
    }

    /// Pages of memories are read when they are touched. Otherwise the machine does not offer userfaultfd, and a
    /// memory is read as a whole when its canister is first called.
    pub fn lazy_memory(&self) -> bool {
        self.wasm.loader.is_lazy()
    }

    /// One canister.
    pub fn canister(&self, id: &Principal) -> Option<CanisterView<'_>> {
        let (id, canister) = self.world.state.canisters.committed().get_key_value(id)?;
        Some(self.view(id, canister))
    }

    /// All canisters, in order of their ids.
    pub fn canisters(&self) -> impl Iterator<Item = CanisterView<'_>> {
        self.world.state.canisters.committed().iter().map(|(id, canister)| self.view(id, canister))
    }

    fn view<'a>(&'a self, id: &Principal, canister: &'a Canister) -> CanisterView<'a> {
        CanisterView {
            id: *id,
            module_hash: canister.module.as_ref().map(|module| &module.hash),
            controllers: &canister.controllers,
            certified_data: &canister.certified_data,
            metadata: self.codes.get(id).map(|code| &code.program.prepared.metadata),
        }
    }

    /// Puts the heap under another key, while everything goes on.
    pub fn rekey(&mut self, key: &heap::Key) -> Result<(), CommitError> {
        self.heap.rekey(key)
    }

    /// Number of the heap's last commit: all up to it are durable.
    pub fn epoch(&self) -> u64 {
        self.heap.epoch()
    }

    /// Figures about the heap.
    pub fn heap_status(&self) -> Status {
        self.heap.status()
    }
}

/// Ends a program's execution: lists what changed in its memory, and puts its globals into the pending records.
fn collect(world: &mut World, code: &mut Code, id: Principal, versions: u64) {
    code.collect();
    if let Some(progress) = world.state.progress.get_mut(&id) {
        code.read_globals(&mut progress.globals);
        progress.version += versions;
    }
}

/// Whether outsiders see the same of both; see [`CanisterView`].
fn looks_like(one: &Canister, other: &Canister) -> bool {
    one.module == other.module
        && one.controllers == other.controllers
        && one.certified_data == other.certified_data
}

/// The spaces of a canister or snapshot with this number.
fn spaces_of(number: u64) -> [SpaceId; 4] {
    let nobody = Canister::new(number, [].into(), 0);
    [nobody.memory_space(), nobody.stable_space(), nobody.module_space(), nobody.table_space()]
}

/// The module of a canister, as it was uploaded.
pub(crate) fn read_module(snapshot: &Snapshot, canister: &Canister) -> Result<Option<Vec<u8>>, ReadError> {
    let Some(record) = &canister.module else { return Ok(None) };
    let mut module = Vec::new();
    let mut data: Page = [0; PAGE];
    for page in 0..snapshot.space_pages(canister.module_space())?.unwrap_or(0) {
        snapshot.read_page(canister.module_space(), page, &mut data)?;
        module.extend_from_slice(&data);
    }
    module.truncate(record.bytes as usize);
    Ok(Some(module))
}
