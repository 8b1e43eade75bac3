//! Random histories against an in-memory model.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

#[cfg(feature = "mutants")]
#[path = "support/omissions.rs"]
mod omissions;
mod support;

use std::collections::BTreeMap;

use heap::MemMedia;
use heap::{CommitError, Heap, Key, OpenOptions, PAGE, SpaceId};
use support::{Bounds, Model, Op, Random, content, create, key, ops, with_batch};

fn history(seed: u64, key: &Key, length: usize, reach: u64) -> (u64, u64) {
    let mut random = Random(seed);
    let media = MemMedia::new(length);
    let (mut heap, recovery) = Heap::open(Box::new(media.clone()), key, &create()).unwrap();
    assert!(recovery.created);
    let mut model = Model::default();
    let mut held = Vec::new();
    let bounds = Bounds { spaces: 4, keys: 6, near: 8, reach, value: 20_000, long: 32 };
    let (mut commits, mut full) = (0, 0);
    for _ in 0..random.below(120) {
        let most = if random.below(8) == 0 { 60 } else { 6 };
        let ops = ops(&mut random, most, &bounds);
        match with_batch(&ops, |batch| heap.submit(batch)) {
            Ok(_) => model.apply(&ops),
            Err(CommitError::Full { .. } | CommitError::TooLarge { .. }) => full += 1,
            Err(error) => panic!("seed {seed}: {error:?}"),
        }
        if random.below(3) > 0 {
            heap.flush().unwrap();
            commits += 1;
            assert_eq!(Model::of(&heap.snapshot()).unwrap(), model, "seed {seed}");
        }
        if std::env::var("HEAP_AUDIT").is_ok() {
            let audit = heap.audit().unwrap();
            assert_eq!((&audit.lost[..], &audit.damaged[..]), (&[][..], &[][..]), "seed {seed}: {ops:?}");
        }
        match random.below(16) {
            0 => {
                heap.flush().unwrap();
                held.push((heap.snapshot(), model.clone()));
            }
            1 if !held.is_empty() => {
                let (snapshot, model): (_, Model) =
                    held.swap_remove(random.below(held.len() as u64) as usize);
                assert_eq!(Model::of(&snapshot).unwrap(), model, "seed {seed}: a held snapshot");
            }
            2 => heap.checkpoint().unwrap(),
            3 | 4 => drop(heap.maintain(random.below(20)).unwrap()),
            5 => {
                heap.flush().unwrap();
                held.clear();
                let epoch = heap.epoch();
                drop(heap);
                let opened = Heap::open(Box::new(media.clone()), key, &OpenOptions::default());
                let (again, recovery) = opened.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
                assert_eq!((recovery.epoch, recovery.torn_tail, recovery.created), (epoch, false, false));
                heap = again;
                let audit = heap.audit().unwrap();
                assert_eq!(
                    (&audit.lost[..], &audit.damaged[..]),
                    (&[][..], &[][..]),
                    "seed {seed}: after open"
                );
                assert_eq!(Model::of(&heap.snapshot()).unwrap(), model, "seed {seed}: after open");
            }
            _ => {}
        }
    }
    heap.flush().unwrap();
    let audit = heap.audit().unwrap();
    assert_eq!((&audit.lost[..], &audit.damaged[..]), (&[][..], &[][..]), "seed {seed}: at the end");
    assert_eq!(Model::of(&heap.snapshot()).unwrap(), model);
    for (snapshot, model) in held {
        assert_eq!(Model::of(&snapshot).unwrap(), model, "seed {seed}: a held snapshot");
    }
    // Nothing leaks: with everything deleted, all slots but the heap's own come back.
    let mut ops: Vec<Op> = model.spaces.keys().map(|space| Op::Delete(*space)).collect();
    ops.extend(model.meta.keys().map(|key| Op::Remove(key.clone())));
    for op in ops {
        with_batch(&[op], |batch| heap.commit(batch)).unwrap();
    }
    for _ in 0..2000 {
        if heap.maintain(1000).unwrap() {
            break;
        }
    }
    let status = heap.status();
    assert!(status.used / PAGE as u64 <= 8, "seed {seed}: {} slots leaked", status.used / PAGE as u64);
    (commits, full)
}

fn histories() -> u64 {
    std::env::var("HEAP_HISTORIES").map_or(1500, |number| number.parse().unwrap())
}

#[test]
fn random_histories_agree_with_the_model() {
    let (mut commits, mut refused) = (0, 0);
    for seed in 0..histories() {
        let key = if seed % 2 == 0 { key() } else { Key::plain() };
        let (length, reach) = match seed % 3 {
            0 => (512 << 10, 20),
            1 => (2 << 20, 300),
            _ => (4 << 20, 1 << 34),
        };
        let (more, full) = history(seed, &key, length, reach);
        commits += more;
        refused += full;
    }
    assert!(commits > histories() && refused > histories() / 10, "{commits} commits, {refused} refused");
}

