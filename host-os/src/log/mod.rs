//! The agent's log: entries with fields, in a ring on the node's disk.
//!
//! The file has its whole size from the beginning, so that a full disk does not end the log and the log fills no disk. Warnings
//! and errors are flushed to the disk at once, everything else every second: a power cut costs the last second of small talk.
//! On a host the file lies on the state, which is encrypted by a secret that is sealed to the TPM.

pub mod entry;
mod kernel;
pub mod ring;

pub use entry::Entry;
pub(crate) use kernel::follow as follow_kernel;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Size of the file, in bytes.
pub const SIZE: usize = 8 << 20;
/// Between two flushes, if nothing urgent was said.
const FLUSH: Duration = Duration::from_secs(1);

/// The log, open for writing by the one agent of the node.
#[derive(Debug, Clone)]
pub struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: File,
    state: Mutex<State>,
    urgent: Condvar,
}

#[derive(Debug)]
struct State {
    /// Number of the next record, and where the last one ends.
    number: u64,
    end: usize,
    /// Something was written since the last flush; it is urgent.
    dirty: bool,
    urgent: bool,
    /// Entries that could not be written since the last one that could.
    lost: u64,
}

impl Log {
    /// Opens the log, and makes it if it is absent or has another size.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file =
            crate::node::open_options().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() != SIZE as u64 {
            file.set_len(0)?;
            nix::fcntl::posix_fallocate(&file, 0, SIZE as i64)?;
        }
        let bytes = read_whole(&file)?;
        let last = ring::scan(&bytes).last().map(|last| (last.number + 1, last.end));
        let (number, end) = last.unwrap_or_default();
        let state = State { number, end, dirty: false, urgent: false, lost: 0 };
        let shared = Arc::new(Shared { file, state: Mutex::new(state), urgent: Condvar::new() });
        let flushed = Arc::downgrade(&shared);
        std::thread::Builder::new().name("log".into()).spawn(move || {
            while let Some(shared) = flushed.upgrade() {
                shared.flush();
            }
        })?;
        Ok(Self(shared))
    }

    /// Adds an entry. What cannot be written is counted, and the next entry that can be says so.
    pub fn add(&self, entry: &Entry, urgent: bool) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entry = std::borrow::Cow::Borrowed(entry);
        if state.lost > 0 {
            entry.to_mut().fields.insert("entries_lost_before".into(), state.lost.into());
        }
        let mut text = serde_json::to_vec(&entry).unwrap_or_default();
        if text.len() > ring::MAX_TEXT {
            entry.to_mut().fields.clear();
            text = serde_json::to_vec(&entry).unwrap_or_default();
        }
        let record = ring::encode(state.number, &text);
        let at = ring::place(state.end, record.len(), SIZE);
        match self.0.file.write_all_at(&record, at as u64) {
            Ok(()) => {
                state.number += 1;
                state.end = at + record.len();
                state.lost = 0;
                state.dirty = true;
                state.urgent |= urgent;
                if urgent {
                    self.0.urgent.notify_one();
                }
            }
            Err(_) => state.lost += 1,
        }
    }

    /// Everything said so far is on the disk when this returns.
    pub fn sync(&self) -> io::Result<()> {
        self.0.file.sync_data()
    }
}

impl Shared {
    /// Waits until there is something to flush, a second at most, and does it. The lock is not held meanwhile: a slow disk holds
    /// nobody up who has something to say.
    fn flush(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.urgent.wait_timeout_while(state, FLUSH, |state| !state.urgent);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let dirty = std::mem::take(&mut state.dirty);
        state.urgent = false;
        drop(state);
        if dirty {
            // The drive's errors are the kernel's to tell; see `kernel`.
            let _ = self.file.sync_data();
        }
    }
}

/// Whoever says something with `tracing` is heard here.
impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.add(&Entry::of_event(event), *event.metadata().level() <= Level::WARN);
    }
}

fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(SIZE);
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Reads a log, also while its agent writes it: each time what is new.
#[derive(Debug)]
pub struct Reader {
    file: File,
    next: u64,
}

impl Reader {
    /// Opens the log.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, next: 0 })
    }

    /// The entries since the last call, the oldest first; at first, all. Where some are missing, an entry says so.
    pub fn read(&mut self) -> io::Result<Vec<Entry>> {
        let bytes = read_whole(&self.file)?;
        let (mut entries, from) = (Vec::new(), self.next);
        for record in ring::scan(&bytes).into_iter().filter(|record| record.number >= from) {
            let Ok(entry) = serde_json::from_slice::<Entry>(record.text) else { continue };
            let missing = record.number - self.next;
            if missing > 0 && self.next > 0 {
                let message =
                    format!("{missing} entries are missing here: overwritten, or lost in a power cut");
                let target = module_path!().to_owned();
                let (level, fields) = ("WARN".to_owned(), serde_json::Map::new());
                entries.push(Entry { time_ms: entry.time_ms, level, target, message, fields });
            }
            self.next = record.number + 1;
            entries.push(entry);
        }
        Ok(entries)
    }
}

/// The last entries of a log, the oldest first.
pub fn last(path: &Path, count: usize) -> io::Result<Vec<Entry>> {
    let mut entries = Reader::open(path)?.read()?;
    Ok(entries.split_off(entries.len().saturating_sub(count)))
}

#[cfg(test)]
pub(crate) mod tests;
