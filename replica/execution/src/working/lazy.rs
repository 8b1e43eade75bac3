//! Filling of a program's memory from a snapshot, page by page when touched, or all at once where that is not to
//! be had.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::fault::Faults;
use super::{Mapping, Ram, layout};
use crate::store::{PAGE, Page, ReadError, Snapshot, SpaceId};
use crate::sync::RwLock;

/// Pages that are read ahead at most when a program reads one after the other.
const MAX_WINDOW: u64 = 64;
/// Pages read at a fault that does not continue an earlier one.
const MIN_WINDOW: u64 = 4;
/// Pages read at a time where all are read at once.
const CHUNK: usize = 4096;

/// A snapshot that is replaced by later ones. None where nothing may be read at the moment.
pub(crate) type Current = Arc<RwLock<Option<Snapshot>>>;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked with it left it whole: each change is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the pages of one memory come from, and which are there.
pub(super) struct Region {
    mapping: Arc<Mapping>,
    marks: Arc<Mapping>,
    ram: Arc<Ram>,
    state: Mutex<State>,
}

pub(super) struct State {
    current: Current,
    space: SpaceId,
    /// Pages below this number come from the snapshot; the others start as zeros.
    pub(super) pages: u64,
    /// One bit for each of them that is in memory.
    present: Vec<u64>,
    /// The page after the last one filled, and how many were filled with it.
    next: u64,
    window: u64,
    /// Why the content of some page is not what was committed.
    pub(super) failed: Option<String>,
    /// Faults are not served any more.
    detached: bool,
}

impl State {
    pub(super) fn is_present(&self, page: u64) -> bool {
        page >= self.pages
            || self.present.get((page / 64) as usize).is_some_and(|bits| bits >> (page % 64) & 1 == 1)
    }

    fn set_present(&mut self, page: u64) {
        if let Some(bits) = self.present.get_mut((page / 64) as usize) {
            *bits |= 1 << (page % 64);
        }
    }

    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn read(&self, snapshot: &Snapshot, page: u64, into: &mut Page) -> Result<(), ReadError> {
        snapshot.read_page(self.space, page, into)
    }
}

