//! Damage and tampering: the right state or a named error, never another state.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

#[cfg(feature = "mutants")]
#[path = "support/omissions.rs"]
mod omissions;
mod support;

use heap::{
    Heap, Key, MIN_MEDIA, MediaId, MediaKind, MemMedia, OpenError, OpenOptions, Owner, ReadError, Recovery,
    SpaceId,
};
use support::{Bounds, Model, Op, Random, create, key, ops, with_batch};

const BOUNDS: Bounds = Bounds { spaces: 4, keys: 6, near: 8, reach: 200, value: 20_000, long: 32 };

const RING: usize = 4 * 4096;

fn open_as(bytes: &[u8], key: &Key, options: &OpenOptions) -> Result<(Heap, Recovery), OpenError> {
    Heap::open(Box::new(MemMedia::from_bytes(bytes.to_vec())), key, options)
}

fn open(bytes: &[u8]) -> Result<(Heap, Recovery), OpenError> {
    open_as(bytes, &key(), &OpenOptions::default())
}

fn refused(bytes: &[u8]) -> OpenError {
    open(bytes).map(|(heap, _)| heap.epoch()).unwrap_err()
}

/// Images after each of some commits, the last one also after a checkpoint and a few more.
fn images(key: &Key) -> (Vec<Vec<u8>>, Model) {
    let media = MemMedia::new(2 << 20);
    let (mut heap, _) = Heap::open(Box::new(media.clone()), key, &create()).unwrap();
    let mut model = Model::default();
    let mut images = Vec::new();
    let mut random = Random(3);
    for round in 0..12 {
        let ops = ops(&mut random, 8, &BOUNDS);
        with_batch(&ops, |batch| heap.commit(batch)).unwrap();
        model.apply(&ops);
        if round == 8 {
            heap.checkpoint().unwrap();
        }
        images.push(media.with_bytes(|bytes| bytes.to_vec()));
    }
    (images, model)
}

fn flipped(bytes: &[u8], at: usize, bit: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << bit;
    bytes
}

fn zeroed(bytes: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[range].fill(0);
    bytes
}

/// What can be read of a heap agrees with the model, or reading it names damage; whether all could be read.
fn agrees(heap: &Heap, model: &Model) -> bool {
    let snapshot = heap.snapshot();
    let mut whole = true;
    let Ok(spaces) = snapshot.spaces() else { return false };
    assert_eq!(spaces.len(), model.spaces.len());
    for (space, length) in spaces {
        let (expected, pages) = &model.spaces[&space.0];
        assert_eq!(length, *expected);
        for (number, fill) in pages {
            let mut page = [0; heap::PAGE];
            match snapshot.read_page(space, *number, &mut page) {
                Ok(()) => assert!(page == support::content(*fill), "page {number} of {space:?}"),
                Err(ReadError::Damaged { .. }) => whole = false,
                Err(error) => panic!("{error}"),
            }
        }
    }
    for (key, value) in &model.meta {
        match snapshot.meta(key) {
            Ok(found) => assert_eq!(found.as_ref(), Some(value)),
            Err(ReadError::Damaged { .. }) => whole = false,
            Err(error) => panic!("{error}"),
        }
    }
    whole
}

#[test]
fn a_flipped_bit_is_harmless_or_named() {
    for key in [key(), Key::plain()] {
        let (images, model) = images(&key);
        let bytes = images.last().unwrap();
        let (mut harmless, mut refused, mut named) = (0, 0, 0);
        let mut check =
            |at: usize, bit: u32| match open_as(&flipped(bytes, at, bit), &key, &OpenOptions::default()) {
                Ok((heap, recovery)) => {
                    assert_eq!((recovery.epoch, recovery.torn_tail), (12, false), "bit {bit} of byte {at}");
                    if agrees(&heap, &model) { harmless += 1 } else { named += 1 }
                }
                Err(OpenError::LogDamaged { .. } | OpenError::Index(_)) => refused += 1,
                Err(error) => panic!("bit {bit} of byte {at}: {error}"),
            };
        for start in [0, 4096, 8192, 12288] {
            (start..start + 80).for_each(|at| check(at, at as u32 % 8));
        }
        (RING..bytes.len()).step_by(211).for_each(|at| check(at, at as u32 % 8));
        assert!(
            harmless > 500 && refused > 3 && named > 30,
            "{harmless} harmless, {refused} refused, {named} named"
        );
    }
}

#[test]
fn damage_is_listed_with_its_owner_and_the_rest_is_served() {
    let media = MemMedia::new(1 << 20);
    let (mut heap, _) = Heap::open(Box::new(media.clone()), &key(), &create()).unwrap();
    let ops: Vec<Op> = (0..20).map(|page| Op::Page(1 + page % 2, page, page + 1)).collect();
    with_batch(&ops, |batch| heap.commit(batch)).unwrap();
    let sound = heap.audit().unwrap();
    assert_eq!((sound.sound, sound.damaged.len(), sound.lost.len()), (20, 0, 0));
    let slots = RING + (32 << 10);
    media.with_bytes(|bytes| bytes[slots + 4 * 4096 + 17] ^= 1);
    let audit = heap.audit().unwrap();
    assert_eq!(audit.sound, 19);
    assert_eq!(audit.damaged, [((slots + 4 * 4096) as u64, Owner::Space(SpaceId(1)))]);
    let mut page = [7; heap::PAGE];
    let error = heap.snapshot().read_page(SpaceId(1), 4, &mut page).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert_eq!(page, [0; heap::PAGE], "nothing of it is shown");
}

