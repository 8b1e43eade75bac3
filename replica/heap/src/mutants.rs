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
    /// Not in the heap: the simulator's medium loses the last line of each write at a fence.
    LineNotFlushed,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 17] = [
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
        Self::LineNotFlushed,
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

/// The omission that is on for this thread.
#[cfg(feature = "mutants")]
pub fn chosen() -> Option<Mutant> {
    CHOSEN.get()
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

#[cfg(feature = "mutants")]
thread_local! {
    static REFUSED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Notes that what this thread read last from the medium is not authentic and nothing of it is used: to the crash
/// simulator, states that differ only there are alike.
#[cfg(feature = "mutants")]
pub(crate) fn refused() {
    REFUSED.set(REFUSED.get() + 1);
}

/// Notes nothing.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn refused() {}

/// How often this thread read something that is not authentic.
#[cfg(feature = "mutants")]
pub fn refusals() -> u64 {
    REFUSED.get()
}
