//! Damage and tampering: the right state or a named error, never another state.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

mod common;

use common::{Model, Random, SMALL, batch, create, key, page};
use heap::{
    Batch, Change, Heap, Key, MIN_MEDIA, MediaId, MemMedia, OpenError, OpenOptions, Recovery, SpaceId,
};

const COPIES: [usize; 2] = [0, 4096];
const CELLS: [usize; 2] = [8192, 12288];
const ARENAS: usize = 16384;

fn open(bytes: &[u8]) -> Result<(Heap, Recovery), OpenError> {
    Heap::open(Box::new(MemMedia::from_bytes(bytes.to_vec())), &key(), &OpenOptions::default())
}

/// The error; panics if the heap opened.
fn refused(bytes: &[u8]) -> OpenError {
    open(bytes).map(|(heap, _)| heap.epoch()).unwrap_err()
}

fn commit(heap: &mut Heap, fill: u8) {
    let data = Change::Page { space: SpaceId(1), page: 0, data: page(fill) };
    heap.commit(Batch { changes: vec![data] }).unwrap();
}

/// A medium with some commits; the images after the creation and after each of them.
fn images(length: usize, commits: u8) -> Vec<Vec<u8>> {
    let media = MemMedia::new(length);
    let (mut heap, _) = Heap::open(Box::new(media.clone()), &key(), &create()).unwrap();
    let mut images = vec![media.with_bytes(|bytes| bytes.to_vec())];
    for fill in 1..=commits {
        commit(&mut heap, fill);
        images.push(media.with_bytes(|bytes| bytes.to_vec()));
    }
    images
}

fn last_image(length: usize, commits: u8) -> Vec<u8> {
    images(length, commits).pop().unwrap()
}

/// Where the frames lie, in the order of their place on the medium.
fn frames(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let starts = (ARENAS..bytes.len()).step_by(64).filter(|at| bytes[*at..].starts_with(b"RHFr"));
    let length = |at: usize| u64::from_le_bytes(bytes[at + 32..at + 40].try_into().unwrap()) as usize;
    starts.map(|at| at..at + (64 + length(at) + 16).next_multiple_of(64)).collect()
}

fn zeroed(bytes: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[range].fill(0);
    bytes
}

fn flipped(bytes: &[u8], at: usize, bit: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << bit;
    bytes
}

#[test]
fn a_flipped_bit_is_repaired_or_named() {
    let media = MemMedia::new(SMALL);
    let (mut heap, _) = Heap::open(Box::new(media.clone()), &key(), &create()).unwrap();
    let mut random = Random(11);
    for _ in 0..12 {
        let _ = heap.commit(batch(&mut random, 1));
    }
    assert!(heap.status().generation > 1);
    let (model, epoch) = (Model::of(&heap), heap.epoch());
    drop(heap);
    let bytes = media.with_bytes(|bytes| bytes.to_vec());
    let (mut harmless, mut named) = (0, 0);
    let mut check = |at: usize, bit: u32| match open(&flipped(&bytes, at, bit)) {
        Ok((heap, recovery)) => {
            assert_eq!((Model::of(&heap), recovery.epoch), (model.clone(), epoch), "bit {bit} of byte {at}");
            assert_eq!(recovery.torn_tail, None, "bit {bit} of byte {at}");
            harmless += 1;
        }
        Err(OpenError::BaseDamaged { .. } | OpenError::LogDamaged { .. } | OpenError::WatermarksDamaged) => {
            named += 1
        }
        Err(error) => panic!("bit {bit} of byte {at}: {error}"),
    };
    // All of the small structures, a sample of the payloads.
    let headers = frames(&bytes).into_iter().flat_map(|frame| frame.start..frame.start + 64);
    let heads =
        COPIES.into_iter().flat_map(|at| at..at + 128).chain(CELLS.into_iter().flat_map(|at| at..at + 64));
    heads.chain(headers).for_each(|at| (0..8).for_each(|bit| check(at, bit)));
    (ARENAS..SMALL).step_by(13).for_each(|at| check(at, at as u32 % 8));
    assert!(harmless > 1000 && named > 1000, "{harmless} harmless, {named} named");
}

