//! Judging a probe by a specification.

use crate::fact::{Kind, Unit, version};
use crate::found::Found;
use crate::sev::generation;
use crate::{Condition, Probe, Requirement, Severity, Spec};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
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

impl Requirement {
    /// What is asked for, in words.
    pub fn expected(&self) -> String {
        let unit = match self.fact.kind() {
            Kind::Number(unit) | Kind::Each(unit) => unit,
            _ => Unit::Count,
        };
        expected(&self.condition, unit)
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
    let Requirement { id, fact, condition, severity, fix, .. } = requirement;
    let unit = match fact.kind() {
        Kind::Number(unit) | Kind::Each(unit) => unit,
        _ => Unit::Count,
    };
    let judged = fact.look(probe).and_then(|found| evaluate(condition, found, unit, probe));
    let (met, found) = match judged {
        Ok((met, found)) => (Some(met), found),
        Err(reason) => (None, format!("unknown: {reason}")),
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
        expected: requirement.expected(),
        found,
        fix: if status == Status::Pass { String::new() } else { fix.clone() },
    }
}

/// Whether the condition is met, and what was found in words; the reason if the probe does not tell.
fn evaluate<'a>(
    condition: &Condition,
    found: Found<'a>,
    unit: Unit,
    probe: &'a Probe,
) -> Result<(bool, String), &'a str> {
    let common = |wanted: &[String], set: &[&str]| -> Vec<String> {
        wanted.iter().filter(|item| set.contains(&item.as_str())).cloned().collect()
    };
    Ok(match (condition, found) {
        (Condition::Range { at_least, at_most }, Found::Number(value)) => {
            ((*at_least..=*at_most).contains(&value), unit.show(value))
        }
        (Condition::Range { at_least, at_most }, Found::Each(values)) => {
            every(values, unit, |value| (*at_least..=*at_most).contains(&value))?
        }
        (Condition::FloorByGeneration(floors), Found::Number(value)) => {
            let generation = generation(&probe.cpu)?;
            let met = floors.get(&generation).is_some_and(|floor| value >= *floor);
            (met, format!("{} on {generation}", unit.show(value)))
        }
        (Condition::FloorByStepping(floors), Found::Each(values)) => every(values, unit, |value| {
            floors.iter().any(|floor| floor >> 8 == value >> 8 && value >= *floor)
        })?,
        (Condition::VersionAtLeast(wanted), Found::Version(found)) => {
            // What is no version ("not installed") is below every version.
            (version(&found) >= version(wanted), found.into_owned())
        }
        (Condition::OneOf(wanted), Found::Text(found)) => {
            (wanted.iter().any(|text| *text == found), found.into_owned())
        }
        (Condition::ContainsOneOf(wanted), Found::Text(found)) => {
            (wanted.iter().any(|text| found.contains(text)), found.into_owned())
        }
        // Of a set only the part that was asked for is shown: a processor has more than a hundred flags.
        (Condition::AnyOf(wanted), Found::Set(found)) => {
            let common = common(wanted, &found);
            (!common.is_empty(), list(&common))
        }
        (Condition::Includes(wanted), Found::Set(found)) => {
            let common = common(wanted, &found);
            (common.len() == wanted.len(), list(&common))
        }
        (Condition::Only(allowed), Found::Set(found)) => {
            let met = found.iter().all(|item| allowed.iter().any(|allowed| allowed == item));
            let some: Vec<String> = found.iter().take(SHOWN).map(|item| (*item).to_owned()).collect();
            (met, list(&some) + &more(found.len()))
        }
        (Condition::Is(wanted), Found::Flag(found)) => (found == *wanted, yes_no(found).to_owned()),
        // Specifications with a condition that does not fit the fact are refused when read.
        _ => return Err("the condition does not fit the fact"),
    })
}

/// Most parts that are named one by one.
const SHOWN: usize = 4;

fn more(parts: usize) -> String {
    if parts > SHOWN { format!(" and {} more", parts - SHOWN) } else { String::new() }
}

/// Whether every part meets the condition; names those that do not, or else gives the range. A part that is not
/// known makes the whole unknown, unless another one fails.
fn every<'a>(
    parts: Vec<(Cow<'a, str>, Result<u64, &'a str>)>,
    unit: Unit,
    met: impl Fn(u64) -> bool,
) -> Result<(bool, String), &'a str> {
    let named = |name: &str, value: u64| {
        if name.is_empty() { unit.show(value) } else { format!("{name}: {}", unit.show(value)) }
    };
    let bad: Vec<String> = parts
        .iter()
        .filter_map(|(name, value)| value.ok().filter(|value| !met(*value)).map(|value| named(name, value)))
        .collect();
    if !bad.is_empty() {
        return Ok((
            false,
            bad.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ") + &more(bad.len()),
        ));
    }
    let values = parts.into_iter().map(|(_, value)| value).collect::<Result<Vec<u64>, &str>>()?;
    Ok(match (values.iter().min(), values.iter().max()) {
        (Some(least), Some(most)) if least == most && values.len() == 1 => (true, unit.show(*least)),
        (Some(least), Some(most)) if least == most => {
            (true, format!("{} x {}", values.len(), unit.show(*least)))
        }
        (Some(least), Some(most)) => {
            (true, format!("{} from {} to {}", values.len(), unit.show(*least), unit.show(*most)))
        }
        _ => (false, "none".to_owned()),
    })
}

fn expected(condition: &Condition, unit: Unit) -> String {
    match condition {
        Condition::Range { at_least, at_most } if at_least == at_most => unit.show(*at_least),
        Condition::Range { at_least, at_most: u64::MAX } => format!("at least {}", unit.show(*at_least)),
        Condition::Range { at_least: 0, at_most } => format!("at most {}", unit.show(*at_most)),
        Condition::Range { at_least, at_most } => {
            format!("{} to {}", unit.show(*at_least), unit.show(*at_most))
        }
        Condition::FloorByGeneration(floors) => {
            let floors: Vec<String> =
                floors.iter().map(|(name, floor)| format!("{} on {name}", unit.show(*floor))).collect();
            format!("at least {}", floors.join(", "))
        }
        Condition::FloorByStepping(floors) => {
            let floors: Vec<String> = floors.iter().map(|floor| unit.show(*floor)).collect();
            format!("by stepping at least {}", floors.join(", "))
        }
        Condition::VersionAtLeast(version) => format!("version {version} or later"),
        Condition::OneOf(wanted) | Condition::AnyOf(wanted) => wanted.join(" or "),
        Condition::ContainsOneOf(wanted) => {
            wanted.iter().map(|text| text.trim()).collect::<Vec<_>>().join(" or ")
        }
        Condition::Includes(wanted) => list(wanted),
        Condition::Only(allowed) if allowed.is_empty() => "none".to_owned(),
        Condition::Only(allowed) => format!("nothing but {}", list(allowed)),
        Condition::Is(wanted) => yes_no(*wanted).to_owned(),
    }
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn yes_no(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}
