//! `redoubt attest measure` and `explain`, ID blocks and the dry run, as people use them: on files, with exit codes and
//! JSON.
#![cfg(feature = "virtual")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

#[path = "../../attestation/tests/measurement/firmware.rs"]
mod firmware;
#[path = "../../host-os/tests/agent/made_up.rs"]
mod made_up;

use attestation::measurement::Launch;
use attestation::report::offset;
use release::{Envelope, File, Manifest, Measurement, Profile, VcpuMeasurement};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Exit code, JSON.
fn redoubt(arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_redoubt")).arg("--json").args(arguments).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("no JSON ({error}): {}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.code().unwrap(), json)
}

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().unwrap().to_owned()
}

/// A release of the virtual profile.
fn virtual_release() -> (tempfile::TempDir, Manifest) {
    let directory = tempfile::tempdir().unwrap();
    let manifest = made_up::manifest();
    made_up::write(directory.path(), &manifest, 2);
    (directory, manifest)
}

/// A well-formed report with this measurement. Nobody signed it: `explain` does not ask who did.
fn report(directory: &Path, measurement: &[u8; 48]) -> String {
    let mut bytes = vec![0; attestation::report::LENGTH];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(offset::VERSION, &3_u32.to_le_bytes());
    put(offset::SIGNATURE_ALGO, &1_u32.to_le_bytes());
    put(offset::MEASUREMENT, measurement);
    put(offset::CPUID_FAMILY, &[0x19, 0x11, 1]);
    std::fs::write(directory.join("report.bin"), bytes).unwrap();
    path(directory, "report.bin")
}

/// Launches the made-up files of a release with a change.
fn measured(directory: &Path, command_line: &str, vcpus: u32) -> [u8; 48] {
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let (firmware, kernel, initrd) = (read("firmware"), read("vmlinuz"), read("initrd"));
    let launch = Launch {
        firmware: &firmware,
        kernel: &kernel,
        initrd: &initrd,
        command_line,
        vcpus,
        vcpu_type: "EPYC-v4".parse().unwrap(),
        guest_features: 1,
    };
    launch.measurement().unwrap().0
}

#[test]
fn files_and_releases_are_measured_alike() {
    let (directory, manifest) = virtual_release();
    let listed = manifest.guest.measurements[0].measurement.to_string();
    let release = directory.path().to_str().unwrap();
    let (exit, json) = redoubt(&["attest", "measure", "--release", release]);
    assert_eq!((exit, json["measurement"].as_str()), (0, Some(listed.as_str())), "{json}");

    let [firmware, kernel, initrd] =
        ["firmware", "vmlinuz", "initrd"].map(|name| path(directory.path(), name));
    let files = ["attest", "measure", "--firmware", &firmware, "--kernel", &kernel, "--initrd", &initrd];
    let (exit, json) = redoubt(&[&files[..], &["--append", "console=ttyS0", "--simulated"]].concat());
    assert_eq!((exit, json["measurement"].as_str()), (0, Some(listed.as_str())), "{json}");

    for (more, code) in [
        (&[][..], "firmware-without-sev-metadata"),
        (&["--simulated", "--vcpus", "0"], "vcpu-count"),
        (&["--simulated", "--vcpu-type", "host"], "vcpu-type-unknown"),
        (&["--simulated", "--guest-features", "0x20"], "guest-features"),
    ] {
        let (exit, json) = redoubt(&[&files[..], more].concat());
        assert_eq!((exit, json["error"]["code"].as_str()), (1, Some(code)), "{json}");
    }
    let (exit, json) = redoubt(&["attest", "measure", "--release", release, "--vcpus", "3"]);
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("vcpus-not-in-release")), "{json}");
}

#[test]
fn a_wrong_measurement_is_explained() {
    let (directory, manifest) = virtual_release();
    let release = directory.path().to_str().unwrap();
    let explain = |measurement: &[u8; 48], more: &[&str]| {
        let report = report(directory.path(), measurement);
        redoubt(&[&["attest", "explain", &report, "--max-vcpus", "8"], more].concat())
    };
    let here = ["--release", release];
    let (exit, json) = explain(&manifest.guest.measurements[0].measurement.0, &here);
    assert_eq!((exit, &json["found"]["expected"]), (0, &Value::Bool(true)), "{json}");

    for (measurement, input) in [
        (measured(directory.path(), "console=ttyS0", 4), "vcpus"),
        (measured(directory.path(), "console=ttyS0 rdinit=/bin/sh", 2), "command-line"),
    ] {
        let (exit, json) = explain(&measurement, &here);
        assert_eq!((exit, json["found"]["differences"][0]["input"].as_str()), (0, Some(input)), "{json}");
    }

    // Another release, under the name that was given to it.
    let other = tempfile::tempdir().unwrap();
    let mut second = manifest.clone();
    second.version = "2.0.0".into();
    second.guest.command_line = "console=ttyS0 second".into();
    second.guest.measurements[0].measurement =
        Measurement(measured(directory.path(), "console=ttyS0 second", 2));
    made_up::write(other.path(), &second, 2);
    let named = format!("slot B={}", other.path().display());
    let (exit, json) =
        explain(&second.guest.measurements[0].measurement.0, &[&here[..], &["--release", &named]].concat());
    let nearest = json["found"]["nearest"].as_str().unwrap();
    assert!(exit == 0 && nearest.starts_with("slot B: release 2.0.0"), "{json}");

    let (exit, json) = explain(&[7; 48], &here);
    assert_eq!((exit, &json["found"], &json["tried"]["complete"]), (1, &Value::Null, &Value::Bool(true)));
    assert!(json["tried"]["digests"].as_u64().unwrap() > 1000, "{json}");
}

