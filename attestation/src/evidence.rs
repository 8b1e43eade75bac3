//! Evidence as it travels: a report with the certificates that endorse it, as JSON.

use crate::{EvidenceKind, certificate_table, pem, roots};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest evidence that is read, in bytes of JSON.
const MAX_LENGTH: usize = 64 * 1024;
/// Version of the JSON.
const VERSION: u32 = 1;

/// A report and its certificates. Nothing about it is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Evidence {
    /// What claims to have made the report.
    pub kind: EvidenceKind,
    /// The report as the firmware gave it.
    pub report: Vec<u8>,
    /// The chain that endorses it.
    pub certificates: Certificates,
}

/// Certificates in DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificates {
    /// Root.
    pub ark: Vec<u8>,
    /// Intermediate: ASK for a VCEK, ASVK for a VLEK.
    pub ask: Vec<u8>,
    /// Endorsement key: VCEK or VLEK.
    pub vek: Vec<u8>,
}

/// Why bytes are no evidence.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// More than the limit, in bytes.
    #[error("the evidence has {0} bytes, more than the {MAX_LENGTH} that are read; ask the node again")]
    TooLong(usize),
    /// Not the JSON of evidence.
    #[error("the evidence is not the JSON that a node gives: {0}; check that the address is a node's")]
    Json(#[from] serde_json::Error),
    /// Of the certificates beside a report of the guest's firmware.
    #[error("the certificates beside the report cannot be read: {0}")]
    Table(#[from] certificate_table::TableError),
}

impl Evidence {
    /// From what configfs-tsm gives: `outblob` is the report, `auxblob` the certificate table.
    pub fn from_tsm(kind: EvidenceKind, outblob: Vec<u8>, auxblob: &[u8]) -> Result<Self, EvidenceError> {
        Ok(Self { kind, report: outblob, certificates: certificate_table::decode(auxblob)? })
    }

    /// Of a real processor, from its parts: the report as the firmware gave it, and certificates in DER or PEM. AMD's
    /// ARK, and ASK or ASVK, are built in: what is not given is chosen by the issuer that the endorsement certificate
    /// names, and left empty when there is none of that name.
    #[must_use]
    pub fn from_parts(report: Vec<u8>, vek: &[u8], ark: Option<&[u8]>, ask: Option<&[u8]>) -> Self {
        let der = |bytes: &[u8]| pem::to_der(bytes, "CERTIFICATE");
        let vek = der(vek);
        let built_in = roots::above(&vek).unwrap_or_default();
        let ark = ark.map_or_else(|| built_in.0.to_vec(), der);
        let ask = ask.map_or_else(|| built_in.1.to_vec(), der);
        Self { kind: EvidenceKind::Snp, report, certificates: Certificates { ark, ask, vek } }
    }

    /// Reads the JSON.
    pub fn from_json(json: &[u8]) -> Result<Self, EvidenceError> {
        if json.len() > MAX_LENGTH {
            return Err(EvidenceError::TooLong(json.len()));
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// Writes the JSON.
    pub fn to_json(&self) -> Result<String, EvidenceError> {
        Ok(serde_json::to_string(self)?)
    }
}

/// The JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    kind: EvidenceKind,
    report: Base64,
    certificates: WireCertificates,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCertificates {
    ark: Base64,
    ask: Base64,
    vek: Base64,
}

struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(de::Error::custom)
    }
}

impl TryFrom<Wire> for Evidence {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        if wire.version != VERSION {
            return Err(format!("version {} of the evidence is not known, only {VERSION}", wire.version));
        }
        let WireCertificates { ark, ask, vek } = wire.certificates;
        let certificates = Certificates { ark: ark.0, ask: ask.0, vek: vek.0 };
        Ok(Self { kind: wire.kind, report: wire.report.0, certificates })
    }
}

impl From<Evidence> for Wire {
    fn from(evidence: Evidence) -> Self {
        let Certificates { ark, ask, vek } = evidence.certificates;
        Self {
            version: VERSION,
            kind: evidence.kind,
            report: Base64(evidence.report),
            certificates: WireCertificates { ark: Base64(ark), ask: Base64(ask), vek: Base64(vek) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn evidence() -> Evidence {
        let certificates = Certificates { ark: vec![1], ask: vec![2, 2], vek: vec![3, 3, 3] };
        Evidence { kind: EvidenceKind::SimSnp, report: vec![9; 1184], certificates }
    }

    #[test]
    fn survives_its_json() {
        let json = evidence().to_json().unwrap();
        assert!(json.starts_with(r#"{"version":1,"kind":"sim-snp","report":"CQkJ"#), "{json}");
        assert_eq!(Evidence::from_json(json.as_bytes()).unwrap(), evidence());
    }

    #[test]
    fn anything_else_is_refused() {
        let json = evidence().to_json().unwrap();
        for (what, with) in [
            ("\"version\":1", "\"version\":2"),
            ("\"version\":1", "\"version\":1,\"more\":1"),
            ("\"ark\"", "\"root\""),
            ("sim-snp", "tdx"),
            ("CQkJ", "C*kJ"),
        ] {
            let changed = json.replacen(what, with, 1);
            assert_ne!(changed, json);
            assert!(
                matches!(Evidence::from_json(changed.as_bytes()), Err(EvidenceError::Json(_))),
                "{changed}"
            );
        }
        let long = format!("{json}{}", " ".repeat(MAX_LENGTH));
        assert!(matches!(Evidence::from_json(long.as_bytes()), Err(EvidenceError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Evidence::from_json(&bytes);
        }
    }
}
