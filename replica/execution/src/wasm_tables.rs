//! Tables of a program that changes them: as data in the heap, and as references in an instance.
//!
//! Each canister has a heap space for them. Its first page holds the length of each table, the pages after that the
//! entries, [`PER_TABLE`] pages for each table, 4 bytes for each entry: 0 for none, otherwise the number of the function in
//! the uploaded module plus 1. A function is recognised by its address in the instance, which has a directory of all that a
//! reference may be to (see `crate::prepare`). Other references cannot occur: a program has no way to get one.
//!
//! What a message changed is read from the instance when it ends, in whole pages, and taken back from the committed
//! pages when it must leave no trace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::PoisonError;

use wasmtime::{Func, Instance, Ref, Store, Table};

use crate::prepare::{ChangingTables, DIRECTORY, TABLE};
use crate::store::{Batch, PAGE, Page, SpaceId};
use crate::syscalls::Context;
use crate::working::Current;

/// Most entries of all tables of a program.
pub(crate) const MAX_ENTRIES: usize = 1 << 20;
/// Entries on one page.
const PER_PAGE: u64 = PAGE as u64 / 4;
/// Pages of one table.
const PER_TABLE: u64 = MAX_ENTRIES as u64 / PER_PAGE;
/// The page of the lengths.
const LENGTHS: u64 = 0;

/// Pages whose entries a program has changed.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    pages: BTreeSet<u64>,
    /// How often this was told since the execution began.
    pub(crate) calls: u64,
}

impl Changed {
    /// Notes that so many entries from `start` have changed.
    pub(crate) fn mark(&mut self, table: u32, start: u64, length: u64) {
        self.calls += 1;
        if length > 0 {
            let last = start.saturating_add(length - 1).min(MAX_ENTRIES as u64 - 1);
            self.pages.extend((start / PER_PAGE..=last / PER_PAGE).map(|page| first_page(table) + page));
        }
    }
}

fn first_page(table: u32) -> u64 {
    LENGTHS + 1 + u64::from(table) * PER_TABLE
}

/// Where the committed tables are.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) current: Current,
    pub(crate) space: SpaceId,
}

impl Home {
    fn read(&self, page: u64) -> Result<Page, String> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let snapshot = current.as_ref().ok_or("there is no state to read its tables from")?;
        let mut data = [0; PAGE];
        snapshot.read_page(self.space, page, &mut data).map_err(|error| error.to_string())?;
        Ok(data)
    }
}

/// The tables of one instance.
pub(crate) struct Tables {
    home: Home,
    tables: Vec<Table>,
    /// Functions that an entry may be, by their numbers.
    functions: BTreeMap<u32, Func>,
    /// Their numbers, by their addresses.
    numbers: HashMap<usize, u32>,
    /// Lengths in the committed state; empty if nothing was committed.
    committed: Vec<u64>,
    /// What is to be committed.
    pages: BTreeMap<u64, Box<Page>>,
}

impl Tables {
    /// The tables as the module made them.
    pub(crate) fn new(
        store: &mut Store<Context>,
        instance: &Instance,
        changing: &ChangingTables,
        home: Home,
    ) -> Result<Self, String> {
        let names = (0..changing.count).map(|number| format!("{TABLE}:{number}"));
        let tables = names.map(|name| instance.get_table(&mut *store, &name)).collect::<Option<Vec<_>>>();
        let (Some(tables), Some(directory)) = (tables, instance.get_table(&mut *store, DIRECTORY)) else {
            return Err("its tables are not exported; the module's preparation is at fault".to_owned());
        };
        let (mut functions, mut numbers) = (BTreeMap::new(), HashMap::new());
        for (at, number) in (0..).zip(&changing.functions) {
            let Some(Ref::Func(Some(function))) = directory.get(&mut *store, at) else {
                return Err(format!(
                    "function {number} is not in the directory; its preparation is at fault"
                ));
            };
            numbers.insert(function.to_raw(&mut *store).addr(), *number);
            functions.insert(*number, function);
        }
        Ok(Self { home, tables, functions, numbers, committed: Vec::new(), pages: BTreeMap::new() })
    }

    fn lengths(&self, store: &Store<Context>) -> Vec<u64> {
        self.tables.iter().map(|table| table.size(store)).collect()
    }

    /// Whether a table has another length than in the committed state.
    pub(crate) fn grew(&self, store: &Store<Context>) -> bool {
        self.lengths(store) != self.committed
    }

    /// Marks everything, as if the program had made it: nothing of it is committed yet.
    pub(crate) fn mark_all(&self, store: &mut Store<Context>) {
        for (number, length) in (0..).zip(self.lengths(store)) {
            store.data_mut().tables.mark(number, 0, length);
        }
    }

