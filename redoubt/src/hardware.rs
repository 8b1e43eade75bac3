//! `redoubt hw`.

use crate::node::NodeDirArg;
use crate::output::{Failure, Reply};
use clap::{Args, Subcommand};
use hwspec::{Probe, Spec, Status};
use serde_json::to_value;
use std::fmt::Write;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Hw {
    /// Say what this machine has
    Probe(ProbeArgs),
    /// Compare this machine with a specification
    #[command(
        after_help = "Exit codes: 0 it fits; 1 it does not, or that is not known; 2 the command line was wrong"
    )]
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    #[command(flatten)]
    node: NodeDirArg,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    node: NodeDirArg,
    /// Name of a specification that comes with this program, or a TOML file
    #[arg(long, value_name = "NAME", default_value = "virtual")]
    spec: String,
    /// A recorded probe (`redoubt hw probe --json`) instead of this machine
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
}

pub(crate) fn run(args: &Hw) -> Result<Reply, Failure> {
    match args {
        Hw::Probe(args) => {
            let probe = hwspec::probe::this_machine(args.node.node()?.path());
            let json = to_value(&probe).map_err(|error| Failure::of("probe-unwritable", &error))?;
            Ok(Reply::good(format!("{json:#}"), json))
        }
        Hw::Check(args) => check(args),
    }
}

fn check(args: &CheckArgs) -> Result<Reply, Failure> {
    let spec = match Spec::named(&args.spec) {
        Err(hwspec::SpecError::UnknownName(_)) if args.spec.ends_with(".toml") => {
            let text = std::fs::read_to_string(&args.spec).map_err(|error| {
                Failure::new("spec-unreadable", format!("cannot read {}: {error}", args.spec))
            })?;
            Spec::from_toml(&text)
        }
        other => other,
    };
    let spec = spec.map_err(|error| Failure::of("spec-refused", &error))?;
    let probe = match &args.probe {
        None => hwspec::probe::this_machine(args.node.node()?.path()),
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|error| {
                Failure::new("probe-unreadable", format!("cannot read {}: {error}", path.display()))
            })?;
            Probe::from_json(&bytes).map_err(|error| Failure::of("probe-refused", &error))?
        }
    };
    let report = hwspec::check(&spec, &probe);
    let mut text = String::new();
    for check in &report.checks {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:<8}{:<20}expected {}, found {}",
            check.status.to_string(),
            check.id,
            check.expected,
            check.found
        );
        if check.status != Status::Pass {
            let _ = writeln!(text, "{:<28}{}", "", check.fix);
        }
    }
    let _ = write!(text, "{}: {}", report.spec, report.verdict);
    let json = to_value(&report).map_err(|error| Failure::of("report-unwritable", &error))?;
    Ok(Reply { text, json, good: report.meets_spec() })
}
