//! Stable memory.

use wasmtime::{Linker, Result};

use super::{Api, Context, Host, Pointer, Stop, charge, range, split};
use crate::state::WASM_PAGE;

/// Pages that 32-bit functions can address.
const PAGES32: u64 = 1 << 16;

pub(super) fn link<P: Pointer>(api: &mut Api<'_, P>) -> Result<()> {
    let linker = &mut *api.linker;
    // Allowed in every mode, and 64 bits wide whatever the width of the memory.
    linker.func_wrap("ic0", "stable64_size", |caller: Host<'_>| -> Result<i64> {
        Ok(caller.data().progress()?.stable_pages.cast_signed())
    })?;
    linker.func_wrap("ic0", "stable64_grow", |mut caller: Host<'_>, pages: i64| -> Result<i64> {
        Ok(grow(caller.data_mut(), pages.cast_unsigned())?.map_or(-1, u64::cast_signed))
    })?;
    linker.func_wrap(
        "ic0",
        "stable64_read",
        |mut caller: Host<'_>, destination: i64, offset: i64, size: i64| -> Result<()> {
            read(&mut caller, destination.get(), offset.get(), size.get())
        },
    )?;
    linker.func_wrap(
        "ic0",
        "stable64_write",
        |mut caller: Host<'_>, offset: i64, source: i64, size: i64| -> Result<()> {
            write(&mut caller, offset.get(), source.get(), size.get())
        },
    )?;
    Ok(())
}

pub(super) fn link_legacy(linker: &mut Linker<Context>) -> Result<()> {
    linker.func_wrap("ic0", "stable_size", |caller: Host<'_>| -> Result<i32> { size32(caller.data()) })?;
    linker.func_wrap("ic0", "stable_grow", |mut caller: Host<'_>, pages: i32| -> Result<i32> {
        let context = caller.data_mut();
        let old = size32(context)?;
        if old.get() + pages.get() > PAGES32 {
            return Ok(-1);
        }
        Ok(grow(context, pages.get())?.map_or(-1, |_| old))
    })?;
    linker.func_wrap(
        "ic0",
        "stable_read",
        |mut caller: Host<'_>, destination: i32, offset: i32, size: i32| -> Result<()> {
            size32(caller.data())?;
            read(&mut caller, destination.get(), offset.get(), size.get())
        },
    )?;
    linker.func_wrap(
        "ic0",
        "stable_write",
        |mut caller: Host<'_>, offset: i32, source: i32, size: i32| -> Result<()> {
            size32(caller.data())?;
            write(&mut caller, offset.get(), source.get(), size.get())
        },
    )?;
    Ok(())
}

/// Size in pages, if 32-bit functions can serve it.
fn size32(context: &Context) -> Result<i32> {
    let pages = context.progress()?.stable_pages;
    if pages > PAGES32 {
        return Err(
            Stop::Contract("32-bit stable memory functions cannot serve more than 4 GiB".into()).into()
        );
    }
    Ok(i32::of(pages as usize))
}

/// Grows and gives the old size in pages, or nothing if the limit is reached.
fn grow(context: &mut Context, pages: u64) -> Result<Option<u64>> {
    let most = context.world.config.limits.stable_bytes / WASM_PAGE;
    let progress = context.progress_mut()?;
    let old = progress.stable_pages;
    match old.checked_add(pages) {
        Some(new) if new <= most => {
            progress.stable_pages = new;
            Ok(Some(old))
        }
        _ => Ok(None),
    }
}

/// Checks that an access lies within the stable memory.
fn check(context: &Context, offset: u64, size: u64) -> Result<()> {
    let bytes = context.progress()?.stable_pages * WASM_PAGE;
    match offset.checked_add(size) {
        Some(end) if end <= bytes => Ok(()),
        _ => Err(Stop::Contract("stable memory out of bounds".into()).into()),
    }
}

fn read(caller: &mut Host<'_>, destination: u64, offset: u64, size: u64) -> Result<()> {
    charge(caller, size)?;
    check(caller.data(), offset, size)?;
    caller.data_mut().mark(destination, size)?;
    let (memory, context) = split(caller);
    let range = range(destination, size, memory.len())?;
    let space = context.canister()?.stable_space();
    let world = &mut *context.world;
    Ok(world.overlay.read(&world.snapshot, space, offset, &mut memory[range])?)
}

fn write(caller: &mut Host<'_>, offset: u64, source: u64, size: u64) -> Result<()> {
    charge(caller, size)?;
    let (memory, context) = split(caller);
    check(context, offset, size)?;
    let range = range(source, size, memory.len())?;
    let space = context.canister()?.stable_space();
    let world = &mut *context.world;
    let most = world.config.limits.stable_change_bytes;
    // Before the write, so that one call cannot take all of the machine's memory.
    if world.overlay.changed_bytes().saturating_add(size) > most {
        return Err(Stop::Contract(format!(
            "more than {most} bytes of stable memory changed in one message"
        ))
        .into());
    }
    world.config.ram.take(size.div_ceil(heap::PAGE as u64)).map_err(Stop::Memory)?;
    Ok(world.overlay.write(&world.snapshot, space, offset, &memory[range])?)
}
