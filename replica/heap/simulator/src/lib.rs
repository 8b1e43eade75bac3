//! Runs the heap on a medium that records writes and fences, draws states that a power cut could leave after
//! each write, and demands that recovery by the real code gives exactly the last acknowledged state, or one that
//! was in flight. States on which recovery reads the same are recovered once ([`classes`]). Sessions go on from
//! such states, so crashes during recovery, initialisation, checkpoints, growth of the medium and a change of the key
//! are covered alike.

mod classes;
mod cuts;
#[path = "../../tests/support/mod.rs"]
mod history;
mod medium;
#[cfg(test)]
mod tests;

use classes::Classes;
use cuts::{DRAWS, Layout, State, draw};
use heap::mutants::{self, Mutant};
use heap::{CommitError, Heap, Key, OpenOptions};
use history::{Bounds, Fault, Model, Random, create, ops, with_batch};
use medium::{BLOCK, Disk, Event, GROWTH, LENGTHS, MOST, Read, Recorder, Trial, Write};
use std::collections::HashSet;
use std::sync::Arc;

const BOUNDS: Bounds = Bounds { spaces: 3, keys: 3, near: 4, reach: 300, value: 9000, long: 64 };

/// What was explored.
#[derive(Debug, Default, Clone, Copy)]
pub struct Explored {
    /// Different crash states that were judged; states count as different if their media differ, or the moments
    /// between two fences at which they arise.
    pub states: u64,
    /// Recoveries that were run: one for each class of states, and the samples.
    pub recoveries: u64,
    /// Of these, states of known classes, recovered to hold the classes against reality.
    pub samples: u64,
    /// Recoveries of media with a flipped bit.
    pub flips: u64,
    /// Moments at which crashes were explored.
    pub moments: u64,
    /// Sessions run.
    pub sessions: u64,
}

impl std::ops::AddAssign for Explored {
    fn add_assign(&mut self, other: Self) {
        self.states += other.states;
        self.recoveries += other.recoveries;
        self.samples += other.samples;
        self.flips += other.flips;
        self.moments += other.moments;
        self.sessions += other.sessions;
    }
}

/// What a recovery came to.
#[derive(Debug)]
struct Outcome {
    /// Which of the states that are possible between two fences was found.
    agrees: u64,
    /// Why none could be read.
    fault: Option<String>,
}

impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        (self.agrees, self.fault.is_some()) == (other.agrees, other.fault.is_some())
    }
}

/// One simulated history after another from a seed.
pub struct Simulator {
    random: Random,
    keys: Keys,
    trial: Trial,
    bounds: Bounds,
    /// Nonces of all sealed writes of this history.
    nonces: HashSet<Vec<u8>>,
    /// What was explored so far.
    pub explored: Explored,
}

/// Keys of a heap, and how a session uses them.
struct Keys {
    /// Two that a sealed heap is under in turn.
    sealed: [Key; 2],
    plain: Key,
    /// The one that this session's caller has.
    given: usize,
    /// It has the other one as well, as somebody who changes keys does.
    both: bool,
    /// The one that the heap is known to be under, so that the other must not open it.
    alone: Option<usize>,
}

impl Keys {
    /// Key and options to open with.
    fn open(&self, sealed: bool) -> (&Key, OpenOptions) {
        if !sealed {
            return (&self.plain, create());
        }
        let former = self.both.then(|| self.sealed[1 - self.given].clone());
        (&self.sealed[self.given], OpenOptions { former, ..create() })
    }
}

/// What happens between two fences.
struct Interval<'a> {
    disk: &'a Disk,
    events: &'a [Event],
    /// Writes that may be lost: of `events`, and before them those of a process that was killed.
    writes: &'a [Write],
    sealed: bool,
    /// A heap has been shown in this session.
    shown: bool,
    /// Event at which the next session's crash happens.
    crash: Option<usize>,
}

