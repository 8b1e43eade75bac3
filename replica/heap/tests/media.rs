//! Media: files, shared memory, failing ones, large ones.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use heap::{
    BarMedia, Batch, CommitError, FileMedia, Heap, InvalidBatch, MAX_SPACE, Media, MediaError, MediaKind,
    MemMedia, OpenOptions, PAGE, SpaceId,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use support::{Model, Op, create, key, with_batch};

fn commit(heap: &mut Heap, ops: &[Op]) -> Result<u64, CommitError> {
    with_batch(ops, |batch| heap.commit(batch))
}

fn survives(open: impl Fn() -> Box<dyn Media>, kind: MediaKind) {
    let (mut heap, _) = Heap::open(open(), &key(), &create()).unwrap();
    assert_eq!(heap.status().kind, kind);
    for fill in 1..=300 {
        commit(
            &mut heap,
            &[Op::Page(1, fill % 7, fill), Op::Put(b"n".to_vec(), vec![7; fill as usize * 10])],
        )
        .unwrap();
    }
    assert!(heap.status().generation > 1, "checkpoints were written");
    let model = Model::of(&heap.snapshot()).unwrap();
    drop(heap);
    let (heap, recovery) = Heap::open(open(), &key(), &OpenOptions::default()).unwrap();
    assert_eq!((recovery.epoch, recovery.torn_tail), (300, false));
    assert_eq!(Model::of(&heap.snapshot()).unwrap(), model);
}

#[test]
fn files_survive_and_are_locked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nvram");
    assert!(FileMedia::open(&path).is_err());
    survives(|| Box::new(FileMedia::open_or_create(&path, 1 << 20).unwrap()), MediaKind::File);
    let media = FileMedia::open_or_create(&path, 5 << 20).unwrap();
    assert_eq!(media.len(), 1 << 20, "an existing file keeps its length");
    let locked = FileMedia::open(&path).unwrap_err();
    assert!(locked.to_string().contains("open twice"), "{locked}");
}

#[test]
fn shared_memory_survives_the_process_and_disk_files_are_refused() {
    let memory = memfd_create("nvram", MFdFlags::empty()).unwrap();
    nix::unistd::ftruncate(&memory, 1 << 20).unwrap();
    let open = || -> Box<dyn Media> { Box::new(BarMedia::from_fd(memory.try_clone().unwrap()).unwrap()) };
    survives(open, MediaKind::SharedMemory);
    let media = open();
    media.write(64, &[7; 128]).unwrap();
    let mut bytes = [0; 21];
    media.read(59, &mut bytes).unwrap();
    assert_eq!(bytes[4..], [bytes[4], 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7], "unaligned reads");
    media.write(8, &[0; 64]).unwrap_err();
    media.write(1 << 20, &[0; 64]).unwrap_err();
    media.read(u64::MAX, &mut bytes).unwrap_err();
    // The crate's own directory lies on a disk, not in shared memory.
    let on_disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    on_disk.set_len(1 << 20).unwrap();
    let refused = BarMedia::from_fd(on_disk.into()).unwrap_err();
    assert!(refused.to_string().contains("map the file as NVRAM"), "{refused}");
}

/// Every open takes a place in the log; however often, none is taken that is still needed.
#[test]
fn opening_again_and_again_needs_no_commit_between() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nvram");
    let open = || {
        Heap::open(Box::new(FileMedia::open_or_create(&path, 1 << 20).unwrap()), &key(), &create()).unwrap()
    };
    let (mut heap, _) = open();
    commit(&mut heap, &[Op::Page(1, 3, 5)]).unwrap();
    let model = Model::of(&heap.snapshot()).unwrap();
    drop(heap);
    for _ in 0..30 {
        let (heap, recovery) = open();
        assert!(!recovery.torn_tail);
        assert_eq!(Model::of(&heap.snapshot()).unwrap(), model);
    }
    commit(&mut open().0, &[Op::Page(1, 3, 6)]).unwrap();
    assert_eq!(Model::of(&open().0.snapshot()).unwrap().spaces[&1].1[&3], 6);
}

/// 512 GiB of medium, all of it sparse; a space of 500 GiB; opening reads next to nothing.
#[test]
fn large_media_and_sparse_spaces() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = directory.path().join("large");
    let open = || Box::new(FileMedia::open_or_create(&path, 512 << 30).unwrap());
    let (mut heap, _) = Heap::open(open(), &key(), &create()).unwrap();
    let pages = (500u64 << 30) / PAGE as u64;
    commit(&mut heap, &[Op::Resize(1, pages), Op::Page(1, pages - 1, 5), Op::Page(1, 0, 6)]).unwrap();
    heap.checkpoint().unwrap();
    commit(&mut heap, &[Op::Page(1, pages / 2, 7)]).unwrap();
    let status = heap.status();
    assert!(status.capacity > 511 << 30 && status.used < 1 << 20, "{status:?}");
    let model = Model::of(&heap.snapshot()).unwrap();
    drop(heap);
    let (heap, _) = Heap::open(open(), &key(), &OpenOptions::default()).unwrap();
    assert_eq!(Model::of(&heap.snapshot()).unwrap(), model);
    assert_eq!(model.spaces[&1].0, pages);
}

