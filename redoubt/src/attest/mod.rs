//! `redoubt attest`, and what `up` says after it verified a node.

mod connect;
mod demands;
mod explain;
mod fetch;
mod host;
mod inspect;
mod measure;
mod source;
mod verify;

use crate::output::{Failure, Reply};
use crate::releases::describe;
use attestation::handshake::{HandshakeError, Presented};
use attestation::{Failure as Reason, Measurement, Refusal, TrustAnchors, Verified};
use clap::Subcommand;
use host_os::attest::{AttestError, Expectations};
use host_os::bundle::id_block_policy;
use host_os::config::{ConfigText, virtual_guest};
use release::{ApprovedManifest, Profile};
use serde_json::{Value, json};
use source::{Piece, date};

#[derive(Debug, Subcommand)]
pub(crate) enum Attest {
    /// Fetch evidence with a fresh nonce and record it with the TLS key it came over
    Fetch(fetch::Fetch),
    /// Say what a report states, field by field, and whether it is authentic (0) or not (1); dates do not count
    Inspect(inspect::Inspect),
    /// Hold recorded evidence or a bare report against a policy or a release: accepted (0) or refused (1)
    Verify(verify::Verify),
    /// Attest a node in the TLS handshake, before anything is sent
    Connect(connect::Connect),
    /// Compute the launch measurement of given files, or of a release
    Measure(Box<measure::Measure>),
    Host(Box<host::Host>),
    /// Search what was launched when a report's measurement is not the expected one: found (0) or not (1)
    Explain(explain::Explain),
}

pub(crate) fn run(args: Attest) -> Result<Reply, Failure> {
    match args {
        Attest::Fetch(args) => fetch::run(&args),
        Attest::Inspect(args) => inspect::run(&args),
        Attest::Verify(args) => verify::run(&args),
        Attest::Connect(args) => connect::run(&args),
        Attest::Measure(args) => measure::run(&args),
        Attest::Host(args) => host::run(&args),
        Attest::Explain(args) => explain::run(&args),
    }
}

/// The roots that are believed for nodes of this kind.
pub(crate) fn trust_anchors(profile: Profile) -> Result<TrustAnchors, Failure> {
    host_os::attest::anchors(profile).ok_or_else(|| {
        let message = format!("this build knows no root of trust for {profile} nodes; use a build that does");
        Failure::new("no-trust-anchors", message)
    })
}

/// What evidence must say of a node that runs this release.
pub(crate) fn expectations(
    manifest: &ApprovedManifest,
    anchors: TrustAnchors,
) -> Result<Expectations, Failure> {
    let config =
        ConfigText::new(&virtual_guest()).map_err(|error| Failure::of("config-unwritable", &error))?;
    let measurements = &manifest.manifest().guest.measurements;
    let measurements = measurements.iter().map(|entry| Measurement(entry.measurement.0));
    let mut expected = Expectations::of_guest(measurements, config.host_data(), anchors);
    expected.policy.id_block = id_block_policy(manifest.manifest());
    Ok(expected)
}

/// The verdict on the evidence in the certificate of a record's connection, at the time of that connection: with the
/// time when the evidence was issued, or nothing where there is none to judge.
fn handshake<T>(
    piece: &Piece,
    judge: impl FnOnce(&Presented, u64) -> Result<T, Refusal>,
) -> Result<Option<(u64, T)>, Vec<Reason>> {
    let (Some(record), Some(fetched)) = (&piece.record, piece.fetched_unix_s) else { return Ok(None) };
    let refused = |refusal: Refusal| refusal.failures().to_vec();
    let presented = match Presented::from_certificate(&record.certificate) {
        // The nonce proves the key without it.
        Err(HandshakeError::Count(0)) => return Ok(None),
        presented => presented.map_err(|error| refused(error.into()))?,
    };
    let value = judge(&presented, fetched).map_err(refused)?;
    if presented.key != record.tls_key {
        return Err(vec![Reason {
            code: "report-data-mismatch",
            expected: "one key in the certificate and in the record".to_owned(),
            found: "two".to_owned(),
            fix: "the record was altered: fetch the evidence again",
        }]);
    }
    Ok(Some((presented.issued_unix_s, value)))
}

/// What such a verdict means, for a record.
fn handshake_words<T>(shown: Option<&(u64, T)>, is_record: bool) -> Option<String> {
    is_record.then(|| match shown {
        Some((issued, _)) => {
            format!("the TLS certificate carries evidence for the same key, issued {}", date(*issued))
        }
        None => "the TLS certificate carries no evidence: clients cannot attest this node in the handshake"
            .to_owned(),
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

/// What was verified, in words: for which release, and for which nonce, where there is one.
pub(crate) fn words(
    manifest: Option<&ApprovedManifest>,
    verified: &Verified,
    nonce: Option<&[u8; 32]>,
) -> Vec<String> {
    let report = verified.report();
    let measurement = report.measurement();
    let chip = hex::encode(&report.chip_id()[..16]);
    let signer = match verified.kind() {
        attestation::EvidenceKind::Snp => format!("the AMD chip {chip}…"),
        attestation::EvidenceKind::SimSnp => {
            format!(
                "the SIMULATED chip {chip}… under the development root (a rehearsal: no hardware protects this guest)"
            )
        }
    };
    let mut words = Vec::new();
    if let Some(manifest) = manifest {
        let entries = &manifest.manifest().guest.measurements;
        let vcpus = entries.iter().find(|entry| entry.measurement.0 == measurement.0);
        let vcpus = vcpus.map_or_else(String::new, |entry| format!(" for {} vCPUs", entry.vcpus));
        words.push(describe(manifest));
        words.push(format!(
            "launch measurement {measurement} is the manifest's{vcpus}: the guest is exactly these files and this command line"
        ));
        words.push(format!(
            "HOST_DATA {} is the hash of the guest's configuration",
            hex::encode(report.host_data())
        ));
    } else {
        words.push(format!("launch measurement {measurement} and everything else is as the policy demands"));
    }
    words.push(format!("report (version {}) signed by {signer}, VMPL {}", report.version(), report.vmpl()));
    if let Some(nonce) = nonce {
        words.push(format!(
            "REPORT_DATA binds the fresh nonce {}… and the TLS key of the connection that was used",
            hex::encode(&nonce[..8])
        ));
    }
    words
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
