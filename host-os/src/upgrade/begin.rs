//! Where a node begins after a start.

use super::{Store, StoreError, UpgradeError};
use crate::attest::{chain, unix_time};
use crate::bundle;
use crate::check::{Checked, Options, Target, check};
use crate::node::{NodeDir, NodeLock, Place};
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

/// Where a node begins: what is to run, and the state after the crash, power cut or stop that ended the last run. Where neither
/// slot may run, that is the recovery release. Blocks.
pub(crate) fn begin(
    options: &Options,
    node: &NodeDir,
    lock: &NodeLock,
    progress: &dyn Fn(&str),
) -> Result<Begin, UpgradeError> {
    let store = Store::of(node);
    let (sequence, part) = match store.load(Which::Guest) {
        Ok(Some((sequence, part))) => (sequence, part.step(Event::Crash, None)?),
        Ok(None) => {
            let target = Target::of_slot(options, &store, Slot::A, false);
            let checked = check(options, node, lock, target, progress)?;
            let part = Part::installed(checked.release.manifest().digest());
            return Ok(Begin { sequence: 0, part, checked });
        }
        Err(error @ StoreError::Record(_)) => match present_recovery(options, &store) {
            Some(release) => {
                store.audit(unix_time(), &format!("{}: {}", error.code(), chain(&error)))?;
                (0, Part::lost(Some(release)))
            }
            None => return Err(error.into()),
        },
        Err(error) => return Err(error.into()),
    };
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
            let sequence = store.save(Which::Guest, sequence, &failed)?;
            let why = (why.code().to_owned(), chain(&why), why);
            store.audit(unix_time(), &format!("nothing boots: {}: {}", why.0, why.1))?;
            if failed.recovery.is_none() {
                return Err(why.2);
            }
            match check(options, node, lock, Target::of_recovery(&store), progress) {
                Ok(checked) => {
                    store.keep_failure(Some(&(why.0, why.1)))?;
                    store.audit(unix_time(), "the recovery release is started")?;
                    Ok(Begin { sequence, part: failed, checked })
                }
                Err(error) => {
                    let refusal = format!("no recovery: {}: {}", error.code(), chain(&error));
                    tracing::error!("{refusal}");
                    store.audit(unix_time(), &refusal)?;
                    Err(why.2)
                }
            }
        }
    }
}

/// The recovery release that lies there, whatever the record says.
fn present_recovery(options: &Options, store: &Store) -> Option<Digest> {
    let roots = store.roots(&options.root, options.profile).ok()?;
    let manifest = bundle::manifest(&store.staged(Place::Recovery), &roots, options.profile).ok()?;
    Some(manifest.digest())
}
