//! Live wasm instances: compiled at first use, filled from a snapshot as they go, and taken back to it after
//! whatever must leave no trace.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use candid::Principal;
use wasmtime::{
    Caller, Config, Engine, Global, Instance, InstancePre, Linker, Module, OperatorCost, OptLevel, Ref,
    ResourceLimiter, Store, Trap, TypedFunc, V128, Val,
};

use crate::api::{ErrorCode, Limits, Reject};
use crate::prepare::{ADDED, GlobalType, MARK, MARK_RANGE, MEMORY, Prepared, START, TABLE};
use crate::state::{Closure, Lent, WASM_PAGE, World};
use crate::store::{Batch, PAGE, SpaceId};
use crate::syscalls::{Call, Context, Mode, Pointer, Stop, link, link_legacy};
use crate::working::{Creator, Current, GUARD, Loader, RESERVATION, Undone, Working, layout, with_memories};

/// Stack that a program may use, in bytes; the engine's thread needs twice that.
const MAX_STACK: usize = 1 << 20;
/// Most elements of a table.
const MAX_TABLE: usize = 1 << 20;
/// Pages of a program's memory, of 4 KiB, in one wasm page.
const PER_WASM_PAGE: u64 = WASM_PAGE / PAGE as u64;

/// The compiler, the system calls, and what fills memories.
pub(crate) struct Wasm {
    engine: Engine,
    linker32: Linker<Context>,
    linker64: Linker<Context>,
    pub(crate) loader: Loader,
}

impl Wasm {
    pub(crate) fn new(loader: Loader) -> wasmtime::Result<Self> {
        let mut config = Config::new();
        config
            .consume_fuel(true)
            .operator_cost(only_nops_cost()?)
            .cranelift_nan_canonicalization(true)
            .wasm_relaxed_simd(false)
            .wasm_multi_memory(true)
            .wasm_branch_hinting(true)
            .cranelift_opt_level(OptLevel::Speed)
            .wasm_backtrace_max_frames(None)
            .native_unwind_info(false)
            .generate_address_map(false)
            .memory_init_cow(false)
            .memory_may_move(false)
            .memory_reservation(RESERVATION as u64)
            .memory_guard_size(GUARD as u64)
            .with_host_memory(Arc::new(Creator))
            .max_wasm_stack(MAX_STACK);
        let engine = Engine::new(&config)?;
        let (mut linker32, mut linker64) = (Linker::new(&engine), Linker::new(&engine));
        link_marks::<i32>(&mut linker32)?;
        link_marks::<i64>(&mut linker64)?;
        link::<i32>(&mut linker32)?;
        link_legacy(&mut linker32)?;
        link::<i64>(&mut linker64)?;
        Ok(Self { engine, linker32, linker64, loader })
    }
}

/// The costs that prepared modules count on: `nop` one, bulk instructions by the byte as always, the rest nothing.
/// The table has a field for each of hundreds of instructions; serialisation reaches them all.
fn only_nops_cost() -> wasmtime::Result<OperatorCost> {
    use ciborium::Value;
    let mut table = Value::serialized(&OperatorCost::new())?;
    if let Value::Map(fields) = &mut table {
        for (name, cost) in fields {
            if matches!(cost, Value::Integer(_)) {
                *cost = Value::from(u8::from(name.as_text() == Some("Nop")));
            }
        }
    }
    Ok(table.deserialized()?)
}

/// What prepared modules tell before they change their memory.
fn link_marks<P: Pointer>(linker: &mut Linker<Context>) -> wasmtime::Result<()> {
    linker.func_wrap(ADDED, MARK, |mut caller: Caller<'_, Context>, page: i32| -> wasmtime::Result<()> {
        let left = caller.get_fuel()?;
        let context = caller.data_mut();
        let instructions = context.call.limit.saturating_sub(left);
        match &mut context.working {
            Some(working) => working
                .mark_for_program(page.cast_unsigned(), instructions)
                .map_err(|short| Stop::Memory(short).into()),
            None => Ok(()),
        }
    })?;
    linker.func_wrap(
        ADDED,
        MARK_RANGE,
        |mut caller: Caller<'_, Context>, start: P, length: P| -> wasmtime::Result<()> {
            caller.data_mut().mark(start.get(), length.get())
        },
    )?;
    Ok(())
}

/// What to run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Entry<'a> {
    /// An export; nothing happens if there is none of this name.
    Export(&'a str),
    /// A function of table 0.
    Closure(Closure),
}

