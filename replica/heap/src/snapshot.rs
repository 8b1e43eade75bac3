//! Committed states, to be read from any thread.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::batch::{PAGE, Page, SpaceId};
use super::block::Ref;
use super::catalog::{self, meta_key, space_key};
use super::error::ReadError;
use super::heap::View;
use super::history::Changes;
use super::node::{Tree, Value};
use super::radix;
use super::recent::Recent;
use super::record::Meta;
use super::store::Store;

/// A metadata key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// One committed state. Holds what it shows on the medium until the last clone is dropped.
#[derive(Clone)]
pub struct Snapshot(Arc<Held>);

struct Held {
    store: Arc<Store>,
    view: View,
    moment: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.pins.release(self.moment);
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Snapshot").field("epoch", &self.epoch()).finish()
    }
}

impl Snapshot {
    pub(crate) fn new(store: Arc<Store>, view: View, moment: u64) -> Self {
        store.pins.hold(moment);
        Self(Arc::new(Held { store, view, moment }))
    }

    /// Number of the last commit that it shows.
    pub fn epoch(&self) -> u64 {
        self.0.view.epoch
    }

    /// Reads a page; one never written, or behind the end of its space, reads as zeros. After an error `into`
    /// holds zeros.
    pub fn read_page(&self, space: SpaceId, page: u64, into: &mut Page) -> Result<(), ReadError> {
        match self.locate(space.0, page)? {
            Some(reference) => self.0.store.read(&reference, into),
            None => {
                into.fill(0);
                Ok(())
            }
        }
    }

    /// The reference of a page.
    pub(crate) fn locate(&self, space: u64, page: u64) -> Result<Option<Ref>, ReadError> {
        let view = &self.0.view;
        for recent in view.layers() {
            if let Some(reference) = recent.read().pages.at(&(space, page), view.epoch) {
                return Ok(reference.some());
            }
        }
        match self.tree(space)? {
            Some((_, tree)) => radix::get(&self.0.store, &tree, page),
            None => Ok(None),
        }
    }

    /// A space as the index has it.
    fn tree(&self, space: u64) -> Result<Option<(u64, Tree)>, ReadError> {
        let value = catalog::get(&self.0.store, &self.0.view.catalog, &space_key(space))?;
        Ok(if let Some(Value::Space { pages, tree }) = value { Some((pages, tree)) } else { None })
    }

    /// Length of a space in pages; `None` if there is no such space.
    pub fn space_pages(&self, space: SpaceId) -> Result<Option<u64>, ReadError> {
        let view = &self.0.view;
        for recent in view.layers() {
            if let Some(length) = recent.read().lengths.get(&space.0).and_then(|of| of.at(view.epoch)) {
                return Ok(Some(*length));
            }
        }
        Ok(self.tree(space.0)?.map(|(pages, _)| pages))
    }

    /// All spaces with their lengths in pages, in ascending order of their numbers.
    pub fn spaces(&self) -> Result<Vec<(SpaceId, u64)>, ReadError> {
        let view = &self.0.view;
        let mut spaces = BTreeMap::new();
        catalog::scan(&self.0.store, &view.catalog, b"s", &mut |key, value| match (key, value) {
            ([b's', number @ ..], Value::Space { pages, .. }) => {
                let number = number.try_into().map(u64::from_be_bytes).unwrap_or_default();
                spaces.insert(number, *pages);
                true
            }
            _ => false,
        })?;
        for recent in view.layers().rev() {
            for (space, versions) in &recent.read().lengths {
                if let Some(length) = versions.at(view.epoch) {
                    spaces.insert(*space, *length);
                }
            }
        }
        Ok(spaces.into_iter().map(|(space, pages)| (SpaceId(space), pages)).collect())
    }

    /// The numbers of the pages from `from` on that are not zeros, ascending, at most `limit` of them.
    pub fn present_pages(&self, space: SpaceId, from: u64, limit: usize) -> Result<Vec<u64>, ReadError> {
        Ok(self.present(space.0, from, limit)?.into_keys().collect())
    }

    /// The same, with the references.
    pub(crate) fn present(
        &self,
        space: u64,
        from: u64,
        limit: usize,
    ) -> Result<BTreeMap<u64, Ref>, ReadError> {
        let view = &self.0.view;
        let mut recent = BTreeMap::new();
        for layer in view.layers().rev() {
            for entry in layer.read().pages.iter().take_while(|entry| entry.epoch <= view.epoch) {
                let (of, page) = entry.page;
                if of == space && page >= from {
                    recent.insert(page, entry.reference);
                }
            }
        }
        let mut indexed = Vec::new();
        if let Some((_, tree)) = self.tree(space)? {
            // What was removed lately must not leave the answer short.
            radix::present(&self.0.store, &tree, from, limit.saturating_add(recent.len()), &mut indexed)?;
        }
        let mut pages: BTreeMap<u64, Ref> = indexed.into_iter().collect();
        for (page, reference) in recent {
            match reference.some() {
                Some(reference) => pages.insert(page, reference),
                None => pages.remove(&page),
            };
        }
        if pages.len() > limit
            && let Some(end) = pages.keys().nth(limit).copied()
        {
            pages.split_off(&end);
        }
        Ok(pages)
    }

