//! A program's working memory: filled from a snapshot, its changes noted as they happen, committed or undone.
//!
//! No step costs more than what a message touched: pages come from the snapshot when they are first touched;
//! before the first store into a page the rewritten program ([`crate::prepare`]) or the engine marks it, which puts
//! it on a list; and both commit and rollback go through that list.
//!
//! The first [`UNDO_PAGES`] pages of a message are copied when they are marked, so a rollback copies them back.
//! Were all of them copied, a program that writes to very many pages would pay for each twice; so the rest is read
//! from the snapshot again in the rare case of a rollback.
//!
//! A mark stands for stores that begin in its page and end within [`REACH`] bytes of there, which may run into the
//! next page. When a page is marked, the first bytes of the next one are therefore kept aside, and compared when the
//! message ends, unless that page is marked by then as well.

mod fault;
mod lazy;
mod mapping;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use lazy::Region;
pub(crate) use lazy::{Current, Loader, lock};
pub(crate) use mapping::{Creator, GUARD, Mapping, RESERVATION, with_memories};

use crate::prepare::cover::REACH;
use crate::store::{Batch, PAGE, Page, SpaceId};

const ZERO: Page = [0; PAGE];
/// The first bytes of a page.
type Head = [u8; REACH as usize];
/// Pages of one message whose earlier content is kept.
const UNDO_PAGES: usize = 1024;
/// Marks for which room is kept from one message for the next.
const KEPT_MARKS: usize = 1 << 14;
/// Bytes of the memory that holds the marks, one for each page.
pub(crate) const CARD_BYTES: usize = RESERVATION / PAGE;

/// Copies of pages that no message needs at the moment; all programs share them.
static SPARE: Mutex<Vec<Box<Page>>> = Mutex::new(Vec::new());

/// How the page behind a marked one began before any store could run into it.
#[derive(Clone, Copy)]
enum Behind {
    /// With this.
    Head(Head),
    /// It was added since the last commit and not marked before: with zeros.
    Zero,
    /// It was not in memory, so as the snapshot has it.
    Absent,
    /// It was marked itself, or there was none.
    Marked,
}

/// One program's memory and what was changed in it since the last commit.
pub(crate) struct Working {
    memory: Arc<Mapping>,
    cards: Arc<Mapping>,
    region: Arc<Region>,
    loader: Loader,
    /// Pages that the last commit left; those behind were added since.
    committed: u64,
    /// Marked pages, each once.
    dirty: Vec<u32>,
    /// What the first of them held.
    undo: Vec<Box<Page>>,
    /// What was behind each of them.
    behind: Vec<Behind>,
}

/// What a rollback could not do by itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Undone {
    /// The memory is as it was.
    Whole,
    /// The memory had grown and was cut; its instance must be made anew around it.
    Cut,
}

impl Working {
    /// Memory without content.
    pub(crate) fn new(loader: &Loader, current: Current, space: SpaceId) -> io::Result<Self> {
        let (memory, cards) = (Mapping::reserve()?, Mapping::reserve()?);
        cards.set_length(CARD_BYTES)?;
        let region = Arc::new(Region::new(memory.clone(), current, space));
        let loader = loader.clone();
        Ok(Self {
            memory,
            cards,
            region,
            loader,
            committed: 0,
            dirty: Vec::new(),
            undo: Vec::new(),
            behind: Vec::new(),
        })
    }

    /// The mappings that the instance's memories are made from.
    pub(crate) fn mappings(&self) -> Vec<Arc<Mapping>> {
        vec![self.memory.clone(), self.cards.clone()]
    }

    /// Gives the first `pages` pages, which are there and untouched, the content that the snapshot has.
    pub(crate) fn attach(&mut self, pages: u64) -> Result<(), String> {
        self.committed = pages;
        self.loader.attach(&self.region, pages)
    }

    /// Length in pages.
    pub(crate) fn pages(&self) -> u64 {
        self.memory.pages()
    }

    /// Pages that the last commit left.
    pub(crate) fn committed_pages(&self) -> u64 {
        self.committed
    }

    /// Notes that a page is about to change. Behind the end there is nothing to note: the store will trap.
    pub(crate) fn mark(&mut self, page: u32) {
        let number = u64::from(page);
        if number >= self.memory.pages() || self.cards.byte(number) != 0 {
            return;
        }
        self.keep(number);
        self.behind.push(self.behind(number + 1));
        self.cards.set_byte(number, 1);
        self.dirty.push(page);
    }