impl Simulator {
    /// A simulator whose every choice follows from the seed.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            keys: Keys {
                sealed: [history::key(), Key::new([0xa5; 32])],
                plain: Key::plain(),
                given: 0,
                both: false,
                alone: None,
            },
            trial: Trial::new(),
            bounds: BOUNDS,
            nonces: HashSet::new(),
            explored: Explored::default(),
        }
    }

    /// Explores one history, with an omission switched on or none. The error says what was violated.
    pub fn history(&mut self, mutant: Option<Mutant>) -> Result<(), String> {
        mutants::choose(mutant);
        self.nonces.clear();
        let sealed = self.random.below(8) > 0;
        let kind = self.random.below(4) as usize;
        self.bounds.long = [3, 16, 64, 64][kind];
        // Trees of several levels are freed in many steps.
        self.bounds.reach = [300, 300, 20_000, 3_000_000][self.random.below(4) as usize];
        let mut disk = Disk::blank(LENGTHS[usize::from(kind == 0)], self.random.below(4) == 0);
        let sessions = 1 + self.random.below(6);
        let result = (0..sessions).try_for_each(|_| {
            disk = self.session(&disk, sealed)?;
            Ok(())
        });
        mutants::choose(None);
        result
    }

    /// Opens the disk, commits, explores every crash on the way; the disk as one of them left it.
    fn session(&mut self, disk: &Disk, sealed: bool) -> Result<Disk, String> {
        self.explored.sessions += 1;
        let mut disk = disk.clone();
        if disk.initialised && disk.length < MOST - GROWTH && self.random.below(8) == 0 {
            disk.length += GROWTH;
        }
        self.keys.both = disk.under.is_none() || self.random.below(6) == 0;
        self.keys.given = match disk.under {
            Some(under) if !self.keys.both => under,
            _ => self.random.below(2) as usize,
        };
        self.keys.alone = None;
        let events = self.run(&disk, sealed)?;
        let chosen = self.random.below(events.len() as u64) as usize;
        let (mut next, mut shown, mut at) = (None, false, 0);
        self.trial.with(|trying| trying.load(&disk.durable));
        loop {
            let fence = events[at..].iter().position(|event| matches!(event, Event::Fence));
            let end = fence.map_or(events.len(), |fence| at + fence);
            let mut writes = std::mem::take(&mut disk.pending);
            for event in &events[at..end] {
                if let Event::Write(write) = event {
                    self.check_nonce(&write.bytes, write.offset, sealed)?;
                    writes.push(write.clone());
                }
            }
            let crash = (at..=end).contains(&chosen).then(|| (chosen - at).min(end - at));
            let interval =
                Interval { disk: &disk, events: &events[at..end], writes: &writes, sealed, shown, crash };
            let (allowed, crashed) = self.interval(&interval)?;
            next = next.or(crashed);
            let stable = events[at..end].iter().any(|event| matches!(event, Event::Stable(_)));
            (shown, disk.initialised) = (shown || stable, disk.initialised || stable);
            (disk.allowed, disk.pending) = (allowed, writes);
            if fence.is_none() {
                break;
            }
            let writes = disk.pending.clone();
            disk.fence();
            self.trial.with(|trying| trying.fence(&disk.durable, &writes));
            at = end + 1;
        }
        next.ok_or_else(|| "no crash was chosen".to_owned())
    }

    /// The session itself, on a medium where everything arrives.
    fn run(&mut self, disk: &Disk, sealed: bool) -> Result<Vec<Event>, String> {
        let recorder = Recorder::new(disk);
        let (key, options) = self.keys.open(sealed);
        let mut under = self.keys.given;
        let (mut heap, _) = Heap::open(Box::new(recorder.clone()), key, &options)
            .map_err(|error| format!("cannot open: {error:?}"))?;
        recorder.push(Event::Rekeyed(under));
        let shown = Model::of(&heap.snapshot()).map_err(|fault| format!("opened: {fault:?}"))?;
        accounted(&heap)?;
        let found = disk.allowed.iter().find(|model| ***model == shown);
        let mut model = found.cloned().ok_or("opened a state that is not allowed")?;
        recorder.push(Event::Stable(model.clone()));
        for _ in 0..self.random.below(14) {
            let group = if self.random.below(3) == 0 { 3 } else { 1 };
            let mut result = Ok(0);
            for _ in 0..group {
                let ops = ops(&mut self.random, 4, &self.bounds);
                let mut next = Model::clone(&model);
                next.apply(&ops);
                let next = Arc::new(next);
                recorder.push(Event::Begin(next.clone()));
                result = result.and(match with_batch(&ops, |batch| heap.submit(batch)) {
                    Ok(epoch) => {
                        model = next;
                        Ok(epoch)
                    }
                    Err(CommitError::Full { .. } | CommitError::TooLarge { .. }) => Ok(0),
                    Err(error) => Err(error),
                });
            }
            result.and_then(|_| heap.flush()).map_err(|error| format!("cannot commit: {error:?}"))?;
            recorder.push(Event::Stable(model.clone()));
            let maintained = match self.random.below(10) {
                0 => heap.checkpoint(),
                1..4 => heap.maintain(self.random.below(4)).map(|_| ()),
                _ => Ok(()),
            };
            maintained.map_err(|error| format!("cannot maintain: {error:?}"))?;
            if sealed && self.keys.both && self.random.below(4) == 0 {
                recorder.push(Event::Rekeying);
                under = 1 - under;
                let changed = heap.rekey(&self.keys.sealed[under]);
                changed.map_err(|error| format!("cannot change the key: {error:?}"))?;
                recorder.push(Event::Rekeyed(under));
            }
        }
        drop(heap);
        Ok(recorder.take())
    }

    /// No nonce is used for two contents. Frames and watermark cells show theirs.
    fn check_nonce(&mut self, bytes: &[u8], offset: usize, sealed: bool) -> Result<(), String> {
        let nonce = match (offset, bytes) {
            _ if !sealed => return Ok(()),
            (8192 | 12288, cell) if cell.len() == 64 => &cell[8..20],
            (_, frame) if frame.starts_with(b"RHL") => &frame[36..48],
            _ => return Ok(()),
        };
        if nonce.iter().any(|byte| *byte != 0) && !self.nonces.insert(nonce.to_vec()) {
            return Err("a nonce was used twice".into());
        }
        Ok(())
    }

    /// Explores what crashes between two fences could leave. The states that are possible at its end, and the
    /// disk after the crash that was asked for.
    fn interval(&mut self, interval: &Interval<'_>) -> Result<(Vec<Arc<Model>>, Option<Disk>), String> {
        let Interval { disk, events, writes, .. } = *interval;
        let mut models = disk.allowed.clone();
        models.extend(events.iter().filter_map(|event| match event {
            Event::Begin(model) | Event::Stable(model) => Some(model.clone()),
            _ => None,
        }));
        if models.len() > 64 {
            return Err("too many states between two fences".into());
        }
        let grown = disk.initialised && interval.shown && self.random.below(8) == 0;
        self.trial.with(|trying| {
            trying.watch(writes);
            trying.length = disk.length + if grown && disk.length < MOST { GROWTH } else { 0 };
            trying.aligned = disk.aligned;
        });
        let mut classes = Classes::new(&disk.durable, writes, interval.sealed);
        let new = events.iter().filter(|event| matches!(event, Event::Write(_))).count();
        let mut judge = Judge {
            interval,
            models: &models,
            count: writes.len() - new,
            seen: HashSet::new(),
            allowed: u64::MAX >> (64 - disk.allowed.len()),
        };
        let mut begun = disk.allowed.len();
        let mut crashed = None;
        self.moment(&mut classes, &mut judge)?;
        for index in 0..=events.len() {
            if interval.crash == Some(index) {
                crashed = Some(self.crash(&classes.layout, &judge));
            }
            match events.get(index) {
                Some(Event::Write(_)) => {
                    judge.count += 1;
                    self.moment(&mut classes, &mut judge)?;
                }
                Some(Event::Begin(_)) => {
                    judge.allowed |= 1 << begun;
                    begun += 1;
                }
                Some(Event::Stable(model)) => {
                    // The same state may have been begun before.
                    let same = |(at, other): (usize, &Arc<Model>)| u64::from(other == model) << at;
                    judge.allowed = models.iter().enumerate().map(same).fold(0, |all, one| all | one);
                    begun += 1;
                    // Whatever could be found so far must be this now.
                    classes.outcomes.iter().try_for_each(|outcome| judge.right(outcome))?;
                }
                Some(Event::Rekeying) => self.keys.alone = None,
                Some(Event::Rekeyed(under)) => self.keys.alone = Some(*under),
                Some(Event::Fence) | None => {}
            }
        }
        Ok((judge.allowed(), crashed))
    }

    /// Explores crashes at one moment.
    fn moment(&mut self, classes: &mut Classes<'_, Outcome>, judge: &mut Judge<'_>) -> Result<(), String> {
        self.explored.moments += 1;
        let draws = match judge.interval.sealed {
            _ if judge.count == 0 => 1,
            true => DRAWS,
            // Most of them are classes of their own.
            false => DRAWS / 4,
        };
        for number in 0..draws {
            let writes = judge.interval.writes;
            let mut state = draw(&classes.layout, writes, judge.count, number, &mut self.random);
            classes.normalise(&mut state);
            if !judge.seen.insert(hash(&state)) {
                continue;
            }
            self.explored.states += 1;
            let class = match classes.find(&state) {
                Some(class) if self.random.below(256) > 0 => class,
                known => {
                    self.explored.samples += u64::from(known.is_some());
                    let (outcome, reads) = self.recover(classes, judge, &state)?;
                    classes.learn(&state, &reads, outcome)?
                }
            };
            judge.right(&classes.outcomes[class])?;
            if judge.interval.shown && self.random.below(512) == 0 {
                self.flip(classes, judge, &state)?;
            }
        }
        Ok(())
    }

    /// Recovers a state with the real code, and compares what it shows; what it read.
    fn recover(
        &mut self,
        classes: &Classes<'_, Outcome>,
        judge: &Judge<'_>,
        state: &State,
    ) -> Result<(Outcome, Vec<Read>), String> {
        self.explored.recoveries += 1;
        classes.lay_out(state, &self.trial);
        self.trial.with(medium::Trying::begin);
        let (key, options) = self.keys.open(judge.interval.sealed);
        let outcome = match Heap::open(Box::new(self.trial.clone()), key, &options) {
            Err(error) => (Outcome { agrees: 0, fault: Some(format!("cannot open: {error:?}")) }, None),
            Ok((heap, _)) => (judge.outcome(Model::of(&heap.snapshot())), Some(heap)),
        };
        let (outcome, heap) = outcome;
        let reads = self.trial.with(medium::Trying::reads);
        if let Some(heap) = heap.filter(|_| outcome.agrees != 0 && self.random.below(16) == 0) {
            accounted(&heap)?;
        }
        classes.restore(&self.trial);
        if let Some(under) = self.keys.alone.filter(|_| judge.interval.sealed && self.keys.both) {
            classes.lay_out(state, &self.trial);
            let former = &self.keys.sealed[1 - under];
            let opened = Heap::open(Box::new(self.trial.clone()), former, &OpenOptions::default());
            classes.restore(&self.trial);
            if opened.is_ok() {
                return Err("the former key opens the heap".into());
            }
        }
        Ok((outcome, reads))
    }

    /// Damage behind the ring is noticed: nothing wrong is shown.
    fn flip(
        &mut self,
        classes: &Classes<'_, Outcome>,
        judge: &Judge<'_>,
        state: &State,
    ) -> Result<(), String> {
        self.explored.flips += 1;
        classes.lay_out(state, &self.trial);
        let blocks = (judge.interval.disk.length / BLOCK - 12) as u64;
        let offset =
            (12 + self.random.below(blocks) as usize) * BLOCK + self.random.below(BLOCK as u64) as usize;
        let bit = self.random.below(8);
        self.trial.with(|trying| trying.flip(offset, bit));
        let (key, options) = self.keys.open(judge.interval.sealed);
        let options = OpenOptions { create: false, ..options };
        let result = match Heap::open(Box::new(self.trial.clone()), key, &options) {
            Err(_) => Ok(()),
            Ok((heap, _)) => match Model::of(&heap.snapshot()) {
                Err(Fault::Torn(what)) => Err(format!("a flipped bit went unnoticed: {what}")),
                _ => Ok(()),
            },
        };
        classes.restore(&self.trial);
        result
    }

    /// The disk after a power cut at this moment, or after the process was killed: then writes stay readable, not
    /// durable.
    fn crash(&mut self, layout: &Layout, judge: &Judge<'_>) -> Disk {
        let mut disk = judge.interval.disk.clone();
        disk.allowed = judge.allowed();
        let writes = &judge.interval.writes[..judge.count];
        disk.initialised |= judge.interval.shown;
        // Killed while the key changes, or before one was settled on, it may be under either.
        disk.under = if self.keys.both { self.keys.alone } else { disk.under };
        if self.random.below(3) == 0 {
            disk.pending = writes.to_vec();
            return disk;
        }
        disk.pending.clear();
        let number = self.random.below(DRAWS);
        let state = draw(layout, writes, judge.count, number, &mut self.random);
        let classes = Classes::<()>::new(&disk.durable, judge.interval.writes, false);
        let trial = Trial::new();
        trial.with(|trying| trying.load(&disk.durable));
        classes.lay_out(&state, &trial);
        disk.durable = trial.with(|trying| trying.content());
        disk
    }
}

