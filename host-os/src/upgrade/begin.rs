//! Where a node begins after a start.

use super::{Store, UpgradeError};
use crate::attest::{chain, unix_time};
use crate::check::{Checked, Options, Target, check};
use crate::node::{NodeDir, NodeLock};
use release::Digest;
use std::cell::RefCell;
use upgrade::machine::{Boot, Event, Part, Phase, Slot};
use upgrade::node::Which;

/// What a node begins with.
pub(crate) struct Begin {
    /// Of the record; 0 before the first upgrade, which makes it.
    pub(crate) sequence: u64,
    /// The state, after whatever ended the last run.
    pub(crate) part: Part<Digest>,
    /// What is started.
    pub(crate) checked: Checked,
}

/// Where a node begins: what is to run, and the state after the crash, power cut or stop that ended the last run. Blocks.
pub(crate) fn begin(
    options: &Options,
    node: &NodeDir,
    lock: &NodeLock,
    progress: &dyn Fn(&str),
) -> Result<Begin, UpgradeError> {
    let store = Store::of(node);
    let Some((sequence, part)) = store.load(Which::Guest)? else {
        let checked = check(options, node, lock, Target::of_slot(options, &store, Slot::A, false), progress)?;
        let part = Part::installed(checked.release.manifest().digest());
        return Ok(Begin { sequence: 0, part, checked });
    };
    let part = part.step(Event::Crash, None)?;
    let sequence = store.save(Which::Guest, sequence, &part)?;
    store.audit(unix_time(), &format!("the agent starts; an upgrade is {:?}", part.phase))?;
    let tried = matches!(part.phase, Phase::Trying | Phase::Healthy).then(|| part.active.other());
    // What was looked at: the first that may run, and why the others may not.
    let (usable, refused) = (RefCell::new(None), RefCell::new(None));
    let may_run = |slot: Slot, digest: Digest| {
        let target = Target::of_slot(options, &store, slot, tried == Some(slot));
        match check(options, node, lock, target, progress) {
            Ok(checked) if checked.release.manifest().digest() == digest => {
                usable.replace(Some(checked));
                true
            }
            Ok(_) => {
                refused.replace(Some(UpgradeError::AnotherRelease));
                false
            }
            Err(error) => {
                tracing::error!(?slot, "{}", chain(&error));
                refused.replace(Some(error.into()));
                false
            }
        }
    };
    match (part.boot(may_run), usable.into_inner()) {
        (Boot::Slot(_), Some(checked)) => Ok(Begin { sequence, part, checked }),
        _ => {
            let why = refused.into_inner().unwrap_or(UpgradeError::NothingBoots);
            if !why.is_of_release() {
                // The machine or the command line is at fault: the next start may be right.
                return Err(why);
            }
            let failed = part.step(Event::NothingBoots, None)?;
            store.save(Which::Guest, sequence, &failed)?;
            store.audit(unix_time(), &format!("nothing boots: {}: {}", why.code(), chain(&why)))?;
            Err(why)
        }
    }
}
