//! What several tests need.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "shared by test programs; helpers fail the test"
)]

use hwspec::{Probe, Report, Seen, Spec, Status, check};
use std::fs;
use std::path::{Path, PathBuf};

/// Files in a folder of this crate, sorted.
pub(crate) fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// A recorded probe.
pub(crate) fn recorded(name: &str) -> Probe {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/probes/{name}.json"));
    let bytes = fs::read(&path).expect(name);
    Probe::from_json(&bytes).expect(name)
}

/// A probe that meets a built-in specification in everything.
pub(crate) fn good(spec: &str) -> Probe {
    let mut probe = recorded(match spec {
        "gen1" => "hand-made-gen1-rome",
        "gen2" => "hand-made-gen2-genoa",
        _ => "cloud-turin-debian12",
    });
    if spec == "gen1" {
        // Only to have every check pass once: Rome has no SEV-SNP, which gen1 warns about.
        probe.sev.kvm_sev_snp = Seen::Known(true);
    }
    probe
}

/// The verdict on a probe.
pub(crate) fn report(spec: &str, probe: &Probe) -> Report {
    check(&Spec::named(spec).unwrap(), probe)
}

/// Checks that did not pass.
pub(crate) fn not_passed(report: &Report) -> Vec<(&str, Status)> {
    report.checks.iter().filter(|c| c.status != Status::Pass).map(|c| (c.id.as_str(), c.status)).collect()
}
