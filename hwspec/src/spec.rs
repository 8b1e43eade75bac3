//! Specifications: strict types for the TOML files.

use crate::fact::{Fact, Kind, version};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use toml::Spanned;

/// Longest specification that is read, in bytes.
pub const MAX_SPEC: usize = 128 * 1024;

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
    /// How the machine is divided; without it the guest gets what the host's command line says.
    pub guest: Option<Share>,
}

/// How a machine is divided between its host and its guest: the table `[guest]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Virtual processors of the guest; the release needs a measurement for this number.
    pub vcpus: u32,
    /// Cores that only the host uses.
    pub host_cores: u32,
    /// Memory that the host keeps, in MiB; the guest gets the rest.
    pub host_memory_mib: u32,
    /// Whether each virtual processor stays on a processor of its own, and memory beside them.
    pub pin: bool,
    /// Whether the guest's memory is made of huge pages, where the platform can.
    pub huge_pages: bool,
}

/// One check of a specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Unique within the specification; stable, so that scripts can name it.
    pub id: String,
    /// What is looked at.
    pub fact: Fact,
    /// What it must be.
    pub condition: Condition,
    /// What it means if it is not.
    pub severity: Severity,
    /// What to do then, in words.
    pub fix: String,
    /// Where the requirement comes from.
    pub source: Option<String>,
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
    /// `floor_by_generation = { milan = 24, genoa = 23 }`: a number, at least the one for the processor's
    /// generation. A generation that is not named does not meet it.
    FloorByGeneration(BTreeMap<String, u64>),
    /// `floor_by_stepping = [0x0a0011db]`: microcode revisions, each at least the one for its stepping. All but the
    /// last byte of a revision is the stepping; one without a floor does not meet it.
    FloorByStepping(Vec<u64>),
    /// `version_at_least = "7.2"`: a version, compared by its first three numbers.
    VersionAtLeast(String),
    /// `one_of = ["x86_64"]`: a text, one of these.
    OneOf(Vec<String>),
    /// `contains_one_of = ["EPYC 7302 "]`: a text with one of these in it.
    ContainsOneOf(Vec<String>),
    /// `any_of = ["kvm", "tcg"]`: a set with at least one of these.
    AnyOf(Vec<String>),
    /// `includes = ["sse2"]`: a set with each of these.
    Includes(Vec<String>),
    /// `only = ["memory_controller"]`: a set with nothing but these; the empty set meets it.
    Only(Vec<String>),
    /// `is = true`: a flag.
    Is(bool),
}

impl Condition {
    /// Whether it fits a kind of fact.
    fn fits(&self, kind: Kind) -> bool {
        matches!(
            (self, kind),
            (Condition::Range { .. }, Kind::Number(_) | Kind::Each(_))
                | (Condition::FloorByGeneration(_), Kind::Number(_))
                | (Condition::FloorByStepping(_), Kind::Each(_))
                | (Condition::VersionAtLeast(_), Kind::Version)
                | (Condition::OneOf(_) | Condition::ContainsOneOf(_), Kind::Text)
                | (Condition::AnyOf(_) | Condition::Includes(_) | Condition::Only(_), Kind::Set)
                | (Condition::Is(_), Kind::Flag)
        )
    }

    /// Something can meet it.
    fn is_possible(&self) -> bool {
        match self {
            Condition::Range { at_least, at_most } => at_least <= at_most,
            Condition::FloorByGeneration(floors) => !floors.is_empty(),
            Condition::FloorByStepping(floors) => !floors.is_empty(),
            Condition::VersionAtLeast(wanted) => version(wanted).is_some(),
            Condition::OneOf(list)
            | Condition::ContainsOneOf(list)
            | Condition::AnyOf(list)
            | Condition::Includes(list) => !list.is_empty() && list.iter().all(|item| !item.is_empty()),
            Condition::Only(_) | Condition::Is(_) => true,
        }
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
    /// A specification that checks nothing would pass every machine.
    #[error("the hardware specification has no checks; add at least one [[check]]")]
    NoChecks,
    /// Something is wrong at one place.
    #[error("the hardware specification is wrong in line {line}{}: {problem}", key_words(.key))]
    At {
        /// Line, from 1 on.
        line: usize,
        /// Key whose value is wrong; empty if that is not known.
        key: String,
        /// What is wrong.
        problem: Problem,
    },
}

fn key_words(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!(", key `{key}`") }
}

