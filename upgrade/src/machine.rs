//! The upgrade of one part, host or guest, as a table.
//!
//! "Key" stands for what the code in a slot needs to work: for a guest the storage key wrapped for its measurement, for a
//! host the TPM policy that opens its secrets. Both are made **before** the slot is tried and dropped **after** it is
//! certain which slot stays.

/// One of two places for a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The other one.
    pub const fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }
}

/// How far an upgrade is. What survives a power cut is this and the rest of [`Part`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Nothing is under way.
    Idle,
    /// A release lies in the store, not looked at.
    Fetched,
    /// Hashes, signatures, blessing and measurement of it are right.
    Verified,
    /// It is in the other slot, read back.
    Staged,
    /// The other slot runs, and is not trusted to work.
    Trying,
    /// It serves, its evidence verifies and the probe answers, for the set time.
    Healthy,
    /// The other slot is the active one now; the old one's key is still there.
    Committed,
    /// Going back to the active slot.
    Reverting,
    /// Given up; the reason is kept until somebody acknowledges it.
    Failed,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Phase; 9] = [
        Phase::Idle,
        Phase::Fetched,
        Phase::Verified,
        Phase::Staged,
        Phase::Trying,
        Phase::Healthy,
        Phase::Committed,
        Phase::Reverting,
        Phase::Failed,
    ];

    /// Whether nothing goes on by itself from here.
    pub const fn is_settled(self) -> bool {
        matches!(self, Phase::Idle | Phase::Failed)
    }
}

/// What happens to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// All bytes of a release arrived.
    FetchDone,
    /// Everything about it is right, and it is blessed now.
    VerifyOk,
    /// Something is not.
    VerifyRefused,
    /// Writing into the other slot begins.
    StageBegun,
    /// It was written and read back.
    StageDone,
    /// It could not be written: a full or broken disk.
    StageFailed,
    /// The recovery release has its key.
    RecoveryGiven,
    /// The blessing names no recovery release: the one before has no key any more.
    RecoveryDropped,
    /// The other slot's release has its key.
    KeyGiven,
    /// The hand-over was refused.
    KeyRefused,
    /// The blessing no longer names it.
    Withdrawn,
    /// The other slot is to be started.
    Try,
    /// It did not come up.
    BootFailed,
    /// It is healthy.
    HealthOk,
    /// It came up and is not, or is no longer, healthy.
    HealthLost,
    /// It stays.
    Commit,
    /// The old slot's key is erased.
    OldKeyErased,
    /// The active slot runs again, and the tried slot's key is erased.
    Reverted,
    /// Somebody saw why it failed.
    Acknowledge,
    /// The power went, or the program died, after anything was written.
    Crash,
    /// Neither slot may be started: the recovery release runs.
    NothingBoots,
    /// The recovery release put a blessed release into the active slot, with its key.
    Rescued,
}

impl Event {
    /// Every event.
    pub const ALL: [Event; 22] = [
        Event::FetchDone,
        Event::VerifyOk,
        Event::VerifyRefused,
        Event::StageBegun,
        Event::StageDone,
        Event::StageFailed,
        Event::RecoveryGiven,
        Event::RecoveryDropped,
        Event::KeyGiven,
        Event::KeyRefused,
        Event::Withdrawn,
        Event::Try,
        Event::BootFailed,
        Event::HealthOk,
        Event::HealthLost,
        Event::Commit,
        Event::OldKeyErased,
        Event::Reverted,
        Event::Acknowledge,
        Event::Crash,
        Event::NothingBoots,
        Event::Rescued,
    ];
}

/// Under which condition a row of the table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Guard {
    /// Always.
    Always,
    /// Nothing is being written into the other slot.
    NotWriting,
    /// The other slot is being written.
    Writing,
    /// The other slot has no key.
    NoKey,
    /// The other slot has its key.
    Key,
    /// Another try is left after this one.
    TriesLeft,
    /// This was the last.
    LastTry,
}

