//! Runs the heap on a medium that records writes and fences, makes images of what a power cut could leave at
//! each of them, recovers each image with the real code, and demands exactly the last acknowledged state, or one
//! that was in flight. Sessions go on from such images, so crashes during recovery, initialisation, checkpoints
//! and growth of the medium are covered alike.

mod image;
mod model;

pub use model::Random;

use heap::mutants::{self, Mutant};
use heap::{CommitError, Heap, Key, OpenOptions};
use image::{CUTS, Disk, Event, GROWTH, LENGTH, Recorder};
use model::{Check, Model, batch, ops};
use std::collections::HashSet;
use std::sync::Arc;

/// What was explored.
#[derive(Debug, Default, Clone, Copy)]
pub struct Explored {
    /// Crash states recovered and checked.
    pub states: u64,
    /// Sessions run.
    pub sessions: u64,
}

/// One simulated history after another from a seed.
pub struct Simulator {
    random: Random,
    keys: [Key; 2],
    /// Nonces of all sealed writes of this history.
    nonces: HashSet<Vec<u8>>,
    /// What was explored so far.
    pub explored: Explored,
}

impl Simulator {
    /// A simulator whose every choice follows from the seed.
    pub fn new(seed: u64) -> Self {
        let keys = [Key::new([7; 32]), Key::plain()];
        Self { random: Random(seed), keys, nonces: HashSet::new(), explored: Explored::default() }
    }

    /// Explores one history, with an omission switched on or none. The error says what was violated.
    pub fn history(&mut self, mutant: Option<Mutant>) -> Result<(), String> {
        mutants::choose(mutant);
        self.nonces.clear();
        let key = usize::from(self.random.below(3) == 0);
        let aligned = self.random.below(4) == 0;
        let mut disk = Disk::blank(aligned);
        let result = (0..1 + self.random.below(6)).try_for_each(|_| {
            disk = self.session(&disk, key)?;
            Ok(())
        });
        mutants::choose(None);
        result
    }

    /// Opens the disk, commits, explores every crash on the way; the disk as one of them left it.
    fn session(&mut self, disk: &Disk, key: usize) -> Result<Disk, String> {
        self.explored.sessions += 1;
        let (events, created) = self.run(disk, key)?;
        let chosen = self.random.below(events.len() as u64 + 1) as usize;
        let mut disk = disk.clone();
        disk.opened = false;
        let mut next = None;
        let mut initialised = disk.initialised && !created;
        for (index, event) in events.into_iter().enumerate() {
            match event {
                Event::Write(write) => {
                    self.check_nonce(&write.bytes, write.offset, key)?;
                    disk.pending.push(write);
                }
                Event::Fence => disk.fence(),
                Event::Begin(model) => {
                    disk.allowed.push(model);
                    continue;
                }
                Event::Stable(model) => {
                    disk.allowed = vec![model];
                    (disk.initialised, disk.opened, initialised) = (true, true, true);
                }
            }
            if self.random.below(4) == 0 {
                self.explore(&disk, key, initialised)?;
            }
            if index == chosen {
                next = Some(disk.crash(&mut self.random));
            }
        }
        Ok(next.unwrap_or_else(|| disk.crash(&mut self.random)))
    }

    /// The session itself, on a medium where everything arrives.
    fn run(&mut self, disk: &Disk, key: usize) -> Result<(Vec<Event>, bool), String> {
        let recorder = Recorder::new(disk);
        let options = OpenOptions { create: true, ..OpenOptions::default() };
        let (mut heap, recovery) = Heap::open(Box::new(recorder.clone()), &self.keys[key], &options)
            .map_err(|error| format!("cannot open: {error:?}"))?;
        let check = Check::of(&heap, &mut self.random, true);
        let found = disk.allowed.iter().find(|model| check.agrees(model).is_ok());
        let mut model = found.cloned().ok_or_else(|| format!("opened another state: {check:?}"))?;
        recorder.push(Event::Stable(model.clone()));
        for _ in 0..self.random.below(14) {
            let mut failed = None;
            let group = if self.random.below(3) == 0 { 3 } else { 1 };
            for _ in 0..group {
                let ops = ops(&mut self.random);
                let mut next = Model::clone(&model);
                next.apply(&ops);
                let next = Arc::new(next);
                recorder.push(Event::Begin(next.clone()));
                match batch(&ops, |batch| heap.submit(batch)) {
                    Ok(_) => model = next,
                    Err(CommitError::Full { .. } | CommitError::TooLarge { .. }) => {}
                    Err(error) => failed = Some(error),
                }
            }
            let result = match failed {
                Some(error) => Err(error),
                None => heap.flush(),
            };
            result.map_err(|error| format!("cannot commit: {error:?}"))?;
            recorder.push(Event::Stable(model.clone()));
            let maintained = match self.random.below(10) {
                0 => heap.checkpoint(),
                1..4 => heap.maintain(self.random.below(4)).map(|_| ()),
                _ => Ok(()),
            };
            maintained.map_err(|error| format!("cannot maintain: {error:?}"))?;
        }
        drop(heap);
        Ok((recorder.take(), recovery.created))
    }

    /// No nonce is used for two contents. Frames and watermark cells show theirs.
    fn check_nonce(&mut self, bytes: &[u8], offset: usize, key: usize) -> Result<(), String> {
        let nonce = match (offset, bytes) {
            _ if key == 1 => return Ok(()),
            (8192 | 12288, cell) if cell.len() == 64 => &cell[8..20],
            (_, frame) if frame.starts_with(b"RHL2") => &frame[36..48],
            _ => return Ok(()),
        };
        if nonce.iter().any(|byte| *byte != 0) && !self.nonces.insert(nonce.to_vec()) {
            return Err("a nonce was used twice".into());
        }
        Ok(())
    }

    /// Recovers what crashes at this moment could leave.
    fn explore(&mut self, disk: &Disk, key: usize, initialised: bool) -> Result<(), String> {
        let cuts = if disk.pending.is_empty() { 1 } else { CUTS };
        for cut in 0..cuts {
            let mut image = disk.cut(cut, &mut self.random);
            if self.random.below(64) == 0 && initialised {
                image.length = LENGTH + GROWTH;
            }
            let rot = disk.opened && self.random.below(64) == 0;
            if rot {
                image.rot(&mut self.random);
            }
            self.explored.states += 1;
            let options = OpenOptions { create: true, ..OpenOptions::default() };
            let heap = match Heap::open(Box::new(image), &self.keys[key], &options) {
                Ok((heap, _)) => heap,
                Err(_) if rot => continue,
                Err(error) => return Err(format!("after cut {cut}: cannot open: {error:?}")),
            };
            let whole = rot || self.random.below(32) == 0;
            let check = Check::of(&heap, &mut self.random, whole);
            if rot {
                if check.torn {
                    return Err(format!("a flipped bit went unnoticed: {:?}", check.fault));
                }
                continue;
            }
            if !disk.allowed.iter().any(|model| check.agrees(model).is_ok()) {
                let why: Vec<_> = disk.allowed.iter().map(|model| check.agrees(model)).collect();
                return Err(format!("after cut {cut}: a state that is not allowed: {why:?}"));
            }
        }
        Ok(())
    }
}
