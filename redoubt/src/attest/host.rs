//! `redoubt attest host`: whether a machine was started from a release, by its TPM.

use super::fetch::resolve;
use super::source::{date, read};
use crate::node::block_on;
use crate::output::{Failure, Reply};
use crate::releases::{RootArgs, describe, manifest_path};
use clap::Args;
use host_os::cli::ProfileArg;
use host_os::tpm::{attest::expected, client::fetch};
use measured_boot::{
    evidence::{Believed, MAX_DOCUMENT, Record, Refusal, Trust, Verdict},
    expected::{Difference, Expected, pcr11},
};
use release::ApprovedManifest;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Attests the machine itself, not its guest: fetches its TPM's quote for a fresh nonce and the log of its start, replays the
/// log, and names each difference from the release.
///
/// The quote is bound to the TLS key of the connection, and a challenge shows that the key that signs it is in the TPM with
/// that endorsement key. Which TPM that is, somebody has to say: give its fingerprint, or the certificates of its maker.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0  the TPM's statement is authentic, and the machine was started from the release (without --manifest: is authentic)
  1  refused, or it differs from the release; each difference is named
  2  the command line was wrong, or a file that it names cannot be read")]
pub(crate) struct Host {
    /// The operators' port of the host, such as https://192.0.2.7:18444
    #[arg(value_name = "URL", required_unless_present_any = ["node", "from"])]
    url: Option<String>,
    /// The same as HOST:PORT
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "url")]
    node: Option<String>,
    /// Judge a record that --record wrote, instead of asking a host
    #[arg(long, value_name = "RECORD", conflicts_with_all = ["url", "node", "record"])]
    from: Option<PathBuf>,
    /// Write what was fetched into a file, to be judged again later
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// The release that the machine should have been started from: its manifest, or the directory that holds it
    #[arg(long, value_name = "MANIFEST")]
    manifest: Option<PathBuf>,
    /// Root: the keys that may sign releases [default in builds for virtual nodes: the development root]
    #[arg(long, value_name = "FILE", requires = "manifest")]
    root: Option<PathBuf>,
    /// Kind of node that the release is for
    #[arg(long, value_enum, default_value = "virtual", requires = "manifest")]
    profile: ProfileArg,
    /// Fingerprint of the endorsement key of a TPM that you know: SHA-256, hexadecimal; repeatable
    #[arg(long, value_name = "SHA256", value_parser = crate::operator::hash)]
    ek: Vec<[u8; 32]>,
    /// Certificate of a TPM's maker, DER: its root, and those between; repeatable
    #[arg(long, value_name = "FILE")]
    ek_ca: Vec<PathBuf>,
    /// Believe any TPM. A program can play one: this proves nothing of the machine
    #[arg(long)]
    any_tpm: bool,
    /// SHA-256 of the host's TLS key, if you know it
    #[arg(long, value_name = "SHA256", value_parser = crate::operator::hash, conflicts_with = "from")]
    node_key: Option<[u8; 32]>,
    /// Also list the events of the log
    #[arg(long)]
    log: bool,
}

fn refused(refusal: &Refusal) -> Failure {
    Failure::of(refusal.code(), refusal)
}

pub(super) fn run(args: &Host) -> Result<Reply, Failure> {
    let makers = args.ek_ca.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let trust = Trust { endorsement_keys: args.ek.clone(), makers, any: args.any_tpm };
    let release = args.manifest.as_deref().map(|path| args.release(&manifest_path(path))).transpose()?;
    let record = args.obtain(&trust)?;
    let nothing = Expected::default();
    let expected = release.as_ref().map_or(&nothing, |(_, expected)| expected);
    let mut verdict = record.judge(&trust, expected).map_err(|refusal| refused(&refusal))?;
    if release.is_none() {
        // Only what needs no release to compare with.
        verdict.differences.retain(|difference| difference.code == "log-differs");
    }
    Ok(Reply {
        text: text(&record, &verdict, release.as_ref(), args.log),
        json: json(&record, &verdict, release.as_ref(), args.log),
        good: verdict.differences.is_empty(),
    })
}

impl Host {
    fn release(&self, path: &std::path::Path) -> Result<(ApprovedManifest, Expected), Failure> {
        if cfg!(not(feature = "virtual")) && self.root.is_none() {
            let message = "this build knows no keys that may sign releases; give --root";
            return Err(Failure::usage("no-root", message));
        }
        let manifest = RootArgs { root: self.root.clone(), profile: self.profile }.approve(path)?;
        let host = manifest.manifest().host.as_ref();
        let expected = host.and_then(expected).ok_or_else(|| {
            let message = format!(
                "{} does not say what is measured of a host; build the release whole, with a present 'redoubt image build'",
                path.display()
            );
            Failure::new("manifest-without-measurements", message)
        })?;
        Ok((manifest, expected))
    }

