//! `heap-simulator`: explores crash states of the persistent heap.

use clap::Parser;
use heap::mutants::Mutant;
use heap_simulator::{Explored, Simulator};
use serde_json::json;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Explores crash states of the persistent heap; every one must recover to the right state
#[derive(Parser)]
#[command(after_help = "Exit codes: 0 all held, 1 a violation or an omission that was not caught, 2 usage.")]
struct Options {
    /// Crash states to explore; with --mutants, for each omission
    #[arg(long, default_value_t = 10_000_000)]
    states: u64,
    /// Threads; 0 for one on each processor
    #[arg(long, default_value_t = 0)]
    jobs: usize,
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
    let mut options = Options::parse();
    if options.jobs == 0 {
        options.jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    }
    if options.mutants { mutants(&options) } else { explore(&options) }
}

/// What all threads explored so far, and the first violation.
#[derive(Default)]
struct Shared {
    explored: Explored,
    violation: Option<(u64, String)>,
}

fn explore(options: &Options) -> ExitCode {
    let start = Instant::now();
    let (next, done) = (AtomicU64::new(options.seed), AtomicBool::new(false));
    let shared = Mutex::new(Shared::default());
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let mut simulator = Simulator::new(seed);
                    let result = simulator.history(None);
                    let mut shared = lock();
                    shared.explored += simulator.explored;
                    if let Err(error) = result {
                        shared.violation.get_or_insert((seed, error));
                    }
                    if shared.violation.is_some() || shared.explored.states >= options.states {
                        done.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
        let mut told = Instant::now();
        while !done.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                let states = lock().explored.states;
                let share = states.saturating_mul(100) / options.states.max(1);
                eprintln!("  {states} crash states ({share} %), {:.0} s", start.elapsed().as_secs_f64());
            }
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    // Of processor time, since other programs may be running.
    let cpu = cpu_seconds();
    let Shared { explored, violation } = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((seed, error)) = violation {
        eprintln!("error: seed {seed}: {error}\nrepeat it with --seed {seed} --states 1 --jobs 1");
        return ExitCode::FAILURE;
    }
    let Explored { states, recoveries, samples, flips, moments, sessions } = explored;
    let (rate, run) = (states as f64 / cpu, recoveries as f64 / cpu);
    if options.json {
        let found = json!({
            "states": states, "recoveries": recoveries, "samples": samples, "flips": flips, "moments": moments,
            "sessions": sessions, "histories": next.into_inner() - options.seed, "seconds": seconds,
            "cpu_seconds": cpu, "states_per_second_and_core": rate, "recoveries_per_second_and_core": run,
            "first_seed": options.seed,
        });
        println!("{found}");
    } else {
        println!(
            "{states} crash states at {moments} moments of {sessions} sessions, all right: {recoveries} recoveries \
             run ({samples} of them samples of classes already run), {flips} with a flipped bit.\n{seconds:.1} s, \
             {rate:.0} states and {run:.0} recoveries a second and core"
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

/// States explored until an omission was caught, and how; `None` if it was not.
fn catch(mutant: Mutant, options: &Options) -> (u64, Option<(u64, String)>) {
    let mut states = 0;
    for seed in options.seed.. {
        let mut simulator = Simulator::new(seed);
        let result = simulator.history(Some(mutant));
        states += simulator.explored.states;
        match result {
            Err(error) => return (states, Some((seed, error))),
            Ok(()) if states > options.states => break,
            Ok(()) => {}
        }
    }
    (states, None)
}

fn mutants(options: &Options) -> ExitCode {
    let next = AtomicU64::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                while let Some(mutant) = Mutant::ALL.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let (states, caught) = catch(*mutant, options);
                    if !options.json {
                        let line = match &caught {
                            Some((seed, error)) => {
                                let error: String = error.chars().take(100).collect();
                                format!("caught after {states} states (seed {seed}): {error}")
                            }
                            None => format!("NOT caught in {states} states"),
                        };
                        println!("{mutant:?}: {line}");
                    }
                    found.lock().unwrap_or_else(PoisonError::into_inner).push((*mutant, states, caught));
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let missed = found.iter().filter(|(_, _, caught)| caught.is_none()).count();
    if options.json {
        let line = |(mutant, states, caught): &(Mutant, u64, Option<(u64, String)>)| {
            json!({"omission": format!("{mutant:?}"), "states": states, "caught": caught.is_some(),
                "violation": caught.as_ref().map(|(_, error)| error)})
        };
        println!("{}", json!({"omissions": found.iter().map(line).collect::<Vec<_>>(), "missed": missed}));
    } else {
        println!("{} omissions, {} caught", found.len(), found.len() - missed);
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