/// What came of an execution.
pub(crate) struct Ran {
    pub(crate) call: Call,
    pub(crate) result: Result<(), Reject>,
    pub(crate) instructions: u64,
}

/// A module, compiled at first use. Instances of several canisters, and those for queries, share it.
pub(crate) struct Program {
    pub(crate) prepared: Prepared,
    pre: OnceLock<Result<InstancePre<Context>, String>>,
}

impl Program {
    pub(crate) fn new(prepared: Prepared) -> Arc<Self> {
        Arc::new(Self { prepared, pre: OnceLock::new() })
    }

    /// Compiles, if that was not done. The error says what is wrong with the module.
    pub(crate) fn compile(&self, wasm: &Wasm) -> Result<&InstancePre<Context>, String> {
        let compile = || {
            let linker = if self.prepared.memory64 { &wasm.linker64 } else { &wasm.linker32 };
            let module = Module::new(&wasm.engine, &self.prepared.wasm);
            let pre = module.and_then(|module| linker.instantiate_pre(&module));
            pre.map_err(|error| format!("{error:#}"))
        };
        self.pre.get_or_init(compile).as_ref().map_err(Clone::clone)
    }

    fn most_bytes(&self, limits: &Limits) -> u64 {
        if self.prepared.memory64 { limits.memory64_bytes } else { limits.memory32_bytes }
    }
}

/// The code of one canister, and its instance once there is one.
pub(crate) struct Code {
    pub(crate) program: Arc<Program>,
    live: Option<Live>,
}

impl Code {
    pub(crate) fn new(program: Arc<Program>) -> Self {
        Self { program, live: None }
    }

    /// Makes an instance whose memory is new.
    pub(crate) fn instantiate(
        &mut self,
        wasm: &Wasm,
        limits: &Limits,
        current: Current,
        space: SpaceId,
    ) -> Result<(), String> {
        self.live = None;
        self.live = Some(Live::attached(wasm, &self.program, limits, current, space, 0)?);
        Ok(())
    }

    /// Makes an instance that goes on with the memory of another program, uncommitted changes included.
    pub(crate) fn instantiate_keeping(
        &mut self,
        wasm: &Wasm,
        limits: &Limits,
        current: Current,
        space: SpaceId,
        from: &mut Self,
    ) -> Result<(), String> {
        let Some(from) = from.live.as_mut().and_then(|live| live.store.data_mut().working.as_mut()) else {
            return Err("there is no memory to keep".to_owned());
        };
        let mut live = Live::attached(wasm, &self.program, limits, current, space, from.committed_pages())?;
        live.grow(from.pages())?;
        if let Some(working) = &mut live.store.data_mut().working {
            working.adopt(from).map_err(|short| short.to_string())?;
        }
        self.live = Some(live);
        Ok(())
    }

    /// Writes the data segments, as instantiation of the uploaded module would have.
    pub(crate) fn write_data(&mut self) -> Result<(), String> {
        let working = self.live.as_mut().and_then(|live| live.store.data_mut().working.as_mut());
        let Some(working) = working else { return Ok(()) };
        for (address, bytes) in &self.program.prepared.data {
            if !working.write_bytes(*address, bytes).map_err(|short| short.to_string())? {
                return Err(format!(
                    "data segment of {} bytes at {address} is outside the memory",
                    bytes.len()
                ));
            }
        }
        Ok(())
    }

    /// Makes sure that the instance is there and holds the committed image, which `current` shows.
    pub(crate) fn attach(
        &mut self,
        wasm: &Wasm,
        world: &World,
        current: &Current,
        id: &Principal,
    ) -> Result<(), String> {
        if self.live.is_some() {
            return Ok(());
        }
        let state = &world.state;
        let Some((canister, progress)) =
            state.canisters.committed().get(id).zip(state.progress.committed().get(id))
        else {
            return Ok(());
        };
        let space = canister.memory_space();
        let pages = world.snapshot.space_pages(space).map_err(|error| error.to_string())?.unwrap_or(0);
        let limits = &world.config.limits;
        let mut live = Live::attached(wasm, &self.program, limits, current.clone(), space, pages)?;
        live.set_globals(&self.program.prepared, &progress.globals);
        self.live = Some(live);
        Ok(())
    }

