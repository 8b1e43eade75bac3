//! Stable memory: the committed pages in the heap, and on top those that the current message wrote.

use std::collections::BTreeMap;

use crate::store::{Batch, PAGE, Page, ReadError, Snapshot, SpaceId};

/// Committed pages that are kept while a message runs, so that reading them piece by piece opens each once.
const KEPT: usize = 256;

/// Pages of one space that differ from the heap.
#[derive(Default)]
pub(crate) struct Overlay {
    /// The space; a message uses the stable memory of one canister only.
    space: Option<SpaceId>,
    written: BTreeMap<u64, Box<Page>>,
    /// Committed pages that were read.
    read: BTreeMap<u64, Box<Page>>,
    /// The committed pages are to be dropped: the memory started from nothing.
    erased: bool,
}

impl Overlay {
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Empties the memory.
    pub(crate) fn erase(&mut self, space: SpaceId) {
        *self = Self { space: Some(space), erased: true, ..Self::default() };
    }

    /// How much the message has changed, in bytes.
    pub(crate) fn changed_bytes(&self) -> u64 {
        (self.written.len() * PAGE) as u64
    }

    fn committed(&self, snapshot: &Snapshot, space: SpaceId, page: u64) -> Result<Box<Page>, ReadError> {
        let mut data = Box::new([0; PAGE]);
        if !self.erased {
            snapshot.read_page(space, page, &mut data)?;
        }
        Ok(data)
    }

    /// Reads from `address`, which the caller has checked to be inside.
    pub(crate) fn read(
        &mut self,
        snapshot: &Snapshot,
        space: SpaceId,
        address: u64,
        mut into: &mut [u8],
    ) -> Result<(), ReadError> {
        let mut address = address;
        while !into.is_empty() {
            let (page, offset, length) = split(address, into.len());
            let (head, tail) = into.split_at_mut(length);
            if !self.written.contains_key(&page) && !self.read.contains_key(&page) {
                if self.read.len() >= KEPT {
                    self.read.clear();
                }
                let data = self.committed(snapshot, space, page)?;
                self.read.insert(page, data);
            }
            let bytes = self.written.get(&page).or_else(|| self.read.get(&page));
            if let Some(bytes) = bytes {
                head.copy_from_slice(&bytes[offset..offset + length]);
            }
            into = tail;
            address += length as u64;
        }
        Ok(())
    }

    /// Writes from `address`, which the caller has checked to be inside.
    pub(crate) fn write(
        &mut self,
        snapshot: &Snapshot,
        space: SpaceId,
        address: u64,
        mut from: &[u8],
    ) -> Result<(), ReadError> {
        self.space = Some(space);
        let mut address = address;
        while !from.is_empty() {
            let (page, offset, length) = split(address, from.len());
            let (head, tail) = from.split_at(length);
            if !self.written.contains_key(&page) {
                let data = match self.read.remove(&page) {
                    Some(data) => data,
                    None if length == PAGE => Box::new([0; PAGE]),
                    None => self.committed(snapshot, space, page)?,
                };
                self.written.insert(page, data);
            }
            if let Some(bytes) = self.written.get_mut(&page) {
                bytes[offset..offset + length].copy_from_slice(head);
            }
            from = tail;
            address += length as u64;
        }
        Ok(())
    }

    /// Adds what was written to a batch. Pages never written are not in the heap; they read as zero.
    pub(crate) fn commit<'a>(&'a self, batch: &mut Batch<'a>) {
        let Some(space) = self.space else { return };
        if self.erased {
            batch.delete_space(space);
        }
        for (page, data) in &self.written {
            batch.put_page(space, *page, data);
        }
    }
}

/// Page, offset in it, and how much of `length` lies in this page.
fn split(address: u64, length: usize) -> (u64, usize, usize) {
    let offset = (address % PAGE as u64) as usize;
    (address / PAGE as u64, offset, length.min(PAGE - offset))
}