/// What is wrong at one place of a specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No TOML, an unknown or missing key, a value of the wrong type.
    #[error("{0}; correct it")]
    Toml(String),
    /// A check without name, or with one that scripts could not use.
    #[error("the check id {0:?} is empty, over 64 characters, or has others than a-z 0-9 -; rename it")]
    BadId(String),
    /// Two checks of one name.
    #[error("the check id {0:?} was used before; rename one")]
    DuplicateId(String),
    /// No condition, or several.
    #[error(
        "the check {0:?} must have exactly one condition: at_least and/or at_most, floor_by_generation, \
         floor_by_stepping, version_at_least, one_of, contains_one_of, any_of, includes, only or is"
    )]
    ConditionCount(String),
    /// For instance `at_least` on a text.
    #[error("the condition of the check {id:?} does not fit the fact {fact}, which is a {kind}; use another")]
    ConditionKind {
        /// The check.
        id: String,
        /// Its fact.
        fact: String,
        /// What the fact is.
        kind: String,
    },
    /// Nothing meets it.
    #[error("no machine can meet the condition of the check {0:?}; correct it")]
    Impossible(String),
    /// A guest or a host with nothing.
    #[error("`{0}` of the guest is 0 or beyond any machine; correct it")]
    Share(&'static str),
    /// Whoever fails a check must be told what to do.
    #[error("the check {0:?} has no fix text; say what to do when it is not met")]
    NoFix(String),
    /// The text goes to a terminal and into reports.
    #[error(
        "the text has characters other than printable ASCII, or over {MAX_WORDS} of them; write it differently"
    )]
    Words,
}

/// Most that `[guest]` may say.
const MAX_PROCESSORS: u32 = 4096;
const MAX_MEMORY_MIB: u32 = 1 << 24;

/// Longest name, description, fix or source.
const MAX_WORDS: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSpec {
    name: Spanned<String>,
    description: Spanned<String>,
    guest: Option<Spanned<Share>>,
    #[serde(default)]
    check: Vec<Spanned<WireCheck>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCheck {
    id: String,
    fact: Fact,
    severity: Severity,
    fix: String,
    source: Option<String>,
    at_least: Option<u64>,
    at_most: Option<u64>,
    floor_by_generation: Option<BTreeMap<String, u64>>,
    floor_by_stepping: Option<Vec<u64>>,
    version_at_least: Option<String>,
    one_of: Option<Vec<String>>,
    contains_one_of: Option<Vec<String>>,
    any_of: Option<Vec<String>>,
    includes: Option<Vec<String>>,
    only: Option<Vec<String>>,
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
        let wire: WireSpec = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = line_of(text, at);
            let key = key_in(text.lines().nth(line - 1).unwrap_or_default());
            // The parser's words quote the file: one line of printable characters is enough of it.
            let words: String = error
                .message()
                .chars()
                .map(|c| if matches!(c, ' '..='~') { c } else { ' ' })
                .take(300)
                .collect();
            SpecError::At { line, key, problem: Problem::Toml(words) }
        })?;
        for (key, words) in [("name", &wire.name), ("description", &wire.description)] {
            if !is_words(words.get_ref()) {
                let line = line_of(text, words.span().start);
                return Err(SpecError::At { line, key: key.into(), problem: Problem::Words });
            }
        }
        if let Some(guest) = &wire.guest {
            let Share { vcpus, host_cores, host_memory_mib, .. } = *guest.get_ref();
            let bounds = [
                ("vcpus", vcpus, MAX_PROCESSORS),
                ("host_cores", host_cores, MAX_PROCESSORS),
                ("host_memory_mib", host_memory_mib, MAX_MEMORY_MIB),
            ];
            if let Some((key, ..)) = bounds.iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
                return Err(at_key(text, guest.span().start, key, Problem::Share(key)));
            }
        }
        if wire.check.is_empty() {
            return Err(SpecError::NoChecks);
        }
        let mut ids = BTreeSet::new();
        let mut requirements = Vec::new();
        for check in wire.check {
            let start = check.span().start;
            let check = check.into_inner();
            let at = |key: &str, problem| at_key(text, start, key, problem);
            if !ids.insert(check.id.clone()) {
                return Err(at("id", Problem::DuplicateId(check.id)));
            }
            requirements.push(requirement(check).map_err(|(key, problem)| at(key, problem))?);
        }
        let guest = wire.guest.map(Spanned::into_inner);
        Ok(Spec {
            name: wire.name.into_inner(),
            description: wire.description.into_inner(),
            requirements,
            guest,
        })
    }
}

