//! What the simulated media hold, a medium that records, and one on which a crash state is tried.

use crate::history::Model;
use heap::mutants::{self, Mutant};
use heap::{Media, MediaError, MediaKind};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// First lengths of the simulated media in bytes: one soon runs full, on the other a commit may take half the ring.
pub(crate) const LENGTHS: [usize; 2] = [16384 + 32768 + 160 * 4096, 16384 + 32768 + 256 * 4096];
/// Bytes by which a medium may have grown at a start.
pub(crate) const GROWTH: usize = 16 * 4096;
/// Largest length.
pub(crate) const MOST: usize = LENGTHS[1] + 3 * GROWTH;
pub(crate) const BLOCK: usize = 4096;

#[derive(Clone)]
pub(crate) struct Write {
    pub(crate) offset: usize,
    pub(crate) bytes: Arc<[u8]>,
}

impl Write {
    pub(crate) fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }
}

pub(crate) enum Event {
    Write(Write),
    Fence,
    /// A commit to this state has begun.
    Begin(Arc<Model>),
    /// This state has been acknowledged, or shown after an open.
    Stable(Arc<Model>),
    /// The heap is put under another key from here on.
    Rekeying,
    /// It is under this key alone.
    Rekeyed(usize),
}

/// A medium as it stands between sessions, and the states that may be found on it.
#[derive(Clone)]
pub(crate) struct Disk {
    /// What survives for certain.
    pub(crate) durable: Vec<u8>,
    pub(crate) length: usize,
    /// Written and not fenced, in the order of writing.
    pub(crate) pending: Vec<Write>,
    pub(crate) allowed: Vec<Arc<Model>>,
    /// A heap has been shown on it, so it may grow.
    pub(crate) initialised: bool,
    /// Frames keep to disk blocks, not to cache lines.
    pub(crate) aligned: bool,
    /// The key that it is under; `None`: one of the two.
    pub(crate) under: Option<usize>,
}

impl Disk {
    pub(crate) fn blank(length: usize, aligned: bool) -> Self {
        let allowed = vec![Arc::new(Model::default())];
        let (durable, pending) = (vec![0; MOST], Vec::new());
        Self { durable, length, pending, allowed, initialised: false, aligned, under: Some(0) }
    }

    pub(crate) fn fence(&mut self) {
        let (durable, pending) = (&mut self.durable, &mut self.pending);
        let mut stays = Vec::new();
        for write in pending.drain(..) {
            if mutants::chosen() == Some(Mutant::LineNotFlushed) && write.bytes.len() > 64 {
                // The last line stays in the processor's cache until something else drives it out.
                let (flushed, last) = write.bytes.split_at(write.bytes.len() - 64);
                durable[write.offset..][..flushed.len()].copy_from_slice(flushed);
                stays.push(Write { offset: write.end() - 64, bytes: last.into() });
            } else {
                durable[write.offset..write.end()].copy_from_slice(&write.bytes);
            }
        }
        *pending = stays;
    }
}

fn outside(offset: u64, length: usize, media: usize) -> Result<usize, MediaError> {
    let end = offset.checked_add(length as u64);
    if end.is_some_and(|end| end <= media as u64) {
        return Ok(offset as usize);
    }
    let source = io::ErrorKind::UnexpectedEof.into();
    Err(MediaError { action: "reach outside the medium".into(), offset, length: length as u64, source })
}

fn kind(aligned: bool) -> MediaKind {
    if aligned { MediaKind::File } else { MediaKind::Memory }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers writes and fences; reads see all writes.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<Mutex<(Vec<u8>, Vec<Event>)>>, usize, bool);

impl Recorder {
    pub(crate) fn new(disk: &Disk) -> Self {
        let mut bytes = disk.durable.clone();
        for write in &disk.pending {
            bytes[write.offset..write.end()].copy_from_slice(&write.bytes);
        }
        Self(Arc::new(Mutex::new((bytes, Vec::new()))), disk.length, disk.aligned)
    }

    pub(crate) fn push(&self, event: Event) {
        lock(&self.0).1.push(event);
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut lock(&self.0).1)
    }
}

