//! The hash tree of the Interface Specification ("Certification"): labelled trees with a root hash, and
//! pruned copies (*witnesses*) that prove single values, or their absence, against that hash.
//!
//! The labels of one level form a binary radix tree: a fork splits its labels at the first bit in which they
//! differ. Its shape depends on the labels alone, never on the order of changes. Trees are immutable and
//! share structure, so a change costs the depth of the tree, and a snapshot costs nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use serde::{Serialize, Serializer};
use serde_bytes::Bytes;

use crate::encoding::leb128;

/// SHA-256, 32 bytes.
pub type Digest = [u8; 32];

/// A value or a level of labels.
#[derive(Debug, Clone)]
pub enum Tree {
    /// A value.
    Leaf(Arc<[u8]>),
    /// Labelled subtrees.
    Labels(Labels),
}

/// Labelled subtrees, in lexicographic order of their labels.
#[derive(Debug, Clone, Default)]
pub struct Labels(Option<Arc<Node>>);

#[derive(Debug)]
struct Node {
    digest: Digest,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Label(Box<[u8]>, Tree),
    /// All labels on the left have a 0 where those on the right have a 1: at this bit (see [`bit`]).
    Fork(usize, Arc<Node>, Arc<Node>),
}

impl Tree {
    /// A value.
    pub fn leaf(value: impl AsRef<[u8]>) -> Self {
        Self::Leaf(value.as_ref().into())
    }

    /// A natural number as the state tree holds it: LEB128.
    pub fn nat(value: u64) -> Self {
        Self::leaf(leb128(value))
    }

    /// Root hash.
    pub fn digest(&self) -> Digest {
        match self {
            Self::Leaf(value) => hash("ic-hashtree-leaf", &[value]),
            Self::Labels(labels) => labels.digest(),
        }
    }

    /// A copy that keeps what is selected and replaces the rest by hashes.
    pub fn witness(&self, selection: &Selection) -> Witness {
        match self {
            // A leaf also proves that nothing lies below it.
            Self::Leaf(value) => Witness::Leaf(value.clone()),
            Self::Labels(labels) => labels.witness(selection),
        }
    }
}

impl From<Labels> for Tree {
    fn from(labels: Labels) -> Self {
        Self::Labels(labels)
    }
}

impl<L: AsRef<[u8]>, T: Into<Tree>> FromIterator<(L, T)> for Labels {
    fn from_iter<I: IntoIterator<Item = (L, T)>>(iter: I) -> Self {
        iter.into_iter()
            .fold(Self::default(), |labels, (label, tree)| labels.with(label.as_ref(), tree.into()))
    }
}

impl Labels {
    /// Root hash.
    pub fn digest(&self) -> Digest {
        self.0.as_ref().map_or_else(|| hash("ic-hashtree-empty", &[]), |node| node.digest)
    }

    /// The subtree with this label.
    pub fn get(&self, label: &[u8]) -> Option<&Tree> {
        let (found, tree) = closest(self.0.as_ref()?, label);
        (found == label).then_some(tree)
    }

    /// These labels with one set.
    #[must_use]
    pub fn with(&self, label: &[u8], tree: Tree) -> Self {
        let node = match &self.0 {
            None => Node::label(label, tree),
            Some(root) => put(root, label, tree, difference(label, closest(root, label).0)),
        };
        Self(Some(node))
    }

    /// These labels without one.
    #[must_use]
    pub fn without(&self, label: &[u8]) -> Self {
        match &self.0 {
            Some(root) if closest(root, label).0 == label => Self(remove(root, label)),
            _ => self.clone(),
        }
    }

    fn witness(&self, selection: &Selection) -> Witness {
        let Some(root) = &self.0 else { return Witness::Empty };
        if selection.everything {
            return everything(root);
        }
        // Labels to show: the wanted ones, and around an absent one its neighbours, which prove the absence.
        let mut shown = BTreeMap::new();
        for (label, below) in &selection.labels {
            if self.get(label).is_some() {
                shown.insert(label.as_slice(), Some(below));
            } else {
                for neighbour in neighbours(root, label).into_iter().flatten() {
                    shown.entry(neighbour).or_insert(None);
                }
            }
        }
        let shown: Vec<_> = shown.into_iter().collect();
        show(root, &shown)
    }
}

