//! `redoubt attest`, and what `up` says after it verified a node.

use crate::node::block_on;
use crate::output::{Failure, Reply};
use crate::releases::{RootArgs, describe, manifest_path};
use attestation::{Evidence, Measurement, Verified};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use host_os::attest::{AttestError, Expectations, Fetched, anchors, fetch, unix_time, verify};
use host_os::config::{ConfigText, virtual_guest};
use release::{ApprovedManifest, Profile};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Attest {
    /// Fetch evidence with a fresh nonce and record it with the TLS key it came over; believes nothing
    Fetch(Fetch),
    /// Verify recorded evidence against a release
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// The node, such as https://127.0.0.1:18443
    #[arg(value_name = "URL")]
    url: String,
    /// Write the record here instead of to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Records of `redoubt attest fetch`
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The release's manifest, or the directory that holds it as manifest.json
    #[arg(long, value_name = "MANIFEST")]
    manifest: PathBuf,
    #[command(flatten)]
    root: RootArgs,
    /// Text of the guest's configuration, whose hash HOST_DATA must be [default: a virtual node's]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Evidence with what it has to be bound to, as a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    evidence: Evidence,
    /// Hexadecimal.
    nonce: String,
    /// SubjectPublicKeyInfo, base64 of DER.
    tls_key: String,
    fetched_unix_s: u64,
}

impl Record {
    fn fetched(self) -> Result<Fetched, String> {
        if self.version != 1 {
            return Err(format!("it has version {}, this program reads version 1", self.version));
        }
        let mut nonce = [0; 32];
        hex::decode_to_slice(&self.nonce, &mut nonce).map_err(|error| format!("nonce: {error}"))?;
        let tls_key = STANDARD.decode(&self.tls_key).map_err(|error| format!("tls_key: {error}"))?;
        Ok(Fetched { evidence: self.evidence, nonce, tls_key })
    }
}

pub(crate) fn run(args: Attest) -> Result<Reply, Failure> {
    match args {
        Attest::Fetch(args) => run_fetch(&args),
        Attest::Verify(args) => run_verify(&args),
    }
}

fn run_fetch(args: &Fetch) -> Result<Reply, Failure> {
    let address = resolve(&args.url)?;
    let fetched =
        block_on(async { fetch(address).await.map_err(|error| Failure::of("no-evidence", &error)) })?;
    let record = Record {
        version: 1,
        evidence: fetched.evidence,
        nonce: hex::encode(fetched.nonce),
        tls_key: STANDARD.encode(&fetched.tls_key),
        fetched_unix_s: unix_time(),
    };
    let json = serde_json::to_value(&record).map_err(|error| Failure::of("record-unwritable", &error))?;
    let Some(path) = &args.out else { return Ok(Reply::good(format!("{json:#}"), json)) };
    std::fs::write(path, format!("{json:#}\n")).map_err(|error| {
        Failure::new("record-unwritable", format!("cannot write {}: {error}", path.display()))
    })?;
    let text = format!("evidence of {address} is in {}; nothing of it is verified yet", path.display());
    Ok(Reply::good(text, json!({ "file": path })))
}

/// The address in `https://HOST[:PORT]`.
fn resolve(url: &str) -> Result<SocketAddr, Failure> {
    let bad = |reason: &str| Failure::new("bad-url", format!("{url}: {reason}; give https://HOST:PORT"));
    let rest =
        url.strip_prefix("https://").ok_or_else(|| bad("evidence is bound to TLS, so this must be https"))?;
    let host = rest.trim_end_matches('/');
    let resolved = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_socket_addrs(),
        _ => (host.trim_matches(['[', ']']), 443).to_socket_addrs(),
    };
    let mut addresses = resolved.map_err(|error| bad(&error.to_string()))?;
    addresses.next().ok_or_else(|| bad("no address"))
}

