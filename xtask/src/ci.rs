//! `cargo xtask ci`: what CI runs, and with `--full` what takes longer.

use crate::{Consent, test, tools};
use anyhow::Result;

/// Options of `cargo xtask ci`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    consent: Consent,
    /// Only formatting and clippy
    #[arg(long)]
    lint: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut steps = tools::Steps::default();
    steps.step("formatting", || tools::run(tools::command("cargo").args(["fmt", "--all", "--check"])))?;
    steps.step("clippy", || {
        tools::run(tools::command("cargo").args([
            "clippy",
            "--locked",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    eprintln!("\nTime per step\n{}", steps.table());
    if options.lint {
        return Ok(());
    }
    test::run(&test::Options::of(options.consent))
}
