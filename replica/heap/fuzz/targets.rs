//! Media that somebody prepared: whatever stands on them, the heap reads it, or says what is wrong. It never panics and
//! takes no more memory than the medium is long.
//!
//! On a plain heap every checksum counts as right ([`Mutant::ChecksumsIgnored`]), so that the content behind it is
//! parsed; with a key, what is parsed before anything is authenticated is met as it is.
#![allow(dead_code, reason = "each program uses one of these")]

use heap::mutants::{self, Mutant};
use heap::{Batch, Heap, Key, MIN_MEDIA, MemMedia, OpenOptions, PAGE, SpaceId, inspect};
use std::sync::OnceLock;

/// Where the ring begins, and the blocks behind it, of a medium of this length.
const RING: usize = 4 * PAGE;
const SLOTS: usize = RING + (32 << 10);
const LENGTH: usize = MIN_MEDIA as usize;
const SUPERBLOCK: usize = 512;

/// A heap with something of everything; with a checkpoint, or all of it in the log.
fn base(key: &Key, checkpoint: bool) -> Vec<u8> {
    let media = MemMedia::new(LENGTH);
    let options = OpenOptions { create: true, ..OpenOptions::default() };
    if let Ok((mut heap, _)) = Heap::open(Box::new(media.clone()), key, &options) {
        let page = [7; PAGE];
        let value = vec![9; 3 * PAGE];
        let mut batch = Batch::new();
        for number in 0..4 {
            batch.put_page(SpaceId(1), number * 200, &page);
        }
        batch.put_meta(b"short", b"value").put_meta(b"long", &value);
        drop(heap.commit(&batch));
        let mut batch = Batch::new();
        batch.put_page(SpaceId(2), 5, &page).clone_space(SpaceId(1), SpaceId(3)).delete_space(SpaceId(1));
        batch.resize(SpaceId(3), 300).delete_meta(b"none");
        drop(heap.commit(&batch));
        if checkpoint {
            drop(heap.checkpoint());
            drop(heap.commit(Batch::new().put_page(SpaceId(3), 1, &page)));
        }
    }
    media.with_bytes(|bytes| bytes.to_vec())
}

/// The same one each time.
fn plain(checkpoint: bool) -> Vec<u8> {
    static BASES: [OnceLock<Vec<u8>>; 2] = [const { OnceLock::new() }; 2];
    BASES[usize::from(checkpoint)].get_or_init(|| base(&Key::plain(), checkpoint)).clone()
}

fn sealed() -> (Key, Vec<u8>) {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    let key = Key::new([7; 32]);
    let bytes = BASE.get_or_init(|| base(&key, true)).clone();
    (key, bytes)
}

