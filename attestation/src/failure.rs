//! What is wrong with a piece of evidence: all of it, each with a stable code.

use serde::Serialize;
use std::fmt;

/// One reason to refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Stable name, in kebab-case.
    pub code: &'static str,
    /// What would have been accepted.
    pub expected: String,
    /// What was there.
    pub found: String,
    /// What to do about it.
    pub fix: &'static str,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}; {}", self.code, self.expected, self.found, self.fix)
    }
}

/// Evidence that was refused, with every failure that was found, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Refusal {
    failures: Vec<Failure>,
}

impl Refusal {
    /// At least one.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// With one failure.
    pub(crate) fn of(failure: Failure) -> Self {
        Self { failures: vec![failure] }
    }

    /// These failures and those of a verdict; the verdict itself when there are none.
    pub(crate) fn join<T>(mut failures: Vec<Failure>, verdict: Result<T, Self>) -> Result<T, Self> {
        match verdict {
            Ok(value) if failures.is_empty() => return Ok(value),
            Ok(_) => {}
            Err(mut refusal) => failures.append(&mut refusal.failures),
        }
        Err(Self { failures })
    }

    /// Codes of the failures, in order.
    pub fn codes(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.failures.iter().map(|failure| failure.code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the evidence is refused:")?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n- {failure}"))
    }
}

impl std::error::Error for Refusal {}

/// Collects failures.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<Failure>);

impl Failures {
    pub(crate) fn add(
        &mut self,
        code: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
        fix: &'static str,
    ) {
        self.0.push(Failure { code, expected: expected.to_string(), found: found.to_string(), fix });
    }

    /// [`Failures::add`] unless `holds`.
    pub(crate) fn require(
        &mut self,
        holds: bool,
        code: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
        fix: &'static str,
    ) {
        if !holds {
            self.add(code, expected, found, fix);
        }
    }

    /// The value, if it was found and nothing failed.
    pub(crate) fn conclude<T>(self, value: Option<T>) -> Result<T, Refusal> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => {
                // A missing value always has its failure; should one ever be forgotten, it stays a refusal.
                debug_assert!(!self.0.is_empty());
                Err(Refusal { failures: self.0 })
            }
        }
    }
}
