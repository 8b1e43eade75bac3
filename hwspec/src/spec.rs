//! Specifications: strict types for the TOML files.

use crate::{Probe, fact::Found};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

/// Longest specification that is read, in bytes.
const MAX_SPEC: usize = 64 * 1024;

/// The specifications that come with the program.
const BUILT_IN: [(&str, &str); 3] = [
    ("gen1", include_str!("../specs/gen1.toml")),
    ("gen2", include_str!("../specs/gen2.toml")),
    ("virtual", include_str!("../specs/virtual.toml")),
];

/// What a kind of node must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Name, as given on the command line and in reports.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The checks, in the order in which they are reported.
    pub requirements: Vec<Requirement>,
}

/// One check of a specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Unique within the specification; stable, so that scripts can name it.
    pub id: String,
    /// What is looked at.
    pub fact: crate::Fact,
    /// What it must be.
    pub condition: Condition,
    /// What it means if it is not.
    pub severity: Severity,
    /// What to do then, in words.
    pub fix: String,
}

/// What a fact must be. In the file, exactly one of these keys (`at_least` and `at_most` go together).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `at_least = N`, `at_most = N`: a number in the fact's unit, bounds included.
    Range {
        /// Lower bound.
        at_least: u64,
        /// Upper bound; `u64::MAX` for none.
        at_most: u64,
    },
    /// `version_at_least = "7.2"`: a version, compared by its first three numbers.
    VersionAtLeast(String),
    /// `one_of = ["x86_64"]`: a text, one of these.
    OneOf(Vec<String>),
    /// `any_of = ["kvm", "tcg"]`: a set with at least one of these.
    AnyOf(Vec<String>),
    /// `includes = ["sse2"]`: a set with each of these.
    Includes(Vec<String>),
    /// `is = true`: a flag.
    Is(bool),
}

impl Condition {
    fn fits(&self, found: &Found<'_>) -> bool {
        matches!(
            (self, found),
            (Condition::Range { .. }, Found::Number(..))
                | (Condition::VersionAtLeast(_), Found::Version(_))
                | (Condition::OneOf(_), Found::Text(_))
                | (Condition::AnyOf(_) | Condition::Includes(_), Found::Set(_))
                | (Condition::Is(_), Found::Flag(_))
        )
    }
}

/// How much an unmet requirement matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The node cannot do its work without: not met, the check fails.
    Required,
    /// The node works, but worse: not met, the check warns.
    Recommended,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Required => "required",
            Severity::Recommended => "recommended",
        })
    }
}