    /// Runs code with at most `call.limit` instructions. Changes of memory and globals stay in the instance,
    /// all others in the world, until they are committed or rolled back.
    pub(crate) fn run(
        &mut self,
        wasm: &Wasm,
        world: &mut Lent<World>,
        current: &Current,
        entry: Entry<'_>,
        call: Call,
    ) -> Ran {
        let id = call.canister;
        let attached = self.attach(wasm, world, current, &id);
        match (attached, &mut self.live) {
            (Ok(()), Some(live)) => live.run(self.program.prepared.memory64, world, entry, call),
            (attached, _) => {
                let why = attached.err().unwrap_or_else(|| "there is no instance".to_owned());
                Ran { result: Err(cannot_start(id, &why)), call, instructions: 0 }
            }
        }
    }

    /// Drops the instance, in which nothing is uncommitted; the next use makes it anew.
    pub(crate) fn rest(&mut self) {
        self.live = None;
    }

    /// Takes memory and globals back to the committed image. If that fails, the instance is made anew at its next
    /// use.
    pub(crate) fn roll_back(&mut self, wasm: &Wasm, limits: &Limits, globals: &[u128]) {
        let Some(live) = self.live.take() else { return };
        match live.rolled_back(wasm, &self.program, limits) {
            Ok(mut live) => {
                live.set_globals(&self.program.prepared, globals);
                self.live = Some(live);
            }
            Err(why) => {
                tracing::warn!("memory is read from the heap again, for it could not be restored: {why}")
            }
        }
    }

    /// Ends the list of changed pages.
    pub(crate) fn collect(&mut self) {
        if let Some(working) = self.live.as_mut().and_then(|live| live.store.data_mut().working.as_mut()) {
            working.collect();
        }
    }

    fn working(&self) -> Option<&Working> {
        self.live.as_ref().and_then(|live| live.store.data().working.as_ref())
    }

    /// Adds what changed in the memory since the last commit; [`collect`](Self::collect) comes first.
    pub(crate) fn write_memory<'a>(&'a self, space: SpaceId, batch: &mut Batch<'a>) {
        if let Some(working) = self.working() {
            working.write(space, batch);
        }
    }

    /// The changes are durable.
    pub(crate) fn settle(&mut self) {
        if let Some(working) = self.live.as_mut().and_then(|live| live.store.data_mut().working.as_mut()) {
            working.settle();
        }
    }

    /// Seconds for one call of an export that makes no system call.
    #[cfg(feature = "bench")]
    pub(crate) fn bare(
        &mut self,
        clock: crate::bench::Clock,
        export: &str,
        calls: u32,
    ) -> wasmtime::Result<f64> {
        let live = self.live.as_mut().ok_or_else(|| wasmtime::Error::msg("there is no instance"))?;
        let function = live.instance.get_typed_func::<(), ()>(&mut live.store, export)?;
        live.store.set_fuel(u64::MAX)?;
        let start = clock();
        for _ in 0..calls {
            function.call(&mut live.store, ())?;
        }
        Ok((clock() - start) / f64::from(calls))
    }

    /// Where the memory lies, and its length in bytes.
    #[cfg(test)]
    pub(crate) fn memory_range(&self) -> (usize, usize) {
        self.working().map_or((0, 0), Working::range)
    }

    #[cfg(test)]
    pub(crate) fn memory_page(&self, page: u64) -> &crate::store::Page {
        self.working().unwrap().page(page)
    }

    /// Puts the bits of the mutable globals in place of those given.
    pub(crate) fn read_globals(&mut self, into: &mut Vec<u128>) {
        into.clear();
        if let Some(live) = &mut self.live {
            live.read_globals(into);
        }
    }
}

pub(crate) fn cannot_start(canister: Principal, why: &str) -> Reject {
    let text = format!("Error from Canister {canister}: its program cannot be started: {why}");
    Reject::new(ErrorCode::CanisterInvalidWasm, text)
}

/// What an instance may have at most.
pub(crate) struct Most {
    memory_bytes: u64,
}

impl ResourceLimiter for Most {
    fn memory_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // The memory of the marks is not the program's.
        let marks = desired == layout::BYTES && maximum == Some(layout::BYTES);
        Ok(marks || desired as u64 <= self.memory_bytes)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE)
    }
}

/// One instance.
pub(crate) struct Live {
    store: Store<Context>,
    instance: Instance,
    globals: Vec<Global>,
    /// Exports that were called, for finding one takes longer than many a call.
    entries: HashMap<Box<str>, TypedFunc<(), ()>>,
}

