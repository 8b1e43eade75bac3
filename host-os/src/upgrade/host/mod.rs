//! The upgrade of the host itself: the release goes into the other slot of the machine's disk, the TPM is told of it, the
//! firmware starts it **once**, and only a host that has been healthy becomes the one that is started always.
//!
//! Who takes the power away or hangs leaves the machine with what it was: the firmware's usual choice does not change before
//! the commit. What follows from what is the table of the crate [`upgrade`]; [`Host::advance`] does what a phase asks for, on
//! a [`Machine`] that tests play.

pub(crate) mod drive;
pub(crate) mod machine;
#[cfg(test)]
mod tests;

use super::{Store, UpgradeError};
use crate::attest::{chain, unix_time};
use machine::HostError;
use release::{Digest, HostImages};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use upgrade::machine::{Content, Event, Part, Phase, Slot};
use upgrade::node::{Node, Which};

/// What an upgrade does to the machine. Everything may be done again after a power cut.
pub(crate) trait Machine: Send {
    /// The slot whose root runs.
    fn running(&self) -> Slot;
    /// Whether the agent was not started before since the machine was; asking is remembered.
    fn first_start(&mut self) -> bool;
    /// Writes the release in `incoming/` into the slot that does not run, and reads it back.
    fn stage(&mut self) -> Result<(), HostError>;
    /// Lets a start of these images open the host's secret too.
    fn allow(&mut self, next: &HostImages) -> Result<(), HostError>;
    /// Lets only the images that run open it.
    fn settle(&mut self) -> Result<(), HostError>;
    /// Has the firmware start the slot that it does not usually start, the next time only.
    fn start_once(&mut self) -> Result<(), HostError>;
    /// Has it start this slot from now on.
    fn start_always(&mut self, slot: Slot) -> Result<(), HostError>;
    /// Begins a restart.
    fn restart(&mut self, why: &str) -> Result<(), HostError>;
}

/// What is asked about the release that comes.
pub(crate) trait Incoming {
    /// All of it: signatures, blessing, every hash, and that what the manifest says of the host follows from its files.
    fn verify(&self, release: Digest) -> Result<HostImages, UpgradeError>;
    /// Whether it may still be brought to this node.
    fn admissible(&self, release: Digest) -> Result<HostImages, UpgradeError>;
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing is under way.
    Nothing,
    /// The next phase.
    Advance,
    /// Its time has not come.
    NotYet,
    /// The new host runs: somebody has to see whether it is well.
    Observe,
    /// The machine goes down.
    Restart,
}

/// The host's part of a node's upgrade.
pub(crate) struct Host {
    pub(super) store: Store,
    machine: Box<dyn Machine>,
    sequence: u64,
    pub(super) part: Part<Digest>,
    /// Set once it is known what becomes of the host that runs: [`Host::fuse`].
    decided: Arc<AtomicBool>,
}

impl Host {
    /// Where the host's upgrade goes on after a start of the agent. `release` is the manifest of the images that run.
    pub(crate) fn begin(
        store: Store,
        mut machine: Box<dyn Machine>,
        release: Digest,
    ) -> Result<Self, UpgradeError> {
        let (running, first) = (machine.running(), machine.first_start());
        let mut anew = Part::installed(release);
        if running == Slot::B {
            (anew.active, anew.keys) = (Slot::B, [false, true]);
            anew.content.swap(0, 1);
        }
        let Some((sequence, part)) = store.load(Which::Host)? else {
            return Ok(Self { store, machine, sequence: 0, part: anew, decided: Arc::default() });
        };
        let mut host = Self { store, machine, sequence, part, decided: Arc::default() };
        let (tried, to_active) = match part.phase {
            Phase::Trying | Phase::Healthy => (true, false),
            Phase::Committed | Phase::Reverting => (false, true),
            _ => (false, false),
        };
        let is_known = *part.content(running) == Content::Release(release);
        if !tried && !to_active && (running != part.active || !is_known) {
            // Somebody installed another release or chose the other slot: what was begun belongs to another machine.
            if !part.phase.is_settled() {
                host.drop_order();
                let why =
                    "the machine was started from another slot than the upgrade was begun on".to_owned();
                host.store.keep_failure(Some(&("host-other-slot".to_owned(), why)))?;
            }
            host.save(anew, "another release runs than this node brought; it is taken as it is")?;
            return Ok(host);
        }
        if part.phase == Phase::Trying && running != part.active && first {
            host.audit("the new host runs")?;
            return Ok(host);
        }
        let next = part.step(Event::Crash, None)?;
        if tried && next.phase == Phase::Reverting {
            let why = "the new host did not stay up: it was started, and each time the machine came back without it";
            host.drop_order();
            host.store.keep_failure(Some(&("host-does-not-run".to_owned(), why.to_owned())))?;
        }
        let text = match (tried, next.tries) {
            (true, 1..) => format!("the new host did not stay up; tries left: {}", next.tries),
            _ => format!("the agent starts; the host's upgrade is {:?}", next.phase),
        };
        host.save(next, &text)?;
        Ok(host)
    }

