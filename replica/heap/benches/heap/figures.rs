//! The figures.

use std::path::Path;

use heap::{BarMedia, Batch, FileMedia, Heap, Key, Media, Merkle, OpenOptions, PAGE, Page, SpaceId};
use serde_json::Value;

use crate::reference::{Aead, Destination};
use crate::{Failure, Scratch, clock, median, row};

/// Measures figures whose name contains a word, or that the word names more closely.
type Measure = fn(&str, &mut Vec<Value>) -> Result<(), Failure>;

/// All of them, by name.
pub(crate) const ALL: [(&str, Measure); 3] =
    [("commit", commits), ("merkle", merkle), ("recovery", recovery)];

const SHARED: &str = "/dev/shm";
/// Pages of the memory that is committed; 256 MiB, far above the caches.
const MEMORY: usize = 1 << 16;
const MEDIUM: usize = 1 << 30;
/// Pages of a commit.
const SIZES: [usize; 4] = [1, 10, 100, 1000];
const ROUNDS: usize = 31;

/// XorShift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize % bound
    }
}

fn memory() -> Vec<Page> {
    (0..MEMORY).map(|at| [at as u8 | 1; PAGE]).collect()
}

fn shared(path: &Path, length: usize) -> Result<Box<dyn Media>, Failure> {
    std::fs::File::create_new(path)?.set_len(length as u64)?;
    let media = BarMedia::open(path)?;
    media.prefault()?;
    Ok(Box::new(media))
}

fn create(media: Box<dyn Media>, key: &Key) -> Result<Heap, Failure> {
    let options = OpenOptions { create: true, ..OpenOptions::default() };
    Ok(Heap::open(media, key, &options)?.0)
}

fn commit(heap: &mut Heap, memory: &[Page], pages: &[usize]) -> Result<(), Failure> {
    let mut batch = Batch::new();
    for page in pages {
        batch.put_page(SpaceId(1), *page as u64, &memory[*page]);
    }
    heap.commit(&batch)?;
    Ok(())
}

fn commits(only: &str, rows: &mut Vec<Value>) -> Result<(), Failure> {
    let memory = memory();
    let scratch = Scratch::new(Path::new(SHARED), "reference");
    let mut destination = Destination::new(&scratch.0, MEDIUM)?;
    let mut aead = Aead::new()?;
    let mut random = Random(88_172_645_463_325_252);
    for (key, name) in [(Key::plain(), "plain"), (Key::new([7; 32]), "sealed")] {
        let figure = |pages: usize| format!("commit of {pages} pages, {name}");
        let chosen = SIZES.map(|pages| (pages, figure(pages))).into_iter();
        let chosen: Vec<_> = chosen.filter(|(_, figure)| figure.contains(only)).collect();
        if chosen.is_empty() {
            continue;
        }
        let scratch = Scratch::new(Path::new(SHARED), name);
        let mut heap = create(shared(&scratch.0, MEDIUM)?, &key)?;
        // Around the medium, so that slots are reused and checkpoints come as they do later.
        let all: Vec<usize> = (0..MEMORY).collect();
        for _ in 0..2 * MEDIUM / PAGE / MEMORY {
            all.chunks(1000).try_for_each(|pages| commit(&mut heap, &memory, pages))?;
        }
        for (pages, figure) in chosen {
            let (mut ours, mut copies, mut seals) = (Vec::new(), Vec::new(), Vec::new());
            let commits = 20_000 / pages;
            for _ in 0..ROUNDS {
                let chosen: Vec<Vec<usize>> = (0..commits)
                    .map(|_| {
                        let mut pages: Vec<usize> = (0..pages).map(|_| random.below(MEMORY)).collect();
                        pages.sort_unstable();
                        pages.dedup();
                        pages
                    })
                    .collect();
                let start = clock();
                chosen.iter().flatten().for_each(|page| destination.copy(&memory[*page]));
                let middle = clock();
                chosen.iter().try_for_each(|pages| commit(&mut heap, &memory, pages))?;
                let end = clock();
                copies.push((middle - start) / commits as f64);
                ours.push((end - middle) / commits as f64);
                if name == "sealed" {
                    let start = clock();
                    chosen.iter().flatten().try_for_each(|_| aead.seal())?;
                    seals.push((clock() - start) / commits as f64);
                }
            }
            let (ours, copy) = (median(&mut ours), median(&mut copies));
            rows.push(if name == "plain" {
                row(figure + " / memcpy", ours, copy, 1.0)
            } else {
                row(figure + " / memcpy + AEAD", ours, copy + median(&mut seals), 1.2)
            });
        }
    }
    Ok(())
}

