//! Live wasm instances: compiled at first use, filled from a snapshot as they go, and taken back to it after
//! whatever must leave no trace.

use std::sync::{Arc, OnceLock};

use candid::Principal;
use wasmtime::{Caller, Config, Engine, InstancePre, Linker, Module, OperatorCost, OptLevel};

use crate::api::{ErrorCode, Limits, Reject};
use crate::prepare::{ADDED, MARK, MARK_RANGE, Prepared, TABLE_CHANGED};
use crate::state::{Closure, Lent, Spaces, World};
use crate::store::{Batch, SpaceId};
use crate::syscalls::{Call, Context, Pointer, Stop, link, link_legacy};
use crate::working::{Creator, Current, GUARD, Loader, RESERVATION, Working};

mod live;

pub(crate) use live::{Live, Most, START_ENTRY};

/// Stack that a program may use, in bytes; the engine's thread needs twice that.
const MAX_STACK: usize = 1 << 20;

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

/// What prepared modules tell before they change their memory, and after they changed a table.
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
    linker.func_wrap(
        ADDED,
        TABLE_CHANGED,
        |mut caller: Caller<'_, Context>, table: i32, start: i64, length: i64| {
            let [start, length] = [start, length].map(i64::cast_unsigned);
            caller.data_mut().tables.mark(table.cast_unsigned(), start, length);
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

    /// Makes an instance whose memory and tables are new.
    pub(crate) fn instantiate(
        &mut self,
        wasm: &Wasm,
        limits: &Limits,
        current: Current,
        spaces: Spaces,
    ) -> Result<(), String> {
        self.live = None;
        let mut live = Live::attached(wasm, &self.program, limits, current, spaces, 0)?;
        live.mark_tables();
        self.live = Some(live);
        Ok(())
    }

    /// Makes an instance that goes on with the memory of another program, uncommitted changes included.
    pub(crate) fn instantiate_keeping(
        &mut self,
        wasm: &Wasm,
        limits: &Limits,
        current: Current,
        spaces: Spaces,
        from: &mut Self,
    ) -> Result<(), String> {
        let Some(from) = from.live.as_mut().and_then(|live| live.store.data_mut().working.as_mut()) else {
            return Err("there is no memory to keep".to_owned());
        };
        let mut live = Live::attached(wasm, &self.program, limits, current, spaces, from.committed_pages())?;
        live.mark_tables();
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
        let spaces = canister.instance_spaces();
        let pages =
            world.snapshot.space_pages(spaces.memory).map_err(|error| error.to_string())?.unwrap_or(0);
        let limits = &world.config.limits;
        let mut live = Live::attached(wasm, &self.program, limits, current.clone(), spaces, pages)?;
        live.load_tables()?;
        live.set_globals(&self.program.prepared, &progress.globals);
        self.live = Some(live);
        Ok(())
    }

    /// Runs code with at most `call.limit` instructions. Changes of memory, tables and globals stay in the instance,
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

    /// Takes memory, tables and globals back to the committed image. If that fails, the instance is made anew at its next
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

    /// Adds what changed in memory and tables since the last commit; [`collect`](Self::collect) comes first.
    pub(crate) fn write_memory<'a>(&'a self, space: SpaceId, batch: &mut Batch<'a>) {
        if let Some(working) = self.working() {
            working.write(space, batch);
        }
        if let Some(tables) = self.live.as_ref().and_then(|live| live.tables.as_ref()) {
            tables.write(batch);
        }
    }

    /// The changes are durable.
    pub(crate) fn settle(&mut self) {
        let Some(live) = &mut self.live else { return };
        if let Some(working) = &mut live.store.data_mut().working {
            working.settle();
        }
        if let Some(tables) = &mut live.tables {
            tables.settle(&mut live.store);
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