    /// Whether the machine runs what it should not go on with.
    pub(crate) fn must_leave(&self) -> bool {
        self.part.phase == Phase::Reverting && self.machine.running() != self.part.active
    }

    /// Begins a restart.
    pub(crate) fn leave(&mut self) -> Result<(), UpgradeError> {
        Ok(self.machine.restart("the new host is given up")?)
    }

    /// While a new host is tried: becomes true once it is decided. Who sees it false for too long restarts the machine, which
    /// leads back to the old host, whatever hangs.
    pub(crate) fn fuse(&self) -> Option<Arc<AtomicBool>> {
        let tried = matches!(self.part.phase, Phase::Trying | Phase::Healthy);
        (tried && self.machine.running() != self.part.active).then(|| self.decided.clone())
    }

    /// Whether a release's images are others than those that the committed slot was filled with.
    pub(crate) fn is_new(&self, release: Digest) -> bool {
        *self.part.content(self.part.active) != Content::Release(release)
    }

    /// Takes up a release that lies in `incoming/`.
    pub(crate) fn fetched(&mut self, release: Digest, text: &str) -> Result<(), UpgradeError> {
        if self.part.phase == Phase::Failed {
            self.keep(Event::Acknowledge, "a new upgrade is asked for")?;
        }
        let next = self.part.step(Event::FetchDone, Some(release))?;
        self.save(next, text)
    }

    /// Does what the present phase asks for; each call makes at most one transition. `guest` is the other part.
    pub(crate) fn advance(
        &mut self,
        incoming: &dyn Incoming,
        guest: &Part<Digest>,
        not_before: u64,
    ) -> Result<Next, UpgradeError> {
        let (active, other) = (self.part.active, self.part.active.other());
        let runs_active = self.machine.running() == active;
        match self.part.phase {
            Phase::Idle | Phase::Failed => return Ok(Next::Nothing),
            Phase::Fetched => match incoming.verify(self.incoming()?) {
                Ok(_) => self.keep(Event::VerifyOk, "its files are what was signed")?,
                Err(error) => self.give_up(Event::VerifyRefused, &error)?,
            },
            Phase::Verified => {
                // Again: what lies on a disk may have changed since.
                if let Err(error) = incoming.verify(self.incoming()?) {
                    self.give_up(Event::Withdrawn, &error)?;
                } else if *self.part.content(other) != Content::Partial {
                    // What lay there must not open anything any more before it is overwritten.
                    self.machine.settle()?;
                    self.keep(Event::StageBegun, "the other slot is emptied")?;
                } else {
                    match self.machine.stage() {
                        Ok(()) => self.keep(Event::StageDone, "it is in the other slot, read back")?,
                        Err(error) => self.give_up(Event::StageFailed, &error.into())?,
                    }
                }
            }
            Phase::Staged => return self.try_out(incoming, guest, not_before),
            Phase::Trying if !runs_active => return Ok(Next::Observe),
            Phase::Trying => {
                if let Err(error) = self.machine.start_once() {
                    self.give_up(Event::HealthLost, &error.into())?;
                    return Ok(Next::Advance);
                }
                self.machine.restart("the new host is tried")?;
                return Ok(Next::Restart);
            }
            Phase::Healthy => self.keep(Event::Commit, "the new host stays")?,
            Phase::Committed => {
                self.machine.start_always(active)?;
                if !runs_active {
                    self.machine.restart("the committed host is started")?;
                    return Ok(Next::Restart);
                }
                self.machine.settle()?;
                self.decided.store(true, Ordering::Relaxed);
                self.keep(Event::OldKeyErased, "the old host opens nothing any more")?;
            }
            Phase::Reverting => {
                if !runs_active {
                    self.leave()?;
                    return Ok(Next::Restart);
                }
                self.machine.settle()?;
                self.keep(Event::Reverted, "the committed host runs again")?;
            }
        }
        Ok(Next::Advance)
    }

