//! Crash states between two fences, sorted into classes that recover alike.
//!
//! Recovery and the check after it are functions of what they read. So a recovery that was run on one crash state
//! is as good as run on every other that agrees with it on each word that was read, in the order of reading: the
//! first read is the same for all states, each next one follows from what the reads before it brought. The reads
//! make a tree: a node is a read that meets pending writes, its branches are the different words found, a leaf is
//! an outcome. A state whose way ends at a leaf is covered; any other is recovered for real and makes a new way.
//!
//! One more step: what fails its authentication is not used for anything (`heap::mutants::refused`), so all
//! contents of one read that fail it share a branch, and a read
//! that only followed from it is left out. Of a content that consists of some but not all words of a
//! write to a sealed medium, it is taken for granted that it fails: else words of two sealings would have made an
//! authentic third. Every 256th of the covered states is recovered nonetheless, to hold the tree against reality.

use crate::cuts::{Layout, State};
use crate::medium::{Read, Trial, Write};
use std::collections::BTreeMap;

const WORD: usize = 8;

/// Words of one write.
struct Span {
    /// First bit in a state.
    bit: usize,
    count: usize,
}

struct Node {
    read: (usize, usize),
    spans: Vec<Span>,
    known: BTreeMap<Box<[u64]>, Way>,
    refused: Way,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Unknown,
    Node(usize),
    Leaf(usize),
}

/// What recoveries of states between two fences came to.
pub(crate) struct Classes<'a, O> {
    durable: &'a [u8],
    writes: &'a [Write],
    pub(crate) layout: Layout,
    /// Words that change something.
    effective: State,
    /// Torn content is refused.
    sealed: bool,
    nodes: Vec<Node>,
    root: Way,
    /// What each class came to.
    pub(crate) outcomes: Vec<O>,
    key: Vec<u64>,
}

impl<'a, O: PartialEq + std::fmt::Debug> Classes<'a, O> {
    pub(crate) fn new(durable: &'a [u8], writes: &'a [Write], sealed: bool) -> Self {
        let layout = Layout::of(writes);
        let mut effective = layout.none();
        for (index, write) in writes.iter().enumerate() {
            // Where writes meet, any word may matter.
            let alone = |other: &Write| other.offset >= write.end() || other.end() <= write.offset;
            let meets = writes.iter().enumerate().any(|(at, other)| at != index && !alone(other));
            for (word, bytes) in write.bytes.chunks(WORD).enumerate() {
                if meets || durable[write.offset + word * WORD..][..bytes.len()] != *bytes {
                    layout.keep(&mut effective, index, word..word + 1);
                }
            }
        }
        Self {
            durable,
            writes,
            layout,
            effective,
            sealed,
            nodes: Vec::new(),
            root: Way::Unknown,
            outcomes: Vec::new(),
            key: Vec::new(),
        }
    }

    /// Clears the words that make no difference, so that equal states are equal media.
    pub(crate) fn normalise(&self, state: &mut State) {
        state.iter_mut().zip(&self.effective).for_each(|(words, mask)| *words &= mask);
    }

    /// Puts a state on the trial medium.
    pub(crate) fn lay_out(&self, state: &State, trial: &Trial) {
        trial.with(|trying| {
            for (write, (element, words)) in self.writes.iter().zip(&self.layout.writes) {
                let kept = |word: usize| state[element + word / 64] >> (word % 64) & 1 == 1;
                let mut word = 0;
                while word < *words {
                    let from = word;
                    while word < *words && kept(word) {
                        word += 1;
                    }
                    if word > from {
                        trying.patch(write.offset + from * WORD, &write.bytes[from * WORD..word * WORD]);
                    }
                    word += 1;
                }
            }
        });
    }

    pub(crate) fn restore(&self, trial: &Trial) {
        trial.with(|trying| trying.restore(self.durable));
    }

    /// The class of a state, if one of its states was recovered already.
    pub(crate) fn find(&mut self, state: &State) -> Option<usize> {
        let mut way = self.root;
        let mut key = std::mem::take(&mut self.key);
        loop {
            match way {
                Way::Unknown => break,
                Way::Leaf(_) => break,
                Way::Node(node) => {
                    let node = &self.nodes[node];
                    let torn = node.key(state, &self.effective, &mut key);
                    way = match node.known.get(&key[..]) {
                        Some(known) => *known,
                        None if torn && self.sealed => node.refused,
                        None => Way::Unknown,
                    };
                }
            }
        }
        self.key = key;
        if let Way::Leaf(class) = way { Some(class) } else { None }
    }

