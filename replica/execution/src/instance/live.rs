//! One instance: made around a memory, filled, run, and taken back.

use std::collections::HashMap;

use candid::Principal;
use wasmtime::{Global, Instance, Ref, ResourceLimiter, Store, Trap, TypedFunc, V128, Val};

use super::{Entry, Program, Ran, Wasm};
use crate::api::{ErrorCode, Limits, Reject};
use crate::prepare::{GlobalType, MEMORY, Prepared, START, TABLE};
use crate::state::{Lent, Spaces, WASM_PAGE, World};
use crate::store::PAGE;
use crate::syscalls::{Call, Context, Mode, Pointer, Stop};
use crate::wasm_tables::{Changed, Home, MAX_ENTRIES, Tables};
use crate::working::{Current, Undone, Working, layout, with_memories};

/// Pages of a program's memory, of 4 KiB, in one wasm page.
const PER_WASM_PAGE: u64 = WASM_PAGE / PAGE as u64;

/// What an instance may have at most.
pub(crate) struct Most {
    memory_bytes: u64,
    /// Entries by which tables may still grow.
    entries: usize,
}

impl ResourceLimiter for Most {
    fn memory_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // The memory of the marks is not the program's.
        let marks = desired == layout::BYTES && maximum == Some(layout::BYTES);
        Ok(marks || desired as u64 <= self.memory_bytes)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let grows = more <= self.entries && maximum.is_none_or(|maximum| desired <= maximum);
        if grows {
            self.entries -= more;
        }
        Ok(grows)
    }
}

/// One instance.
pub(crate) struct Live {
    pub(super) store: Store<Context>,
    pub(super) instance: Instance,
    globals: Vec<Global>,
    /// Of a program that changes them.
    pub(super) tables: Option<Tables>,
    home: Home,
    /// Exports that were called, for finding one takes longer than many a call.
    entries: HashMap<Box<str>, TypedFunc<(), ()>>,
}

impl Live {
    /// Makes an instance whose memory has `pages` pages of the snapshot, or more if the module asks for more. Its tables
    /// and globals are as the module makes them.
    pub(crate) fn attached(
        wasm: &Wasm,
        program: &Program,
        limits: &Limits,
        current: Current,
        spaces: Spaces,
        pages: u64,
    ) -> Result<Self, String> {
        let home = Home { current: current.clone(), space: spaces.tables };
        let working = Working::new(&wasm.loader, current, spaces.memory)
            .map_err(|error| format!("there is no address space for its memory: {error}"))?;
        let mut live = Self::new(wasm, program, limits, working, home)?;
        live.grow(pages)?;
        match &mut live.store.data_mut().working {
            Some(working) => working.attach(pages)?,
            None => return Err("it has no memory".to_owned()),
        }
        Ok(live)
    }

    /// Makes an instance around a memory.
    fn new(
        wasm: &Wasm,
        program: &Program,
        limits: &Limits,
        working: Working,
        home: Home,
    ) -> Result<Self, String> {
        let pre = program.compile(wasm)?;
        let changing = program.prepared.tables.as_ref();
        let directory = changing.map_or(0, |changing| changing.functions.len());
        let mappings = working.mappings();
        let nobody = Principal::anonymous();
        let context = Context {
            world: Lent::nothing(),
            call: Call::new(Mode::Start, nobody, nobody),
            memory: None,
            working: Some(working),
            tables: Changed::default(),
            limits: Most { memory_bytes: program.most_bytes(limits), entries: MAX_ENTRIES + directory },
        };
        let mut store = Store::new(pre.module().engine(), context);
        store.limiter(|context| &mut context.limits);
        // Element segments may be written by code, which is bounded by the module's size.
        store.set_fuel(u64::MAX).map_err(|error| format!("{error:#}"))?;
        let instance = with_memories(mappings, || pre.instantiate(&mut store));
        let instance = instance.map_err(|error| format!("{error:#}"))?;
        store.data_mut().memory = instance.get_memory(&mut store, MEMORY);
        let names = program.prepared.globals.iter();
        let globals = names.filter_map(|(name, _)| instance.get_global(&mut store, name)).collect();
        let tables = match changing {
            Some(changing) => Some(Tables::new(&mut store, &instance, changing, home.clone())?),
            None => None,
        };
        Ok(Self { store, instance, globals, tables, home, entries: HashMap::new() })
    }