fn run_verify(args: &Verify) -> Result<Reply, Failure> {
    let path = manifest_path(&args.manifest);
    let manifest = args.root.approve(&path)?;
    let mut expected = expectations(&manifest, args.root.profile.profile())?;
    if let Some(path) = &args.config {
        expected.host_data = Some(config_hash(path)?);
    }
    let mut texts = Vec::new();
    let mut results = Vec::new();
    for path in &args.files {
        let bad = |reason: String| {
            Failure::new("record-refused", format!("{} is no record of evidence: {reason}", path.display()))
        };
        let bytes = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        let age = unix_time().saturating_sub(record.fetched_unix_s);
        let fetched = record.fetched().map_err(bad)?;
        let verified =
            verify(&fetched, &expected, unix_time()).map_err(AttestError::Refused).map_err(refused)?;
        let words = words(&manifest, &verified, &fetched);
        texts.push(format!("{} (recorded {age} s ago):\n  {}", path.display(), words.join("\n  ")));
        results.push(json!({ "file": path, "verified": words, "proof": proof(&verified) }));
    }
    Ok(Reply::good(texts.join("\n"), Value::Array(results)))
}

fn config_hash(path: &std::path::Path) -> Result<[u8; 32], Failure> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::new("config-unreadable", format!("{}: {error}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(&error))?;
    Ok(ConfigText::from_text(text).host_data())
}

/// What evidence must say of a node that runs this release.
pub(crate) fn expectations(manifest: &ApprovedManifest, profile: Profile) -> Result<Expectations, Failure> {
    let anchors = anchors(profile).ok_or_else(|| {
        Failure::new(
            "no-trust-anchors",
            format!("this build knows no root of trust for {profile} nodes; use a build that does"),
        )
    })?;
    let config =
        ConfigText::new(&virtual_guest()).map_err(|error| Failure::of("config-unwritable", &error))?;
    let measurements = &manifest.manifest().guest.measurements;
    Ok(Expectations {
        measurements: measurements.iter().map(|entry| Measurement(entry.measurement.0)).collect(),
        host_data: Some(config.host_data()),
        anchors,
    })
}

/// A refusal, named by its first failure.
pub(crate) fn refused(error: AttestError) -> Failure {
    let code = match &error {
        AttestError::Fetch(_) => "no-evidence",
        AttestError::Refused(refusal) => refusal.codes().next().unwrap_or("evidence-refused"),
        AttestError::Pin(_) => "tls-key-unusable",
    };
    Failure::of(code, &error)
}

/// What was verified, in words.
pub(crate) fn words(manifest: &ApprovedManifest, verified: &Verified, fetched: &Fetched) -> Vec<String> {
    let report = verified.report();
    let measurement = report.measurement();
    let vcpus =
        manifest.manifest().guest.measurements.iter().find(|entry| entry.measurement.0 == measurement.0);
    let vcpus = vcpus.map_or_else(String::new, |entry| format!(" for {} vCPUs", entry.vcpus));
    let chip = hex::encode(&report.chip_id()[..16]);
    let signer = match verified.kind() {
        attestation::EvidenceKind::Snp => format!("the AMD chip {chip}…"),
        attestation::EvidenceKind::SimSnp => {
            format!(
                "the SIMULATED chip {chip}… under the development root (a rehearsal: no hardware protects this guest)"
            )
        }
    };
    vec![
        describe(manifest),
        format!(
            "launch measurement {measurement} is the manifest's{vcpus}: the guest is exactly these files and this command line"
        ),
        format!(
            "report (version {}) signed by {signer}, VMPL {}, debugging off",
            report.version(),
            report.vmpl()
        ),
        format!("HOST_DATA {} is the hash of the guest's configuration", hex::encode(report.host_data())),
        format!(
            "REPORT_DATA binds the fresh nonce {}… and the TLS key of the connection that was used",
            hex::encode(&fetched.nonce[..8])
        ),
    ]
}

/// The same for programs.
pub(crate) fn proof(verified: &Verified) -> Value {
    let report = verified.report();
    json!({
        "kind": verified.kind(),
        "measurement": report.measurement(),
        "host_data": hex::encode(report.host_data()),
        "report_data": hex::encode(report.report_data()),
        "chip_id": hex::encode(report.chip_id()),
        "report_version": report.version(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_addresses_are_taken() {
        assert_eq!(resolve("https://127.0.0.1:18443").unwrap(), "127.0.0.1:18443".parse().unwrap());
        assert_eq!(resolve("https://127.0.0.1/").unwrap(), "127.0.0.1:443".parse().unwrap());
        assert_eq!(resolve("https://[::1]:5").unwrap(), "[::1]:5".parse().unwrap());
        assert_eq!(resolve("https://[::1]").unwrap(), "[::1]:443".parse().unwrap());
        assert_eq!(resolve("http://127.0.0.1:1").unwrap_err().code, "bad-url");
    }
}
