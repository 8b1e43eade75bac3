//! The must-fail suite of the launch: each attack is refused by its own name, before anything runs.

use anyhow::{Context, Result, ensure};
use release::SigningKey;
use std::path::Path;
use tests::{Node, Setup, signed_by, signed_by_development_keys, text};

/// Damages a copy of the release, tries to boot it, and expects this error.
fn refused(code: &str, damage: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let release = setup.copy_of_release()?;
    damage(release.path())?;
    let node = Node::new(&setup)?;
    let output = node.up_with(release.path(), &[])?;
    ensure!(output.status.code() == Some(1), "exit code {:?}: {}", output.status.code(), text(&output));
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {}", text(&output)))?;
    ensure!(answer["error"]["code"] == code, "expected {code}, got {answer:#}");
    Ok(())
}

fn flip_a_byte(file: &Path) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(std::fs::write(file, bytes)?)
}

#[test]
fn a_tampered_kernel() -> Result<()> {
    refused("file-wrong-hash", |release| flip_a_byte(&release.join("vmlinuz")))
}

#[test]
fn a_tampered_initrd() -> Result<()> {
    refused("file-wrong-hash", |release| flip_a_byte(&release.join("initrd.zst")))
}

#[test]
fn a_tampered_firmware() -> Result<()> {
    refused("file-wrong-hash", |release| flip_a_byte(&release.join("firmware.bin")))
}

#[test]
fn a_longer_kernel() -> Result<()> {
    refused("file-wrong-size", |release| {
        let file = release.join("vmlinuz");
        let mut bytes = std::fs::read(&file)?;
        bytes.push(0);
        Ok(std::fs::write(file, bytes)?)
    })
}

#[test]
fn a_manifest_changed_after_it_was_signed() -> Result<()> {
    refused("manifest-bad-signature", |release| {
        let path = release.join("manifest.json");
        let text = std::fs::read_to_string(&path)?;
        let changed = text.replace("\"security_epoch\":1", "\"security_epoch\":2");
        ensure!(changed != text, "the manifest has no security epoch 1");
        Ok(std::fs::write(path, changed)?)
    })
}

#[test]
fn a_manifest_with_one_signature_only() -> Result<()> {
    refused("manifest-threshold-not-met", |release| signed_by_development_keys(release, 1, |_| {}))
}

#[test]
fn a_manifest_signed_by_an_unknown_key() -> Result<()> {
    refused("manifest-unknown-key", |release_dir| {
        let [first, _, _] = release::development::signing_keys()?;
        signed_by(release_dir, &[first, SigningKey::from_bytes(&[7; 32])], |_| {})
    })
}

#[test]
fn a_manifest_that_promises_another_measurement() -> Result<()> {
    refused("measurement-differs", |release| {
        signed_by_development_keys(release, 2, |manifest| {
            for entry in &mut manifest.guest.measurements {
                entry.measurement.0[0] ^= 1;
            }
        })
    })
}

#[test]
fn a_changed_command_line_with_the_old_measurement() -> Result<()> {
    refused("measurement-differs", |release| {
        signed_by_development_keys(release, 2, |manifest| manifest.guest.command_line += " init=/bin/sh")
    })
}

#[test]
fn a_release_of_another_profile() -> Result<()> {
    refused("profile-mismatch", |dir| {
        signed_by_development_keys(dir, 2, |manifest| manifest.profile = release::Profile::Production)
    })
}