/// One stroke never loses a commit unnoticed. More can take away the last commit together with its watermark,
/// as putting back an older image would; what is then shown is still a state that there was.
#[test]
fn overwriting_never_shows_a_state_that_never_was() {
    let history = images(SMALL, 5);
    let bytes = history.last().unwrap();
    let mut random = Random(5);
    for _ in 0..3000 {
        let mut bytes = bytes.clone();
        let strokes = 1 + random.below(3);
        for _ in 0..strokes {
            let (start, length) = (random.below(SMALL as u64) as usize, random.below(600) as usize);
            let end = (start + length).min(SMALL);
            match random.below(3) {
                0 => bytes[start..end].fill(0),
                1 => bytes[start..end].iter_mut().for_each(|byte| *byte = random.next() as u8),
                // What the owner of the medium has: ciphertext from elsewhere.
                _ => bytes.copy_within(start..end, random.below((SMALL - (end - start)) as u64) as usize),
            }
        }
        if let Ok((heap, recovery)) = open(&bytes) {
            let epoch = recovery.epoch;
            let found = heap.space(SpaceId(1)).map_or(0, |space| space.page(0)[0]);
            assert_eq!(u64::from(found), epoch);
            assert!(epoch == 5 || (epoch == 4 && strokes > 1), "{strokes} strokes left epoch {epoch}");
        }
    }
}

#[test]
fn one_superblock_copy_is_enough_and_is_repaired() {
    let bytes = last_image(SMALL, 2);
    let model = Model::of(&open(&bytes).unwrap().0);
    for copy in COPIES {
        let media = MemMedia::from_bytes(zeroed(&bytes, copy..copy + 4096));
        for repaired in [true, false] {
            let opened = Heap::open(Box::new(media.clone()), &key(), &OpenOptions::default());
            let (heap, recovery) = opened.unwrap();
            assert_eq!((Model::of(&heap), recovery.superblock_repaired), (model.clone(), repaired));
        }
    }
    let none = zeroed(&flipped(&bytes, 50, 0), 4096..8192);
    assert!(matches!(refused(&none), OpenError::SuperblocksDamaged));
}

#[test]
fn one_watermark_cell_is_enough_and_is_repaired() {
    let bytes = last_image(SMALL, 2);
    let model = Model::of(&open(&bytes).unwrap().0);
    for cell in CELLS {
        let media = MemMedia::from_bytes(zeroed(&bytes, cell..cell + 64));
        for repaired in [true, false] {
            let opened = Heap::open(Box::new(media.clone()), &key(), &OpenOptions::default());
            let (heap, recovery) = opened.unwrap();
            assert_eq!((Model::of(&heap), recovery.watermark_repaired), (model.clone(), repaired));
        }
    }
    assert!(matches!(refused(&zeroed(&bytes, 8192..16384)), OpenError::WatermarksDamaged));
}

#[test]
fn lost_commits_are_named_wherever_they_stood() {
    let bytes = last_image(SMALL, 3);
    let frames = frames(&bytes);
    // Generation 1 lies in the second arena: the base, then three commits.
    assert_eq!(frames.len(), 4);
    assert!(
        matches!(refused(&zeroed(&bytes, frames[0].clone())), OpenError::BaseDamaged { offset } if offset == frames[0].start as u64)
    );
    for (lost, frame) in frames.iter().enumerate().skip(1) {
        let error = refused(&zeroed(&bytes, frame.clone()));
        let OpenError::LogDamaged { offset, epoch, acknowledged } = error else { panic!("{error}") };
        assert_eq!((offset, epoch, acknowledged), (frame.start as u64, lost as u64 - 1, 3));
    }
    let text = refused(&zeroed(&bytes, frames[2].clone())).to_string();
    assert!(text.contains("commits 2 to 3 were durable"), "{text}");
}

#[test]
fn a_torn_tail_is_discarded_and_said() {
    let history = images(SMALL, 3);
    let (before, after) = (&history[2], &history[3]);
    let tail = frames(after)[3].clone();
    // Power cut within the third commit: its watermark does not exist yet.
    let mut torn = before.clone();
    torn[tail.start..tail.start + 1024].copy_from_slice(&after[tail.start..tail.start + 1024]);
    let media = MemMedia::from_bytes(torn);
    let (mut heap, recovery) = Heap::open(Box::new(media.clone()), &key(), &OpenOptions::default()).unwrap();
    let found = recovery.torn_tail.unwrap();
    assert_eq!((recovery.epoch, found.offset, found.epoch), (2, tail.start as u64, 3));
    // The commit that opening makes takes its place, sealed under another key.
    commit(&mut heap, 77);
    let again = media.with_bytes(|bytes| bytes.to_vec());
    assert_ne!(again[tail.start + 40..tail.start + 56], after[tail.start + 40..tail.start + 56]);
    let (heap, recovery) = open(&again).unwrap();
    assert_eq!((recovery.epoch, recovery.torn_tail), (4, None));
    assert_eq!(heap.space(SpaceId(1)).unwrap().page(0)[0], 77);
}

