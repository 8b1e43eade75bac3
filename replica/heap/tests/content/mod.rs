//! What a heap shows, as plain data, and a batch that makes it so.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::collections::BTreeMap;

use heap::{Batch, CommitError, Heap, MemMedia, OpenOptions, PAGE, Page, Snapshot, SpaceId};

/// Spaces with their lengths and pages, and metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) spaces: BTreeMap<u64, (u64, BTreeMap<u64, Vec<u8>>)>,
    pub(crate) meta: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Content {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let mut content = Self::default();
        let mut page = [0; PAGE];
        for (space, length) in snapshot.spaces().unwrap() {
            let mut read = |number| {
                snapshot.read_page(space, number, &mut page).unwrap();
                (number, page.to_vec())
            };
            let numbers = snapshot.present_pages(space, 0, usize::MAX).unwrap();
            let pages = numbers.into_iter().map(&mut read).collect();
            content.spaces.insert(space.0, (length, pages));
        }
        content.meta = snapshot.meta_range(b"").unwrap().into_iter().collect();
        content
    }
}

pub(crate) fn page(fill: u8) -> Page {
    [fill; PAGE]
}

pub(crate) fn write(heap: &mut Heap, space: u64, number: u64, fill: u8) {
    let page = page(fill);
    change(heap, |batch| batch.put_page(SpaceId(space), number, &page));
}

/// Commits one change that borrows nothing short-lived.
pub(crate) fn change<'a>(heap: &mut Heap, make: impl for<'b> FnOnce(&'b mut Batch<'a>) -> &'b mut Batch<'a>) {
    try_change(heap, make).unwrap();
}

pub(crate) fn try_change<'a>(
    heap: &mut Heap,
    make: impl for<'b> FnOnce(&'b mut Batch<'a>) -> &'b mut Batch<'a>,
) -> Result<u64, CommitError> {
    let mut batch = Batch::new();
    make(&mut batch);
    heap.commit(&batch)
}

pub(crate) fn create() -> OpenOptions {
    OpenOptions { create: true, ..OpenOptions::default() }
}

pub(crate) fn in_memory(bytes: usize, key: &heap::Key) -> (Heap, MemMedia) {
    let media = MemMedia::new(bytes);
    (Heap::open(Box::new(media.clone()), key, &create()).unwrap().0, media)
}
