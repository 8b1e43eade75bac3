//! The heap: the image in RAM and the medium that it survives on.

use crate::batch::{Batch, SpaceId};
use crate::error::{CommitError, OpenError};
use crate::image::{Image, Space, Undo};
use crate::media::{Media, MediaKind};
use crate::recovery::{OpenOptions, Recovery, recover};
use crate::seal::Key;
use crate::store::{Store, StoreError};
use crate::superblock::MediaId;

/// The last committed state, and the way to commit the next.
pub struct Heap {
    store: Store,
    image: Image,
    epoch: u64,
    /// Why no commit is possible any more.
    poisoned: Option<String>,
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
    /// Number of the last commit.
    pub epoch: u64,
    /// Number of times that the log was folded into a new base, and 1.
    pub generation: u64,
    /// Bytes that base and log may take.
    pub capacity: u64,
    /// Bytes that base and log take.
    pub used: u64,
    /// Number of spaces.
    pub spaces: usize,
    /// Pages that are not all zeros.
    pub resident_pages: u64,
    /// Number of metadata values.
    pub meta_values: usize,
    /// Why the heap refuses commits, if it does.
    pub poisoned: Option<String>,
}

impl std::fmt::Debug for Heap {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("Heap").field(&self.status()).finish()
    }
}

impl Heap {
    /// Opens the heap on a medium, and makes one if the medium is blank and [`OpenOptions::create`] is set.
    /// The image holds exactly the last acknowledged commit, or the one that was in flight if it was complete.
    ///
    /// Opening an existing heap commits an empty batch, so the epoch goes on by one. With that, a commit in
    /// flight that was found incomplete is given up for good: its place is taken, and its epoch lies behind,
    /// so whoever kept it cannot pass it off as what was committed later.
    pub fn open(
        media: Box<dyn Media>,
        key: &Key,
        options: &OpenOptions,
    ) -> Result<(Self, Recovery), OpenError> {
        let (store, image, recovery) = recover(media, key, options)?;
        let mut heap = Self { store, image, epoch: recovery.epoch, poisoned: None };
        if !recovery.created {
            match heap.commit(Batch::default()) {
                // Without room for the smallest commit there is none to give up in the log either.
                Ok(_)
                | Err(CommitError::Full { .. } | CommitError::Invalid(_) | CommitError::Poisoned { .. }) => {}
                Err(CommitError::Media(error)) => return Err(error.into()),
                Err(CommitError::Seal(error)) => return Err(error.into()),
            }
        }
        Ok((heap, recovery))
    }

    /// Makes a batch durable as a whole or not at all, and returns its epoch. Only then the image changes.
    ///
    /// When the log is full, the state including this batch is written to the other half of the medium, which
    /// takes time in proportion to the state.
    pub fn commit(&mut self, batch: Batch) -> Result<u64, CommitError> {
        if let Some(reason) = &self.poisoned {
            return Err(CommitError::Poisoned { reason: reason.clone() });
        }
        batch.check()?;
        let epoch = self.epoch + 1;
        if self.store.length(batch.ops()) <= self.store.cursor.free() {
            if let Err(error) = self.store.append(epoch, batch.ops()) {
                return Err(self.poison(error));
            }
            for change in batch.changes {
                self.image.apply(change);
            }
        } else {
            self.compact(epoch, batch)?;
        }
        self.epoch = epoch;
        if let Err(error) = self.store.acknowledge(epoch) {
            // This commit is durable, so the answer is yes; there will be no next one.
            self.poison(error);
        }
        Ok(epoch)
    }

    /// Commits a batch by writing the state that it leads to as the base of a new generation. So a batch that
    /// frees space goes through even when the log has no room to say so.
    fn compact(&mut self, epoch: u64, batch: Batch) -> Result<(), CommitError> {
        let undo: Vec<Undo> = batch.changes.into_iter().map(|change| self.image.apply(change)).collect();
        let (needed, capacity) = (self.store.length(self.image.ops()), self.store.capacity());
        let result = if needed > capacity {
            Err(CommitError::Full { needed, capacity })
        } else {
            self.store.switch(epoch, self.image.ops()).map_err(|error| self.poison(error))
        };
        if result.is_err() {
            undo.into_iter().rev().for_each(|undo| self.image.revert(undo));
        }
        result
    }

    fn poison(&mut self, error: StoreError) -> CommitError {
        use std::error::Error;
        let cause = error.source().map_or_else(String::new, |source| format!(": {source}"));
        self.poisoned = Some(format!("{error}{cause}"));
        match error {
            StoreError::Media(error) => CommitError::Media(error),
            StoreError::Seal(error) => CommitError::Seal(error),
        }
    }

    /// A space of the last committed state.
    pub fn space(&self, id: SpaceId) -> Option<&Space> {
        self.image.spaces.get(&id)
    }

    /// All spaces, in ascending order of their numbers.
    pub fn spaces(&self) -> impl ExactSizeIterator<Item = (SpaceId, &Space)> {
        self.image.spaces.iter().map(|(id, space)| (*id, space))
    }

    /// A metadata value of the last committed state.
    pub fn meta(&self, key: &[u8]) -> Option<&[u8]> {
        self.image.meta.get(key).map(Vec::as_slice)
    }

    /// Metadata whose keys begin with `prefix`, in ascending order of the keys.
    pub fn meta_range<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + 'a {
        self.image.meta_range(prefix)
    }

    /// Number of the last commit; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Figures about the heap.
    pub fn status(&self) -> Status {
        Status {
            kind: self.store.media.kind(),
            media: self.store.superblock.media,
            media_length: self.store.media.len(),
            epoch: self.epoch,
            generation: self.store.superblock.generation,
            capacity: self.store.capacity(),
            used: self.store.capacity() - self.store.cursor.free(),
            spaces: self.image.spaces.len(),
            resident_pages: self.image.spaces.values().map(|space| space.resident().len() as u64).sum(),
            meta_values: self.image.meta.len(),
            poisoned: self.poisoned.clone(),
        }
    }
}
