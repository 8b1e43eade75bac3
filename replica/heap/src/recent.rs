//! What was committed since the index last took it in: versions by epoch, shared by the writer and the
//! snapshots, so that a commit changes no index node and a snapshot copies nothing.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::PoisonError;

use super::block::Ref;
use super::record::Meta;
use super::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::media::stream;

/// Values of one thing, each from an epoch on, ascending.
#[derive(Debug, Clone)]
pub(crate) struct Versions<T> {
    first: (u64, T),
    later: Vec<(u64, T)>,
}

impl<T> Versions<T> {
    pub(crate) fn new(epoch: u64, value: T) -> Self {
        Self { first: (epoch, value), later: Vec::new() }
    }

    pub(crate) fn push(&mut self, epoch: u64, value: T) {
        self.later.push((epoch, value));
    }

    /// The value at an epoch; `None` if it had none here.
    pub(crate) fn at(&self, epoch: u64) -> Option<&T> {
        let later = self.later.iter().rev().find(|(from, _)| *from <= epoch);
        let found = later.or_else(|| (self.first.0 <= epoch).then_some(&self.first));
        found.map(|(_, value)| value)
    }

    /// The last value.
    pub(crate) fn last(&self) -> &T {
        self.later.last().map_or(&self.first.1, |(_, value)| value)
    }

    /// The values before the last.
    pub(crate) fn replaced(&self) -> impl Iterator<Item = &T> {
        let all = std::iter::once(&self.first).chain(&self.later);
        all.take(self.later.len()).map(|(_, value)| value)
    }
}

/// Multiplies and shifts: keys are numbers that the program chose itself.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// One page as of one commit: a cache line.
pub(crate) struct Entry {
    pub(crate) page: (u64, u64),
    pub(crate) epoch: u64,
    pub(crate) reference: Ref,
    /// Number of the page's entry before this one; [`NO_ENTRY`] if there is none.
    before: u32,
    /// A later commit wrote the page again.
    pub(crate) replaced: bool,
}

const NO_ENTRY: u32 = u32::MAX;

/// Versions of pages in the order of their commits, and a table that finds the last one of each page. Its places are
/// taken by a quarter at most, so that nearly each look-up meets one entry.
#[derive(Default)]
pub(crate) struct Pages {
    table: Vec<u32>,
    entries: Vec<Entry>,
}

impl Pages {
    pub(crate) fn push(&mut self, page: (u64, u64), epoch: u64, reference: Ref) {
        if self.entries.len() * 4 >= self.table.len() {
            self.grow();
        }
        // As many as that do not fit into RAM.
        let number = self.entries.len() as u32;
        let place = self.place(&page);
        let before = std::mem::replace(&mut self.table[place], number);
        if let Some(entry) = self.entries.get_mut(before as usize) {
            entry.replaced = true;
        }
        self.entries.push(Entry { page, epoch, reference, before, replaced: false });
    }

    /// Has what pushing a page will touch fetched into the cache; so many others will be pushed before it.
    pub(crate) fn fetch(&self, page: &(u64, u64), before: usize) {
        if !self.table.is_empty() {
            stream::fetch_line(self.table.as_ptr().wrapping_add(self.home(page)).cast());
        }
        stream::fetch_line(self.entries.as_ptr().wrapping_add(self.entries.len() + before).cast());
    }

    /// Where the table names a page first of all.
    fn home(&self, page: &(u64, u64)) -> usize {
        let mut hasher = Mix::default();
        hasher.write_u64(page.0);
        hasher.write_u64(page.1);
        hasher.finish() as usize & (self.table.len() - 1)
    }

    /// Where the table names a page, or would.
    fn place(&self, page: &(u64, u64)) -> usize {
        let mut place = self.home(page);
        while let Some(entry) = self.entries.get(self.table[place] as usize)
            && entry.page != *page
        {
            place = (place + 1) & (self.table.len() - 1);
        }
        place
    }

    fn grow(&mut self) {
        self.table = vec![NO_ENTRY; (self.table.len() * 2).max(1024)];
        for number in 0..self.entries.len() {
            let place = self.place(&self.entries[number].page);
            self.table[place] = number as u32;
        }
    }

    /// What a page was at an epoch; `None` if that does not stand here.
    pub(crate) fn at(&self, page: &(u64, u64), epoch: u64) -> Option<Ref> {
        let mut number = if self.table.is_empty() { NO_ENTRY } else { self.table[self.place(page)] };
        while let Some(entry) = self.entries.get(number as usize) {
            if entry.epoch <= epoch {
                return Some(entry.reference);
            }
            number = entry.before;
        }
        None
    }

    /// All of them, in the order of their commits.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn clear(&mut self) {
        self.table.fill(NO_ENTRY);
        self.entries.clear();
    }
}

#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) pages: Pages,
    /// Lengths of spaces that grew.
    pub(crate) lengths: BTreeMap<u64, Versions<u64>>,
    pub(crate) metas: BTreeMap<Vec<u8>, Versions<Option<Meta>>>,
}

#[derive(Default)]
pub(crate) struct Recent(RwLock<Changes>);

impl Recent {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Changes> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same place, empty.
    pub(crate) fn cleared(self) -> Self {
        let mut changes = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        changes.pages.clear();
        changes.lengths.clear();
        changes.metas.clear();
        Self(RwLock::new(changes))
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Changes> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
