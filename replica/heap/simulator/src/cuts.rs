//! Crash states: which 8-byte words of the pending writes reached the medium.

use crate::history::Random;
use crate::medium::Write;

const WORD: usize = 8;

/// A set of words of pending writes, one bit each; every write begins at a new element.
pub(crate) type State = Vec<u64>;

/// Where the words of each write stand in a [`State`].
#[derive(Clone, Default)]
pub(crate) struct Layout {
    /// First element and number of words of each write.
    pub(crate) writes: Vec<(usize, usize)>,
    elements: usize,
}

impl Layout {
    pub(crate) fn of(writes: &[Write]) -> Self {
        let mut layout = Self::default();
        for write in writes {
            let words = write.bytes.len() / WORD;
            layout.writes.push((layout.elements, words));
            layout.elements += words.div_ceil(64);
        }
        layout
    }

    /// Nothing arrived.
    pub(crate) fn none(&self) -> State {
        vec![0; self.elements]
    }

    /// Adds words of a write to a state.
    pub(crate) fn keep(&self, state: &mut State, write: usize, words: std::ops::Range<usize>) {
        let (element, _) = self.writes[write];
        let mut at = words.start;
        while at < words.end {
            let (index, bit) = (at / 64, at % 64);
            let count = (64 - bit).min(words.end - at);
            state[element + index] |= (u64::MAX >> (64 - count)) << bit;
            at += count;
        }
    }
}

/// How many states are drawn for each moment at which something was just written.
pub(crate) const DRAWS: u64 = 64;

/// The `draw`th state after the first `count` writes. The last of them takes part in it, so that it differs from
/// all states of earlier moments.
pub(crate) fn draw(layout: &Layout, writes: &[Write], count: usize, draw: u64, random: &mut Random) -> State {
    let mut state = layout.none();
    let Some(newest) = count.checked_sub(1) else { return state };
    let whole = |state: &mut State, write: usize| layout.keep(state, write, 0..layout.writes[write].1);
    // All subsets of the last writes, each write whole or lost.
    let subsets = 1 << newest.min(4);
    if draw < subsets {
        whole(&mut state, newest);
        for write in 0..newest {
            let back = newest - 1 - write;
            if if back < 4 { draw >> back & 1 == 0 } else { draw & 1 == 0 || random.below(2) == 0 } {
                whole(&mut state, write);
            }
        }
        return state;
    }
    let frames: Vec<usize> = (0..count).filter(|at| writes[*at].bytes.starts_with(b"RHL")).collect();
    let mode = random.below(10);
    let victim = match random.below(4) {
        0 => newest,
        1 => frames.last().copied().unwrap_or(newest),
        _ if mode >= 8 => frames.first().copied().unwrap_or(newest),
        2 => frames.first().copied().unwrap_or(newest),
        _ => random.below(count as u64) as usize,
    };
    // A word of a frame's header may complete what an earlier crash left at the same place.
    let header = random.below(4) as usize;
    let style = random.below(STYLES);
    for write in 0..count {
        let torn = |state: &mut State, style, random: &mut Random| tear(layout, state, write, style, random);
        match mode {
            // Everything but the victim; nothing but the victim.
            0 | 1 if write != victim => whole(&mut state, write),
            2 if write != victim => {}
            // In the order of writing, up to the victim.
            3 | 4 if write < victim => whole(&mut state, write),
            3 | 4 if write > victim => {}
            8 if write == victim => layout.keep(&mut state, write, header..header + 1),
            9 if write == victim => {
                layout.keep(&mut state, write, 0..header);
                layout.keep(&mut state, write, header + 1..layout.writes[write].1);
            }
            8 => {}
            9 => whole(&mut state, write),
            // Each write as it comes.
            5 | 6 if write != victim => match random.below(4) {
                0 => {}
                1 => torn(&mut state, random.below(STYLES), random),
                _ => whole(&mut state, write),
            },
            _ => torn(&mut state, style, random),
        }
    }
    state
}

const STYLES: u64 = 9;

/// Adds a part of a write.
fn tear(layout: &Layout, state: &mut State, write: usize, style: u64, random: &mut Random) {
    let words = layout.writes[write].1;
    let below = |random: &mut Random, bound: usize| random.below(bound.max(1) as u64) as usize;
    // Mostly of the first ones, where headers are.
    let among = [4, 8, 16, words][below(random, 4)].min(words);
    let word = below(random, among);
    match style {
        0 => {}
        1 => layout.keep(state, write, 0..below(random, words + 1)),
        2 => layout.keep(state, write, below(random, words + 1)..words),
        3 => layout.keep(state, write, 0..words / 2),
        4 | 5 => {
            layout.keep(state, write, 0..word);
            layout.keep(state, write, word + 1..words);
        }
        6 => layout.keep(state, write, word..word + 1),
        // Runs of words, long or short.
        _ => {
            let longest = 1 << random.below(8);
            let mut at = 0;
            while at < words {
                let end = (at + 1 + random.below(longest) as usize).min(words);
                if random.below(2) == 0 {
                    layout.keep(state, write, at..end);
                }
                at = end;
            }
        }
    }
}
