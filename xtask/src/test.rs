//! `cargo xtask test`: set-up and every test.

use crate::{Consent, double_build, setup, simulate, tools};
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// The workspace's features that the virtual profile switches on.
pub(crate) const VIRTUAL: &str = "guest-os/virtual";

/// File and test of the scenario that takes the longest. It mostly waits, for a machine that restarts, so it runs beside the others.
const BESIDE: (&str, &str) =
    ("host_upgrade", "a_machine_takes_a_good_release_and_comes_back_from_a_host_that_does_not_start");

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    consent: Consent,
    /// Passed on to `cargo test` after `--`, for example the name of one test
    #[arg(last = true)]
    rest: Vec<String>,
}

impl Options {
    /// Every test.
    pub(crate) fn of(consent: Consent) -> Self {
        Self { consent, rest: Vec::new() }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut steps = tools::Steps::default();
    steps.step("set-up", || {
        setup::run(options.consent, &[setup::FOR_BUILD, setup::FOR_UP, setup::FOR_TEST])
    })?;
    steps.step("npm packages", tools::npm_packages)?;
    let python = steps.step("Python packages", tools::python_packages)?;
    let production = steps.step("production programs", tools::build_production)?;
    steps.step("programs and tests", || tools::build_workspace(VIRTUAL))?;
    let release = steps.step("images", || tools::build_images("virtual"))?;
    if options.rest.is_empty() {
        steps.step("second build", || double_build::quick(&release))?;
    }
    let programs = steps.step("programs of the guest's tests", || {
        tools::output(tools::command(tools::binary("redoubt")).args(["image", "test-programs"]))
    })?;
    let tests = || {
        let mut tests = tools::command("cargo");
        tests
            .args(["test", "--locked", "--no-fail-fast", "--workspace", "--features", VIRTUAL])
            .env("REDOUBT_RELEASE", &release)
            .env("REDOUBT_HOST_IMAGE", &release)
            .env("REDOUBT_TEST_PYTHON", &python)
            .env("REDOUBT_BIN", tools::target().join("debug"))
            .env("REDOUBT_PRODUCTION_BIN", &production)
            .env("REDOUBT_TEST_KERNEL", release.join("vmlinuz"))
            .env("REDOUBT_TEST_PROGRAMS", programs.trim());
        tests
    };
    steps.step("tests", || match &*options.rest {
        [] => every(tests),
        rest => tools::run(tests().arg("--").args(rest)),
    })?;
    if options.rest.is_empty() {
        steps.step("crash states of the heap", simulate::in_tests)?;
        steps.step("threads of heap and queries in many orders", || {
            // Of the whole workspace: with the features that the tests before had, nothing of others is compiled again.
            let features = format!("{VIRTUAL},heap/mutants,heap/shuttle,execution/shuttle");
            let test =
                ["test", "--locked", "--workspace", "--features", &features, "--test", "interleavings"];
            tools::run(tools::command("cargo").args(test))
        })?;
    }
    steps.step("tests of the hardware path", || {
        tools::run(
            tools::command("cargo").args(["test", "--locked", "-p", "guest-os", "--"]).args(&options.rest),
        )
    })?;
    eprintln!("\nTime per step\n{}", steps.table());
    Ok(())
}

/// Runs all tests, and says of those that ran beside the others what they said once these have ended.
fn every(tests: impl Fn() -> Command + Sync) -> Result<()> {
    tools::run(tests().arg("--no-run"))?;
    std::thread::scope(|threads| {
        let beside = threads.spawn(|| tests().args(["--test", BESIDE.0]).output());
        let others = tools::run(tests().args(["--", "--skip", BESIDE.1]));
        let beside = beside.join().ok().context("a thread of this program panicked")?;
        let beside = beside.context("cannot run cargo")?;
        eprint!("{}", String::from_utf8_lossy(&beside.stderr));
        println!("{}", String::from_utf8_lossy(&beside.stdout));
        ensure!(beside.status.success(), "the tests in {} failed ({})", BESIDE.0, beside.status);
        others
    })
}
