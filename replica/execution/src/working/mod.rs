//! A program's working memory: filled from a snapshot, its changes noted as they happen, committed or undone.
//!
//! No step costs more than what a message touched: pages come from the snapshot when they are first touched;
//! before the first store into a page the rewritten program ([`crate::prepare`]) or the engine marks it, which puts
//! it on a list; and both commit and rollback go through that list.
//!
//! Pages are copied when they are marked, so a rollback copies them back, as long as that takes a small part of the
//! program's own time: a program that writes a word here and there would else pay most of its time for copies that
//! hardly ever serve. Pages not copied are read from the snapshot again in the rare case of a rollback. While nothing
//! is copied, the program notes changes by itself (see [`layout`]).
//!
//! A mark stands for stores that begin in its page and end within [`REACH`] bytes of there, which may run into the
//! next page. When a page is marked, the first bytes of the next one are therefore kept aside, and compared when the
//! message ends, unless that page is marked by then as well.

mod fault;
pub(crate) mod layout;
mod lazy;
mod mapping;
mod ram;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

pub(crate) use lazy::{Current, Loader};
use lazy::{Region, lock};
pub(crate) use mapping::{Creator, GUARD, Mapping, RESERVATION, with_memories};
pub(crate) use ram::{Ram, Short};

use crate::prepare::cover::REACH;
use crate::store::{Batch, PAGE, Page, SpaceId};

