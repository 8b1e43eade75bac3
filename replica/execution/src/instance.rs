//! Live wasm instances: one per canister, compiled at first use and taken back to the committed image after
//! whatever must leave no trace.

use candid::Principal;
use heap::Batch;
use wasmtime::{
    Config, Engine, Global, Instance, InstancePre, Linker, Module, OptLevel, Ref, Store, StoreLimits,
    StoreLimitsBuilder, Trap, V128, Val,
};

use crate::api::{ErrorCode, Limits, Reject};
use crate::memory;
use crate::prepare::{GlobalType, MEMORY, Prepared, START, TABLE};
use crate::state::{Canister, Closure, Lent, WASM_PAGE, World};
use crate::syscalls::{Call, Context, Mode, Pointer, Stop, link, link_legacy};

/// Stack that a program may use, in bytes; the engine's thread needs twice that.
const MAX_STACK: usize = 1 << 20;
/// Address space kept for each memory, above the largest memory, so that a growing memory never moves.
const RESERVATION: u64 = 8 << 30;
/// Most elements of a table.
const MAX_TABLE: usize = 1 << 20;

/// The compiler and the system calls.
pub(crate) struct Wasm {
    engine: Engine,
    linker32: Linker<Context>,
    linker64: Linker<Context>,
}

impl Wasm {
    pub(crate) fn new() -> wasmtime::Result<Self> {
        let mut config = Config::new();
        config
            .consume_fuel(true)
            .cranelift_nan_canonicalization(true)
            .wasm_relaxed_simd(false)
            .cranelift_opt_level(OptLevel::Speed)
            .wasm_backtrace_max_frames(None)
            .native_unwind_info(false)
            .generate_address_map(false)
            .memory_init_cow(false)
            .memory_reservation(RESERVATION)
            .max_wasm_stack(MAX_STACK);
        let engine = Engine::new(&config)?;
        let (mut linker32, mut linker64) = (Linker::new(&engine), Linker::new(&engine));
        link::<i32>(&mut linker32)?;
        link_legacy(&mut linker32)?;
        link::<i64>(&mut linker64)?;
        Ok(Self { engine, linker32, linker64 })
    }
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

/// The code of one canister, and its instance once there is one.
pub(crate) struct Code {
    pub(crate) prepared: Prepared,
    pre: Option<InstancePre<Context>>,
    live: Option<Live>,
}

impl Code {
    pub(crate) fn new(prepared: Prepared) -> Self {
        Self { prepared, pre: None, live: None }
    }

    /// Compiles, if that was not done. The error says what is wrong with the module.
    pub(crate) fn compile(&mut self, wasm: &Wasm) -> Result<&InstancePre<Context>, String> {
        let pre = match self.pre.take() {
            Some(pre) => pre,
            None => {
                let linker = if self.prepared.memory64 { &wasm.linker64 } else { &wasm.linker32 };
                let module = Module::new(&wasm.engine, &self.prepared.wasm);
                let pre = module.and_then(|module| linker.instantiate_pre(&module));
                pre.map_err(|error| format!("{error:#}"))?
            }
        };
        Ok(self.pre.insert(pre))
    }

    /// Makes an instance with `pages` wasm pages of zeros, or more if the module asks for more.
    pub(crate) fn instantiate(&mut self, wasm: &Wasm, limits: &Limits, pages: u64) -> Result<(), String> {
        self.live = None;
        let most = if self.prepared.memory64 { limits.memory64_bytes } else { limits.memory32_bytes };
        let pre = self.compile(wasm)?.clone();
        self.live = Some(Live::new(&pre, &self.prepared, most, pages).map_err(|error| format!("{error:#}"))?);
        Ok(())
    }