    /// Copies a page that is about to be marked, if it is among the first.
    fn keep(&mut self, page: u64) {
        if self.undo.len() < UNDO_PAGES && self.undo.len() == self.dirty.len() {
            let mut copy = lock(&SPARE).pop().unwrap_or_else(|| Box::new(ZERO));
            if page < self.committed {
                copy.copy_from_slice(self.memory.page(page));
            }
            self.undo.push(copy);
        }
    }

    fn behind(&self, page: u64) -> Behind {
        if page >= self.memory.pages() || self.cards.byte(page) != 0 {
            Behind::Marked
        } else if page >= self.committed {
            Behind::Zero
        } else if self.region.state().is_present(page) {
            Behind::Head(self.head(page))
        } else {
            Behind::Absent
        }
    }

    fn head(&self, page: u64) -> Head {
        let mut head = [0; REACH as usize];
        head.copy_from_slice(&self.memory.page(page)[..REACH as usize]);
        head
    }

    /// Notes that a range is about to change. Nothing, if it does not lie within the memory.
    pub(crate) fn mark_range(&mut self, start: u64, length: u64) {
        let Some(end) = start.checked_add(length).filter(|end| *end <= self.memory.length() as u64) else {
            return;
        };
        if length == 0 {
            return;
        }
        for page in start / PAGE as u64..end.div_ceil(PAGE as u64) {
            // Below the length of the mapping, so 32 bits hold it.
            self.mark(page as u32);
        }
    }

    /// Unmarked pages into which a store from the page before ran, with their first bytes before.
    fn run_into(&self) -> Vec<(u32, Head)> {
        let mut found = Vec::new();
        for (page, behind) in self.dirty.iter().zip(&self.behind) {
            let next = page + 1;
            if matches!(behind, Behind::Marked) || self.cards.byte(next.into()) != 0 {
                continue;
            }
            if let Some(head) = self.head_before(next.into(), behind)
                && self.head(next.into()) != head
            {
                found.push((next, head));
            }
        }
        found
    }

    /// How a page began before a store may have run into it; `None` if none can have.
    fn head_before(&self, page: u64, behind: &Behind) -> Option<Head> {
        match behind {
            Behind::Head(head) => Some(*head),
            Behind::Zero => Some([0; REACH as usize]),
            Behind::Marked => None,
            Behind::Absent => {
                let state = self.region.state();
                if !state.is_present(page) {
                    return None;
                }
                let mut data = ZERO;
                // If it cannot be read a second time, the page counts as changed; a rollback will say why.
                match state.snapshot().map(|snapshot| state.read(&snapshot, page, &mut data)) {
                    Some(Ok(())) => data.first_chunk().copied(),
                    _ => Some(self.head(page).map(|byte| !byte)),
                }
            }
        }
    }

    /// Ends the list of changed pages; gives those that changed since the last commit.
    pub(crate) fn collect(&mut self) -> &[u32] {
        for (page, head) in self.run_into() {
            let number = u64::from(page);
            self.keep(number);
            if self.dirty.len() < self.undo.len()
                && let Some(copy) = self.undo.last_mut()
            {
                copy[..REACH as usize].copy_from_slice(&head);
            }
            self.behind.push(Behind::Marked);
            self.cards.set_byte(number, 1);
            self.dirty.push(page);
        }
        &self.dirty
    }

    /// A memory of this many pages, all touched and committed.
    #[cfg(feature = "bench")]
    pub(crate) fn make_for_bench(&mut self, pages: u64) -> io::Result<()> {
        self.memory.set_length(pages as usize * PAGE)?;
        for page in 0..pages {
            self.memory.write(page, &[page as u8; PAGE]);
        }
        self.committed = pages;
        Ok(())
    }

    /// Writes to a page without marking it.
    #[cfg(feature = "bench")]
    pub(crate) fn overwrite_for_bench(&mut self, page: u64, bytes: &[u8]) {
        self.memory.write(page, bytes);
    }

    /// Address and length in bytes.
    #[cfg(test)]
    pub(crate) fn range(&self) -> (usize, usize) {
        (self.memory.address(), self.memory.length())
    }

    /// A page as it is now.
    #[cfg(test)]
    pub(crate) fn page(&self, page: u64) -> &Page {
        self.memory.page(page)
    }

