//! The reduction to classes against brute force.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

/// Words that vary; the others are all kept or all lost.
const FREE: usize = 9;

/// Calls `run` for every interval between fences of some sessions, with what it needs.
fn intervals(seed: u64, sealed: bool, mut run: impl FnMut(&mut Simulator, &Interval<'_>, &mut Judge<'_>)) {
    let mut simulator = Simulator::new(seed);
    let mut disk = Disk::blank(LENGTHS[0], simulator.random.below(2) == 0);
    for _ in 0..2 {
        let events = simulator.run(&disk, sealed).unwrap();
        for events in events.split(|event| matches!(event, Event::Fence)) {
            let mut writes = std::mem::take(&mut disk.pending);
            let mut models = disk.allowed.clone();
            for event in events {
                match event {
                    Event::Write(write) => writes.push(write.clone()),
                    Event::Begin(model) | Event::Stable(model) => models.push(model.clone()),
                    Event::Fence | Event::Rekeying | Event::Rekeyed(_) => {}
                }
            }
            let interval =
                Interval { disk: &disk, events, writes: &writes, sealed, shown: true, crash: None };
            simulator.trial.with(|trying| {
                trying.load(&disk.durable);
                trying.watch(&writes);
                (trying.length, trying.aligned) = (disk.length, disk.aligned);
            });
            let (count, allowed) = (writes.len(), u64::MAX);
            let mut judge =
                Judge { interval: &interval, models: &models, count, seen: HashSet::new(), allowed };
            run(&mut simulator, &interval, &mut judge);
            (disk.allowed, disk.pending) = (models, writes);
            disk.fence();
        }
    }
}

#[test]
fn classes_agree_with_recovering_every_state() {
    let (mut all, mut run, mut intervals_seen) = (0, 0, 0);
    for (seed, sealed) in (0..6).zip([true, false].into_iter().cycle()) {
        intervals(seed, sealed, |simulator, interval, judge| {
            if interval.writes.is_empty() || simulator.random.below(4) > 0 {
                return;
            }
            intervals_seen += 1;
            let mut classes = Classes::new(&interval.disk.durable, interval.writes, sealed);
            // Some words of some writes vary, mostly neighbours; the other writes are whole or lost.
            let mut rest = classes.layout.none();
            let mut free = Vec::new();
            for write in 0..interval.writes.len() {
                let words = classes.layout.writes[write].1;
                if simulator.random.below(4) > 0 {
                    classes.layout.keep(&mut rest, write, 0..words);
                }
                let first = simulator.random.below(words as u64) as usize;
                let first = if simulator.random.below(2) == 0 { 0 } else { first };
                free.extend((first..words.min(first + 3)).map(|word| (write, word)));
            }
            while free.len() > FREE {
                free.swap_remove(simulator.random.below(free.len() as u64) as usize);
            }
            let mut members = std::collections::HashMap::<usize, u64>::new();
            for choice in 0..1u64 << free.len() {
                let mut state = rest.clone();
                for (at, (write, word)) in free.iter().enumerate() {
                    let (element, _) = classes.layout.writes[*write];
                    state[element + word / 64] &= !(1 << (word % 64));
                    if choice >> at & 1 == 1 {
                        classes.layout.keep(&mut state, *write, *word..word + 1);
                    }
                }
                classes.normalise(&mut state);
                let (truth, reads) = simulator.recover(&classes, judge, &state).unwrap();
                let class = classes.find(&state).unwrap_or_else(|| {
                    run += 1;
                    classes.learn(&state, &reads, Outcome { fault: truth.fault.clone(), ..truth }).unwrap()
                });
                assert_eq!(classes.outcomes[class], truth, "seed {seed}, {choice:b} of {free:?}");
                *members.entry(class).or_default() += 1;
            }
            assert_eq!(members.values().sum::<u64>(), 1 << free.len());
            all += 1u64 << free.len();
        });
    }
    assert!(intervals_seen > 30 && all > 8000, "{all} states of {intervals_seen} intervals");
    assert!(run * 5 < all, "{run} recoveries for {all} states: classes are of no use");
}

#[test]
fn classes_that_leave_out_a_read_are_found_out() {
    let mut found = 0;
    intervals(1, true, |simulator, interval, judge| {
        let mut classes = Classes::new(&interval.disk.durable, interval.writes, true);
        let mut learn = |leave_out: usize| {
            let mut errors = 0;
            for number in 0..DRAWS {
                let count = interval.writes.len();
                let mut state = draw(&classes.layout, interval.writes, count, number, &mut simulator.random);
                classes.normalise(&mut state);
                let (outcome, mut reads) = simulator.recover(&classes, judge, &state).unwrap();
                reads.truncate(reads.len().saturating_sub(leave_out));
                errors += u64::from(classes.learn(&state, &reads, outcome).is_err());
            }
            errors
        };
        found += learn(1);
    });
    assert!(found > 0);
}

#[test]
fn a_heap_that_never_becomes_durable_is_no_success() {
    // Before and after a commit are both possible while it is in flight; once acknowledged, only after is.
    let (before, after) = (Model::default(), Model { meta: [(vec![1], vec![2])].into(), ..Model::default() });
    let models = [Arc::new(before.clone()), Arc::new(after)];
    let disk = Disk::blank(LENGTHS[0], false);
    let interval = Interval { disk: &disk, events: &[], writes: &[], sealed: true, shown: true, crash: None };
    let mut judge =
        Judge { interval: &interval, models: &models, count: 0, seen: HashSet::new(), allowed: 0b11 };
    let outcome = judge.outcome(Ok(before));
    assert_eq!(judge.right(&outcome), Ok(()));
    judge.allowed = 0b10;
    assert!(judge.right(&outcome).is_err());
}
