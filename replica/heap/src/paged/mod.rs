//! The persistent heap as pages on a medium. The signatures come first; what is behind them follows.
#![expect(clippy::unimplemented, reason = "the bodies follow")]

mod batch;

pub use batch::{Batch, InvalidBatch, MAX_KEY, MAX_PAGES, MAX_SPACE, MAX_VALUE, PAGE, Page, SpaceId};

use crate::media::{Media, MediaError, MediaKind};
use thiserror::Error;

/// The secret that protects a heap, or the explicit choice to have none.
pub struct Key(());

impl Key {
    /// Takes 32 bytes that are uniformly random, or derived from such by a key derivation function.
    pub fn new(_bytes: [u8; 32]) -> Self {
        unimplemented!()
    }

    /// No secret: pages carry checksums against damage and are neither encrypted nor authenticated. Only for
    /// media that nobody hostile can reach.
    pub fn plain() -> Self {
        unimplemented!()
    }
}

/// How to open a heap.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Make a heap if the medium is blank. Whoever owns the medium can blank it, so set this only where
    /// beginning anew is acceptable, or together with `at_least`.
    pub create: bool,
    /// Refuse a heap that ends before this epoch: a number that the caller keeps where the owner of the
    /// medium cannot rewind it. Without one, an older image of the whole medium is not detectable.
    pub at_least: Option<u64>,
}

/// What was found at open.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// The medium was blank and has been initialised.
    pub created: bool,
    /// Number of the last commit found. Opening then made one of its own.
    pub epoch: u64,
    /// Commits that were read from the log.
    pub replayed: u64,
    /// Remains of a commit that was never acknowledged have been discarded.
    pub torn_tail: bool,
    /// The epoch was checked against an anchor.
    pub anchored: bool,
}

/// Why a heap could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The medium failed.
    #[error("the heap's medium failed while it was opened")]
    Media(#[from] MediaError),
}

/// Why a commit was refused or failed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The batch breaks a limit. Nothing changed.
    #[error("the batch is not valid")]
    Invalid(#[from] InvalidBatch),
    /// The medium is full. Nothing changed; smaller batches, and those that free space, go on.
    #[error(
        "the medium is full: {needed} pages are needed, {free} are free; free some, or use a larger medium"
    )]
    Full {
        /// Pages needed, the heap's own included.
        needed: u64,
        /// Pages free.
        free: u64,
    },
    /// The medium failed; the heap refuses further commits.
    #[error("the medium failed during the commit; open the heap again to learn whether it became durable")]
    Media(#[source] MediaError),
    /// An earlier commit failed.
    #[error("the heap stopped after an earlier failure ({reason}); open it again")]
    Poisoned {
        /// What failed.
        reason: String,
    },
}

/// Why something committed cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The medium failed.
    #[error("the heap's medium failed while it was read")]
    Media(#[from] MediaError),
    /// What lies there is not what was written.
    #[error(
        "the page at byte {offset} of the medium is damaged; what it held is lost, restore it from a copy"
    )]
    Damaged {
        /// Where it lies, in bytes.
        offset: u64,
    },
}

/// Figures about a heap.
#[derive(Debug, Clone)]
pub struct Status {
    /// What the medium is, hence what a commit survives.
    pub kind: MediaKind,
    /// Whether content is encrypted and authenticated.
    pub sealed: bool,
    /// Number of the last durable commit.
    pub epoch: u64,
    /// Bytes that pages and index may take.
    pub capacity: u64,
    /// Bytes that they take.
    pub used: u64,
    /// Why the heap refuses commits, if it does.
    pub poisoned: Option<String>,
}

/// The last committed state, and the way to commit the next.
pub struct Heap(());

impl Heap {
    /// Opens the heap on a medium, and makes one if the medium is blank and [`OpenOptions::create`] is set.
    /// Costs what the tail of the log costs, whatever the heap holds.
    pub fn open(
        _media: Box<dyn Media>,
        _key: &Key,
        _options: &OpenOptions,
    ) -> Result<(Self, Recovery), OpenError> {
        unimplemented!()
    }

    /// Makes a batch durable as a whole or not at all, and returns its epoch: [`Heap::submit`] and
    /// [`Heap::flush`].
    pub fn commit(&mut self, _batch: &Batch<'_>) -> Result<u64, CommitError> {
        unimplemented!()
    }

    /// Writes a batch without waiting until it is durable; [`Heap::flush`] makes all submitted batches so.
    /// Until then no snapshot shows it.
    pub fn submit(&mut self, _batch: &Batch<'_>) -> Result<u64, CommitError> {
        unimplemented!()
    }

    /// Makes everything submitted durable, and returns the last epoch.
    pub fn flush(&mut self) -> Result<u64, CommitError> {
        unimplemented!()
    }

    /// The last durable state, to be read from any thread, for as long as it is kept.
    pub fn snapshot(&self) -> Snapshot {
        unimplemented!()
    }

    /// Number of the last durable commit; 0 before the first.
    pub fn epoch(&self) -> u64 {
        unimplemented!()
    }

    /// Figures about the heap.
    pub fn status(&self) -> Status {
        unimplemented!()
    }
}

/// One committed state. Holds its pages on the medium until the last clone is dropped.
#[derive(Clone)]
pub struct Snapshot(());

impl Snapshot {
    /// Number of the last commit that it shows.
    pub fn epoch(&self) -> u64 {
        unimplemented!()
    }

    /// Reads a page; one never written, or behind the end of its space, reads as zeros.
    pub fn read_page(&self, _space: SpaceId, _page: u64, _into: &mut Page) -> Result<(), ReadError> {
        unimplemented!()
    }

    /// Length of a space in pages; `None` if there is no such space.
    pub fn space_pages(&self, _space: SpaceId) -> Result<Option<u64>, ReadError> {
        unimplemented!()
    }

    /// All spaces with their lengths in pages, in ascending order of their numbers.
    pub fn spaces(&self) -> Result<Vec<(SpaceId, u64)>, ReadError> {
        unimplemented!()
    }

    /// The numbers of the pages from `from` on that are not zeros, ascending, at most `limit` of them.
    pub fn present_pages(&self, _space: SpaceId, _from: u64, _limit: usize) -> Result<Vec<u64>, ReadError> {
        unimplemented!()
    }

    /// A metadata value.
    pub fn meta(&self, _key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        unimplemented!()
    }

    /// Metadata whose keys begin with `prefix`, in ascending order of the keys.
    pub fn meta_range(&self, _prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>, ReadError> {
        unimplemented!()
    }

    /// Numbers of the pages of a space that were written after `epoch`, ascending, without repetition. `None`
    /// if that is not known any more, or if the space was cut, deleted or copied over since.
    pub fn changed_since(&self, _epoch: u64, _space: SpaceId) -> Option<Vec<u64>> {
        unimplemented!()
    }
}
