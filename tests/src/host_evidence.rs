//! Evidence of a host that runs: what its TPM says of its start is the release's, and nothing that was changed, left out,
//! replayed or meant for another release is taken for it.

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use std::{fs, ops::Range, path::Path};

use crate::{Setup, signed_by_development_keys, text};

/// A verifier, and where it keeps what it was given.
struct Verifier<'a> {
    setup: &'a Setup,
    folder: &'a Path,
}

/// `redoubt attest host` in all the ways in which it must end, for the host of this operators' interface that was started
/// from the release.
pub fn judge(setup: &Setup, node: &str, host_key: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let verifier = Verifier { setup, folder: folder.path() };
    let release = setup.release.to_str().context("a path")?;
    let name = |name: &str| folder.path().join(name).display().to_string();
    let (first, second) = (name("first"), name("second"));
    let ask = ["--node", node, "--node-key", host_key, "--manifest", release];

    // Nobody knows this TPM yet.
    verifier.refused(&ask, "tpm-unknown")?;
    let met = verifier.accepted(&[&ask[..], &["--any-tpm", "--record", &first]].concat())?;
    ensure!(met["tpm"]["believed"] == "any", "{met:#}");
    // From now on it is known, and another one is not this one.
    let tpm = met["tpm"]["endorsement_key"].as_str().context("no endorsement key")?;
    let known = ["--manifest", release, "--ek", tpm];
    let met = verifier.accepted(&[&ask[..], &known[2..], &["--record", &second]].concat())?;
    ensure!(met["tpm"]["believed"] == "pinned", "{met:#}");
    verifier.refused(&[&ask[..], &["--ek", &"0".repeat(64)]].concat(), "tpm-unknown")?;
    let stranger = ["--node", node, "--node-key", &"0".repeat(64), "--any-tpm"];
    verifier.refused(&stranger, "node-key-differs")?;

    let (first, second) = (record(&first)?, record(&second)?);
    verifier.judged(&second, &known, None)?;

    // Statements that are not for this verifier, this time, this connection, or these values.
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut record = second.clone();
        change(&mut record);
        record
    };
    let zeros = json!("00".repeat(32));
    let refusals = [
        ("quote-nonce-differs", changed(&|record| record["request"]["nonce"] = zeros.clone())),
        ("quote-nonce-differs", changed(&|record| record["tls_key_sha256"] = zeros.clone())),
        ("tpm-keys-apart", changed(&|record| record["evidence"] = first["evidence"].clone())),
        (
            // The TPM is asked to open the new secret, but the quote is the old one.
            "quote-nonce-differs",
            changed(&|record| {
                record["evidence"] = first["evidence"].clone();
                record["evidence"]["activated"] = record["secret"].clone();
            }),
        ),
        ("quote-values-differ", changed(&|record| record["evidence"]["pcrs"]["11"] = zeros.clone())),
        (
            "quote-signature-wrong",
            changed(&|record| flip(&mut record["evidence"]["quote"], |bytes| bytes.len() - 1)),
        ),
    ];
    for (code, record) in refusals {
        verifier.judged(&record, &known, Some(code))?;
    }

    // Logs that are not what was measured.
    let log = BASE64_STANDARD.decode(second["evidence"]["event_log"].as_str().context("no log")?)?;
    let events = events(&log).context("the log cannot be read")?;
    for pcr in [4, 7, 11] {
        let (number, event) =
            events.iter().enumerate().rfind(|(_, event)| event.pcr == pcr).context("nothing measured")?;
        let mut other = log.clone();
        other[event.sha256.start] ^= 1;
        let found = verifier.differences(&with_log(&second, &other), &known)?;
        ensure!(holds(&found, "log-differs", pcr, None), "changed event of PCR {pcr}: {found:#?}");
        // The log's first event describes it, and they are counted from 1 on behind it.
        let named = found.iter().any(|found| found["pcr"] == pcr && found["event"] == number + 1);
        ensure!(named, "event {} of PCR {pcr} is not named: {found:#?}", number + 1);
        other.drain(event.all.clone());
        let found = verifier.differences(&with_log(&second, &other), &known)?;
        ensure!(holds(&found, "log-differs", pcr, None), "dropped event of PCR {pcr}: {found:#?}");
    }
    verifier.judged(&with_log(&second, &log[..log.len() - 1]), &known, Some("log-malformed"))?;

    // Other releases, rightly signed.
    let other = folder.path().join("release");
    fs::create_dir(&other)?;
    let manifest = other.to_str().context("a path")?;
    let sign = |change: &dyn Fn(&mut release::HostImages)| {
        fs::copy(setup.release.join("manifest.json"), other.join("manifest.json"))?;
        signed_by_development_keys(&other, 2, |manifest| manifest.host.iter_mut().for_each(change))?;
        verifier.differences(&second, &["--manifest", manifest, "--ek", tpm])
    };
    let found = sign(&|host| host.uki_authenticode.0[0] ^= 1)?;
    ensure!(found.len() == 1 && holds(&found, "image-differs", 4, None), "{found:#?}");
    let found = sign(&|host| {
        let sections = host.measured.iter_mut().flat_map(|measured| &mut measured.sections);
        sections.filter(|section| section.name == ".cmdline").for_each(|section| section.sha256.0[0] ^= 1);
    })?;
    ensure!(found.len() == 1 && holds(&found, "section-differs", 11, Some(".cmdline")), "{found:#?}");
    let found =
        sign(&|host| host.measured.iter_mut().for_each(|measured| measured.certificates[0].0[0] ^= 1))?;
    ensure!(holds(&found, "authority-unknown", 7, None), "{found:#?}");
    Ok(())
}

