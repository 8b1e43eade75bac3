//! Replays the corpus of the heap's fuzz targets, on the stable toolchain. Here, since it needs the heap's omissions.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::{collections::BTreeSet, fs, path::PathBuf};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 4] = [
    ("superblock", targets::superblock),
    ("log", targets::log),
    ("record", targets::record),
    ("index", targets::index),
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

#[test]
fn the_corpus_holds() {
    let files = |folder: &str| -> BTreeSet<PathBuf> {
        fs::read_dir(self::folder().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let programs: Vec<_> =
        files("fuzz_targets").iter().map(|path| path.file_stem().unwrap().to_owned()).collect();
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

/// Writes the seeds. `cargo test -p heap-simulator --test corpus -- --ignored`
#[test]
#[ignore = "writes files"]
fn write_the_corpus() {
    for (target, name, bytes) in targets::seeds() {
        let folder = folder().join("corpus").join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
    }
}
