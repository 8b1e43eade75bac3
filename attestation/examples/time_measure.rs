//! Times the launch measurement beside the bare hashing of its inputs, on a made-up guest of 30 MB.
//!
//! `time_measure write DIR` makes the guest's files, `time_measure once DIR` prints its measurement, and
//! `time_measure ROUNDS DIR` prints the medians as JSON.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark")]

#[path = "../tests/measurement/firmware.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod firmware;

use attestation::measurement::{Launch, VcpuType};
use firmware::{SECTIONS, Shape, shape};
use ring::digest::{SHA256, SHA384, digest};
use std::{hint::black_box, path::Path, time::Instant};

/// Files and their sizes in bytes: 30 MB in all.
const FILES: [(&str, usize); 3] = [("firmware", 4 << 20), ("kernel", 8_000_000), ("initrd", 17_805_696)];
/// Command line, as on the command line of sev-snp-measure in the benchmark.
const COMMAND_LINE: &str = "panic=5 quiet";

/// Bytes without a pattern, the same each time (xorshift64).
fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend(seed.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn write(directory: &Path) {
    for (index, (name, size)) in FILES.into_iter().enumerate() {
        let mut bytes = noise(size, 1 + index as u64);
        if name == "firmware" {
            let metadata = size - 0x2000;
            let hash_table = Some(0x81_0c00);
            bytes = shape(bytes, &Shape { sections: SECTIONS, hash_table, reset_eip: 0x80_b004, metadata });
        }
        std::fs::write(directory.join(name), bytes).unwrap();
    }
}

fn launch<'a>([firmware, kernel, initrd]: &'a [Vec<u8>; 3]) -> Launch<'a> {
    let command_line = COMMAND_LINE;
    Launch {
        firmware,
        kernel,
        initrd,
        command_line,
        vcpus: 2,
        vcpu_type: VcpuType::EPYC_V4,
        guest_features: 1,
    }
}

/// Milliseconds.
fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, directory] = arguments.as_slice() else {
        panic!("usage: time_measure write|once|ROUNDS DIR")
    };
    let directory = Path::new(directory);
    if command == "write" {
        return write(directory);
    }
    let files = FILES.map(|(name, _)| std::fs::read(directory.join(name)).unwrap());
    if command == "once" {
        return println!("{}", launch(&files).measurement().unwrap());
    }
    let rounds: usize = command.parse().unwrap();
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(time(|| {
            black_box(launch(&files).measurement().unwrap());
        }));
        bare.push(time(|| {
            black_box(digest(&SHA384, &files[0]));
            for file in &files[1..] {
                black_box(digest(&SHA256, file));
            }
        }));
    }
    let [ours_ms, bare_ms] = [ours, bare].map(median);
    println!("{}", serde_json::json!({ "rounds": rounds, "ours_ms": ours_ms, "bare_ms": bare_ms }));
}
