//! `cargo bench -p heap`: what the heap costs beside the copying, sealing and hashing that nobody can avoid. Prints one
//! JSON document, which `cargo xtask bench heap` shows as a table. `-- commit` measures only figures whose name
//! contains that.

#![allow(clippy::print_stdout, reason = "it prints its result")]

mod figures;
mod reference;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Why something could not be measured.
type Failure = Box<dyn std::error::Error>;

/// Processor time of this thread, so that what else the machine does counts less.
fn clock() -> f64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(f64::NAN, |time| time.tv_sec() as f64 + time.tv_nsec() as f64 * 1e-9)
}

/// The middle one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One line of the result: microseconds, and the ratio that ours may have to the reference.
fn row(figure: String, ours: f64, reference: f64, target: f64) -> Value {
    json!({"figure": figure, "unit": "us", "ours": ours * 1e6, "reference": reference * 1e6, "target": target,
        "of_ratio": true})
}

/// A file that is gone when this is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(directory: &Path, name: &str) -> Self {
        Self(directory.join(format!("redoubt-bench-heap-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn main() -> Result<(), Failure> {
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut rows = Vec::new();
    for (name, measure) in figures::ALL {
        if name.contains(&only) || only.contains(name) {
            measure(&only, &mut rows)?;
        }
    }
    let notes = [
        "processor time of the measuring thread; an idle machine is still the better one",
        "commit: medians of rounds that alternate with the reference; random pages of 256 MiB, on shared memory of \
         4 KiB pages that was written before; the reference copies the same pages one behind the other to such \
         memory, as no commit at all would",
    ];
    println!("{}", serde_json::to_string_pretty(&json!({"rows": rows, "notes": notes}))?);
    Ok(())
}