#[test]
fn frames_cannot_be_moved_or_mixed() {
    let bytes = last_image(SMALL, 3);
    let frames = frames(&bytes);
    // Commits of equal length change places.
    let mut swapped = bytes.clone();
    swapped[frames[1].clone()].copy_from_slice(&bytes[frames[2].clone()]);
    swapped[frames[2].clone()].copy_from_slice(&bytes[frames[1].clone()]);
    assert!(matches!(refused(&swapped), OpenError::LogDamaged { epoch: 0, .. }));
    // One commit instead of another.
    let mut replayed = bytes.clone();
    replayed.copy_within(frames[1].clone(), frames[3].start);
    assert!(matches!(refused(&replayed), OpenError::LogDamaged { epoch: 2, .. }));
}

#[test]
fn a_part_of_a_commit_cannot_be_passed_off_as_the_whole() {
    let media = MemMedia::new(1 << 20);
    let (mut heap, _) = Heap::open(Box::new(media.clone()), &key(), &create()).unwrap();
    let before = media.with_bytes(|bytes| bytes.to_vec());
    let pages = (0..70).map(|n| Change::Page { space: SpaceId(1), page: n, data: page(1) });
    heap.commit(Batch { changes: pages.collect() }).unwrap();
    let after = media.with_bytes(|bytes| bytes.to_vec());
    let frames = frames(&after);
    assert_eq!((frames.len(), after[frames[1].start + 5], after[frames[2].start + 5]), (3, 0, 1));
    // The crash came before the second frame; the first one is made to look like the last.
    let mut bytes = before;
    bytes[frames[1].clone()].copy_from_slice(&after[frames[1].clone()]);
    bytes[frames[1].start + 5] = 1;
    let (heap, recovery) = open(&bytes).unwrap();
    assert_eq!((heap.spaces().len(), recovery.epoch), (0, 0));
    assert_eq!(recovery.torn_tail.map(|tail| tail.epoch), Some(1));
}

/// Two runs from one image, as the owner of the medium can arrange: what one run committed must not turn up in
/// the other, though place, numbers and key are the same.
#[test]
fn a_base_of_a_fork_does_not_fit() {
    // The ninth page switches the generation.
    let full = images(SMALL, 9).into_iter().rev().find(|bytes| bytes[64] == 1).unwrap();
    let run = |fill| {
        let media = MemMedia::from_bytes(full.clone());
        let (mut heap, _) = Heap::open(Box::new(media.clone()), &key(), &OpenOptions::default()).unwrap();
        while heap.status().generation == 1 {
            commit(&mut heap, fill);
        }
        (media.with_bytes(|bytes| bytes.to_vec()), heap.epoch())
    };
    let ((ours, epoch), (other, other_epoch)) = (run(100), run(200));
    assert_eq!((ours[64], other[64], epoch), (2, 2, other_epoch));
    let mut mixed = ours.clone();
    let end = ARENAS + 40960;
    mixed[ARENAS..end].copy_from_slice(&other[ARENAS..end]);
    assert!(matches!(refused(&mixed), OpenError::BaseDamaged { .. }));
    open(&ours).unwrap();
}

/// A commit in flight at a crash, held back by the owner of the medium and brought out later.
#[test]
fn a_commit_given_up_does_not_come_back_as_a_later_one() {
    let history = images(SMALL, 3);
    let fork = MemMedia::from_bytes(history[2].clone());
    let (mut heap, _) = Heap::open(Box::new(fork), &key(), &OpenOptions::default()).unwrap();
    commit(&mut heap, 50);
    let options = OpenOptions { at_least: Some(heap.epoch()), ..OpenOptions::default() };
    let opened = Heap::open(Box::new(MemMedia::from_bytes(history[3].clone())), &key(), &options);
    assert!(matches!(opened, Err(OpenError::RolledBack { epoch: 3, anchor: 4 })));
}

