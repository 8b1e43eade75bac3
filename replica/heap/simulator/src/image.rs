//! Media: one that records, and images after power cuts that share the unchanged blocks.

use crate::model::{Model, Random};
use heap::{Media, MediaError, MediaKind};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Length of the simulated media in bytes.
pub(crate) const LENGTH: u64 = 16384 + 32768 + 160 * 4096;
/// Bytes by which a medium may have grown at a start.
pub(crate) const GROWTH: u64 = 16 * 4096;
const BLOCK: usize = 4096;
/// Ways in which a power cut treats the pending writes.
pub(crate) const CUTS: u64 = 18;

#[derive(Clone)]
pub(crate) struct Write {
    pub(crate) offset: usize,
    pub(crate) bytes: Arc<[u8]>,
}

pub(crate) enum Event {
    Write(Write),
    Fence,
    /// A commit to this state has begun.
    Begin(Arc<Model>),
    /// This state has been acknowledged, or shown after an open.
    Stable(Arc<Model>),
}

type Blocks = HashMap<usize, Arc<[u8; BLOCK]>>;

fn patch(blocks: &mut Blocks, mut offset: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (block, at) = (offset / BLOCK, offset % BLOCK);
        let count = bytes.len().min(BLOCK - at);
        let place = Arc::make_mut(blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK])));
        place[at..at + count].copy_from_slice(&bytes[..count]);
        (offset, bytes) = (offset + count, &bytes[count..]);
    }
}

/// A medium as it stands between sessions, and the states that may be found on it.
#[derive(Clone)]
pub(crate) struct Disk {
    /// What survives for certain; blocks that are missing are zero.
    durable: Arc<Blocks>,
    pub(crate) pending: Vec<Write>,
    pub(crate) allowed: Vec<Arc<Model>>,
    pub(crate) initialised: bool,
    pub(crate) opened: bool,
    /// Frames keep to disk blocks, not to cache lines.
    aligned: bool,
}

impl Disk {
    pub(crate) fn blank(aligned: bool) -> Self {
        let allowed = vec![Arc::new(Model::default())];
        let (durable, pending) = (Arc::default(), Vec::new());
        Self { durable, pending, allowed, initialised: false, opened: false, aligned }
    }

    pub(crate) fn fence(&mut self) {
        let blocks = Arc::make_mut(&mut self.durable);
        for write in self.pending.drain(..) {
            patch(blocks, write.offset, &write.bytes);
        }
    }

    /// What a power cut leaves of the pending writes.
    pub(crate) fn cut(&self, cut: u64, random: &mut Random) -> Image {
        let mut image = Image::new(self);
        let count = self.pending.len();
        let stop = random.below(count as u64 + 1) as usize;
        let rare = 1 << random.below(8);
        let first_frame = self.pending.iter().position(|write| write.bytes.starts_with(b"RHL2"));
        let header_word = random.below(4) as usize;
        for (index, Write { offset, bytes }) in self.pending.iter().enumerate() {
            let words = bytes.len() / 8;
            let keep = |image: &mut Image, from: usize, to: usize| {
                patch(&mut image.patched(*offset, bytes.len()), offset + from * 8, &bytes[from * 8..to * 8]);
            };
            match cut {
                0 => {}
                1 => keep(&mut image, 0, words),
                2 | 3 if index < stop => keep(&mut image, 0, words),
                2 | 3 if index > stop => {}
                2 | 3 => keep(&mut image, 0, random.below(words as u64 + 1) as usize),
                4 => keep(&mut image, 0, if index + 1 == count { words } else { words / 2 }),
                5 | 6 if random.below(2) == 0 => keep(&mut image, 0, words),
                5 | 6 => {}
                // All but the first, all but the last write.
                7 if index == 0 => {}
                8 if index + 1 == count => {}
                7 | 8 => keep(&mut image, 0, words),
                // One word lost; one word kept, mostly of the first ones, where headers are.
                9 | 10 => {
                    let among = [4, 16, words][random.below(3) as usize].min(words);
                    let word = random.below(among as u64) as usize;
                    if cut == 9 {
                        keep(&mut image, 0, word);
                        keep(&mut image, word + 1, words);
                    } else {
                        keep(&mut image, word, word + 1);
                    }
                }
                // All but a word of the header of the first frame; only that word, which may complete the same
                // place as an earlier crash left it.
                14 if Some(index) == first_frame => {
                    keep(&mut image, 0, header_word);
                    keep(&mut image, header_word + 1, words);
                }
                14 => keep(&mut image, 0, words),
                15 if Some(index) == first_frame => keep(&mut image, header_word, header_word + 1),
                15 => {}
                // Some words lost, some kept.
                _ => {
                    let mut word = 0;
                    while word < words {
                        let run = 1 + random.below(rare) as usize;
                        let end = (word + run).min(words);
                        if random.below(2) == 0 {
                            keep(&mut image, word, end);
                        }
                        word = end;
                    }
                }
            }
        }
        image
    }

