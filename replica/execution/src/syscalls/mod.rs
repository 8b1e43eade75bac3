//! The system API (`ic0`): what a program may ask of the engine while it runs.
//!
//! Pointers and sizes are as wide as the memory's addresses, so every function that takes one is defined
//! twice, by way of [`Pointer`]. Each function names the modes in which it may be called (Interface
//! Specification, "System API: overview of imports").

mod calls;
mod canister;
mod cycles;
mod message;
mod stable;

use std::borrow::Cow;
use std::marker::PhantomData;

use candid::Principal;
use wasmtime::{Caller, Linker, Memory, Result, Trap, WasmTy};

use crate::api::Reject;
use crate::instance::Most;
use crate::state::{self, CallContext, Closure, Lent, World};
use crate::wasm_tables::Changed;
use crate::working::{Short, Working};

/// Largest reply of an update, in bytes.
const MAX_REPLY: usize = 2 << 20;
/// Largest reply of a query, in bytes.
const MAX_QUERY_REPLY: usize = 3 << 20;

/// Why code runs; one bit each, so that a set of modes is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Mode {
    /// `canister_init` and `canister_post_upgrade`.
    Init = 1,
    PreUpgrade = 1 << 1,
    Update = 1 << 2,
    /// A query method called as an update.
    ReplicatedQuery = 1 << 3,
    Query = 1 << 4,
    CompositeQuery = 1 << 5,
    ReplyCallback = 1 << 6,
    RejectCallback = 1 << 7,
    Cleanup = 1 << 8,
    Start = 1 << 9,
    Inspect = 1 << 10,
    /// Timer and heartbeat.
    Task = 1 << 11,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::PreUpgrade => "pre upgrade",
            Self::Update => "update",
            Self::ReplicatedQuery => "replicated query",
            Self::Query => "non replicated query",
            Self::CompositeQuery => "composite query",
            Self::ReplyCallback => "reply callback",
            Self::RejectCallback => "reject callback",
            Self::Cleanup => "cleanup",
            Self::Start => "start",
            Self::Inspect => "inspect message",
            Self::Task => "system task",
        }
    }
}

/// Sets of modes, named after the letters of the specification.
mod modes {
    use super::Mode::*;
    pub(super) const I: u16 = Init as u16;
    pub(super) const G: u16 = PreUpgrade as u16;
    pub(super) const U: u16 = Update as u16;
    pub(super) const RQ: u16 = ReplicatedQuery as u16;
    pub(super) const NRQ: u16 = Query as u16;
    pub(super) const CQ: u16 = CompositeQuery as u16;
    pub(super) const RY: u16 = ReplyCallback as u16;
    pub(super) const RT: u16 = RejectCallback as u16;
    pub(super) const C: u16 = Cleanup as u16;
    pub(super) const S: u16 = Start as u16;
    pub(super) const F: u16 = Inspect as u16;
    pub(super) const T: u16 = Task as u16;
    pub(super) const ALWAYS: u16 = !0;
    pub(super) const NOT_START: u16 = !S;
}

/// One execution: what the program is told, and what it answers.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) mode: Mode,
    pub(crate) canister: Principal,
    pub(crate) caller: Principal,
    pub(crate) method: String,
    pub(crate) arg: Vec<u8>,
    /// What a reject callback is told.
    pub(crate) reject: Option<Reject>,
    pub(crate) refunded: u128,
    /// The call context, in modes that have one.
    pub(crate) context: u64,
    pub(crate) data_certificate: Option<Vec<u8>>,
    /// Instructions that it may take.
    pub(crate) limit: u64,
    reply: Vec<u8>,
    /// The reply, or the text of a reject.
    pub(crate) answer: Option<Result<Vec<u8>, String>>,
    /// `accept_message` was called.
    pub(crate) accepted: bool,
    outgoing: Option<Outgoing>,
}

impl Call {
    pub(crate) fn new(mode: Mode, canister: Principal, caller: Principal) -> Self {
        Self {
            mode,
            canister,
            caller,
            method: String::new(),
            arg: Vec::new(),
            reject: None,
            refunded: 0,
            context: 0,
            data_certificate: None,
            limit: 0,
            reply: Vec::new(),
            answer: None,
            accepted: false,
            outgoing: None,
        }
    }
}

/// A call that is being put together.
#[derive(Debug)]
struct Outgoing {
    callee: Principal,
    method: String,
    reply: Closure,
    reject: Closure,
    cleanup: Option<Closure>,
    arg: Vec<u8>,
    cycles: u128,
}

