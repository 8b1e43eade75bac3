//! The canister itself: identity, time, certified data, environment variables, debugging.

use std::borrow::Cow;

use wasmtime::Result;

use super::modes::*;
use super::{Api, Context, Host, Mode, Pointer, Stop, contract, copy_out, read, read_principal, read_text};
use crate::state::Run;

/// Most bytes of certified data.
const MAX_CERTIFIED: u64 = 32;
/// Longest text of a trap or a debug line that is kept, in bytes.
const MAX_TEXT: u64 = 8 << 10;

pub(super) fn link<P: Pointer>(api: &mut Api<'_, P>) -> Result<()> {
    api.bytes("canister_self_size", "canister_self_copy", NOT_START, |context| {
        Ok(Cow::Borrowed(context.call.canister.as_slice()))
    })?;
    api.bytes("subnet_self_size", "subnet_self_copy", NOT_START, |context| {
        Ok(Cow::Borrowed(context.world.config.subnet_id.as_slice()))
    })?;
    // Not in queries: those of one node could be told another key.
    api.bytes("root_key_size", "root_key_copy", I | G | U | RQ | RY | RT | C | T, |context| {
        Ok(Cow::Borrowed(&context.world.config.root_public_key_der))
    })?;
    api.bytes("data_certificate_size", "data_certificate_copy", NRQ | CQ, |context| {
        match &context.call.data_certificate {
            Some(certificate) => Ok(Cow::Borrowed(certificate)),
            None => contract("there is no data certificate; ask data_certificate_present first"),
        }
    })?;
    link_environment(api)?;

    let linker = &mut *api.linker;
    linker.func_wrap("ic0", "data_certificate_present", |caller: Host<'_>| -> Result<i32> {
        caller.data().allow("data_certificate_present", NOT_START)?;
        Ok(i32::from(caller.data().call.data_certificate.is_some()))
    })?;
    linker.func_wrap(
        "ic0",
        "certified_data_set",
        |mut caller: Host<'_>, source: P, size: P| -> Result<()> {
            caller.data().allow("certified_data_set", I | G | U | RY | RT | T)?;
            if size.get() > MAX_CERTIFIED {
                return contract(format!("certified data has at most {MAX_CERTIFIED} bytes"));
            }
            let data = read(&mut caller, source.get(), size.get())?;
            caller.data_mut().canister_mut()?.certified_data = data;
            Ok(())
        },
    )?;
    linker.func_wrap("ic0", "canister_status", |caller: Host<'_>| -> Result<i32> {
        caller.data().allow("canister_status", NOT_START)?;
        Ok(match caller.data().canister()?.run {
            Run::Running => 1,
            Run::Stopping(_) => 2,
            Run::Stopped => 3,
        })
    })?;
    linker.func_wrap("ic0", "canister_version", |caller: Host<'_>| -> Result<i64> {
        caller.data().allow("canister_version", NOT_START)?;
        Ok(caller.data().progress()?.version.cast_signed())
    })?;
    linker.func_wrap("ic0", "time", |caller: Host<'_>| -> Result<i64> {
        caller.data().allow("time", NOT_START)?;
        Ok(caller.data().world.now_ns.cast_signed())
    })?;
    linker.func_wrap("ic0", "global_timer_set", |mut caller: Host<'_>, time: i64| -> Result<i64> {
        caller.data().allow("global_timer_set", I | G | U | RY | RT | C | T)?;
        let timer = &mut caller.data_mut().progress_mut()?.timer_ns;
        Ok(std::mem::replace(timer, time.cast_unsigned()).cast_signed())
    })?;
    linker.func_wrap("ic0", "performance_counter", |caller: Host<'_>, counter: i32| -> Result<i64> {
        let message = caller.data().instructions(caller.get_fuel()?);
        let earlier = caller.data().call_context().map_or(0, |call| call.instructions);
        match counter {
            0 => Ok(message.cast_signed()),
            1 => Ok(message.saturating_add(earlier).cast_signed()),
            _ => contract(format!("there is no performance counter {counter}")),
        }
    })?;
    linker.func_wrap("ic0", "is_controller", |mut caller: Host<'_>, source: P, size: P| -> Result<i32> {
        caller.data().allow("is_controller", NOT_START)?;
        let principal = read_principal(&mut caller, source.get(), size.get())?;
        Ok(i32::from(caller.data().canister()?.controllers.contains(&principal)))
    })?;
    linker.func_wrap("ic0", "in_replicated_execution", |caller: Host<'_>| -> Result<i32> {
        Ok(i32::from(!matches!(caller.data().call.mode, Mode::Query | Mode::CompositeQuery | Mode::Inspect)))
    })?;
    linker.func_wrap("ic0", "debug_print", |mut caller: Host<'_>, source: P, size: P| -> Result<()> {
        let text = read_text(&mut caller, source.get(), size.get().min(MAX_TEXT))?;
        tracing::debug!(target: "canister", canister = %caller.data().call.canister, "{text}");
        Ok(())
    })?;
    linker.func_wrap("ic0", "trap", |mut caller: Host<'_>, source: P, size: P| -> Result<()> {
        Err(Stop::Called(read_text(&mut caller, source.get(), size.get().min(MAX_TEXT))?).into())
    })?;
    Ok(())
}

