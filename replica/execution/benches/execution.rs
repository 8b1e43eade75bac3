//! `cargo bench -p execution --features bench`: what marks cost, rollback, a durable update through the whole
//! engine, and queries beside it. Prints one JSON document, which `cargo xtask bench heap` shows as a table.

#![allow(clippy::print_stdout, reason = "it prints its result")]

use std::path::Path;
use std::process::Command;

use execution::bench::{Failure, Node, Pair, median, medium, roll_back};
use serde_json::{Value, json};

const ROUNDS: usize = 15;

/// Processor time of this thread, so that what else the machine does counts less.
fn clock() -> f64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(f64::NAN, |time| time.tv_sec() as f64 + time.tv_nsec() as f64 * 1e-9)
}

fn row(figure: String, unit: &str, ours: f64, reference: f64, target: f64) -> Value {
    json!({"figure": figure, "unit": unit, "ours": ours, "reference": reference, "target": target,
        "of_ratio": true})
}

fn stores(width: &str) -> Result<Vec<u8>, Failure> {
    Ok(wat::parse_str(include_str!("wat/stores.wat").replace("WIDTH", width))?)
}

/// Medians of the marked and the unmarked program, in seconds, alternating.
fn compare(pair: &mut Pair, method: &str, arg: &[u8]) -> Result<(f64, f64), Failure> {
    let (mut tracked, mut plain) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + 2 {
        let (one, other) = (pair.time(clock, true, method, arg)?, pair.time(clock, false, method, arg)?);
        // The first ones touch memory that was never touched.
        if round >= 2 {
            tracked.push(one);
            plain.push(other);
        }
    }
    Ok((median(&mut tracked), median(&mut plain)))
}

fn motoko() -> Result<Option<Vec<u8>>, Failure> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = here.join("../../tests/js/node_modules");
    if !modules.join("motoko").exists() {
        return Ok(None);
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("motoko");
    std::fs::create_dir_all(&out)?;
    let script = here.join("tests/motoko/compile.js");
    let status = Command::new("node").arg(script).args([modules.canonicalize()?, out.clone()]).status()?;
    if !status.success() {
        return Err("the Motoko compiler failed".into());
    }
    Ok(Some(std::fs::read(out.join("store.wasm"))?))
}

fn main() -> Result<(), Failure> {
    // As in other benchmarks, a word selects what is run: tracking, rollback, durable, or of the latter only timer,
    // engine or readers.
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    if wanted("tracking") {
        tracking(&mut rows, &mut notes)?;
    }
    if wanted("rollback") {
        for pages in [10, 100, 1000] {
            let (ours, reference) = roll_back(clock, pages, 200_000 / pages)?;
            let figure = format!("rollback of {pages} pages / memcpy");
            rows.push(row(figure, "us", ours * 1e6, reference * 1e6, 1.2));
        }
    }
    let parts = ["timer", "engine", "readers"];
    let parts: Vec<&str> = parts.into_iter().filter(|part| wanted("durable") || wanted(part)).collect();
    if !parts.is_empty() {
        let shared = Path::new("/dev/shm").join(format!("redoubt-bench-{}", std::process::id()));
        let measured = durable(&mut rows, &mut notes, &shared, &parts);
        let _ = std::fs::remove_file(&shared);
        measured?;
    }
    notes.push("processor time of the measuring thread; an idle machine is still the better one".to_owned());
    println!("{}", serde_json::to_string_pretty(&json!({"rows": rows, "notes": notes}))?);
    Ok(())
}

/// The same programs with their stores marked, and without.
fn tracking(rows: &mut Vec<Value>, notes: &mut Vec<String>) -> Result<(), Failure> {
    match motoko()? {
        Some(module) => {
            let mut pair = Pair::new(&module)?;
            for (method, count) in [("fill", 500u32), ("churn", 2000)] {
                let arg = candid::encode_one(candid::Nat::from(count))?;
                let (ours, reference) = compare(&mut pair, method, &arg)?;
                let figure = format!("tracking on / off, Motoko: {method}");
                rows.push(row(figure, "ms", ours * 1e3, reference * 1e3, 1.10));
            }
        }
        None => notes.push("Motoko was left out: run npm install in tests/js".to_owned()),
    }
    for width in ["i32", "i64"] {
        let mut pair = Pair::new(&stores(width)?)?;
        for method in ["dense", "fields", "update", "pages"] {
            let (ours, reference) = compare(&mut pair, method, &[])?;
            let figure = format!("tracking on / off, loop of stores, {width}: {method}");
            rows.push(row(figure, "ms", ours * 1e3, reference * 1e3, 1.5));
        }
    }
    notes.push("tracking: median of 15 calls, alternating; collecting what is marked is included".to_owned());
    notes.push(
        "pages: each store is a page's first in its message, and the first 1024 pages are copied for rollback"
            .to_owned(),
    );
    Ok(())
}

/// Updates of one page on shared memory, as if it were NVRAM.
fn durable(
    rows: &mut Vec<Value>,
    notes: &mut Vec<String>,
    path: &Path,
    parts: &[&str],
) -> Result<(), Failure> {
    let bare = Pair::new(&stores("i32")?)?.bare(clock, "bare", 1_000_000)?;
    notes.push(
        "bare call: the same program without marks, compiled with the engine's settings (fuel, NaN canonicalization), \
         its function with the same two instructions on memory called through the same kind of typed handle, one \
         million times in a row: no message, nothing kept"
            .to_owned(),
    );
    notes.push(
        "by a timer: one durable run of canister_global_timer, of which queries see the result; whole engine: an ingress \
         message made durable in the queue (one commit), executed, its answer and the changed page made durable (another)"
            .to_owned(),
    );
    for (plain, name, target) in [(true, "plain", 25.0), (false, "sealed", 60.0)] {
        let mut node = Node::new(medium(true, path, 256 << 20)?, plain, &stores("i32")?)?;
        node.seconds_per_call(clock, "one", &[], 2000)?;
        for part in parts {
            let mut seconds = Vec::new();
            match *part {
                "timer" => {
                    for _ in 0..ROUNDS {
                        seconds.push(node.seconds_per_task(clock, 2000)?);
                    }
                    let figure = format!("durable 1-page update by a timer, {name} / bare call");
                    rows.push(row(figure, "us", median(&mut seconds) * 1e6, bare * 1e6, target));
                }
                "engine" => {
                    for _ in 0..ROUNDS {
                        seconds.push(node.seconds_per_call(clock, "one", &[], 2000)?);
                    }
                    let figure = format!("durable 1-page update, whole engine, {name} / bare call");
                    rows.push(row(figure, "us", median(&mut seconds) * 1e6, bare * 1e6, target));
                }
                _ if plain => {}
                _ => rows.push(beside_readers(&mut node)?),
            }
        }
    }
    Ok(())
}

/// The writer has a processor to itself, the readers share another.
fn beside_readers(node: &mut Node) -> Result<Value, Failure> {
    let place = |cpu: usize| {
        let mut set = nix::sched::CpuSet::new();
        let _ = set.set(cpu);
        let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
    };
    place(0);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut answered = 0;
    for _ in 0..7 {
        alone.push(node.seconds_per_call_with_readers(clock, "one", "read", 2000, 0, || place(1))?.0);
        let (seconds, queries) =
            node.seconds_per_call_with_readers(clock, "one", "read", 2000, 2, || place(1))?;
        beside.push(seconds);
        answered += queries;
    }
    let figure = format!("update beside 2 readers on another processor ({answered} queries) / alone");
    Ok(row(figure, "us", median(&mut beside) * 1e6, median(&mut alone) * 1e6, 1.1))
}
