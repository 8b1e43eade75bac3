//! `heap-simulator`: explores crash states of the persistent heap.

use clap::Parser;
use heap::mutants::Mutant;
use heap_simulator::Simulator;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Explores crash states of the persistent heap; every one must recover to the right state
#[derive(Parser)]
#[command(after_help = "Exit codes: 0 all held, 1 a violation or an omission that was not caught, 2 usage.")]
struct Options {
    /// Crash states to explore
    #[arg(long, default_value_t = 1_000_000)]
    states: u64,
    /// Threads
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// First seed; the histories of a seed are always the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instead, switch each seeded omission on in turn; each must be caught within so many states
    #[arg(long)]
    mutants: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.mutants { mutants(&options) } else { explore(&options) }
}

fn explore(options: &Options) -> ExitCode {
    let start = Instant::now();
    let (next, states, sessions) = (AtomicU64::new(options.seed), AtomicU64::new(0), AtomicU64::new(0));
    let violation = std::sync::Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                while states.load(Ordering::Relaxed) < options.states {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let mut simulator = Simulator::new(seed);
                    let result = simulator.history(None);
                    states.fetch_add(simulator.explored.states, Ordering::Relaxed);
                    sessions.fetch_add(simulator.explored.sessions, Ordering::Relaxed);
                    if let Err(error) = result {
                        states.fetch_add(options.states, Ordering::Relaxed);
                        if let Ok(mut place) = violation.lock() {
                            *place = Some((seed, error));
                        }
                    }
                }
            });
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    if let Ok(Some((seed, error))) = violation.into_inner() {
        eprintln!("error: seed {seed}: {error}\nrepeat it with --seed {seed} --states 1");
        return ExitCode::FAILURE;
    }
    let (states, sessions) = (states.into_inner(), sessions.into_inner());
    // Of processor time, since other programs may be running.
    let rate = states as f64 / cpu_seconds();
    if options.json {
        println!(
            "{}",
            serde_json::json!({"states": states, "sessions": sessions, "seconds": seconds, "states_per_second_and_core": rate})
        );
    } else {
        println!(
            "{states} crash states of {sessions} sessions, all right; {seconds:.1} s, {rate:.0} states/s and core"
        );
    }
    ExitCode::SUCCESS
}

fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    usage.map_or(f64::NAN, |usage| {
        [usage.user_time(), usage.system_time()]
            .iter()
            .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
            .sum()
    })
}

fn mutants(options: &Options) -> ExitCode {
    let mut missed = 0;
    for mutant in Mutant::ALL {
        let (mut states, mut seed) = (0, options.seed);
        let caught = loop {
            let mut simulator = Simulator::new(seed);
            let result = simulator.history(Some(mutant));
            states += simulator.explored.states;
            match result {
                Err(error) => break Some(error),
                Ok(()) if states > options.states => break None,
                Ok(()) => seed += 1,
            }
        };
        let line = match &caught {
            Some(error) => {
                format!("caught after {states} states: {}", error.chars().take(120).collect::<String>())
            }
            None => format!("NOT caught in {states} states"),
        };
        println!("{mutant:?}: {line}");
        missed += u32::from(caught.is_none());
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
