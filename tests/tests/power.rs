//! A whole node under load loses its power at random moments: QEMU is killed; or it goes on from a copy of its NVRAM
//! that was made while it stood still; or it is killed and some of what it wrote last, without a fence behind it, never
//! arrived. `REDOUBT_POWER_ROUNDS` sets the rounds.

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tests::{Node, Setup, deploy, json, runs, script, start_script, text};

/// Superblocks and watermarks: each fence of the heap is followed by a write to them.
const HEAD: usize = 16384;
/// Calls that `journal.mjs` makes at a time.
const WRITERS: u64 = 4;
const WORD: usize = 8;

/// A number below a bound, from the system's randomness: no two runs cut at the same moments.
fn random(bound: u64) -> u64 {
    RandomState::new().hash_one(0) % bound
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_micros(random(milliseconds * 1000)));
}

/// Entries that were acknowledged, with their places.
type Acknowledged = BTreeMap<u64, usize>;

/// Clients that append to the journal.
struct Load {
    clients: Child,
    acknowledged: Arc<Mutex<Acknowledged>>,
    reader: JoinHandle<Result<()>>,
}

impl Load {
    fn start(node: &Node<'_>, journal: &str, first: u64) -> Result<Self> {
        let mut clients = start_script("journal.mjs", &[&node.url()?, journal, &first.to_string()])?;
        let lines = BufReader::new(clients.stdout.take().context("no output")?).lines();
        let acknowledged = Arc::new(Mutex::new(Acknowledged::new()));
        let told = acknowledged.clone();
        let reader = std::thread::spawn(move || {
            for line in lines {
                let line: serde_json::Value = serde_json::from_str(&line?)?;
                let [entry, place] = ["entry", "place"].map(|name| line[name].as_u64());
                let (entry, place) = entry.zip(place).context("not an entry and its place")?;
                lock(&told).insert(entry, usize::try_from(place)?);
            }
            Ok(())
        });
        Ok(Self { clients, acknowledged, reader })
    }

    fn acknowledged(&self) -> Acknowledged {
        lock(&self.acknowledged).clone()
    }

