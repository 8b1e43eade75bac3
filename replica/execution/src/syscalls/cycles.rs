//! Cycles: they are conserved, and nothing costs any yet.

use wasmtime::{Linker, Result};

use super::calls::outgoing;
use super::modes::*;
use super::{Api, Context, Host, Pointer, Stop, contract, write};

const ACCEPTING: u16 = U | RQ | RY | RT;
const CALLING: u16 = U | RY | RT | T;

fn amount(high: i64, low: i64) -> u128 {
    u128::from(high.cast_unsigned()) << 64 | u128::from(low.cast_unsigned())
}

pub(super) fn link<P: Pointer>(api: &mut Api<'_, P>) -> Result<()> {
    api.amount("canister_cycle_balance128", NOT_START, |context| Ok(context.canister()?.cycles))?;
    // Nothing is frozen, since nothing costs cycles.
    api.amount("canister_liquid_cycle_balance128", NOT_START, |context| Ok(context.canister()?.cycles))?;
    api.amount("msg_cycles_available128", ACCEPTING, |context| Ok(available(context)))?;
    api.amount("msg_cycles_refunded128", RY | RT, |context| Ok(context.call.refunded))?;
    api.amount("cost_create_canister", ALWAYS, |_| Ok(0))?;

    let linker = &mut *api.linker;
    linker.func_wrap(
        "ic0",
        "cost_call",
        |mut caller: Host<'_>, _method_size: i64, _argument_size: i64, destination: P| -> Result<()> {
            write(&mut caller, destination.get(), &0u128.to_le_bytes())
        },
    )?;
    linker.func_wrap(
        "ic0",
        "msg_cycles_accept128",
        |mut caller: Host<'_>, high: i64, low: i64, destination: P| -> Result<()> {
            caller.data().allow("msg_cycles_accept128", ACCEPTING)?;
            let accepted = accept(caller.data_mut(), amount(high, low))?;
            write(&mut caller, destination.get(), &accepted.to_le_bytes())
        },
    )?;
    linker.func_wrap(
        "ic0",
        "cycles_burn128",
        |mut caller: Host<'_>, high: i64, low: i64, destination: P| -> Result<()> {
            caller.data().allow("cycles_burn128", I | G | U | RQ | RY | RT | C | T)?;
            let canister = caller.data_mut().canister_mut()?;
            let burnt = amount(high, low).min(canister.cycles);
            canister.cycles -= burnt;
            write(&mut caller, destination.get(), &burnt.to_le_bytes())
        },
    )?;
    linker.func_wrap(
        "ic0",
        "call_cycles_add128",
        |mut caller: Host<'_>, high: i64, low: i64| -> Result<()> {
            caller.data().allow("call_cycles_add128", CALLING)?;
            add(caller.data_mut(), amount(high, low))
        },
    )?;
    Ok(())
}

pub(super) fn link_legacy(linker: &mut Linker<Context>) -> Result<()> {
    fn narrow(amount: u128) -> Result<i64> {
        match u64::try_from(amount) {
            Ok(amount) => Ok(amount.cast_signed()),
            Err(_) => contract("the amount of cycles does not fit 64 bits; use the 128-bit function"),
        }
    }
    linker.func_wrap("ic0", "canister_cycle_balance", |caller: Host<'_>| -> Result<i64> {
        caller.data().allow("canister_cycle_balance", NOT_START)?;
        narrow(caller.data().canister()?.cycles)
    })?;
    linker.func_wrap("ic0", "msg_cycles_available", |caller: Host<'_>| -> Result<i64> {
        caller.data().allow("msg_cycles_available", ACCEPTING)?;
        narrow(available(caller.data()))
    })?;
    linker.func_wrap("ic0", "msg_cycles_refunded", |caller: Host<'_>| -> Result<i64> {
        caller.data().allow("msg_cycles_refunded", RY | RT)?;
        narrow(caller.data().call.refunded)
    })?;
    linker.func_wrap("ic0", "msg_cycles_accept", |mut caller: Host<'_>, most: i64| -> Result<i64> {
        caller.data().allow("msg_cycles_accept", ACCEPTING)?;
        narrow(accept(caller.data_mut(), amount(0, most))?)
    })?;
    linker.func_wrap("ic0", "call_cycles_add", |mut caller: Host<'_>, cycles: i64| -> Result<()> {
        caller.data().allow("call_cycles_add", CALLING)?;
        add(caller.data_mut(), amount(0, cycles))
    })?;
    Ok(())
}

fn available(context: &Context) -> u128 {
    context.call_context().map_or(0, |call| call.cycles)
}

fn accept(context: &mut Context, most: u128) -> Result<u128> {
    let id = context.call.context;
    let Some(call) = context.world.state.contexts.get_mut(&id) else { return Ok(0) };
    let accepted = most.min(call.cycles);
    call.cycles -= accepted;
    context.canister_mut()?.cycles += accepted;
    Ok(accepted)
}

fn add(context: &mut Context, cycles: u128) -> Result<()> {
    outgoing(context)?;
    let canister = context.canister_mut()?;
    match canister.cycles.checked_sub(cycles) {
        Some(left) => canister.cycles = left,
        None => {
            let text = format!("{cycles} cycles were to go with a call, it has {}", canister.cycles);
            return Err(Stop::Cycles(text).into());
        }
    }
    outgoing(context)?.cycles += cycles;
    Ok(())
}
