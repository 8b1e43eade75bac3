//! The Merkle root: the same however it was come by, another for every other content.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

mod content;

use content::{Content, change, in_memory, page, write};
use heap::{Key, Merkle, PAGE, Snapshot, SpaceId};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn at_once(snapshot: &Snapshot) -> [u8; 32] {
    Merkle::new().update(snapshot).unwrap()
}

/// The root of equal content on another heap, come by in another order.
fn elsewhere(content: &Content) -> [u8; 32] {
    let (mut heap, _) = in_memory(8 << 20, &Key::plain());
    for (space, (length, pages)) in content.spaces.iter().rev() {
        for (number, bytes) in pages.iter().rev() {
            write(&mut heap, *space, *number, bytes[0]);
        }
        change(&mut heap, |batch| batch.resize(SpaceId(*space), *length));
    }
    for (key, value) in content.meta.iter().rev() {
        change(&mut heap, |batch| batch.put_meta(key.clone(), value.clone()));
    }
    at_once(&heap.snapshot())
}

#[test]
fn the_root_follows_random_histories() {
    let mut random = Random(88_172_645_463_325_252);
    for _ in 0..8 {
        let (mut heap, _) = in_memory(8 << 20, &Key::new([7; 32]));
        let mut merkle = Merkle::new();
        let mut seen: Vec<([u8; 32], Content)> = Vec::new();
        for step in 0..160 {
            let (space, fill) = (random.below(3), random.below(4) as u8);
            let key = vec![b'k', random.below(5) as u8];
            match random.below(16) {
                0 => change(&mut heap, |batch| batch.delete_space(SpaceId(space))),
                1 => {
                    let length = random.below(40_000);
                    change(&mut heap, |batch| batch.resize(SpaceId(space), length));
                }
                2 => change(&mut heap, |batch| batch.clone_space(SpaceId(space), SpaceId(fill.into()))),
                3 => change(&mut heap, |batch| batch.put_meta(key, vec![fill; 700])),
                4 => change(&mut heap, |batch| batch.put_meta(key, vec![fill; 30])),
                5 => change(&mut heap, |batch| batch.delete_meta(key)),
                6 => heap.checkpoint().unwrap(),
                7..12 => write(&mut heap, space, random.below(40_000), fill),
                _ => write(&mut heap, space, random.below(200), fill),
            }
            if step % 8 == 7 {
                let snapshot = heap.snapshot();
                let (root, content) = (merkle.update(&snapshot).unwrap(), Content::of(&snapshot));
                assert_eq!(root, at_once(&snapshot), "step by step as at once");
                assert_eq!(root, elsewhere(&content), "content alone counts");
                assert!(seen.iter().all(|(other, earlier)| (*other == root) == (*earlier == content)));
                seen.push((root, content));
            }
        }
    }
}

#[test]
fn every_place_length_and_value_counts() {
    let root = |space: u64, number: u64, fill: u8, length: u64, value: &[u8]| {
        let (mut heap, _) = in_memory(1 << 20, &Key::plain());
        write(&mut heap, space, number, fill);
        change(&mut heap, |batch| batch.resize(SpaceId(space), length));
        change(&mut heap, |batch| batch.put_meta(b"k", value.to_vec()));
        at_once(&heap.snapshot())
    };
    let base = root(1, 300, 9, 400, b"v");
    assert_eq!(root(1, 300, 9, 400, b"v"), base);
    let others = [
        root(2, 300, 9, 400, b"v"),
        root(1, 301, 9, 400, b"v"),
        root(1, 300, 8, 400, b"v"),
        root(1, 300, 9, 401, b"v"),
        root(1, 300, 9, 400, b"w"),
        root(1, 300, 9, 400, &[5; 5000]),
    ];
    assert!(!others.contains(&base));
}

#[test]
fn pages_that_the_caller_holds_are_not_read() {
    let (mut heap, media) = in_memory(1 << 20, &Key::new([7; 32]));
    write(&mut heap, 1, 3, 5);
    write(&mut heap, 1, 4, 6);
    let snapshot = heap.snapshot();
    let expected = at_once(&snapshot);
    let pages = [page(5), page(6)];
    media.with_bytes(|bytes| bytes[16384 + (32 << 10)..][..8 * PAGE].fill(0x11));
    let mut merkle = Merkle::new();
    merkle.update(&snapshot).unwrap_err();
    let held = |_, number: u64| pages.get(number as usize - 3);
    assert_eq!(merkle.update_from(&snapshot, held).unwrap(), expected);
}

#[test]
fn an_update_that_failed_leaves_nothing_half_done() {
    let (mut heap, media) = in_memory(1 << 20, &Key::new([7; 32]));
    write(&mut heap, 1, 3, 5);
    write(&mut heap, 1, 100, 6);
    let mut merkle = Merkle::new();
    merkle.update(&heap.snapshot()).unwrap();
    write(&mut heap, 1, 3, 7);
    write(&mut heap, 1, 100, 8);
    let snapshot = heap.snapshot();
    let expected = at_once(&snapshot);
    // The last page that was written cannot be read for a while, after the first was hashed.
    let flip = || media.with_bytes(|bytes| bytes[16384 + (32 << 10) + 3 * PAGE] ^= 1);
    flip();
    merkle.update(&snapshot).unwrap_err();
    flip();
    assert_eq!(merkle.update(&snapshot).unwrap(), expected);
}
