//! Index nodes: in RAM a tree of shared nodes, on the medium one block each.

use std::sync::{Arc, OnceLock};

use super::batch::{PAGE, Page};
use super::block::{REF, Ref};

/// Children of a radix node; references in a block.
pub(crate) const FAN: usize = PAGE / REF;

/// Most levels of a radix tree: more than any page number needs.
const MAX_HEIGHT: u8 = 9;

/// What a node is; its parent knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Lowest level of a radix tree: references to pages.
    Pages,
    /// Higher level of a radix tree.
    Inner,
    /// Lowest level of a catalog: keys and values.
    Leaf,
    /// Higher level of a catalog.
    Branch,
}

/// An index node. Reserved in a slot from the beginning, written there by a checkpoint.
pub(crate) struct Node {
    pub(crate) slot: u32,
    /// Number of checkpoints begun before it was made: it belongs to every one begun after.
    pub(crate) born: u64,
    /// Set once it is written.
    pub(crate) stored: OnceLock<Ref>,
    pub(crate) body: Body,
}

#[derive(Clone)]
pub(crate) enum Body {
    Pages(Box<[Ref; FAN]>),
    Inner(Vec<Child>),
    Leaf(Vec<(Box<[u8]>, Value)>),
    /// The key of each child is the least below it, but for the first, whose key is not looked at.
    Branch(Vec<(Box<[u8]>, Child)>),
}

/// Where a node is found.
#[derive(Clone, Default)]
pub(crate) enum Child {
    #[default]
    None,
    Stored(Ref),
    Ram(Arc<Node>),
}

/// A tree of one shape or another.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    /// Levels of nodes; 0 when empty.
    pub(crate) height: u8,
    pub(crate) root: Child,
}

/// What the catalog keeps under a key.
#[derive(Clone)]
pub(crate) enum Value {
    /// A short metadata value.
    Inline(Arc<[u8]>),
    /// A long metadata value, in pages.
    Blob { length: u64, tree: Tree },
    /// A space.
    Space { pages: u64, tree: Tree },
    /// A tree whose slots are still to be freed.
    Trash(Tree),
    /// How many owners a slot has beside the first.
    Count(u32),
}

impl Child {
    pub(crate) fn slot(&self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Stored(reference) => Some(reference.slot()),
            Self::Ram(node) => Some(node.slot),
        }
    }

    /// The reference to write into the parent; `None` while the node is not written.
    pub(crate) fn stored(&self) -> Option<Ref> {
        match self {
            Self::None => Some(Ref::NONE),
            Self::Stored(reference) => Some(*reference),
            Self::Ram(node) => node.stored.get().copied(),
        }
    }

    fn decode(reference: Ref) -> Self {
        reference.some().map_or(Self::None, Self::Stored)
    }
}

impl Body {
    pub(crate) fn empty(kind: Kind) -> Self {
        match kind {
            Kind::Pages => Self::Pages(Box::new([Ref::NONE; FAN])),
            Kind::Inner => Self::Inner(vec![Child::None; FAN]),
            Kind::Leaf => Self::Leaf(Vec::new()),
            Kind::Branch => Self::Branch(Vec::new()),
        }
    }

    /// The block; `None` while a child is not written.
    pub(crate) fn encode(&self, out: &mut Page) -> Option<()> {
        out.fill(0);
        match self {
            Self::Pages(references) => {
                let places = out.as_chunks_mut::<REF>().0;
                places.iter_mut().zip(references.iter()).for_each(|(place, one)| *place = one.encode());
            }
            Self::Inner(children) => {
                for (place, child) in out.as_chunks_mut::<REF>().0.iter_mut().zip(children) {
                    *place = child.stored()?.encode();
                }
            }
            Self::Leaf(entries) => {
                let mut bytes = Vec::with_capacity(PAGE);
                bytes.extend((entries.len() as u16).to_le_bytes());
                for (key, value) in entries {
                    encode_key(key, &mut bytes);
                    value.encode(&mut bytes)?;
                }
                out.get_mut(..bytes.len())?.copy_from_slice(&bytes);
            }
            Self::Branch(entries) => {
                let mut bytes = Vec::with_capacity(PAGE);
                bytes.extend((entries.len() as u16).to_le_bytes());
                for (key, child) in entries {
                    encode_key(key, &mut bytes);
                    bytes.extend(child.stored()?.encode());
                }
                out.get_mut(..bytes.len())?.copy_from_slice(&bytes);
            }
        }
        Some(())
    }

