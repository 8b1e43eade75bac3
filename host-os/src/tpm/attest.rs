//! What a verifier gets of the host: keys, then a quote with the log that leads to it.

use super::{Tpm, TpmError};
use measured_boot::{
    QUOTED,
    evidence::{Bytes, Evidence, Hex, Keys, Request, qualifying},
    expected::{Expected, Section, compare},
    log::{EventLog, MAX_LOG},
};
use release::HostImages;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read},
    path::PathBuf,
};

/// The log of firmware and stub; the file system is securityfs.
pub const EVENT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// The host cannot give evidence.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The kernel has no log.
    #[error("the event log {path} cannot be read: {source}; start the machine by UEFI, with a TPM 2.0")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A verifier's fault.
    #[error("the request has version {0}, only 1 is known; use the redoubt command of this release")]
    Version(u32),
}

impl AttestError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Tpm(TpmError::Absent | TpmError::NotBuilt) => "tpm-missing",
            Self::Tpm(_) => "tpm-failed",
            Self::Log { .. } => "event-log-missing",
            Self::Version(_) => "request-version",
        }
    }
}

/// The host's keys.
pub fn keys(tpm: &mut dyn Tpm) -> Result<Keys, TpmError> {
    let keys = tpm.keys()?;
    Ok(Keys {
        version: 1,
        endorsement_key: Bytes(keys.endorsement),
        endorsement_certificate: keys.certificate.map(Bytes),
        attestation_key: Bytes(keys.attestation),
    })
}

/// Answers a request that came over a connection with this TLS key. `log` reads the event log.
pub fn evidence(
    tpm: &mut dyn Tpm,
    request: &Request,
    tls_key_sha256: &[u8; 32],
    log: impl FnOnce() -> Result<Vec<u8>, AttestError>,
) -> Result<Evidence, AttestError> {
    if request.version != 1 {
        return Err(AttestError::Version(request.version));
    }
    let activated = tpm.activate(&request.credential.0, &request.seed.0)?;
    let quote = tpm.quote(&qualifying(&request.nonce.0, tls_key_sha256))?;
    let pcrs = tpm.pcrs(&QUOTED)?.into_iter().map(|(pcr, value)| (pcr, Hex(value))).collect();
    Ok(Evidence {
        version: 1,
        activated: Hex(activated),
        quote: Bytes(quote.statement),
        signature: Bytes(quote.signature),
        pcrs,
        event_log: Bytes(log()?),
    })
}

/// What is expected of a host that was started from this release; `None` if its manifest does not say.
pub fn expected(host: &HostImages) -> Option<Expected> {
    let measured = host.measured.as_ref()?;
    let section =
        |section: &release::MeasuredSection| Section { name: section.name.clone(), sha256: section.sha256.0 };
    Some(Expected {
        images: vec![host.uki_authenticode.0, measured.kernel_authenticode.0],
        sections: measured.sections.iter().map(section).collect(),
        certificates: measured.certificates.iter().map(|hash| hash.0).collect(),
    })
}

/// How this machine was started, compared with the release whose guest it runs. Whoever changed the host can also change this
/// answer: it is for the node's provider, and a verifier asks for evidence.
pub fn own(host: Option<&HostImages>) -> MeasuredBootStatus {
    let status =
        |verdict: &str, details: Vec<String>| MeasuredBootStatus { verdict: verdict.to_owned(), details };
    let compared = super::open().map_err(AttestError::from).and_then(|mut tpm| {
        let pcrs = tpm.pcrs(&QUOTED)?;
        Ok((pcrs, event_log()?))
    });
    let (pcrs, log) = match compared {
        Ok(found) => found,
        Err(error) => return status(error.code(), vec![error.to_string()]),
    };
    let log = match EventLog::parse(&log) {
        Ok(log) => log,
        Err(error) => return status("log-malformed", vec![error.to_string()]),
    };
    let Some(expected) = host.and_then(expected) else {
        return status("unknown", vec!["the release does not say what is measured of a host".to_owned()]);
    };
    let differences = compare(&log, &pcrs, &expected);
    let verdict = if differences.is_empty() { "as-released" } else { "differs" };
    status(verdict, differences.iter().map(ToString::to_string).collect())
}

/// Shown in the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MeasuredBootStatus {
    /// "as-released", "differs", "unknown", or why nothing can be said: "tpm-missing", "event-log-missing", ...
    pub verdict: String,
    /// The differences, or the reason, in words.
    pub details: Vec<String>,
}

/// The kernel's log.
pub fn event_log() -> Result<Vec<u8>, AttestError> {
    let mut log = Vec::new();
    std::fs::File::open(EVENT_LOG)
        .and_then(|file| file.take(MAX_LOG as u64 + 1).read_to_end(&mut log))
        .map_err(|source| AttestError::Log { path: EVENT_LOG.into(), source })?;
    Ok(log)
}
