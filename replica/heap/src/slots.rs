//! Which slots are free.
//!
//! The free ones are: those never used, from `fresh` on; those in `free`; those listed in the chain of list
//! blocks on the medium, which is read one block at a time. A slot given up waits in limbo until a checkpoint
//! begun afterwards is durable, so that neither the durable index nor the log to be replayed names it, and until
//! no snapshot older than that is held.

use std::collections::{HashSet, VecDeque};

use super::batch::{PAGE, Page};
use super::block::{REF, Ref};
use super::error::{ReadError, WriteError};
use super::free::Free;
use super::mutants::{self, Mutant};
use super::node::Fields;
use super::seal::Nonces;
use super::store::Store;

/// Slots named by one list block.
const LISTED: usize = (PAGE - REF - 4) / 4;
/// Free slots kept in RAM by a checkpoint; the rest goes to the chain.
const KEPT: usize = 2 * LISTED;

/// The part of a superblock that says which slots are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreeList {
    /// Lowest slot never used.
    pub(crate) fresh: u32,
    /// First block of the chain.
    pub(crate) chain: Ref,
    /// Slots that the chain names.
    pub(crate) listed: u64,
}

struct Waiting {
    slot: u32,
    /// Checkpoints begun before it was given up.
    freezes: u64,
    /// Snapshots of moments before this one may read it.
    moment: u64,
}

pub(crate) struct Slots {
    total: u32,
    fresh: u32,
    free: Free,
    chain: Ref,
    listed: u64,
    limbo: VecDeque<Waiting>,
    /// Given up since the last moment that snapshots can see.
    fresh_limbo: Vec<(u32, u64)>,
    /// Slots of nodes made since the last checkpoint began: neither it nor the log names them.
    reserved: Vec<u32>,
    /// Blocks of the list that the next superblock will not name; no snapshot reads them.
    old_blocks: Vec<(u32, u64)>,
    /// List blocks of the last checkpoint that hold what is in RAM.
    scratch_blocks: Vec<u32>,
    /// Slots taken since the last checkpoint began, and how many could be taken then.
    pub(crate) taken: u64,
    pub(crate) room: u64,
    /// The present moment.
    pub(crate) moment: u64,
    /// Checkpoints begun.
    pub(crate) freezes: u64,
    /// Checkpoints durable.
    durable: u64,
}

impl Slots {
    pub(crate) fn new(total: u32, list: &FreeList) -> Self {
        Self {
            total,
            fresh: list.fresh,
            free: Free::new(total),
            chain: list.chain,
            listed: list.listed,
            limbo: VecDeque::new(),
            fresh_limbo: Vec::new(),
            reserved: Vec::new(),
            old_blocks: Vec::new(),
            scratch_blocks: Vec::new(),
            taken: 0,
            room: list.listed + u64::from(total.saturating_sub(list.fresh)),
            moment: 0,
            freezes: 1,
            durable: 1,
        }
    }

    /// Takes out the slots that records in the log name; before anything else is taken. They stand in the first
    /// blocks of the chain, whose slots were the next to be taken.
    pub(crate) fn take_logged(
        &mut self,
        store: &Store,
        slots: impl Iterator<Item = u32>,
    ) -> Result<(), WriteError> {
        if mutants::on(Mutant::TailSlotsFreeAgain) {
            return Ok(());
        }
        let total = self.total;
        let mut taken: HashSet<u32> = slots.filter(|slot| *slot <= total).collect();
        let fresh = taken.iter().max().map_or(self.fresh, |highest| self.fresh.max(highest + 1));
        // What lies between was reserved and never became part of a commit.
        (self.fresh..fresh).filter(|slot| !taken.remove(slot)).for_each(|slot| self.free.insert(slot));
        self.fresh = fresh.min(self.total + 1);
        while !taken.is_empty() && !self.chain.is_none() {
            self.unchain(store)?;
            taken.retain(|slot| !self.free.remove(*slot));
        }
        Ok(())
    }

    /// Slots that can be taken now.
    pub(crate) fn available(&self) -> u64 {
        self.free.len() + self.listed + u64::from(self.total + 1 - self.fresh)
    }

    /// Slots that will become free with the next checkpoints.
    pub(crate) fn waiting(&self) -> u64 {
        (self.limbo.len() + self.fresh_limbo.len() + self.old_blocks.len()) as u64
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.into()
    }