impl Node {
    fn label(label: &[u8], tree: Tree) -> Arc<Self> {
        let digest = hash("ic-hashtree-labeled", &[label, &tree.digest()]);
        Arc::new(Self { digest, kind: Kind::Label(label.into(), tree) })
    }

    fn fork(bit: usize, left: Arc<Self>, right: Arc<Self>) -> Arc<Self> {
        let digest = hash("ic-hashtree-fork", &[&left.digest, &right.digest]);
        Arc::new(Self { digest, kind: Kind::Fork(bit, left, right) })
    }
}

/// Which parts of a tree a witness must reveal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    everything: bool,
    labels: BTreeMap<Vec<u8>, Selection>,
}

impl Selection {
    /// Everything at and below each of the paths.
    pub fn of<P, L>(paths: impl IntoIterator<Item = P>) -> Self
    where
        P: IntoIterator<Item = L>,
        L: AsRef<[u8]>,
    {
        let mut root = Self::default();
        for path in paths {
            root.add(path);
        }
        root
    }

    /// Adds everything at and below one more path.
    pub fn add<L: AsRef<[u8]>>(&mut self, path: impl IntoIterator<Item = L>) {
        let mut at = self;
        for label in path {
            at = at.labels.entry(label.as_ref().to_vec()).or_default();
        }
        at.everything = true;
    }
}

/// A pruned tree; serializes as the specification's CBOR arrays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Witness {
    /// No labels.
    Empty,
    /// Two parts of one level.
    Fork(Box<Witness>, Box<Witness>),
    /// A labelled subtree.
    Labeled(Box<[u8]>, Box<Witness>),
    /// A value.
    Leaf(Arc<[u8]>),
    /// Hash of what was left out.
    Pruned(Digest),
}

impl Serialize for Witness {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Empty => (0u8,).serialize(serializer),
            Self::Fork(left, right) => (1u8, left, right).serialize(serializer),
            Self::Labeled(label, tree) => (2u8, Bytes::new(label), tree).serialize(serializer),
            Self::Leaf(value) => (3u8, Bytes::new(value)).serialize(serializer),
            Self::Pruned(digest) => (4u8, Bytes::new(digest)).serialize(serializer),
        }
    }
}

fn hash(domain: &str, parts: &[&[u8]]) -> Digest {
    let mut context = Context::new(&SHA256);
    // Every domain here is shorter than 256 bytes.
    context.update(&[domain.len() as u8]);
    context.update(domain.as_bytes());
    for part in parts {
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// Bit `at` of a label. Each byte counts nine bits, a 1 and then its own eight, and zeros follow the last
/// byte: so a label sorts before every longer one that it begins.
fn bit(label: &[u8], at: usize) -> bool {
    match (label.get(at / 9), at % 9) {
        (None, _) => false,
        (Some(_), 0) => true,
        (Some(byte), n) => byte >> (8 - n) & 1 == 1,
    }
}

/// First bit in which two labels differ.
fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    match (a.get(same), b.get(same)) {
        (None, None) => None,
        (Some(a), Some(b)) => Some(same * 9 + 1 + (a ^ b).leading_zeros() as usize),
        _ => Some(same * 9),
    }
}

/// The label that agrees with `label` at every fork on its way.
fn closest<'a>(mut node: &'a Arc<Node>, label: &[u8]) -> (&'a [u8], &'a Tree) {
    loop {
        match &node.kind {
            Kind::Label(found, tree) => return (found, tree),
            Kind::Fork(at, left, right) => node = if bit(label, *at) { right } else { left },
        }
    }
}

/// Sets `label` below `node`; `split` is where it differs from its closest label, none if it is there.
fn put(node: &Arc<Node>, label: &[u8], tree: Tree, split: Option<usize>) -> Arc<Node> {
    match (&node.kind, split) {
        (Kind::Fork(at, left, right), split) if split.is_none_or(|split| *at < split) => {
            if bit(label, *at) {
                Node::fork(*at, left.clone(), put(right, label, tree, split))
            } else {
                Node::fork(*at, put(left, label, tree, split), right.clone())
            }
        }
        (_, None) => Node::label(label, tree),
        (_, Some(split)) => {
            let new = Node::label(label, tree);
            if bit(label, split) {
                Node::fork(split, node.clone(), new)
            } else {
                Node::fork(split, new, node.clone())
            }
        }
    }
}