/// What a wasm instance carries with it.
pub(crate) struct Context {
    /// The engine's state, while code runs.
    pub(crate) world: Lent<World>,
    pub(crate) call: Call,
    pub(crate) memory: Option<Memory>,
    /// What that memory consists of, and what was changed in it.
    pub(crate) working: Option<Working>,
    /// What it changed of its tables.
    pub(crate) tables: Changed,
    pub(crate) limits: Most,
}

/// Why the program was stopped by a system call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// It called `ic0.trap` with this text.
    #[error("Canister called `ic0.trap` with message: '{0}'")]
    Called(String),
    /// It broke a rule of the system API.
    #[error("Canister violated contract: {0}")]
    Contract(String),
    /// It gave away more cycles than it has.
    #[error("Canister is out of cycles: {0}")]
    Cycles(String),
    /// The machine has no memory left.
    #[error("Canister is out of memory: {0}")]
    Memory(Short),
}

fn contract<T>(text: impl Into<String>) -> Result<T> {
    Err(Stop::Contract(text.into()).into())
}

impl Context {
    fn allow(&self, function: &str, modes: u16) -> Result<()> {
        if self.call.mode as u16 & modes != 0 {
            return Ok(());
        }
        contract(format!("\"ic0_{function}\" cannot be executed in {} mode", self.call.mode.name()))
    }

    fn canister(&self) -> Result<&state::Canister> {
        match self.world.state.canisters.get(&self.call.canister) {
            Some(canister) => Ok(canister),
            None => contract("the canister was deleted"),
        }
    }

    fn canister_mut(&mut self) -> Result<&mut state::Canister> {
        match self.world.state.canisters.get_mut(&self.call.canister) {
            Some(canister) => Ok(canister),
            None => contract("the canister was deleted"),
        }
    }

    fn progress(&self) -> Result<&state::Progress> {
        match self.world.state.progress.get(&self.call.canister) {
            Some(progress) => Ok(progress),
            None => contract("the canister was deleted"),
        }
    }

    fn progress_mut(&mut self) -> Result<&mut state::Progress> {
        match self.world.state.progress.get_mut(&self.call.canister) {
            Some(progress) => Ok(progress),
            None => contract("the canister was deleted"),
        }
    }

    fn call_context(&self) -> Option<&CallContext> {
        self.world.state.contexts.get(&self.call.context)
    }

    /// Notes that a range of the program's memory is about to change.
    pub(crate) fn mark(&mut self, start: u64, length: u64) -> Result<()> {
        match &mut self.working {
            Some(working) => Ok(working.mark_range(start, length).map_err(Stop::Memory)?),
            None => Ok(()),
        }
    }

    /// Instructions executed so far, if so many are left; those of added functions are not the program's.
    pub(crate) fn instructions(&self, left: u64) -> u64 {
        let marker = self.working.as_ref().map_or(0, Working::marker_calls);
        self.call.limit.saturating_sub(left).saturating_sub(marker + self.tables.calls)
    }

    /// Gives up a call that was begun; its cycles come back.
    pub(crate) fn abandon_call(&mut self) -> Result<()> {
        if let Some(outgoing) = self.call.outgoing.take()
            && outgoing.cycles > 0
        {
            self.canister_mut()?.cycles += outgoing.cycles;
        }
        Ok(())
    }
}

/// The width of addresses: `i32` or `i64`, read as unsigned.
pub(crate) trait Pointer: WasmTy + Copy {
    fn get(self) -> u64;
    /// `value` fits, since it is the length of something in RAM.
    fn of(value: usize) -> Self;
}

impl Pointer for i32 {
    fn get(self) -> u64 {
        u64::from(self.cast_unsigned())
    }
    fn of(value: usize) -> Self {
        u32::try_from(value).unwrap_or(u32::MAX).cast_signed()
    }
}

impl Pointer for i64 {
    fn get(self) -> u64 {
        self.cast_unsigned()
    }
    fn of(value: usize) -> Self {
        (value as u64).cast_signed()
    }
}

type Host<'a> = Caller<'a, Context>;

/// Takes one instruction per byte that the engine moves, so that moving bytes has a limit too.
fn charge(caller: &mut Host<'_>, bytes: u64) -> Result<()> {
    match caller.get_fuel()?.checked_sub(bytes) {
        Some(left) => caller.set_fuel(left),
        None => {
            caller.set_fuel(0)?;
            Err(Trap::OutOfFuel.into())
        }
    }
}

/// The range of `length` bytes at `start`, if it lies within `size` bytes.
fn range(start: u64, length: u64, size: usize) -> Result<std::ops::Range<usize>> {
    match start.checked_add(length) {
        // Both fit usize, since they are not above one.
        Some(end) if end <= size as u64 => Ok(start as usize..end as usize),
        _ => Err(Trap::MemoryOutOfBounds.into()),
    }
}

