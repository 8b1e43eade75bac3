//! Random histories against the in-memory model, and what a full or failing medium does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Model, Random, SMALL, batch, create, key, page};
use heap::{
    Batch, Change, CommitError, FileMedia, Heap, InvalidBatch, Media, MediaError, MediaKind, MemMedia,
    OpenError, OpenOptions, PAGE, SpaceId,
};
use proptest::prelude::*;

fn open(media: &MemMedia) -> Heap {
    Heap::open(Box::new(media.clone()), &key(), &create()).unwrap().0
}

fn one_page(space: u64, number: u64, fill: u8) -> Batch {
    Batch { changes: vec![Change::Page { space: SpaceId(space), page: number, data: page(fill) }] }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_heap_is_what_its_commits_made_it(seed: u64, steps in 1usize..60) {
        let mut random = Random(seed);
        let media = MemMedia::new(SMALL);
        let mut heap = open(&media);
        let mut model = Model::default();
        let (mut epoch, mut full) = (0, 0);
        for _ in 0..steps {
            let extra = random.below(3);
            let batch = batch(&mut random, extra);
            let next = model.after(&batch);
            match heap.commit(batch) {
                Ok(number) => {
                    epoch += 1;
                    prop_assert_eq!(number, epoch);
                    model = next;
                }
                Err(CommitError::Full { needed, capacity }) => {
                    prop_assert!(needed > capacity);
                    full += 1;
                }
                Err(error) => panic!("{error}"),
            }
            prop_assert_eq!(&Model::of(&heap), &model);
            if random.chance(4) {
                drop(heap);
                heap = open(&media);
                prop_assert_eq!(&Model::of(&heap), &model);
                // Opening is a commit of its own, if there is room for one.
                prop_assert!(heap.epoch() == epoch || heap.epoch() == epoch + 1);
                epoch = heap.epoch();
            }
        }
        prop_assert!(full < steps);
    }
}

#[test]
fn a_full_medium_refuses_and_goes_on() {
    let media = MemMedia::new(SMALL);
    let mut heap = open(&media);
    let mut model = Model::default();
    let mut number = 0;
    let refused = loop {
        let batch = one_page(1 + number % 2, number, 7);
        let next = model.after(&batch);
        match heap.commit(batch) {
            Ok(_) => model = next,
            Err(error) => break error,
        }
        number += 1;
    };
    assert!(matches!(refused, CommitError::Full { .. }), "{refused}");
    assert!(refused.to_string().contains("medium is full"));
    assert_eq!(number, 9, "nine pages fit into 40 KiB");
    assert_eq!(Model::of(&heap), model);
    // Refused again, and again without trace; smaller ones go through.
    heap.commit(one_page(1, 20, 1)).unwrap_err();
    let small = Batch { changes: vec![Change::Put { key: b"k".to_vec(), value: b"v".to_vec() }] };
    model.apply(&small);
    heap.commit(small).unwrap();
    assert_eq!(Model::of(&heap), model);
    // A dropped space makes room, even within the batch that drops it.
    let drop_and_write = Batch {
        changes: vec![
            Change::Drop { space: SpaceId(1) },
            Change::Page { space: SpaceId(3), page: 0, data: page(3) },
        ],
    };
    model.apply(&drop_and_write);
    heap.commit(drop_and_write).unwrap();
    assert_eq!(Model::of(&heap), model);
    assert_eq!(Model::of(&open(&media)), model);
    assert_eq!(heap.status().poisoned, None);
}

#[test]
fn commits_of_many_frames_and_large_values() {
    let media = MemMedia::new(8 << 20);
    let mut heap = open(&media);
    let mut model = Model::default();
    for round in 0..6u8 {
        let pages = (0..150).map(|n| Change::Page { space: SpaceId(1), page: n, data: page(round + 1) });
        let value = vec![round; 700_000];
        let changes = pages.chain([Change::Put { key: b"module".to_vec(), value }]).collect();
        let batch = Batch { changes };
        model.apply(&batch);
        heap.commit(batch).unwrap();
        assert_eq!(Model::of(&open(&media)), model);
    }
    assert!(heap.status().generation > 1, "the base took several frames too");
}

#[test]
fn zero_pages_are_free() {
    let media = MemMedia::new(SMALL);
    let mut heap = open(&media);
    let pages = 500 << 18; // 500 GiB
    heap.commit(Batch { changes: vec![Change::Resize { space: SpaceId(1), pages }] }).unwrap();
    heap.commit(one_page(1, pages - 1, 0)).unwrap();
    heap.commit(one_page(1, pages - 2, 4)).unwrap();
    let heap = open(&media);
    let space = heap.space(SpaceId(1)).unwrap();
    assert_eq!((space.pages(), heap.status().resident_pages), (pages, 1));
    assert_eq!(space.page(pages - 2), &[4; PAGE]);
    assert_eq!(space.page(pages - 1), &[0; PAGE]);
    assert_eq!(space.page(u64::MAX), &[0; PAGE]);
}

#[test]
fn metadata_is_found_by_prefix() {
    let media = MemMedia::new(SMALL);
    let mut heap = open(&media);
    let put = |key: &[u8]| Change::Put { key: key.to_vec(), value: key.to_vec() };
    let keys: [&[u8]; 6] = [b"a", b"b", b"b\0", b"b\xff", b"c", b""];
    heap.commit(Batch { changes: keys.into_iter().map(put).collect() }).unwrap();
    let found: Vec<_> = heap.meta_range(b"b").map(|(key, _)| key.to_vec()).collect();
    assert_eq!(found, [b"b".to_vec(), b"b\0".to_vec(), b"b\xff".to_vec()]);
    assert_eq!(heap.meta_range(b"").count(), 6);
}

