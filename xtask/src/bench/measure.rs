//! The launch measurement of a guest of 30 MB: beside the bare hashing of its inputs, and beside sev-snp-measure.

use super::table::{Row, Table};
use crate::tools;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::{process::Command, time::Instant};

/// Runs of each process; the median counts.
const RUNS: usize = 15;

/// What the example `time_measure` prints.
#[derive(Deserialize)]
struct InProcess {
    rounds: usize,
    ours_ms: f64,
    bare_ms: f64,
}

/// Adds the rows and notes of the measurement.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let python = tools::python_packages()?;
    let build = ["build", "--release", "--locked", "-p", "attestation", "--example", "time_measure"];
    tools::run(tools::command("cargo").args(build))?;
    let program = tools::target().join("release/examples/time_measure");
    let guest = tempfile::tempdir()?;
    let ours = |what: &str| {
        let mut command = Command::new(&program);
        command.arg(what).arg(guest.path());
        command
    };
    tools::run(&mut ours("write"))?;
    let text = tools::output(&mut ours("51"))?;
    let InProcess { rounds, ours_ms, bare_ms } =
        serde_json::from_str(&text).context("time_measure printed something else")?;

    let theirs = || {
        let mut command = Command::new(python.with_file_name("sev-snp-measure"));
        command.args([
            "--mode",
            "snp",
            "--vcpus",
            "2",
            "--vcpu-type",
            "EPYC-v4",
            "--append",
            "panic=5 quiet",
        ]);
        for (option, file) in [("--ovmf", "firmware"), ("--kernel", "kernel"), ("--initrd", "initrd")] {
            command.arg(option).arg(guest.path().join(file));
        }
        command
    };
    let (mut once, mut tool) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (time, answer) = run(ours("once"))?;
        once.push(time);
        let (time, other) = run(theirs())?;
        tool.push(time);
        ensure!(answer == other, "we measure {answer}, sev-snp-measure {other}");
    }
    let [once, tool] = [once, tool].map(|mut times| {
        times.sort_unstable_by(f64::total_cmp);
        times[RUNS / 2]
    });
    let row = |figure: &str, ours, reference, target| Row {
        figure: figure.to_owned(),
        unit: "ms",
        ours,
        reference: Some(reference),
        target,
        of_ratio: true,
    };
    table.rows.push(row("measure a guest of 30 MB, beside bare hashing", ours_ms, bare_ms, 1.5));
    table.rows.push(row("the same as a process, beside sev-snp-measure", once, tool, 1.0));
    table.notes.push(format!(
        "measurement: firmware 4.2 MB (SHA-384), kernel 8.0 MB and initrd 17.8 MB (SHA-256), 2 vCPUs; in process: \
         median of {rounds}, alternating; processes: median of {RUNS}, alternating, same result"
    ));
    Ok(())
}

/// Milliseconds and output of one run, which must succeed.
fn run(mut command: Command) -> Result<(f64, String)> {
    let start = Instant::now();
    let text = tools::output(&mut command)?;
    Ok((start.elapsed().as_secs_f64() * 1e3, text.trim().to_owned()))
}
