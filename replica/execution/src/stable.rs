//! Stable memory: the committed pages in the heap, and on top those that the current message wrote.

use std::collections::BTreeMap;

use heap::{Batch, Change, Heap, PAGE, SpaceId};

/// Pages of one space that differ from the heap.
#[derive(Default)]
pub(crate) struct Overlay {
    /// The space; a message writes the stable memory of one canister only.
    space: Option<SpaceId>,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// The committed pages are to be dropped: the memory started from nothing.
    erased: bool,
}

impl Overlay {
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Empties the memory.
    pub(crate) fn erase(&mut self, space: SpaceId) {
        *self = Self { space: Some(space), pages: BTreeMap::new(), erased: true };
    }

    /// How much the message has changed, in bytes.
    pub(crate) fn changed_bytes(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    fn committed<'a>(&self, heap: &'a Heap, space: SpaceId, page: u64) -> Option<&'a [u8; PAGE]> {
        if self.erased { None } else { heap.space(space).map(|space| space.page(page)) }
    }

    /// Reads from `address`, which the caller has checked to be inside.
    pub(crate) fn read(&self, heap: &Heap, space: SpaceId, address: u64, mut into: &mut [u8]) {
        let mut address = address;
        while !into.is_empty() {
            let (page, offset, length) = split(address, into.len());
            let (head, tail) = into.split_at_mut(length);
            match self.pages.get(&page).map(|page| &**page).or_else(|| self.committed(heap, space, page)) {
                Some(bytes) => head.copy_from_slice(&bytes[offset..offset + length]),
                None => head.fill(0),
            }
            into = tail;
            address += length as u64;
        }
    }

    /// Writes from `address`, which the caller has checked to be inside.
    pub(crate) fn write(&mut self, heap: &Heap, space: SpaceId, address: u64, mut from: &[u8]) {
        self.space = Some(space);
        let mut address = address;
        while !from.is_empty() {
            let (page, offset, length) = split(address, from.len());
            let (head, tail) = from.split_at(length);
            let committed = self.committed(heap, space, page);
            let bytes =
                self.pages.entry(page).or_insert_with(|| Box::new(committed.copied().unwrap_or([0; PAGE])));
            bytes[offset..offset + length].copy_from_slice(head);
            from = tail;
            address += length as u64;
        }
    }

    /// Adds what was written to a batch. Pages never written are not in the heap; they read as zero.
    pub(crate) fn commit(&self, batch: &mut Batch) {
        let Some(space) = self.space else { return };
        if self.erased {
            batch.changes.push(Change::Drop { space });
        }
        for (page, data) in &self.pages {
            batch.changes.push(Change::Page { space, page: *page, data: data.clone() });
        }
    }
}

/// Page, offset in it, and how much of `length` lies in this page.
fn split(address: u64, length: usize) -> (u64, usize, usize) {
    let offset = (address % PAGE as u64) as usize;
    (address / PAGE as u64, offset, length.min(PAGE - offset))
}
