//! A new key for a heap that goes on: whatever moment the power fails at, one of the two keys opens it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

mod content;

use std::sync::{Arc, Mutex};

use content::{Content, change, create, write};
use heap::{CommitError, Heap, Key, Media, MediaError, MediaKind, MemMedia, OpenError, OpenOptions};

/// Keeps an image from before each write, and one with half of it.
#[derive(Clone)]
struct Watched(MemMedia, Arc<Mutex<Vec<Vec<u8>>>>);

impl Media for Watched {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn kind(&self) -> MediaKind {
        MediaKind::Memory
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.0.read(offset, into)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        let mut images = self.1.lock().unwrap();
        let before = self.0.with_bytes(|all| all.to_vec());
        for kept in (0..bytes.len()).step_by(8) {
            let mut torn = before.clone();
            torn[offset as usize..][..kept].copy_from_slice(&bytes[..kept]);
            images.push(torn);
        }
        self.0.write(offset, bytes)
    }

    fn fence(&self) -> Result<(), MediaError> {
        Ok(())
    }
}

#[test]
fn a_power_cut_while_the_key_changes_leaves_one_that_opens() {
    let (old, new) = (Key::new([7; 32]), Key::new([8; 32]));
    let media = Watched(MemMedia::new(1 << 20), Arc::default());
    let (mut heap, _) = Heap::open(Box::new(media.clone()), &old, &create()).unwrap();
    write(&mut heap, 1, 3, 5);
    change(&mut heap, |batch| batch.put_meta(b"k", vec![7; 9000]));
    heap.checkpoint().unwrap();
    write(&mut heap, 1, 4, 6);
    let model = Content::of(&heap.snapshot());
    media.1.lock().unwrap().clear();
    heap.rekey(&new).unwrap();
    let images = std::mem::take(&mut *media.1.lock().unwrap());
    assert!(images.len() > 100, "the superblock was written twice");
    // The heap goes on under the new key.
    write(&mut heap, 1, 5, 7);
    let after = Content::of(&heap.snapshot());
    drop(heap);
    let options = OpenOptions { former: Some(old.clone()), ..OpenOptions::default() };
    let mut rekeyed = 0;
    for image in images {
        let media = MemMedia::from_bytes(image);
        let (heap, recovery) = Heap::open(Box::new(media.clone()), &new, &options).unwrap();
        rekeyed += usize::from(recovery.rekeyed);
        assert_eq!(Content::of(&heap.snapshot()), model);
        drop(heap);
        let (_, recovery) = Heap::open(Box::new(media.clone()), &new, &OpenOptions::default()).unwrap();
        assert!(!recovery.rekeyed && !recovery.superblock_repaired, "both copies are under the new key");
        let refused = Heap::open(Box::new(media), &old, &OpenOptions::default()).unwrap_err();
        assert!(matches!(refused, OpenError::OtherKey { ours, .. } if ours == old.id()), "{refused}");
    }
    assert!(rekeyed > 50, "{rekeyed} images were still under the old key");
    let (heap, _) = Heap::open(Box::new(media), &new, &OpenOptions::default()).unwrap();
    assert_eq!(Content::of(&heap.snapshot()), after);
}

#[test]
fn a_sealed_heap_does_not_become_a_plain_one() {
    let media = MemMedia::new(1 << 20);
    let (mut heap, _) = Heap::open(Box::new(media.clone()), &Key::new([7; 32]), &create()).unwrap();
    assert!(matches!(heap.rekey(&Key::plain()), Err(CommitError::KeyKind)));
    write(&mut heap, 1, 4, 6);
    drop(heap);
    let options = OpenOptions { former: Some(Key::new([7; 32])), ..OpenOptions::default() };
    Heap::open(Box::new(media.clone()), &Key::plain(), &options).unwrap_err();
    // A former key that is not the one either does not help.
    let options = OpenOptions { former: Some(Key::new([1; 32])), ..OpenOptions::default() };
    let refused = Heap::open(Box::new(media), &Key::new([2; 32]), &options).unwrap_err();
    assert!(matches!(refused, OpenError::OtherKey { .. }), "{refused}");
}