fn record(file: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(file)?)?)
}

/// Changes one byte of a value in base64.
fn flip(value: &mut Value, at: impl Fn(&[u8]) -> usize) {
    let mut bytes = BASE64_STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
    let at = at(&bytes);
    bytes[at] ^= 1;
    *value = BASE64_STANDARD.encode(bytes).into();
}

fn with_log(record: &Value, log: &[u8]) -> Value {
    let mut record = record.clone();
    record["evidence"]["event_log"] = BASE64_STANDARD.encode(log).into();
    record
}

fn holds(differences: &[Value], code: &str, pcr: u32, what: Option<&str>) -> bool {
    differences.iter().any(|found| {
        found["code"] == code
            && found["pcr"] == pcr
            && what.is_none_or(|part| found["what"].as_str().is_some_and(|what| what.contains(part)))
    })
}

impl Verifier<'_> {
    fn ask(&self, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
        let output = self.setup.redoubt(["--json", "attest", "host"].iter().chain(arguments))?;
        let answer = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
        Ok((output.status.code(), answer))
    }

    fn accepted(&self, arguments: &[&str]) -> Result<Value> {
        let (code, answer) = self.ask(arguments)?;
        ensure!(code == Some(0) && answer["accepted"] == true, "{arguments:?}: {answer:#}");
        Ok(answer)
    }

    fn refused(&self, arguments: &[&str], error: &str) -> Result<()> {
        let (code, answer) = self.ask(arguments)?;
        ensure!(code == Some(1) && answer["error"]["code"] == error, "{error}, not {answer:#}");
        Ok(())
    }

    /// Asks about a record instead of a host.
    fn of_record(&self, record: &Value, demands: &[&str]) -> Result<(Option<i32>, Value)> {
        let file = self.folder.join("record");
        fs::write(&file, record.to_string())?;
        self.ask(&[&["--from", file.to_str().context("a path")?], demands].concat())
    }

    /// Accepted, or refused with this name.
    fn judged(&self, record: &Value, demands: &[&str], error: Option<&str>) -> Result<()> {
        let (code, answer) = self.of_record(record, demands)?;
        let as_wanted = match error {
            Some(error) => code == Some(1) && answer["error"]["code"] == error,
            None => code == Some(0) && answer["accepted"] == true,
        };
        ensure!(as_wanted, "{error:?}, not {answer:#}");
        Ok(())
    }

    /// Authentic, but not of the release; the differences.
    fn differences(&self, record: &Value, demands: &[&str]) -> Result<Vec<Value>> {
        let (code, answer) = self.of_record(record, demands)?;
        ensure!(code == Some(1) && answer["accepted"] == false, "{answer:#}");
        answer["differences"].as_array().cloned().with_context(|| format!("no differences: {answer:#}"))
    }
}

/// Where one event is in a log.
struct Event {
    pcr: u32,
    all: Range<usize>,
    sha256: Range<usize>,
}

/// The events behind the first one (TCG PC Client Platform Firmware Profile, 10.2). Read here once more, so that it is not the
/// verifier's own reader that says what is to be changed.
fn events(log: &[u8]) -> Option<Vec<Event>> {
    let number = |at: usize| Some(u32::from_le_bytes(log.get(at..at + 4)?.try_into().ok()?));
    let mut at = 32 + number(28)? as usize;
    let mut events = Vec::new();
    while at < log.len() {
        let (start, pcr, digests) = (at, number(at)?, number(at + 8)?);
        at += 12;
        let mut sha256 = None;
        for _ in 0..digests {
            let size = match u16::from_le_bytes(log.get(at..at + 2)?.try_into().ok()?) {
                0x04 => 20,
                0x0b => {
                    sha256 = Some(at + 2..at + 34);
                    32
                }
                0x0c => 48,
                0x0d => 64,
                _ => return None,
            };
            at += 2 + size;
        }
        at += 4 + number(at)? as usize;
        events.push(Event { pcr, all: start..at, sha256: sha256? });
    }
    Some(events)
}