#[test]
fn a_fork_of_the_same_medium_does_not_chain() {
    let history = images(SMALL, 1);
    let run = |fill| {
        let media = MemMedia::from_bytes(history[1].clone());
        let (mut heap, _) = Heap::open(Box::new(media.clone()), &key(), &OpenOptions::default()).unwrap();
        commit(&mut heap, fill);
        commit(&mut heap, fill + 1);
        media.with_bytes(|bytes| bytes.to_vec())
    };
    let (ours, other) = (run(50), run(60));
    let last = frames(&ours).pop().unwrap();
    assert_eq!(frames(&other).pop(), Some(last.clone()), "same place, and so same number, epoch and length");
    let mut spliced = ours.clone();
    spliced[last.clone()].copy_from_slice(&other[last]);
    assert!(matches!(refused(&spliced), OpenError::LogDamaged { epoch: 3, acknowledged: 4, .. }));
    open(&ours).unwrap();
}

#[test]
fn an_older_generation_does_not_come_back_in_part() {
    // Nine commits of one page fill an arena of 40 KiB and switch; collect an image of each generation.
    let history = images(SMALL, 40);
    let generation = |bytes: &Vec<u8>| u64::from_le_bytes(bytes[64..72].try_into().unwrap());
    let last = history.last().unwrap();
    assert!(generation(last) >= 4, "{}", generation(last));
    let older = history.iter().rev().find(|bytes| generation(bytes) == generation(last) - 1).unwrap();
    // Both superblocks of the generation before: its arena still stands, but the watermark has gone on.
    let mut bytes = last.clone();
    bytes[..8192].copy_from_slice(&older[..8192]);
    assert!(matches!(refused(&bytes), OpenError::LogDamaged { acknowledged: 40, .. }));
    // The arena of the generation before the last but one, under the current superblocks.
    let same_arena = history.iter().rev().find(|bytes| generation(bytes) == generation(last) - 2).unwrap();
    let mut bytes = last.clone();
    bytes[ARENAS..].copy_from_slice(&same_arena[ARENAS..]);
    assert!(matches!(refused(&bytes), OpenError::BaseDamaged { .. }));
}

#[test]
fn a_rollback_of_the_whole_is_seen_only_with_an_anchor() {
    let history = images(SMALL, 3);
    let (_, recovery) = open(&history[1]).unwrap();
    assert_eq!((recovery.epoch, recovery.anchored), (1, false), "without an anchor this cannot be known");
    let opened = |bytes: &[u8], anchor, create| {
        let options = OpenOptions { at_least: Some(anchor), create, media: None };
        Heap::open(Box::new(MemMedia::from_bytes(bytes.to_vec())), &key(), &options)
    };
    assert!(matches!(opened(&history[1], 3, true), Err(OpenError::RolledBack { epoch: 1, anchor: 3 })));
    assert!(opened(&history[3], 3, false).unwrap().1.anchored);
    // A blank medium is a rollback too.
    assert!(matches!(opened(&vec![0; SMALL], 1, true), Err(OpenError::RolledBack { epoch: 0, anchor: 1 })));
    assert!(opened(&vec![0; SMALL], 0, true).unwrap().1.created);
}

#[test]
fn other_keys_and_media_are_named() {
    let bytes = last_image(SMALL, 2);
    let other = Heap::open(Box::new(MemMedia::from_bytes(bytes.clone())), &Key::new([1; 32]), &create());
    let error = other.map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::OtherKey { .. }), "{error}");
    assert!(error.to_string().contains("another node's medium"));

    // Two media under one key: parts of one do not fit into the other.
    let second = last_image(SMALL, 2);
    let mut mixed = bytes.clone();
    mixed[ARENAS..].copy_from_slice(&second[ARENAS..]);
    assert!(matches!(refused(&mixed), OpenError::BaseDamaged { .. }));
    let mut mixed = last_image(SMALL, 1);
    let tail = frames(&bytes)[2].clone();
    mixed[tail.clone()].copy_from_slice(&bytes[tail]);
    mixed[CELLS[0]..][..64].copy_from_slice(&bytes[CELLS[0]..][..64]);
    let (_, recovery) = open(&mixed).unwrap();
    assert_eq!(
        (recovery.epoch, recovery.watermark_repaired),
        (1, true),
        "the other's second commit is none of ours"
    );
    let expected = MediaId([3; 16]);
    let options = OpenOptions { media: Some(expected), ..OpenOptions::default() };
    let opened = Heap::open(Box::new(MemMedia::from_bytes(bytes.clone())), &key(), &options);
    assert!(matches!(opened, Err(OpenError::OtherMedia { .. })));
    let options = OpenOptions { media: Some(open(&bytes).unwrap().0.status().media), ..options };
    Heap::open(Box::new(MemMedia::from_bytes(bytes)), &key(), &options).unwrap();
}