#[test]
fn one_superblock_copy_is_enough_and_is_repaired() {
    let (images, model) = images(&key());
    let bytes = images.last().unwrap();
    for copy in [0, 4096] {
        let media = MemMedia::from_bytes(zeroed(bytes, copy..copy + 512));
        for repaired in [true, false] {
            let (heap, recovery) =
                Heap::open(Box::new(media.clone()), &key(), &OpenOptions::default()).unwrap();
            assert_eq!(recovery.superblock_repaired, repaired);
            assert_eq!(Model::of(&heap.snapshot()).unwrap(), model);
        }
    }
    let none = zeroed(&flipped(bytes, 100, 0), 4096..4608);
    assert!(matches!(refused(&none), OpenError::SuperblocksDamaged));
}

#[test]
fn what_is_wrong_has_a_name() {
    let (images, _) = images(&key());
    let bytes = images.last().unwrap();
    let id = open(bytes).unwrap().0.status().media;
    let other = open_as(bytes, &Key::new([1; 32]), &OpenOptions::default()).unwrap_err();
    assert!(matches!(other, OpenError::OtherKey { .. }), "{other}");
    let plain = open_as(bytes, &Key::plain(), &OpenOptions::default()).unwrap_err();
    assert!(
        matches!(plain, OpenError::OtherKey { .. }),
        "a sealed heap is never opened as a plain one: {plain}"
    );
    let options = OpenOptions { media: Some(MediaId([1; 16])), ..OpenOptions::default() };
    assert!(
        matches!(open_as(bytes, &key(), &options).unwrap_err(), OpenError::OtherMedia { found, .. } if found == id)
    );
    let options = OpenOptions { kind: Some(MediaKind::Dax), ..OpenOptions::default() };
    assert!(matches!(open_as(bytes, &key(), &options).unwrap_err(), OpenError::OtherKind { .. }));
    assert!(matches!(refused(&bytes[..bytes.len() - 4096]), OpenError::Truncated { .. }));
    assert!(matches!(refused(&bytes[..4096]), OpenError::TooSmall { .. }));
    assert!(matches!(refused(&vec![0; MIN_MEDIA as usize]), OpenError::Blank));
    assert!(matches!(refused(&vec![0x55; MIN_MEDIA as usize]), OpenError::Foreign));
    assert!(matches!(refused(&zeroed(bytes, 0..RING)), OpenError::Wiped));
    let cells = zeroed(&zeroed(bytes, 8192..8256), 12288..12352);
    assert!(matches!(refused(&cells), OpenError::WatermarksDamaged));
}

#[test]
fn an_older_image_is_found_with_an_anchor_only() {
    let (images, _) = images(&key());
    let at_least = |epoch| OpenOptions { at_least: Some(epoch), ..OpenOptions::default() };
    let (heap, recovery) = open_as(&images[4], &key(), &OpenOptions::default()).unwrap();
    assert_eq!((recovery.epoch, recovery.anchored), (5, false));
    drop(heap);
    let error = open_as(&images[4], &key(), &at_least(12)).unwrap_err();
    assert!(matches!(error, OpenError::RolledBack { epoch: 5, anchor: 12 }), "{error}");
    assert!(open_as(&images[11], &key(), &at_least(12)).unwrap().1.anchored);
    let blank = vec![0; 1 << 20];
    let options = OpenOptions { create: true, ..at_least(12) };
    assert!(matches!(open_as(&blank, &key(), &options).unwrap_err(), OpenError::RolledBack { epoch: 0, .. }));
}

/// Pieces of older images of the same medium, and of another one, put into the newest.
#[test]
fn mixed_images_never_show_another_state() {
    let (images, model) = images(&key());
    let bytes = images.last().unwrap();
    let mut random = Random(9);
    for _ in 0..1500 {
        let mut mixed = bytes.clone();
        let older = &images[random.below(images.len() as u64 - 1) as usize];
        let block = random.below(mixed.len() as u64 / 4096) as usize * 4096;
        mixed[block..block + 4096].copy_from_slice(&older[block..block + 4096]);
        match open(&mixed) {
            Ok((heap, recovery)) => {
                assert_eq!(recovery.epoch, 12);
                agrees(&heap, &model);
            }
            Err(OpenError::LogDamaged { .. } | OpenError::Index(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Each check in turn is left out, and the test of what it is for fails.
#[cfg(feature = "mutants")]
#[test]
fn a_check_left_out_is_noticed() {
    use heap::mutants::Mutant;
    let checks: [(Mutant, fn()); 8] = [
        (Mutant::DamagedLogBelieved, a_flipped_bit_is_harmless_or_named),
        (Mutant::WatermarksNotNeeded, what_is_wrong_has_a_name),
        (Mutant::AnchorIgnored, an_older_image_is_found_with_an_anchor_only),
        (Mutant::TruncationIgnored, what_is_wrong_has_a_name),
        (Mutant::OtherMediumTaken, what_is_wrong_has_a_name),
        (Mutant::OtherKindTaken, what_is_wrong_has_a_name),
        (Mutant::WipeTakenForNew, what_is_wrong_has_a_name),
        (Mutant::BlockTagIgnored, damage_is_listed_with_its_owner_and_the_rest_is_served),
    ];
    for (check, test) in checks {
        omissions::fails_with(check, test);
    }
}