    /// Adds the changes to a batch; [`collect`](Self::collect) comes first.
    pub(crate) fn write<'a>(&'a self, space: SpaceId, batch: &mut Batch<'a>) {
        if self.memory.pages() != self.committed {
            batch.resize(space, self.memory.pages());
        }
        for page in &self.dirty {
            batch.put_page(space, (*page).into(), self.memory.page((*page).into()));
        }
    }

    /// The changes are durable.
    pub(crate) fn settle(&mut self) {
        for page in &self.dirty {
            self.cards.set_byte((*page).into(), 0);
        }
        self.committed = self.memory.pages();
        self.forget();
    }

    fn forget(&mut self) {
        self.dirty.clear();
        self.behind.clear();
        if self.dirty.capacity() > KEPT_MARKS {
            self.dirty.shrink_to(0);
            self.behind.shrink_to(0);
        }
        let mut spare = lock(&SPARE);
        spare.append(&mut self.undo);
        spare.truncate(UNDO_PAGES);
    }

    /// Takes all changes back. After an error the memory is of no use any more.
    pub(crate) fn roll_back(&mut self) -> Result<Undone, String> {
        self.collect();
        let state = self.region.state();
        let mut snapshot = None;
        let mut data = ZERO;
        for (at, page) in self.dirty.iter().enumerate() {
            let page = u64::from(*page);
            self.cards.set_byte(page, 0);
            // What is not in memory was not changed: it was marked, and the program trapped before it wrote.
            if page >= self.committed || !state.is_present(page) {
                continue;
            }
            if let Some(old) = self.undo.get(at) {
                self.memory.write(page, &**old);
                continue;
            }
            if snapshot.is_none() {
                snapshot = state.snapshot();
            }
            let snapshot = snapshot.as_ref().ok_or("there is no snapshot to read from")?;
            state.read(snapshot, page, &mut data).map_err(|error| error.to_string())?;
            self.memory.write(page, &data);
        }
        // A store may have run into a page before that was marked and copied.
        for (page, behind) in self.dirty.iter().zip(&self.behind) {
            let next = u64::from(page + 1);
            if next < self.committed && state.is_present(next) {
                match behind {
                    Behind::Head(head) => self.memory.write(next, head),
                    Behind::Absent => {
                        let snapshot = state.snapshot().ok_or("there is no snapshot to read from")?;
                        state.read(&snapshot, next, &mut data).map_err(|error| error.to_string())?;
                        self.memory.write(next, &data);
                    }
                    Behind::Zero | Behind::Marked => {}
                }
            }
        }
        drop(state);
        self.forget();
        if self.memory.pages() == self.committed {
            return Ok(Undone::Whole);
        }
        let length = self.committed as usize * PAGE;
        self.memory.set_length(length).map_err(|error| format!("memory cannot be cut: {error}"))?;
        Ok(Undone::Cut)
    }

    /// Makes the pages that differ between the snapshot that the memory shows and another, `changed`, show that
    /// one, which the memory's [`Current`] holds already. Nothing else was changed in the memory.
    pub(crate) fn refresh(&mut self, changed: &[u64]) -> Result<(), String> {
        let state = self.region.state();
        let snapshot = state.snapshot().ok_or("there is no snapshot to read from")?;
        let mut data = ZERO;
        for page in changed.iter().copied().filter(|page| *page < self.committed) {
            if state.is_present(page) {
                state.read(&snapshot, page, &mut data).map_err(|error| error.to_string())?;
                self.memory.write(page, &data);
            }
        }
        Ok(())
    }

    /// Why some page's content is not what was committed, if that is so. Nothing may be committed then.
    pub(crate) fn failure(&self) -> Option<String> {
        self.region.state().failed.clone()
    }

    /// Copies the changes that another program's memory has on top of the same snapshot.
    pub(crate) fn adopt(&mut self, from: &mut Self) {
        for page in from.collect().to_vec() {
            self.mark(page);
            self.memory.write(page.into(), from.memory.page(page.into()));
        }
    }

    /// Writes bytes, if they lie within the memory.
    #[must_use]
    pub(crate) fn write_bytes(&mut self, address: u64, bytes: &[u8]) -> bool {
        let end = address.checked_add(bytes.len() as u64).filter(|end| *end <= self.memory.length() as u64);
        let Some(end) = end else { return false };
        self.mark_range(address, bytes.len() as u64);
        let mut at = address;
        while at < end {
            let offset = at % PAGE as u64;
            let length = (PAGE as u64 - offset).min(end - at);
            let from = (at - address) as usize;
            let mut page = *self.memory.page(at / PAGE as u64);
            let target: Range<usize> = offset as usize..(offset + length) as usize;
            page[target].copy_from_slice(&bytes[from..from + length as usize]);
            self.memory.write(at / PAGE as u64, &page);
            at += length;
        }
        true
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.loader.detach(&self.region);
    }
}