impl Live {
    /// Makes an instance whose memory has `pages` pages of the snapshot, or more if the module asks for more.
    pub(crate) fn attached(
        wasm: &Wasm,
        program: &Program,
        limits: &Limits,
        current: Current,
        space: SpaceId,
        pages: u64,
    ) -> Result<Self, String> {
        let working = Working::new(&wasm.loader, current, space)
            .map_err(|error| format!("there is no address space for its memory: {error}"))?;
        let mut live = Self::new(wasm, program, limits, working)?;
        live.grow(pages)?;
        match &mut live.store.data_mut().working {
            Some(working) => working.attach(pages)?,
            None => return Err("it has no memory".to_owned()),
        }
        Ok(live)
    }

    /// Makes an instance around a memory.
    fn new(wasm: &Wasm, program: &Program, limits: &Limits, working: Working) -> Result<Self, String> {
        let pre = program.compile(wasm)?;
        let mappings = working.mappings();
        let nobody = Principal::anonymous();
        let context = Context {
            world: Lent::nothing(),
            call: Call::new(Mode::Start, nobody, nobody),
            memory: None,
            working: Some(working),
            limits: Most { memory_bytes: program.most_bytes(limits) },
        };
        let mut store = Store::new(pre.module().engine(), context);
        store.limiter(|context| &mut context.limits);
        let instance = with_memories(mappings, || pre.instantiate(&mut store));
        let instance = instance.map_err(|error| format!("{error:#}"))?;
        store.data_mut().memory = instance.get_memory(&mut store, MEMORY);
        let names = program.prepared.globals.iter();
        let globals = names.filter_map(|(name, _)| instance.get_global(&mut store, name)).collect();
        Ok(Self { store, instance, globals, entries: HashMap::new() })
    }

    /// Makes the memory at least this long, in pages.
    fn grow(&mut self, pages: u64) -> Result<(), String> {
        if let Some(memory) = self.store.data().memory {
            let more = pages.div_ceil(PER_WASM_PAGE).saturating_sub(memory.size(&self.store));
            memory.grow(&mut self.store, more).map_err(|error| format!("{error:#}"))?;
        }
        Ok(())
    }

    /// The same instance with its memory as it was committed; one made anew where the memory had grown.
    pub(crate) fn rolled_back(
        mut self,
        wasm: &Wasm,
        program: &Program,
        limits: &Limits,
    ) -> Result<Self, String> {
        let Some(working) = &mut self.store.data_mut().working else { return Ok(self) };
        if let Some(why) = working.failure() {
            return Err(why);
        }
        if working.roll_back()? == Undone::Whole {
            return Ok(self);
        }
        let pages = working.pages();
        let working = self.store.data_mut().working.take();
        drop(self);
        let working = working.ok_or("it has no memory")?;
        let mut live = Self::new(wasm, program, limits, working)?;
        live.grow(pages)?;
        Ok(live)
    }

    /// Brings the memory, to which nothing was done since, to another snapshot, which its `Current` holds.
    pub(crate) fn refresh(&mut self, changed: &[u64]) -> Result<(), String> {
        self.store.data_mut().working.as_mut().map_or(Ok(()), |working| working.refresh(changed))
    }

    fn read_globals(&mut self, into: &mut Vec<u128>) {
        let store = &mut self.store;
        let bits = |global: &Global| match global.get(&mut *store) {
            Val::I32(value) => u128::from(value.cast_unsigned()),
            Val::I64(value) => u128::from(value.cast_unsigned()),
            Val::F32(bits) => u128::from(bits),
            Val::F64(bits) => u128::from(bits),
            Val::V128(value) => value.as_u128(),
            // Mutable globals that hold references were refused at installation.
            _ => 0,
        };
        into.extend(self.globals.iter().map(bits));
    }

    #[expect(clippy::cast_possible_truncation, reason = "the bits came from a global of the same type")]
    pub(crate) fn set_globals(&mut self, prepared: &Prepared, bits: &[u128]) {
        for ((global, (_, ty)), bits) in self.globals.iter().zip(&prepared.globals).zip(bits.iter().copied())
        {
            let value = match ty {
                GlobalType::I32 => Val::I32(bits as i32),
                GlobalType::I64 => Val::I64(bits as i64),
                GlobalType::F32 => Val::F32(bits as u32),
                GlobalType::F64 => Val::F64(bits as u64),
                GlobalType::V128 => Val::V128(V128::from(bits)),
            };
            if let Err(error) = global.set(&mut self.store, value) {
                tracing::error!("a global could not be set: {error}; the module's preparation is at fault");
            }
        }
    }

