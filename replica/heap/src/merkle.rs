//! The Merkle root of a committed state, kept up to date beside the heap.
//!
//! Nothing of it is done by a commit: whoever wants the root at some height gives [`Merkle::update`] the snapshot of
//! that height, on any thread, and pays for what changed since the last one.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;

use blake3::IncrementCounter;
use blake3::platform::{Platform, words_from_le_bytes_32};

use super::batch::{PAGE, Page, SpaceId};
use super::block::Ref;
use super::error::ReadError;
use super::recent::Mix;
use super::record::Meta;
use super::snapshot::Snapshot;

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

/// Stands for a page or a subtree that is all zeros.
const NONE: Hash = [0; 32];
/// Few enough that scattered pages cost little above them, many enough that dense ones do.
const FAN: usize = 16;
/// Bytes of a node.
const NODE: usize = FAN * size_of::<Hash>();
/// Levels of nodes above the pages: enough for the longest space.
const LEVELS: usize = 9;

/// Hashes of all pages and values of a snapshot, and the root over them: 64 bytes for each page that is not zeros.
///
/// Defined in `docs/HEAP.md`. The root depends on content alone: two heaps with equal spaces and metadata have
/// equal roots, whatever their media, keys and histories.
pub struct Merkle {
    epoch: Option<u64>,
    spaces: BTreeMap<u64, Space>,
    values: BTreeMap<Vec<u8>, Value>,
    root: Hash,
    keys: Keys,
}

/// Keys that tell the kinds of nodes apart.
struct Keys {
    levels: [Hash; LEVELS],
    root: Hash,
}

#[derive(Default)]
struct Space {
    pages: u64,
    lowest: Nodes<Lowest>,
    upper: [Nodes<Node>; LEVELS - 1],
    root: Hash,
}

type Node = [Hash; FAN];
/// Nodes of a level, by number.
type Nodes<T> = HashMap<u64, Box<T>, BuildHasherDefault<Mix>>;

/// Pages of a lowest node: what they were hashed from, and the hashes.
#[derive(Default)]
struct Lowest {
    references: [Ref; FAN],
    hashes: Node,
}

struct Value {
    meta: Meta,
    length: u64,
    hash: Hash,
}

impl Default for Merkle {
    fn default() -> Self {
        let key = |name: &str, level: u8| blake3::derive_key(name, &[level]);
        let levels = std::array::from_fn(|level| key("redoubt heap merkle node", level as u8));
        let keys = Keys { levels, root: key("redoubt heap merkle root", 0) };
        Self { epoch: None, spaces: BTreeMap::new(), values: BTreeMap::new(), root: NONE, keys }
    }
}

impl Merkle {
    /// Nothing hashed yet: the first update hashes everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// The root at the last update.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// Hashes what changed since the last update, and gives the root of the snapshot. After an error the next
    /// update hashes everything again.
    pub fn update(&mut self, snapshot: &Snapshot) -> Result<Hash, ReadError> {
        self.update_from(snapshot, |_, _| None)
    }

    /// The same; `content` may give pages that the caller holds in RAM as the snapshot has them, which saves
    /// reading them from the medium. Whoever gives other content gets another root.
    pub fn update_from<'a>(
        &mut self,
        snapshot: &Snapshot,
        content: impl Fn(SpaceId, u64) -> Option<&'a Page>,
    ) -> Result<Hash, ReadError> {
        let since = self.epoch.take();
        if since.is_none() {
            // An update that failed may have hashed pages and not what lies above them.
            self.spaces.clear();
        }
        let known = since.and_then(|since| snapshot.changes_since(since));
        let lengths: BTreeMap<u64, u64> =
            snapshot.spaces()?.into_iter().map(|(space, pages)| (space.0, pages)).collect();
        self.spaces.retain(|space, _| lengths.contains_key(space));
        for (number, pages) in &lengths {
            let known = match &known {
                Some(changes) if self.spaces.contains_key(number) => changes.of(*number),
                _ => None,
            };
            let space = self.spaces.entry(*number).or_default();
            space.pages = *pages;
            let changed = match known {
                Some(pages) => snapshot.locate_all(*number, pages)?,
                None => space.compare(&snapshot.present(*number, 0, usize::MAX)?),
            };
            space.set(&self.keys, &changed, |page, reference, into| {
                match content(SpaceId(*number), page) {
                    Some(content) => Ok(blake3::hash(content)),
                    None => snapshot.read(reference, into).map(|()| blake3::hash(into)),
                }
            })?;
        }
        self.update_values(snapshot)?;
        self.root = self.compute();
        self.epoch = Some(snapshot.epoch());
        Ok(self.root)
    }

    fn update_values(&mut self, snapshot: &Snapshot) -> Result<(), ReadError> {
        let mut old = std::mem::take(&mut self.values);
        for (key, meta) in snapshot.metas()? {
            let value = match old.remove(&key) {
                Some(value) if value.meta == meta => value,
                _ => {
                    let bytes = snapshot.value(meta.clone())?;
                    Value { meta, length: bytes.len() as u64, hash: *blake3::hash(&bytes).as_bytes() }
                }
            };
            self.values.insert(key, value);
        }
        Ok(())
    }

    fn compute(&self) -> Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.keys.root);
        hasher.update(&(self.spaces.len() as u64).to_le_bytes());
        for (number, space) in &self.spaces {
            hasher.update(&number.to_le_bytes());
            hasher.update(&space.pages.to_le_bytes());
            hasher.update(&space.root);
        }
        for (key, value) in &self.values {
            hasher.update(&(key.len() as u64).to_le_bytes());
            hasher.update(key);
            hasher.update(&value.length.to_le_bytes());
            hasher.update(&value.hash);
        }
        *hasher.finalize().as_bytes()
    }
}