impl Region {
    pub(super) fn new(
        mapping: Arc<Mapping>,
        marks: Arc<Mapping>,
        ram: Arc<Ram>,
        current: Current,
        space: SpaceId,
    ) -> Self {
        let state = State {
            current,
            space,
            pages: 0,
            present: Vec::new(),
            next: 0,
            window: MIN_WINDOW,
            failed: None,
            detached: false,
        };
        Self { mapping, marks, ram, state: Mutex::new(state) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// These pages are in memory from now on, so what lies behind the page before each may be looked at.
    fn arrived(&self, first: u64, end: u64) {
        let first = first.max(1);
        if first < end {
            self.marks.set_bytes(u64::from(layout::READY) + first - 1, end - first, 1);
        }
    }

    /// Serves a fault: reads the page, and some after it, and puts them where they belong.
    fn serve(&self, faults: &Faults, address: usize, buffer: &mut Vec<Page>) {
        let mut state = self.state();
        if state.detached {
            return;
        }
        let first = ((address - self.mapping.address()) / PAGE) as u64;
        state.window = if first == state.next { (state.window * 2).min(MAX_WINDOW) } else { MIN_WINDOW };
        let end = (first + state.window).min(state.pages);
        let end = (first..end).find(|page| state.is_present(*page)).unwrap_or(end);
        state.next = end;
        if end == first {
            // Served already, together with another.
            let _ = faults.wake(address & !(PAGE - 1), PAGE);
            return;
        }
        buffer.clear();
        let snapshot = state.snapshot();
        let short = self.ram.take(end - first).err();
        for page in first..end {
            let mut data = [0; PAGE];
            let read = match &snapshot {
                _ if let Some(short) = short => Err(short.to_string()),
                Some(snapshot) => state.read(snapshot, page, &mut data).map_err(|error| error.to_string()),
                None => Err("there is no snapshot to read from".to_owned()),
            };
            match read {
                Ok(()) => buffer.push(data),
                // Zeros let the program go on until somebody looks whether this failed.
                Err(why) if page == first => {
                    state.failed = Some(why);
                    buffer.push([0; PAGE]);
                    break;
                }
                Err(_) => break,
            }
        }
        let mut at = 0;
        while at < buffer.len() {
            let zero = buffer[at] == super::ZERO;
            let run = buffer[at..].iter().take_while(|page| (**page == super::ZERO) == zero).count();
            let start = self.mapping.address() + (first as usize + at) * PAGE;
            let filled = if zero {
                faults.fill_zero(start, run * PAGE)
            } else {
                faults.fill(start, buffer[at..at + run].as_flattened())
            };
            if let Err(error) = filled {
                state.failed = Some(format!("a page cannot be put into memory: {error}"));
                let _ = faults.wake(start, run * PAGE);
                return;
            }
            let (from, to) = (first + at as u64, first + (at + run) as u64);
            (from..to).for_each(|page| state.set_present(page));
            self.arrived(from, to);
            at += run;
        }
    }
}

/// Fills memories with their committed content.
#[derive(Clone)]
pub(crate) struct Loader {
    lazy: Option<Arc<Lazy>>,
    pub(crate) ram: Arc<Ram>,
}

struct Lazy {
    faults: Faults,
    /// Regions by the address of their first byte.
    regions: Mutex<BTreeMap<usize, Arc<Region>>>,
}

impl Loader {
    /// Fills memories page by page, where the kernel lets this process serve faults.
    pub(crate) fn lazy(ram: Arc<Ram>) -> Self {
        // One for the process: the thread that serves faults must outlive whatever may fault.
        static LAZY: OnceLock<Option<Arc<Lazy>>> = OnceLock::new();
        let start = || -> io::Result<Arc<Lazy>> {
            let lazy = Arc::new(Lazy { faults: Faults::open()?, regions: Mutex::new(BTreeMap::new()) });
            let serving = lazy.clone();
            std::thread::Builder::new().name("page-loader".into()).spawn(move || serving.serve())?;
            Ok(lazy)
        };
        let lazy = LAZY.get_or_init(|| {
            let warn =
                |error: &io::Error| tracing::warn!("memories are read as a whole: userfaultfd: {error}");
            start().inspect_err(warn).ok()
        });
        Self { lazy: lazy.clone(), ram }
    }

    /// Fills each memory as a whole.
    pub(crate) fn whole(ram: Arc<Ram>) -> Self {
        Self { lazy: None, ram }
    }

    /// Pages are read when they are touched, rather than all at the start.
    pub(crate) fn is_lazy(&self) -> bool {
        self.lazy.is_some()
    }

    /// Fills the first `pages` pages of a region, of which nothing was touched yet.
    pub(super) fn attach(&self, region: &Arc<Region>, pages: u64) -> Result<(), String> {
        {
            let mut state = region.state();
            state.pages = pages;
            state.present = vec![0; pages.div_ceil(64) as usize];
        }
        if pages == 0 {
            return Ok(());
        }
        let Some(lazy) = &self.lazy else { return load_all(region) };
        let start = region.mapping.address();
        lock(&lazy.regions).insert(start, region.clone());
        lazy.faults
            .register(start, pages as usize * PAGE)
            .map_err(|error| format!("faults cannot be served: {error}"))
    }

    /// Ends the filling, before the memory goes away.
    pub(super) fn detach(&self, region: &Region) {
        let Some(lazy) = &self.lazy else { return };
        let start = region.mapping.address();
        if lock(&lazy.regions).remove(&start).is_some() {
            let mut state = region.state();
            state.detached = true;
            let _ = lazy.faults.unregister(start, state.pages as usize * PAGE);
        }
    }
}

fn load_all(region: &Region) -> Result<(), String> {
    let mut state = region.state();
    let snapshot = state.snapshot().ok_or("there is no snapshot to read from")?;
    let mut from = 0;
    let mut data = [0; PAGE];
    loop {
        let pages = snapshot.present_pages(state.space, from, CHUNK).map_err(|error| error.to_string())?;
        region.ram.take(pages.len() as u64).map_err(|short| short.to_string())?;
        for page in &pages {
            state.read(&snapshot, *page, &mut data).map_err(|error| error.to_string())?;
            region.mapping.write(*page, &data);
        }
        match pages.last() {
            Some(last) if pages.len() == CHUNK => from = last + 1,
            _ => break,
        }
    }
    state.present.fill(u64::MAX);
    region.arrived(0, state.pages);
    Ok(())
}

impl Lazy {
    fn serve(self: Arc<Self>) {
        let (mut addresses, mut buffer) = (Vec::new(), Vec::new());
        loop {
            // With this thread gone, whoever touches a missing page would wait for ever.
            if let Err(error) = self.faults.wait(&mut addresses) {
                if error.kind() != io::ErrorKind::Interrupted {
                    tracing::error!("waiting for page faults failed: {error}; restart the replica");
                    std::thread::sleep(std::time::Duration::from_secs(1));
                }
                continue;
            }
            for address in &addresses {
                let region =
                    lock(&self.regions).range(..=address).next_back().map(|(_, region)| region.clone());
                if let Some(region) = region {
                    region.serve(&self.faults, *address, &mut buffer);
                }
            }
        }
    }
}