/// A specification cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No specification of that name comes with the program.
    #[error("there is no built-in hardware specification {0:?}; use gen1, gen2, virtual, or give a file")]
    UnknownName(String),
    /// Not read at all.
    #[error("the hardware specification has {0} bytes; at most {MAX_SPEC} are read")]
    TooLong(usize),
    /// No TOML, an unknown or missing key, a value of the wrong type.
    #[error("the hardware specification cannot be read; correct it: {0}")]
    Toml(String),
    /// A specification that checks nothing would pass every machine.
    #[error("the hardware specification has no checks; add at least one")]
    NoChecks,
    /// A check without name, or with one that scripts could not use.
    #[error("the check id {0:?} is empty, too long or has characters other than a-z 0-9 -; rename it")]
    BadId(String),
    /// Two checks of one name.
    #[error("the check id {0:?} comes twice; rename one")]
    DuplicateId(String),
    /// No condition, or several.
    #[error(
        "the check {0:?} must have exactly one condition: at_least and/or at_most, version_at_least, one_of, any_of, includes or is"
    )]
    ConditionCount(String),
    /// For instance `at_least` on a text.
    #[error("the condition of the check {0:?} does not fit its fact; see the list of facts")]
    ConditionKind(String),
    /// Nothing meets it.
    #[error("no machine can meet the condition of the check {0:?}; correct it")]
    Impossible(String),
    /// Whoever fails a check must be told what to do.
    #[error("the check {0:?} has no fix text; say what to do when it is not met")]
    NoFix(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSpec {
    name: String,
    description: String,
    #[serde(default)]
    check: Vec<WireCheck>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCheck {
    id: String,
    fact: crate::Fact,
    severity: Severity,
    fix: String,
    at_least: Option<u64>,
    at_most: Option<u64>,
    version_at_least: Option<String>,
    one_of: Option<Vec<String>>,
    any_of: Option<Vec<String>>,
    includes: Option<Vec<String>>,
    is: Option<bool>,
}

impl Spec {
    /// A specification that comes with the program: `gen1`, `gen2` or `virtual`.
    pub fn named(name: &str) -> Result<Spec, SpecError> {
        match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Spec::from_toml(text),
            None => Err(SpecError::UnknownName(name.chars().take(64).collect())),
        }
    }

    /// Names that [`Spec::named`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// Reads a specification.
    pub fn from_toml(text: &str) -> Result<Spec, SpecError> {
        if text.len() > MAX_SPEC {
            return Err(SpecError::TooLong(text.len()));
        }
        let wire: WireSpec = toml::from_str(text).map_err(|error| SpecError::Toml(error.to_string()))?;
        if wire.check.is_empty() {
            return Err(SpecError::NoChecks);
        }
        let mut ids = BTreeSet::new();
        let requirements = wire
            .check
            .into_iter()
            .map(|check| {
                if !ids.insert(check.id.clone()) {
                    return Err(SpecError::DuplicateId(check.id));
                }
                requirement(check)
            })
            .collect::<Result<_, _>>()?;
        Ok(Spec { name: wire.name, description: wire.description, requirements })
    }
}

fn requirement(check: WireCheck) -> Result<Requirement, SpecError> {
    let WireCheck { id, fact, severity, fix, .. } = check;
    let id_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if id.is_empty() || id.len() > 64 || !id.bytes().all(id_byte) {
        return Err(SpecError::BadId(id));
    }
    if fix.trim().is_empty() {
        return Err(SpecError::NoFix(id));
    }
    let range = (check.at_least.is_some() || check.at_most.is_some()).then(|| Condition::Range {
        at_least: check.at_least.unwrap_or(0),
        at_most: check.at_most.unwrap_or(u64::MAX),
    });
    let mut conditions = [
        range,
        check.version_at_least.map(Condition::VersionAtLeast),
        check.one_of.map(Condition::OneOf),
        check.any_of.map(Condition::AnyOf),
        check.includes.map(Condition::Includes),
        check.is.map(Condition::Is),
    ]
    .into_iter()
    .flatten();
    let (Some(condition), None) = (conditions.next(), conditions.next()) else {
        return Err(SpecError::ConditionCount(id));
    };
    // An empty probe knows no fact, but each fact's kind.
    if !condition.fits(&fact.look(&Probe::default())) {
        return Err(SpecError::ConditionKind(id));
    }
    let possible = match &condition {
        Condition::Range { at_least, at_most } => at_least <= at_most,
        Condition::VersionAtLeast(version) => crate::fact::version(version).is_some(),
        // An empty `includes` would be met by anything, so it is as wrong as the other two.
        Condition::OneOf(list) | Condition::AnyOf(list) | Condition::Includes(list) => !list.is_empty(),
        Condition::Is(_) => true,
    };
    if !possible {
        return Err(SpecError::Impossible(id));
    }
    Ok(Requirement { id, fact, condition, severity, fix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_specs_are_valid_and_named_after_their_file() {
        for name in Spec::names() {
            assert_eq!(Spec::named(name).unwrap().name, name);
        }
        assert_eq!(Spec::named("gen9"), Err(SpecError::UnknownName("gen9".into())));
    }

    fn with(check: &str) -> Result<Spec, SpecError> {
        Spec::from_toml(&format!("name = 'a'\ndescription = 'b'\n{check}"))
    }

    const CHECK: &str =
        "[[check]]\nid = 'x'\nfact = 'cpu-threads'\nat_least = 2\nseverity = 'required'\nfix = 'f'\n";

    #[test]
    fn users_can_write_their_own() {
        let spec = with(CHECK).unwrap();
        assert_eq!(spec.requirements[0].condition, Condition::Range { at_least: 2, at_most: u64::MAX });
    }

    #[test]
    fn defects_are_named() {
        let id = || "x".to_owned();
        let cases = [
            ("", SpecError::NoChecks),
            (&CHECK.replace("'x'", "'X'"), SpecError::BadId("X".into())),
            (&CHECK.repeat(2), SpecError::DuplicateId(id())),
            (&CHECK.replace("at_least = 2\n", ""), SpecError::ConditionCount(id())),
            (&CHECK.replace("at_least", "is = true\nat_least"), SpecError::ConditionCount(id())),
            (&CHECK.replace("at_least = 2", "is = true"), SpecError::ConditionKind(id())),
            (&CHECK.replace("at_least = 2", "at_least = 2\nat_most = 1"), SpecError::Impossible(id())),
            (
                &CHECK.replace("'cpu-threads'\nat_least = 2", "'cpu-flags'\nincludes = []"),
                SpecError::Impossible(id()),
            ),
            (
                &CHECK.replace("'cpu-threads'\nat_least = 2", "'qemu-version'\nversion_at_least = 'new'"),
                SpecError::Impossible(id()),
            ),
            (&CHECK.replace("'f'", "' '"), SpecError::NoFix(id())),
        ];
        for (check, expected) in cases {
            assert_eq!(with(check), Err(expected), "{check}");
        }
        for check in [
            "surprise = 1",
            &CHECK.replace("fix =", "remedy ="),
            &CHECK.replace("cpu-threads", "cpu-colour"),
            &CHECK.replace("at_least = 2", "at_least = -2"),
            &CHECK.replace("required", "fatal"),
            "[[check",
        ] {
            assert!(matches!(with(check), Err(SpecError::Toml(_))), "{check}");
        }
        let long = "#".repeat(MAX_SPEC + 1);
        assert_eq!(Spec::from_toml(&long), Err(SpecError::TooLong(MAX_SPEC + 1)));
    }
}