    fn try_out(
        &mut self,
        incoming: &dyn Incoming,
        guest: &Part<Digest>,
        not_before: u64,
    ) -> Result<Next, UpgradeError> {
        let other = self.part.active.other();
        let Content::Release(release) = *self.part.content(other) else {
            return Err(UpgradeError::NothingBoots);
        };
        let images = match incoming.admissible(release) {
            Ok(images) => images,
            Err(error) => {
                self.machine.settle()?;
                self.give_up(Event::Withdrawn, &error)?;
                return Ok(Next::Advance);
            }
        };
        if unix_time() < not_before {
            return Ok(Next::NotYet);
        }
        if !self.part.has_key(other) {
            match self.machine.allow(&images) {
                Ok(()) => {
                    self.keep(Event::KeyGiven, "the TPM opens the host's secret to the new host too")?
                }
                Err(error) => self.give_up(Event::KeyRefused, &error.into())?,
            }
            return Ok(Next::Advance);
        }
        let node = Node { host: self.part, guest: *guest }.step(Which::Host, Event::Try, None)?;
        self.save(node.host, "Try: the machine starts the new host, once")?;
        Ok(Next::Advance)
    }

    /// What was seen of a host that is tried.
    pub(crate) fn observed(&mut self, health: Result<(), UpgradeError>) -> Result<(), UpgradeError> {
        match health {
            Ok(()) => self.keep(Event::HealthOk, "the new host's guest serves, is attested and answers"),
            Err(error) => self.give_up(Event::HealthLost, &error),
        }
    }

    fn incoming(&self) -> Result<Digest, UpgradeError> {
        self.part.incoming.ok_or(UpgradeError::AnotherRelease)
    }

    /// The order goes first and the reason is kept before the phase: a power cut between them repeats this, and not the upgrade.
    fn give_up(&mut self, event: Event, error: &UpgradeError) -> Result<(), UpgradeError> {
        let why = (error.code().to_owned(), chain(error));
        tracing::warn!(code = why.0, why = why.1, "the upgrade of the host is given up");
        self.drop_order();
        self.store.keep_failure(Some(&why))?;
        self.keep(event, &format!("{}: {}", why.0, why.1))
    }

    fn drop_order(&self) {
        // If it stays, the same release is fetched again, which changes nothing.
        let _ = std::fs::remove_file(self.store.order());
    }

    fn keep(&mut self, event: Event, text: &str) -> Result<(), UpgradeError> {
        let next = self.part.step(event, None)?;
        self.save(next, &format!("{event:?}: {text}"))
    }

    fn save(&mut self, next: Part<Digest>, text: &str) -> Result<(), UpgradeError> {
        self.sequence = self.store.save(Which::Host, self.sequence, &next)?;
        self.part = next;
        self.audit(text)
    }

    fn audit(&self, text: &str) -> Result<(), UpgradeError> {
        tracing::info!(text, "upgrade of the host");
        self.store.audit(unix_time(), &format!("host: {text}"))?;
        Ok(())
    }
}