    /// A metadata value.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        let view = &self.0.view;
        let of = |layer: &Recent| layer.read().metas.get(key).and_then(|of| of.at(view.epoch)).cloned();
        let recent = view.layers().find_map(of);
        match recent {
            Some(None) => Ok(None),
            Some(Some(value)) => self.value(value).map(Some),
            None => match catalog::get(&self.0.store, &view.catalog, &meta_key(key))? {
                Some(value) => self.indexed_meta(&value),
                None => Ok(None),
            },
        }
    }

    /// All metadata keys, ascending; the values are not read.
    pub fn meta_keys(&self) -> Result<Vec<Vec<u8>>, ReadError> {
        Ok(self.metas()?.into_iter().map(|(key, _)| key).collect())
    }

    /// Metadata whose keys begin with `prefix`, in ascending order of the keys.
    pub fn meta_range(&self, prefix: &[u8]) -> Result<Vec<Entry>, ReadError> {
        let view = &self.0.view;
        let from = meta_key(prefix);
        let mut indexed = BTreeMap::new();
        catalog::scan(&self.0.store, &view.catalog, &from, &mut |key, value| {
            let ours = key.starts_with(&from);
            if ours {
                indexed.insert(key[1..].to_vec(), value.clone());
            }
            ours
        })?;
        let mut found = BTreeMap::new();
        let mut recent: BTreeMap<Vec<u8>, Option<Meta>> = BTreeMap::new();
        for layer in view.layers().rev() {
            let layer = layer.read();
            let ours = layer.metas.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
            for (key, versions) in ours {
                if let Some(value) = versions.at(view.epoch) {
                    recent.insert(key.clone(), value.clone());
                }
            }
        }
        for (key, value) in indexed {
            if !recent.contains_key(&key)
                && let Some(value) = self.indexed_meta(&value)?
            {
                found.insert(key, value);
            }
        }
        for (key, value) in recent {
            if let Some(value) = value {
                found.insert(key, self.value(value)?);
            }
        }
        Ok(found.into_iter().collect())
    }

    fn indexed_meta(&self, value: &Value) -> Result<Option<Vec<u8>>, ReadError> {
        match value {
            Value::Inline(bytes) => Ok(Some(bytes.to_vec())),
            Value::Blob { length, tree } => {
                let mut pages = Vec::new();
                radix::present(&self.0.store, tree, 0, usize::MAX, &mut pages)?;
                self.join(*length, pages.into_iter().map(|(_, page)| page)).map(Some)
            }
            Value::Space { .. } | Value::Trash(_) | Value::Count(_) => Ok(None),
        }
    }

    fn join(&self, length: u64, pages: impl Iterator<Item = Ref>) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        let mut page = [0; PAGE];
        for reference in pages {
            self.0.store.read(&reference, &mut page)?;
            bytes.extend(page);
        }
        bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// Numbers of the pages of a space that were written after `epoch`, ascending, without repetition. `None`
    /// if that is not known any more, or if the space was cut, deleted or copied over since.
    pub fn changed_since(&self, epoch: u64, space: SpaceId) -> Option<Vec<u64>> {
        let history = self.0.store.history.read().unwrap_or_else(PoisonError::into_inner);
        history.changed(epoch, self.epoch(), space.0)
    }

    /// All pages that were written after `epoch`.
    pub(crate) fn changes_since(&self, epoch: u64) -> Option<Changes> {
        let history = self.0.store.history.read().unwrap_or_else(PoisonError::into_inner);
        history.changes(epoch, self.epoch())
    }

    /// References of some pages; of a page of zeros the empty one.
    pub(crate) fn locate_all(&self, space: u64, pages: &[u64]) -> Result<Vec<(u64, Ref)>, ReadError> {
        let of = |page: &u64| Ok((*page, self.locate(space, *page)?.unwrap_or(Ref::NONE)));
        pages.iter().map(of).collect()
    }

    /// Reads what a reference names.
    pub(crate) fn read(&self, reference: &Ref, into: &mut Page) -> Result<(), ReadError> {
        self.0.store.read(reference, into)
    }

    /// All metadata, ascending, as it is stored.
    pub(crate) fn metas(&self) -> Result<Vec<(Vec<u8>, Meta)>, ReadError> {
        let view = &self.0.view;
        let mut found = BTreeMap::new();
        let mut blobs = Vec::new();
        catalog::scan(&self.0.store, &view.catalog, b"m", &mut |key, value| {
            let Some((b'm', key)) = key.split_first() else { return false };
            match value {
                Value::Inline(bytes) => drop(found.insert(key.to_vec(), Some(Meta::Inline(bytes.to_vec())))),
                Value::Blob { length, tree } => blobs.push((key.to_vec(), *length, tree.clone())),
                Value::Space { .. } | Value::Trash(_) | Value::Count(_) => {}
            }
            true
        })?;
        for (key, length, tree) in blobs {
            let mut pages = Vec::new();
            radix::present(&self.0.store, &tree, 0, usize::MAX, &mut pages)?;
            let pages = pages.into_iter().map(|(_, reference)| reference).collect();
            found.insert(key, Some(Meta::Blob { length, pages }));
        }
        for layer in view.layers().rev() {
            for (key, versions) in &layer.read().metas {
                if let Some(value) = versions.at(view.epoch) {
                    found.insert(key.clone(), value.clone());
                }
            }
        }
        Ok(found.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
    }

    /// The bytes of a metadata value.
    pub(crate) fn value(&self, value: Meta) -> Result<Vec<u8>, ReadError> {
        match value {
            Meta::Inline(bytes) => Ok(bytes),
            Meta::Blob { length, pages } => self.join(length, pages.into_iter()),
        }
    }
}
