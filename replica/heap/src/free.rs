//! A set of free slots that gives them out in ascending order, around and around: pages that are written one after the
//! other lie near each other, which spares the processor walks through its page tables.

const BITS: usize = u64::BITS as usize;

/// One bit for each slot, and one for each word of these. Memory that no free slot ever lay in is not touched.
pub(crate) struct Free {
    words: Vec<u64>,
    /// Which words are not zero.
    summary: Vec<u64>,
    count: u64,
    /// Word that the next slot is looked for in first.
    cursor: usize,
}

impl Free {
    /// Room for slots up to this one.
    pub(crate) fn new(last: u32) -> Self {
        let words = last as usize / BITS + 1;
        Self { words: vec![0; words], summary: vec![0; words.div_ceil(BITS)], count: 0, cursor: 0 }
    }

    pub(crate) fn len(&self) -> u64 {
        self.count
    }

    /// Adds a slot; one that does not exist is passed over.
    pub(crate) fn insert(&mut self, slot: u32) {
        let index = slot as usize / BITS;
        if let Some(word) = self.words.get_mut(index) {
            let bit = 1 << (slot as usize % BITS);
            self.count += u64::from(*word & bit == 0);
            *word |= bit;
            self.summary[index / BITS] |= 1 << (index % BITS);
        }
    }

    /// Takes a slot out; whether it was there.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        let index = slot as usize / BITS;
        let Some(word) = self.words.get_mut(index) else { return false };
        let bit = 1 << (slot as usize % BITS);
        let found = *word & bit != 0;
        *word &= !bit;
        if *word == 0 {
            self.summary[index / BITS] &= !(1 << (index % BITS));
        }
        self.count -= u64::from(found);
        found
    }

    /// Takes the next slot out.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.words[self.cursor] == 0 {
            self.cursor = self.word_from(self.cursor).or_else(|| self.word_from(0))?;
        }
        let slot = (self.cursor * BITS) as u32 + self.words[self.cursor].trailing_zeros();
        self.remove(slot);
        Some(slot)
    }

    /// The first word from one on that is not zero.
    fn word_from(&self, word: usize) -> Option<usize> {
        let first = word / BITS;
        let rest = self.summary.get(first)? & (u64::MAX << (word % BITS));
        let later = (first + 1..).zip(self.summary.get(first + 1..).unwrap_or_default().iter().copied());
        let (index, bits) = std::iter::once((first, rest)).chain(later).find(|(_, bits)| *bits != 0)?;
        Some(index * BITS + bits.trailing_zeros() as usize)
    }

    /// All of them, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let words = std::iter::successors(self.word_from(0), |word| self.word_from(word + 1));
        words.flat_map(|word| {
            let bits = self.words[word];
            (0..BITS).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| (word * BITS + bit) as u32)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set_that_is_emptied_in_order(steps in prop::collection::vec((0u32..9000, 0..4), 1..400)) {
            let (mut free, mut model) = (Free::new(8999), BTreeSet::new());
            let mut last = 0;
            for (slot, step) in steps {
                match step {
                    0 | 1 => {
                        free.insert(slot);
                        model.insert(slot);
                    }
                    2 => prop_assert_eq!(free.remove(slot), model.remove(&slot)),
                    _ => {
                        // The next one, or one that was added beside the last since.
                        let word = last / 64 * 64;
                        let next = model.range(word..).next().or_else(|| model.first()).copied();
                        prop_assert_eq!(free.take(), next);
                        model.retain(|slot| Some(*slot) != next);
                        last = next.unwrap_or(last);
                    }
                }
                prop_assert_eq!(free.len(), model.len() as u64);
                prop_assert!(free.iter().eq(model.iter().copied()));
            }
            free.insert(u32::MAX);
            prop_assert_eq!(free.len(), model.len() as u64);
        }
    }
}
