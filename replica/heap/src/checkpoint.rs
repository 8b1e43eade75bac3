//! Checkpoints in bounded steps, and the freeing of deleted trees.

use super::block::SUPERBLOCKS;
use super::catalog::{self, trash_key};
use super::error::{CommitError, WriteError};
use super::heap::Heap;
use super::mutants::{self, Mutant};
use super::node::{Tree, Value};
use super::radix;
use super::ring::Place;
use super::seal::Key;
use super::superblock::Superblock;
use super::writer::Writer;

/// Free slots that are worth a checkpoint.
const LEAST_ROOM: u64 = 64;

/// A checkpoint that is being written. Its trees do not change any more.
pub(crate) struct Checkpoint {
    number: u64,
    epoch: u64,
    log: Place,
    catalog: Tree,
    shares: Tree,
    next_trash: u64,
    /// Nodes to be written, at most.
    nodes: u64,
    /// Nodes written.
    written: u64,
}

impl Heap {
    /// Does a part of what is due: about `budget` blocks are written or freed. True when nothing is left.
    /// Commits do their share of this by themselves; idle time may be used for more.
    pub fn maintain(&mut self, budget: u64) -> Result<bool, CommitError> {
        self.flush()?;
        self.maintain_step(budget).map_err(|error| self.poison(error))
    }

    /// Writes a whole checkpoint, so that the next recovery has no log to read.
    pub fn checkpoint(&mut self) -> Result<(), CommitError> {
        self.flush()?;
        self.checkpoint_whole().map_err(|error| self.poison(error))
    }

    fn maintain_step(&mut self, budget: u64) -> Result<bool, WriteError> {
        if self.trash {
            self.free_trees(budget)?;
        }
        if self.checkpoint.is_none() {
            if !self.trash && self.log.used() == 0 && self.writer.slots.waiting() == 0 {
                return Ok(true);
            }
            self.begin_checkpoint()?;
        }
        self.step_checkpoint(budget)?;
        Ok(false)
    }

    /// The share of one commit in maintenance.
    pub(crate) fn maintain_for_commit(&mut self) -> Result<(), WriteError> {
        self.fold_some()?;
        if self.trash {
            self.free_trees(1)?;
        }
        let slots = &self.writer.slots;
        // A quarter of the ring, or of the free slots, from one checkpoint to the next, and the same for writing it.
        let ring = self.writer.store.geometry.ring / 4;
        let room = (slots.room / 4).max(LEAST_ROOM);
        match &self.checkpoint {
            Some(checkpoint) => {
                let logged = checkpoint.nodes * (self.log.head.at - checkpoint.log.at) / ring;
                let taken = checkpoint.nodes * slots.taken / room;
                self.step_checkpoint(2 + logged.max(taken).saturating_sub(checkpoint.written))
            }
            None if self.log.used() > ring || slots.taken > room || slots.waiting() > slots.total() / 4 => {
                self.begin_checkpoint()
            }
            None => Ok(()),
        }
    }

    /// Completes a checkpoint and frees what it lets go.
    pub(crate) fn collect(&mut self) -> Result<(), WriteError> {
        self.checkpoint_whole()?;
        if self.trash {
            self.free_trees(1024)?;
            self.publish();
            self.checkpoint_whole()?;
        }
        self.writer.slots.release(self.writer.store.pins.oldest(), usize::MAX);
        Ok(())
    }

    fn checkpoint_whole(&mut self) -> Result<(), WriteError> {
        if self.checkpoint.is_some() {
            self.step_checkpoint(u64::MAX)?;
        }
        self.begin_checkpoint()?;
        self.step_checkpoint(u64::MAX)
    }

    /// Freezes the state as it is. Everything submitted is durable.
    fn begin_checkpoint(&mut self) -> Result<(), WriteError> {
        self.fold_all()?;
        self.writer.fold_shares()?;
        self.publish();
        self.owed = 0;
        let nodes = std::mem::take(&mut self.writer.dirty);
        if mutants::on(Mutant::LogReusedBeforeCheckpoint) {
            self.log.tail = self.log.head.at;
        }
        self.checkpoint = Some(Checkpoint {
            number: self.writer.slots.freeze(),
            epoch: self.live.epoch,
            log: self.log.head,
            catalog: self.live.catalog.clone(),
            shares: self.writer.shares.stored.clone(),
            next_trash: self.next_trash,
            nodes,
            written: 0,
        });
        Ok(())
    }

