//! A writer and readers in many orders of their steps, chosen by shuttle at every lock: a snapshot that is handed over
//! as the executor hands it to queries shows one committed state for as long as it is held.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

mod support;

use heap::mutants::{self, Mutant};
use heap::{Heap, MIN_MEDIA, MemMedia, PAGE, Snapshot};
use shuttle::sync::{Arc, Mutex, RwLock};
use shuttle::thread;
use std::collections::BTreeMap;
use support::{Model, Op, Random, create, key, with_batch};

/// Overwrites pages of a medium with little room, so that slots are used again soon; with checkpoints between.
fn write(heap: &mut Heap, published: &RwLock<Snapshot>, models: &Mutex<BTreeMap<u64, Model>>) {
    let mut model = Model::default();
    let mut random = Random(7);
    for round in 0..8 {
        // Two batches share a fence: neither is shown before it.
        for _ in 0..2 {
            let ops: Vec<Op> = (0..4).map(|page| Op::Page(1, page, random.next() | 1)).collect();
            with_batch(&ops, |batch| heap.submit(batch)).unwrap();
            model.apply(&ops);
        }
        heap.flush().unwrap();
        models.lock().unwrap().insert(heap.epoch(), model.clone());
        *published.write().unwrap() = heap.snapshot();
        if round % 2 == 1 {
            heap.checkpoint().unwrap();
        }
    }
}

fn read(published: &RwLock<Snapshot>, models: &Mutex<BTreeMap<u64, Model>>) {
    for _ in 0..2 {
        let snapshot = published.read().unwrap().clone();
        let model = models.lock().unwrap().get(&snapshot.epoch()).cloned().unwrap();
        // For a while, so that the writer may come around to what the snapshot shows.
        (0..100).for_each(|_| thread::yield_now());
        assert_eq!(Model::of(&snapshot).unwrap(), model);
    }
}

fn run() {
    let media = MemMedia::new(MIN_MEDIA as usize + 64 * PAGE);
    let (mut heap, _) = Heap::open(Box::new(media), &key(), &create()).unwrap();
    let published = Arc::new(RwLock::new(heap.snapshot()));
    let models = Arc::new(Mutex::new(BTreeMap::from([(heap.epoch(), Model::default())])));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (published, models) = (published.clone(), models.clone());
            thread::spawn(move || read(&published, &models))
        })
        .collect();
    write(&mut heap, &published, &models);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

#[test]
fn snapshots_show_one_state_whoever_goes_next() {
    shuttle::check_random(run, 400);
    shuttle::check_pct(run, 400, 3);
}

#[test]
fn snapshots_that_hold_nothing_are_found_out() {
    let found = std::panic::catch_unwind(|| {
        shuttle::check_random(
            || {
                mutants::choose(Some(Mutant::SnapshotsNotHeld));
                run();
            },
            400,
        );
    });
    mutants::choose(None);
    assert!(found.is_err());
}
