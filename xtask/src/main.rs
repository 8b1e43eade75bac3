//! What developers of this repository run: up, test, bench, simulate, ci.
//!
//! Exit codes: 0 all went well, 1 a step failed (its message says which), 2 wrong usage.

mod bench;
mod ci;
mod double_build;
mod probes;
mod setup;
mod simulate;
mod test;
mod tools;
mod up;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Builds, boots, tests and measures Redoubt from this checkout.
#[derive(Parser)]
#[command(name = "cargo xtask", version, after_help = "Exit codes: 0 success, 1 a step failed, 2 usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set up, build, boot a confidential node in QEMU, attest it, deploy a canister and call it
    Up(up::Options),
    /// Set up and run every test
    Test(test::Options),
    /// Measure against the targets
    Bench(bench::Options),
    /// What CI runs: formatting and clippy, then the tests
    Ci(ci::Options),
    /// Record the hardware probes that hwspec's tests judge, in QEMU machines of several kinds
    RecordProbes(probes::Options),
    /// Build a second time with everything varied that may not matter, and compare every artefact but kernels
    DoubleBuild(double_build::Options),
    /// Explore what crashes leave, and demand the right recovery
    Simulate(simulate::Options),
    /// Install what the other commands need
    Setup(Consent),
}

/// Whether packages may be installed without asking.
#[derive(Args, Clone, Copy)]
pub(crate) struct Consent {
    /// Install missing packages without asking
    #[arg(long)]
    yes: bool,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Up(options) => up::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Ci(options) => ci::run(&options),
        Command::RecordProbes(options) => probes::run(&options),
        Command::DoubleBuild(options) => double_build::run(&options),
        Command::Simulate(options) => simulate::run(&options),
        Command::Setup(consent) => setup::run(consent, setup::FOR_ALL),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
