//! `redoubt hw`: exit codes, JSON and words.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn redoubt(arguments: &[&str]) -> (i32, String) {
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_redoubt"));
    let output = command.args(arguments).env("XDG_STATE_HOME", state.path()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn json(arguments: &[&str]) -> (i32, Value) {
    let (exit, text) = redoubt(&[&["--json"], arguments].concat());
    (exit, serde_json::from_str(&text).unwrap())
}

fn probe(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hwspec/tests/probes");
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_machine_that_meets_its_spec() {
    let (exit, report) =
        json(&["hw", "check", "--spec", "gen2", "--probe", &probe("hand-made-gen2-genoa.json")]);
    assert_eq!((exit, &report["spec"], &report["verdict"]), (0, &"gen2".into(), &"pass".into()));
    assert!(report["checks"].as_array().unwrap().len() >= 35);
    // Warnings do not refuse.
    let (exit, report) =
        json(&["hw", "check", "--spec", "gen2", "--probe", &probe("hand-made-gen2-milan.json")]);
    assert_eq!((exit, &report["verdict"]), (0, &"warn".into()));
}

#[test]
fn a_machine_that_does_not() {
    let worn = probe("hand-made-genoa-worn.json");
    let (exit, report) = json(&["hw", "check", "--spec", "gen2", "--probe", &worn]);
    assert_eq!((exit, &report["verdict"]), (1, &"fail".into()));
    let (exit, text) = redoubt(&["hw", "check", "--spec", "gen2", "--probe", &worn]);
    assert_eq!(exit, 1);
    assert!(text.contains("nvme2n1: 112 %") && text.contains("required - Replace the drive."), "{text}");
    assert!(text.trim_end().lines().last().unwrap().starts_with("gen2: fail ("), "{text}");
    // What is required and not known is not met.
    let (exit, report) =
        json(&["hw", "check", "--spec", "gen2", "--probe", &probe("hand-made-genoa-not-root.json")]);
    assert_eq!((exit, &report["verdict"]), (1, &"unknown".into()));
}

fn file(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("own.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_spec_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let text = "name = 'own'\ndescription = 'Ours.'\n[[check]]\nid = 'cores'\nfact = 'cpu-cores'\nat_least = 99\n\
                severity = 'required'\nfix = 'Buy more.'\n";
    let path = file(folder.path(), text);
    let path = path.to_str().unwrap();
    let genoa = probe("hand-made-gen2-genoa.json");
    let (exit, report) = json(&["hw", "check", "--spec", path, "--probe", &genoa]);
    assert_eq!((exit, &report["checks"][0]["fix"]), (1, &"Buy more.".into()));

    file(folder.path(), &text.replace("at_least = 99", "is = true"));
    let (exit, error) = json(&["hw", "check", "--spec", path, "--probe", &genoa]);
    assert_eq!((exit, &error["error"]["code"]), (1, &"spec-refused".into()));
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("line 6, key `is`") && message.contains("cpu-cores"), "{message}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let (exit, error) = json(&["hw", "check", "--spec", "gen9"]);
    assert_eq!((exit, &error["error"]["code"]), (1, &"spec-refused".into()));
    let (exit, error) = json(&["hw", "check", "--spec", "gen2", "--probe", "/dev/zero"]);
    assert_eq!((exit, &error["error"]["code"]), (1, &"probe-refused".into()));
    let (exit, error) = json(&["hw", "check", "--probe", "/nowhere"]);
    assert_eq!((exit, &error["error"]["code"]), (1, &"probe-unreadable".into()));
}

#[test]
fn a_probe_of_this_machine_is_judged_as_the_machine_is() {
    let folder = tempfile::tempdir().unwrap();
    let (exit, probe) = redoubt(&["--json", "hw", "probe"]);
    assert_eq!(exit, 0);
    let path = file(folder.path(), &probe);
    let (_, recorded) = json(&["hw", "check", "--spec", "gen2", "--probe", path.to_str().unwrap()]);
    let (exit, live) = json(&["hw", "check", "--spec", "gen2"]);
    assert_eq!((exit, &live["verdict"]), (1, &recorded["verdict"]));
}

#[test]
fn specs_and_checks_are_explained() {
    let (exit, specs) = json(&["hw", "specs"]);
    let names: Vec<&str> =
        specs.as_array().unwrap().iter().map(|spec| spec["name"].as_str().unwrap()).collect();
    assert_eq!((exit, names), (0, vec!["gen1", "gen2", "virtual"]));
    let (exit, text) = redoubt(&["hw", "explain", "snp-rmp"]);
    assert_eq!(exit, 0);
    assert!(text.contains("SNP Memory (RMP Table) Coverage") && text.contains("source"), "{text}");
    let (exit, checks) = json(&["hw", "explain", "--spec", "gen1"]);
    assert!(exit == 0 && checks.as_array().unwrap().iter().all(|check| check["spec"] == "gen1"));
    let (exit, error) = json(&["hw", "explain", "no-such-check"]);
    assert_eq!((exit, &error["error"]["code"]), (1, &"check-unknown".into()));
    let (exit, schema) = json(&["hw", "schema"]);
    assert_eq!((exit, &schema["title"]), (0, &"Redoubt hardware specification".into()));
}