fn link_environment<P: Pointer>(api: &mut Api<'_, P>) -> Result<()> {
    fn name(context: &Context, index: u64) -> Result<&str> {
        let names = &context.canister()?.settings.environment;
        match usize::try_from(index).ok().and_then(|index| names.keys().nth(index)) {
            Some(name) => Ok(name),
            None => contract(format!("there is no environment variable {index}")),
        }
    }
    fn value<'a>(context: &'a Context, name: &str) -> Result<&'a str> {
        match context.canister()?.settings.environment.get(name) {
            Some(value) => Ok(value),
            None => contract(format!("there is no environment variable {name:?}")),
        }
    }
    let linker = &mut *api.linker;
    linker.func_wrap("ic0", "env_var_count", |caller: Host<'_>| -> Result<P> {
        caller.data().allow("env_var_count", NOT_START)?;
        Ok(P::of(caller.data().canister()?.settings.environment.len()))
    })?;
    linker.func_wrap("ic0", "env_var_name_size", |caller: Host<'_>, index: P| -> Result<P> {
        caller.data().allow("env_var_name_size", NOT_START)?;
        Ok(P::of(name(caller.data(), index.get())?.len()))
    })?;
    linker.func_wrap(
        "ic0",
        "env_var_name_copy",
        |mut caller: Host<'_>, index: P, destination: P, offset: P, size: P| -> Result<()> {
            caller.data().allow("env_var_name_copy", NOT_START)?;
            let index = index.get();
            copy_out(&mut caller, destination.get(), offset.get(), size.get(), &|context| {
                Ok(name(context, index)?.as_bytes().into())
            })
        },
    )?;
    linker.func_wrap(
        "ic0",
        "env_var_name_exists",
        |mut caller: Host<'_>, source: P, size: P| -> Result<i32> {
            caller.data().allow("env_var_name_exists", NOT_START)?;
            let name = read_text(&mut caller, source.get(), size.get())?;
            Ok(i32::from(value(caller.data(), &name).is_ok()))
        },
    )?;
    linker.func_wrap(
        "ic0",
        "env_var_value_size",
        |mut caller: Host<'_>, source: P, size: P| -> Result<P> {
            caller.data().allow("env_var_value_size", NOT_START)?;
            let name = read_text(&mut caller, source.get(), size.get())?;
            Ok(P::of(value(caller.data(), &name)?.len()))
        },
    )?;
    linker.func_wrap(
        "ic0",
        "env_var_value_copy",
        |mut caller: Host<'_>, source: P, length: P, destination: P, offset: P, size: P| -> Result<()> {
            caller.data().allow("env_var_value_copy", NOT_START)?;
            let name = read_text(&mut caller, source.get(), length.get())?;
            copy_out(&mut caller, destination.get(), offset.get(), size.get(), &|context| {
                Ok(value(context, &name)?.as_bytes().into())
            })
        },
    )?;
    Ok(())
}