/// The program's memory and the context.
fn split<'a>(caller: &'a mut Host<'_>) -> (&'a mut [u8], &'a mut Context) {
    match caller.data().memory {
        Some(memory) => memory.data_and_store_mut(caller),
        None => (&mut [], caller.data_mut()),
    }
}

/// Reads `size` bytes at `source` of the program's memory.
fn read(caller: &mut Host<'_>, source: u64, size: u64) -> Result<Vec<u8>> {
    charge(caller, size)?;
    let (memory, _) = split(caller);
    let range = range(source, size, memory.len())?;
    Ok(memory[range].to_vec())
}

/// Reads text; what is not UTF-8 is replaced.
fn read_text(caller: &mut Host<'_>, source: u64, size: u64) -> Result<String> {
    Ok(String::from_utf8_lossy(&read(caller, source, size)?).into_owned())
}

fn read_principal(caller: &mut Host<'_>, source: u64, size: u64) -> Result<Principal> {
    if size > 29 {
        return contract(format!("a principal has at most 29 bytes, not {size}"));
    }
    match Principal::try_from_slice(&read(caller, source, size)?) {
        Ok(principal) => Ok(principal),
        Err(error) => contract(format!("not a principal: {error}")),
    }
}

/// Writes to `destination` of the program's memory.
fn write(caller: &mut Host<'_>, destination: u64, bytes: &[u8]) -> Result<()> {
    caller.data_mut().mark(destination, bytes.len() as u64)?;
    let (memory, _) = split(caller);
    let range = range(destination, bytes.len() as u64, memory.len())?;
    memory[range].copy_from_slice(bytes);
    Ok(())
}

/// Bytes that a size and a copy function show.
type Show = fn(&Context) -> Result<Cow<'_, [u8]>>;

/// Copies `size` bytes from `offset` of `bytes` to `destination`.
fn copy_out(
    caller: &mut Host<'_>,
    destination: u64,
    offset: u64,
    size: u64,
    show: &dyn Fn(&Context) -> Result<Cow<'_, [u8]>>,
) -> Result<()> {
    charge(caller, size)?;
    caller.data_mut().mark(destination, size)?;
    let (memory, context) = split(caller);
    let bytes = show(context)?;
    let Ok(from) = range(offset, size, bytes.len()) else {
        return contract(format!("{size} bytes at {offset} were asked for, there are {}", bytes.len()));
    };
    let to = range(destination, size, memory.len())?;
    memory[to].copy_from_slice(&bytes[from]);
    Ok(())
}

/// Defines functions of one pointer width.
struct Api<'a, P> {
    linker: &'a mut Linker<Context>,
    width: PhantomData<P>,
}

impl<P: Pointer> Api<'_, P> {
    /// Defines `…_size` and `…_copy` functions.
    fn bytes(&mut self, size: &'static str, copy: &'static str, modes: u16, show: Show) -> Result<()> {
        self.linker.func_wrap("ic0", size, move |caller: Host<'_>| -> Result<P> {
            caller.data().allow(size, modes)?;
            Ok(P::of(show(caller.data())?.len()))
        })?;
        self.linker.func_wrap(
            "ic0",
            copy,
            move |mut caller: Host<'_>, destination: P, offset: P, size: P| -> Result<()> {
                caller.data().allow(copy, modes)?;
                copy_out(&mut caller, destination.get(), offset.get(), size.get(), &show)
            },
        )?;
        Ok(())
    }

    /// Defines a function that shows an amount of cycles as 16 bytes, little endian.
    fn amount(&mut self, name: &'static str, modes: u16, show: fn(&Context) -> Result<u128>) -> Result<()> {
        self.linker.func_wrap("ic0", name, move |mut caller: Host<'_>, destination: P| -> Result<()> {
            caller.data().allow(name, modes)?;
            let amount = show(caller.data())?;
            write(&mut caller, destination.get(), &amount.to_le_bytes())
        })?;
        Ok(())
    }
}

/// Defines all system calls for one pointer width.
pub(crate) fn link<P: Pointer>(linker: &mut Linker<Context>) -> Result<()> {
    let mut api = Api::<P> { linker, width: PhantomData };
    message::link(&mut api)?;
    calls::link(&mut api)?;
    cycles::link(&mut api)?;
    canister::link(&mut api)?;
    stable::link(&mut api)
}

/// Defines the old functions with 32-bit sizes, which only programs with 32-bit memories may import.
pub(crate) fn link_legacy(linker: &mut Linker<Context>) -> Result<()> {
    cycles::link_legacy(linker)?;
    stable::link_legacy(linker)
}
