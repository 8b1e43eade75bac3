//! What is wrong with a piece of evidence: all of it, each with a stable code.
#![doc = include_str!("../CODES.md")]

use serde::Serialize;
use std::fmt;

/// Declares the codes once: for the checks as an enumeration, for others as a table.
macro_rules! codes {
    ($($code:ident = $name:literal: $meaning:literal,)+) => {
        /// Code of a failure.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code {
            $(#[doc = $meaning] $code,)+
        }

        impl Code {
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$code => $name,)+ }
            }
        }

        /// Every code with what it means. Codes are stable: one may be added, none changes its meaning.
        pub const CODES: &[(&str, &str)] = &[$(($name, $meaning),)+];
    };
}

codes! {
    // Who made it.
    KindNotAllowed = "kind-not-allowed": "evidence of a simulation before a verifier of real processors, or the reverse",
    ReportLength = "report-length": "the report does not have exactly 1184 bytes",
    ReportVersionUnknown = "report-version-unknown": "a report version other than 2 to 5",
    ProductUnknown = "product-unknown": "the report names a processor that is none of Milan, Genoa, Turin",
    SignatureAlgorithm = "signature-algorithm": "the report does not name ECDSA P-384 with SHA-384",
    ReportNotCanonical = "report-not-canonical": "a reserved byte of the report, or padding of its signature, is not zero",
    CertificateMissing = "certificate-missing": "a certificate of the chain is not there",
    CertificateMalformed = "certificate-malformed": "not a certificate in the only encoding that AMD writes",
    UnknownRoot = "unknown-root": "the chain ends at a root that is not pinned",
    UnknownIntermediate = "unknown-intermediate": "the ASK or ASVK is not the pinned one of the product",
    ChainBroken = "chain-broken": "a certificate was not issued by the one above it, or is of the wrong kind for its place",
    ProductMismatch = "product-mismatch": "root, endorsement certificate and report name different products",
    SigningKeyMismatch = "signing-key-mismatch": "KEY_INFO names another key than the endorsement certificate certifies",
    VekBinding = "vek-binding": "the endorsement certificate is of another chip or another TCB than the report states",
    SignatureInvalid = "signature-invalid": "the endorsement key did not sign these bytes",
    CrlMalformed = "crl-malformed": "not a revocation list in the only encoding that is read",
    CrlUntrusted = "crl-untrusted": "a revocation list in the name of a certificate of the chain that did not sign it",
    CertificateRevoked = "certificate-revoked": "a revocation list names a certificate of the chain",
    // When.
    CertificateNotYetValid = "certificate-not-yet-valid": "a certificate's validity has not begun",
    CertificateExpired = "certificate-expired": "a certificate's validity is over",
    CrlMissing = "crl-missing": "the policy asks for the root's revocation list and none was given",
    CrlStale = "crl-stale": "no revocation list of the root is current",
    // The policy itself.
    PolicyUnusable = "policy-unusable": "a value of the policy that could never be used or contradicts another",
    // What it states: the machine.
    ReportVersionNotAllowed = "report-version-not-allowed": "a report version that the policy does not list",
    ProductNotAllowed = "product-not-allowed": "a product that the policy does not list",
    ChipNotAllowed = "chip-not-allowed": "a chip outside the policy's allow-list",
    ChipDenied = "chip-denied": "a chip on the policy's deny-list",
    VcekNotAllowed = "vcek-not-allowed": "signed by the chip's key where the policy wants a provider's",
    VlekNotAllowed = "vlek-not-allowed": "signed by a provider's key where the policy wants the chip's",
    VlekProviderNotAllowed = "vlek-provider-not-allowed": "signed by the key of a provider that the policy does not list",
    ChipKeyMasked = "chip-key-masked": "the host masks the chip's key",
    TcbTooLow = "tcb-too-low": "a part of a TCB version is below the policy's floor or an advisory's",
    FirmwareTooOld = "firmware-too-old": "the SNP firmware is older than the policy allows",
    FirmwareProvisional = "firmware-provisional": "the running firmware is not committed, so the host can still go back",
    MitigationMissing = "mitigation-missing": "a bit of a mitigation vector that the policy demands is clear",
    TsmeMissing = "tsme-missing": "TSME is off",
    EccMissing = "ecc-missing": "the memory has no ECC",
    RaplEnabled = "rapl-enabled": "power readings are on",
    CiphertextHidingMissing = "ciphertext-hiding-missing": "ciphertext hiding is off",
    AliasCheckMissing = "alias-check-missing": "the firmware did not find the memory free of aliases (BadRAM)",
    IommuWriteUnsafe = "iommu-write-unsafe": "the IOMMU's writes are not confined (AMD-SB-3016)",
    PlatformBitMissing = "platform-bit-missing": "another bit of PLATFORM_INFO that the policy demands is clear",
    PlatformBitForbidden = "platform-bit-forbidden": "a bit of PLATFORM_INFO is set that the policy forbids",
    PlatformBitsUnknown = "platform-bits-unknown": "PLATFORM_INFO has bits without a known meaning",
    // What it states: the guest.
    SmtAllowed = "smt-allowed": "the guest may run with SMT",
    MigrationAllowed = "migration-allowed": "a migration agent may move the guest",
    DebugAllowed = "debug-allowed": "the host may read and write the guest",
    CxlAllowed = "cxl-allowed": "the guest may use CXL memory and devices",
    GuestPolicyMissing = "guest-policy-missing": "a bit of the guest's POLICY that the policy demands is clear",
    GuestPolicyForbidden = "guest-policy-forbidden": "another bit of the guest's POLICY is set that the policy forbids",
    GuestPolicyReserved = "guest-policy-reserved": "reserved bits of the guest's POLICY are not as the specification says",
    SmtInconsistent = "smt-inconsistent": "SMT is on under a guest that does not allow it",
    AbiTooLow = "abi-too-low": "the guest would run on an older firmware ABI than the policy allows",
    AbiTooHigh = "abi-too-high": "the guest demands a newer firmware ABI than the policy allows",
    MigrationAgentBound = "migration-agent-bound": "REPORT_ID_MA names a migration agent that the policy does not list",
    ReportIdMismatch = "report-id-mismatch": "another instance of the guest than the policy lists",
    VmplMismatch = "vmpl-mismatch": "asked for by another privilege level than the policy lists",
    MeasurementNotAllowed = "measurement-not-allowed": "another guest than the policy lists",
    HostDataMismatch = "host-data-mismatch": "another HOST_DATA, hence another configuration, than the policy lists",
    ReportDataMismatch = "report-data-mismatch": "another REPORT_DATA: an old report, or one for another key",
    IdBlockUnexpected = "id-block-unexpected": "an ID block where the policy wants none",
    IdKeyNotAllowed = "id-key-not-allowed": "no ID block signed by a key that the policy lists",
    AuthorKeyNotAllowed = "author-key-not-allowed": "not the author key that the policy lists, or one where it wants none",
    FamilyMismatch = "family-mismatch": "another FAMILY_ID than the policy lists",
    ImageMismatch = "image-mismatch": "another IMAGE_ID than the policy lists",
    GuestSvnTooLow = "guest-svn-too-low": "an older security version of the guest than the policy allows",
    // Evidence in a TLS handshake.
    HandshakeEvidence = "handshake-evidence": "the TLS certificate carries no evidence that can be read",
    HandshakeStale = "handshake-stale": "the TLS certificate's evidence is older than the verifier allows",
    HandshakeEarly = "handshake-early": "the TLS certificate's evidence is from the future",
}

