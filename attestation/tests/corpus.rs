//! Replays the corpus of the fuzz targets, on the stable toolchain.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;
#[path = "../fuzz/targets.rs"]
mod targets;

use attestation::{Product, certificate_table};
use common::made::{Made, amd};
use std::{collections::BTreeSet, fs, path::PathBuf};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 5] = [
    ("report", targets::report),
    ("certificate", targets::certificate),
    ("crl", targets::crl),
    ("policy", targets::policy),
    ("evidence", targets::evidence),
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

#[test]
fn the_corpus_holds() {
    let files = |folder: &str| -> BTreeSet<PathBuf> {
        fs::read_dir(self::folder().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let programs =
        files("fuzz_targets").iter().map(|path| path.file_stem().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(programs.len(), TARGETS.len());
    for (name, target) in TARGETS {
        assert!(programs.iter().any(|program| program == name), "{name}");
        let inputs = files(&format!("corpus/{name}"));
        assert!(inputs.len() > 1, "{name} has seeds");
        for input in inputs {
            target(&fs::read(&input).unwrap());
        }
    }
}

/// Writes the seeds: everything that tests make, sound and broken. `cargo test -p attestation --test corpus -- --ignored`
#[test]
#[ignore = "writes files"]
fn write_the_corpus() {
    let write = |target: &str, name: &str, bytes: &[u8]| {
        fs::write(folder().join("corpus").join(target).join(format!("seed-{name}")), bytes).unwrap();
    };
    for (name, product, provider) in [
        ("milan", Product::Milan, None),
        ("genoa", Product::Genoa, None),
        ("genoa-vlek", Product::Genoa, Some("provider")),
        ("turin", Product::Turin, None),
    ] {
        let made = Made::with(product, provider);
        let (evidence, _) = made.build();
        write("report", name, &evidence.report);
        write("certificate", name, &evidence.certificates.vek);
        write("evidence", &format!("{name}.json"), evidence.to_json().unwrap().as_bytes());
        write("evidence", &format!("{name}.table"), &certificate_table::encode(&evidence.certificates));
        let mut list = made.list();
        write("crl", name, &list.der());
        list.revoked = vec![1, 2, 200];
        list.next_update = None;
        write("crl", &format!("{name}-revoking"), &list.der());
    }
    let mut made = Made::of(Product::Genoa);
    write("certificate", "ark", &made.build().0.certificates.ark);
    made.vek.extensions.push(amd(&[3, 10], &[2, 2, 1]));
    made.put(0, &[2]);
    let broken = made.build().0;
    write("certificate", "broken", &broken.certificates.vek);
    write("report", "broken", &broken.report);
    for entry in fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("policies")).unwrap() {
        let path = entry.unwrap().path();
        write("policy", path.file_name().unwrap().to_str().unwrap(), &fs::read(&path).unwrap());
    }
}