    /// Makes the memory at least this long, in pages.
    pub(super) fn grow(&mut self, pages: u64) -> Result<(), String> {
        if let Some(memory) = self.store.data().memory {
            let more = pages.div_ceil(PER_WASM_PAGE).saturating_sub(memory.size(&self.store));
            memory.grow(&mut self.store, more).map_err(|error| format!("{error:#}"))?;
        }
        Ok(())
    }

    /// Has the tables committed as the module made them.
    pub(super) fn mark_tables(&mut self) {
        if let Some(tables) = &self.tables {
            tables.mark_all(&mut self.store);
        }
    }

    /// Makes tables that are as the module made them what they are in the committed state.
    pub(crate) fn load_tables(&mut self) -> Result<(), String> {
        self.tables.as_mut().map_or(Ok(()), |tables| tables.load(&mut self.store))
    }

    /// The same instance with memory and tables as they were committed; one made anew where one of them had grown.
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
            match &mut self.tables {
                Some(tables) if tables.grew(&self.store) => {}
                Some(tables) => {
                    tables.roll_back(&mut self.store)?;
                    return Ok(self);
                }
                None => return Ok(self),
            }
        }
        let working = self.store.data_mut().working.take();
        let home = self.home.clone();
        drop(self);
        let working = working.ok_or("it has no memory")?;
        let pages = working.pages();
        let mut live = Self::new(wasm, program, limits, working, home)?;
        live.grow(pages)?;
        live.load_tables()?;
        Ok(live)
    }

    /// Brings memory and tables, to which nothing was done since, to another snapshot, which their `Current` holds; it
    /// differs in these pages of their spaces.
    pub(crate) fn refresh(&mut self, memory: &[u64], tables: &[u64]) -> Result<(), String> {
        if let Some(working) = &mut self.store.data_mut().working {
            working.refresh(memory)?;
        }
        self.tables.as_mut().map_or(Ok(()), |all| all.refresh(&mut self.store, tables))
    }

    pub(super) fn read_globals(&mut self, into: &mut Vec<u128>) {
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
        self.store.data_mut().tables.calls = 0;
        let result = self.store.set_fuel(limit).and_then(|()| self.enter(memory64, entry));
        let left = self.store.get_fuel().unwrap_or(0);
        let context = self.store.data_mut();
        let instructions = context.instructions(left);
        let result = result.and_then(|()| context.abandon_call());
        std::mem::swap(&mut context.world, world);
        let call = std::mem::replace(&mut context.call, idle);
        let result = result.map_err(|error| failure(canister, mode, limit, &error));
        let damaged = context.working.as_ref().and_then(Working::failure);
        let result = match damaged {
            // Whatever came of it, it may have read what was never committed.
            Some(why) => {
                let text = format!("Error from Canister {canister}: its memory cannot be read: {why}");
                Err(Reject::new(ErrorCode::CanisterTrapped, text))
            }
            None => result.and_then(|()| self.collect_tables(canister, mode)),
        };
        Ran { call, result, instructions }
    }

    /// Reads the tables that changed, if that is going to be committed.
    fn collect_tables(&mut self, canister: Principal, mode: Mode) -> Result<(), Reject> {
        match &mut self.tables {
            Some(tables) if !matches!(mode, Mode::Query | Mode::CompositeQuery) => {
                tables.collect(&mut self.store).map_err(|why| {
                    let text = format!("Error from Canister {canister}: its tables cannot be read: {why}");
                    Reject::new(ErrorCode::CanisterTrapped, text)
                })
            }
            _ => Ok(()),
        }
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
