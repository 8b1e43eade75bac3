//! The catalog: a B+-tree of keys and values, nodes of one block.

use std::sync::Arc;

use super::batch::PAGE;
use super::error::{ReadError, WriteError};
use super::node::{Body, Child, Kind, Tree, Value};
use super::store::Store;
use super::writer::{Writer, node};

fn kind(level: u8) -> Kind {
    if level <= 1 { Kind::Leaf } else { Kind::Branch }
}

/// Index of the child that a key belongs to.
fn child_of(entries: &[(Box<[u8]>, Child)], key: &[u8]) -> usize {
    entries.partition_point(|(least, _)| &**least <= key).max(1) - 1
}

fn find(entries: &[(Box<[u8]>, Value)], key: &[u8]) -> Result<usize, usize> {
    entries.binary_search_by(|(other, _)| (**other).cmp(key))
}

/// The value of a key.
pub(crate) fn get(store: &Store, tree: &Tree, key: &[u8]) -> Result<Option<Value>, ReadError> {
    let mut child = tree.root.clone();
    for level in (1..=tree.height).rev() {
        let Some(node) = node(store, &child, kind(level))? else { return Ok(None) };
        match &node.body {
            Body::Leaf(entries) => {
                return Ok(find(entries, key).ok().map(|index| entries[index].1.clone()));
            }
            Body::Branch(entries) if !entries.is_empty() => {
                child = entries[child_of(entries, key)].1.clone();
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Calls `visit` with the entries from `from` on, ascending, until it says false.
pub(crate) fn scan(
    store: &Store,
    tree: &Tree,
    from: &[u8],
    visit: &mut dyn FnMut(&[u8], &Value) -> bool,
) -> Result<(), ReadError> {
    scan_below(store, &tree.root, tree.height, from, visit).map(|_| ())
}

fn scan_below(
    store: &Store,
    child: &Child,
    level: u8,
    from: &[u8],
    visit: &mut dyn FnMut(&[u8], &Value) -> bool,
) -> Result<bool, ReadError> {
    if level == 0 {
        return Ok(true);
    }
    let Some(node) = node(store, child, kind(level))? else { return Ok(true) };
    match &node.body {
        Body::Leaf(entries) => {
            let first = find(entries, from).unwrap_or_else(|index| index);
            Ok(entries[first..].iter().all(|(key, value)| visit(key, value)))
        }
        Body::Branch(entries) if !entries.is_empty() => {
            for (_, child) in &entries[child_of(entries, from)..] {
                if !scan_below(store, child, level - 1, from, visit)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        _ => Ok(true),
    }
}

/// Slots of all nodes of a catalog.
pub(crate) fn nodes(store: &Store, tree: &Tree, out: &mut Vec<u32>) -> Result<(), ReadError> {
    out.extend(tree.root.slot());
    if tree.height > 1
        && let Some(node) = node(store, &tree.root, kind(tree.height))?
        && let Body::Branch(entries) = &node.body
    {
        for (_, child) in entries {
            nodes(store, &Tree { height: tree.height - 1, root: child.clone() }, out)?;
        }
    }
    Ok(())
}

/// Sets a value and gives the earlier one.
pub(crate) fn insert(
    writer: &mut Writer,
    tree: &mut Tree,
    key: &[u8],
    value: Value,
) -> Result<Option<Value>, WriteError> {
    tree.height = tree.height.max(1);
    let (old, split) = insert_below(writer, &mut tree.root, tree.height, key, value)?;
    if let Some((least, right)) = split {
        let left = std::mem::take(&mut tree.root);
        let children = vec![(Box::default(), left), (least, right)];
        tree.root = writer.make(Body::Branch(children))?;
        tree.height += 1;
    }
    Ok(old)
}

type Split = Option<(Box<[u8]>, Child)>;

fn insert_below(
    writer: &mut Writer,
    child: &mut Child,
    level: u8,
    key: &[u8],
    value: Value,
) -> Result<(Option<Value>, Split), WriteError> {
    let body = writer.own(child, kind(level))?;
    let old = match body {
        Body::Leaf(entries) => match find(entries, key) {
            Ok(index) => Some(std::mem::replace(&mut entries[index].1, value)),
            Err(index) => {
                entries.insert(index, (key.into(), value));
                None
            }
        },
        Body::Branch(entries) if !entries.is_empty() => {
            let index = child_of(entries, key);
            let (old, split) = insert_below(writer, &mut entries[index].1, level - 1, key, value)?;
            if let Some(right) = split {
                entries.insert(index + 1, right);
            }
            old
        }
        _ => return Err(WriteError::Fault("a radix node in a catalog")),
    };
    let split = if body.size() > PAGE { Some(split(writer, body)?) } else { None };
    Ok((old, split))
}

/// Moves the upper half, by bytes, of a node that became too large to a new one. No entry takes more than a
/// third of a block, so each half fits.
fn split(writer: &mut Writer, body: &mut Body) -> Result<(Box<[u8]>, Child), WriteError> {
    let half = body.size() / 2;
    fn at<T>(entries: &[(Box<[u8]>, T)], half: usize, size: impl Fn(&(Box<[u8]>, T)) -> usize) -> usize {
        let mut sum = 0;
        let whole = entries.iter().take_while(|entry| {
            sum += size(entry);
            sum <= half
        });
        whole.count().clamp(1, entries.len() - 1)
    }
    let (least, right) = match body {
        Body::Leaf(entries) => {
            let index = at(entries, half, |entry| Body::Leaf(vec![entry.clone()]).size());
            let right = entries.split_off(index);
            (right[0].0.clone(), Body::Leaf(right))
        }
        Body::Branch(entries) => {
            let index = at(entries, half, |(key, _)| key.len() + 34);
            let right = entries.split_off(index);
            (right[0].0.clone(), Body::Branch(right))
        }
        _ => return Err(WriteError::Fault("a radix node in a catalog")),
    };
    Ok((least, writer.make(right)?))
}

/// Removes a key and gives its value.
pub(crate) fn remove(writer: &mut Writer, tree: &mut Tree, key: &[u8]) -> Result<Option<Value>, WriteError> {
    if get(&writer.store, tree, key)?.is_none() {
        return Ok(None);
    }
    let old = remove_below(writer, &mut tree.root, tree.height, key)?;
    // A root with one child, or none, is one level too many.
    loop {
        let single = match writer.node(&tree.root, kind(tree.height))?.as_deref().map(|node| &node.body) {
            Some(Body::Leaf(entries)) if entries.is_empty() => Some(Child::None),
            Some(Body::Branch(entries)) if entries.is_empty() => Some(Child::None),
            Some(Body::Branch(entries)) if entries.len() == 1 => Some(entries[0].1.clone()),
            _ => None,
        };
        let Some(single) = single else { break };
        if let Some(slot) = tree.root.slot() {
            writer.slots.give(slot);
        }
        tree.height = if matches!(single, Child::None) { 0 } else { tree.height - 1 };
        tree.root = single;
        if tree.height == 0 {
            break;
        }
    }
    Ok(old)
}

fn remove_below(
    writer: &mut Writer,
    child: &mut Child,
    level: u8,
    key: &[u8],
) -> Result<Option<Value>, WriteError> {
    match writer.own(child, kind(level))? {
        Body::Leaf(entries) => Ok(find(entries, key).ok().map(|index| entries.remove(index).1)),
        Body::Branch(entries) if !entries.is_empty() => {
            let index = child_of(entries, key);
            let old = remove_below(writer, &mut entries[index].1, level - 1, key)?;
            let below = writer.node(&entries[index].1, kind(level - 1))?;
            let empty = match below.as_deref().map(|node| &node.body) {
                Some(Body::Leaf(entries)) => entries.is_empty(),
                Some(Body::Branch(entries)) => entries.is_empty(),
                _ => false,
            };
            if empty {
                let (_, gone) = entries.remove(index);
                if let Some(slot) = gone.slot() {
                    writer.slots.give(slot);
                }
            }
            Ok(old)
        }
        _ => Err(WriteError::Fault("a radix node in a catalog")),
    }
}

/// Runs `change` on the value of a key, made by `default` if there is none.
pub(crate) fn update<T>(
    writer: &mut Writer,
    tree: &mut Tree,
    key: &[u8],
    default: impl FnOnce() -> Value,
    change: impl FnOnce(&mut Writer, &mut Value) -> Result<T, WriteError>,
) -> Result<T, WriteError> {
    if get(&writer.store, tree, key)?.is_none() {
        insert(writer, tree, key, default())?;
    }
    let mut level = tree.height;
    let mut child = &mut tree.root;
    loop {
        match writer.own(child, kind(level))? {
            Body::Leaf(entries) => {
                let index = find(entries, key).map_err(|_| WriteError::Fault("a radix node in a catalog"))?;
                return change(writer, &mut entries[index].1);
            }
            Body::Branch(entries) if !entries.is_empty() => {
                let index = child_of(entries, key);
                child = &mut entries[index].1;
            }
            _ => return Err(WriteError::Fault("a radix node in a catalog")),
        }
        level -= 1;
    }
}

/// Metadata keys as they stand in the catalog.
pub(crate) fn meta_key(key: &[u8]) -> Vec<u8> {
    [b"m", key].concat()
}

/// Key of a space.
pub(crate) fn space_key(space: u64) -> [u8; 9] {
    prefixed(b's', space)
}

/// Key of a tree to be freed.
pub(crate) fn trash_key(number: u64) -> [u8; 9] {
    prefixed(b't', number)
}

fn prefixed(prefix: u8, number: u64) -> [u8; 9] {
    let mut key = [prefix; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// A short metadata value.
pub(crate) fn inline(bytes: &[u8]) -> Value {
    Value::Inline(Arc::from(bytes))
}
