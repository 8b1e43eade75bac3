//! Radix trees: page number to reference, 128 children per node.

use std::sync::Arc;

use super::block::Ref;
use super::error::{ReadError, WriteError};
use super::node::{Body, Child, FAN, Kind, Node, Tree};
use super::store::Store;
use super::writer::{Writer, node, slots_below};

const BITS: u32 = FAN.trailing_zeros();

fn kind(level: u8) -> Kind {
    if level <= 1 { Kind::Pages } else { Kind::Inner }
}

/// Index of a page's child in a node of a level.
fn index(page: u64, level: u8) -> usize {
    (page >> (BITS * (u32::from(level) - 1))) as usize % FAN
}

/// Whether a tree of this height has a place for a page.
fn covers(height: u8, page: u64) -> bool {
    page.checked_shr(BITS * u32::from(height)).unwrap_or(0) == 0
}

/// Levels that a tree with this page has.
pub(crate) fn height_for(page: u64) -> u8 {
    (1..).find(|height| covers(*height, page)).unwrap_or(u8::MAX)
}

/// The reference of a page.
pub(crate) fn get(store: &Store, tree: &Tree, page: u64) -> Result<Option<Ref>, ReadError> {
    if !covers(tree.height, page) {
        return Ok(None);
    }
    let mut level = tree.height;
    let mut child = tree.root.clone();
    while level > 0 {
        let Some(node) = node(store, &child, kind(level))? else { return Ok(None) };
        match &node.body {
            Body::Pages(references) => return Ok(references[index(page, 1)].some()),
            Body::Inner(children) => child = children[index(page, level)].clone(),
            _ => return Ok(None),
        }
        level -= 1;
    }
    Ok(None)
}

/// Sets the reference of a page that had none.
pub(crate) fn set(writer: &mut Writer, tree: &mut Tree, page: u64, reference: Ref) -> Result<(), WriteError> {
    lowest(writer, tree, page)?[index(page, 1)] = reference;
    Ok(())
}

/// Sets the references of pages, which are given with their space and in ascending order, and gives up those
/// that they had.
pub(crate) fn set_many(
    writer: &mut Writer,
    tree: &mut Tree,
    pages: &[(u64, u64, Ref)],
) -> Result<(), WriteError> {
    for near in pages.chunk_by(|(_, one, _), (_, other, _)| one / FAN as u64 == other / FAN as u64) {
        let Some((_, first, _)) = near.first() else { continue };
        // No node is made to say that there is nothing.
        if near.iter().all(|(.., reference)| reference.is_none()) && !has_lowest(writer, tree, *first)? {
            continue;
        }
        let references = lowest(writer, tree, *first)?;
        for (_, page, reference) in near {
            let old = std::mem::replace(&mut references[index(*page, 1)], *reference);
            if !old.is_none() {
                writer.disown(old.slot())?;
            }
        }
    }
    Ok(())
}

/// Whether there is a lowest node with a place for a page.
fn has_lowest(writer: &Writer, tree: &Tree, page: u64) -> Result<bool, ReadError> {
    if !covers(tree.height, page) {
        return Ok(false);
    }
    let mut child = tree.root.clone();
    for level in (2..=tree.height).rev() {
        let Some(node) = writer.node(&child, kind(level))? else { return Ok(false) };
        let Body::Inner(children) = &node.body else { return Ok(false) };
        child = children[index(page, level)].clone();
    }
    Ok(child.slot().is_some())
}

/// The references of the lowest node with a place for a page, which is made if there is none.
fn lowest<'a>(writer: &mut Writer, tree: &'a mut Tree, page: u64) -> Result<&'a mut [Ref; FAN], WriteError> {
    while !covers(tree.height, page) || tree.height == 0 {
        if !matches!(tree.root, Child::None) {
            let mut children = vec![Child::None; FAN];
            children[0] = std::mem::take(&mut tree.root);
            tree.root = writer.make(Body::Inner(children))?;
        }
        tree.height += 1;
    }
    let mut level = tree.height;
    let mut child = &mut tree.root;
    loop {
        match writer.own(child, kind(level))? {
            Body::Pages(references) => return Ok(references),
            Body::Inner(children) => child = &mut children[index(page, level)],
            _ => return Err(WriteError::Fault("a catalog node in a radix tree")),
        }
        level -= 1;
    }
}

/// Cuts the pages from `pages` on off: frees those of one lowest node, and gives the subtrees cut off.
pub(crate) fn truncate(writer: &mut Writer, tree: &mut Tree, pages: u64) -> Result<Vec<Tree>, WriteError> {
    let mut cut = Vec::new();
    if pages == 0 {
        cut.push(std::mem::take(tree));
        return Ok(cut);
    }
    if covers(tree.height, pages) {
        truncate_node(writer, &mut tree.root, tree.height, pages, &mut cut)?;
    }
    Ok(cut)
}

