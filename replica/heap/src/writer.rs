//! How the writer changes index nodes: a node that a checkpoint, a snapshot or another owner may still look at
//! is copied, any other changed in place.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::batch::PAGE;
use super::catalog;
use super::error::{ReadError, WriteError};
use super::mutants::{self, Mutant};
use super::node::{Body, Child, Kind, Node, Tree, Value};
use super::seal::Nonces;
use super::slots::Slots;
use super::store::Store;

/// Everything that a change to the index needs.
pub(crate) struct Writer {
    pub(crate) store: Arc<Store>,
    pub(crate) slots: Slots,
    pub(crate) nonces: Nonces,
    pub(crate) shares: Shares,
    /// Nodes made or copied since the last checkpoint began: an upper bound of what the next one writes.
    pub(crate) dirty: u64,
}

/// How many owners beside the first a slot has; absent means none. Only spaces that were cloned cause entries.
#[derive(Default)]
pub(crate) struct Shares {
    /// A catalog of counts, as of the last time that `changes` was folded into it.
    pub(crate) stored: Tree,
    changes: HashMap<u32, u32>,
}

impl Shares {
    pub(crate) fn new(stored: Tree) -> Self {
        Self { stored, changes: HashMap::new() }
    }

    fn any(&self) -> bool {
        self.stored.height > 0 || !self.changes.is_empty()
    }

    fn get(&self, store: &Store, slot: u32) -> Result<u32, ReadError> {
        if !self.any() {
            return Ok(0);
        }
        if let Some(count) = self.changes.get(&slot) {
            return Ok(*count);
        }
        match catalog::get(store, &self.stored, &slot.to_be_bytes())? {
            Some(Value::Count(count)) => Ok(count),
            _ => Ok(0),
        }
    }

    fn change(&mut self, store: &Store, slot: u32, by: i32) -> Result<(), ReadError> {
        let count = self.get(store, slot)?.saturating_add_signed(by);
        self.changes.insert(slot, count);
        Ok(())
    }
}

impl Writer {
    /// Nodes of the catalog of shares that change when one shared node is copied, at most.
    pub(crate) fn shares_estimate(&self, more: bool) -> u64 {
        if more || self.shares.any() { (self.slots.total() / 150 + 3).min(130) } else { 0 }
    }

    /// Gives up one ownership of a slot; whether that was the last, hence the slot is given up too.
    pub(crate) fn disown(&mut self, slot: u32) -> Result<bool, WriteError> {
        if self.shares.get(&self.store, slot)? > 0 {
            self.shares.change(&self.store, slot, -1)?;
            return Ok(false);
        }
        self.slots.give(slot);
        Ok(true)
    }

    /// Adds an owner to a tree.
    pub(crate) fn share(&mut self, tree: &Tree) -> Result<(), WriteError> {
        if let Some(slot) = tree.root.slot() {
            self.shares.change(&self.store, slot, 1)?;
        }
        Ok(())
    }

    /// Makes a node.
    pub(crate) fn make(&mut self, body: Body) -> Result<Child, WriteError> {
        let slot = self.slots.take_for_node(&self.store)?;
        self.dirty += 1;
        let (born, stored) = (self.slots.freezes, OnceLock::new());
        Ok(Child::Ram(Arc::new(Node { slot, born, stored, body })))
    }

    /// The node behind a child, for reading.
    pub(crate) fn node(&self, child: &Child, kind: Kind) -> Result<Option<Arc<Node>>, ReadError> {
        node(&self.store, child, kind)
    }