/// What a transition changes beside the phase: at most one durable thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing.
    None,
    /// The other slot's old content and key are gone.
    DiscardOther,
    /// The other slot holds the release.
    FillOther,
    /// The recovery release has a key.
    GiveRecovery,
    /// No recovery release has one.
    DropRecovery,
    /// The other slot has a key.
    GiveKey,
    /// The other slot has none.
    DropOtherKey,
    /// The boot counter is set.
    StartTries,
    /// One try is used up.
    UseTry,
    /// The other slot becomes the active one.
    Switch,
    /// The active slot gets a release and a key, the other loses its.
    Rescue,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Transition {
    /// From.
    pub from: Phase,
    /// On.
    pub event: Event,
    /// If.
    pub guard: Guard,
    /// To.
    pub to: Phase,
    /// With.
    pub effect: Effect,
}

const fn row(from: Phase, event: Event, guard: Guard, to: Phase, effect: Effect) -> Transition {
    Transition { from, event, guard, to, effect }
}

/// The whole machine. Any other pair of phase and event is refused.
#[rustfmt::skip]
pub const TRANSITIONS: &[Transition] = {
    use {Effect as E, Event as V, Guard as G, Phase as P};
    &[
        row(P::Idle,      V::FetchDone,     G::Always,     P::Fetched,   E::None),
        row(P::Fetched,   V::VerifyOk,      G::Always,     P::Verified,  E::None),
        row(P::Fetched,   V::VerifyRefused, G::Always,     P::Failed,    E::None),
        row(P::Verified,  V::StageBegun,    G::NotWriting, P::Verified,  E::DiscardOther),
        row(P::Verified,  V::StageDone,     G::Writing,    P::Staged,    E::FillOther),
        row(P::Verified,  V::StageFailed,   G::Writing,    P::Failed,    E::None),
        row(P::Verified,  V::Withdrawn,     G::Always,     P::Failed,    E::None),
        // Before the other slot's: what comes next may leave nothing else to start.
        row(P::Staged,    V::RecoveryGiven, G::NoKey,      P::Staged,    E::GiveRecovery),
        row(P::Staged,    V::RecoveryDropped, G::NoKey,    P::Staged,    E::DropRecovery),
        row(P::Staged,    V::KeyGiven,      G::NoKey,      P::Staged,    E::GiveKey),
        row(P::Staged,    V::KeyRefused,    G::NoKey,      P::Failed,    E::None),
        row(P::Staged,    V::Withdrawn,     G::Always,     P::Failed,    E::DropOtherKey),
        row(P::Staged,    V::Try,           G::Key,        P::Trying,    E::StartTries),
        row(P::Trying,    V::BootFailed,    G::TriesLeft,  P::Trying,    E::UseTry),
        row(P::Trying,    V::BootFailed,    G::LastTry,    P::Reverting, E::None),
        row(P::Trying,    V::HealthOk,      G::Always,     P::Healthy,   E::None),
        row(P::Trying,    V::HealthLost,    G::Always,     P::Reverting, E::None),
        row(P::Trying,    V::Withdrawn,     G::Always,     P::Reverting, E::None),
        row(P::Healthy,   V::HealthLost,    G::Always,     P::Reverting, E::None),
        row(P::Healthy,   V::Withdrawn,     G::Always,     P::Reverting, E::None),
        row(P::Healthy,   V::Commit,        G::Always,     P::Committed, E::Switch),
        row(P::Committed, V::OldKeyErased,  G::Always,     P::Idle,      E::DropOtherKey),
        row(P::Reverting, V::Reverted,      G::Always,     P::Failed,    E::DropOtherKey),
        row(P::Failed,    V::Acknowledge,   G::Always,     P::Idle,      E::None),
        // What lies in the store was checked, but it lies on a disk: it is checked again before use.
        row(P::Idle,      V::Crash,         G::Always,     P::Idle,      E::None),
        row(P::Fetched,   V::Crash,         G::Always,     P::Fetched,   E::None),
        row(P::Verified,  V::Crash,         G::Always,     P::Fetched,   E::None),
        row(P::Staged,    V::Crash,         G::Always,     P::Staged,    E::None),
        // A crash counts as a failed try: a release that takes the machine down must not do so for ever.
        row(P::Trying,    V::Crash,         G::TriesLeft,  P::Trying,    E::UseTry),
        row(P::Trying,    V::Crash,         G::LastTry,    P::Reverting, E::None),
        row(P::Healthy,   V::Crash,         G::TriesLeft,  P::Trying,    E::UseTry),
        row(P::Healthy,   V::Crash,         G::LastTry,    P::Reverting, E::None),
        row(P::Committed, V::Crash,         G::Always,     P::Committed, E::None),
        row(P::Reverting, V::Crash,         G::Always,     P::Reverting, E::None),
        row(P::Failed,    V::Crash,         G::Always,     P::Failed,    E::None),
        // Both slots are bad.
        row(P::Idle,      V::NothingBoots,  G::Always,     P::Failed,    E::None),
        row(P::Fetched,   V::NothingBoots,  G::Always,     P::Failed,    E::None),
        row(P::Staged,    V::NothingBoots,  G::Always,     P::Failed,    E::DropOtherKey),
        row(P::Trying,    V::NothingBoots,  G::Always,     P::Failed,    E::DropOtherKey),
        row(P::Committed, V::NothingBoots,  G::Always,     P::Failed,    E::DropOtherKey),
        row(P::Reverting, V::NothingBoots,  G::Always,     P::Failed,    E::DropOtherKey),
        row(P::Failed,    V::NothingBoots,  G::Always,     P::Failed,    E::None),
        row(P::Failed,    V::Rescued,       G::Always,     P::Idle,      E::Rescue),
    ]
};

