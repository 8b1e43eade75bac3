//! Calls to other canisters.

use wasmtime::Result;

use super::modes::*;
use super::{
    Api, Context, Host, Outgoing, Pointer, charge, contract, range, read_principal, read_text, split,
};
use crate::api::RejectCode;
use crate::state::{Callback, Closure, Message, Origin, Request};

const CALLING: u16 = U | RY | RT | T;
/// Largest argument of a call between canisters, in bytes.
const MAX_ARGUMENT: usize = 10 << 20;
/// Largest method name, in bytes.
const MAX_METHOD: u64 = 20_000;
/// Calls of one canister to another that may wait for their answers.
const MAX_OUTSTANDING: usize = 500;

pub(super) fn link<P: Pointer>(api: &mut Api<'_, P>) -> Result<()> {
    let linker = &mut *api.linker;
    linker.func_wrap(
        "ic0",
        "call_new",
        |mut caller: Host<'_>,
         callee_source: P,
         callee_size: P,
         name_source: P,
         name_size: P,
         reply_function: P,
         reply_environment: P,
         reject_function: P,
         reject_environment: P|
         -> Result<()> {
            caller.data().allow("call_new", CALLING)?;
            caller.data_mut().abandon_call()?;
            if name_size.get() > MAX_METHOD {
                return contract(format!("the method name is larger than {MAX_METHOD} bytes"));
            }
            let callee = read_principal(&mut caller, callee_source.get(), callee_size.get())?;
            let method = read_text(&mut caller, name_source.get(), name_size.get())?;
            caller.data_mut().call.outgoing = Some(Outgoing {
                callee,
                method,
                reply: Closure { function: reply_function.get(), environment: reply_environment.get() },
                reject: Closure { function: reject_function.get(), environment: reject_environment.get() },
                cleanup: None,
                arg: Vec::new(),
                cycles: 0,
            });
            Ok(())
        },
    )?;
    linker.func_wrap(
        "ic0",
        "call_on_cleanup",
        |mut caller: Host<'_>, function: P, environment: P| -> Result<()> {
            let context = caller.data_mut();
            context.allow("call_on_cleanup", CALLING)?;
            let outgoing = outgoing(context)?;
            if outgoing.cleanup.is_some() {
                return contract("call_on_cleanup was called already");
            }
            outgoing.cleanup = Some(Closure { function: function.get(), environment: environment.get() });
            Ok(())
        },
    )?;
    linker.func_wrap(
        "ic0",
        "call_data_append",
        |mut caller: Host<'_>, source: P, size: P| -> Result<()> {
            caller.data().allow("call_data_append", CALLING)?;
            charge(&mut caller, size.get())?;
            let (memory, context) = split(&mut caller);
            let bytes = &memory[range(source.get(), size.get(), memory.len())?];
            let outgoing = outgoing(context)?;
            if outgoing.arg.len() + bytes.len() > MAX_ARGUMENT {
                return contract(format!("the argument of the call is larger than {MAX_ARGUMENT} bytes"));
            }
            outgoing.arg.extend_from_slice(bytes);
            Ok(())
        },
    )?;
    // The promise of a best-effort call is weaker than an ordinary one's, so an ordinary one keeps it.
    linker.func_wrap(
        "ic0",
        "call_with_best_effort_response",
        |mut caller: Host<'_>, _timeout_seconds: i32| -> Result<()> {
            caller.data().allow("call_with_best_effort_response", CALLING)?;
            outgoing(caller.data_mut()).map(|_| ())
        },
    )?;
    linker.func_wrap("ic0", "call_perform", |mut caller: Host<'_>| -> Result<i32> {
        caller.data().allow("call_perform", CALLING)?;
        perform(caller.data_mut())
    })?;
    Ok(())
}

pub(super) fn outgoing(context: &mut Context) -> Result<&mut Outgoing> {
    match &mut context.call.outgoing {
        Some(outgoing) => Ok(outgoing),
        None => contract("no call is under construction; call call_new first"),
    }
}

/// Queues the call; the answer is 0 or a reject code.
fn perform(context: &mut Context) -> Result<i32> {
    outgoing(context)?;
    let (canister, callee) = (context.call.canister, context.call.outgoing.as_ref().map(|call| call.callee));
    let waiting = context.world.state.callbacks.iter();
    let waiting =
        waiting.filter(|(_, callback)| callback.canister == canister && Some(callback.callee) == callee);
    if waiting.count() >= MAX_OUTSTANDING {
        context.abandon_call()?;
        return Ok(i32::from(RejectCode::SysTransient.number()));
    }
    let Some(Outgoing { callee, method, reply, reject, cleanup, arg, cycles }) = context.call.outgoing.take()
    else {
        return contract("no call is under construction");
    };
    let id = context.call.context;
    let state = &mut context.world.state;
    let Some(call) = state.contexts.get_mut(&id) else { return contract("there is no call context") };
    call.outstanding += 1;
    let callback = state.fresh_id();
    state.callbacks.insert(callback, Callback { canister, context: id, callee, reply, reject, cleanup });
    let origin = Origin::Canister { caller: canister, callback };
    state.enqueue(Message::Request(Request { origin, caller: canister, callee, method, arg, cycles }));
    Ok(0)
}
