//! Upgrades of a running node: what is refused, what is committed, what goes back by itself.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{self, Signal};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;
use tests::{
    Node, Setup,
    blessing::{Words, digest, now},
    call, deploy_counter, json,
    mirror::Mirror,
    signed_by_development_keys, with_command_line,
};

/// For a guest under translation, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What `redoubt upgrade --wait` says.
fn upgrade(node: &Node, manifest: &str) -> Result<Value> {
    let words = ["--json", "--wait", manifest].map(OsStr::new);
    let output = node.redoubt("upgrade", &words)?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {}", tests::text(&output)))
}

/// A release that is this one with another initrd and another measurement.
fn other(setup: &Setup, watchdog: u32) -> Result<TempDir> {
    let copy = setup.copy_of_release()?;
    let path = copy.path().join("initrd.zst");
    let mut initrd = fs::read(&path)?;
    // The kernel skips zeros behind an archive.
    initrd.extend([0; 512]);
    fs::write(&path, &initrd)?;
    signed_by_development_keys(copy.path(), 2, |manifest| {
        manifest.guest.files.initrd = release::File::describe("initrd.zst", &initrd);
    })?;
    with_command_line(copy.path(), &format!("redoubt.watchdog={watchdog}"))?;
    Ok(copy)
}

fn bless(directory: &Path) -> Result<()> {
    Words::version(2).beside(&[directory])
}

fn flip(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(fs::write(path, bytes)?)
}

