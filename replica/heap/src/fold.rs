//! Taking recent changes into the index, some with each commit.
//!
//! When enough have gathered they are set aside, in order, and the index takes them in step by step; a commit does
//! no more of that than about twice its own share. Meanwhile snapshots see the index as it was, with the changes
//! set aside above it, so each index node is copied once, not once per step.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::block::Ref;
use super::catalog::{self, meta_key, space_key};
use super::error::WriteError;
use super::heap::Heap;
use super::node::{Tree, Value};
use super::radix;
use super::record::Meta;

/// Entries that may gather before they are set aside: the more, the more of them share an index node, which is copied
/// once for all. Few in the simulator, so that it meets this.
const GATHER: usize = if cfg!(feature = "mutants") { 12 } else { 16384 };
/// Entries that are worth a step.
const STEP: usize = if cfg!(feature = "mutants") { 1 } else { 64 };

/// Changes set aside, on their way into the index.
pub(crate) struct Fold {
    /// The index without any of them.
    pub(crate) before: Tree,
    /// Spaces that changed, with their new lengths if they grew.
    spaces: BTreeMap<u64, Option<u64>>,
    /// Pages by space and number; those before `done` are in the index.
    pages: Vec<(u64, u64, Ref)>,
    done: usize,
    metas: Vec<(Vec<u8>, Option<Meta>)>,
}

impl Heap {
    /// Takes the share of one commit into the index. Everything submitted is durable.
    pub(crate) fn fold_some(&mut self) -> Result<(), WriteError> {
        let due = 2 * self.recent;
        match &self.fold {
            Some(fold) if fold.done + STEP <= due => {
                let budget = due - fold.done;
                let aside = self.live.aside.clone();
                if self.fold_step(budget)? {
                    self.publish();
                    // Without a snapshot that looks at it, it serves again.
                    self.spare = aside.and_then(Arc::into_inner).map(|recent| Arc::new(recent.cleared()));
                }
                Ok(())
            }
            None if self.recent >= GATHER => self.set_aside(),
            _ => Ok(()),
        }
    }

    /// Takes all recent changes into the index.
    pub(crate) fn fold_all(&mut self) -> Result<(), WriteError> {
        self.fold_step(usize::MAX)?;
        if self.recent > 0 {
            self.set_aside()?;
            self.fold_step(usize::MAX)?;
        }
        Ok(())
    }

    /// Begins to take the recent changes in. Nothing is on its way.
    fn set_aside(&mut self) -> Result<(), WriteError> {
        let aside = std::mem::replace(&mut self.live.recent, self.spare.take().unwrap_or_default());
        self.recent = 0;
        let changes = aside.read();
        let mut spaces: BTreeMap<u64, Option<u64>> =
            changes.lengths.iter().map(|(space, versions)| (*space, Some(*versions.last()))).collect();
        let mut pages: Vec<(u64, u64, Ref)> = Vec::with_capacity(changes.pages.len());
        let slots = &mut self.writer.slots;
        for entry in changes.pages.iter() {
            let (space, page) = entry.page;
            if entry.replaced {
                entry.reference.some().into_iter().for_each(|one| slots.give(one.slot()));
                continue;
            }
            if pages.last().is_none_or(|(last, ..)| *last != space) {
                spaces.entry(space).or_default();
            }
            pages.push((space, page, entry.reference));
        }
        // Stable: what commits brought is mostly in order already, and this sort looks for such runs.
        pages.sort_by_key(|(space, page, _)| (*space, *page));
        let mut metas = Vec::with_capacity(changes.metas.len());
        for (key, versions) in &changes.metas {
            for replaced in versions.replaced() {
                if let Some(Meta::Blob { pages, .. }) = replaced {
                    pages.iter().for_each(|page| slots.give(page.slot()));
                }
            }
            metas.push((key.clone(), versions.last().clone()));
        }
        drop(changes);
        self.live.aside = Some(aside);
        self.fold = Some(Fold { before: self.live.catalog.clone(), spaces, pages, done: 0, metas });
        Ok(())
    }

    /// Takes so many of the changes set aside into the index. True if that were the last.
    fn fold_step(&mut self, budget: usize) -> Result<bool, WriteError> {
        let Some(mut fold) = self.fold.take() else { return Ok(false) };
        let end = fold.pages.len().min(fold.done.saturating_add(budget));
        while fold.done < end {
            let rest = &fold.pages[fold.done..end];
            let Some((space, ..)) = rest.first() else { break };
            let count = rest.iter().take_while(|(other, ..)| other == space).count();
            let grown = fold.spaces.remove(space).flatten();
            self.fold_space(*space, grown, &rest[..count])?;
            fold.done += count;
        }
        if fold.done < fold.pages.len() {
            self.fold = Some(fold);
            return Ok(false);
        }
        for (space, grown) in fold.spaces {
            self.fold_space(space, grown, &[])?;
        }
        for (key, value) in &fold.metas {
            self.fold_meta(key, value.as_ref())?;
        }
        self.live.aside = None;
        Ok(true)
    }

    fn fold_space(
        &mut self,
        space: u64,
        grown: Option<u64>,
        pages: &[(u64, u64, Ref)],
    ) -> Result<(), WriteError> {
        catalog::update(
            &mut self.writer,
            &mut self.live.catalog,
            &space_key(space),
            || Value::Space { pages: 0, tree: Tree::default() },
            |writer, value| {
                let Value::Space { pages: length, tree } = value else { return Ok(()) };
                *length = grown.unwrap_or(*length);
                radix::set_many(writer, tree, pages)
            },
        )
    }

    fn fold_meta(&mut self, key: &[u8], value: Option<&Meta>) -> Result<(), WriteError> {
        let key = meta_key(key);
        let (writer, catalog) = (&mut self.writer, &mut self.live.catalog);
        let old = match value {
            None => catalog::remove(writer, catalog, &key)?,
            Some(Meta::Inline(bytes)) => catalog::insert(writer, catalog, &key, catalog::inline(bytes))?,
            Some(Meta::Blob { length, pages }) => {
                let mut tree = Tree::default();
                for (page, reference) in (0..).zip(pages) {
                    radix::set(writer, &mut tree, page, *reference)?;
                }
                catalog::insert(writer, catalog, &key, Value::Blob { length: *length, tree })?
            }
        };
        if let Some(Value::Blob { tree, .. }) = old {
            self.bury_later(tree)?;
        }
        Ok(())
    }
}
