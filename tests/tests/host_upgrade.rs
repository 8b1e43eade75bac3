//! Upgrades of a whole machine: host, then guest. A good release is committed, and the machine starts it from then on; a host
//! that does not start leaves the machine on the one before, with the reason shown.

use anyhow::{Context, Result, ensure};
use installer::{layout::root_identifiers, parts, pe, verity::Tree};
use release::{Digest, File, Profile};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::{fs, path::Path, time::Duration};
use tempfile::TempDir;
use tests::{
    Setup,
    blessing::{Words, digest},
    json,
    machine::Machine,
    mirror::Mirror,
    signed_by_development_keys, with_command_line,
};

/// Until a machine is installed, on a busy computer.
const FLASHED: Duration = Duration::from_secs(15 * 60);
/// Until an installed one answers.
const STARTED: Duration = Duration::from_secs(8 * 60);

/// The files of the release under test that a node fetches, under another guest's command line and another host's root hash.
/// `change` may change the host's command line too, but not its length, and `spoil` its root.
fn another(
    setup: &Setup,
    salt: u8,
    change: impl Fn(String) -> String,
    spoil: impl Fn(&mut [u8]) -> Result<()>,
) -> Result<TempDir> {
    let copy = TempDir::new()?;
    let dir = copy.path();
    let manifest = fs::read(setup.release.join("manifest.json"))?;
    let manifest = release::Envelope::from_bytes(&manifest)?.manifest().clone();
    let (required, _) = parts::carried(&manifest);
    for name in &required {
        fs::copy(setup.release.join(name), dir.join(name)).with_context(|| name.clone())?;
    }
    with_command_line(dir, &format!("redoubt.watchdog={salt}"))?;
    let mut host = manifest.host.context("no host")?;
    let old = fs::read(dir.join(&host.root_hash_tree.path))?;
    let mut root = fs::read(dir.join(&host.root.path))?;
    spoil(&mut root)?;
    fs::write(dir.join(&host.root.path), &root)?;
    host.root = File::describe(host.root.path, &root);
    let tree = Tree::new(&root, [salt; 32])?;
    let mut uki = fs::read(dir.join(&host.uki.path))?;
    let line = pe::section(&uki, ".cmdline").context("no command line")?.to_vec();
    let mut text = String::from_utf8(line.clone())?;
    let (before, after) = (root_identifiers(&host.verity_root_hash.0), root_identifiers(&tree.root));
    for (from, to) in [
        (before.0.to_string(), after.0.to_string()),
        (before.1.to_string(), after.1.to_string()),
        (hex::encode(host.verity_root_hash.0), hex::encode(tree.root)),
        (hex::encode(&old[88..120]), hex::encode(tree.salt)),
    ] {
        ensure!(text.contains(&from), "{from}: {text}");
        text = text.replace(&from, &to);
    }
    let text = change(text);
    ensure!(text.len() == line.len(), "{text}");
    let at = memchr::memmem::find(&uki, &line).context("no command line")?;
    uki[at..at + text.len()].copy_from_slice(text.as_bytes());
    fs::write(dir.join(&host.uki.path), &uki)?;
    fs::write(dir.join(&host.root_hash_tree.path), &tree.hash_area)?;
    image_build::host::assembly::sign(dir, Profile::Virtual, None)?;
    host.uki = File::describe(host.uki.path, &uki);
    host.uki_authenticode = Digest(pe::authenticode_hash(&uki)?);
    host.root_hash_tree = File::describe(host.root_hash_tree.path, &tree.hash_area);
    host.verity_root_hash = Digest(tree.root);
    for section in host.measured.iter_mut().flat_map(|measured| &mut measured.sections) {
        if section.name == ".cmdline" {
            section.sha256 = Digest(Sha256::digest(&text).into());
        }
    }
    signed_by_development_keys(dir, 2, |manifest| {
        manifest.version = format!("{}-{salt}", manifest.version);
        manifest.host = Some(host);
    })?;
    Ok(copy)
}

/// Has the machine bring this release; what it says in the end.
fn upgrade(machine: &Machine<'_>, release: &Path, arguments: &[&str]) -> Result<Value> {
    let mirror = Mirror::of(release)?;
    // QEMU's user network has the loopback of this computer at this address.
    let url = format!("{}/manifest.json", mirror.url.replace("127.0.0.1", "10.0.2.2"));
    let output = machine.operate(&[&["upgrade", "--wait", &url], arguments].concat())?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {}", tests::text(&output)))
}