#[test]
fn limits_are_kept() {
    let (mut heap, _) = Heap::open(Box::new(MemMedia::new(1 << 20)), &key(), &create()).unwrap();
    let mut refused = |make: &dyn Fn(&mut Batch<'static>)| {
        let mut batch = Batch::new();
        make(&mut batch);
        match heap.commit(&batch) {
            Err(CommitError::Invalid(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let long = vec![0; heap::MAX_KEY + 1];
    assert_eq!(
        refused(&|batch| _ = batch.delete_meta(long.clone())),
        InvalidBatch::KeyTooLong { length: 1025 }
    );
    let (space, pages) = (SpaceId(1), heap::MAX_PAGES + 1);
    assert_eq!(refused(&|batch| _ = batch.resize(space, pages)), InvalidBatch::SpaceTooLong { space, pages });
    let space = SpaceId(MAX_SPACE + 1);
    assert_eq!(refused(&|batch| _ = batch.delete_space(space)), InvalidBatch::SpaceNumber { space });
    assert_eq!(heap.epoch(), 0);
}

/// Memory whose fences can be made to fail.
struct Failing(MemMedia, Arc<AtomicBool>);

impl Media for Failing {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn kind(&self) -> MediaKind {
        MediaKind::File
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.0.read(offset, into)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        self.0.write(offset, bytes)
    }
    fn fence(&self) -> Result<(), MediaError> {
        if self.1.load(Ordering::Relaxed) {
            let source = std::io::ErrorKind::Other.into();
            return Err(MediaError { action: "sync the test".into(), offset: 0, length: 0, source });
        }
        Ok(())
    }
}

#[test]
fn a_failed_fence_stops_the_heap() {
    let (media, fail) = (MemMedia::new(1 << 20), Arc::new(AtomicBool::new(false)));
    let (mut heap, _) =
        Heap::open(Box::new(Failing(media.clone(), fail.clone())), &key(), &create()).unwrap();
    commit(&mut heap, &[Op::Page(1, 0, 1)]).unwrap();
    fail.store(true, Ordering::Relaxed);
    assert!(matches!(commit(&mut heap, &[Op::Page(1, 0, 2)]), Err(CommitError::Media(_))));
    // Even if fences work again: what the failed one left is unknown.
    fail.store(false, Ordering::Relaxed);
    let refused = commit(&mut heap, &[Op::Page(1, 0, 3)]).unwrap_err();
    assert!(
        matches!(&refused, CommitError::Poisoned { reason } if reason.contains("sync the test")),
        "{refused}"
    );
    assert_eq!(
        Model::of(&heap.snapshot()).unwrap().spaces[&1].1[&0],
        1,
        "snapshots show the last acknowledged state"
    );
    let (heap, recovery) = Heap::open(Box::new(media), &key(), &OpenOptions::default()).unwrap();
    assert_eq!(
        (recovery.epoch, Model::of(&heap.snapshot()).unwrap().spaces[&1].1[&0]),
        (2, 2),
        "here it had arrived"
    );
}

/// Readers on other threads see whole states while a writer goes on, also through checkpoints and reuse of slots.
#[test]
fn snapshots_on_other_threads_are_never_torn() {
    let (mut heap, _) = Heap::open(Box::new(MemMedia::new(4 << 20)), &key(), &create()).unwrap();
    let (send, receive) = std::sync::mpsc::sync_channel::<heap::Snapshot>(1);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut seen = 0;
            for snapshot in receive {
                let model = Model::of(&snapshot).unwrap();
                let Some((_, pages)) = model.spaces.get(&1) else { continue };
                let fills: std::collections::BTreeSet<u64> = pages.values().copied().collect();
                assert_eq!((fills.len(), pages.len()), (1, 6), "all pages of one commit, or none");
                seen += 1;
            }
            seen
        });
        for fill in 1..=1500 {
            let ops: Vec<Op> = (0..6).map(|page| Op::Page(1, page * 100, fill)).collect();
            commit(&mut heap, &ops).unwrap();
            if fill % 20 == 0 {
                send.send(heap.snapshot()).unwrap();
            }
        }
        drop(send);
        let seen = reader.join().unwrap();
        assert!(seen > 20, "{seen}");
    });
    assert!(heap.status().generation > 3);
}
