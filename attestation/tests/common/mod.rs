//! Reports of real processors and forgeries of them: a folder beside the project, which not everyone has.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod der;
pub(crate) mod made;

use attestation::{Certificates, Evidence, EvidenceKind};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The folder, or `None` after saying that the test is skipped.
pub(crate) fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/sev/fixtures");
    if folder.is_dir() {
        return Some(folder);
    }
    // Past what captures the output of tests.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {} is not there", folder.display());
    None
}

/// Rows of the folder's table, each by column name.
pub(crate) fn manifest(folder: &Path) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(folder.join("manifest.csv")).unwrap();
    let mut lines = text.lines().map(cells);
    let header = lines.next().unwrap();
    lines.map(|row| header.iter().cloned().zip(row).collect()).collect()
}

/// Cells of a line of CSV; quoted ones hold no quotes here.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            other => cells.last_mut().unwrap().push(other),
        }
    }
    cells
}

/// DER of a PEM file.
pub(crate) fn pem(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    x509_parser::pem::parse_x509_pem(&bytes).unwrap().1.contents
}

/// What a node would give for this row.
pub(crate) fn evidence(folder: &Path, row: &BTreeMap<String, String>) -> Evidence {
    let own = folder.join(&row["id"]);
    let product = if row["product"] == "?" { "Milan" } else { &row["product"] };
    let root = |name: &str| pem(&folder.join("roots").join(format!("{name}-{product}.pem")));
    let (ark, ask) = if own.join("ark.pem").exists() {
        (pem(&own.join("ark.pem")), pem(&own.join("ask.pem")))
    } else {
        (root("ARK"), root(if row["vek"] == "VLEK" { "SEV-VLEK" } else { "SEV" }))
    };
    Evidence {
        kind: EvidenceKind::Snp,
        report: fs::read(own.join("report.bin")).unwrap(),
        certificates: Certificates { ark, ask, vek: fs::read(own.join("vek.der")).unwrap_or_default() },
    }
}

/// The evidence of one row.
pub(crate) fn evidence_of(folder: &Path, id: &str) -> Evidence {
    let row = manifest(folder).into_iter().find(|row| row["id"] == id).unwrap();
    evidence(folder, &row)
}
