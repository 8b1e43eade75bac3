//! `redoubt attest`, and what `up` says after it verified a node.

mod fetch;
mod verify;

use crate::output::{Failure, Reply};
use crate::releases::describe;
use attestation::{Measurement, Verified};
use clap::Subcommand;
use host_os::attest::{AttestError, Expectations, Fetched, anchors};
use host_os::config::{ConfigText, virtual_guest};
use release::{ApprovedManifest, Profile};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(crate) enum Attest {
    /// Fetch evidence with a fresh nonce and record it with the TLS key it came over; believes nothing
    Fetch(fetch::Fetch),
    /// Verify recorded evidence against a release
    Verify(verify::Verify),
}

pub(crate) fn run(args: Attest) -> Result<Reply, Failure> {
    match args {
        Attest::Fetch(args) => fetch::run(&args),
        Attest::Verify(args) => verify::run(&args),
    }
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
    let measurements = measurements.iter().map(|entry| Measurement(entry.measurement.0));
    Ok(Expectations::of_guest(measurements, config.host_data(), anchors))
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