fn truncate_node(
    writer: &mut Writer,
    child: &mut Child,
    level: u8,
    pages: u64,
    cut: &mut Vec<Tree>,
) -> Result<(), WriteError> {
    if level == 0 || matches!(child, Child::None) {
        return Ok(());
    }
    let first = index(pages, level);
    match writer.own(child, kind(level))? {
        Body::Pages(references) => {
            let gone: Vec<Ref> =
                references[first..].iter_mut().filter_map(|one| std::mem::take(one).some()).collect();
            for reference in gone {
                writer.disown(reference.slot())?;
            }
            Ok(())
        }
        Body::Inner(children) => {
            let whole = children[first + 1..].iter_mut().map(std::mem::take);
            let whole = whole.filter(|child| child.slot().is_some());
            cut.extend(whole.map(|root| Tree { height: level - 1, root }));
            truncate_node(writer, &mut children[first], level - 1, pages, cut)
        }
        _ => Err(WriteError::Fault("a catalog node in a radix tree")),
    }
}

/// Appends the pages from `from` on that have a reference, ascending, until there are `limit`.
pub(crate) fn present(
    store: &Store,
    tree: &Tree,
    from: u64,
    limit: usize,
    out: &mut Vec<(u64, Ref)>,
) -> Result<(), ReadError> {
    present_below(store, &tree.root, tree.height, 0, from, limit, out)
}

fn present_below(
    store: &Store,
    child: &Child,
    level: u8,
    base: u64,
    from: u64,
    limit: usize,
    out: &mut Vec<(u64, Ref)>,
) -> Result<(), ReadError> {
    if level == 0 {
        return Ok(());
    }
    let Some(node) = node(store, child, kind(level))? else { return Ok(()) };
    let width = 1u64 << (BITS * (u32::from(level) - 1));
    let skip = (from.saturating_sub(base) / width).min(FAN as u64) as usize;
    match &node.body {
        Body::Pages(references) => {
            for (index, reference) in references.iter().enumerate().skip(skip) {
                if out.len() >= limit {
                    break;
                }
                out.extend(reference.some().map(|reference| (base + index as u64, reference)));
            }
        }
        Body::Inner(children) => {
            for (index, child) in children.iter().enumerate().skip(skip) {
                if out.len() >= limit {
                    break;
                }
                present_below(store, child, level - 1, base + index as u64 * width, from, limit, out)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Frees the root of a tree that nobody needs any more, and gives what is below it to be freed next.
pub(crate) fn bury(writer: &mut Writer, tree: &Tree) -> Result<Vec<Tree>, WriteError> {
    let Some(root) = writer.node(&tree.root, kind(tree.height))? else { return Ok(Vec::new()) };
    if !writer.disown(root.slot)? {
        return Ok(Vec::new());
    }
    below(writer, &root, tree.height)
}

fn below(writer: &mut Writer, root: &Arc<Node>, height: u8) -> Result<Vec<Tree>, WriteError> {
    match &root.body {
        Body::Inner(children) => {
            let children = children.iter().filter(|child| child.slot().is_some());
            Ok(children.map(|child| Tree { height: height - 1, root: child.clone() }).collect())
        }
        body => {
            for slot in slots_below(body) {
                writer.disown(slot)?;
            }
            Ok(Vec::new())
        }
    }
}

/// Calls `visit` with every node and every page reference of a tree, `unwritten` with the slots of nodes that are
/// not written yet; what cannot be read is given as error.
pub(crate) fn walk(
    store: &Store,
    tree: &Tree,
    visit: &mut dyn FnMut(Result<Ref, (u32, ReadError)>),
    unwritten: &mut dyn FnMut(u32),
) {
    let Some(slot) = tree.root.slot() else { return };
    let root = match node(store, &tree.root, kind(tree.height)) {
        Ok(Some(root)) => root,
        Ok(None) => return,
        Err(error) => return visit(Err((slot, error))),
    };
    match tree.root.stored() {
        Some(reference) => visit(Ok(reference)),
        None => unwritten(slot),
    }
    match &root.body {
        Body::Pages(references) => {
            references.iter().filter_map(|one| one.some()).for_each(|one| visit(Ok(one)))
        }
        Body::Inner(children) => {
            for child in children {
                walk(store, &Tree { height: tree.height - 1, root: child.clone() }, visit, unwritten);
            }
        }
        _ => {}
    }
}