const ZERO: Page = [0; PAGE];
/// The first bytes of a page.
type Head = [u8; REACH as usize];
/// Pages of one message whose earlier content is kept at most,
const UNDO_PAGES: usize = 1024;
/// however short the message is (one in tests, so that small programs note changes by themselves),
const FREE_PAGES: usize = if cfg!(test) { 1 } else { 32 };
/// and for how many instructions one more. A copy takes about as long as a tenth of these.
const INSTRUCTIONS_PER_PAGE: u64 = 4096;
/// Marks for which room is kept from one message for the next.
const KEPT_MARKS: usize = 1 << 14;

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
    marks: Arc<Mapping>,
    region: Arc<Region>,
    loader: Loader,
    /// Pages that the last commit left; those behind were added since.
    committed: u64,
    /// Marked pages, each once, but for those in the program's notes.
    dirty: Vec<u32>,
    /// What was behind each of them.
    behind: Vec<Behind>,
    /// What some of them held, and how many may be copied in this message so far.
    undo: Vec<(u32, Box<Page>)>,
    may_undo: usize,
    /// Notes that the program may write or has written.
    granted: u32,
    /// Calls of the marker.
    calls: u64,
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
        let (memory, marks) = (Mapping::reserve()?, Mapping::reserve()?);
        marks.set_length(layout::BYTES)?;
        let region = Arc::new(Region::new(memory.clone(), marks.clone(), loader.ram.clone(), current, space));
        let loader = loader.clone();
        Ok(Self {
            memory,
            marks,
            region,
            loader,
            committed: 0,
            dirty: Vec::new(),
            behind: Vec::new(),
            undo: Vec::new(),
            may_undo: FREE_PAGES,
            granted: 0,
            calls: 0,
        })
    }

    /// The mappings that the instance's memories are made from.
    pub(crate) fn mappings(&self) -> Vec<Arc<Mapping>> {
        vec![self.memory.clone(), self.marks.clone()]
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

    fn is_marked(&self, page: u64) -> bool {
        self.marks.byte(u64::from(layout::CARDS) + page) != 0
    }

    fn set_card(&self, page: u64, value: u8) {
        self.marks.set_bytes(u64::from(layout::CARDS) + page, 1, value);
    }

    /// The program's marker asks to note that a page is about to change, `instructions` after its start.
    pub(crate) fn mark_for_program(&mut self, page: u32, instructions: u64) -> Result<(), Short> {
        self.calls += 1;
        self.take_notes();
        self.afford(instructions);
        self.mark(page)?;
        if self.undo.len() >= self.may_undo {
            self.loader.ram.take(layout::GRANT.into())?;
            self.grant(layout::GRANT);
        }
        Ok(())
    }

    /// Allows as many copies as a program that ran for so long can afford.
    pub(crate) fn afford(&mut self, instructions: u64) {
        let more = usize::try_from(instructions / INSTRUCTIONS_PER_PAGE).unwrap_or(UNDO_PAGES);
        self.may_undo = FREE_PAGES.saturating_add(more).min(UNDO_PAGES);
    }

    /// How often the program called the marker since this was last reset.
    pub(crate) fn marker_calls(&self) -> u64 {
        self.calls + u64::from(self.granted - self.left())
    }

    /// Begins to count the marker's calls anew.
    pub(crate) fn reset_marker_calls(&mut self) {
        self.take_notes();
        self.calls = 0;
    }

    fn grant(&mut self, notes: u32) {
        self.granted = notes;
        self.marks.write(0, &notes.to_le_bytes());
    }

    /// Notes that are not written yet.
    fn left(&self) -> u32 {
        let left = self.marks.page(0).first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        left.min(self.granted)
    }

    /// Puts what the program noted on the list, and grants it no more notes.
    fn take_notes(&mut self) {
        if self.granted == 0 {
            return;
        }
        let left = self.left();
        let (notes, _) =
            self.marks.page(0)[layout::NOTES as usize..].as_chunks::<{ layout::NOTE as usize }>();
        for note in notes[left as usize..self.granted as usize].iter().rev() {
            let (Some(page), Some(head)) = (note.first_chunk(), note.last_chunk()) else { continue };
            self.dirty.push(u32::from_le_bytes(*page));
            let marked = note[layout::BEHIND as usize] != 0;
            self.behind.push(if marked { Behind::Marked } else { Behind::Head(*head) });
        }
        self.calls += u64::from(self.granted - left);
        self.grant(0);
    }

    /// Notes that a page is about to change. Behind the end there is nothing to note: the store will trap.
    fn mark(&mut self, page: u32) -> Result<(), Short> {
        let number = u64::from(page);
        if number >= self.memory.pages() || self.is_marked(number) {
            return Ok(());
        }
        self.loader.ram.take(1)?;
        if self.undo.len() < self.may_undo && number < self.committed {
            let mut copy = lock(&SPARE).pop().unwrap_or_else(|| Box::new(ZERO));
            copy.copy_from_slice(self.memory.page(number));
            self.undo.push((page, copy));
        }
        self.behind.push(self.behind(number + 1));
        self.set_card(number, 1);
        self.dirty.push(page);
        Ok(())
    }

    fn behind(&self, page: u64) -> Behind {
        if page >= self.memory.pages() || self.is_marked(page) {
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
    pub(crate) fn mark_range(&mut self, start: u64, length: u64) -> Result<(), Short> {
        let Some(end) = start.checked_add(length).filter(|end| *end <= self.memory.length() as u64) else {
            return Ok(());
        };
        if length == 0 {
            return Ok(());
        }
        for page in start / PAGE as u64..end.div_ceil(PAGE as u64) {
            // Below the length of the mapping, so 32 bits hold it.
            self.mark(page as u32)?;
        }
        Ok(())
    }

    /// Unmarked pages into which a store from the page before ran.
    fn run_into(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for (page, behind) in self.dirty.iter().zip(&self.behind) {
            let next = page + 1;
            if matches!(behind, Behind::Marked) || self.is_marked(next.into()) {
                continue;
            }
            if let Some(head) = self.head_before(next.into(), behind)
                && self.head(next.into()) != head
            {
                found.push(next);
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
        self.take_notes();
        for page in self.run_into() {
            self.behind.push(Behind::Marked);
            self.set_card(page.into(), 1);
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
        self.afford(u64::MAX);
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
            self.set_card((*page).into(), 0);
        }
        let grown = self.memory.pages() - self.committed;
        if grown > 0 {
            // The pages before these, of which now another follows.
            let first = self.committed.max(1) - 1;
            let end = self.memory.pages() - 1;
            self.marks.set_bytes(u64::from(layout::READY) + first, end - first, 1);
            self.committed += grown;
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.dirty.clear();
        self.behind.clear();
        if self.dirty.capacity() > KEPT_MARKS {
            self.dirty.shrink_to(0);
            self.behind.shrink_to(0);
        }
        self.may_undo = FREE_PAGES;
        if !self.undo.is_empty() {
            let mut spare = lock(&SPARE);
            let room = UNDO_PAGES.saturating_sub(spare.len());
            spare.extend(self.undo.drain(..).map(|(_, copy)| copy).take(room));
        }
    }

    /// Takes all changes back. After an error the memory is of no use any more.
    pub(crate) fn roll_back(&mut self) -> Result<Undone, String> {
        self.take_notes();
        let state = self.region.state();
        for (page, copy) in &self.undo {
            self.memory.write((*page).into(), &**copy);
            self.set_card((*page).into(), 0);
        }
        let mut snapshot = None;
        let mut data = ZERO;
        for page in self.dirty.iter().copied().map(u64::from) {
            // What is not in memory was not changed: it was marked, and the program trapped before it wrote.
            let changed = page < self.committed && state.is_present(page) && self.is_marked(page);
            self.set_card(page, 0);
            if !changed {
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
    pub(crate) fn adopt(&mut self, from: &mut Self) -> Result<(), Short> {
        for page in from.collect().to_vec() {
            self.mark(page)?;
            self.memory.write(page.into(), from.memory.page(page.into()));
        }
        Ok(())
    }

    /// Writes bytes; whether they lie within the memory.
    pub(crate) fn write_bytes(&mut self, address: u64, bytes: &[u8]) -> Result<bool, Short> {
        let end = address.checked_add(bytes.len() as u64).filter(|end| *end <= self.memory.length() as u64);
        let Some(end) = end else { return Ok(false) };
        self.mark_range(address, bytes.len() as u64)?;
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
        Ok(true)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.loader.detach(&self.region);
    }
}
