//! Verifying one report with its chain: side by side with snpguest, as commands, and with the crate sev, in process.

use super::table::{Row, Table};
use crate::tools;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// The published verifier that is compared with, by its exact version and its own lock file.
const SNPGUEST: &str = "0.11.0";
/// A real Genoa's report and certificate, published by Project Oak under Apache-2.0.
const REPORT: &str = "../shared/sev/fixtures/oak-genoa-oc";
/// Runs of each command; the median counts.
const RUNS: usize = 40;

/// What the example `time_verify` prints.
#[derive(Deserialize)]
struct InProcess {
    rounds: usize,
    ours_ms: f64,
    sev_ms: f64,
}

/// Measures.
pub(crate) fn measure() -> Result<Table> {
    let report = tools::repository().join(REPORT);
    ensure!(
        report.join("report.bin").exists(),
        "{} is missing: put a real report there, with its certificate as vek.der",
        report.display()
    );
    let snpguest = install_snpguest()?;
    let build = ["build", "--release", "--locked", "-p", "attestation", "--example", "time_verify"];
    tools::run(tools::command("cargo").args(build))?;
    let time_verify = tools::target().join("release/examples/time_verify");

    let certificates = tempfile::tempdir()?;
    let roots = tools::repository().join("attestation/roots");
    for (from, to) in [
        (roots.join("ark-genoa.der"), "ark.der"),
        (roots.join("ask-genoa.der"), "ask.der"),
        (report.join("vek.der"), "vcek.der"),
    ] {
        std::fs::copy(&from, certificates.path().join(to)).with_context(|| from.display().to_string())?;
    }
    let report = report.join("report.bin");
    let files = [&report, &certificates.path().join("ark.der"), &certificates.path().join("ask.der")];
    let ours = |last: &str| {
        let mut command = Command::new(&time_verify);
        command.args(files).arg(certificates.path().join("vcek.der")).arg(last);
        command
    };
    let text = tools::output(&mut ours("500"))?;
    let in_process: InProcess = serde_json::from_str(&text).context("time_verify printed something else")?;
    let [once, chain, signature] = commands(&snpguest, certificates.path(), &report, || ours("--once"))?;

    let row = |figure: &str, ours, reference, target, of_ratio| Row {
        figure: figure.to_owned(),
        unit: "ms",
        ours,
        reference,
        target,
        of_ratio,
    };
    let InProcess { rounds, ours_ms, sev_ms } = in_process;
    Ok(Table {
        rows: vec![
            row("verify a report with its chain, warm, one core", ours_ms, None, 3.0, false),
            row("the same, beside the crate sev", ours_ms, Some(sev_ms), 1.0, true),
            row("the same as a process, beside snpguest", once, Some(chain + signature), 1.0, true),
            row("the same, beside snpguest without the chain", once, Some(signature), 1.0, true),
        ],
        notes: vec![
            format!("report of a Genoa, version 5; in process: median of {rounds}, alternating, from bytes to verdict"),
            "sev 8 with its back end in Rust; it looks at neither dates, extensions of the certificate nor policy".into(),
            format!(
                "snpguest {SNPGUEST} with OpenSSL needs two commands: chain {chain:.2} ms, report {signature:.2} ms; processes: median of {RUNS}, alternating"
            ),
        ],
    })
}

/// Medians in milliseconds: our process, snpguest's check of the chain, and of the report.
fn commands(
    snpguest: &Path,
    certificates: &Path,
    report: &Path,
    ours: impl Fn() -> Command,
) -> Result<[f64; 3]> {
    let theirs = |what: &str| {
        let mut command = Command::new(snpguest);
        command.args(["verify", what]).arg(certificates);
        command
    };
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..RUNS {
        let mut signature = theirs("attestation");
        signature.arg(report);
        for (times, command) in times.iter_mut().zip([ours(), theirs("certs"), signature]) {
            times.push(time(command)?);
        }
    }
    Ok(times.map(|mut times| {
        times.sort_unstable_by(f64::total_cmp);
        times[RUNS / 2]
    }))
}

/// Milliseconds of one run, which must succeed.
fn time(mut command: Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    let time = start.elapsed().as_secs_f64() * 1e3;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(time)
}

/// Installs snpguest beside what this checkout builds, once.
fn install_snpguest() -> Result<PathBuf> {
    let root = tools::target().join("bench-cache").join(format!("snpguest-{SNPGUEST}"));
    let program = root.join("bin/snpguest");
    if !program.exists() {
        let install = ["install", "snpguest", "--locked", "--version", SNPGUEST, "--root"];
        tools::run(tools::command("cargo").args(install).arg(&root))?;
    }
    Ok(program)
}