/// When the agent is killed, by the status.
type Moment = (&'static str, fn(&Value) -> bool);

/// What the driver of upgrades is doing.
fn step(status: &Value) -> &str {
    status["upgrade"]["step"].as_str().unwrap_or_default()
}

/// Signs the manifest anew, by these of the development keys.
fn sign(directory: &Path, keys: &[usize]) -> Result<()> {
    let keys: Vec<_> = release::development::signing_keys()?
        .into_iter()
        .enumerate()
        .filter_map(|(index, key)| keys.contains(&index).then_some(key))
        .collect();
    tests::signed_by(directory, &keys, |_| {})
}

/// Signs it by one key, and says so twice.
fn sign_twice(directory: &Path) -> Result<()> {
    sign(directory, &[0])?;
    let path = directory.join("manifest.json");
    let mut envelope: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let signatures = envelope["signatures"].as_array_mut().context("no signatures")?;
    signatures.extend(signatures.first().cloned());
    Ok(fs::write(&path, serde_json::to_vec(&envelope)?)?)
}

/// A small file system where a node keeps what it fetches.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)?;
        let mount = |words: &[&str]| Command::new("mount").args(words).arg(path).status();
        let status = mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"])?;
        ensure!(status.success(), "cannot mount a small disk; run the tests as root");
        Ok(Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: what still looks at it shall not keep the test's folder.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A change to a good release, and the name of the refusal.
type Refused = (&'static str, &'static str, fn(&Path) -> Result<()>);

#[test]
fn only_what_is_blessed_is_brought_and_a_good_release_is_committed() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    json(node.up_with(&setup.release, &["--healthy", "2"])?)?;
    let url = node.url()?;
    let canister = deploy_counter(&url)?;
    ensure!(call(&url, &canister, "inc")? == 1);
    let first = node.status()?;

    let good = other(&setup, 61)?;
    let refused: Vec<Refused> = vec![
        ("unsigned", "manifest-threshold-not-met", |dir| sign(dir, &[])),
        ("m-1 signatures", "manifest-threshold-not-met", |dir| sign(dir, &[0])),
        ("one signer twice", "manifest-duplicate-signature", sign_twice),
        // Before those whose files are good: what they leave is not fetched again.
        ("an image bit flipped", "fetch-wrong-file", |dir| {
            bless(dir).and_then(|()| flip(&dir.join("initrd.zst")))
        }),
        ("a revoked key", "release-key-revoked", |dir| {
            Words { revoked: vec![1], ..Words::version(2) }.beside(&[dir])
        }),
        ("no blessing", "fetch-failed", |_| Ok(())),
        ("an expired blessing", "blessing-expired", |dir| {
            Words { expires: now() - 10, ..Words::version(2) }.beside(&[dir])
        }),
        ("a blessing with m-1 signatures", "blessing-threshold-not-met", |dir| {
            Words { signers: vec![0], ..Words::version(2) }.beside(&[dir])
        }),
        ("a blessing of another release", "release-not-blessed", |dir| {
            let another = other(&Setup::find().context("no set-up")?, 63)?;
            bless(another.path())?;
            fs::copy(another.path().join("blessing.json"), dir.join("blessing.json"))?;
            Ok(())
        }),
        ("a lower epoch", "release-below-epoch", |dir| {
            Words { epoch: 9, ..Words::version(2) }.beside(&[dir])
        }),
        ("mix and match: another manifest's files", "fetch-wrong-file", |dir| {
            signed_by_development_keys(dir, 2, |manifest| manifest.guest.files.initrd.sha256.0[0] ^= 1)?;
            bless(dir)
        }),
        ("a measurement that is not its images'", "measurement-differs", |dir| {
            signed_by_development_keys(dir, 2, |manifest| {
                for entry in &mut manifest.guest.measurements {
                    entry.measurement.0[0] ^= 1;
                }
            })?;
            bless(dir)
        }),
    ];
    for (what, code, change) in &refused {
        let bad = TempDir::new()?;
        for entry in fs::read_dir(good.path())? {
            let entry = entry?;
            fs::copy(entry.path(), bad.path().join(entry.file_name()))?;
        }
        change(bad.path()).context(*what)?;
        let server = Mirror::of(bad.path())?;
        let said = upgrade(&node, &format!("{}/manifest.json", server.url))?;
        ensure!(said["code"] == *code, "{what}: {said:#}");
    }
    let status = node.status()?;
    ensure!(status["restarts"] == 0 && status["state"] == "ready", "a refusal cost a restart: {status:#}");

    // The good one, over a connection that breaks once.
    bless(good.path())?;
    // What the refused ones left would serve.
    let incoming = node.path().join("incoming");
    fs::remove_dir_all(&incoming)?;
    let server = Mirror::of(good.path())?;
    let full = SmallDisk::at(&incoming)?;
    let said = upgrade(&node, &format!("{}/manifest.json", server.url))?;
    ensure!(said["code"] == "fetch-disk-full", "{said:#}");
    drop(full);
    server.sent();
    let broken = format!("{}/manifest.json", server.url);
    server.cut_after(1 << 20);
    let said = upgrade(&node, &broken)?;
    ensure!(said["code"] == "fetch-failed", "{said:#}");
    server.sent();
    let said = upgrade(&node, &broken)?;
    ensure!(said["code"] == "" && said["active"] == "b" && said["phase"] == "idle", "{said:#}");
    let size = fs::metadata(good.path().join("initrd.zst"))?.len();
    ensure!(server.sent() < size, "what was there was fetched again");

    let second = node.wait_for("the new release", PATIENCE, |status| {
        status["state"] == "ready" && !status["attested"].is_null()
    })?;
    ensure!(second["release"]["measurement"] != first["release"]["measurement"], "{second:#}");
    ensure!(call(&url, &canister, "inc")? == 2, "the heap did not survive");

    // The old release has no key any more: what would start it is gone, also after a restart.
    node.down()?;
    json(node.up_with(&setup.release, &["--healthy", "2"])?)?;
    ensure!(node.status()?["release"]["digest"] == digest(good.path())?.to_string());
    ensure!(call(&url, &canister, "inc")? == 3);
    ensure!(!node.path().join("disk.img").exists(), "the old release's key is still there");
    Ok(())
}

#[test]
fn what_does_not_work_goes_back_by_itself() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    let options = ["--healthy", "3", "--trial", "4"];
    json(node.up_with(&setup.release, &options)?)?;
    let url = node.url()?;
    let canister = deploy_counter(&url)?;
    ensure!(call(&url, &canister, "inc")? == 1);
    let release = node.status()?["release"]["digest"].clone();

    // It never boots: no key leaves the guest that runs.
    let dead = setup.copy_of_release()?;
    with_command_line(dead.path(), "rdinit=/none")?;
    Words::version(2).beside(&[dead.path(), &setup.release])?;
    let manifest = |directory: &Path| directory.join("manifest.json").display().to_string();
    let said = upgrade(&node, &manifest(dead.path()))?;
    ensure!(said["code"] == "hand-over-ended" && said["phase"] == "failed", "{said:#}");
    node.wait_for("the status", PATIENCE, |status| status["restarts"] == 0)?;

    // It boots, takes the key, and is not well in time.
    let sick = other(&setup, 64)?;
    Words::version(3).beside(&[sick.path(), &setup.release])?;
    let said = upgrade(&node, &manifest(sick.path()))?;
    ensure!(said["phase"] == "failed", "{said:#}");
    let code = said["code"].as_str().unwrap_or_default();
    ensure!(["release-unhealthy", "release-does-not-run"].contains(&code), "{said:#}");
    let back = node.wait_for("the old release", PATIENCE, |status| {
        status["state"] == "ready" && !status["attested"].is_null()
    })?;
    ensure!(back["release"]["digest"] == release, "{back:#}");
    ensure!(call(&url, &canister, "inc")? == 2, "the heap did not survive");
    ensure!(
        !node.path().join("disk-b.img").exists(),
        "the key of the release that was given up is still there"
    );

    // The reason stays, also over a restart.
    node.down()?;
    json(node.up_with(&setup.release, &options)?)?;
    ensure!(node.status()?["upgrade"]["code"] == said["code"]);

    // It is changed on the disk after it was verified, while it waits for its time.
    let good = other(&setup, 62)?;
    Words::version(4).beside(&[good.path(), &setup.release])?;
    let good_manifest = manifest(good.path());
    let at = |seconds: u64| {
        let time = (now() + seconds).to_string();
        let asked = ["--json", "--not-before", &time, &good_manifest].map(OsStr::new);
        json(node.redoubt("upgrade", &asked)?)?;
        node.wait_for("the staged release", PATIENCE, |status| step(status).starts_with("waiting"))
    };
    at(10)?;
    flip(&node.path().join("slot-b/initrd.zst"))?;
    let changed = node.wait_for("the refusal", PATIENCE, |status| status["upgrade"]["phase"] == "failed")?;
    ensure!(changed["upgrade"]["code"] == "file-wrong-hash", "{changed:#}");

    // The agent is killed while a good one waits, is given the key, and is tried; it goes on each time.
    at(5)?;
    let moments: [Moment; 3] = [
        ("the wait", |status| step(status).starts_with("waiting")),
        ("the hand-over", |status| step(status).contains("hands its key")),
        ("the trial", |status| status["upgrade"]["phase"] == "trying"),
    ];
    for (what, seen) in moments {
        node.wait_for(what, PATIENCE, seen)?;
        signal::kill(node.agent()?, Signal::SIGKILL)?;
        json(node.up_with(&setup.release, &["--healthy", "3", "--trial", "300"])?)?;
    }
    let end = node.wait_for("the commit", PATIENCE, |status| status["upgrade"]["phase"] == "idle")?;
    ensure!(end["upgrade"]["active"] == "b", "{end:#}");
    ensure!(end["release"]["digest"] == digest(good.path())?.to_string(), "{end:#}");
    ensure!(call(&url, &canister, "inc")? == 3, "the heap did not survive");

    // The log of it all is a chain.
    let log = fs::read(node.path().join("audit.log"))?;
    let (head, kept) = upgrade::audit::verify(&log, None)?;
    ensure!(kept == log.len() && head.entries > 10, "{head:?}");
    Ok(())
}