/// How often a release may be started before it has to be healthy.
pub const TRIES: u8 = 3;

/// What is in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content<R> {
    /// Nothing, or what a write left that did not end.
    Partial,
    /// A release that was verified when it was written.
    Release(R),
}

/// A part with its slots. `R` names releases, for instance by the digest of the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part<R> {
    /// How far an upgrade is.
    pub phase: Phase,
    /// The slot that is started unless another is tried: the committed one.
    pub active: Slot,
    /// Tries left, while one is under way.
    pub tries: u8,
    /// What is in the slots A and B.
    pub content: [Content<R>; 2],
    /// Which slots' releases have a key.
    pub keys: [bool; 2],
    /// The release that is being brought, from the fetch until it is in its slot.
    pub incoming: Option<R>,
    /// The recovery release that has a key. It lies in a place of its own and is started when no slot can be.
    pub recovery: Option<R>,
}

/// An event that means nothing in the present phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{event:?} has no meaning while an upgrade is {phase:?}; look at the status and begin again from there"
)]
pub struct Unexpected {
    /// The phase.
    pub phase: Phase,
    /// The event.
    pub event: Event,
}

impl<R: Copy> Part<R> {
    /// A part that was just installed with a release in slot A.
    pub fn installed(release: R) -> Part<R> {
        Part {
            phase: Phase::Idle,
            active: Slot::A,
            tries: 0,
            content: [Content::Release(release), Content::Partial],
            keys: [true, false],
            incoming: None,
            recovery: None,
        }
    }

    /// A part of which nobody knows any more what is in its slots: nothing but the recovery release is started.
    pub fn lost(recovery: Option<R>) -> Part<R> {
        Part {
            phase: Phase::Failed,
            active: Slot::A,
            tries: 0,
            content: [Content::Partial; 2],
            keys: [false; 2],
            incoming: None,
            recovery,
        }
    }

    /// What is in a slot.
    pub fn content(&self, slot: Slot) -> &Content<R> {
        &self.content[slot as usize]
    }

    /// Whether a slot's release has a key.
    pub fn has_key(&self, slot: Slot) -> bool {
        self.keys[slot as usize]
    }