/// From a built release to the command line of a launch, through the hands of those who sign.
#[test]
fn id_blocks_are_signed_and_launched() {
    let directory = tempfile::tempdir().unwrap();
    let mut manifest = made_up::manifest();
    made_up::write(directory.path(), &manifest, 0);
    let firmware = firmware::usual();
    std::fs::write(directory.path().join("firmware"), &firmware).unwrap();
    manifest.profile = Profile::Production;
    manifest.guest.files.firmware = File::describe("firmware", &firmware);
    let entry = |vcpus| VcpuMeasurement {
        vcpu_type: "EPYC-v4".into(),
        vcpus,
        measurement: Measurement(measured(directory.path(), "console=ttyS0", vcpus)),
    };
    manifest.guest.measurements = vec![entry(1), entry(2)];
    let file = directory.path().join("manifest.json");
    std::fs::write(&file, Envelope::new(manifest).unwrap().to_bytes()).unwrap();

    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../attestation/tests/measurement/data");
    let (id_key, author_key) = (format!("{data}/id-key.pem"), format!("{data}/author-key.pem"));
    let release = directory.path().to_str().unwrap();
    let sign = ["release", "sign-id-blocks", release, "--id-key", &id_key, "--author-key", &author_key];
    let (exit, json) = redoubt(&sign);
    assert_eq!((exit, json["blocks"].as_u64()), (0, Some(2)), "{json}");

    let mut envelope = Envelope::from_bytes(&std::fs::read(&file).unwrap()).unwrap();
    for key in &release::development::signing_keys().unwrap()[..2] {
        release::sign(&mut envelope, key).unwrap();
    }
    std::fs::write(&file, envelope.to_bytes()).unwrap();
    // Too late now: the release keys' signatures would be void.
    let (exit, json) = redoubt(&sign);
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("manifest-already-signed")), "{json}");

    let verify = ["release", "verify", release, "--profile", "production"];
    let (exit, json) = redoubt(&verify);
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("root-for-development")), "{json}");
    let root = path(directory.path(), "root.json");
    std::fs::write(&root, release::development::ROOT).unwrap();
    let verify = [&verify[..], &["--root", &root]].concat();
    let (exit, json) = redoubt(&verify);
    assert_eq!(exit, 0, "{json}");
    let node = path(directory.path(), "node");
    let up = [
        "up",
        "--dry-run",
        "--release",
        release,
        "--root",
        &root,
        "--profile",
        "production",
        "--node-dir",
        &node,
    ];
    let (exit, json) = redoubt(&up);
    assert_eq!((exit, json["id_block"]["guest_svn"].as_u64()), (0, Some(1)), "{json}");
    assert_eq!(json["measurement"], entry(2).measurement.to_string());
    let words = json["command"].as_array().unwrap();
    assert!(words.iter().any(|word| word.as_str().unwrap().starts_with("sev-snp-guest,")), "{json}");
    assert!(!Path::new(&node).exists());

    // Changed after signing.
    let blocks = directory.path().join(release::ID_BLOCK_FILE);
    let mut text = std::fs::read_to_string(&blocks).unwrap();
    let at = text.rfind("\"signature\":\"").unwrap() + 40;
    let other = if &text[at..=at] == "0" { "1" } else { "0" };
    text.replace_range(at..=at, other);
    std::fs::write(&blocks, text).unwrap();
    for arguments in [&verify[..], &up] {
        let (exit, json) = redoubt(arguments);
        assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("id-block-bad-signature")), "{json}");
    }
}

#[test]
fn the_dry_run_of_a_virtual_node_starts_nothing() {
    let (directory, manifest) = virtual_release();
    let node = path(directory.path(), "node");
    let release = directory.path().to_str().unwrap();
    let (exit, json) = redoubt(&["up", "--dry-run", "--release", release, "--node-dir", &node]);
    assert_eq!((exit, json["profile"].as_str()), (0, Some("virtual")), "{json}");
    assert_eq!(json["measurement"], manifest.guest.measurements[0].measurement.to_string());
    assert!(!Path::new(&node).exists());
}