#[test]
fn blank_wiped_foreign_and_short_media_are_told_apart() {
    let try_create = |bytes: &[u8]| {
        let media = MemMedia::from_bytes(bytes.to_vec());
        let result = Heap::open(Box::new(media.clone()), &key(), &create()).map(|_| ());
        if result.is_err() {
            assert!(media.with_bytes(|now| now == bytes), "a refused medium is left as it was");
        }
        result
    };
    assert!(matches!(refused(&vec![0; SMALL]), OpenError::Blank));
    try_create(&vec![0; SMALL]).unwrap();

    let bytes = last_image(SMALL, 2);
    assert!(matches!(try_create(&zeroed(&bytes, 0..8192)), Err(OpenError::Wiped)));
    assert!(matches!(try_create(&zeroed(&bytes, 0..16384)), Err(OpenError::Wiped)));

    let mut disk = vec![0; SMALL];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(matches!(try_create(&disk), Err(OpenError::Foreign)));
    let mut filesystem = vec![0; SMALL];
    filesystem[4096..8192].fill(b'x');
    assert!(matches!(try_create(&filesystem), Err(OpenError::Foreign)));

    let short = &bytes[..SMALL - 8192];
    assert!(
        matches!(refused(short), OpenError::Truncated { recorded, found } if recorded == SMALL as u64 && found == SMALL as u64 - 8192)
    );
    let too_small = vec![0; MIN_MEDIA as usize - 64];
    assert!(matches!(try_create(&too_small), Err(OpenError::TooSmall { .. })));
    // A medium that grew is still the same.
    let grown = [bytes.as_slice(), &[0; 65536]].concat();
    assert_eq!(open(&grown).unwrap().1.epoch, 2);
}

/// State of the stored medium.
fn golden_batches() -> Vec<Batch> {
    let put = Change::Put { key: b"name".to_vec(), value: b"redoubt".to_vec() };
    let write = Change::Page { space: SpaceId(1), page: 2, data: page(0xa5) };
    let first = vec![put.clone(), write, Change::Resize { space: SpaceId(9), pages: 1 << 20 }];
    let zero = Change::Page { space: SpaceId(1), page: 5, data: page(0) };
    let second =
        vec![zero, Change::Delete { key: b"none".to_vec() }, Change::Resize { space: SpaceId(2), pages: 3 }];
    vec![
        Batch { changes: first },
        Batch { changes: second },
        Batch { changes: vec![Change::Drop { space: SpaceId(2) }] },
    ]
}

/// A medium written when version 1 was fixed must stay readable. Written by `write_the_stored_medium`, so it
/// proves stability, not correctness.
#[test]
fn the_stored_medium_of_version_1_is_read() {
    let (heap, recovery) = open(include_bytes!("data/version-1.heap")).unwrap();
    assert_eq!((recovery.epoch, recovery.replayed), (3, 3));
    let space = heap.space(SpaceId(1)).unwrap();
    assert_eq!((space.pages(), space.page(2)[7], space.page(5)[7]), (6, 0xa5, 0));
    assert_eq!(heap.space(SpaceId(9)).unwrap().pages(), 1 << 20);
    assert_eq!((heap.spaces().len(), heap.meta(b"name")), (2, Some(b"redoubt".as_slice())));
}

#[test]
#[ignore = "makes the stored medium anew: only when the format changes on purpose"]
fn write_the_stored_medium() {
    let media = MemMedia::new(MIN_MEDIA as usize);
    let (mut heap, _) = Heap::open(Box::new(media.clone()), &key(), &create()).unwrap();
    for batch in golden_batches() {
        heap.commit(batch).unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/version-1.heap");
    media.with_bytes(|bytes| std::fs::write(path, bytes)).unwrap();
}