    fn holds(&self, guard: Guard) -> bool {
        let other = self.active.other();
        let writing = matches!(self.content(other), Content::Partial);
        match guard {
            Guard::Always => true,
            Guard::NotWriting => !writing,
            Guard::Writing => writing,
            Guard::NoKey => !self.has_key(other),
            Guard::Key => self.has_key(other),
            Guard::TriesLeft => self.tries > 1,
            Guard::LastTry => self.tries <= 1,
        }
    }

    /// The row of the table for an event; its index names it.
    pub fn transition(&self, event: Event) -> Result<(usize, &'static Transition), Unexpected> {
        TRANSITIONS
            .iter()
            .enumerate()
            .find(|(_, row)| row.from == self.phase && row.event == event && self.holds(row.guard))
            .ok_or(Unexpected { phase: self.phase, event })
    }

    /// The part after an event. `release` is the one that the event brings: with [`Event::FetchDone`],
    /// [`Event::RecoveryGiven`] and [`Event::Rescued`]; of no meaning otherwise.
    pub fn step(&self, event: Event, release: Option<R>) -> Result<Part<R>, Unexpected> {
        let (_, row) = self.transition(event)?;
        let mut next = Part { phase: row.to, ..*self };
        let other = self.active.other() as usize;
        match row.effect {
            Effect::None => {}
            Effect::DiscardOther => {
                next.content[other] = Content::Partial;
                next.keys[other] = false;
            }
            Effect::FillOther => {
                let incoming = self.incoming.ok_or(Unexpected { phase: self.phase, event })?;
                next.content[other] = Content::Release(incoming);
            }
            Effect::GiveRecovery => {
                next.recovery = Some(release.ok_or(Unexpected { phase: self.phase, event })?);
            }
            Effect::DropRecovery => next.recovery = None,
            Effect::GiveKey => next.keys[other] = true,
            Effect::DropOtherKey => next.keys[other] = false,
            Effect::StartTries => next.tries = TRIES,
            Effect::UseTry => next.tries = self.tries.saturating_sub(1),
            Effect::Switch => next.active = self.active.other(),
            Effect::Rescue => {
                let release = release.ok_or(Unexpected { phase: self.phase, event })?;
                next.content[self.active as usize] = Content::Release(release);
                next.keys = [false; 2];
                next.keys[self.active as usize] = true;
            }
        }
        next.incoming = match (event, row.to) {
            (Event::FetchDone, _) => Some(release.ok_or(Unexpected { phase: self.phase, event })?),
            (_, Phase::Fetched | Phase::Verified) => self.incoming,
            _ => None,
        };
        if !matches!(row.to, Phase::Trying | Phase::Healthy) {
            next.tries = 0;
        }
        Ok(next)
    }
}

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Boot {
    /// The release in a slot.
    Slot(Slot),
    /// The recovery release.
    Recovery,
}

impl<R: Copy> Part<R> {
    /// What is started when the machine, or the guest, comes up. `may_run` holds a release against its hashes and the
    /// blessing, **at this moment**: what was right when it was staged may have been changed or revoked since.
    pub fn boot(&self, may_run: impl Fn(Slot, R) -> bool) -> Boot {
        let usable = |slot: Slot| match self.content(slot) {
            Content::Release(release) => self.has_key(slot) && may_run(slot, *release),
            Content::Partial => false,
        };
        let (active, other) = (self.active, self.active.other());
        let tried = matches!(self.phase, Phase::Trying | Phase::Healthy);
        // While an upgrade is committed the slot that it came from still has a key: a way back if the new one rots.
        let order = if tried { [other, active] } else { [active, other] };
        let fallback = tried || matches!(self.phase, Phase::Committed);
        order
            .into_iter()
            .take(if fallback { 2 } else { 1 })
            .find(|slot| usable(*slot))
            .map_or(Boot::Recovery, Boot::Slot)
    }
}
