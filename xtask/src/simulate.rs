//! `cargo xtask simulate heap`: crash states of the persistent heap.

use crate::tools;
use anyhow::Result;

/// Options of `cargo xtask simulate`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to simulate
    #[arg(value_enum)]
    name: Name,
    /// Crash states to explore; with --mutants, for each omission
    #[arg(long, default_value_t = DEFAULT)]
    states: u64,
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

/// Crash states in every test run.
const DEFAULT: u64 = 10_000_000;
/// Most of these that every test run looks for an omission in.
const FOR_AN_OMISSION: u64 = 4 * DEFAULT;

#[derive(Clone, Copy, clap::ValueEnum)]
enum Name {
    /// The persistent heap on a medium that loses power
    Heap,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let Name::Heap = options.name;
    let numbers = [("--states", options.states), ("--seed", options.seed)];
    let mut simulator = simulator();
    simulator.args(numbers.iter().flat_map(|(name, number)| [(*name).to_owned(), number.to_string()]));
    simulator.args(options.mutants.then_some("--mutants")).args(options.json.then_some("--json"));
    tools::run(&mut simulator)
}

/// What every test run explores.
pub(crate) fn in_tests() -> Result<()> {
    tools::run(simulator().args(["--states", &DEFAULT.to_string()]))?;
    tools::run(simulator().args(["--mutants", "--states", &FOR_AN_OMISSION.to_string()]))
}

fn simulator() -> std::process::Command {
    let mut cargo = tools::command("cargo");
    cargo.args(["run", "--quiet", "--release", "--locked", "-p", "heap-simulator", "--"]);
    cargo
}