    fn step_checkpoint(&mut self, mut budget: u64) -> Result<(), WriteError> {
        let Some(mut checkpoint) = self.checkpoint.take() else { return Ok(()) };
        let before = budget;
        if self.writer.store_nodes(&checkpoint.catalog.root, &mut budget)?
            && self.writer.store_nodes(&checkpoint.shares.root, &mut budget)?
        {
            return self.finish_checkpoint(&checkpoint);
        }
        checkpoint.written += before - budget;
        self.checkpoint = Some(checkpoint);
        Ok(())
    }

    /// All nodes are written: the list of free slots, a fence, and the superblock.
    fn finish_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), WriteError> {
        let root = |tree: &Tree| {
            tree.root
                .stored()
                .map(|root| (tree.height, root))
                .ok_or(WriteError::Fault("a checkpoint with unwritten nodes"))
        };
        let Writer { store, slots, nonces, .. } = &mut self.writer;
        let (free, listed) = slots.write_list(store, nonces, checkpoint.number)?;
        let superblock = Superblock {
            length: store.media.len(),
            generation: self.superblock.generation + 1,
            epoch: checkpoint.epoch,
            log: checkpoint.log,
            free,
            catalog: root(&checkpoint.catalog)?,
            shares: root(&checkpoint.shares)?,
            next_trash: checkpoint.next_trash,
            ..self.superblock
        };
        if !mutants::on(Mutant::CheckpointFenceDropped) {
            store.media.fence()?;
        }
        self.write_superblock(superblock)?;
        self.writer.slots.durable(checkpoint.number, listed);
        self.log.tail = checkpoint.log.at;
        self.publish();
        Ok(())
    }

    /// Puts the heap under another key, while it goes on. When this returns, the former one opens it no more; after
    /// a crash before that, either of them does: see [`OpenOptions::former`](super::OpenOptions::former).
    ///
    /// The data itself is sealed under a random key that stands wrapped in the superblock, and stays as it is: who
    /// had the former key *and* an image from its time can read what is written later, too. Against that, copy the
    /// content to a new medium.
    pub fn rekey(&mut self, key: &Key) -> Result<(), CommitError> {
        if key.sealed() != self.key.sealed() {
            return Err(CommitError::KeyKind);
        }
        self.flush()?;
        self.put_under(key).map_err(|error| self.poison(error))
    }

    pub(crate) fn put_under(&mut self, key: &Key) -> Result<(), WriteError> {
        let lost = WriteError::Fault("the data key cannot be unwrapped");
        let data_key = self.key.unwrap(&self.superblock.data_key).ok_or(lost)?;
        let superblock = Superblock {
            key: key.id(),
            data_key: key.wrap(&data_key)?,
            generation: self.superblock.generation + 1,
            ..self.superblock
        };
        self.key = key.clone();
        // The copy written last must be durable before the other is touched.
        if !mutants::on(Mutant::RekeyFenceDropped) {
            self.writer.store.media.fence()?;
        }
        self.write_superblock(superblock)?;
        if !mutants::on(Mutant::RekeyNotDurable) {
            self.writer.store.media.fence()?;
        }
        Ok(())
    }

    /// Replaces both superblock copies, one after the other. The second rides on the next fence.
    pub(crate) fn write_superblock(&mut self, superblock: Superblock) -> Result<(), WriteError> {
        let bytes = superblock.encode(&self.key);
        let media = &self.writer.store.media;
        media.write(SUPERBLOCKS[0], &bytes)?;
        if !mutants::on(Mutant::SuperblockFenceDropped) {
            media.fence()?;
        }
        media.write(SUPERBLOCKS[1], &bytes)?;
        self.superblock = superblock;
        Ok(())
    }

    /// Frees up to `nodes` index nodes of deleted trees, with the pages that they name.
    fn free_trees(&mut self, nodes: u64) -> Result<(), WriteError> {
        for _ in 0..nodes {
            let needed = self.owed + self.reserve(true) + 24 + 2 * self.writer.shares_estimate(false);
            if self.writer.slots.available() <= needed {
                break;
            }
            let mut first = None;
            catalog::scan(&self.writer.store, &self.live.catalog, &trash_key(0), &mut |key, value| {
                if let Value::Trash(tree) = value {
                    first = Some((key.to_vec(), tree.clone()));
                }
                false
            })?;
            let Some((key, tree)) = first else {
                self.trash = false;
                break;
            };
            catalog::remove(&mut self.writer, &mut self.live.catalog, &key)?;
            // What its pages and nodes change of the shares is taken in later.
            self.owed += self.writer.shares_estimate(false);
            for below in radix::bury(&mut self.writer, &tree)? {
                self.bury_later(below)?;
            }
        }
        Ok(())
    }
}