    fn decode(kind: Kind, block: &Page) -> Option<Self> {
        let mut fields = Fields(block);
        let references = || block.as_chunks::<REF>().0.iter().map(Ref::decode);
        Some(match kind {
            Kind::Pages => {
                let mut out = Box::new([Ref::NONE; FAN]);
                out.iter_mut().zip(references()).for_each(|(place, reference)| *place = reference);
                Self::Pages(out)
            }
            Kind::Inner => Self::Inner(references().map(Child::decode).collect()),
            Kind::Leaf => {
                let count = fields.u16()?;
                let entry = |_| {
                    let key = fields.bytes().filter(|key| !key.is_empty())?;
                    Some((key.into(), Value::decode(&mut fields)?))
                };
                Self::Leaf((0..count).map(entry).collect::<Option<_>>()?)
            }
            Kind::Branch => {
                let count = fields.u16()?;
                let entry = |_| Some((fields.bytes()?.into(), Child::decode(fields.reference()?)));
                let entries: Vec<_> = (0..count).map(entry).collect::<Option<_>>()?;
                Self::Branch(Some(entries).filter(|entries| !entries.is_empty())?)
            }
        })
    }

    /// Whether it is of this kind.
    pub(crate) fn is(&self, kind: Kind) -> bool {
        let own = match self {
            Self::Pages(_) => Kind::Pages,
            Self::Inner(_) => Kind::Inner,
            Self::Leaf(_) => Kind::Leaf,
            Self::Branch(_) => Kind::Branch,
        };
        own == kind
    }

    /// Bytes that the catalog node takes on the medium.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Pages(_) | Self::Inner(_) => PAGE,
            Self::Leaf(entries) => {
                2 + entries.iter().map(|(key, value)| 2 + key.len() + value.size()).sum::<usize>()
            }
            Self::Branch(entries) => 2 + entries.iter().map(|(key, _)| 2 + key.len() + REF).sum::<usize>(),
        }
    }
}

fn encode_key(key: &[u8], out: &mut Vec<u8>) {
    out.extend((key.len() as u16).to_le_bytes());
    out.extend(key);
}

impl Tree {
    fn encode(&self, out: &mut Vec<u8>) -> Option<()> {
        out.push(self.height);
        out.extend(self.root.stored()?.encode());
        Some(())
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let tree = Self { height: fields.u8()?, root: Child::decode(fields.reference()?) };
        let sound = tree.height <= MAX_HEIGHT && (tree.height > 0 || tree.root.slot().is_none());
        sound.then_some(tree)
    }
}

impl Value {
    fn encode(&self, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::Inline(bytes) => {
                out.push(1);
                encode_key(bytes, out);
            }
            Self::Blob { length, tree } => {
                out.push(2);
                out.extend(length.to_le_bytes());
                tree.encode(out)?;
            }
            Self::Space { pages, tree } => {
                out.push(3);
                out.extend(pages.to_le_bytes());
                tree.encode(out)?;
            }
            Self::Trash(tree) => {
                out.push(4);
                tree.encode(out)?;
            }
            Self::Count(count) => {
                out.push(5);
                out.extend(count.to_le_bytes());
            }
        }
        Some(())
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        Some(match fields.u8()? {
            1 => Self::Inline(fields.bytes()?.into()),
            2 => Self::Blob { length: fields.u64()?, tree: Tree::decode(fields)? },
            3 => Self::Space { pages: fields.u64()?, tree: Tree::decode(fields)? },
            4 => Self::Trash(Tree::decode(fields)?),
            5 => Self::Count(fields.u32()?),
            _ => return None,
        })
    }

    fn size(&self) -> usize {
        match self {
            Self::Inline(bytes) => 3 + bytes.len(),
            Self::Blob { .. } | Self::Space { .. } => 10 + REF,
            Self::Trash(_) => 2 + REF,
            Self::Count(_) => 5,
        }
    }
}

impl Node {
    /// A node as read from the medium.
    pub(crate) fn stored(reference: Ref, kind: Kind, block: &Page) -> Option<Self> {
        let body = Body::decode(kind, block)?;
        Some(Self { slot: reference.slot(), born: 0, stored: OnceLock::from(reference), body })
    }
}

/// Reads fields off the front of authenticated bytes; every reader gives `None` behind the end.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn reference(&mut self) -> Option<Ref> {
        self.array().map(|bytes| Ref::decode(&bytes))
    }

    /// A length of 16 bits and so many bytes.
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}
