//! What a batch needs, and whether the medium has it.

use super::batch::{Batch, InvalidBatch, MAX_KEY, MAX_PAGES, MAX_SPACE, MAX_VALUE, Op, PAGE, SpaceId};
use super::catalog::{self, space_key};
use super::error::{CommitError, WriteError};
use super::heap::Heap;
use super::mutants::{self, Mutant};
use super::node::Value;
use super::radix;
use super::record::INLINE;
use super::ring;

/// Slots that [`Batch::leave_room`] leaves of so many: the 32nd part, between 1 and 16 MiB.
fn room_left(total: u64) -> u64 {
    (total / 32).clamp(256, 4096).min(total / 4)
}

/// What a batch takes at most.
#[derive(Default)]
struct Estimate {
    /// Slots for pages.
    pages: u64,
    /// Slots for the index.
    index: u64,
    /// Bytes of payload in the log.
    payload: usize,
    /// Nothing in it is new content, so it may use what is reserved.
    frees: bool,
    /// Slots that must stay free after it.
    leave: u64,
}

impl Heap {
    pub(crate) fn length(&mut self, space: u64) -> Result<Option<u64>, WriteError> {
        if let Some(length) = self.lengths.get(&space) {
            return Ok(*length);
        }
        let value = catalog::get(&self.writer.store, &self.live.catalog, &space_key(space))?;
        let length = if let Some(Value::Space { pages, .. }) = value { Some(pages) } else { None };
        self.lengths.insert(space, length);
        Ok(length)
    }

    fn estimate(&mut self, batch: &Batch<'_>) -> Result<Estimate, WriteError> {
        let leave = if batch.leave_room { room_left(self.writer.slots.total()) } else { 0 };
        let mut sum = Estimate { frees: true, leave, ..Estimate::default() };
        // A path through the catalog, and one for the tree that is to be freed in consequence.
        let catalog = 2 * u64::from(self.live.catalog.height) + 2;
        // Of a node that gets an owner of its own, all that it names change their count.
        let clones = batch.ops.iter().any(|op| matches!(op, Op::Clone { .. }));
        let shared = self.writer.shares_estimate(clones);
        let mut last = None;
        for op in &batch.ops {
            match op {
                Op::Page { space, page, .. } => {
                    sum.frees = false;
                    sum.pages += 1;
                    sum.index += if shared > 0 { 2 } else { 0 };
                    sum.payload += 51;
                    let leaf = (*space, page / 128);
                    if last != Some(leaf) {
                        let end = self.length(*space)?.unwrap_or(0).max(*page);
                        sum.index += 2 * u64::from(radix::height_for(end)) * (1 + shared);
                        if last.is_none_or(|(other, _)| other != *space) {
                            sum.index += catalog;
                        }
                        last = Some(leaf);
                    }
                }
                Op::Put { key, value } => {
                    sum.payload += key.len() + value.len().min(INLINE) + 16;
                    sum.frees = false;
                    sum.index += catalog;
                    if value.len() > INLINE {
                        let pages = value.len().div_ceil(PAGE) as u64;
                        sum.pages += pages;
                        sum.index += pages / 64 + 2;
                        sum.payload += pages as usize * 32;
                    }
                }
                Op::Clone { .. } => {
                    sum.frees = false;
                    sum.index += 2 * catalog + 2 * (shared + 3);
                    sum.payload += 32;
                }
                Op::Resize { space, pages } => {
                    sum.frees &= self.length(*space)?.is_some_and(|length| *pages <= length);
                    sum.index += 2 * catalog + 24 * (1 + shared);
                    sum.payload += 32;
                }
                Op::Delete { .. } => {
                    sum.index += catalog;
                    sum.payload += 32;
                }
                Op::Remove { key } => {
                    sum.index += catalog;
                    sum.payload += key.len() + 16;
                }
            }
        }
        // Nodes that split for what is new in the catalog.
        sum.index += 8 + sum.payload as u64 / 1024;
        Ok(sum)
    }

    /// Slots that must remain after a batch.
    pub(crate) fn reserve(&self, frees: bool) -> u64 {
        let lists = self.writer.slots.waiting() / 512 + 4;
        lists + if frees { 0 } else { 32 }
    }

    /// Refuses a batch that breaks a limit or does not fit, and makes room if that helps.
    pub(crate) fn admit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError> {
        check(batch)?;
        let estimate = self.estimate(batch).map_err(|error| self.poison(error))?;
        self.make_room(&estimate)?;
        self.owed += estimate.index;
        Ok(())
    }

    fn make_room(&mut self, estimate: &Estimate) -> Result<(), CommitError> {
        let geometry = self.writer.store.geometry;
        let capacity = geometry.ring;
        let needed = ring::needed(&geometry, estimate.payload);
        if needed > capacity {
            return Err(CommitError::TooLarge { needed, capacity });
        }
        let needed = |heap: &Self| {
            let Estimate { pages, index, frees, leave, .. } = estimate;
            pages + index + heap.owed + heap.reserve(*frees) + leave
        };
        let fits = |heap: &Self| {
            let counted = !mutants::on(Mutant::RoomNotCounted);
            heap.log.fits(&geometry, estimate.payload)
                && (heap.writer.slots.available() >= needed(heap) || !counted)
        };
        if fits(self) {
            return Ok(());
        }
        self.flush()?;
        // Each round frees what was given up before it; trees deleted earlier may still hold much.
        loop {
            let before = self.writer.slots.available();
            self.collect().map_err(|error| self.poison(error))?;
            if fits(self) {
                return Ok(());
            }
            if self.writer.slots.available() <= before {
                break;
            }
        }
        if !self.log.fits(&geometry, estimate.payload) {
            return Err(CommitError::TooLarge {
                needed: ring::needed(&geometry, estimate.payload),
                capacity,
            });
        }
        Err(CommitError::Full { needed: needed(self), free: self.writer.slots.available() })
    }
}

fn check(batch: &Batch<'_>) -> Result<(), InvalidBatch> {
    let space = |space: u64| match space <= MAX_SPACE {
        true => Ok(()),
        false => Err(InvalidBatch::SpaceNumber { space: SpaceId(space) }),
    };
    let key = |key: &[u8]| match key.len() <= MAX_KEY {
        true => Ok(()),
        false => Err(InvalidBatch::KeyTooLong { length: key.len() }),
    };
    let length = |space: u64, pages: u64| match pages <= MAX_PAGES {
        true => Ok(()),
        false => Err(InvalidBatch::SpaceTooLong { space: SpaceId(space), pages }),
    };
    batch.ops.iter().try_for_each(|op| match op {
        Op::Page { space: of, page, .. } => space(*of).and_then(|()| length(*of, page.saturating_add(1))),
        Op::Resize { space: of, pages } => space(*of).and_then(|()| length(*of, *pages)),
        Op::Delete { space: of } => space(*of),
        Op::Clone { from, to } => space(*from).and_then(|()| space(*to)),
        Op::Put { key: of, value } if value.len() <= MAX_VALUE => key(of),
        Op::Put { value, .. } => Err(InvalidBatch::ValueTooLong { length: value.len() }),
        Op::Remove { key: of } => key(of),
    })
}
