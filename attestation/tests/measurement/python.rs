//! The Python environment with sev-snp-measure, which `cargo xtask test` makes from tests/python/requirements.txt.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Its interpreter, or `None` after saying that the test is skipped.
pub(crate) fn interpreter() -> Option<PathBuf> {
    let path = std::env::var_os("REDOUBT_TEST_PYTHON").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python3"),
        PathBuf::from,
    );
    if path.is_file() {
        return Some(path);
    }
    // Past what captures the output of tests.
    let text = format!("SKIPPED: no {} with sev-snp-measure; `cargo xtask test` makes it", path.display());
    let _ = writeln!(std::io::stderr(), "{text}");
    None
}

/// Has the script answer each of the questions.
pub(crate) fn ask(interpreter: &Path, questions: &[serde_json::Value]) -> Vec<serde_json::Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/measurement/oracle.py");
    let mut child =
        Command::new(interpreter).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let question = serde_json::to_vec(questions).unwrap();
    child.stdin.take().unwrap().write_all(&question).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the oracle failed");
    let answers: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answers.len(), questions.len());
    answers
}
