//! What the heap should hold, random changes, and what is compared after a recovery.

use heap::{Batch, Heap, PAGE, Page, SpaceId};
use std::collections::BTreeMap;

/// SplitMix64: small, seeded, good enough to choose crash states.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Page(u64, u64, u64),
    Resize(u64, u64),
    Delete(u64),
    Clone(u64, u64),
    Put(u8, u8, usize),
    Remove(u8),
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

pub(crate) fn ops(random: &mut Random) -> Vec<Op> {
    if random.below(16) == 0 {
        // A record of several frames, which soon fills the ring.
        let count = 1 + random.below(40) as u8;
        return (0..count).map(|key| Op::Put(key, random.below(256) as u8, 400)).collect();
    }
    (0..random.below(5))
        .map(|_| {
            let space = random.below(3);
            match random.below(20) {
                0 => Op::Delete(space),
                1 => Op::Resize(space, random.below(300)),
                2 => Op::Clone(space, random.below(3)),
                3 => Op::Put(random.below(3) as u8, random.below(256) as u8, random.below(100) as usize),
                4 => Op::Put(random.below(3) as u8, random.below(256) as u8, random.below(9000) as usize),
                5 => Op::Remove(random.below(3) as u8),
                6 => Op::Page(space, random.below(300), 0),
                7 => Op::Page(space, random.below(300), random.next() | 1),
                _ => Op::Page(space, random.below(4), random.next() | 1),
            }
        })
        .collect()
}

pub(crate) fn batch<T>(ops: &[Op], run: impl FnOnce(&Batch<'_>) -> T) -> T {
    let page = |op: &Op| if let Op::Page(_, _, fill) = op { content(*fill) } else { [0; PAGE] };
    let pages: Vec<Page> = ops.iter().map(page).collect();
    let mut batch = Batch::new();
    for (op, data) in ops.iter().zip(&pages) {
        match op {
            Op::Page(space, page, _) => batch.put_page(SpaceId(*space), *page, data),
            Op::Resize(space, pages) => batch.resize(SpaceId(*space), *pages),
            Op::Delete(space) => batch.delete_space(SpaceId(*space)),
            Op::Clone(from, to) => batch.clone_space(SpaceId(*from), SpaceId(*to)),
            Op::Put(key, byte, length) => batch.put_meta(vec![*key], vec![*byte; *length]),
            Op::Remove(key) => batch.delete_meta(vec![*key]),
        };
    }
    run(&batch)
}

/// What a heap should hold: of each space its length and what its pages are made from; of each value its byte
/// and length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Model {
    spaces: BTreeMap<u64, (u64, BTreeMap<u64, u64>)>,
    meta: BTreeMap<u8, (u8, usize)>,
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
                Op::Put(key, byte, length) => drop(self.meta.insert(*key, (*byte, *length))),
                Op::Remove(key) => drop(self.meta.remove(key)),
            }
        }
    }
}

/// What was found after a recovery: all lengths, which pages there are and all metadata; the content of all
/// pages or, mostly, of some.
#[derive(Debug)]
pub(crate) struct Check {
    spaces: BTreeMap<u64, (u64, BTreeMap<u64, Option<u64>>)>,
    meta: BTreeMap<u8, (u8, usize)>,
    /// What could not be read, or is no page that was ever written.
    pub(crate) fault: Option<String>,
    /// It was not refused but is wrong.
    pub(crate) torn: bool,
}

impl Check {
    pub(crate) fn of(heap: &Heap, random: &mut Random, whole: bool) -> Self {
        let mut check = Self { spaces: BTreeMap::new(), meta: BTreeMap::new(), fault: None, torn: false };
        if let Err(error) = check.read(heap, random, whole) {
            check.fault = Some(format!("{error:?}"));
        }
        check
    }

    fn read(&mut self, heap: &Heap, random: &mut Random, whole: bool) -> Result<(), heap::ReadError> {
        if whole {
            let audit = heap.audit()?;
            if !audit.lost.is_empty() || !audit.damaged.is_empty() {
                self.fault = Some(format!("slots lost: {:?}, damaged: {:?}", audit.lost, audit.damaged));
            }
        }
        let snapshot = heap.snapshot();
        for (space, length) in snapshot.spaces()? {
            let mut pages = BTreeMap::new();
            for number in snapshot.present_pages(space, 0, usize::MAX)? {
                let fill = if whole || random.below(3) == 0 {
                    let mut page = [0; PAGE];
                    snapshot.read_page(space, number, &mut page)?;
                    let fill = u64::from_le_bytes(page[..8].try_into().unwrap_or_default());
                    if page != content(fill) {
                        self.fault = Some(format!("page {number} of space {} is torn", space.0));
                        self.torn = true;
                    }
                    Some(fill)
                } else {
                    None
                };
                pages.insert(number, fill);
            }
            self.spaces.insert(space.0, (length, pages));
        }
        for (key, value) in snapshot.meta_range(b"")? {
            let first = value.first().copied().unwrap_or_default();
            if value.iter().any(|byte| *byte != first) {
                self.fault = Some("a value is torn".into());
                self.torn = true;
            }
            self.meta.insert(key[0], (first, value.len()));
        }
        Ok(())
    }

    pub(crate) fn agrees(&self, model: &Model) -> Result<(), String> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let meta = model
            .meta
            .iter()
            .map(|(key, (byte, length))| (*key, (if *length == 0 { 0 } else { *byte }, *length)));
        let same_meta = meta.eq(self.meta.iter().map(|(key, value)| (*key, *value)));
        let same_lengths = model
            .spaces
            .iter()
            .map(|(space, (length, _))| (*space, *length))
            .eq(self.spaces.iter().map(|(space, (length, _))| (*space, *length)));
        let same_pages = std::iter::zip(model.spaces.values(), self.spaces.values()).all(|(ours, found)| {
            ours.1.keys().eq(found.1.keys())
                && std::iter::zip(ours.1.values(), found.1.values())
                    .all(|(ours, found)| found.is_none_or(|found| found == *ours))
        });
        if same_meta && same_lengths && same_pages {
            return Ok(());
        }
        Err(format!("metadata {same_meta}, lengths {same_lengths}, pages {same_pages}"))
    }
}
