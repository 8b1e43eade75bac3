//! The image in RAM: what the last durable commit left.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::batch::{Change, Page, SpaceId};
use crate::codec::{Op, ZERO};

/// A numbered sequence of pages. Pages of zeros take no memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Space {
    pages: u64,
    resident: BTreeMap<u64, Box<Page>>,
}

impl Space {
    /// Length in pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Content of a page; pages never written, and those behind the end, read as zeros.
    pub fn page(&self, number: u64) -> &Page {
        self.resident.get(&number).map_or(&ZERO, |page| page)
    }

    /// The pages that are not all zeros, in ascending order, with their numbers.
    pub fn resident(&self) -> impl ExactSizeIterator<Item = (u64, &Page)> {
        self.resident.iter().map(|(number, page)| (*number, &**page))
    }

    fn set(&mut self, number: u64, data: Option<Box<Page>>) -> Option<Box<Page>> {
        match data {
            Some(data) => self.resident.insert(number, data),
            None => self.resident.remove(&number),
        }
    }
}

/// Spaces and metadata.
#[derive(Debug, Default)]
pub(crate) struct Image {
    pub(crate) spaces: BTreeMap<SpaceId, Space>,
    pub(crate) meta: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// How to take one change back. `pages` is the space's earlier length, `None` if it did not exist.
pub(crate) enum Undo {
    Page { space: SpaceId, page: u64, old: Option<Box<Page>>, pages: Option<u64> },
    Resize { space: SpaceId, tail: BTreeMap<u64, Box<Page>>, pages: Option<u64> },
    Drop { space: SpaceId, old: Option<Space> },
    Meta { key: Vec<u8>, old: Option<Vec<u8>> },
}

impl Image {
    /// Applies one change; pages move, they are not copied.
    pub(crate) fn apply(&mut self, change: Change) -> Undo {
        match change {
            Change::Page { space, page, data } => {
                let pages = self.spaces.get(&space).map(Space::pages);
                let target = self.spaces.entry(space).or_default();
                target.pages = target.pages.max(page + 1);
                let old = target.set(page, (*data != ZERO).then_some(data));
                Undo::Page { space, page, old, pages }
            }
            Change::Resize { space, pages: new } => {
                let pages = self.spaces.get(&space).map(Space::pages);
                let target = self.spaces.entry(space).or_default();
                target.pages = new;
                Undo::Resize { space, tail: target.resident.split_off(&new), pages }
            }
            Change::Drop { space } => Undo::Drop { space, old: self.spaces.remove(&space) },
            Change::Put { key, value } => {
                let old = self.meta.insert(key.clone(), value);
                Undo::Meta { key, old }
            }
            Change::Delete { key } => {
                let old = self.meta.remove(&key);
                Undo::Meta { key, old }
            }
        }
    }

    /// Takes back the change that was applied last.
    pub(crate) fn revert(&mut self, undo: Undo) {
        let (space, pages) = match undo {
            Undo::Page { space, page, old, pages } => {
                self.spaces.entry(space).or_default().set(page, old);
                (space, pages)
            }
            Undo::Resize { space, mut tail, pages } => {
                self.spaces.entry(space).or_default().resident.append(&mut tail);
                (space, pages)
            }
            Undo::Drop { space, old } => {
                if let Some(old) = old {
                    self.spaces.insert(space, old);
                }
                return;
            }
            Undo::Meta { key, old } => {
                match old {
                    Some(value) => self.meta.insert(key, value),
                    None => self.meta.remove(&key),
                };
                return;
            }
        };
        match pages {
            Some(pages) => self.spaces.entry(space).or_default().pages = pages,
            None => drop(self.spaces.remove(&space)),
        }
    }

    /// The changes that make this image from an empty one.
    pub(crate) fn ops(&self) -> impl Iterator<Item = Op<'_>> {
        let spaces = self.spaces.iter().flat_map(|(id, space)| {
            let (id, pages) = (*id, space.pages);
            let pages_of = space.resident().map(move |(page, data)| Op::Page { space: id, page, data });
            std::iter::once(Op::Resize { space: id, pages }).chain(pages_of)
        });
        spaces.chain(self.meta.iter().map(|(key, value)| Op::Put { key, value }))
    }

    /// Metadata whose keys begin with `prefix`, in ascending order.
    pub(crate) fn meta_range<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + 'a {
        self.meta
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }
}
