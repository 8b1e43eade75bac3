//! The same durable updates as transactions of the heap and of embedded stores, each in a fresh directory of the same
//! medium: random pages of 4 KiB among 2048, durable when the call returns. Prints one JSON document, which
//! `cargo xtask bench heap` shows as a table: microseconds of wall time a transaction, maintenance included.
//!
//! Usage: heap-rivals DIRECTORY...

mod stores;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stores::{ALL, Failure, Make, Store};

const PAGE: usize = 4096;
/// Pages that exist.
const PAGES: u64 = 2048;
/// Pages of a transaction.
const SIZES: [usize; 3] = [1, 10, 100];
/// Limits of one measurement.
const TIME: Duration = Duration::from_millis(900);
const MOST: u32 = 4000;
/// At least two parts of equal size.
const LEAST: u32 = 2 * PART;
const PART: u32 = 20;

type Page = [u8; PAGE];

/// Pages with content that no store can compress.
struct Source(u64);

impl Source {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, page: &mut Page) {
        for word in page.as_chunks_mut::<8>().0 {
            *word = self.next().to_le_bytes();
        }
    }
}

/// Microseconds a transaction of so many pages.
fn measure(store: &mut dyn Store, size: usize, source: &mut Source) -> Result<f64, Failure> {
    let mut pages = vec![[0; PAGE]; size];
    pages.iter_mut().for_each(|page| source.fill(page));
    let (mut spent, mut part, mut parts) = (Duration::ZERO, Duration::ZERO, Vec::new());
    let mut count = 0;
    while count < LEAST || (spent < TIME && count < MOST) {
        let batch: Vec<(u64, &Page)> = pages
            .iter_mut()
            .map(|page| {
                page[..8].copy_from_slice(&source.next().to_le_bytes());
                (source.next() % PAGES, &*page)
            })
            .collect();
        let start = Instant::now();
        store.commit(&batch)?;
        part += start.elapsed();
        count += 1;
        if count % PART == 0 {
            parts.push(part);
            spent += std::mem::take(&mut part);
        }
    }
    // The middle one, since other programs may be running.
    parts.sort_unstable();
    Ok(parts[parts.len() / 2].as_secs_f64() * 1e6 / f64::from(PART))
}

fn run(name: &str, make: Make, directory: &Path) -> Result<Vec<Value>, Failure> {
    let scratch = Scratch(directory.join(format!("redoubt-rivals-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0)?;
    let mut store = make(&scratch.0)?;
    let mut source = Source(88_172_645_463_325_252);
    let mut page = [0; PAGE];
    for first in (0..PAGES).step_by(64) {
        let mut pages = Vec::new();
        for _ in 0..64 {
            source.fill(&mut page);
            pages.push(page);
        }
        store.commit(&(first..).zip(&pages).collect::<Vec<_>>())?;
    }
    let mut rows = Vec::new();
    for size in SIZES {
        let time = measure(store.as_mut(), size, &mut source)?;
        rows.push(json!({"store": name, "directory": directory, "pages": size, "us": time}));
    }
    Ok(rows)
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn main() -> Result<(), Failure> {
    let mut rows = Vec::new();
    for directory in std::env::args_os().skip(1).map(PathBuf::from) {
        for (name, make) in ALL {
            eprintln!("  {name} in {}", directory.display());
            rows.extend(run(name, make, &directory)?);
        }
    }
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}
