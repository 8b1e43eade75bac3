//! Shared by the integration tests: an in-memory model of the heap, random batches, a random source.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::collections::BTreeMap;

use heap::{Batch, Change, Heap, Key, OpenOptions, PAGE, SpaceId};

/// What a heap should hold, kept in the plainest way: each space as one run of bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) spaces: BTreeMap<u64, Vec<u8>>,
    pub(crate) meta: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let firsts = |bytes: &Vec<u8>| bytes.chunks(PAGE).map(|page| page[0]).collect::<Vec<_>>();
        let spaces: Vec<_> = self.spaces.iter().map(|(id, bytes)| (id, firsts(bytes))).collect();
        write!(out, "spaces {spaces:?}, {} metadata values", self.meta.len())
    }
}

impl Model {
    pub(crate) fn of(heap: &Heap) -> Self {
        let bytes = |space: &heap::Space| {
            let pages: Vec<&[u8]> = (0..space.pages()).map(|n| space.page(n).as_slice()).collect();
            pages.concat()
        };
        Self {
            spaces: heap.spaces().map(|(id, space)| (id.0, bytes(space))).collect(),
            meta: heap.meta_range(b"").map(|(key, value)| (key.to_vec(), value.to_vec())).collect(),
        }
    }

    pub(crate) fn apply(&mut self, batch: &Batch) {
        for change in &batch.changes {
            match change {
                Change::Page { space, page, data } => {
                    let bytes = self.spaces.entry(space.0).or_default();
                    let start = *page as usize * PAGE;
                    bytes.resize(bytes.len().max(start + PAGE), 0);
                    bytes[start..start + PAGE].copy_from_slice(data.as_slice());
                }
                Change::Resize { space, pages } => {
                    self.spaces.entry(space.0).or_default().resize(*pages as usize * PAGE, 0);
                }
                Change::Drop { space } => drop(self.spaces.remove(&space.0)),
                Change::Put { key, value } => drop(self.meta.insert(key.clone(), value.clone())),
                Change::Delete { key } => drop(self.meta.remove(key)),
            }
        }
    }

    pub(crate) fn after(&self, batch: &Batch) -> Self {
        let mut next = self.clone();
        next.apply(batch);
        next
    }
}

/// SplitMix64: small, seeded, good enough to choose crash states.
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

    pub(crate) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

pub(crate) fn page(fill: u8) -> Box<[u8; PAGE]> {
    Box::new([fill; PAGE])
}

/// A batch of a few changes on few spaces, so that they meet; up to `extra` page writes on top.
pub(crate) fn batch(random: &mut Random, extra: u64) -> Batch {
    let mut changes = Vec::new();
    for _ in 0..random.below(4) {
        let space = SpaceId(random.below(3));
        let key = vec![b'k', random.below(4) as u8];
        changes.push(match random.below(12) {
            0 => Change::Drop { space },
            1 | 2 => Change::Resize { space, pages: random.below(8) },
            3 | 4 => Change::Put { key, value: vec![random.next() as u8; random.below(300) as usize] },
            5 => Change::Delete { key },
            // Zero pages too.
            _ => Change::Page { space, page: random.below(5), data: page(random.below(256) as u8 & 0x7f) },
        });
    }
    for _ in 0..extra {
        let (space, fill) = (SpaceId(random.below(3)), random.next() as u8);
        changes.push(Change::Page { space, page: random.below(5), data: page(fill) });
    }
    Batch { changes }
}

pub(crate) fn key() -> Key {
    Key::new([0x5a; 32])
}

pub(crate) fn create() -> OpenOptions {
    OpenOptions { create: true, ..OpenOptions::default() }
}

/// Head and two arenas of 40 KiB: nine pages fill one, so histories are full of switches and refusals.
pub(crate) const SMALL: usize = 16384 + 2 * 40960;