    /// Writes the data segments, as instantiation of the uploaded module would have.
    pub(crate) fn write_data(&mut self) -> Result<(), String> {
        let Some(live) = &mut self.live else { return Ok(()) };
        let memory = live.memory_mut();
        for (address, bytes) in &self.prepared.data {
            let start = usize::try_from(*address).ok();
            let target = start.and_then(|start| memory.get_mut(start..start.checked_add(bytes.len())?));
            let Some(target) = target else {
                return Err(format!(
                    "data segment of {} bytes at {address} is outside the memory",
                    bytes.len()
                ));
            };
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// The working memory.
    pub(crate) fn memory(&self) -> &[u8] {
        self.live.as_ref().map_or(&[], Live::memory)
    }

    /// Copies another program's memory into this one, which was instantiated with at least that length.
    pub(crate) fn adopt_memory(&mut self, from: &[u8]) {
        if let Some(target) = self.live.as_mut().and_then(|live| live.memory_mut().get_mut(..from.len())) {
            target.copy_from_slice(from);
        }
    }

    /// Makes sure that the instance is there and holds the committed image.
    pub(crate) fn attach(&mut self, wasm: &Wasm, world: &World, canister: &Canister) -> Result<(), String> {
        if self.live.is_some() {
            return Ok(());
        }
        let space = world.heap.space(canister.memory_space());
        let pages = space.map_or(0, |space| space.pages() * heap::PAGE as u64 / WASM_PAGE);
        self.instantiate(wasm, &world.config.limits, pages)?;
        if let Some(live) = &mut self.live {
            if let Some(space) = space {
                memory::load(space, live.memory_mut());
            }
            live.set_globals(&self.prepared, &canister.globals);
        }
        Ok(())
    }

    /// Runs code with at most `call.limit` instructions. Changes of memory and globals stay in the instance,
    /// all others in the world, until they are committed or rolled back.
    pub(crate) fn run(&mut self, wasm: &Wasm, world: &mut Lent<World>, entry: Entry<'_>, call: Call) -> Ran {
        let id = call.canister;
        let attached = match world.state.canisters.committed().get(&id) {
            Some(canister) => self.attach(wasm, world, canister),
            None => Ok(()),
        };
        match (attached, &mut self.live) {
            (Ok(()), Some(live)) => live.run(self.prepared.memory64, world, entry, call),
            (attached, _) => {
                let why = attached.err().unwrap_or_else(|| "there is no instance".to_owned());
                let text = format!("Error from Canister {id}: its program cannot be started: {why}");
                let result = Err(Reject::new(ErrorCode::CanisterInvalidWasm, text));
                Ran { call, result, instructions: 0 }
            }
        }
    }

    /// Takes memory and globals back to the committed image.
    pub(crate) fn roll_back(&mut self, world: &World, canister: &Canister) {
        if let Some(live) = &mut self.live {
            let space = world.heap.space(canister.memory_space());
            if memory::restore(space, live.memory_mut()) {
                live.set_globals(&self.prepared, &canister.globals);
            } else {
                // It is made anew at next use.
                self.live = None;
            }
        }
    }

    /// Adds to a batch what the instance's memory differs in from the committed image.
    pub(crate) fn write_memory(&self, world: &World, canister: &Canister, batch: &mut Batch) {
        let space = canister.memory_space();
        memory::write_changes(space, world.heap.space(space), self.memory(), batch);
    }

    /// Bits of the mutable globals.
    pub(crate) fn globals(&mut self) -> Vec<u128> {
        self.live.as_mut().map_or_else(Vec::new, Live::globals)
    }
}

struct Live {
    store: Store<Context>,
    instance: Instance,
    globals: Vec<Global>,
}

impl Live {
    fn new(
        pre: &InstancePre<Context>,
        prepared: &Prepared,
        most_bytes: u64,
        pages: u64,
    ) -> wasmtime::Result<Self> {
        let limits: StoreLimits = StoreLimitsBuilder::new()
            .memory_size(usize::try_from(most_bytes).unwrap_or(usize::MAX))
            .table_elements(MAX_TABLE)
            .build();
        let nobody = Principal::anonymous();
        let context = Context {
            world: Lent::nothing(),
            call: Call::new(Mode::Start, nobody, nobody),
            memory: None,
            limits,
        };
        let mut store = Store::new(pre.module().engine(), context);
        store.limiter(|context| &mut context.limits);
        let instance = pre.instantiate(&mut store)?;
        let memory = instance.get_memory(&mut store, MEMORY);
        store.data_mut().memory = memory;
        if let Some(memory) = memory {
            let more = pages.saturating_sub(memory.size(&store));
            memory.grow(&mut store, more)?;
        }
        let globals = prepared.globals.iter().filter_map(|(name, _)| instance.get_global(&mut store, name));
        let globals = globals.collect();
        Ok(Self { store, instance, globals })
    }

    fn memory(&self) -> &[u8] {
        self.store.data().memory.map_or(&[], |memory| memory.data(&self.store))
    }

    fn memory_mut(&mut self) -> &mut [u8] {
        match self.store.data().memory {
            Some(memory) => memory.data_mut(&mut self.store),
            None => &mut [],
        }
    }

    fn globals(&mut self) -> Vec<u128> {
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
        self.globals.iter().map(bits).collect()
    }

    #[expect(clippy::cast_possible_truncation, reason = "the bits came from a global of the same type")]
    fn set_globals(&mut self, prepared: &Prepared, bits: &[u128]) {
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

    fn run(&mut self, memory64: bool, world: &mut Lent<World>, entry: Entry<'_>, call: Call) -> Ran {
        let (canister, limit, mode) = (call.canister, call.limit, call.mode);
        std::mem::swap(&mut self.store.data_mut().world, world);
        let idle = std::mem::replace(&mut self.store.data_mut().call, call);
        let result = self.store.set_fuel(limit).and_then(|()| self.enter(memory64, entry));
        let instructions = limit - self.store.get_fuel().unwrap_or(0).min(limit);
        let context = self.store.data_mut();
        let result = result.and_then(|()| context.abandon_call());
        std::mem::swap(&mut context.world, world);
        let call = std::mem::replace(&mut context.call, idle);
        let result = result.map_err(|error| failure(canister, mode, limit, &error));
        Ran { call, result, instructions }
    }

    fn enter(&mut self, memory64: bool, entry: Entry<'_>) -> wasmtime::Result<()> {
        match entry {
            Entry::Export(name) => match self.instance.get_func(&mut self.store, name) {
                Some(function) => function.typed::<(), ()>(&self.store)?.call(&mut self.store, ()),
                None => Ok(()),
            },
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
