//! Tests that need something which only `cargo xtask test` provides.

/// Says why a test does nothing, past cargo, which keeps the output of tests that pass. In CI nothing is left out.
#[expect(clippy::panic, reason = "a test that cannot run must fail in CI")]
pub(crate) fn skip(reason: &str) {
    if std::env::var_os("CI").is_some() {
        panic!("{reason}");
    }
    use std::io::Write as _;
    // Not captured, as what is printed would be.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}