fn refused(machine: &Machine<'_>, release: &Path, code: &str) -> Result<()> {
    let said = upgrade(machine, release, &[])?;
    ensure!(
        said["code"] == code && said["host"]["active"] == "a" && said["host"]["running"] == "a",
        "{said:#}"
    );
    Ok(())
}

fn bless(version: u64, releases: &[&Path]) -> Result<()> {
    Words::version(version).beside(releases)
}

#[test]
fn a_machine_takes_a_good_release_and_comes_back_from_a_host_that_does_not_start() -> Result<()> {
    let Some(mut setup) = Setup::find() else { return Ok(()) };
    let folder = TempDir::new()?;
    let place = folder.path().join("machine");
    let sound = |_: &mut [u8]| Ok(());
    let good = another(&setup, 61, |line| line, sound)?;
    // Its kernel finds no root, panics, and the firmware starts the machine again.
    let bad = another(&setup, 62, |line| line.replace("rootfstype=erofs", "rootfstype=er0fs"), sound)?;
    // It runs, and without this file, which is called otherwise, the firmware of the guest starts no kernel.
    let sick = another(
        &setup,
        63,
        |line| line,
        |root| {
            let name = b"linuxboot_dma.bin";
            let at = memchr::memmem::find(root, name).context("no name of a file that QEMU needs")?;
            root[at..at + name.len()].copy_from_slice(b"linuxboot_dmb.bin");
            Ok(())
        },
    )?;
    bless(3, &[bad.path(), sick.path(), good.path()])?;
    for release in [&sick, &good] {
        fs::copy(bad.path().join(release::BLESSING_FILE), release.path().join(release::BLESSING_FILE))?;
    }
    let first = Setup::find().context("no set-up")?;
    let machine = Machine::start(&first, &place, FLASHED)?;

    // A manifest that says something else of its host than the host's files do.
    let lies = TempDir::new()?;
    for entry in fs::read_dir(good.path())? {
        let entry = entry?;
        fs::copy(entry.path(), lies.path().join(entry.file_name()))?;
    }
    signed_by_development_keys(lies.path(), 2, |manifest| {
        for measured in manifest.host.iter_mut().flat_map(|host| &mut host.measured) {
            measured.sections[0].sha256.0[0] ^= 1;
        }
    })?;
    bless(2, &[lies.path()])?;
    refused(&machine, lies.path(), "host-measurement-differs")?;

    let said = upgrade(&machine, bad.path(), &[])?;
    ensure!(said["code"] == "host-does-not-run" && said["host"]["phase"] == "failed", "{said:#}");
    ensure!(
        said["host"]["active"] == "a" && said["host"]["running"] == "a" && said["phase"] != "failed",
        "{said:#}"
    );
    ensure!(said["reason"].as_str().is_some_and(|why| why.contains("came back")), "{said:#}");

    let said = upgrade(&machine, sick.path(), &[])?;
    ensure!(said["code"] == "host-unhealthy" && said["host"]["phase"] == "failed", "{said:#}");
    ensure!(said["reason"].as_str().is_some_and(|why| why.contains("linuxboot_dma.bin")), "{said:#}");
    ensure!(
        said["host"]["active"] == "a" && said["host"]["running"] == "a" && said["phase"] != "failed",
        "{said:#}"
    );

    let said = upgrade(&machine, good.path(), &[])?;
    ensure!(said["code"] == "" && said["phase"] == "idle", "{said:#}");
    let host = &said["host"];
    ensure!(host["phase"] == "idle" && host["active"] == "b" && host["running"] == "b", "{said:#}");
    ensure!(host["release"] == digest(good.path())?.to_string().as_str(), "{said:#}");
    let status = json(machine.operate(&["status"])?)?;
    ensure!(status["measured_boot"]["verdict"] == "as-released", "{:#}", status["measured_boot"]);
    ensure!(status["release"]["digest"] == digest(good.path())?.to_string().as_str(), "{status:#}");
    drop(machine);

    // The power was cut: the machine starts the committed slot, and its guest is verified against the new manifest.
    setup.release = good.path().to_owned();
    let machine = Machine::start(&setup, &place, STARTED)?;
    machine.until_said("started from slot b", Duration::ZERO)?;
    let status = json(machine.operate(&["status"])?)?;
    ensure!(status["upgrade"]["host"]["running"] == "b", "{:#}", status["upgrade"]);
    Ok(())
}