/// Removes `label`, which is there.
fn remove(node: &Arc<Node>, label: &[u8]) -> Option<Arc<Node>> {
    let Kind::Fork(at, left, right) = &node.kind else { return None };
    Some(if bit(label, *at) {
        match remove(right, label) {
            Some(right) => Node::fork(*at, left.clone(), right),
            None => left.clone(),
        }
    } else {
        match remove(left, label) {
            Some(left) => Node::fork(*at, left, right.clone()),
            None => right.clone(),
        }
    })
}

/// The labels right before and right after `label`, which is not there itself.
fn neighbours<'a>(root: &'a Arc<Node>, label: &[u8]) -> [Option<&'a [u8]>; 2] {
    let Some(split) = difference(label, closest(root, label).0) else { return [None, None] };
    let (mut node, mut before, mut after) = (root, None, None);
    while let Kind::Fork(at, left, right) = &node.kind {
        if *at > split {
            break;
        }
        if bit(label, *at) {
            (before, node) = (Some(left), right);
        } else {
            (after, node) = (Some(right), left);
        }
    }
    // All labels below `node` agree with each other up to the bit in which `label` differs from them.
    if bit(label, split) {
        before = Some(node);
    } else {
        after = Some(node);
    }
    [before.map(|node| end(node, true)), after.map(|node| end(node, false))]
}

/// The last or the first label.
fn end(mut node: &Arc<Node>, last: bool) -> &[u8] {
    loop {
        match &node.kind {
            Kind::Label(label, _) => return label,
            Kind::Fork(_, left, right) => node = if last { right } else { left },
        }
    }
}

fn everything(node: &Arc<Node>) -> Witness {
    match &node.kind {
        Kind::Label(label, tree) => {
            let all = Selection { everything: true, labels: BTreeMap::new() };
            Witness::Labeled(label.clone(), Box::new(tree.witness(&all)))
        }
        Kind::Fork(_, left, right) => Witness::Fork(Box::new(everything(left)), Box::new(everything(right))),
    }
}