    /// Slots that hold something.
    pub(crate) fn used(&self) -> u64 {
        self.total() - self.available().min(self.total()) - self.waiting().min(self.total())
    }

    pub(crate) fn take(&mut self, store: &Store) -> Result<u32, WriteError> {
        self.taken += 1;
        loop {
            if let Some(slot) = self.free.take() {
                return Ok(slot);
            }
            if self.chain.is_none() {
                break;
            }
            self.unchain(store)?;
        }
        if self.fresh > self.total {
            return Err(WriteError::NoSlot);
        }
        self.fresh += 1;
        Ok(self.fresh - 1)
    }

    /// Reads the first block of the chain.
    fn unchain(&mut self, store: &Store) -> Result<(), WriteError> {
        let mut block = [0; PAGE];
        store.read(&self.chain, &mut block)?;
        let malformed =
            || ReadError::Malformed { offset: store.geometry.offset(self.chain.slot()).unwrap_or_default() };
        let (next, listed) = decode_list(&block).ok_or_else(malformed)?;
        self.listed = self.listed.saturating_sub(listed.len() as u64);
        listed.into_iter().for_each(|slot| self.free.insert(slot));
        let consumed = std::mem::replace(&mut self.chain, next);
        // The durable superblock still names it; the next one, even if its checkpoint has begun, will not.
        self.old_blocks.push((consumed.slot(), self.durable));
        Ok(())
    }

    /// Gives a slot up. It becomes free some time later.
    pub(crate) fn give(&mut self, slot: u32) {
        self.fresh_limbo.push((slot, self.freezes));
    }

    /// What was given up so far is invisible to snapshots taken from now on.
    pub(crate) fn publish(&mut self) {
        self.moment += 1;
        let moment = self.moment;
        let waiting = self.fresh_limbo.drain(..).map(|(slot, freezes)| Waiting { slot, freezes, moment });
        self.limbo.extend(waiting);
        if mutants::on(Mutant::SlotReusedBeforeCheckpoint) {
            self.limbo.drain(..).for_each(|waiting| self.free.insert(waiting.slot));
        }
    }

    /// Frees what waited for the checkpoints that are durable and for no snapshot, at most so many.
    pub(crate) fn release(&mut self, oldest: Option<u64>, most: usize) {
        for _ in 0..most {
            match self.limbo.front() {
                Some(first)
                    if first.freezes < self.durable && oldest.is_none_or(|oldest| oldest >= first.moment) =>
                {
                    self.free.insert(first.slot);
                    self.limbo.pop_front();
                }
                _ => break,
            }
        }
        if mutants::on(Mutant::ListBlockReusedAtOnce) {
            self.release_blocks(u64::MAX);
        }
    }

    /// Frees blocks of the list that no durable superblock names since the checkpoint of this number.
    fn release_blocks(&mut self, durable: u64) {
        let free = &mut self.free;
        self.old_blocks.retain(|(slot, freezes)| {
            let waits = *freezes >= durable;
            if !waits {
                free.insert(*slot);
            }
            waits
        });
    }