    /// The table and the number of the first entry of a page.
    fn place(&self, page: u64) -> Option<(Table, u64)> {
        let page = page.checked_sub(LENGTHS + 1)?;
        let table = self.tables.get(usize::try_from(page / PER_TABLE).ok()?)?;
        Some((*table, page % PER_TABLE * PER_PAGE))
    }

    /// Reads from the instance what is to be committed.
    pub(crate) fn collect(&mut self, store: &mut Store<Context>) -> Result<(), String> {
        let changed: Vec<u64> = store.data().tables.pages.iter().copied().collect();
        for page in changed {
            let Some((table, first)) = self.place(page) else { continue };
            let mut data = Box::new([0; PAGE]);
            let (words, _) = data.as_chunks_mut::<4>();
            for (word, at) in words.iter_mut().zip(first..) {
                // None behind the end.
                let Some(Ref::Func(Some(function))) = table.get(&mut *store, at) else { continue };
                let number = self.numbers.get(&function.to_raw(&mut *store).addr());
                let number = number.ok_or("a table holds a function that is not the program's own")?;
                *word = (number + 1).to_le_bytes();
            }
            self.pages.insert(page, data);
        }
        let lengths = self.lengths(store);
        if lengths != self.committed {
            let mut data = Box::new([0; PAGE]);
            let (words, _) = data.as_chunks_mut::<4>();
            for (word, length) in words.iter_mut().zip(lengths) {
                *word = u32::try_from(length).map_err(|error| error.to_string())?.to_le_bytes();
            }
            self.pages.insert(LENGTHS, data);
        }
        Ok(())
    }

    /// Adds what was collected.
    pub(crate) fn write<'a>(&'a self, batch: &mut Batch<'a>) {
        for (page, data) in &self.pages {
            batch.put_page(self.home.space, *page, data);
        }
    }

    /// The changes are durable.
    pub(crate) fn settle(&mut self, store: &mut Store<Context>) {
        self.committed = self.lengths(store);
        self.forget(store);
    }

    fn forget(&mut self, store: &mut Store<Context>) {
        store.data_mut().tables.pages.clear();
        self.pages.clear();
    }

    /// Takes back what was changed, if no table has grown.
    pub(crate) fn roll_back(&mut self, store: &mut Store<Context>) -> Result<(), String> {
        let changed = std::mem::take(&mut store.data_mut().tables.pages);
        self.forget(store);
        changed.into_iter().try_for_each(|page| self.load_page(store, page))
    }

    /// Makes tables that are as the module made them what they are in the committed state.
    pub(crate) fn load(&mut self, store: &mut Store<Context>) -> Result<(), String> {
        self.load_lengths(store)?;
        for (number, length) in (0..).zip(self.committed.clone()) {
            for page in 0..length.div_ceil(PER_PAGE) {
                self.load_page(store, first_page(number) + page)?;
            }
        }
        Ok(())
    }

    /// Brings the tables, to which nothing was done since, to another snapshot, in which these pages differ.
    pub(crate) fn refresh(&mut self, store: &mut Store<Context>, changed: &[u64]) -> Result<(), String> {
        if changed.contains(&LENGTHS) {
            self.load_lengths(store)?;
        }
        changed.iter().try_for_each(|page| self.load_page(store, *page))
    }

    fn load_lengths(&mut self, store: &mut Store<Context>) -> Result<(), String> {
        let data = self.home.read(LENGTHS)?;
        let (words, _) = data.as_chunks::<4>();
        for (table, word) in self.tables.iter().zip(words) {
            let length = u64::from(u32::from_le_bytes(*word));
            let more = length.checked_sub(table.size(&*store)).ok_or("a table became shorter")?;
            let none = Ref::null(table.ty(&*store).element().heap_type());
            table.grow(&mut *store, more, none).map_err(|error| format!("{error:#}"))?;
        }
        self.committed = self.lengths(store);
        Ok(())
    }

    fn load_page(&self, store: &mut Store<Context>, page: u64) -> Result<(), String> {
        let Some((table, first)) = self.place(page) else { return Ok(()) };
        let data = self.home.read(page)?;
        let none = Ref::null(table.ty(&*store).element().heap_type());
        let (words, _) = data.as_chunks::<4>();
        for (word, at) in words.iter().zip(first..table.size(&*store)) {
            let entry = match u32::from_le_bytes(*word).checked_sub(1) {
                None => none.clone(),
                Some(number) => match self.functions.get(&number) {
                    Some(function) => Ref::Func(Some(*function)),
                    None => {
                        return Err(format!(
                            "entry {at} of a table is function {number}, which no entry can be"
                        ));
                    }
                },
            };
            table.set(&mut *store, at, entry).map_err(|error| format!("{error:#}"))?;
        }
        Ok(())
    }
}
