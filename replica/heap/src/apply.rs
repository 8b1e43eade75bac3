//! Taking what was committed into the state in RAM.

use std::collections::btree_map;
use std::sync::PoisonError;

use super::catalog::{self, space_key, trash_key};
use super::error::WriteError;
use super::heap::Heap;
use super::node::{Tree, Value};
use super::radix;
use super::recent::Versions;
use super::record::Change;

impl Heap {
    /// Takes changes into the live view.
    pub(crate) fn apply(&mut self, epoch: u64, changes: &[Change]) -> Result<(), WriteError> {
        let mut rest = changes;
        while !rest.is_empty() {
            let simple = self.apply_simple(epoch, rest)?;
            rest = &rest[simple..];
            if let Some((change, after)) = rest.split_first() {
                self.apply_whole(epoch, change)?;
                rest = after;
            }
        }
        self.live.epoch = epoch;
        Ok(())
    }

    /// Takes changes to single pages and values, up to the first that concerns a whole space; their number.
    fn apply_simple(&mut self, epoch: u64, changes: &[Change]) -> Result<usize, WriteError> {
        let (store, recent) = (self.writer.store.clone(), self.live.recent.clone());
        let mut history = store.history.write().unwrap_or_else(PoisonError::into_inner);
        let mut recent = recent.write();
        let mut length = None;
        let mut done = 0;
        for change in changes {
            match change {
                Change::Page { space, page, reference } => {
                    let current = match length {
                        Some((of, pages)) if of == *space => pages,
                        _ => self.length(*space)?,
                    };
                    if current.is_none_or(|pages| *page >= pages) {
                        push(recent.lengths.entry(*space), epoch, page + 1);
                        self.lengths.insert(*space, Some(page + 1));
                        length = Some((*space, Some(page + 1)));
                    } else {
                        length = Some((*space, current));
                    }
                    recent.pages.push((*space, *page), epoch, *reference);
                    history.wrote(epoch, *space, *page);
                }
                Change::Resize { space, pages } => {
                    if self.length(*space)?.is_some_and(|length| length > *pages) {
                        break;
                    }
                    push(recent.lengths.entry(*space), epoch, *pages);
                    self.lengths.insert(*space, Some(*pages));
                    length = None;
                }
                Change::Put { key, value } => {
                    push(recent.metas.entry(key.clone()), epoch, Some(value.clone()));
                }
                Change::Remove { key } => push(recent.metas.entry(key.clone()), epoch, None),
                Change::Delete { .. } | Change::Clone { .. } => break,
            }
            done += 1;
        }
        self.recent += done;
        Ok(done)
    }

    /// Takes a change to a whole space, in the index itself.
    fn apply_whole(&mut self, epoch: u64, change: &Change) -> Result<(), WriteError> {
        self.fold_all()?;
        let changed = match change {
            Change::Resize { space, pages } => {
                let cut = catalog::update(
                    &mut self.writer,
                    &mut self.live.catalog,
                    &space_key(*space),
                    || Value::Space { pages: 0, tree: Tree::default() },
                    |writer, value| {
                        let Value::Space { pages: length, tree } = value else { return Ok(Vec::new()) };
                        *length = *pages;
                        radix::truncate(writer, tree, *pages)
                    },
                )?;
                cut.into_iter().try_for_each(|tree| self.bury_later(tree))?;
                self.lengths.insert(*space, Some(*pages));
                *space
            }
            Change::Delete { space } => {
                self.delete(*space)?;
                *space
            }
            Change::Clone { from, to } => {
                if from != to {
                    self.delete(*to)?;
                    let key = space_key(*from);
                    let value = catalog::get(&self.writer.store, &self.live.catalog, &key)?;
                    if let Some(Value::Space { pages, tree }) = value {
                        self.writer.share(&tree)?;
                        let (key, value) = (space_key(*to), Value::Space { pages, tree });
                        catalog::insert(&mut self.writer, &mut self.live.catalog, &key, value)?;
                        self.lengths.insert(*to, Some(pages));
                    }
                }
                *to
            }
            Change::Page { .. } | Change::Put { .. } | Change::Remove { .. } => return Ok(()),
        };
        let mut history = self.writer.store.history.write().unwrap_or_else(PoisonError::into_inner);
        history.broke(epoch, changed);
        Ok(())
    }

    fn delete(&mut self, space: u64) -> Result<(), WriteError> {
        self.lengths.insert(space, None);
        match catalog::remove(&mut self.writer, &mut self.live.catalog, &space_key(space))? {
            Some(Value::Space { tree, .. }) => self.bury_later(tree),
            _ => Ok(()),
        }
    }

    /// Has the slots of a tree freed in later steps.
    pub(crate) fn bury_later(&mut self, tree: Tree) -> Result<(), WriteError> {
        if tree.root.slot().is_some() {
            let key = trash_key(self.next_trash);
            self.next_trash += 1;
            catalog::insert(&mut self.writer, &mut self.live.catalog, &key, Value::Trash(tree))?;
            self.trash = true;
        }
        Ok(())
    }
}

fn push<K: Ord, T>(entry: btree_map::Entry<'_, K, Versions<T>>, epoch: u64, value: T) {
    match entry {
        btree_map::Entry::Occupied(mut entry) => entry.get_mut().push(epoch, value),
        btree_map::Entry::Vacant(entry) => {
            entry.insert(Versions::new(epoch, value));
        }
    }
}