impl Space {
    /// Pages that differ from what was hashed.
    fn compare(&self, present: &BTreeMap<u64, Ref>) -> Vec<(u64, Ref)> {
        let hashed = |page: u64| {
            let lowest = self.lowest.get(&(page / FAN as u64))?;
            lowest.references[page as usize % FAN].some()
        };
        let changed = present.iter().filter(|(page, reference)| hashed(**page) != Some(**reference));
        let mut changed: Vec<(u64, Ref)> = changed.map(|(page, reference)| (*page, *reference)).collect();
        for (group, lowest) in &self.lowest {
            let pages = (group * FAN as u64..).zip(lowest.references.iter());
            let gone = pages.filter(|(page, reference)| !reference.is_none() && !present.contains_key(page));
            changed.extend(gone.map(|(page, _)| (page, Ref::NONE)));
        }
        changed.sort_unstable_by_key(|(page, _)| *page);
        changed
    }

    /// Takes changed pages, ascending, and hashes them and what lies above them.
    fn set(
        &mut self,
        keys: &Keys,
        changed: &[(u64, Ref)],
        hash: impl Fn(u64, &Ref, &mut Page) -> Result<blake3::Hash, ReadError>,
    ) -> Result<(), ReadError> {
        let mut block = [0; PAGE];
        let mut groups = Vec::new();
        for near in changed.chunk_by(|(one, _), (other, _)| one / FAN as u64 == other / FAN as u64) {
            let Some(group) = near.first().map(|(page, _)| page / FAN as u64) else { continue };
            let lowest = self.lowest.entry(group).or_default();
            for (page, reference) in near {
                let at = *page as usize % FAN;
                if lowest.references[at] == *reference {
                    continue;
                }
                lowest.hashes[at] = match reference.is_none() {
                    true => NONE,
                    false => *hash(*page, reference, &mut block)?.as_bytes(),
                };
                lowest.references[at] = *reference;
            }
            groups.push(group);
        }
        let mut above = hash_nodes(&keys.levels[0], &groups, &mut self.lowest, |lowest| &lowest.hashes);
        for (nodes, key) in self.upper.iter_mut().zip(&keys.levels[1..]) {
            groups.clear();
            for near in above.chunk_by(|(one, _), (other, _)| one / FAN as u64 == other / FAN as u64) {
                let Some(group) = near.first().map(|(below, _)| below / FAN as u64) else { continue };
                let node = nodes.entry(group).or_insert_with(|| Box::new([NONE; FAN]));
                near.iter().for_each(|(below, hash)| node[*below as usize % FAN] = *hash);
                groups.push(group);
            }
            above = hash_nodes(key, &groups, nodes, |node| node);
        }
        self.root = above.first().map_or(self.root, |(_, hash)| *hash);
        Ok(())
    }
}

/// Hashes nodes of one level, several at a time; those that became all zeros are dropped.
fn hash_nodes<T>(
    key: &Hash,
    groups: &[u64],
    nodes: &mut Nodes<T>,
    node_of: impl Fn(&T) -> &Node,
) -> Vec<(u64, Hash)> {
    let of: Vec<&Node> =
        groups.iter().filter_map(|group| nodes.get(group)).map(|node| node_of(node)).collect();
    let hashes = node_hashes(key, &of);
    let hashes: Vec<(u64, Hash)> = groups.iter().copied().zip(hashes).collect();
    for (group, _) in hashes.iter().filter(|(_, hash)| *hash == NONE) {
        nodes.remove(group);
    }
    hashes
}

/// `blake3::keyed_hash` of each node, or [`NONE`]. Called for each it would hash one block after the other: within one
/// chunk of 1024 bytes BLAKE3 has nothing to do at the same time, but different nodes are independent.
fn node_hashes(key: &Hash, nodes: &[&Node]) -> Vec<Hash> {
    // The BLAKE3 paper, section 2.2.
    let [chunk_start, chunk_end, root, keyed_hash] = [1, 1 << 1, 1 << 3, 1 << 4];
    let inputs = nodes.iter().flat_map(|node| node.as_flattened().as_chunks::<NODE>().0);
    let inputs: Vec<&[u8; NODE]> = inputs.collect();
    let mut hashes = vec![NONE; inputs.len()];
    Platform::detect().hash_many(
        &inputs,
        &words_from_le_bytes_32(key),
        0,
        IncrementCounter::No,
        keyed_hash,
        chunk_start,
        chunk_end | root,
        hashes.as_flattened_mut(),
    );
    for (hash, node) in hashes.iter_mut().zip(nodes) {
        if node.iter().all(|hash| *hash == NONE) {
            *hash = NONE;
        }
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_hashed_together_have_the_hashes_of_each() {
        let key = [7; 32];
        let nodes: Vec<Node> =
            (0..37).map(|number: u8| std::array::from_fn(|at| [number ^ at as u8; 32])).collect();
        for count in 0..nodes.len() {
            let some: Vec<&Node> = nodes[..count].iter().chain([&[NONE; FAN]]).collect();
            let hashes = node_hashes(&key, &some);
            assert_eq!(hashes.len(), count + 1);
            assert_eq!(hashes[count], NONE);
            for (hash, node) in hashes.iter().zip(&nodes[..count]) {
                assert_eq!(hash, blake3::keyed_hash(&key, node.as_flattened()).as_bytes());
            }
        }
    }
}