    fn wait_for_the_first(&self) -> Result<()> {
        let started = Instant::now();
        while self.acknowledged().is_empty() {
            ensure!(!self.reader.is_finished(), "the clients ended before anything was acknowledged");
            ensure!(started.elapsed() < Duration::from_secs(120), "nothing is acknowledged");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// All that was acknowledged until the node was gone.
    fn end(mut self) -> Result<Acknowledged> {
        self.clients.wait()?;
        self.reader.join().map_err(|_| anyhow::anyhow!("the reader of the clients panicked"))??;
        Ok(lock(&self.acknowledged).clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stops a process between two of its instructions.
fn freeze(process: Pid) -> Result<()> {
    kill(process, Signal::SIGSTOP)?;
    for _ in 0..1000 {
        // Every thread must have stopped, which the state of the process says.
        if std::fs::read_to_string(format!("/proc/{process}/stat"))?.contains(") T ") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("process {process} does not stop")
}

/// QEMU and its agent are gone at once, as after a power cut of the host.
fn cut(agent: Pid, qemu: Pid) -> Result<()> {
    // Both within the second that the agent waits before it starts QEMU again.
    for process in [qemu, agent] {
        kill(process, Signal::SIGKILL)?;
    }
    for _ in 0..500 {
        if !runs(qemu) && !runs(agent) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("QEMU {qemu} or the agent {agent} survives SIGKILL")
}

/// Puts some words of `before` back where two images of a medium differ; how many differ. None if a fence may have
/// come between them.
fn lose_some(nvram: &File, before: &[u8], after: &[u8]) -> Result<usize> {
    if before[..HEAD] != after[..HEAD] {
        return Ok(0);
    }
    // Few are lost, or most.
    let share = 1 + random(15);
    let mut differ = 0;
    for (at, (old, new)) in before.chunks(WORD).zip(after.chunks(WORD)).enumerate() {
        if old != new {
            differ += 1;
            if random(16) < share {
                nvram.write_all_at(old, (at * WORD) as u64)?;
            }
        }
    }
    Ok(differ)
}

/// What the journal holds: what was acknowledged in its place, all that was there before, nothing twice, and nothing
/// that no client sent.
fn check(found: &[u64], before: &[u64], acknowledged: &Acknowledged, sent: u64) -> Result<()> {
    ensure!(found.starts_with(before), "entries of earlier rounds have changed");
    for (entry, place) in acknowledged {
        ensure!(found.get(*place) == Some(entry), "entry {entry}, acknowledged at {place}, is not there");
    }
    let different: BTreeSet<_> = found.iter().collect();
    ensure!(different.len() == found.len(), "an entry is there twice");
    ensure!(found.iter().all(|entry| *entry < sent), "an entry that nobody sent");
    Ok(())
}

#[test]
fn nothing_acknowledged_is_lost_at_random_moments() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let rounds: u64 = std::env::var("REDOUBT_POWER_ROUNDS").map_or(Ok(6), |rounds| rounds.parse())?;
    let node = Node::new(&setup)?;
    let up = || {
        let started = Instant::now();
        loop {
            let output = node.up_with(&setup.release, &["--nvram", "64"])?;
            // Between two rounds another test may take the port for a while.
            if !text(&output).contains("port-taken") || started.elapsed() > Duration::from_secs(120) {
                break json(output);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    };
    up()?;
    let journal = deploy(&node.url()?, "journal")?;
    let (mut next, mut known, mut copies, mut torn) = (0, Vec::new(), 0, Vec::new());
    for round in 0..rounds {
        let (agent, qemu) = (node.agent()?, node.qemu()?);
        let load = Load::start(&node, &journal, next)?;
        load.wait_for_the_first()?;
        pause(1500);
        let acknowledged = match round % 3 {
            0 => {
                cut(agent, qemu)?;
                load.end()?
            }
            1 => {
                freeze(qemu)?;
                // What the clients know now was acknowledged before.
                let acknowledged = load.acknowledged();
                let image = std::fs::read(node.nvram())?;
                kill(qemu, Signal::SIGCONT)?;
                pause(500);
                cut(agent, qemu)?;
                next = load.end()?.keys().last().map_or(next, |last| last + WRITERS + 1);
                std::fs::write(node.nvram(), image)?;
                copies += 1;
                acknowledged
            }
            _ => {
                // Several attempts: often nothing is written meanwhile, or too much.
                for _ in 0..20 {
                    freeze(qemu)?;
                    let before = std::fs::read(node.nvram())?;
                    kill(qemu, Signal::SIGCONT)?;
                    pause(6);
                    freeze(qemu)?;
                    let after = std::fs::read(node.nvram())?;
                    let nvram = File::options().write(true).open(node.nvram())?;
                    let differ = lose_some(&nvram, &before, &after)?;
                    if differ > 0 {
                        torn.push(differ);
                        break;
                    }
                    kill(qemu, Signal::SIGCONT)?;
                    pause(50);
                }
                cut(agent, qemu)?;
                load.end()?
            }
        };
        // The clients may have sent more than was acknowledged, and whoever waited in the queue comes later.
        next = next.max(acknowledged.keys().last().map_or(next, |last| last + WRITERS + 1));
        up()?;
        let read = script("journal.mjs", &[&node.url()?, &journal, "read"])?;
        let found: Vec<u64> = serde_json::from_value(read["entries"].clone())?;
        check(&found, &known, &acknowledged, next).with_context(|| format!("after round {round}"))?;
        ensure!(read["whole"] == true, "pages of a torn message after round {round}");
        ensure!(found.len() > known.len(), "round {round} changed nothing");
        known = found;
        println!("round {round}: {} updates, {} torn", known.len(), torn.len());
    }
    println!(
        "{rounds} rounds, {} updates; {copies} went on from a copy, of {} the last words ({} at most) were torn",
        known.len(),
        torn.len(),
        torn.iter().max().unwrap_or(&0)
    );
    ensure!(rounds < 30 || !torn.is_empty(), "not once was anything torn");
    Ok(())
}

#[test]
fn what_is_wrong_with_a_journal_is_found() {
    let acknowledged = Acknowledged::from([(5, 1), (7, 2)]);
    let check = |found: &[u64]| check(found, &[4], &acknowledged, 10);
    assert!(check(&[4, 5, 7]).is_ok() && check(&[4, 5, 7, 6]).is_ok());
    for wrong in [&[4, 5][..], &[4, 7, 5], &[4, 6, 5, 7], &[5, 7], &[4, 5, 7, 5], &[4, 5, 7, 10]] {
        assert!(check(wrong).is_err(), "{wrong:?}");
    }
}
