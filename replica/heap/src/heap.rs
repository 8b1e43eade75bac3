//! The heap: commits, and the index in RAM that they lead to.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::batch::{Batch, PAGE};
use super::block::Ref;
use super::checkpoint::Checkpoint;
use super::error::{CommitError, WriteError};
use super::fold::Fold;
use super::node::Tree;
use super::recent::{Mix, Recent};
use super::record::Change;
use super::ring::Log;
use super::seal::Key;
use super::snapshot::Snapshot;
use super::superblock::{MediaId, Superblock};
use super::writer::Writer;
use crate::media::{MediaKind, MemMedia};

/// The last committed state, and the way to commit the next.
pub struct Heap {
    pub(crate) writer: Writer,
    pub(crate) key: Key,
    pub(crate) superblock: Superblock,
    pub(crate) log: Log,
    /// With all that was submitted.
    pub(crate) live: View,
    /// As far as it is durable.
    pub(crate) published: View,
    /// Lengths of spaces with all that was submitted; `None`: there is no such space.
    pub(crate) lengths: Lengths,
    /// Changes among the live view's recent ones.
    pub(crate) recent: usize,
    /// Earlier ones that the index is taking in.
    pub(crate) fold: Option<Fold>,
    /// An empty place for recent changes.
    pub(crate) spare: Option<Arc<Recent>>,
    /// Slots that the next checkpoint may take for the index on account of the recent changes: an upper bound.
    pub(crate) owed: u64,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) next_trash: u64,
    /// Whether there may be trees to be freed.
    pub(crate) trash: bool,
    /// Watermark cell to be written next.
    pub(crate) cell: usize,
    /// There was a commit since the last part of maintenance.
    due: bool,
    poisoned: Option<String>,
    pub(crate) changes: Vec<Change>,
    pub(crate) payload: Vec<u8>,
    /// Pages that a mutant holds back.
    pub(crate) late: Vec<(u64, MemMedia)>,
}

/// Lengths of spaces, by number; numbers are the program's own.
pub(crate) type Lengths = HashMap<u64, Option<u64>, BuildHasherDefault<Mix>>;

/// One state: the index, and what was committed since it was last changed.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) epoch: u64,
    pub(crate) catalog: Tree,
    pub(crate) recent: Arc<Recent>,
    /// Older changes, which the index is taking in.
    pub(crate) aside: Option<Arc<Recent>>,
}

impl View {
    /// What lies above the index, the newest first.
    pub(crate) fn layers(&self) -> impl DoubleEndedIterator<Item = &Recent> {
        std::iter::once(&self.recent).chain(&self.aside).map(Arc::as_ref)
    }
}

/// Figures about a heap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What the medium is, hence what a commit survives.
    pub kind: MediaKind,
    /// Name of the medium.
    pub media: MediaId,
    /// Length of the medium in bytes.
    pub media_length: u64,
    /// Whether content is encrypted and authenticated.
    pub sealed: bool,
    /// Number of the last durable commit.
    pub epoch: u64,
    /// Number of the last durable superblock.
    pub generation: u64,
    /// Bytes that pages and index may take.
    pub capacity: u64,
    /// Bytes that they take.
    pub used: u64,
    /// Bytes of the log.
    pub log_capacity: u64,
    /// Bytes of the log that recovery would read.
    pub log_used: u64,
    /// Bytes given up that wait for a checkpoint or a snapshot.
    pub waiting: u64,
    /// Why the heap refuses commits, if it does.
    pub poisoned: Option<String>,
}

impl std::fmt::Debug for Heap {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("Heap").field(&self.status()).finish()
    }
}

impl Heap {
    pub(crate) fn new(writer: Writer, key: Key, superblock: Superblock, log: Log) -> Self {
        let tree = |(height, root): (u8, Ref)| Tree {
            height,
            root: root.some().map_or(super::node::Child::None, super::node::Child::Stored),
        };
        let view = View {
            epoch: superblock.epoch,
            catalog: tree(superblock.catalog),
            recent: Arc::default(),
            aside: None,
        };
        Self {
            writer,
            key,
            log,
            live: view.clone(),
            published: view,
            lengths: HashMap::default(),
            recent: 0,
            fold: None,
            spare: None,
            owed: 0,
            checkpoint: None,
            next_trash: superblock.next_trash,
            trash: true,
            cell: 0,
            due: false,
            poisoned: None,
            changes: Vec::new(),
            payload: Vec::new(),
            late: Vec::new(),
            superblock,
        }
    }

    /// Makes a batch durable as a whole or not at all, and returns its epoch: [`Heap::submit`] and
    /// [`Heap::flush`].
    pub fn commit(&mut self, batch: &Batch<'_>) -> Result<u64, CommitError> {
        self.submit(batch)?;
        self.flush()
    }

    /// Writes a batch without waiting until it is durable; [`Heap::flush`] makes all submitted batches so with
    /// one fence. Until then no snapshot shows it, and a crash may take it, with all submitted after it. Before that
    /// it does a bounded part of what is due: taking changes into the index, writing a checkpoint, freeing slots.
    pub fn submit(&mut self, batch: &Batch<'_>) -> Result<u64, CommitError> {
        self.usable()?;
        // Here and not after the commit before: it is done while the first page comes into the cache.
        if self.due && self.live.epoch == self.published.epoch {
            self.due = false;
            self.maintain_for_commit().map_err(|error| self.poison(error))?;
        }
        self.admit(batch)?;
        self.write(batch).map_err(|error| self.poison(error))
    }

    /// Makes everything submitted durable, and returns the last epoch.
    pub fn flush(&mut self) -> Result<u64, CommitError> {
        self.usable()?;
        if self.live.epoch != self.published.epoch {
            self.make_durable().map_err(|error| self.poison(error))?;
            self.due = true;
        }
        Ok(self.published.epoch)
    }

    /// The last durable state, to be read from any thread, for as long as it is kept.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.writer.store.clone(), self.published.clone(), self.writer.slots.moment)
    }

    /// Number of the last durable commit; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.published.epoch
    }

    /// Figures about the heap.
    pub fn status(&self) -> Status {
        let store = &self.writer.store;
        let bytes = |slots: u64| slots * PAGE as u64;
        Status {
            kind: store.media.kind(),
            media: self.superblock.media,
            media_length: self.superblock.length,
            sealed: store.sealer.sealed(),
            epoch: self.published.epoch,
            generation: self.superblock.generation,
            capacity: bytes(self.writer.slots.total()),
            used: bytes(self.writer.slots.used()),
            log_capacity: store.geometry.ring,
            log_used: self.log.used(),
            waiting: bytes(self.writer.slots.waiting()),
            poisoned: self.poisoned.clone(),
        }
    }

    pub(crate) fn usable(&self) -> Result<(), CommitError> {
        match &self.poisoned {
            Some(reason) => Err(CommitError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    pub(crate) fn poison(&mut self, error: WriteError) -> CommitError {
        use std::error::Error;
        let cause = error.source().map_or_else(String::new, |source| format!(": {source}"));
        self.poisoned = Some(format!("{error}{cause}"));
        match error {
            WriteError::Media(error) => CommitError::Media(error),
            WriteError::Seal(error) => CommitError::Seal(error),
            WriteError::Read(error) => CommitError::Index(error),
            WriteError::NoSlot | WriteError::Fault(_) => CommitError::Poisoned { reason: error.to_string() },
        }
    }
}