    /// Takes in what a recovery read and came to. The error says that states of one class differ, or that
    /// recovery is no function of what it reads.
    pub(crate) fn learn(&mut self, state: &State, reads: &[Read], outcome: O) -> Result<usize, String> {
        // Where the way so far ends: the root, or a branch of a node.
        let mut way = self.root;
        let mut last: Option<(usize, Option<Box<[u64]>>)> = None;
        let mut seen: Vec<(usize, usize)> = Vec::new();
        // Where a read begins that only followed from one that was refused.
        let mut void = None;
        for read in reads {
            let range = (read.offset, read.length);
            if seen.contains(&range) || void.take() == Some(read.offset) {
                continue;
            }
            let spans = self.spans(read);
            if spans.is_empty() {
                continue;
            }
            if !read.refused {
                seen.push(range);
            }
            let node = match way {
                Way::Leaf(_) => return Err(format!("one recovery ended where another read {range:?}")),
                Way::Node(node) if self.nodes[node].read != range => {
                    let other = self.nodes[node].read;
                    return Err(format!("after equal reads one recovery read {other:?}, another {range:?}"));
                }
                Way::Node(node) => node,
                Way::Unknown => {
                    let refused = Way::Unknown;
                    self.nodes.push(Node { read: range, spans, known: BTreeMap::new(), refused });
                    self.set(&last, Way::Node(self.nodes.len() - 1));
                    self.nodes.len() - 1
                }
            };
            let mut key = Vec::new();
            let torn = self.nodes[node].key(state, &self.effective, &mut key);
            if torn && read.refused && self.sealed {
                way = self.nodes[node].refused;
                last = Some((node, None));
                void = read.led.then_some(read.offset + read.length);
            } else {
                let key = key.into_boxed_slice();
                way = self.nodes[node].known.get(&key).copied().unwrap_or(Way::Unknown);
                last = Some((node, Some(key)));
            }
        }
        match way {
            Way::Leaf(class) if self.outcomes[class] == outcome => Ok(class),
            Way::Leaf(class) => {
                let other = &self.outcomes[class];
                Err(format!("states of one class came to different ends: {other:?} and {outcome:?}"))
            }
            Way::Node(node) => {
                let read = self.nodes[node].read;
                Err(format!("one recovery ended where another read {read:?}"))
            }
            Way::Unknown => {
                self.outcomes.push(outcome);
                self.set(&last, Way::Leaf(self.outcomes.len() - 1));
                Ok(self.outcomes.len() - 1)
            }
        }
    }

    fn set(&mut self, place: &Option<(usize, Option<Box<[u64]>>)>, way: Way) {
        match place {
            None => self.root = way,
            Some((node, None)) => self.nodes[*node].refused = way,
            Some((node, Some(key))) => drop(self.nodes[*node].known.insert(key.clone(), way)),
        }
    }

    /// The words of pending writes that a read met.
    fn spans(&self, read: &Read) -> Vec<Span> {
        let mut spans = Vec::new();
        let end = read.offset + read.length;
        for (write, (element, _)) in self.writes.iter().zip(&self.layout.writes) {
            let (from, to) = (read.offset.max(write.offset), end.min(write.end()));
            if from < to {
                let first = (from - write.offset) / WORD;
                let count = (to - write.offset).div_ceil(WORD) - first;
                spans.push(Span { bit: element * 64 + first, count });
            }
        }
        spans
    }
}

impl Node {
    /// The words of a state that this read meets; whether they are a part of some write only.
    fn key(&self, state: &State, effective: &State, key: &mut Vec<u64>) -> bool {
        key.clear();
        let mut torn = false;
        for span in &self.spans {
            let (mut none, mut all) = (true, true);
            let (mut bit, mut left) = (span.bit, span.count);
            while left > 0 {
                let count = left.min(64);
                let (words, mask) = (bits(state, bit, count), bits(effective, bit, count));
                none &= words == 0;
                all &= words == mask;
                key.push(words);
                (bit, left) = (bit + count, left - count);
            }
            torn |= !none && !all;
        }
        torn
    }
}

/// Up to 64 bits of a state.
fn bits(state: &State, bit: usize, count: usize) -> u64 {
    let (index, shift) = (bit / 64, bit % 64);
    let mut bits = state[index] >> shift;
    if shift > 0 && shift + count > 64 {
        bits |= state[index + 1] << (64 - shift);
    }
    bits & (u64::MAX >> (64 - count))
}
