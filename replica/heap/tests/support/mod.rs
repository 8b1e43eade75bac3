//! Shared by the tests of the paged heap: an in-memory model, random batches, a random source.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::collections::BTreeMap;

use heap::{Batch, Key, OpenOptions, PAGE, Page, Snapshot, SpaceId};

/// SplitMix64: small, seeded, good enough to choose cases.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One change, owning what it brings.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Content is `fill` in the first and last word and at the place of the page number; 0 is a zero page.
    Page(u64, u64, u64),
    Resize(u64, u64),
    Delete(u64),
    Clone(u64, u64),
    Put(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
}

pub(crate) fn content(fill: u64) -> Page {
    let mut page = [0; PAGE];
    if fill != 0 {
        for (index, word) in page.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(fill ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
        }
    }
    page
}

/// What a heap should hold. A page is the number that its content is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) spaces: BTreeMap<u64, (u64, BTreeMap<u64, u64>)>,
    pub(crate) meta: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Model {
    pub(crate) fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Page(space, page, fill) => {
                    let (length, pages) = self.spaces.entry(*space).or_default();
                    *length = (*length).max(page + 1);
                    if *fill == 0 {
                        pages.remove(page);
                    } else {
                        pages.insert(*page, *fill);
                    }
                }
                Op::Resize(space, length) => {
                    let (old, pages) = self.spaces.entry(*space).or_default();
                    *old = *length;
                    pages.retain(|page, _| page < length);
                }
                Op::Delete(space) => drop(self.spaces.remove(space)),
                Op::Clone(from, to) => {
                    if from != to {
                        match self.spaces.get(from).cloned() {
                            Some(space) => drop(self.spaces.insert(*to, space)),
                            None => drop(self.spaces.remove(to)),
                        }
                    }
                }
                Op::Put(key, value) => drop(self.meta.insert(key.clone(), value.clone())),
                Op::Remove(key) => drop(self.meta.remove(key)),
            }
        }
    }

    /// What a snapshot shows, all of it read.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let mut model = Self::default();
        let mut page = [0; PAGE];
        for (space, length) in snapshot.spaces().unwrap() {
            assert_eq!(snapshot.space_pages(space).unwrap(), Some(length));
            let mut pages = BTreeMap::new();
            for number in snapshot.present_pages(space, 0, usize::MAX).unwrap() {
                snapshot.read_page(space, number, &mut page).unwrap();
                let fill = u64::from_le_bytes(page[..8].try_into().unwrap());
                assert!(page == content(fill) && fill != 0, "page {number} of {space:?}");
                pages.insert(number, fill);
            }
            model.spaces.insert(space.0, (length, pages));
        }
        model.meta = snapshot.meta_range(b"").unwrap().into_iter().collect();
        model
    }
}

/// Calls `run` with the batch that the operations make.
pub(crate) fn with_batch<T>(ops: &[Op], run: impl FnOnce(&Batch<'_>) -> T) -> T {
    let pages: Vec<Page> = ops
        .iter()
        .map(|op| match op {
            Op::Page(_, _, fill) => content(*fill),
            _ => [0; PAGE],
        })
        .collect();
    let mut batch = Batch::new();
    for (op, data) in ops.iter().zip(&pages) {
        match op {
            Op::Page(space, page, _) => batch.put_page(SpaceId(*space), *page, data),
            Op::Resize(space, pages) => batch.resize(SpaceId(*space), *pages),
            Op::Delete(space) => batch.delete_space(SpaceId(*space)),
            Op::Clone(from, to) => batch.clone_space(SpaceId(*from), SpaceId(*to)),
            Op::Put(key, value) => batch.put_meta(key, value),
            Op::Remove(key) => batch.delete_meta(key),
        };
    }
    run(&batch)
}

/// Random changes on few spaces, so that they meet.
pub(crate) fn ops(random: &mut Random, most: u64, reach: u64) -> Vec<Op> {
    (0..random.below(most + 1))
        .map(|_| {
            let space = random.below(4);
            let key = format!("k{}", random.below(6)).into_bytes();
            match random.below(24) {
                0 => Op::Delete(space),
                1 => Op::Resize(space, random.below(reach)),
                2 => Op::Clone(space, random.below(4)),
                3 | 4 => Op::Put(key, vec![random.next() as u8; random.below(200) as usize]),
                5 => Op::Put(key, vec![random.next() as u8; random.below(20_000) as usize]),
                6 => Op::Remove(key),
                7 => Op::Page(space, random.below(reach), 0),
                8..12 => Op::Page(space, random.below(reach), random.next() | 1),
                // Most writes are near each other.
                _ => Op::Page(space, random.below(8), random.next() | 1),
            }
        })
        .collect()
}

pub(crate) fn key() -> Key {
    Key::new([0x5a; 32])
}

pub(crate) fn create() -> OpenOptions {
    OpenOptions { create: true, ..OpenOptions::default() }
}
