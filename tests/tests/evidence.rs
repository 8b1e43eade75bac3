//! The must-fail suite of attestation on a live node: true evidence is accepted, and each change to it, or to
//! what is expected of it, is refused by its own name.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{ffi::OsStr, path::Path};
use tests::{Node, Setup, json, signed_by_development_keys, text};

/// Verdict of `redoubt attest verify` on a record: `None` for accepted, else the whole refusal.
fn refusal(setup: &Setup, record: &Value, release: &Path, more: &[&OsStr]) -> Result<Option<String>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("record.json");
    std::fs::write(&file, serde_json::to_vec(record)?)?;
    let mut arguments: Vec<&OsStr> = ["attest", "verify", "--json", "--manifest"].map(OsStr::new).into();
    arguments.extend([release.as_os_str(), file.as_os_str()]);
    arguments.extend(more);
    let output = setup.redoubt(arguments)?;
    match output.status.code() {
        Some(0) => Ok(None),
        Some(1) => Ok(Some(text(&output))),
        code => anyhow::bail!("exit code {code:?}: {}", text(&output)),
    }
}

/// Replaces a string within a base64 field so that one bit of the decoded bytes differs.
fn flip(record: &mut Value, pointer: &str, at: usize) -> Result<()> {
    let field = record.pointer_mut(pointer).with_context(|| format!("no {pointer} in the record"))?;
    let mut characters = field.as_str().context("no text")?.to_owned().into_bytes();
    // Another letter of the alphabet; the first character of a group of four holds six bits of one byte.
    let position = at / 3 * 4;
    characters[position] = if characters[position] == b'A' { b'B' } else { b'A' };
    *field = String::from_utf8(characters)?.into();
    Ok(())
}

#[test]
fn true_evidence_is_accepted_and_every_change_is_named() -> Result<()> {
    let Some(setup) = Setup::find() else { return Ok(()) };
    let node = Node::new(&setup)?;
    let up = node.up()?;
    let url = up["urls"]["https"].as_str().context("no HTTPS address")?;
    let fetch = || json(setup.redoubt(["attest", "fetch", "--json", url])?);
    let (record, later) = (fetch()?, fetch()?);
    let release = setup.release.as_path();
    ensure!(refusal(&setup, &record, release, &[])?.is_none(), "true evidence is refused");
    ensure!(record["nonce"] != later["nonce"], "the nonce is not fresh");

    let expect = |what: &str, code: &str, record: &Value, release: &Path, more: &[&OsStr]| -> Result<()> {
        let refusal =
            refusal(&setup, record, release, more)?.with_context(|| format!("{what} is accepted"))?;
        ensure!(refusal.contains(code), "{what}: expected {code}, got {refusal}");
        Ok(())
    };
    let changed = |what: &str, code: &str, change: &dyn Fn(&mut Value) -> Result<()>| -> Result<()> {
        let mut copy = record.clone();
        change(&mut copy)?;
        expect(what, code, &copy, release, &[])
    };

    changed("old evidence for a new nonce", "report-data-mismatch", &|r| {
        r["nonce"] = later["nonce"].clone();
        Ok(())
    })?;
    changed("evidence over another TLS key", "report-data-mismatch", &|r| flip(r, "/tls_key", 60))?;
    // Offsets in the report: POLICY 0x08, REPORT_DATA 0x50, MEASUREMENT 0x90, R 0x2a0 (AMD 56860, table "ATTESTATION_REPORT").
    changed("another measurement in the report", "signature-invalid", &|r| {
        flip(r, "/evidence/report", 0x90)
    })?;
    changed("other report data", "signature-invalid", &|r| flip(r, "/evidence/report", 0x51))?;
    changed("another policy", "signature-invalid", &|r| flip(r, "/evidence/report", 0x9))?;
    changed("another signature", "signature-invalid", &|r| flip(r, "/evidence/report", 0x2a0))?;
    changed("simulated evidence that calls itself real", "kind-not-allowed", &|r| {
        r["evidence"]["kind"] = "snp".into();
        Ok(())
    })?;
    changed("another root", "unknown-root", &|r| {
        r["evidence"]["certificates"]["ark"] = r["evidence"]["certificates"]["ask"].clone();
        Ok(())
    })?;
    changed("another chip's certificate", "certificate", &|r| flip(r, "/evidence/certificates/vek", 300))?;

    let other = setup.copy_of_release()?;
    signed_by_development_keys(other.path(), 2, |manifest| {
        for entry in &mut manifest.guest.measurements {
            entry.measurement.0[0] ^= 1;
        }
    })?;
    expect("a guest of another release", "measurement-not-allowed", &record, other.path(), &[])?;

    let config = other.path().join("config.json");
    std::fs::write(&config, "{}")?;
    let more = [OsStr::new("--config"), config.as_os_str()];
    expect("a guest with another configuration", "host-data-mismatch", &record, release, &more)?;
    Ok(())
}