#[test]
fn limits_are_kept() {
    let media = MemMedia::new(SMALL);
    let mut heap = open(&media);
    let mut refused = |change| match heap.commit(Batch { changes: vec![change] }) {
        Err(CommitError::Invalid(error)) => error,
        other => panic!("{other:?}"),
    };
    let key = vec![0; heap::MAX_KEY + 1];
    assert_eq!(refused(Change::Delete { key: key.clone() }), InvalidBatch::KeyTooLong { length: 1025 });
    assert_eq!(refused(Change::Put { key, value: vec![] }), InvalidBatch::KeyTooLong { length: 1025 });
    let (space, pages) = (SpaceId(1), heap::MAX_PAGES + 1);
    assert_eq!(refused(Change::Resize { space, pages }), InvalidBatch::SpaceTooLong { space, pages });
    let beyond = Change::Page { space, page: heap::MAX_PAGES, data: page(1) };
    assert_eq!(refused(beyond), InvalidBatch::SpaceTooLong { space, pages });
    assert_eq!((heap.epoch(), heap.spaces().len()), (0, 0));
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
    let failing = Failing(media.clone(), fail.clone());
    let (mut heap, _) = Heap::open(Box::new(failing), &key(), &create()).unwrap();
    heap.commit(one_page(1, 0, 1)).unwrap();
    fail.store(true, Ordering::Relaxed);
    assert!(matches!(heap.commit(one_page(1, 0, 2)), Err(CommitError::Media(_))));
    // Even if fences work again: what the failed one left is unknown.
    fail.store(false, Ordering::Relaxed);
    let refused = heap.commit(one_page(1, 0, 3)).unwrap_err();
    assert!(
        matches!(&refused, CommitError::Poisoned { reason } if reason.contains("sync the test")),
        "{refused}"
    );
    assert!(heap.status().poisoned.is_some());
    assert_eq!(heap.space(SpaceId(1)).unwrap().page(0)[0], 1, "the image is the last acknowledged one");
    let (heap, recovery) = Heap::open(Box::new(media), &key(), &OpenOptions::default()).unwrap();
    assert_eq!((recovery.epoch, heap.space(SpaceId(1)).unwrap().page(0)[0]), (2, 2), "here it had arrived");
}

#[test]
fn files_survive_and_are_locked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nvram");
    assert!(FileMedia::open(&path).is_err());
    let media = FileMedia::open_or_create(&path, 1 << 20).unwrap();
    assert_eq!((media.len(), media.kind()), (1 << 20, MediaKind::File));
    let (mut heap, _) = Heap::open(Box::new(media), &key(), &create()).unwrap();
    for fill in 1..=200 {
        heap.commit(one_page(1, u64::from(fill % 5), fill)).unwrap();
    }
    assert!(heap.status().generation > 1);
    let locked = FileMedia::open(&path).unwrap_err();
    assert!(locked.to_string().contains("open twice"), "{locked}");
    let model = Model::of(&heap);
    drop(heap);
    let media = FileMedia::open_or_create(&path, 5 << 20).unwrap();
    assert_eq!(media.len(), 1 << 20, "an existing file keeps its length");
    let (heap, recovery) = Heap::open(Box::new(media), &key(), &OpenOptions::default()).unwrap();
    assert_eq!((recovery.epoch, recovery.torn_tail), (200, None));
    assert_eq!(Model::of(&heap), model);
}

#[test]
fn shared_memory_survives_the_process_and_disk_files_are_refused() {
    use heap::BarMedia;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let memory = memfd_create("nvram", MFdFlags::empty()).unwrap();
    nix::unistd::ftruncate(&memory, 1 << 20).unwrap();
    let media = BarMedia::from_fd(memory.try_clone().unwrap()).unwrap();
    assert_eq!((media.len(), media.kind()), (1 << 20, MediaKind::SharedMemory));
    let (mut heap, _) = Heap::open(Box::new(media), &key(), &create()).unwrap();
    for fill in 1..=200 {
        heap.commit(one_page(1, u64::from(fill % 5), fill)).unwrap();
    }
    let model = Model::of(&heap);
    drop(heap);
    let media = BarMedia::from_fd(memory).unwrap();
    let (heap, _) = Heap::open(Box::new(media), &key(), &OpenOptions::default()).unwrap();
    assert_eq!(Model::of(&heap), model);

    let media = BarMedia::from_fd({
        let memory = memfd_create("small", MFdFlags::empty()).unwrap();
        nix::unistd::ftruncate(&memory, 4096).unwrap();
        memory
    })
    .unwrap();
    media.write(64, &[7; 128]).unwrap();
    let mut bytes = [0; 21];
    media.read(59, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7], "unaligned reads");
    media.write(8, &[0; 64]).unwrap_err();
    media.write(4096, &[0; 64]).unwrap_err();
    media.read(u64::MAX, &mut bytes).unwrap_err();
    assert!(matches!(
        Heap::open(Box::new(media), &key(), &create()),
        Err(OpenError::TooSmall { length: 4096 })
    ));

    // The crate's own directory lies on a disk, not in shared memory.
    let on_disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    on_disk.set_len(1 << 20).unwrap();
    let refused = BarMedia::from_fd(on_disk.into()).unwrap_err();
    assert!(refused.to_string().contains("map the file as NVRAM"), "{refused}");
}