/// Opens a medium, or rescues what can be, reads it, goes on with it, and opens it again.
fn exercise(bytes: Vec<u8>, key: &Key) {
    let media = MemMedia::from_bytes(bytes);
    drop(inspect(&media, Some(key)));
    let open = |salvage| {
        let options = OpenOptions { create: true, salvage, ..OpenOptions::default() };
        Heap::open(Box::new(media.clone()), key, &options).map(|(heap, _)| heap)
    };
    match open(false).or_else(|_| open(true)) {
        Ok(heap) => {
            go_on(heap);
            drop(open(false));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn go_on(mut heap: Heap) {
    let snapshot = heap.snapshot();
    let mut page = [0; PAGE];
    for (space, _) in snapshot.spaces().into_iter().flatten() {
        for number in snapshot.present_pages(space, 0, 64).into_iter().flatten() {
            drop(snapshot.read_page(space, number, &mut page));
        }
    }
    drop(snapshot.meta_range(b""));
    drop(heap.audit());
    let mut batch = Batch::new();
    batch.put_page(SpaceId(3), 2, &[1; PAGE]).clone_space(SpaceId(3), SpaceId(4)).delete_space(SpaceId(2));
    batch.put_meta(b"short", &[3; 5000]).resize(SpaceId(3), 1);
    drop(heap.commit(&batch));
    drop(heap.checkpoint());
    drop(heap.maintain(8));
}

fn believing(run: impl FnOnce()) {
    mutants::choose(Some(Mutant::ChecksumsIgnored));
    run();
    mutants::choose(None);
}

fn patch(bytes: &mut [u8], at: usize, with: &[u8]) {
    let with = &with[..with.len().min(bytes.len() - at)];
    bytes[at..at + with.len()].copy_from_slice(with);
}

/// Both superblocks.
pub(crate) fn superblock(data: &[u8]) {
    let (first, second) = data.split_at(data.len().min(SUPERBLOCK));
    let put = |mut bytes: Vec<u8>| {
        patch(&mut bytes, 0, first);
        patch(
            &mut bytes,
            PAGE,
            if second.is_empty() { first } else { &second[..second.len().min(SUPERBLOCK)] },
        );
        bytes
    };
    believing(|| exercise(put(plain(true)), &Key::plain()));
    let (key, bytes) = sealed();
    exercise(put(bytes), &key);
    drop(inspect(&MemMedia::from_bytes(put(plain(true))), None));
}

/// The ring.
pub(crate) fn log(data: &[u8]) {
    let data = &data[..data.len().min(SLOTS - RING)];
    let mut bytes = plain(false);
    patch(&mut bytes, RING, data);
    believing(|| exercise(bytes, &Key::plain()));
    let (key, mut bytes) = sealed();
    patch(&mut bytes, RING, data);
    exercise(bytes, &key);
}

/// What a commit's record says.
pub(crate) fn record(data: &[u8]) {
    let data = &data[..data.len().min(8 << 10)];
    let mut frame = Vec::from(b"RHL2");
    frame.extend([1, 0, 0, 0]);
    // Epoch, the last durable one, number.
    [3u64, 0, 2].iter().for_each(|number| frame.extend(number.to_le_bytes()));
    frame.extend((data.len() as u32).to_le_bytes());
    frame.extend([0; 28]);
    frame.extend(data);
    // After the two commits that are there.
    let mut bytes = plain(false);
    let mut at = RING;
    while bytes[at..].starts_with(b"RHL2") && bytes[at + 24] < 2 {
        let length = u32::from_le_bytes([bytes[at + 32], bytes[at + 33], bytes[at + 34], bytes[at + 35]]);
        at += (64 + length as usize + 16).next_multiple_of(64);
    }
    patch(&mut bytes, at, &frame);
    believing(|| exercise(bytes, &Key::plain()));
}

/// Index nodes, the list of free slots and pages: patches of block (1), offset (2), length (1) and content.
pub(crate) fn index(data: &[u8]) {
    let mut bytes = plain(true);
    let mut rest = data;
    while let Some(([block, low, high, length], content)) = rest.split_first_chunk() {
        let content = &content[..content.len().min((*length).into())];
        let at = SLOTS + usize::from(*block) * PAGE + usize::from(u16::from_le_bytes([*low, *high])) % PAGE;
        if at < bytes.len() {
            patch(&mut bytes, at, content);
        }
        rest = &rest[4 + content.len()..];
    }
    believing(|| exercise(bytes, &Key::plain()));
}

/// Inputs to begin with.
pub(crate) fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (name, bytes) in [("plain", plain(true)), ("log", plain(false)), ("sealed", sealed().1)] {
        let both = [&bytes[..SUPERBLOCK], &bytes[PAGE..PAGE + SUPERBLOCK]].concat();
        seeds.push(("superblock", name, both));
        seeds.push(("log", name, bytes[RING..RING + 4096].to_vec()));
    }
    let bytes = plain(false);
    let payload = |at: usize| bytes[at + 64..at + 64 + usize::from(bytes[at + 32])].to_vec();
    seeds.push(("record", "first", payload(RING)));
    let second = (RING + 64..SLOTS).step_by(64).find(|at| bytes[*at..].starts_with(b"RHL2"));
    seeds.push(("record", "second", payload(second.unwrap_or(RING))));
    let bytes = plain(true);
    for block in 0..24_u8 {
        let content = &bytes[SLOTS + usize::from(block) * PAGE..][..200];
        let name = ["even", "odd"][usize::from(block % 2)];
        match seeds.iter_mut().find(|(target, other, _)| (*target, *other) == ("index", name)) {
            Some((.., seed)) => seed.extend([&[block, 0, 0, 200], content].concat()),
            None => seeds.push(("index", name, [&[block, 0, 0, 200], content].concat())),
        }
    }
    seeds
}