/// Every slot holds something or is free.
fn accounted(heap: &Heap) -> Result<(), String> {
    let audit = heap.audit().map_err(|error| format!("cannot be audited: {error:?}"))?;
    if audit.lost.is_empty() && audit.damaged.is_empty() {
        return Ok(());
    }
    Err(format!("slots lost: {:?}, damaged: {:?}", audit.lost, audit.damaged))
}

/// What may be found at one moment.
struct Judge<'a> {
    interval: &'a Interval<'a>,
    /// All states that are possible at some moment between the two fences.
    models: &'a [Arc<Model>],
    /// Which of them are possible now.
    allowed: u64,
    /// How many of the writes have happened.
    count: usize,
    /// Hashes of the crash states explored.
    seen: HashSet<u64>,
}

impl Judge<'_> {
    fn outcome(&self, found: Result<Model, Fault>) -> Outcome {
        match found {
            Err(fault) => Outcome { agrees: 0, fault: Some(format!("{fault:?}")) },
            Ok(found) => {
                let same = self.models.iter().enumerate().filter(|(_, model)| ***model == found);
                Outcome { agrees: same.fold(0, |all, (at, _)| all | 1 << at), fault: None }
            }
        }
    }

    fn right(&self, outcome: &Outcome) -> Result<(), String> {
        match &outcome.fault {
            _ if outcome.agrees & self.allowed != 0 => Ok(()),
            Some(fault) => Err(fault.clone()),
            None if outcome.agrees == 0 => Err("a state that never was".into()),
            None => Err("a state that is not the last one acknowledged".into()),
        }
    }

    fn allowed(&self) -> Vec<Arc<Model>> {
        let models = self.models.iter().enumerate();
        models.filter(|(at, _)| self.allowed >> at & 1 == 1).map(|(_, model)| model.clone()).collect()
    }
}

fn hash(state: &State) -> u64 {
    state.iter().fold(0, |sum: u64, word| {
        let mixed = (sum.rotate_left(26) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ mixed >> 32
    })
}
