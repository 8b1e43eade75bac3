//! A process under load is killed, or stopped while its medium is copied, at random moments: what it acknowledged is
//! there. `HEAP_KILL_ROUNDS` sets the rounds on each kind of medium.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

mod support;

use heap::{BarMedia, FileMedia, Heap, Media};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use support::{Bounds, Model, Op, Random, create, key, ops, with_batch};

const LENGTH: u64 = 64 << 20;
const BOUNDS: Bounds = Bounds { spaces: 4, keys: 6, near: 8, reach: 300, value: 9000, long: 64 };
/// Key of the number of batches that the heap holds.
const COUNT: &[u8] = b"count";
const MEDIUM: &str = "HEAP_KILL_MEDIUM";

fn medium(path: &Path) -> Box<dyn Media> {
    if path.starts_with("/dev/shm") {
        return Box::new(BarMedia::open(path).unwrap());
    }
    Box::new(FileMedia::open(path).unwrap())
}

/// The batch with this number, without [`COUNT`].
fn batch(number: u64) -> Vec<Op> {
    ops(&mut Random(number), 12, &BOUNDS)
}

fn count(model: &mut Model) -> u64 {
    model.meta.remove(COUNT).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// Not a test: the process that is killed. Commits batches for ever, and tells the number of each once it is durable.
#[test]
#[ignore = "run by the other tests of this file"]
fn load() {
    let Some(path) = std::env::var_os(MEDIUM) else { return };
    let (mut heap, _) = Heap::open(medium(Path::new(&path)), &key(), &create()).unwrap();
    let mut number = count(&mut Model::of(&heap.snapshot()).unwrap());
    let mut random = Random(number ^ u64::from(std::process::id()));
    let mut out = std::io::stdout();
    loop {
        for _ in 0..1 + random.below(3) {
            let mut ops = batch(number);
            number += 1;
            ops.push(Op::Put(COUNT.to_vec(), number.to_le_bytes().to_vec()));
            with_batch(&ops, |batch| heap.submit(batch)).unwrap();
        }
        heap.flush().unwrap();
        writeln!(out, "durable {number}").unwrap();
        match random.below(64) {
            0 => heap.checkpoint().unwrap(),
            1..8 => drop(heap.maintain(random.below(16)).unwrap()),
            _ => {}
        }
    }
}

/// A process that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process under load, and the number of batches that it acknowledged.
struct Load {
    process: Process,
    acknowledged: Arc<AtomicU64>,
    reader: JoinHandle<()>,
}

impl Load {
    fn start(path: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "load", "--ignored", "--nocapture"]).env(MEDIUM, path);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (lines, told) = (BufReader::new(child.stdout.take().unwrap()).lines(), acknowledged.clone());
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(number) = line.strip_prefix("durable ") {
                    told.store(number.parse().unwrap(), Ordering::SeqCst);
                }
            }
        });
        Self { process: Process(child), acknowledged, reader }
    }

    /// Waits until something was acknowledged, then some time.
    fn run(&self, time: Duration) {
        // Where others write much to the same disk, a first fence may take long.
        for _ in 0..12_000 {
            if self.acknowledged.load(Ordering::SeqCst) > 0 {
                break;
            }
            assert!(
                !self.reader.is_finished(),
                "the process under load ended before it acknowledged anything"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(self.acknowledged.load(Ordering::SeqCst) > 0, "the process under load does nothing");
        std::thread::sleep(time);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.0.id().try_into().unwrap()), signal).unwrap();
    }

    /// Copies the medium as it is at one moment; what had been acknowledged by then.
    fn copy(&self, from: &Path, to: &Path) -> u64 {
        self.signal(Signal::SIGSTOP);
        // What it has told may still be in the pipe.
        std::thread::sleep(Duration::from_millis(20));
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        std::fs::copy(from, to).unwrap();
        self.signal(Signal::SIGCONT);
        acknowledged
    }

    /// Kills it; what it had acknowledged.
    fn kill(self) -> u64 {
        drop(self.process);
        self.reader.join().unwrap();
        self.acknowledged.load(Ordering::SeqCst)
    }
}

/// A history that goes on from round to round.
#[derive(Clone, Default)]
struct Known {
    model: Model,
    batches: u64,
}

impl Known {
    /// Opens a medium, which must hold all that was acknowledged and nothing but whole batches.
    fn check(&mut self, path: &Path, acknowledged: u64, round: u64) {
        let (heap, _) = Heap::open(medium(path), &key(), &create()).unwrap();
        let audit = heap.audit().unwrap();
        assert_eq!((&audit.lost[..], &audit.damaged[..]), (&[][..], &[][..]), "round {round}");
        let mut found = Model::of(&heap.snapshot()).unwrap();
        let batches = count(&mut found);
        assert!(batches >= acknowledged, "round {round}: {acknowledged} acknowledged, {batches} found");
        while self.batches < batches {
            self.model.apply(&batch(self.batches));
            self.batches += 1;
        }
        assert_eq!(found, self.model, "round {round}: after {batches} batches");
    }
}

fn rounds(path: &Path) {
    let rounds = std::env::var("HEAP_KILL_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap());
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path).unwrap();
    file.set_len(LENGTH).unwrap();
    let copy = path.with_extension("copy");
    let mut known = Known::default();
    let mut random = Random(u64::from(std::process::id()));
    for round in 0..rounds {
        let before = known.batches;
        let load = Load::start(path);
        load.run(Duration::from_micros(random.below(120_000)));
        if random.below(2) == 0 {
            let acknowledged = load.copy(path, &copy);
            known.clone().check(&copy, acknowledged, round);
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
        }
        let acknowledged = load.kill();
        known.check(path, acknowledged, round);
        assert!(known.batches > before, "round {round} changed nothing");
    }
    println!("{rounds} rounds, {} batches", known.batches);
    std::fs::remove_file(path).unwrap();
    drop(std::fs::remove_file(copy));
}

/// A path of this process's own.
fn scratch(directory: &Path) -> PathBuf {
    directory.join(format!("redoubt-killed-{}", std::process::id()))
}

#[test]
fn a_killed_process_loses_nothing_acknowledged_on_shared_memory() {
    rounds(&scratch(Path::new("/dev/shm")));
}

#[test]
fn a_killed_process_loses_nothing_acknowledged_in_a_file() {
    rounds(&scratch(Path::new(env!("CARGO_TARGET_TMPDIR"))));
}