#[test]
fn a_full_medium_refuses_and_goes_on_when_space_is_freed() {
    let media = MemMedia::new(1 << 20);
    let (mut heap, _) = Heap::open(Box::new(media.clone()), &key(), &create()).unwrap();
    let mut model = Model::default();
    let mut number = 0;
    let refused = loop {
        let ops = [Op::Page(1 + number % 2, number, number + 1)];
        match with_batch(&ops, |batch| heap.commit(batch)) {
            Ok(_) => model.apply(&ops),
            Err(error) => break error,
        }
        number += 1;
    };
    assert!(matches!(refused, CommitError::Full { .. }), "{refused}");
    assert!(number > 150, "only {number} pages fit");
    assert_eq!(Model::of(&heap.snapshot()).unwrap(), model);
    // Overwriting needs room too, which is refused and leaves no trace; small ones go on.
    let ops: Vec<Op> = (0..200).map(|page| Op::Page(1, page, 7)).collect();
    assert!(matches!(with_batch(&ops, |batch| heap.commit(batch)), Err(CommitError::Full { .. })));
    assert_eq!(Model::of(&heap.snapshot()).unwrap(), model);
    let ops = [Op::Delete(1)];
    model.apply(&ops);
    with_batch(&ops, |batch| heap.commit(batch)).unwrap();
    for fill in 0..300 {
        let ops = [Op::Page(3, fill % 50, fill + 1)];
        model.apply(&ops);
        with_batch(&ops, |batch| heap.commit(batch)).unwrap();
    }
    assert_eq!(Model::of(&heap.snapshot()).unwrap(), model);
    drop(heap);
    let (heap, _) = Heap::open(Box::new(media), &key(), &OpenOptions::default()).unwrap();
    assert_eq!(Model::of(&heap.snapshot()).unwrap(), model);
}

#[test]
fn changes_since_an_epoch_are_told() {
    let (mut heap, _) = Heap::open(Box::new(MemMedia::new(4 << 20)), &key(), &create()).unwrap();
    let mut commit = |ops: &[Op]| with_batch(ops, |batch| heap.commit(batch)).unwrap();
    let first = commit(&[Op::Page(1, 5, 1), Op::Page(2, 6, 1)]);
    commit(&[Op::Page(1, 7, 2), Op::Page(1, 5, 2)]);
    commit(&[Op::Page(1, 7, 3), Op::Resize(1, 100)]);
    let snapshot = heap.snapshot();
    assert_eq!(snapshot.changed_since(first, SpaceId(1)), Some(vec![5, 7]));
    assert_eq!(snapshot.changed_since(first, SpaceId(2)), Some(vec![]));
    assert_eq!(snapshot.changed_since(snapshot.epoch(), SpaceId(1)), Some(vec![]));
    let mut commit = |ops: &[Op]| with_batch(ops, |batch| heap.commit(batch)).unwrap();
    let cut = commit(&[Op::Resize(1, 6)]);
    commit(&[Op::Page(1, 0, 9)]);
    let later = heap.snapshot();
    assert_eq!(later.changed_since(first, SpaceId(1)), None, "it was cut");
    assert_eq!(later.changed_since(cut, SpaceId(1)), Some(vec![0]));
    assert_eq!(snapshot.epoch(), 3);
    let pages: BTreeMap<u64, u64> = [(5, 2), (7, 3)].into();
    assert_eq!(Model::of(&snapshot).unwrap().spaces[&1], (100, pages));
    let mut page = [0; PAGE];
    snapshot.read_page(SpaceId(1), 5, &mut page).unwrap();
    assert!(page == content(2));
}

/// After a start index nodes stand on the medium only. A snapshot that is taken while others take their place still
/// reads them, however often slots are used again.
#[test]
fn a_snapshot_amid_changes_to_the_index_is_whole() {
    let media = MemMedia::new(4 << 20);
    let (mut heap, _) = Heap::open(Box::new(media.clone()), &key(), &create()).unwrap();
    let mut before = Model::default();
    let ops: Vec<Op> = (0..8).map(|page| Op::Page(1, page * 130, page + 1)).collect();
    with_batch(&ops, |batch| heap.commit(batch)).unwrap();
    before.apply(&ops);
    heap.checkpoint().unwrap();
    drop(heap);
    let image = media.with_bytes(|bytes| bytes.to_vec());
    for commits in 0..40 {
        let media = Box::new(MemMedia::from_bytes(image.clone()));
        let (mut heap, _) = Heap::open(media, &key(), &OpenOptions::default()).unwrap();
        let mut model = before.clone();
        for number in 0..commits {
            let ops = [Op::Page(1, number % 8 * 130 + 1, number + 1)];
            with_batch(&ops, |batch| heap.commit(batch)).unwrap();
            model.apply(&ops);
        }
        let snapshot = heap.snapshot();
        for round in 0..6 {
            let ops: Vec<Op> = (0..24).map(|page| Op::Page(2, page * 130, round + 1)).collect();
            with_batch(&ops, |batch| heap.commit(batch)).unwrap();
            heap.checkpoint().unwrap();
        }
        assert_eq!(Model::of(&snapshot).unwrap(), model, "after {commits} commits");
    }
}

/// Rules that no power cut shows are left out in turn, and histories notice.
#[cfg(feature = "mutants")]
#[test]
fn a_rule_left_out_is_noticed() {
    use heap::mutants::Mutant;
    let rules: [(Mutant, fn()); 3] = [
        (Mutant::SnapshotsNotHeld, random_histories_agree_with_the_model),
        (Mutant::FreedWhileFolding, a_snapshot_amid_changes_to_the_index_is_whole),
        (Mutant::RoomNotCounted, random_histories_agree_with_the_model),
    ];
    for (rule, test) in rules {
        omissions::fails_with(rule, test);
    }
}
