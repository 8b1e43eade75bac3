//! Crash simulator: the real code runs on a recording medium; at every write and fence, images are made of
//! what a power cut could leave, and the real recovery must give exactly the last acknowledged state, or the
//! one that was in flight. Power cuts and kills of the process chain into further sessions, so crashes during
//! recovery, initialisation and switches of the generation are covered alike.
//!
//! `HEAP_CRASH_SESSIONS` sets the number of sessions per test, `HEAP_CRASH_SEED` the first seed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

mod common;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use common::{Model, Random, SMALL, batch, create, key};
use heap::{Batch, Change, CommitError, Heap, Media, MediaError, MediaKind, MemMedia, SpaceId};

#[derive(Clone)]
struct Write {
    offset: usize,
    bytes: Vec<u8>,
}

enum Event {
    Write(Write),
    Fence,
    /// A commit to this state has begun.
    Begin(Arc<Model>),
    /// This state has been acknowledged (or shown after an open).
    Stable(Arc<Model>),
}

/// Fences of the protocol, named by what they make durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fence {
    Open,
    Initial,
    Base,
    Superblock,
    Log,
    Repair,
}

/// Remembers writes and fences; reads see all writes.
#[derive(Clone)]
struct Recorder {
    media: MemMedia,
    kind: MediaKind,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Recorder {
    fn push(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

impl Media for Recorder {
    fn len(&self) -> u64 {
        self.media.len()
    }
    fn kind(&self) -> MediaKind {
        self.kind
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.media.read(offset, into)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        assert!(offset.is_multiple_of(64) && bytes.len().is_multiple_of(64));
        self.push(Event::Write(Write { offset: offset as usize, bytes: bytes.to_vec() }));
        self.media.write(offset, bytes)
    }
    fn fence(&self) -> Result<(), MediaError> {
        self.push(Event::Fence);
        Ok(())
    }
}

/// A medium as it stands between sessions, and the states that may be found on it.
#[derive(Clone)]
struct Disk {
    durable: Vec<u8>,
    pending: Vec<Write>,
    allowed: Vec<Arc<Model>>,
    /// Whether it was initialised for certain.
    initialised: bool,
}

impl Disk {
    fn blank(length: usize) -> Self {
        let allowed = vec![Arc::new(Model::default())];
        Self { durable: vec![0; length], pending: Vec::new(), allowed, initialised: false }
    }

    fn visible(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for write in &self.pending {
            bytes[write.offset..][..write.bytes.len()].copy_from_slice(&write.bytes);
        }
        bytes
    }
}

/// How a power cut treats the writes since the last fence.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// None arrived.
    Nothing,
    /// All arrived.
    Everything,
    /// A prefix arrived, the last write of it torn.
    Prefix,
    /// The last write arrived, half of each earlier one.
    Halves,
    /// Any writes arrived.
    Writes,
    /// All arrived but for about one 8-byte word in n.
    WordsLost(u64),
    /// About one 8-byte word in n arrived.
    WordsKept(u64),
    /// Of the first 16 words of each write (its header) one did not arrive, all else did.
    HeaderWordLost,
    /// One of the first 16 words of each write arrived, nothing else: it may complete what the cut above left.
    HeaderWordKept,
    /// As `Writes`, and the tearing unit (line or disk block) of those that did not arrive holds garbage.
    Garbage(usize),
}

fn power_cut(disk: &Disk, cut: Cut, random: &mut Random) -> Vec<u8> {
    let mut image = disk.durable.clone();
    let stop = random.below(disk.pending.len() as u64 + 1) as usize;
    for (index, Write { offset, bytes }) in disk.pending.iter().enumerate() {
        let (offset, length) = (*offset, bytes.len());
        let mut words = |keep: &mut dyn FnMut(usize) -> bool| {
            for (word, content) in bytes.chunks(8).enumerate() {
                if keep(word) {
                    image[offset + word * 8..][..content.len()].copy_from_slice(content);
                }
            }
        };
        match cut {
            Cut::Nothing => {}
            Cut::Everything => words(&mut |_| true),
            Cut::Prefix if index < stop => words(&mut |_| true),
            Cut::Prefix if index > stop => {}
            Cut::Prefix => {
                let torn = random.below(length as u64 / 8 + 1) as usize;
                words(&mut |word| word < torn);
            }
            Cut::Halves => {
                let last = index + 1 == disk.pending.len();
                words(&mut |word| last || word < length / 16);
            }
            Cut::Writes => {
                let keep = random.chance(2);
                words(&mut |_| keep);
            }
            Cut::WordsLost(n) => words(&mut |_| !random.chance(n)),
            Cut::WordsKept(n) => words(&mut |_| random.chance(n)),
            Cut::HeaderWordLost => {
                let lost = random.below(16) as usize;
                words(&mut |word| word != lost);
            }
            Cut::HeaderWordKept => {
                let kept = random.below(16) as usize;
                words(&mut |word| word == kept);
            }
            Cut::Garbage(unit) => {
                let keep = random.chance(2);
                words(&mut |_| keep);
                if !keep {
                    let end = (offset + length).next_multiple_of(unit).min(image.len());
                    image[offset / unit * unit..end].iter_mut().for_each(|byte| *byte = random.next() as u8);
                }
            }
        }
    }
    image
}

/// The disk after a power cut: of the last write, only the words that `keep` accepts arrived; all earlier ones did.
fn torn_disk(disk: &Disk, keep: impl Fn(usize) -> bool) -> Disk {
    let mut before = disk.clone();
    let last = before.pending.pop();
    let mut durable = before.visible();
    if let Some(Write { offset, bytes }) = last {
        for (word, content) in bytes.chunks(8).enumerate().filter(|(word, _)| keep(*word)) {
            durable[offset + word * 8..][..content.len()].copy_from_slice(content);
        }
    }
    Disk { durable, pending: Vec::new(), ..before }
}

/// The simulator: checks images and keeps what must hold over the whole run.
struct Simulator {
    random: Random,
    kind: MediaKind,
    /// The fence that does nothing: the seeded omission.
    omitted: Option<Fence>,
    states: u64,
    fences: HashSet<Fence>,
    /// (salt, counter) of every frame ever written: must never repeat.
    nonces: HashSet<Vec<u8>>,
    full: u64,
    /// Whether the last session initialised the medium.
    created: bool,
}

impl Simulator {
    fn new(seed: u64, kind: MediaKind, omitted: Option<Fence>) -> Self {
        let (fences, nonces) = (HashSet::new(), HashSet::new());
        Self { random: Random(seed), kind, omitted, states: 0, fences, nonces, full: 0, created: false }
    }

    /// Opens the disk, commits, and explores every crash on the way. Returns the disk as one of them left it.
    fn session(&mut self, disk: &Disk, batches: &[Batch]) -> Result<Disk, String> {
        let (mut disk, events) = self.run(disk, batches)?;
        let chosen = self.random.below(events.len() as u64);
        let (mut next, mut index) = (disk.clone(), 0);
        self.replay(&mut disk, events, |simulator, at| {
            simulator.check_crashes(at)?;
            if index <= chosen {
                next = simulator.crash(at);
            }
            index += 1;
            Ok(())
        })?;
        Ok(next)
    }

    /// Opens the disk and commits. Returns the disk as it was, and what happened.
    fn run(&mut self, disk: &Disk, batches: &[Batch]) -> Result<(Disk, Vec<Event>), String> {
        let media = MemMedia::from_bytes(disk.visible());
        let recorder = Recorder { media, kind: self.kind, events: Arc::default() };
        let (mut heap, recovery) = Heap::open(Box::new(recorder.clone()), &key(), &create())
            .map_err(|error| format!("cannot open: {error}"))?;
        let mut model = Arc::new(Model::of(&heap));
        if !disk.allowed.contains(&model) {
            return Err(format!("opened {model:?}, allowed {:?}", disk.allowed));
        }
        recorder.push(Event::Stable(model.clone()));
        for batch in batches {
            let next = Arc::new(model.after(batch));
            recorder.push(Event::Begin(next.clone()));
            match heap.commit(batch.clone()) {
                Ok(_) => model = next,
                Err(CommitError::Full { .. }) => self.full += 1,
                Err(error) => return Err(format!("cannot commit: {error}")),
            }
            recorder.push(Event::Stable(model.clone()));
        }
        drop(heap);
        self.created = recovery.created;
        let events = std::mem::take(&mut *recorder.events.lock().unwrap());
        Ok((disk.clone(), events))
    }

    /// Lets events happen to a disk; calls `visit` after each that changes what a crash may leave.
    fn replay(
        &mut self,
        disk: &mut Disk,
        events: Vec<Event>,
        mut visit: impl FnMut(&mut Self, &Disk) -> Result<(), String>,
    ) -> Result<(), String> {
        let (mut last, mut opened) = (None, self.created);
        for event in events {
            match event {
                Event::Write(write) => {
                    if is_frame(&write) && !self.nonces.insert(write.bytes[40..64].to_vec()) {
                        return Err("a nonce was used twice".into());
                    }
                    last = Some(write.clone());
                    disk.pending.push(write);
                }
                Event::Fence => {
                    let fence = classify(last.as_ref(), !opened);
                    self.fences.insert(fence);
                    if self.omitted != Some(fence) {
                        disk.durable = disk.visible();
                        disk.pending.clear();
                    }
                    continue;
                }
                Event::Begin(model) => disk.allowed.push(model),
                Event::Stable(model) => {
                    disk.allowed = vec![model];
                    (disk.initialised, opened) = (true, true);
                }
            }
            visit(self, disk)?;
        }
        Ok(())
    }

    fn cuts(&mut self, disk: &Disk) -> Vec<Cut> {
        let mut cuts = vec![Cut::Nothing];
        if !disk.pending.is_empty() {
            let many = 1 << self.random.below(10);
            cuts.extend([Cut::Everything, Cut::Prefix, Cut::Prefix, Cut::Halves, Cut::Writes, Cut::Writes]);
            cuts.extend([Cut::WordsLost(many), Cut::WordsLost(16), Cut::WordsKept(2), Cut::WordsKept(many)]);
            cuts.extend([Cut::HeaderWordLost, Cut::HeaderWordLost, Cut::HeaderWordKept, Cut::HeaderWordKept]);
            if disk.initialised {
                cuts.push(Cut::Garbage(if self.kind == MediaKind::File { 4096 } else { 64 }));
            }
        }
        cuts
    }

    fn check_crashes(&mut self, disk: &Disk) -> Result<(), String> {
        for cut in self.cuts(disk) {
            let durable = power_cut(disk, cut, &mut self.random);
            self.check(&Disk { durable, pending: Vec::new(), ..disk.clone() }, cut)?;
        }
        Ok(())
    }

    /// Recovers a disk as a power cut left it.
    fn check(&mut self, disk: &Disk, cut: Cut) -> Result<(), String> {
        self.states += 1;
        let media = MemMedia::from_bytes(disk.durable.clone());
        let (heap, _) = Heap::open(Box::new(media), &key(), &create())
            .map_err(|error| format!("after {cut:?}: cannot open: {error}"))?;
        let found = Arc::new(Model::of(&heap));
        if !disk.allowed.contains(&found) {
            return Err(format!("after {cut:?}: found {found:?}, allowed {:?}", disk.allowed));
        }
        Ok(())
    }

    /// The disk after a power cut, or after the process was killed: then writes stay readable but not durable.
    fn crash(&mut self, disk: &Disk) -> Disk {
        let mut disk = disk.clone();
        if self.random.chance(3) {
            if let Some(last) = disk.pending.last_mut().filter(|_| self.random.chance(2)) {
                last.bytes.truncate(self.random.below(last.bytes.len() as u64 / 8 + 1) as usize * 8);
            }
        } else {
            let cuts = self.cuts(&disk);
            let cut = cuts[self.random.below(cuts.len() as u64) as usize];
            disk.durable = power_cut(&disk, cut, &mut self.random);
            disk.pending.clear();
        }
        disk
    }

    /// Every torn write of a first session that lacks one word of its header, with every write of the next session
    /// of which only that word arrived: the two must never make one whole.
    fn completions(&mut self, disk: &Disk, batches: [&[Batch]; 2]) -> Result<(), String> {
        for word in 0..16 {
            let (mut first, events) = self.run(disk, batches[0])?;
            let mut torn = Vec::new();
            self.replay(&mut first, events, |_, at| {
                torn.extend(at.pending.last().map(|_| torn_disk(at, |other| other != word)));
                Ok(())
            })?;
            for disk in torn {
                let (mut second, events) = self.run(&disk, batches[1])?;
                self.replay(&mut second, events, |simulator, at| {
                    simulator.check(&torn_disk(at, |other| other == word), Cut::HeaderWordKept)
                })?;
            }
        }
        Ok(())
    }

    /// A history: sessions on one medium, each begun where a crash left it.
    fn history(&mut self, sessions: u64) -> Result<(), String> {
        let mut disk = Disk::blank(SMALL);
        for _ in 0..sessions {
            let batches: Vec<Batch> = (0..self.random.below(8))
                .map(|_| {
                    let extra = self.random.below(3);
                    batch(&mut self.random, extra)
                })
                .collect();
            disk = self.session(&disk, &batches)?;
        }
        Ok(())
    }
}

fn is_frame(write: &Write) -> bool {
    write.bytes.starts_with(b"RHFr")
}

fn classify(last: Option<&Write>, recovering: bool) -> Fence {
    match last {
        None => Fence::Open,
        Some(write) if is_frame(write) && write.bytes[4] == 1 => Fence::Base,
        Some(write) if is_frame(write) => Fence::Log,
        Some(_) if recovering => Fence::Repair,
        Some(write) if write.offset == 0 && write.bytes[0] == 0 => Fence::Initial,
        Some(write) if write.offset == 0 => Fence::Superblock,
        Some(write) => panic!("a fence that the simulator does not know, after a write at {}", write.offset),
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn histories(kind: MediaKind) {
    let (sessions, first) = (setting("HEAP_CRASH_SESSIONS", 120), setting("HEAP_CRASH_SEED", 1));
    let (mut states, mut full, mut fences) = (0, 0, HashSet::new());
    for seed in first..first + sessions / 12 {
        let mut simulator = Simulator::new(seed, kind, None);
        if let Err(violation) = simulator.history(12) {
            panic!("seed {seed}: {violation}");
        }
        states += simulator.states;
        full += simulator.full;
        fences.extend(simulator.fences);
    }
    println!("{states} crash states, {full} commits refused for want of space");
    assert_eq!(fences.len(), 6, "every fence of the protocol was met: {fences:?}");
    assert!(full > 0 && states > 20 * sessions);
}

#[test]
fn no_crash_loses_or_tears_a_commit_on_nvram() {
    histories(MediaKind::Bar);
}

#[test]
fn no_crash_loses_or_tears_a_commit_in_a_file() {
    histories(MediaKind::File);
}

#[test]
fn commits_of_many_frames_are_atomic_too() {
    let mut simulator = Simulator::new(3, MediaKind::Bar, None);
    let mut disk = Disk::blank(2 << 20);
    for _ in 0..4 {
        let batches: Vec<Batch> = (0..3)
            .map(|_| {
                let fill = simulator.random.next() as u8 | 1;
                let page = |page| Change::Page { space: SpaceId(1), page, data: common::page(fill) };
                Batch { changes: (0..140).map(page).collect() }
            })
            .collect();
        disk = simulator.session(&disk, &batches).unwrap();
    }
    assert!(simulator.fences.contains(&Fence::Base) && simulator.fences.contains(&Fence::Log));
}

#[test]
fn no_torn_write_completes_an_earlier_one() {
    let mut simulator = Simulator::new(1, MediaKind::Bar, None);
    let pages = |fill: u8| {
        let page = move |number| Change::Page { space: SpaceId(1), page: number, data: common::page(fill) };
        Batch { changes: (0..4).map(page).collect() }
    };
    // 16 KiB each: the third of a generation of 40 KiB switches to the next.
    let [a, b, c, d] = [pages(1), pages(2), pages(3), pages(4)];
    let blank = Disk::blank(SMALL);
    simulator.completions(&blank, [&[], &[]]).unwrap();
    simulator.completions(&blank, [std::slice::from_ref(&a), std::slice::from_ref(&b)]).unwrap();
    let three = [a, b.clone(), c];
    simulator.completions(&blank, [&three, &[d.clone(), b.clone(), d]]).unwrap();
    assert!(simulator.fences.contains(&Fence::Superblock) && simulator.states > 3000, "{}", simulator.states);
}

/// If one of these passed unnoticed, the simulator would prove nothing, or the fence would be idle.
#[test]
fn every_omitted_fence_is_caught() {
    use Fence::{Base, Initial, Log, Open, Repair, Superblock};
    for omitted in [Open, Initial, Base, Superblock, Log, Repair] {
        let mut states = 0;
        let caught = (1..200).find_map(|seed| {
            let mut simulator = Simulator::new(seed, MediaKind::Bar, Some(omitted));
            let result = simulator.history(12);
            states += simulator.states;
            result.err()
        });
        let violation = caught.unwrap_or_else(|| panic!("nobody missed the fence {omitted:?}"));
        println!("{omitted:?}: after {states} states: {violation}");
    }
}