/// One reason to refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Stable name, one of [`CODES`].
    pub code: &'static str,
    /// What would have been accepted.
    pub expected: String,
    /// What was there.
    pub found: String,
    /// What to do about it.
    pub fix: &'static str,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}; {}", self.code, self.expected, self.found, self.fix)
    }
}

/// Evidence that was refused, with every failure that was found, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Refusal {
    failures: Vec<Failure>,
}

impl Refusal {
    /// At least one.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// With one failure.
    pub(crate) fn of(failure: Failure) -> Self {
        Self { failures: vec![failure] }
    }

    /// These failures and those of a verdict; the verdict itself when there are none.
    pub(crate) fn join<T>(mut failures: Vec<Failure>, verdict: Result<T, Self>) -> Result<T, Self> {
        match verdict {
            Ok(value) if failures.is_empty() => return Ok(value),
            Ok(_) => {}
            Err(mut refusal) => failures.append(&mut refusal.failures),
        }
        Err(Self { failures })
    }

    /// Codes of the failures, in order.
    pub fn codes(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.failures.iter().map(|failure| failure.code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the evidence is refused:")?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n- {failure}"))
    }
}

impl std::error::Error for Refusal {}

/// Collects failures.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<Failure>);

impl Failures {
    pub(crate) fn add(
        &mut self,
        code: Code,
        expected: impl fmt::Display,
        found: impl fmt::Display,
        fix: &'static str,
    ) {
        self.0.push(Failure {
            code: code.name(),
            expected: expected.to_string(),
            found: found.to_string(),
            fix,
        });
    }

    /// [`Failures::add`] unless `holds`.
    pub(crate) fn require(
        &mut self,
        holds: bool,
        code: Code,
        expected: impl fmt::Display,
        found: impl fmt::Display,
        fix: &'static str,
    ) {
        if !holds {
            self.add(code, expected, found, fix);
        }
    }

    /// The value, if it was found and nothing failed.
    pub(crate) fn conclude<T>(self, value: Option<T>) -> Result<T, Refusal> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => {
                // A missing value always has its failure; should one ever be forgotten, it stays a refusal.
                debug_assert!(!self.0.is_empty());
                Err(Refusal { failures: self.0 })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_table_is_the_codes() {
        let rows =
            CODES.iter().map(|(name, meaning)| format!("| `{name}` | {meaning} |\n")).collect::<String>();
        let table = format!("| code | what is wrong |\n|---|---|\n{rows}");
        assert!(include_str!("../CODES.md").ends_with(&table), "CODES.md must end with:\n{table}");
        let mut names: Vec<_> = CODES.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CODES.len(), "each code once");
    }
}