    pub(crate) fn run(
        &mut self,
        memory64: bool,
        world: &mut Lent<World>,
        entry: Entry<'_>,
        call: Call,
    ) -> Ran {
        let (canister, limit, mode) = (call.canister, call.limit, call.mode);
        std::mem::swap(&mut self.store.data_mut().world, world);
        let idle = std::mem::replace(&mut self.store.data_mut().call, call);
        if let Some(working) = &mut self.store.data_mut().working {
            working.reset_marker_calls();
        }
        let result = self.store.set_fuel(limit).and_then(|()| self.enter(memory64, entry));
        let left = self.store.get_fuel().unwrap_or(0);
        let context = self.store.data_mut();
        let instructions = context.instructions(left);
        let result = result.and_then(|()| context.abandon_call());
        std::mem::swap(&mut context.world, world);
        let call = std::mem::replace(&mut context.call, idle);
        let damaged = context.working.as_ref().and_then(Working::failure);
        let result = match damaged {
            // Whatever came of it, it may have read what was never committed.
            Some(why) => {
                let text = format!("Error from Canister {canister}: its memory cannot be read: {why}");
                Err(Reject::new(ErrorCode::CanisterTrapped, text))
            }
            None => result.map_err(|error| failure(canister, mode, limit, &error)),
        };
        Ran { call, result, instructions }
    }

    fn enter(&mut self, memory64: bool, entry: Entry<'_>) -> wasmtime::Result<()> {
        match entry {
            Entry::Export(name) => {
                if let Some(function) = self.entries.get(name) {
                    return function.call(&mut self.store, ());
                }
                let Some(function) = self.instance.get_func(&mut self.store, name) else { return Ok(()) };
                let function = function.typed::<(), ()>(&self.store)?;
                self.entries.insert(name.into(), function.clone());
                function.call(&mut self.store, ())
            }
            Entry::Closure(closure) => {
                let table = self.instance.get_table(&mut self.store, TABLE);
                let function = table.and_then(|table| table.get(&mut self.store, closure.function));
                let Some(Ref::Func(Some(function))) = function else {
                    let text = format!("callback {} is not in the table", closure.function);
                    return Err(Stop::Contract(text).into());
                };
                // The environment has the width of addresses.
                let mismatch = |_| Stop::Contract("callback has another type than it must".to_owned());
                if memory64 {
                    let environment = closure.environment.cast_signed();
                    function
                        .typed::<i64, ()>(&self.store)
                        .map_err(mismatch)?
                        .call(&mut self.store, environment)
                } else {
                    let environment = i32::of(closure.environment as usize);
                    function
                        .typed::<i32, ()>(&self.store)
                        .map_err(mismatch)?
                        .call(&mut self.store, environment)
                }
            }
        }
    }
}

/// The name of the start function's entry.
pub(crate) const START_ENTRY: Entry<'static> = Entry::Export(START);

/// What an execution's error means to the caller, in the words that the field's tools know.
fn failure(canister: Principal, mode: Mode, limit: u64, error: &wasmtime::Error) -> Reject {
    let (code, text) = if let Some(stop) = error.downcast_ref::<Stop>() {
        let code = match stop {
            Stop::Called(_) => ErrorCode::CanisterCalledTrap,
            Stop::Contract(_) => ErrorCode::CanisterContractViolation,
            Stop::Cycles(_) => ErrorCode::CanisterOutOfCycles,
            Stop::Memory(_) => ErrorCode::CanisterOutOfMemory,
        };
        (code, stop.to_string())
    } else {
        match error.downcast_ref::<Trap>() {
            Some(Trap::OutOfFuel) => (
                ErrorCode::CanisterInstructionLimitExceeded,
                format!(
                    "Canister exceeded the limit of {limit} instructions for single message execution in {} mode",
                    mode.name()
                ),
            ),
            Some(trap) => (ErrorCode::CanisterTrapped, format!("Canister trapped: {trap}")),
            None => (ErrorCode::CanisterTrapped, format!("Canister trapped: {error:#}")),
        }
    };
    Reject::new(code, format!("Error from Canister {canister}: {text}"))
}
