//! What was committed since the index last took it in: versions by epoch, shared by the writer and the
//! snapshots, so that a commit changes no index node and a snapshot copies nothing.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::PoisonError;

use super::block::Ref;
use super::record::Meta;
use super::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

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

/// Versions of pages, by space and number: a small table that finds them, and they themselves in a row.
#[derive(Default)]
pub(crate) struct Pages {
    places: HashMap<(u64, u64), u32, BuildHasherDefault<Mix>>,
    entries: Vec<((u64, u64), Versions<Ref>)>,
}

impl Pages {
    pub(crate) fn push(&mut self, page: (u64, u64), epoch: u64, reference: Ref) {
        // As many as that do not fit into RAM.
        let end = self.entries.len() as u32;
        match self.places.entry(page) {
            hash_map::Entry::Occupied(place) => {
                if let Some((_, versions)) = self.entries.get_mut(*place.get() as usize) {
                    versions.push(epoch, reference);
                }
            }
            hash_map::Entry::Vacant(place) => {
                place.insert(end);
                self.entries.push((page, Versions::new(epoch, reference)));
            }
        }
    }

    pub(crate) fn get(&self, page: &(u64, u64)) -> Option<&Versions<Ref>> {
        self.entries.get(*self.places.get(page)? as usize).map(|(_, versions)| versions)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &((u64, u64), Versions<Ref>)> {
        self.entries.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) pages: Pages,
    /// Lengths of spaces that grew.
    pub(crate) lengths: BTreeMap<u64, Versions<u64>>,
    pub(crate) metas: BTreeMap<Vec<u8>, Versions<Option<Meta>>>,
}

impl Changes {
    pub(crate) fn len(&self) -> usize {
        self.pages.len() + self.lengths.len() + self.metas.len()
    }
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
        changes.pages.places.clear();
        changes.pages.entries.clear();
        changes.lengths.clear();
        changes.metas.clear();
        Self(RwLock::new(changes))
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Changes> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
