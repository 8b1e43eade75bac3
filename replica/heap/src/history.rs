//! Which pages the latest commits wrote, for readers that refresh a copy.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Page writes remembered; 1.5 MiB.
const LIMIT: usize = 1 << 16;

/// The latest page writes, oldest first.
pub(crate) struct History {
    /// Complete for the epochs after this one.
    since: u64,
    writes: VecDeque<(u64, u64, u64)>,
    /// When a space was last cut, deleted or copied over.
    breaks: HashMap<u64, u64>,
}

impl History {
    pub(crate) fn new(since: u64) -> Self {
        Self { since, writes: VecDeque::new(), breaks: HashMap::new() }
    }

    pub(crate) fn wrote(&mut self, epoch: u64, space: u64, page: u64) {
        if self.writes.len() == LIMIT
            && let Some((lost, ..)) = self.writes.pop_front()
            && lost > self.since
        {
            self.since = lost;
            self.breaks.retain(|_, at| *at > lost);
        }
        self.writes.push_back((epoch, space, page));
    }

    pub(crate) fn broke(&mut self, epoch: u64, space: u64) {
        self.breaks.insert(space, epoch);
    }

    /// Pages of a space written after `from` and not after `to`.
    pub(crate) fn changed(&self, from: u64, to: u64, space: u64) -> Option<Vec<u64>> {
        if from < self.since || self.breaks.get(&space).is_some_and(|at| *at > from) {
            return None;
        }
        let after = self.writes.iter().rev().take_while(|(epoch, ..)| *epoch > from);
        let ours = after.filter(|(epoch, other, _)| *epoch <= to && *other == space);
        let mut pages: Vec<u64> = ours.map(|(_, _, page)| *page).collect();
        pages.sort_unstable();
        pages.dedup();
        Some(pages)
    }

    /// All pages written after `from` and not after `to`; `None` if that is not known any more.
    pub(crate) fn changes(&self, from: u64, to: u64) -> Option<Changes> {
        if from < self.since {
            return None;
        }
        let mut pages: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (epoch, space, page) in self.writes.iter().rev().take_while(|(epoch, ..)| *epoch > from) {
            if *epoch <= to {
                pages.entry(*space).or_default().push(*page);
            }
        }
        for pages in pages.values_mut() {
            pages.sort_unstable();
            pages.dedup();
        }
        let broken = self.breaks.iter().filter(|(_, at)| **at > from).map(|(space, _)| *space).collect();
        Some(Changes { pages, broken })
    }
}

/// What was written between two epochs.
pub(crate) struct Changes {
    pages: BTreeMap<u64, Vec<u64>>,
    broken: HashSet<u64>,
}

impl Changes {
    /// Pages of a space; `None` if it was cut, deleted or copied over.
    pub(crate) fn of(&self, space: u64) -> Option<&[u64]> {
        (!self.broken.contains(&space)).then(|| self.pages.get(&space).map_or(&[][..], Vec::as_slice))
    }
}
