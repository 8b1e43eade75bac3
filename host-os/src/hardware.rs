//! Does this machine fit the hardware specification of the node's profile?

use crate::check::{CheckError, Options};
use hwspec::probe::Probe;
use hwspec::{Check, Report, Severity, Spec, Status};
use release::Profile;

/// The specification of the node's profile.
pub fn spec(profile: Profile) -> Result<Spec, CheckError> {
    let name = match profile {
        Profile::Virtual => "virtual",
        // The generation with SEV-SNP.
        Profile::Production => "gen2",
    };
    Spec::named(name)
        .map_err(|error| CheckError::Specification { spec: name.into(), reason: error.to_string() })
}

/// Judges this machine. Failed checks that the operator named are logged and accepted.
pub fn check(options: &Options, probe: &Probe) -> Result<Report, CheckError> {
    let spec = spec(options.profile)?;
    let report = hwspec::check(&spec, probe);
    let mut refused = Vec::new();
    for check in report.checks.iter().filter(|check| check.status != Status::Pass) {
        if !is_refusal(check) {
            tracing::warn!("hardware: {}", line(check));
        } else if options.ignore_hardware.contains(&check.id) {
            tracing::warn!("hardware, ignored as asked: {}", line(check));
        } else {
            refused.push(line(check));
        }
    }
    if refused.is_empty() {
        return Ok(report);
    }
    refused.push("or accept one of these with --ignore-hardware NAME".into());
    Err(CheckError::Hardware { spec: spec.name, findings: refused.join("\n") })
}

/// What is required and not known to be met.
fn is_refusal(check: &Check) -> bool {
    check.severity == Severity::Required && check.status != Status::Pass
}

fn line(check: &Check) -> String {
    let Check { id, expected, found, fix, .. } = check;
    format!("- {id}: expected {expected}, found {found}; {fix}")
}
