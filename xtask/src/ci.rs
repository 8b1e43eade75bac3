//! `cargo xtask ci`: what CI runs.

use crate::{Consent, double_build, setup, test, tools};
use anyhow::Result;

/// Options of `cargo xtask ci`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    consent: Consent,
    /// Only formatting and clippy
    #[arg(long)]
    lint: bool,
    /// Also build both profiles a second time, kernels too, and compare them
    #[arg(long, conflicts_with = "lint")]
    full: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut steps = tools::Steps::default();
    steps.step("formatting", || tools::run(tools::command("cargo").args(["fmt", "--all", "--check"])))?;
    // Without the libraries nothing compiles, and so nothing can be checked.
    steps.step("set-up", || setup::run(options.consent, &[setup::FOR_BUILD]))?;
    let clippy = |what: &[&str]| {
        let mut cargo = tools::command("cargo");
        tools::run(cargo.args(["clippy", "--locked", "--quiet"]).args(what).args(["--", "-D", "warnings"]))
    };
    steps.step("clippy", || clippy(&["--workspace", "--all-targets", "--features", test::VIRTUAL]))?;
    // Without the simulated Secure Processor, as production programs are built.
    steps.step("clippy, production", || {
        let features = ["--no-default-features", "--features", tools::PRODUCTION];
        clippy(&[&["-p", "guest-os", "-p", "host-os", "-p", "redoubt"][..], &features].concat())
    })?;
    eprintln!("\nTime per step\n{}", steps.table());
    if options.lint {
        return Ok(());
    }
    test::run(&test::Options::of(options.consent))?;
    if options.full {
        double_build::run(&double_build::Options::of(options.consent, true))?;
        let mut test = tools::command("cargo");
        test.args([
            "test",
            "--locked",
            "-p",
            "image-build",
            "--test",
            "production_guest",
            "--test",
            "installer",
        ]);
        test.env("REDOUBT_PRODUCTION_RELEASE", tools::release_dir("production"));
        test.env("REDOUBT_HOST_IMAGE", tools::release_dir("virtual"));
        tools::run(test.args(["--", "production"]))?;
    }
    Ok(())
}