    /// Writes the list of free slots for the checkpoint number `freeze`. All commits so far are in the log, so
    /// whatever they took is found there; what they gave up is not listed yet.
    pub(crate) fn write_list(
        &mut self,
        store: &Store,
        nonces: &mut Nonces,
        freeze: u64,
    ) -> Result<(FreeList, Listed), WriteError> {
        for block in std::mem::take(&mut self.scratch_blocks) {
            self.old_blocks.push((block, self.durable));
        }
        // All slots for the list are taken first, since that may read from the chain.
        let mut blocks = Vec::new();
        while blocks.len()
            < (self.waiting() as usize + self.free.len() as usize + self.reserved.len()).div_ceil(LISTED) + 2
        {
            blocks.push(self.take(store)?);
        }
        // What RAM need not keep goes to the chain for good, in full blocks.
        let excess = (self.free.len() as usize).saturating_sub(KEPT) / LISTED * LISTED;
        let spilled: Vec<u32> = (0..excess).filter_map(|_| self.free.take()).collect();
        let (mut chain, mut listed) = (self.chain, self.listed);
        for part in spilled.chunks(LISTED) {
            let slot = blocks.pop().ok_or(WriteError::Fault("too few blocks for the list of free slots"))?;
            chain = write_list_block(store, nonces, slot, chain, part)?;
            listed += part.len() as u64;
        }
        let below = Listed { chain, listed };
        // On top, only for the next start: what RAM keeps, and what waits for this checkpoint or snapshots.
        let waiting = self.limbo.iter().map(|waiting| (waiting.slot, waiting.freezes));
        let waiting = waiting.chain(self.fresh_limbo.iter().chain(&self.old_blocks).copied());
        let early = mutants::on(Mutant::ListedBeforeCheckpoint);
        let mut volatile: Vec<u32> =
            waiting.filter(|(_, freezes)| early || *freezes < freeze).map(|(slot, _)| slot).collect();
        let count = volatile.len() + self.free.len() as usize + blocks.len() + self.reserved.len();
        let count = count.div_ceil(LISTED);
        self.scratch_blocks = blocks.split_off(
            blocks
                .len()
                .checked_sub(count)
                .ok_or(WriteError::Fault("too few blocks for the list of free slots"))?,
        );
        blocks.into_iter().for_each(|slot| self.free.insert(slot));
        volatile.extend(self.free.iter());
        if !mutants::on(Mutant::UnnamedSlotsNotListed) {
            volatile.extend(&self.reserved);
        }
        for (slot, part) in self.scratch_blocks.iter().zip(volatile.chunks(LISTED)) {
            chain = write_list_block(store, nonces, *slot, chain, part)?;
            listed += part.len() as u64;
        }
        Ok((FreeList { fresh: self.fresh, chain, listed }, below))
    }

    /// The checkpoint for which the list was written is durable.
    pub(crate) fn durable(&mut self, freeze: u64, listed: Listed) {
        self.durable = freeze;
        self.release_blocks(freeze);
        self.chain = listed.chain;
        self.listed = listed.listed;
    }

    /// All slots that were ever used.
    pub(crate) fn used_so_far(&self) -> std::ops::Range<u32> {
        1..self.fresh
    }

    /// Adds the slots that are free, that wait, or that hold the list.
    pub(crate) fn account(&self, store: &Store, known: &mut HashSet<u32>) -> Result<(), ReadError> {
        known.extend(self.free.iter());
        known.extend(&self.scratch_blocks);
        known.extend(self.limbo.iter().map(|waiting| waiting.slot));
        known.extend(self.fresh_limbo.iter().chain(&self.old_blocks).map(|(slot, _)| slot));
        let mut next = self.chain;
        while let Some(block) = next.some() {
            known.insert(block.slot());
            let mut bytes = [0; PAGE];
            store.read(&block, &mut bytes)?;
            let malformed =
                ReadError::Malformed { offset: store.geometry.offset(block.slot()).unwrap_or_default() };
            let (below, listed) = decode_list(&bytes).ok_or(malformed)?;
            known.extend(listed);
            next = below;
        }
        Ok(())
    }

    /// Begins a checkpoint; its number.
    pub(crate) fn freeze(&mut self) -> u64 {
        self.freezes += 1;
        (self.taken, self.room) = (0, self.available());
        self.reserved.clear();
        self.freezes
    }

    /// Takes a slot for an index node.
    pub(crate) fn take_for_node(&mut self, store: &Store) -> Result<u32, WriteError> {
        let slot = self.take(store)?;
        self.reserved.push(slot);
        Ok(slot)
    }
}

/// The chain below what RAM keeps.
pub(crate) struct Listed {
    chain: Ref,
    listed: u64,
}

fn write_list_block(
    store: &Store,
    nonces: &mut Nonces,
    slot: u32,
    next: Ref,
    slots: &[u32],
) -> Result<Ref, WriteError> {
    let mut block: Page = [0; PAGE];
    block[..REF].copy_from_slice(&next.encode());
    block[REF..REF + 4].copy_from_slice(&(slots.len() as u32).to_le_bytes());
    for (place, slot) in block[REF + 4..].as_chunks_mut::<4>().0.iter_mut().zip(slots) {
        *place = slot.to_le_bytes();
    }
    store.write(nonces, slot, &block, &block)
}

/// The next block of the chain, and the slots that this one names.
pub(crate) fn decode_list(block: &Page) -> Option<(Ref, Vec<u32>)> {
    let mut fields = Fields(block);
    let next = fields.reference()?;
    let count = fields.u32()? as usize;
    let slots = (0..count).map(|_| fields.u32()).collect::<Option<Vec<u32>>>()?;
    (count <= LISTED).then_some((next, slots))
}
