//! Each test has a node directory and a release of its own.

use crate::made_up;
use host_os::node::NodeDir;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(signatures: usize) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        made_up::write(&world.release(), &made_up::manifest(), signatures);
        world
    }

    fn release(&self) -> PathBuf {
        self.dir.path().join("release")
    }

    fn node(&self) -> NodeDir {
        NodeDir::at(self.dir.path().join("state/redoubt/node"))
    }

    /// Runs `redoubt --json ARGUMENTS`; gives exit code and JSON.
    fn redoubt(&self, arguments: &[&str], behaviour: &str) -> (i32, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_redoubt"));
        command.arg("--json").args(arguments).env("XDG_STATE_HOME", self.dir.path().join("state"));
        command.env("SIMULATED_QEMU", behaviour).env("SIMULATED_QEMU_PIDS", self.dir.path().join("pids"));
        let Output { status, stdout, stderr } = command.output().unwrap();
        let json = serde_json::from_slice(&stdout).unwrap_or_else(|error| {
            panic!("no JSON ({error}): {}", String::from_utf8_lossy(&stderr));
        });
        (status.code().unwrap(), json)
    }

    fn up(&self, behaviour: &str) -> (i32, Value) {
        let qemu = concat!(env!("CARGO_MANIFEST_DIR"), "/../host-os/tests/agent/simulated-qemu.sh");
        let release = self.release();
        let mut arguments = vec!["up", "--detach", "--release", release.to_str().unwrap()];
        arguments.extend(["--qemu", qemu, "--accel", "tcg"]);
        // The stand-in writes where no QEMU may.
        arguments.extend(["--confinement", "off"]);
        for port in ["--https-port", "--http-port", "--status-port"] {
            arguments.extend([port, "0"]);
        }
        let spec = hwspec::Spec::named("virtual").unwrap();
        for check in &spec.requirements {
            arguments.extend(["--ignore-hardware", &check.id]);
        }
        self.redoubt(&arguments, behaviour)
    }

    fn launches(&self) -> usize {
        std::fs::read_to_string(self.dir.path().join("pids")).unwrap_or_default().lines().count()
    }
}

#[test]
fn up_refuses_a_manifest_before_it_starts_anything() {
    let world = World::new(1);
    let (exit, json) = world.up("ready");
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("manifest-threshold-not-met")));
    assert!(!world.node().path().exists());
}

#[test]
fn up_gives_the_reason_for_which_the_agent_refused() {
    let world = World::new(2);
    std::fs::write(world.release().join("vmlinuz"), vec![0; 8192]).unwrap();
    let (exit, json) = world.up("ready");
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("file-wrong-hash")), "{json}");
    assert!(json["error"]["message"].as_str().unwrap().contains("vmlinuz"));
    assert_eq!(world.launches(), 0);
    let (exit, json) = world.redoubt(&["status"], "");
    assert_eq!((exit, &json["running"]), (1, &Value::Bool(false)));
    assert_eq!(json["last"]["end"]["code"], "file-wrong-hash");
}

#[test]
fn up_believes_no_guest_without_evidence_and_stops_what_it_started() {
    let world = World::new(2);
    let (exit, json) = world.up("ready");
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("no-evidence")), "{json}");
    assert_eq!(world.launches(), 1);
    assert!(!world.node().is_running());
    let end = world.node().read_record().unwrap().end.unwrap();
    assert_eq!((end.exit, end.error.as_str()), (0, ""));
}

#[test]
fn up_tells_why_a_guest_was_given_up() {
    let world = World::new(2);
    let (exit, json) = world.up("crash");
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("guest-failed")), "{json}");
    assert!(json["error"]["message"].as_str().unwrap().contains("QEMU says: simulated crash"), "{json}");
    assert!(!world.node().is_running());
}

#[test]
fn down_and_wipe_of_a_stopped_node() {
    let world = World::new(2);
    let lock = world.node().lock().unwrap();
    world.node().nvram(&lock, 4096).unwrap();
    drop(lock);
    let (exit, json) = world.redoubt(&["down"], "");
    assert_eq!((exit, &json["was_running"], &json["wiped"]), (0, &Value::Bool(false), &Value::Bool(false)));
    assert!(world.node().path().join("nvram.img").exists());
    let (exit, json) = world.redoubt(&["down", "--wipe"], "");
    assert_eq!((exit, &json["wiped"]), (0, &Value::Bool(true)));
    assert!(!world.node().path().join("nvram.img").exists());
}

#[test]
fn a_release_is_verified_with_its_files_and_measurements() {
    let world = World::new(2);
    let release = world.release();
    let arguments = ["release", "verify", release.to_str().unwrap()];
    let (exit, json) = world.redoubt(&arguments, "");
    assert_eq!(
        (exit, json["version"].as_str(), &json["files_checked"]),
        (0, Some("1.2.3"), &Value::Bool(true))
    );
    assert_eq!(json["signers"].as_array().unwrap().len(), 2);

    let mut manifest = made_up::manifest();
    manifest.guest.command_line.push('x');
    made_up::write(&release, &manifest, 2);
    let (exit, json) = world.redoubt(&arguments, "");
    assert_eq!((exit, json["error"]["code"].as_str()), (1, Some("measurement-differs")));
    let (exit, _) = world.redoubt(&[&arguments[..], &["--manifest-only"]].concat(), "");
    assert_eq!(exit, 0, "the manifest alone is as signed");
}