/// Line of a byte, from 1 on.
fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// The key that a line assigns; empty if it is none.
fn key_in(line: &str) -> String {
    let Some((key, _)) = line.split_once('=') else { return String::new() };
    let key = key.trim();
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if key.len() <= 64 && key.bytes().all(bare) { key.to_owned() } else { String::new() }
}

/// The line of a key in the table that begins at byte `start`; the table's own if the key is not there.
fn at_key(text: &str, start: usize, key: &str, problem: Problem) -> SpecError {
    let first = line_of(text, start);
    let mut lines = text.lines().enumerate().skip(first - 1);
    // The header's own line may be the first one.
    let header = lines.next().map_or(first, |(number, _)| number + 1);
    let line = lines
        .take_while(|(_, line)| !line.trim_start().starts_with('['))
        .find(|(_, line)| key_in(line) == key)
        .map_or(header, |(number, _)| number + 1);
    SpecError::At { line, key: key.into(), problem }
}

fn is_words(text: &str) -> bool {
    text.len() <= MAX_WORDS && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

fn requirement(check: WireCheck) -> Result<Requirement, (&'static str, Problem)> {
    let WireCheck { id, fact, severity, fix, source, .. } = check;
    let id_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if id.is_empty() || id.len() > 64 || !id.bytes().all(id_byte) {
        return Err(("id", Problem::BadId(id.chars().take(64).collect())));
    }
    if fix.trim().is_empty() {
        return Err(("fix", Problem::NoFix(id)));
    }
    if !is_words(&fix) {
        return Err(("fix", Problem::Words));
    }
    if source.as_ref().is_some_and(|source| !is_words(source)) {
        return Err(("source", Problem::Words));
    }
    let range = (check.at_least.is_some() || check.at_most.is_some()).then(|| {
        let (at_least, at_most) = (check.at_least.unwrap_or(0), check.at_most.unwrap_or(u64::MAX));
        let key = if check.at_least.is_some() { "at_least" } else { "at_most" };
        (key, Condition::Range { at_least, at_most })
    });
    let conditions = [
        range,
        check.floor_by_generation.map(|floors| ("floor_by_generation", Condition::FloorByGeneration(floors))),
        check.floor_by_stepping.map(|floors| ("floor_by_stepping", Condition::FloorByStepping(floors))),
        check.version_at_least.map(|version| ("version_at_least", Condition::VersionAtLeast(version))),
        check.one_of.map(|list| ("one_of", Condition::OneOf(list))),
        check.contains_one_of.map(|list| ("contains_one_of", Condition::ContainsOneOf(list))),
        check.any_of.map(|list| ("any_of", Condition::AnyOf(list))),
        check.includes.map(|list| ("includes", Condition::Includes(list))),
        check.only.map(|list| ("only", Condition::Only(list))),
        check.is.map(|flag| ("is", Condition::Is(flag))),
    ];
    let mut given = conditions.into_iter().flatten();
    let (Some((key, condition)), None) = (given.next(), given.next()) else {
        return Err(("id", Problem::ConditionCount(id)));
    };
    if !condition.fits(fact.kind()) {
        let (fact, kind) = (fact.name(), fact.kind().describe());
        return Err((key, Problem::ConditionKind { id, fact, kind }));
    }
    if !condition.is_possible() {
        return Err((key, Problem::Impossible(id)));
    }
    let words = match &condition {
        Condition::OneOf(list)
        | Condition::ContainsOneOf(list)
        | Condition::AnyOf(list)
        | Condition::Includes(list)
        | Condition::Only(list) => list.iter().all(|item| is_words(item)),
        Condition::VersionAtLeast(version) => is_words(version),
        Condition::FloorByGeneration(floors) => floors.keys().all(|name| is_words(name)),
        Condition::Range { .. } | Condition::FloorByStepping(_) | Condition::Is(_) => true,
    };
    if !words {
        return Err((key, Problem::Words));
    }
    Ok(Requirement { id, fact, condition, severity, fix, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_specifications_are_well_formed() {
        for name in Spec::names() {
            let spec = Spec::named(name).unwrap();
            assert_eq!(spec.name, name);
            for requirement in spec.requirements {
                assert!(
                    requirement.source.is_some_and(|source| !source.is_empty()),
                    "{name}: {}",
                    requirement.id
                );
            }
        }
        assert_eq!(Spec::named("gen9"), Err(SpecError::UnknownName("gen9".into())));
    }

    fn with(check: &str) -> Result<Spec, SpecError> {
        Spec::from_toml(&format!("name = 'a'\ndescription = 'b'\n\n{check}"))
    }

    // The id is in line 5, the fact in line 6, the condition in line 7.
    const CHECK: &str =
        "[[check]]\nid = 'x'\nfact = 'cpu-threads'\nat_least = 2\nseverity = 'required'\nfix = 'f'\n";

    #[test]
    fn users_can_write_their_own() {
        let spec = with(CHECK).unwrap();
        assert_eq!(spec.requirements[0].condition, Condition::Range { at_least: 2, at_most: u64::MAX });
        assert_eq!(spec.requirements[0].source, None);
    }

    #[test]
    fn defects_are_named_with_line_and_key() {
        let id = || "x".to_owned();
        let at = |line, key: &str, problem| SpecError::At { line, key: key.into(), problem };
        let other = |fact: &str, condition: &str| {
            CHECK.replace("'cpu-threads'\nat_least = 2", &format!("'{fact}'\n{condition}"))
        };
        let kind = Problem::ConditionKind { id: id(), fact: "cpu-threads".into(), kind: "number".into() };
        let cases = [
            (String::new(), SpecError::NoChecks),
            (CHECK.replace("'x'", "'X'"), at(5, "id", Problem::BadId("X".into()))),
            (CHECK.repeat(2), at(11, "id", Problem::DuplicateId(id()))),
            (CHECK.replace("at_least = 2\n", ""), at(5, "id", Problem::ConditionCount(id()))),
            (CHECK.replace("at_least", "is = true\nat_least"), at(5, "id", Problem::ConditionCount(id()))),
            (CHECK.replace("at_least = 2", "is = true"), at(7, "is", kind)),
            (
                CHECK.replace("at_least = 2", "at_least = 2\nat_most = 1"),
                at(7, "at_least", Problem::Impossible(id())),
            ),
            (other("cpu-flags", "includes = []"), at(7, "includes", Problem::Impossible(id()))),
            (
                other("cpu-model", "contains_one_of = ['']"),
                at(7, "contains_one_of", Problem::Impossible(id())),
            ),
            (
                other("cpu-microcode", "floor_by_stepping = []"),
                at(7, "floor_by_stepping", Problem::Impossible(id())),
            ),
            (
                other("tcb-snp", "floor_by_generation = {}"),
                at(7, "floor_by_generation", Problem::Impossible(id())),
            ),
            (
                other("qemu-version", "version_at_least = 'new'"),
                at(7, "version_at_least", Problem::Impossible(id())),
            ),
            (other("cpu-flags", "only = [\"\\u001b[2J\"]"), at(7, "only", Problem::Words)),
            (CHECK.replace("'f'", "' '"), at(9, "fix", Problem::NoFix(id()))),
            (CHECK.replace("'f'", "\"\\u001b[2J\""), at(9, "fix", Problem::Words)),
        ];
        for (check, expected) in cases {
            assert_eq!(with(&check), Err(expected), "{check}");
        }
        for (check, line, key, word) in [
            ("surprise = 1", 4, "surprise", "unknown field"),
            (&CHECK.replace("fix =", "remedy ="), 9, "remedy", "unknown field"),
            (&CHECK.replace("cpu-threads", "cpu-colour"), 6, "fact", "unknown variant"),
            (&CHECK.replace("at_least = 2", "at_least = -2"), 7, "at_least", "invalid value"),
            (&CHECK.replace("required", "fatal"), 8, "severity", "unknown variant"),
            (&CHECK.replace("severity = 'required'\n", ""), 4, "", "missing field"),
            ("[[check", 4, "", ""),
        ] {
            let Err(SpecError::At { line: l, key: k, problem: Problem::Toml(words) }) = with(check) else {
                unreachable!("{check}")
            };
            assert_eq!((l, k.as_str()), (line, key), "{check}: {words}");
            assert!(words.contains(word), "{words}");
        }
        let message = with(&CHECK.replace("at_least = 2", "is = true")).unwrap_err().to_string();
        assert!(
            message.contains("line 7, key `is`") && message.contains("cpu-threads, which is a number"),
            "{message}"
        );
        let long = "#".repeat(MAX_SPEC + 1);
        assert_eq!(Spec::from_toml(&long), Err(SpecError::TooLong(MAX_SPEC + 1)));
    }
}