/// Shows the labels in `shown`, which are all there, with what is selected below each.
fn show(node: &Arc<Node>, shown: &[(&[u8], Option<&Selection>)]) -> Witness {
    let Some(((_, below), _)) = shown.split_first() else { return Witness::Pruned(node.digest) };
    match &node.kind {
        Kind::Label(label, tree) => {
            let tree = match below {
                Some(selection) => tree.witness(selection),
                None => Witness::Pruned(tree.digest()),
            };
            Witness::Labeled(label.clone(), Box::new(tree))
        }
        Kind::Fork(at, left, right) => {
            let (on_left, on_right) = shown.split_at(shown.partition_point(|(label, _)| !bit(label, *at)));
            Witness::Fork(Box::new(show(left, on_left)), Box::new(show(right, on_right)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ic_certification::{HashTree, LookupResult, empty, fork, label, leaf, pruned};
    use proptest::prelude::*;

    fn decoded(witness: &Witness) -> HashTree {
        match witness {
            Witness::Empty => empty(),
            Witness::Fork(left, right) => fork(decoded(left), decoded(right)),
            Witness::Labeled(name, tree) => label(name.to_vec(), decoded(tree)),
            Witness::Leaf(value) => leaf(value.to_vec()),
            Witness::Pruned(digest) => pruned(*digest),
        }
    }

    fn example() -> Labels {
        let a: Labels = [("x", Tree::leaf("hello")), ("y", Tree::leaf("world"))].into_iter().collect();
        [
            ("a", a.into()),
            ("b", Tree::leaf("good")),
            ("c", Labels::default().into()),
            ("d", Tree::leaf("morning")),
        ]
        .into_iter()
        .collect()
    }

    /// The oracle's lookups on a witness of ours must agree with the map that the tree was made from.
    fn check(model: &BTreeMap<Vec<u8>, Vec<u8>>, wanted: &[Vec<u8>]) {
        let tree: Labels = model.iter().map(|(label, value)| (label, Tree::leaf(value))).collect();
        let witness = tree.witness(&Selection::of(wanted.iter().map(|label| [label])));
        let oracle = decoded(&witness);
        assert_eq!(oracle.digest(), tree.digest());
        for name in wanted {
            match (model.get(name), oracle.lookup_path([name])) {
                (Some(value), LookupResult::Found(found)) => assert_eq!(found, value.as_slice()),
                (None, LookupResult::Absent) => {}
                (expected, got) => panic!("{name:?}: expected {expected:?}, got {got:?}"),
            }
        }
    }

    #[test]
    fn paths_of_the_specifications_example() {
        let tree = Tree::from(example());
        let witness = tree.witness(&Selection::of([vec!["a", "y"], vec!["ax"], vec!["d"]]));
        let oracle = decoded(&witness);
        assert_eq!(oracle.digest(), tree.digest());
        assert_eq!(oracle.lookup_path(["a", "a"]), LookupResult::Unknown);
        assert_eq!(oracle.lookup_path(["a", "y"]), LookupResult::Found(b"world"));
        assert_eq!(oracle.lookup_path(["aa"]), LookupResult::Absent);
        assert_eq!(oracle.lookup_path(["ax"]), LookupResult::Absent);
        assert_eq!(oracle.lookup_path(["b"]), LookupResult::Unknown);
        assert_eq!(oracle.lookup_path(["bb"]), LookupResult::Unknown);
        assert_eq!(oracle.lookup_path(["d"]), LookupResult::Found(b"morning"));
        assert_eq!(oracle.lookup_path(["e"]), LookupResult::Absent);
    }

    #[test]
    fn encoded_as_in_the_specifications_example() {
        let digest = |hex: &str| Witness::Pruned(hex::decode(hex).unwrap().try_into().unwrap());
        let fork = |left, right| Witness::Fork(Box::new(left), Box::new(right));
        let label = |name: &str, tree| Witness::Labeled(name.as_bytes().into(), Box::new(tree));
        let leaf = |value: &str| Witness::Leaf(value.as_bytes().into());
        let a = fork(
            digest("1b4feff9bef8131788b0c9dc6dbad6e81e524249c879e9f10f71ce3749f5a638"),
            label("y", leaf("world")),
        );
        let b = digest("7b32ac0c6ba8ce35ac82c255fc7906f7fc130dab2a090f80fe12f9c2cae83ba6");
        let c = digest("ec8324b8a1f1ac16bd2e806edba78006479c9877fed4eb464a25485465af601d");
        let witness = fork(fork(label("a", a), label("b", b)), fork(c, label("d", leaf("morning"))));
        let mut cbor = Vec::new();
        ciborium::into_writer(&witness, &mut cbor).unwrap();
        let expected = "83018301830241618301820458201b4feff9bef8131788b0c9dc6dbad6e81e524249c879e9f10f71ce3749f5a638\
                        83024179820345776f726c6483024162820458207b32ac0c6ba8ce35ac82c255fc7906f7fc130dab2a090f80fe12f9\
                        c2cae83ba6830182045820ec8324b8a1f1ac16bd2e806edba78006479c9877fed4eb464a25485465af601d83024164\
                        8203476d6f726e696e67";
        assert_eq!(hex::encode(cbor), expected);
    }

    #[test]
    fn a_witness_reveals_nothing_that_was_not_selected() {
        let witness = example().witness(&Selection::of([["b"]]));
        let mut cbor = Vec::new();
        ciborium::into_writer(&witness, &mut cbor).unwrap();
        for hidden in ["hello", "world", "morning"] {
            assert!(!cbor.windows(hidden.len()).any(|window| window == hidden.as_bytes()));
        }
    }

    proptest! {
        #[test]
        fn lookups_agree_with_the_oracle(
            model in proptest::collection::btree_map(proptest::collection::vec(0u8..4, 0..5), any::<Vec<u8>>(), 0..40),
            wanted in proptest::collection::vec(proptest::collection::vec(0u8..4, 0..5), 1..10),
        ) {
            check(&model, &wanted);
        }

        #[test]
        fn the_shape_does_not_depend_on_history(
            changes in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..4), any::<Option<u8>>()), 0..60),
        ) {
            let (mut tree, mut model) = (Labels::default(), BTreeMap::new());
            for (label, value) in changes {
                tree = match value {
                    Some(value) => {
                        model.insert(label.clone(), value);
                        tree.with(&label, Tree::leaf([value]))
                    }
                    None => {
                        model.remove(&label);
                        tree.without(&label)
                    }
                };
            }
            let fresh: Labels = model.iter().map(|(label, value)| (label, Tree::leaf([*value]))).collect();
            prop_assert_eq!(tree.digest(), fresh.digest());
            for (label, value) in &model {
                prop_assert!(matches!(tree.get(label), Some(Tree::Leaf(found)) if **found == [*value]));
            }
        }
    }
}
