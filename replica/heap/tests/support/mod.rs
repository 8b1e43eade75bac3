//! Random histories and the in-memory model that a heap must agree with. Shared by the heap's tests and the
//! crash simulator, which includes this file.
#![allow(dead_code, reason = "each program uses a part of this")]

use std::collections::BTreeMap;

use heap::{Batch, Key, OpenOptions, PAGE, Page, ReadError, Snapshot, SpaceId};

/// SplitMix64: small, seeded, good enough to choose cases.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One change, owning what it brings.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Space, page, and what the content is made from; 0 is a page of zeros.
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
        for (index, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = (fill ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes();
        }
    }
    page
}

/// What a heap holds. A page is the number that its content is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) spaces: BTreeMap<u64, (u64, BTreeMap<u64, u64>)>,
    pub(crate) meta: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Why no model can be made of what a snapshot shows.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The heap refused to show it.
    Refused(ReadError),
    /// It is shown and was never written like that.
    Torn(String),
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        Self::Refused(error)
    }
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
                Op::Clone(from, to) if from == to => {}
                Op::Clone(from, to) => match self.spaces.get(from).cloned() {
                    Some(space) => drop(self.spaces.insert(*to, space)),
                    None => drop(self.spaces.remove(to)),
                },
                Op::Put(key, value) => drop(self.meta.insert(key.clone(), value.clone())),
                Op::Remove(key) => drop(self.meta.remove(key)),
            }
        }
    }

    /// What a snapshot shows, all of it read.
    pub(crate) fn of(snapshot: &Snapshot) -> Result<Self, Fault> {
        let mut model = Self::default();
        let mut page = [0; PAGE];
        for (space, length) in snapshot.spaces()? {
            if snapshot.space_pages(space)? != Some(length) {
                return Err(Fault::Torn(format!("space {} has two lengths", space.0)));
            }
            let mut pages = BTreeMap::new();
            for number in snapshot.present_pages(space, 0, usize::MAX)? {
                snapshot.read_page(space, number, &mut page)?;
                let fill = page.first_chunk().copied().map_or(0, u64::from_le_bytes);
                if fill == 0 || page != content(fill) {
                    return Err(Fault::Torn(format!("page {number} of space {}", space.0)));
                }
                pages.insert(number, fill);
            }
            model.spaces.insert(space.0, (length, pages));
        }
        model.meta = snapshot.meta_range(b"")?.into_iter().collect();
        Ok(model)
    }
}

/// Calls `run` with the batch that the operations make.
pub(crate) fn with_batch<T>(ops: &[Op], run: impl FnOnce(&Batch<'_>) -> T) -> T {
    let page = |op: &Op| if let Op::Page(_, _, fill) = op { content(*fill) } else { [0; PAGE] };
    let pages: Vec<Page> = ops.iter().map(page).collect();
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

/// Bounds of random changes. What they name is few, so that they meet.
pub(crate) struct Bounds {
    pub(crate) spaces: u64,
    pub(crate) keys: u64,
    /// Pages that most writes are to.
    pub(crate) near: u64,
    /// Pages that any are to.
    pub(crate) reach: u64,
    /// Bytes of a long value.
    pub(crate) value: u64,
    /// One in so many batches is a record of several frames, which soon fills the ring of a small medium.
    pub(crate) long: u64,
}

/// Up to `most` random changes.
pub(crate) fn ops(random: &mut Random, most: u64, bounds: &Bounds) -> Vec<Op> {
    if random.below(bounds.long) == 0 {
        let put = |key, byte| Op::Put(vec![key], vec![byte; 500]);
        return (0..1 + random.below(40) as u8).map(|key| put(key, random.next() as u8)).collect();
    }
    (0..random.below(most + 1))
        .map(|_| {
            let space = random.below(bounds.spaces);
            let key = vec![random.below(bounds.keys) as u8];
            match random.below(24) {
                0 => Op::Delete(space),
                1 => Op::Resize(space, random.below(bounds.reach)),
                2 => Op::Clone(space, random.below(bounds.spaces)),
                3 | 4 => Op::Put(key, vec![random.next() as u8; random.below(200) as usize]),
                5 => Op::Put(key, vec![random.next() as u8; random.below(bounds.value) as usize]),
                6 => Op::Remove(key),
                7 => Op::Page(space, random.below(bounds.reach), 0),
                8..12 => Op::Page(space, random.below(bounds.reach), random.next() | 1),
                _ => Op::Page(space, random.below(bounds.near), random.next() | 1),
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