    fn obtain(&self, trust: &Trust) -> Result<Record, Failure> {
        if let Some(path) = &self.from {
            let bytes = read(path)?;
            let refused = |why: String| {
                let message =
                    format!("{} is no record: {why}; give a file that --record wrote", path.display());
                Failure::new("record-refused", message)
            };
            if bytes.len() > MAX_DOCUMENT {
                return Err(refused(format!("it has more than {MAX_DOCUMENT} bytes")));
            }
            return serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()));
        }
        let node = match (&self.node, &self.url) {
            (Some(node), _) => node.clone(),
            (None, url) => resolve(url.as_deref().unwrap_or_default())?.to_string(),
        };
        let record = block_on(async {
            fetch(&node, self.node_key, trust).await.map_err(|error| Failure::of(error.code(), &error))
        })?;
        if let Some(path) = &self.record {
            let unwritable = |why: String| {
                Failure::new("record-unwritable", format!("cannot write {}: {why}", path.display()))
            };
            let bytes = serde_json::to_vec_pretty(&record).map_err(|error| unwritable(error.to_string()))?;
            std::fs::write(path, bytes).map_err(|error| unwritable(error.to_string()))?;
        }
        Ok(record)
    }
}

type Release = (ApprovedManifest, Expected);

fn text(record: &Record, verdict: &Verdict, release: Option<&Release>, log: bool) -> String {
    let who = match &verdict.believed {
        Believed::Pinned => "the one that was given".to_owned(),
        Believed::Certified(maker) => format!("certified by {maker}"),
        Believed::Any => "ANY, as you asked: a program could play it".to_owned(),
    };
    let mut lines = vec![match (release, verdict.differences.len()) {
        (_, 0) if release.is_some() => "accepted: the machine was started from the release".to_owned(),
        (None, 0) => "authentic, and NOT compared with a release: give --manifest".to_owned(),
        (_, 1) => "refused: there is a difference".to_owned(),
        (_, count) => format!("refused: there are {count} differences"),
    }];
    lines.extend(verdict.differences.iter().map(|difference| format!("  {difference}")));
    if let Some((manifest, expected)) = release {
        lines.push(format!("  {}", describe(manifest)));
        lines.push(format!("  PCR 11 of the release: {}", hex::encode(pcr11(&expected.sections))));
    }
    lines.push(format!("  TPM: {who}; endorsement key {}", hex::encode(verdict.endorsement_key)));
    lines.push(format!(
        "  quote of {} for a fresh nonce and the TLS key {}; the machine's start number {}",
        date(record.fetched_unix_s),
        hex::encode(record.tls_key_sha256.0),
        verdict.clock.resets
    ));
    lines.extend(verdict.pcrs.iter().map(|(pcr, value)| format!("  PCR {pcr:<2} {}", hex::encode(value))));
    if log {
        let events = verdict.log.events.iter();
        lines.extend(events.map(|event| {
            format!(
                "  event {:<3} PCR {:<3} {} {}",
                event.number,
                event.pcr,
                hex::encode(event.digest),
                event.name()
            )
        }));
    }
    lines.join("\n")
}

fn json(record: &Record, verdict: &Verdict, release: Option<&Release>, log: bool) -> Value {
    let difference = |difference: &Difference| {
        json!({
            "code": difference.code, "pcr": difference.pcr, "event": difference.event, "what": difference.what,
            "expected": difference.expected, "found": difference.found, "fix": difference.fix,
        })
    };
    let pcrs: serde_json::Map<String, Value> =
        verdict.pcrs.iter().map(|(pcr, value)| (pcr.to_string(), json!(hex::encode(value)))).collect();
    let mut json = json!({
        "authentic": true,
        "compared": release.is_some(),
        "accepted": release.is_some() && verdict.differences.is_empty(),
        "differences": verdict.differences.iter().map(difference).collect::<Vec<_>>(),
        "tpm": {
            "believed": verdict.believed,
            "endorsement_key": hex::encode(verdict.endorsement_key),
            "attestation_key": hex::encode(verdict.attestation_key),
            "firmware": verdict.clock.firmware,
            "resets": verdict.clock.resets,
        },
        "tls_key_sha256": hex::encode(record.tls_key_sha256.0),
        "fetched_unix_s": record.fetched_unix_s,
        "pcrs": pcrs,
    });
    if let Some((manifest, expected)) = release {
        json["release"] = json!({
            "version": manifest.manifest().version,
            "digest": manifest.digest().to_string(),
            "pcr11": hex::encode(pcr11(&expected.sections)),
        });
    }
    if log {
        let events = verdict.log.events.iter().map(|event| {
            json!({
                "number": event.number, "pcr": event.pcr, "kind": event.name(),
                "digest": hex::encode(event.digest), "data": hex::encode(&event.data),
            })
        });
        json["events"] = events.collect();
    }
    json
}
