//! The message that is being executed: its argument, its caller, the answer to it.

use std::borrow::Cow;

use wasmtime::Result;

use super::modes::*;
use super::{
    Api, Context, Host, MAX_QUERY_REPLY, MAX_REPLY, Mode, Pointer, charge, contract, range, read_text, split,
};

pub(super) fn link<P: Pointer>(api: &mut Api<'_, P>) -> Result<()> {
    const ANSWER: u16 = U | RQ | NRQ | CQ | RY | RT;

    api.bytes("msg_arg_data_size", "msg_arg_data_copy", I | U | RQ | NRQ | CQ | RY | F, |context| {
        Ok(Cow::Borrowed(&context.call.arg))
    })?;
    api.bytes("msg_caller_size", "msg_caller_copy", NOT_START, |context| {
        Ok(Cow::Borrowed(context.call.caller.as_slice()))
    })?;
    api.bytes("msg_method_name_size", "msg_method_name_copy", F, |context| {
        Ok(Cow::Borrowed(context.call.method.as_bytes()))
    })?;
    api.bytes("msg_reject_msg_size", "msg_reject_msg_copy", RT, |context| match &context.call.reject {
        Some(reject) => Ok(Cow::Borrowed(reject.message.as_bytes())),
        None => contract("there is no reject message"),
    })?;

    let linker = &mut *api.linker;
    linker.func_wrap("ic0", "msg_reject_code", |caller: Host<'_>| -> Result<i32> {
        caller.data().allow("msg_reject_code", RY | RT | C)?;
        Ok(caller.data().call.reject.as_ref().map_or(0, |reject| i32::from(reject.code.number())))
    })?;
    // Calls have no deadline here: a best-effort call is served like any other.
    linker.func_wrap("ic0", "msg_deadline", |caller: Host<'_>| -> Result<i64> {
        caller.data().allow("msg_deadline", ANSWER)?;
        Ok(0)
    })?;
    linker.func_wrap("ic0", "accept_message", |mut caller: Host<'_>| -> Result<()> {
        let context = caller.data_mut();
        context.allow("accept_message", F)?;
        if context.call.accepted {
            return contract("the message was accepted already");
        }
        context.call.accepted = true;
        Ok(())
    })?;
    linker.func_wrap(
        "ic0",
        "msg_reply_data_append",
        |mut caller: Host<'_>, source: P, size: P| -> Result<()> {
            caller.data().allow("msg_reply_data_append", ANSWER)?;
            unanswered(caller.data())?;
            charge(&mut caller, size.get())?;
            let (memory, context) = split(&mut caller);
            let bytes = &memory[range(source.get(), size.get(), memory.len())?];
            let limit = match context.call.mode {
                Mode::Query | Mode::CompositeQuery => MAX_QUERY_REPLY,
                _ => MAX_REPLY,
            };
            if context.call.reply.len() + bytes.len() > limit {
                return contract(format!("the reply is larger than {limit} bytes"));
            }
            context.call.reply.extend_from_slice(bytes);
            Ok(())
        },
    )?;
    linker.func_wrap("ic0", "msg_reply", |mut caller: Host<'_>| -> Result<()> {
        let context = caller.data_mut();
        context.allow("msg_reply", ANSWER)?;
        unanswered(context)?;
        context.call.answer = Some(Ok(std::mem::take(&mut context.call.reply)));
        Ok(())
    })?;
    linker.func_wrap("ic0", "msg_reject", |mut caller: Host<'_>, source: P, size: P| -> Result<()> {
        caller.data().allow("msg_reject", ANSWER)?;
        unanswered(caller.data())?;
        if size.get() > MAX_REPLY as u64 {
            return contract(format!("the reject message is larger than {MAX_REPLY} bytes"));
        }
        let text = read_text(&mut caller, source.get(), size.get())?;
        caller.data_mut().call.answer = Some(Err(text));
        Ok(())
    })?;
    Ok(())
}

fn unanswered(context: &Context) -> Result<()> {
    if context.call.answer.is_some() || context.call_context().is_some_and(|call| call.answered) {
        return contract("the call was answered already");
    }
    Ok(())
}
