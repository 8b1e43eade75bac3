//! Seeded omissions: named faults that the crash simulator must find. They exist only with the feature
//! `mutants`; without it [`on`] is `false` at compile time.

/// Whether the omissions are built in. No product may have them.
pub const BUILT_IN: bool = cfg!(feature = "mutants");

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
    InitialiseFenceDropped,
    RemainsNotWiped,
    GrowthFenceDropped,
    RekeyFenceDropped,
    RekeyNotDurable,
    OlderSuperblockTaken,
    NodeChangedInPlace,
    ListedBeforeCheckpoint,
    ListBlockReusedAtOnce,
    UnnamedSlotsNotListed,
    LogOverrun,
    /// Not in the heap: the simulator's medium loses the last line of each write at a fence.
    LineNotFlushed,
    // Not for the simulator, whose media nobody tampers with and whose snapshots nobody keeps. `tests/tamper.rs`,
    // `tests/model.rs` and, for the first, `tests/interleavings.rs` find these.
    SnapshotsNotHeld,
    FreedWhileFolding,
    RoomNotCounted,
    DamagedLogBelieved,
    WatermarksNotNeeded,
    AnchorIgnored,
    TruncationIgnored,
    OtherMediumTaken,
    OtherKindTaken,
    WipeTakenForNew,
    /// No fault: everything on a plain heap counts as intact, so that a fuzzer comes as far as a hostile owner, who can
    /// compute checksums.
    ChecksumsIgnored,
}

impl Mutant {
    /// All that the simulator must find.
    pub const ALL: [Self; 28] = [
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
        Self::InitialiseFenceDropped,
        Self::RemainsNotWiped,
        Self::GrowthFenceDropped,
        Self::RekeyFenceDropped,
        Self::RekeyNotDurable,
        Self::OlderSuperblockTaken,
        Self::NodeChangedInPlace,
        Self::ListedBeforeCheckpoint,
        Self::ListBlockReusedAtOnce,
        Self::UnnamedSlotsNotListed,
        Self::LogOverrun,
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

/// A read of which nothing was used, since it is not authentic.
#[derive(Debug, Clone, Copy)]
pub struct Refusal {
    /// How many reads were made since.
    pub back: usize,
    /// The next read only followed from it, and nothing of that was used either.
    pub led: bool,
}

#[cfg(feature = "mutants")]
thread_local! {
    static REFUSED: std::cell::RefCell<Vec<Refusal>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Notes that something that this thread read from the medium is refused and not used: to the crash simulator,
/// states that differ only there are alike.
#[cfg(feature = "mutants")]
pub(crate) fn refused(back: usize, led: bool) {
    REFUSED.with_borrow_mut(|refused| refused.push(Refusal { back, led }));
}

/// Notes nothing.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn refused(_: usize, _: bool) {}

/// What this thread refused since the last call.
#[cfg(feature = "mutants")]
pub fn refusals(mut each: impl FnMut(Refusal)) {
    REFUSED.with_borrow_mut(|refused| refused.drain(..).for_each(&mut each));
}