    /// The disk after a power cut, or after the process was killed: then writes stay readable, not durable.
    pub(crate) fn crash(&self, random: &mut Random) -> Self {
        let mut disk = self.clone();
        if random.below(3) > 0 {
            let image = self.cut(random.below(CUTS), random);
            let blocks = Arc::make_mut(&mut disk.durable);
            blocks.extend(image.blocks.lock().unwrap_or_else(PoisonError::into_inner).drain());
            disk.pending.clear();
        }
        disk
    }
}

/// A medium made of blocks shared with a disk and blocks of its own.
pub(crate) struct Image {
    base: Arc<Blocks>,
    blocks: Mutex<Blocks>,
    pub(crate) length: u64,
    aligned: bool,
}

impl Image {
    fn new(disk: &Disk) -> Self {
        let (base, aligned) = (disk.durable.clone(), disk.aligned);
        Self { base, blocks: Mutex::default(), length: LENGTH, aligned }
    }

    /// Flips a bit of some block behind the ring.
    pub(crate) fn rot(&self, random: &mut Random) {
        let behind = self.base.keys().filter(|block| **block >= 12);
        let chosen = behind.copied().min_by_key(|block| (*block as u64 ^ random.below(64)) % 64);
        if let Some(block) = chosen {
            let at = random.below(BLOCK as u64) as usize;
            let mut blocks = self.patched(block * BLOCK, BLOCK);
            if let Some(block) = blocks.get_mut(&block) {
                Arc::make_mut(block)[at] ^= 1 << random.below(8);
            }
        }
    }

    /// The own blocks, with those of a range copied from the base.
    fn patched(&self, offset: usize, length: usize) -> std::sync::MutexGuard<'_, Blocks> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        for block in offset / BLOCK..(offset + length).div_ceil(BLOCK) {
            if let Some(base) = self.base.get(&block) {
                blocks.entry(block).or_insert_with(|| base.clone());
            }
        }
        blocks
    }

    fn read_into(&self, mut offset: usize, mut into: &mut [u8]) {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        while !into.is_empty() {
            let (block, at) = (offset / BLOCK, offset % BLOCK);
            let count = into.len().min(BLOCK - at);
            let (head, tail) = into.split_at_mut(count);
            match blocks.get(&block).or_else(|| self.base.get(&block)) {
                Some(block) => head.copy_from_slice(&block[at..at + count]),
                None => head.fill(0),
            }
            (offset, into) = (offset + count, tail);
        }
    }
}

fn outside(offset: u64, length: usize, media: u64) -> Result<(), MediaError> {
    if offset.checked_add(length as u64).is_some_and(|end| end <= media) {
        return Ok(());
    }
    let source = io::ErrorKind::UnexpectedEof.into();
    Err(MediaError { action: "reach outside the image".into(), offset, length: length as u64, source })
}

impl Media for Image {
    fn len(&self) -> u64 {
        self.length
    }
    fn kind(&self) -> MediaKind {
        if self.aligned { MediaKind::File } else { MediaKind::Memory }
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        outside(offset, into.len(), self.length)?;
        self.read_into(offset as usize, into);
        Ok(())
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        outside(offset, bytes.len(), self.length)?;
        patch(&mut self.patched(offset as usize, bytes.len()), offset as usize, bytes);
        Ok(())
    }
    fn fence(&self) -> Result<(), MediaError> {
        Ok(())
    }
}

/// Remembers writes and fences; reads see all writes.
#[derive(Clone)]
pub(crate) struct Recorder {
    image: Arc<Image>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Recorder {
    pub(crate) fn new(disk: &Disk) -> Self {
        let image = Image::new(disk);
        for write in &disk.pending {
            patch(&mut image.patched(write.offset, write.bytes.len()), write.offset, &write.bytes);
        }
        Self { image: Arc::new(image), events: Arc::default() }
    }

    pub(crate) fn push(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Media for Recorder {
    fn len(&self) -> u64 {
        self.image.len()
    }
    fn kind(&self) -> MediaKind {
        self.image.kind()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.image.read(offset, into)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        self.push(Event::Write(Write { offset: offset as usize, bytes: bytes.into() }));
        self.image.write(offset, bytes)
    }
    fn fence(&self) -> Result<(), MediaError> {
        self.push(Event::Fence);
        Ok(())
    }
}
