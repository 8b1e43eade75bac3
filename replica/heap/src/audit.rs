//! Looking at a heap as a whole. Costs what the heap is large.

use std::collections::HashSet;

use super::batch::SpaceId;
use super::block::Ref;
use super::catalog;
use super::error::ReadError;
use super::heap::Heap;
use super::node::Value;
use super::radix;
use super::record::Meta;

/// What a walk over all of a heap found.
#[derive(Debug, Default)]
pub struct Audit {
    /// Pages and index nodes that are as they were written.
    pub sound: u64,
    /// Bytes on the medium where something damaged lies, with what it belongs to.
    pub damaged: Vec<(u64, Owner)>,
    /// Slots that neither hold something nor are free.
    pub lost: Vec<u32>,
}

/// What a page belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A space.
    Space(SpaceId),
    /// A metadata value.
    Meta(Vec<u8>),
    /// The heap's own index.
    Index,
}

impl Heap {
    /// Reads every page and index node, and accounts for every slot.
    pub fn audit(&self) -> Result<Audit, ReadError> {
        let store = &self.writer.store;
        let mut audit = Audit::default();
        let mut known = HashSet::new();
        let mut visit = |owner: &Owner, found: Result<Ref, (u32, ReadError)>| {
            let slot = match found {
                Ok(reference) => {
                    known.insert(reference.slot());
                    match store.check(&reference) {
                        Ok(true) => {
                            audit.sound += 1;
                            return;
                        }
                        _ => reference.slot(),
                    }
                }
                Err((slot, _)) => slot,
            };
            known.insert(slot);
            audit.damaged.push((store.geometry.offset(slot).unwrap_or_default(), owner.clone()));
        };
        let mut trees = Vec::new();
        catalog::scan(store, &self.live.catalog, b"", &mut |key, value| {
            match value {
                Value::Space { tree, .. } => {
                    let number = key[1..].try_into().map(u64::from_be_bytes).unwrap_or_default();
                    trees.push((Owner::Space(SpaceId(number)), tree.clone()));
                }
                Value::Blob { tree, .. } => trees.push((Owner::Meta(key[1..].to_vec()), tree.clone())),
                Value::Trash(tree) => trees.push((Owner::Index, tree.clone())),
                Value::Inline(_) | Value::Count(_) => {}
            }
            true
        })?;
        let mut unwritten = Vec::new();
        for (owner, tree) in &trees {
            radix::walk(store, tree, &mut |found| visit(owner, found), &mut |slot| unwritten.push(slot));
        }
        for recent in self.live.layers() {
            let recent = recent.read();
            for entry in recent.pages.iter() {
                let owner = Owner::Space(SpaceId(entry.page.0));
                entry.reference.some().into_iter().for_each(|one| visit(&owner, Ok(one)));
            }
            for (key, versions) in &recent.metas {
                for value in versions.replaced().chain([versions.last()]).flatten() {
                    if let Meta::Blob { pages, .. } = value {
                        pages.iter().for_each(|one| visit(&Owner::Meta(key.clone()), Ok(*one)));
                    }
                }
            }
        }
        let mut nodes = unwritten;
        catalog::nodes(store, &self.live.catalog, &mut nodes)?;
        catalog::nodes(store, &self.writer.shares.stored, &mut nodes)?;
        known.extend(nodes);
        self.writer.slots.account(store, &mut known)?;
        audit.lost = self.writer.slots.used_so_far().filter(|slot| !known.contains(slot)).collect();
        Ok(audit)
    }
}
