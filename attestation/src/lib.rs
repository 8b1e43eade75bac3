//! SEV-SNP evidence: report, certificate chain, policy, launch measurement, binding to TLS. No I/O.
//!
//! The way through: bytes from anywhere become [`Evidence`]; [`verify`] takes it with a [`Policy`], the
//! [`TrustAnchors`] and the time, and gives [`Verified`], which can be made in no other way, or a [`Refusal`] that
//! lists everything that was wrong. What the policy compares with comes from [`measurement::Launch`] (the launch
//! digest of what was built) and [`binding::report_data`] (nonce and TLS key).
//!
//! All of the report, the certificates and the evidence is hostile input: nothing here panics on it, and every
//! encoding that is not the one the firmware writes is refused.

pub mod advisories;
pub mod binding;
pub mod certificate_table;
pub mod failure;
pub mod handshake;
pub mod measurement;
pub mod policy;
pub mod report;

mod authenticity;
mod certificate;
mod crl;
mod evidence;
mod pem;
mod roots;
mod signed;
mod verify;

pub use authenticity::{Authentic, authenticate};
pub use evidence::{Certificates, Evidence, EvidenceError};
pub use failure::{Failure, Refusal};
pub use measurement::Measurement;
pub use policy::Policy;
pub use report::{ParseError, Report};
pub use roots::{Fingerprint, TrustAnchors};
pub use verify::{Verified, verify};

use serde::{Deserialize, Serialize};
use std::fmt;

/// Generation of the processor. Each has its own root of trust and its own encoding of the TCB version.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Product {
    /// Family 0x19, models 0x00 to 0x0f.
    Milan,
    /// Family 0x19, models 0x10 to 0x1f; Bergamo and Siena (0xa0 to 0xaf) share its roots.
    Genoa,
    /// Family 0x1a, models 0x00 to 0x11.
    Turin,
}

impl Product {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// From the combined family and model of CPUID leaf 1, as reports of version 3 and newer state them.
    #[must_use]
    pub const fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }

    /// From the productName extension of an endorsement certificate: the name, and after a hyphen the stepping.
    #[must_use]
    pub fn from_certificate_name(name: &str) -> Option<Self> {
        match name.split('-').next()? {
            "Milan" => Some(Self::Milan),
            // Bergamo and Siena have Genoa's roots.
            "Genoa" | "Bergamo" | "Siena" => Some(Self::Genoa),
            "Turin" => Some(Self::Turin),
            _ => None,
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What made the evidence. The two never mix: anchors of one kind refuse evidence of the other, and REPORT_DATA is
/// computed with a different domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvidenceKind {
    /// The AMD Secure Processor.
    Snp,
    /// A simulation for tests. It proves nothing.
    SimSnp,
}

impl fmt::Display for EvidenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snp => "snp",
            Self::SimSnp => "sim-snp",
        })
    }
}
