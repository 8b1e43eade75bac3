//! Judging a probe by a specification.

use crate::{
    Condition, Probe, Requirement, Severity, Spec,
    fact::{Found, Unit, version},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Met.
    Pass,
    /// Recommended, and not met.
    Warn,
    /// Required, and not met.
    Fail,
    /// The probe does not tell.
    Unknown,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Pass => "pass",
            Status::Warn => "warn",
            Status::Fail => "fail",
            Status::Unknown => "unknown",
        })
    }
}

/// Outcome of all checks. Worse than each that stands above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything is met.
    Pass,
    /// Everything required is met; something recommended is not, or is not known.
    Warn,
    /// Something required is not known, the rest of it is met.
    Unknown,
    /// Something required is not met.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Unknown => "unknown",
            Verdict::Fail => "fail",
        })
    }
}

/// One judged check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// [`Requirement::id`].
    pub id: String,
    /// Outcome.
    pub status: Status,
    /// How much it matters.
    pub severity: Severity,
    /// What the specification asks for, in words.
    pub expected: String,
    /// What the probe says, in words.
    pub found: String,
    /// What to do; empty if passed.
    pub fix: String,
}

/// A judged machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`Spec::name`].
    pub spec: String,
    /// Outcome of all checks.
    pub verdict: Verdict,
    /// Each check, in the specification's order.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether everything required is known to be met. What is not known is not met.
    pub fn meets_spec(&self) -> bool {
        matches!(self.verdict, Verdict::Pass | Verdict::Warn)
    }
}

/// Judges a probe by a specification.
pub fn check(spec: &Spec, probe: &Probe) -> Report {
    let checks: Vec<Check> = spec.requirements.iter().map(|requirement| judge(requirement, probe)).collect();
    let required =
        |status| checks.iter().any(|check| check.severity == Severity::Required && check.status == status);
    let verdict = if required(Status::Fail) {
        Verdict::Fail
    } else if required(Status::Unknown) {
        Verdict::Unknown
    } else if checks.iter().any(|check| check.status != Status::Pass) {
        Verdict::Warn
    } else {
        Verdict::Pass
    };
    Report { spec: spec.name.clone(), verdict, checks }
}

fn judge(requirement: &Requirement, probe: &Probe) -> Check {
    let Requirement { id, fact, condition, severity, fix } = requirement;
    let found = fact.look(probe);
    let unit = match found {
        Found::Number(_, unit) => unit,
        _ => Unit::Count,
    };
    let (met, shown) = match evaluate(condition, found) {
        Some((met, shown)) => (Some(met), shown),
        None => (None, "unknown".to_owned()),
    };
    let status = match (met, severity) {
        (Some(true), _) => Status::Pass,
        (Some(false), Severity::Required) => Status::Fail,
        (Some(false), Severity::Recommended) => Status::Warn,
        (None, _) => Status::Unknown,
    };
    Check {
        id: id.clone(),
        status,
        severity: *severity,
        expected: expected(condition, unit),
        found: shown,
        fix: if status == Status::Pass { String::new() } else { fix.clone() },
    }
}

/// Whether the condition is met, and what was found in words; `None` if the probe does not tell.
fn evaluate(condition: &Condition, found: Found<'_>) -> Option<(bool, String)> {
    let common = |wanted: &[String], set: &[&str]| -> Vec<String> {
        wanted.iter().filter(|item| set.contains(&item.as_str())).cloned().collect()
    };
    Some(match (condition, found) {
        (Condition::Range { at_least, at_most }, Found::Number(value, unit)) => {
            let value = value?;
            ((*at_least..=*at_most).contains(&value), unit.show(value))
        }
        (Condition::VersionAtLeast(wanted), Found::Version(found)) => {
            let found = found?;
            // What is no version ("not installed") is below every version.
            (version(found) >= version(wanted), found.to_owned())
        }
        (Condition::OneOf(wanted), Found::Text(found)) => {
            let found = found?.into_owned();
            (wanted.contains(&found), found)
        }
        // Of a set only the part that was asked for is shown: a processor has more than a hundred flags.
        (Condition::AnyOf(wanted), Found::Set(found)) => {
            let common = common(wanted, &found?);
            (!common.is_empty(), list(&common))
        }
        (Condition::Includes(wanted), Found::Set(found)) => {
            let common = common(wanted, &found?);
            (common.len() == wanted.len(), list(&common))
        }
        (Condition::Is(wanted), Found::Flag(found)) => {
            let found = found?;
            (found == *wanted, yes_no(found).to_owned())
        }
        // Specifications with a condition that does not fit the fact are refused when read.
        _ => return None,
    })
}

fn expected(condition: &Condition, unit: Unit) -> String {
    match condition {
        Condition::Range { at_least, at_most: u64::MAX } => format!("at least {}", unit.show(*at_least)),
        Condition::Range { at_least: 0, at_most } => format!("at most {}", unit.show(*at_most)),
        Condition::Range { at_least, at_most } => {
            format!("{} to {}", unit.show(*at_least), unit.show(*at_most))
        }
        Condition::VersionAtLeast(version) => format!("version {version} or later"),
        Condition::OneOf(wanted) | Condition::AnyOf(wanted) => wanted.join(" or "),
        Condition::Includes(wanted) => list(wanted),
        Condition::Is(wanted) => yes_no(*wanted).to_owned(),
    }
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn yes_no(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}
