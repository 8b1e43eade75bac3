//! A release beside the one that runs: written while the node works, started only when somebody says so.
//!
//! Nothing that the firmware starts by itself changes until [`switch`], which is one sector. So at every moment before it the
//! machine comes up as it is, and after it as the release that was tried.

use crate::{
    disk::Installed,
    layout::{self, Slot},
    parts::{Parts, root_hash_of},
    plan::{Plan, Purpose, Refusal, boot_steps, slot_steps, table_steps},
};

/// The image beside the one that is started is not that of the slot.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// Nothing there, or of another root.
    #[error("no kernel image on the boot partition is for slot {0}; install the host anew")]
    NoImage(Slot),
    /// The disk's layout.
    #[error(transparent)]
    Layout(#[from] Refusal),
}

/// Puts a release into the slot of host and guest that is not started. `size` is the disk's, in bytes.
pub fn beside<'a>(size: u64, installed: &Installed, parts: &'a Parts) -> Result<Plan<'a>, Refusal> {
    let slot = installed.slot.other();
    let mut table = installed.table.clone();
    layout::set_root(&mut table, slot, &parts.root_hash);
    let mut steps = slot_steps(&installed.table, slot, slot, parts)?;
    let (start, end) = layout::encode(&table, size)?;
    steps.extend(table_steps(start, end, size));
    let esp = installed.esp.beside(parts.uki.clone());
    steps.extend(boot_steps(&table, &esp, 1 - esp.current)?);
    Ok(Plan { purpose: Purpose::Update(slot), table, steps })
}

/// Has the firmware start the system in this slot from now on.
pub fn switch(installed: &Installed, slot: Slot) -> Result<Plan<'static>, SwitchError> {
    let mut esp = installed.esp.clone();
    if installed.slot != slot {
        esp = esp.exchanged();
        let wanted = esp.current().and_then(root_hash_of).map(|hash| layout::root_identifiers(&hash).0);
        let found = installed.table.find(&slot.root()).map(|partition| partition.id);
        if wanted.is_none() || wanted != found {
            return Err(SwitchError::NoImage(slot));
        }
    }
    let table = installed.table.clone();
    let steps = boot_steps(&table, &esp, esp.current)?;
    Ok(Plan { purpose: Purpose::Update(slot), table, steps })
}
