//! `redoubt hw`.

use crate::node::NodeDirArg;
use crate::output::{Failure, Reply};
use clap::{Args, Subcommand};
use hwspec::{Probe, Report, Requirement, Spec, SpecError, Status};
use serde_json::{json, to_value};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const CHECK_HELP: &str = "\
Exit codes: 0 the machine meets the specification; 1 it does not, or that is not known; 2 the command line was wrong

With --json: {\"spec\", \"verdict\", \"checks\": [{\"id\", \"status\", \"severity\", \"expected\", \"found\", \"fix\"}]}
  status    pass; warn: recommended and not met; fail: required and not met; unknown: the probe does not tell
  verdict   pass or warn: everything required is met; fail; unknown: something required is not known

Registers, SMBIOS, the health of drives and the AMD Secure Processor answer to root only.";

#[derive(Debug, Subcommand)]
pub(crate) enum Hw {
    /// Say what this machine has
    #[command(after_help = "What cannot be found out is {\"unknown\": \"why\"}; probe as root to know more.")]
    Probe(ProbeArgs),
    /// Compare a machine with a specification
    #[command(after_help = CHECK_HELP)]
    Check(CheckArgs),
    /// List the specifications that come with this program
    Specs,
    /// Say what a check asks for, why, and what to do when it is not met
    Explain(ExplainArgs),
    /// Print the JSON schema of specification files, for editors
    Schema,
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
    /// Specification that comes with this program (see `hw specs`), or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "virtual")]
    spec: String,
    /// A recorded probe (`redoubt hw probe --json`) instead of this machine
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Name of the check, as in the reports; all of them if left out
    id: Option<String>,
    /// Only in this specification: one that comes with this program, or a TOML file
    #[arg(long, value_name = "NAME|FILE")]
    spec: Option<String>,
}

pub(crate) fn run(args: &Hw) -> Result<Reply, Failure> {
    match args {
        Hw::Probe(args) => {
            let probe = hwspec::probe::this_machine(args.node.node()?.path());
            let json = to_value(&probe).map_err(|error| Failure::of("probe-unwritable", &error))?;
            Ok(Reply::good(format!("{json:#}"), json))
        }
        Hw::Check(args) => check(args),
        Hw::Specs => specs(),
        Hw::Explain(args) => explain(args),
        Hw::Schema => {
            let schema = hwspec::schema();
            Ok(Reply::good(format!("{schema:#}"), schema))
        }
    }
}

/// Reads a file, but not one without end.
fn read(path: &Path, most: usize, code: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(most as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| Failure::new(code, format!("cannot read {}: {error}", path.display())))?;
    Ok(bytes)
}

/// A built-in specification by its name, else a file.
fn spec(name: &str) -> Result<Spec, Failure> {
    let refused = |error: SpecError| Failure::new("spec-refused", format!("{name}: {error}"));
    match Spec::named(name) {
        Err(SpecError::UnknownName(_)) if name.ends_with(".toml") || Path::new(name).is_file() => {
            let bytes = read(Path::new(name), hwspec::MAX_SPEC, "spec-unreadable")?;
            let text = String::from_utf8(bytes)
                .map_err(|error| Failure::new("spec-unreadable", format!("{name} is no text: {error}")))?;
            Spec::from_toml(&text).map_err(refused)
        }
        other => other.map_err(refused),
    }
}

fn check(args: &CheckArgs) -> Result<Reply, Failure> {
    let spec = spec(&args.spec)?;
    let probe = match &args.probe {
        None => hwspec::probe::this_machine(args.node.node()?.path()),
        Some(path) => {
            let bytes = read(path, hwspec::probe::MAX_PROBE, "probe-unreadable")?;
            Probe::from_json(&bytes)
                .map_err(|error| Failure::new("probe-refused", format!("{}: {error}", path.display())))?
        }
    };
    let report = hwspec::check(&spec, &probe);
    let json = to_value(&report).map_err(|error| Failure::of("report-unwritable", &error))?;
    Ok(Reply { text: show(&report), json, good: report.meets_spec() })
}

fn show(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for check in &report.checks {
        let _ = writeln!(
            text,
            "{:<8}{:<24}expected {}, found {}",
            check.status.to_string(),
            check.id,
            check.expected,
            check.found
        );
        if check.status != Status::Pass {
            let _ = writeln!(text, "{:<32}{} - {}", "", check.severity, check.fix);
        }
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    let _ = write!(
        text,
        "{}: {} ({} passed, {} warned, {} failed, {} unknown)",
        report.spec,
        report.verdict,
        count(Status::Pass),
        count(Status::Warn),
        count(Status::Fail),
        count(Status::Unknown)
    );
    text
}

fn specs() -> Result<Reply, Failure> {
    let specs: Vec<Spec> = Spec::names().map(spec).collect::<Result<_, _>>()?;
    let lines: Vec<String> = specs
        .iter()
        .map(|spec| format!("{:<9}{:>3} checks  {}", spec.name, spec.requirements.len(), spec.description))
        .collect();
    let json = specs
        .iter()
        .map(|spec| {
            json!({ "name": spec.name, "description": spec.description, "checks": spec.requirements.len() })
        })
        .collect();
    Ok(Reply::good(lines.join("\n"), json))
}

fn explain(args: &ExplainArgs) -> Result<Reply, Failure> {
    let specs: Vec<Spec> = match &args.spec {
        Some(name) => vec![spec(name)?],
        None => Spec::names().map(spec).collect::<Result<_, _>>()?,
    };
    let wanted = |requirement: &&Requirement| args.id.as_ref().is_none_or(|id| *id == requirement.id);
    let found: Vec<(&Spec, &Requirement)> = specs
        .iter()
        .flat_map(|spec| spec.requirements.iter().filter(wanted).map(move |requirement| (spec, requirement)))
        .collect();
    if found.is_empty() {
        let id = args.id.as_deref().unwrap_or_default();
        let message = format!("no specification has a check {id:?}; `redoubt hw explain` lists all");
        return Err(Failure::new("check-unknown", message));
    }
    let mut text = String::new();
    for (spec, requirement) in &found {
        let Requirement { id, fact, severity, fix, source, .. } = requirement;
        // Writing to a string does not fail.
        let _ = writeln!(text, "{id} ({}, {severity})", spec.name);
        let _ = writeln!(text, "  looks at  {}", fact.meaning());
        let _ = writeln!(text, "  expects   {}", requirement.expected());
        let _ = writeln!(text, "  fix       {fix}");
        if let Some(source) = source {
            let _ = writeln!(text, "  source    {source}");
        }
    }
    let json = found
        .iter()
        .map(|(spec, requirement)| {
            json!({
                "spec": spec.name,
                "id": requirement.id,
                "fact": requirement.fact.name(),
                "meaning": requirement.fact.meaning(),
                "severity": requirement.severity,
                "expected": requirement.expected(),
                "fix": requirement.fix,
                "source": requirement.source,
            })
        })
        .collect();
    Ok(Reply::good(text.trim_end(), json))
}