    /// The body of a node, for changing; makes the node if there is none.
    pub(crate) fn own<'a>(&mut self, child: &'a mut Child, kind: Kind) -> Result<&'a mut Body, WriteError> {
        match child {
            Child::None => *child = self.make(Body::empty(kind))?,
            Child::Stored(reference) => {
                let node = self.store.load(reference, kind)?;
                self.store.forget(reference.slot());
                *child = Child::Ram(node);
            }
            Child::Ram(_) => {}
        }
        let Child::Ram(node) = child else { return Err(WriteError::Fault("a node that is not its own")) };
        let shared = self.shares.get(&self.store, node.slot)? > 0;
        let frozen = node.born < self.slots.freezes && !mutants::on(Mutant::NodeChangedInPlace);
        if shared || frozen {
            let slot = self.slots.take_for_node(&self.store)?;
            if shared {
                self.shares.change(&self.store, node.slot, -1)?;
                for below in slots_below(&node.body) {
                    self.shares.change(&self.store, below, 1)?;
                }
            } else {
                self.slots.give(node.slot);
            }
            self.dirty += 1;
            let body = take_body(node);
            let (born, stored) = (self.slots.freezes, OnceLock::new());
            *node = Arc::new(Node { slot, born, stored, body });
        } else if Arc::get_mut(node).is_none() {
            let (slot, born, stored) = (node.slot, node.born, OnceLock::new());
            *node = Arc::new(Node { slot, born, stored, body: node.body.clone() });
        }
        // Unique by now.
        Arc::get_mut(node).map(|node| &mut node.body).ok_or(WriteError::Fault("a node that is not its own"))
    }

    /// Folds what changed of the shares into their catalog.
    pub(crate) fn fold_shares(&mut self) -> Result<(), WriteError> {
        if self.shares.changes.is_empty() {
            return Ok(());
        }
        // Meanwhile no node counts as shared; those of this catalog never are.
        let shares = std::mem::take(&mut self.shares);
        let mut stored = shares.stored;
        for (slot, count) in shares.changes {
            let key = slot.to_be_bytes();
            if count == 0 {
                catalog::remove(self, &mut stored, &key)?;
            } else {
                catalog::insert(self, &mut stored, &key, Value::Count(count))?;
            }
        }
        self.shares = Shares::new(stored);
        Ok(())
    }

    /// Writes up to `budget` nodes of a frozen tree, children first. True when all of it is written.
    pub(crate) fn store_nodes(&mut self, child: &Child, budget: &mut u64) -> Result<bool, WriteError> {
        let Child::Ram(node) = child else { return Ok(true) };
        if node.stored.get().is_some() {
            return Ok(true);
        }
        let below: Vec<&Child> = match &node.body {
            Body::Pages(_) => Vec::new(),
            Body::Inner(children) => children.iter().collect(),
            Body::Leaf(entries) => entries.iter().filter_map(|(_, value)| tree_of(value)).collect(),
            Body::Branch(entries) => entries.iter().map(|(_, child)| child).collect(),
        };
        for child in below {
            if !self.store_nodes(child, budget)? {
                return Ok(false);
            }
        }
        if *budget == 0 {
            return Ok(false);
        }
        *budget -= 1;
        let mut block = [0; PAGE];
        node.body.encode(&mut block).ok_or(WriteError::Fault("a node that is not its own"))?;
        let reference = self.store.write(&mut self.nonces, node.slot, &block, &block)?;
        // Nobody else writes nodes, so it was not set.
        let _ = node.stored.set(reference);
        Ok(true)
    }
}

/// The node behind a child.
pub(crate) fn node(store: &Store, child: &Child, kind: Kind) -> Result<Option<Arc<Node>>, ReadError> {
    match child {
        Child::None => Ok(None),
        Child::Ram(node) => Ok(Some(node.clone())),
        Child::Stored(reference) => store.load(reference, kind).map(Some),
    }
}

fn take_body(node: &mut Arc<Node>) -> Body {
    match Arc::get_mut(node) {
        Some(node) => std::mem::replace(&mut node.body, Body::Branch(Vec::new())),
        None => node.body.clone(),
    }
}

fn tree_of(value: &Value) -> Option<&Child> {
    match value {
        Value::Blob { tree, .. } | Value::Space { tree, .. } | Value::Trash(tree) => Some(&tree.root),
        Value::Inline(_) | Value::Count(_) => None,
    }
}

/// Slots that a node names. Catalog nodes are never shared, only radix nodes are.
pub(crate) fn slots_below(body: &Body) -> Vec<u32> {
    match body {
        Body::Pages(references) => {
            references.iter().filter_map(|one| one.some()).map(|one| one.slot()).collect()
        }
        Body::Inner(children) => children.iter().filter_map(Child::slot).collect(),
        Body::Leaf(_) | Body::Branch(_) => Vec::new(),
    }
}
