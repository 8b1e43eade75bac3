//! Writing a batch and making it durable.

use super::batch::{Batch, Op, PAGE, Page};
use super::block::{Ref, WATERMARKS};
use super::error::WriteError;
use super::heap::Heap;
use super::mutants::{self, Mutant};
use super::record::{self, Change, INLINE, Meta};
use super::superblock::encode_watermark;
use super::writer::Writer;
use crate::media::MemMedia;

/// Slots that one commit frees at most.
const RELEASED: usize = 4096;

impl Heap {
    /// Writes pages and record, and applies them.
    pub(crate) fn write(&mut self, batch: &Batch<'_>) -> Result<u64, WriteError> {
        let mut changes = std::mem::take(&mut self.changes);
        changes.clear();
        let recent = self.live.recent.clone();
        let recent = recent.read();
        for (index, op) in batch.ops.iter().enumerate() {
            changes.push(match op {
                Op::Page { space, page, data } => {
                    recent.pages.fetch(&(*space, *page), index);
                    let next = match batch.ops.get(index + 1) {
                        Some(Op::Page { data, .. }) => data,
                        _ => data,
                    };
                    let reference = if is_zero(data) { Ref::NONE } else { self.write_page(data, next)? };
                    Change::Page { space: *space, page: *page, reference }
                }
                Op::Resize { space, pages } => Change::Resize { space: *space, pages: *pages },
                Op::Delete { space } => Change::Delete { space: *space },
                Op::Clone { from, to } => Change::Clone { from: *from, to: *to },
                Op::Put { key, value } if value.len() <= INLINE => {
                    Change::Put { key: key.to_vec(), value: Meta::Inline(value.to_vec()) }
                }
                Op::Put { key, value } => {
                    let mut pages = Vec::with_capacity(value.len().div_ceil(PAGE));
                    for part in value.chunks(PAGE) {
                        let mut page = [0; PAGE];
                        page[..part.len()].copy_from_slice(part);
                        pages.push(self.write_page(&page, &page)?);
                    }
                    let value = Meta::Blob { length: value.len() as u64, pages };
                    Change::Put { key: key.to_vec(), value }
                }
                Op::Remove { key } => Change::Remove { key: key.to_vec() },
            });
        }
        drop(recent);
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        record::encode(&changes, &mut payload);
        let epoch = self.live.epoch + 1;
        let Writer { store, nonces, .. } = &mut self.writer;
        self.log.write(store, nonces, (epoch, self.published.epoch), &payload)?;
        self.payload = payload;
        self.apply(epoch, &changes)?;
        self.changes = changes;
        Ok(epoch)
    }

    #[inline]
    fn write_page(&mut self, data: &Page, next: &Page) -> Result<Ref, WriteError> {
        let Writer { store, slots, nonces, .. } = &mut self.writer;
        let slot = slots.take(store)?;
        if mutants::on(Mutant::PagesAfterFence) {
            let held = MemMedia::new(PAGE);
            let (nonce, tag) = store.sealer.write_block(nonces, (&held, 0), data, next)?;
            self.late.push((store.offset(slot), held));
            return Ok(Ref::new(slot, nonce, tag));
        }
        store.write(nonces, slot, data, next)
    }

    /// Fence; then what was submitted is what snapshots show.
    pub(crate) fn make_durable(&mut self) -> Result<(), WriteError> {
        if mutants::on(Mutant::WatermarkBeforeFence) {
            self.write_watermark(self.live.epoch)?;
        }
        if !mutants::on(Mutant::CommitFenceDropped) {
            self.writer.store.media.fence()?;
        }
        for (offset, page) in std::mem::take(&mut self.late) {
            page.with_bytes(|bytes| self.writer.store.media.write(offset, bytes))?;
        }
        self.publish();
        if !mutants::on(Mutant::WatermarkBeforeFence) {
            self.write_watermark(self.live.epoch)?;
        }
        Ok(())
    }

    fn write_watermark(&mut self, epoch: u64) -> Result<(), WriteError> {
        let Writer { store, nonces, .. } = &mut self.writer;
        let cell = encode_watermark(&store.sealer, nonces, epoch)?;
        // It rides on the next fence; between two writes to one cell there are two.
        store.media.write(WATERMARKS[self.cell], &cell)?;
        self.cell = 1 - self.cell;
        Ok(())
    }

    /// Shows the live view to snapshots taken from now on. All of it must be durable.
    pub(crate) fn publish(&mut self) {
        self.published = self.live.clone();
        if let Some(fold) = &self.fold {
            // What this gave up so far, the index as it was still needs.
            self.published.catalog = fold.before.clone();
        }
        if self.fold.is_none() || mutants::on(Mutant::FreedWhileFolding) {
            self.writer.slots.publish();
        }
        self.writer.slots.release(self.writer.store.pins.oldest(), RELEASED);
    }
}

fn is_zero(page: &Page) -> bool {
    // Most pages differ from zero early on.
    page.chunks_exact(64).all(|line| line.iter().fold(0, |sum, byte| sum | byte) == 0)
}
