//! Tests of tests: a fault is switched on, and a test must fail.

use heap::mutants::{Mutant, choose};

/// Asserts that a test fails with an omission.
pub(crate) fn fails_with(omission: Mutant, test: fn()) {
    choose(Some(omission));
    let outcome = std::panic::catch_unwind(test);
    choose(None);
    assert!(outcome.is_err(), "nothing notices {omission:?}");
}
