//! Seeded omissions: named faults that the crash simulator must find. They exist only with the feature
//! `mutants`; without it [`on`] is `false` at compile time.

/// One omission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it; docs/HEAP.md lists them")]
pub enum Mutant {
    CommitFenceDropped,
    CheckpointFenceDropped,
    SuperblockFenceDropped,
    OpenFenceDropped,
    WatermarkBeforeFence,
    TornPagesBelieved,
    FrameChainIgnored,
    PagesAfterFence,
    NonceNotAdvanced,
    SlotReusedBeforeCheckpoint,
    LogReusedBeforeCheckpoint,
    TailNotGivenUp,
    SuperblockNotRepaired,
    TailSlotsFreeAgain,
    LastFrameNotMarked,
    BlockTagIgnored,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::CommitFenceDropped,
        Self::CheckpointFenceDropped,
        Self::SuperblockFenceDropped,
        Self::OpenFenceDropped,
        Self::WatermarkBeforeFence,
        Self::TornPagesBelieved,
        Self::FrameChainIgnored,
        Self::PagesAfterFence,
        Self::NonceNotAdvanced,
        Self::SlotReusedBeforeCheckpoint,
        Self::LogReusedBeforeCheckpoint,
        Self::TailNotGivenUp,
        Self::SuperblockNotRepaired,
        Self::TailSlotsFreeAgain,
        Self::LastFrameNotMarked,
        Self::BlockTagIgnored,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Switches one omission on for this thread, or all off.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Option<Mutant>) {
    CHOSEN.set(mutant);
}

/// Whether an omission is on.
#[cfg(feature = "mutants")]
pub(crate) fn on(mutant: Mutant) -> bool {
    CHOSEN.get() == Some(mutant)
}

/// Whether an omission is on: never.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn on(_: Mutant) -> bool {
    false
}