/// The root of 1000 pages that changed, of a memory of 256 MiB, beside hashing each of them.
fn merkle(_: &str, rows: &mut Vec<Value>) -> Result<(), Failure> {
    let memory = memory();
    let scratch = Scratch::new(Path::new(SHARED), "merkle");
    let mut heap = create(shared(&scratch.0, MEDIUM)?, &Key::new([7; 32]))?;
    let all: Vec<usize> = (0..MEMORY).collect();
    all.chunks(1000).try_for_each(|pages| commit(&mut heap, &memory, pages))?;
    let mut merkle = Merkle::new();
    let held = |_, page: u64| memory.get(page as usize);
    merkle.update_from(&heap.snapshot(), held)?;
    let mut random = Random(88_172_645_463_325_252);
    for (reach, name) in [(MEMORY, "anywhere in 256 MiB"), (MEMORY / 16, "within 16 MiB")] {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let mut pages: Vec<usize> = (0..1000).map(|_| random.below(reach)).collect();
            pages.sort_unstable();
            pages.dedup();
            commit(&mut heap, &memory, &pages)?;
            let snapshot = heap.snapshot();
            let start = clock();
            for page in &pages {
                std::hint::black_box(blake3::hash(&memory[*page]));
            }
            let middle = clock();
            merkle.update_from(&snapshot, held)?;
            ours.push(clock() - middle);
            bare.push(middle - start);
        }
        let figure = format!("Merkle root of 1000 pages, {name} / blake3");
        rows.push(row(figure, median(&mut ours), median(&mut bare), 1.5));
    }
    Ok(())
}

/// Opening a heap that holds 16 GiB and one that holds 16 MiB, in files, after equally many commits since the last
/// checkpoint. Wall time, since most of it is waiting for the disk.
fn recovery(_: &str, rows: &mut Vec<Value>) -> Result<(), Failure> {
    let directory = std::env::var_os("HEAP_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let memory = memory();
    let mut seconds = Vec::new();
    for (pages, name) in [(4096u64, "small"), (4 << 20, "large")] {
        let scratch = Scratch::new(&directory, name);
        let key = Key::new([7; 32]);
        let open = || FileMedia::open_or_create(&scratch.0, 20 << 30);
        let mut heap = create(Box::new(open()?), &key)?;
        let numbers: Vec<u64> = (0..pages).collect();
        for numbers in numbers.chunks(4096) {
            let mut batch = Batch::new();
            for page in numbers {
                batch.put_page(SpaceId(1), *page, &memory[*page as usize % MEMORY]);
            }
            heap.submit(&batch)?;
        }
        heap.checkpoint()?;
        let tail: Vec<usize> = (0..4096).collect();
        for pages in tail.chunks(10) {
            commit(&mut heap, &memory, pages)?;
        }
        drop(heap);
        let mut times = Vec::new();
        for _ in 0..9 {
            let media = Box::new(open()?);
            let start = std::time::Instant::now();
            let (heap, recovery) = Heap::open(media, &key, &OpenOptions::default())?;
            times.push(start.elapsed().as_secs_f64());
            if recovery.replayed < 400 {
                return Err("the log was shorter than it should be".into());
            }
            drop(heap);
        }
        seconds.push(median(&mut times));
    }
    rows.push(row("recovery of 16 GiB / of 16 MiB".to_owned(), seconds[1], seconds[0], 1.2));
    Ok(())
}