impl Media for Recorder {
    fn len(&self) -> u64 {
        self.1 as u64
    }
    fn kind(&self) -> MediaKind {
        kind(self.2)
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let offset = outside(offset, into.len(), self.1)?;
        into.copy_from_slice(&lock(&self.0).0[offset..][..into.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        let offset = outside(offset, bytes.len(), self.1)?;
        let (content, events) = &mut *lock(&self.0);
        content[offset..][..bytes.len()].copy_from_slice(bytes);
        events.push(Event::Write(Write { offset, bytes: bytes.into() }));
        Ok(())
    }
    fn fence(&self) -> Result<(), MediaError> {
        self.push(Event::Fence);
        Ok(())
    }
}

/// A read by the heap that may have met pending writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) offset: usize,
    pub(crate) length: usize,
    /// It was found not to be authentic, and nothing of it was used.
    pub(crate) refused: bool,
    /// The same holds of the next read, which only followed from it.
    pub(crate) led: bool,
}

/// A medium on which crash states are tried, one after the other.
#[derive(Clone)]
pub(crate) struct Trial(Arc<Mutex<Trying>>);

pub(crate) struct Trying {
    bytes: Vec<u8>,
    pub(crate) length: usize,
    pub(crate) aligned: bool,
    /// What differs from the durable content: offset and length.
    touched: Vec<(usize, usize)>,
    /// Blocks in which something is pending.
    watched: Vec<bool>,
    reads: Vec<Read>,
    /// Where the last two reads stand in `reads`, the last one first.
    last: [Option<usize>; 2],
}

impl Trial {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Trying {
            bytes: vec![0; MOST],
            length: MOST,
            aligned: false,
            touched: Vec::new(),
            watched: vec![false; MOST / BLOCK],
            reads: Vec::new(),
            last: [None; 2],
        })))
    }

    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut Trying) -> T) -> T {
        run(&mut lock(&self.0))
    }
}

impl Trying {
    /// Takes a disk's durable content.
    pub(crate) fn load(&mut self, durable: &[u8]) {
        self.bytes.copy_from_slice(durable);
        self.touched.clear();
    }

    /// The medium has become what the disk is after a fence over these writes.
    pub(crate) fn fence(&mut self, durable: &[u8], writes: &[Write]) {
        self.touched.extend(writes.iter().map(|write| (write.offset, write.bytes.len())));
        self.restore(durable);
    }

    /// Watches pending writes.
    pub(crate) fn watch(&mut self, writes: &[Write]) {
        self.watched.fill(false);
        for write in writes {
            self.watched[write.offset / BLOCK..write.end().div_ceil(BLOCK)].fill(true);
        }
    }

    pub(crate) fn patch(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
        self.touched.push((offset, bytes.len()));
    }

    /// Flips a bit.
    pub(crate) fn flip(&mut self, offset: usize, bit: u64) {
        self.bytes[offset] ^= 1 << bit;
        self.touched.push((offset, 1));
    }

    /// Begins to note reads.
    pub(crate) fn begin(&mut self) {
        self.reads.clear();
        self.last = [None; 2];
        mutants::refusals(|_| ());
    }

    /// What was read.
    pub(crate) fn reads(&mut self) -> Vec<Read> {
        self.judge();
        std::mem::take(&mut self.reads)
    }

    /// All of it.
    pub(crate) fn content(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// Back to the durable content.
    pub(crate) fn restore(&mut self, durable: &[u8]) {
        for (offset, length) in self.touched.drain(..) {
            self.bytes[offset..][..length].copy_from_slice(&durable[offset..][..length]);
        }
    }

    /// Notes which reads were refused since.
    fn judge(&mut self) {
        let (last, reads) = (self.last, &mut self.reads);
        mutants::refusals(|refusal| {
            let at = last.get(refusal.back).copied().flatten();
            if let Some(read) = at.and_then(|at| reads.get_mut(at)) {
                (read.refused, read.led) = (true, refusal.led);
            }
        });
    }
}

impl Media for Trial {
    fn len(&self) -> u64 {
        self.with(|trying| trying.length as u64)
    }
    fn kind(&self) -> MediaKind {
        self.with(|trying| kind(trying.aligned))
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.with(|trying| {
            let (offset, length) = (outside(offset, into.len(), trying.length)?, into.len());
            into.copy_from_slice(&trying.bytes[offset..][..length]);
            trying.judge();
            let watched = &trying.watched[offset / BLOCK..(offset + length).div_ceil(BLOCK)];
            let meets = watched.contains(&true);
            trying.last = [meets.then_some(trying.reads.len()), trying.last[0]];
            if meets {
                trying.reads.push(Read { offset, length, refused: false, led: false });
            }
            Ok(())
        })
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        self.with(|trying| {
            trying.patch(outside(offset, bytes.len(), trying.length)?, bytes);
            Ok(())
        })
    }
    fn fence(&self) -> Result<(), MediaError> {
        Ok(())
    }
}
