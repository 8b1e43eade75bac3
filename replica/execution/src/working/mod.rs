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
//! A store is marked by the page in which it begins, and may run into the next one by up to 15 bytes. For that
//! the first 16 bytes of each page, as committed, are kept aside: when a message ends, the unmarked page behind a
//! marked one is compared with them.

mod fault;
mod lazy;
mod mapping;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use lazy::Region;
pub(crate) use lazy::{Current, Loader, lock};
pub(crate) use mapping::{Creator, GUARD, Mapping, RESERVATION, with_memories};

use crate::store::{Batch, PAGE, Page, SpaceId};

const ZERO: Page = [0; PAGE];
/// The first bytes of a page: as many as the widest store has.
type Head = [u8; 16];
/// Pages of one message whose earlier content is kept.
const UNDO_PAGES: usize = 1024;
/// Copies that are kept from one message for the next.
const KEPT_UNDO: usize = 64;
/// Bytes of the memory that holds the marks, one for each page.
pub(crate) const CARD_BYTES: usize = RESERVATION / PAGE;

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
        Ok(Self { memory, cards, region, loader, committed: 0, dirty: Vec::new(), undo: Vec::new() })
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
        let at = self.dirty.len();
        if at < UNDO_PAGES && number < self.committed {
            if self.undo.len() <= at {
                self.undo.resize_with(at + 1, || Box::new(ZERO));
            }
            self.undo[at].copy_from_slice(self.memory.page(number));
        }
        self.cards.set_byte(number, 1);
        self.dirty.push(page);
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

    /// Unmarked pages into which a store from the page before ran.
    fn run_into(&self) -> Vec<u32> {
        let state = self.region.state();
        let pages = self.memory.pages();
        let next = self.dirty.iter().map(|page| page + 1);
        let unmarked = next.filter(|page| {
            let page = u64::from(*page);
            page < pages && self.cards.byte(page) == 0 && state.is_present(page)
        });
        let changed = unmarked.filter(|page| {
            let head = state.heads.get(*page as usize);
            head.is_some_and(|head| !self.memory.page((*page).into()).starts_with(head))
        });
        changed.collect()
    }

    /// Ends the list of changed pages; gives those that changed since the last commit.
    pub(crate) fn collect(&mut self) -> &[u32] {
        let more = self.run_into();
        for page in more {
            // Marked without a copy: all that changed is what `heads` holds.
            if self.dirty.len() < UNDO_PAGES && self.undo.len() <= self.dirty.len() {
                self.undo.push(Box::new(ZERO));
            }
            if let (Some(copy), true) = (self.undo.get_mut(self.dirty.len()), self.dirty.len() < UNDO_PAGES) {
                copy.copy_from_slice(self.memory.page(page.into()));
            }
            self.cards.set_byte(page.into(), 1);
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
        self.region.state().fill_heads(&self.memory, pages);
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
        let mut state = self.region.state();
        for page in &self.dirty {
            let page = u64::from(*page);
            state.set_head(page, self.memory.page(page));
            self.cards.set_byte(page, 0);
        }
        drop(state);
        self.committed = self.memory.pages();
        self.forget();
    }

    fn forget(&mut self) {
        self.dirty.clear();
        if self.dirty.capacity() > 1 << 20 {
            self.dirty.shrink_to(1 << 10);
        }
        self.undo.truncate(KEPT_UNDO);
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
            match self.undo.get(at).filter(|_| at < UNDO_PAGES) {
                Some(old) => {
                    self.memory.write(page, &**old);
                    // An earlier store may have run into the page before it was marked.
                    if let Some(head) = state.heads.get(page as usize) {
                        self.memory.write(page, head);
                    }
                }
                None => {
                    if snapshot.is_none() {
                        snapshot = state.snapshot();
                    }
                    let snapshot = snapshot.as_ref().ok_or("there is no snapshot to read from")?;
                    state.read(snapshot, page, &mut data).map_err(|error| error.to_string())?;
                    self.memory.write(page, &data);
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
        let mut state = self.region.state();
        let snapshot = state.snapshot().ok_or("there is no snapshot to read from")?;
        let mut data = ZERO;
        for page in changed.iter().copied().filter(|page| *page < self.committed) {
            if state.is_present(page) {
                state.read(&snapshot, page, &mut data).map_err(|error| error.to_string())?;
                self.memory.write(page, &data);
                state.set_head(page, &data);
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
