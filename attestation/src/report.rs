//! The attestation report: 1184 bytes at fixed offsets, versions 2 to 5.
//!
//! Source: AMD document 56860 (SEV-SNP Firmware ABI Specification), table ATTESTATION_REPORT. The parser is
//! canonical: a byte that the firmware always writes as zero must be zero, inside the signed range and outside it,
//! so that one report has exactly one encoding (up to the choice of the signature itself).

mod describe;
mod fields;
pub mod offset;
#[cfg(test)]
mod tests;

pub use describe::{Field, describe};
pub use fields::{FirmwareVersion, GuestPolicy, KeyInfo, PlatformInfo, SigningKey, TcbLayout, TcbVersion};

use crate::{Measurement, Product, failure::Code};
use std::ops::Range;

/// Length of a report, in bytes.
pub const LENGTH: usize = 0x4a0;
/// What the signature covers.
pub const SIGNED: Range<usize> = 0..0x2a0;

/// Length of R and of S that is in use, in bytes.
const SCALAR: usize = 48;

/// A well-formed report. Well-formed says nothing about who made it.
#[derive(Clone, PartialEq, Eq)]
pub struct Report {
    bytes: Box<[u8; LENGTH]>,
    product: Option<Product>,
}

/// Why bytes are no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Wrong length, in bytes.
    #[error("the report has {0} bytes instead of {LENGTH}")]
    Length(usize),
    /// Not a version that this parser knows.
    #[error("the report has version {0}; versions 2 to 5 are known")]
    Version(u32),
    /// CPUID of no product with known roots.
    #[error(
        "the report names a processor of family {family:#x} and model {model:#x}, which is none of Milan, Genoa, Turin"
    )]
    Product {
        /// Combined family.
        family: u8,
        /// Combined model.
        model: u8,
    },
    /// SIGNATURE_ALGO is not ECDSA P-384 with SHA-384.
    #[error("the report names signature algorithm {0}; only 1 (ECDSA P-384 with SHA-384) exists")]
    SignatureAlgorithm(u32),
    /// A byte that the firmware writes as zero is not.
    #[error(
        "the report is not canonical: the byte at {offset:#05x} is {value:#04x}, and its reserved bits are zero in every genuine report"
    )]
    NotCanonical {
        /// From the start of the report.
        offset: usize,
        /// What stands there.
        value: u8,
    },
}

impl ParseError {
    /// Stable name of the failure, one of [`crate::failure::CODES`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.failure().name()
    }

    pub(crate) const fn failure(&self) -> Code {
        match self {
            Self::Length(_) => Code::ReportLength,
            Self::Version(_) => Code::ReportVersionUnknown,
            Self::Product { .. } => Code::ProductUnknown,
            Self::SignatureAlgorithm(_) => Code::SignatureAlgorithm,
            Self::NotCanonical { .. } => Code::ReportNotCanonical,
        }
    }
}

impl Report {
    /// Parses exactly [`LENGTH`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let array: [u8; LENGTH] = bytes.try_into().map_err(|_| ParseError::Length(bytes.len()))?;
        let mut report = Self { bytes: Box::new(array), product: None };
        let version = report.version();
        if !(2..=5).contains(&version) {
            return Err(ParseError::Version(version));
        }
        let algorithm = report.u32(offset::SIGNATURE_ALGO);
        if algorithm != 1 {
            return Err(ParseError::SignatureAlgorithm(algorithm));
        }
        if version >= 3 {
            let [family, model] = report.array(offset::CPUID_FAMILY);
            let product = Product::from_cpuid(family, model);
            report.product = Some(product.ok_or(ParseError::Product { family, model })?);
        }
        for range in zero_ranges(version, report.tcb_layout()) {
            report.require_zero(range, 0xff)?;
        }
        report.require_zero(offset::KEY_INFO..offset::KEY_INFO + 1, !0x1f)?;
        report.require_zero(offset::KEY_INFO + 1..offset::KEY_INFO + 4, 0xff)?;
        Ok(report)
    }

    fn require_zero(&self, range: Range<usize>, mask: u8) -> Result<(), ParseError> {
        for offset in range {
            let value = self.bytes[offset];
            if value & mask != 0 {
                return Err(ParseError::NotCanonical { offset, value });
            }
        }
        Ok(())
    }

    /// The bytes as they came.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; LENGTH] {
        &self.bytes
    }

    /// What the signature covers.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        &self.bytes[SIGNED]
    }

    /// R and S, 48 bytes each, big endian.
    #[must_use]
    pub fn signature(&self) -> [u8; 2 * SCALAR] {
        let mut signature = [0; 2 * SCALAR];
        signature[..SCALAR].copy_from_slice(&self.array::<SCALAR>(offset::SIGNATURE_R));
        signature[SCALAR..].copy_from_slice(&self.array::<SCALAR>(offset::SIGNATURE_S));
        signature[..SCALAR].reverse();
        signature[SCALAR..].reverse();
        signature
    }

    /// 2 to 5.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.u32(offset::VERSION)
    }

    /// From CPUID; none in version 2, which does not carry it.
    #[must_use]
    pub fn product(&self) -> Option<Product> {
        self.product
    }

    /// Encoding of the TCB versions in this report. Version 2 does not name the product, but chips of Turin have a
    /// short CHIP_ID.
    #[must_use]
    pub fn tcb_layout(&self) -> TcbLayout {
        let (short, rest) = self.chip_id_parts();
        let is_short = short != [0; 8] && rest == [0; 56];
        let assumed = if is_short { TcbLayout::Turin } else { TcbLayout::Legacy };
        self.product.map_or(assumed, TcbLayout::of)
    }

    fn chip_id_parts(&self) -> ([u8; 8], [u8; 56]) {
        (self.array(offset::CHIP_ID), self.array(offset::CHIP_ID + 8))
    }

    /// Security version of the guest, from its ID block.
    #[must_use]
    pub fn guest_svn(&self) -> u32 {
        self.u32(offset::GUEST_SVN)
    }

    /// Policy under which the guest was launched.
    #[must_use]
    pub fn policy(&self) -> GuestPolicy {
        GuestPolicy(self.u64(offset::POLICY))
    }

    /// From the ID block.
    #[must_use]
    pub fn family_id(&self) -> [u8; 16] {
        self.array(offset::FAMILY_ID)
    }

    /// From the ID block.
    #[must_use]
    pub fn image_id(&self) -> [u8; 16] {
        self.array(offset::IMAGE_ID)
    }

    /// Privilege level that asked for the report; 0 is the highest.
    #[must_use]
    pub fn vmpl(&self) -> u32 {
        self.u32(offset::VMPL)
    }

    /// TCB that runs now.
    #[must_use]
    pub fn current_tcb(&self) -> TcbVersion {
        self.tcb(offset::CURRENT_TCB)
    }

    /// State of the platform.
    #[must_use]
    pub fn platform_info(&self) -> PlatformInfo {
        PlatformInfo(self.u64(offset::PLATFORM_INFO))
    }

    /// Which key signed, and whether an author key was used.
    #[must_use]
    pub fn key_info(&self) -> KeyInfo {
        KeyInfo(self.u32(offset::KEY_INFO))
    }

    /// What the guest gave to be bound.
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        self.array(offset::REPORT_DATA)
    }

    /// Launch digest.
    #[must_use]
    pub fn measurement(&self) -> Measurement {
        Measurement(self.array(offset::MEASUREMENT))
    }

    /// What the host gave to be bound at launch.
    #[must_use]
    pub fn host_data(&self) -> [u8; 32] {
        self.array(offset::HOST_DATA)
    }

    /// SHA-384 of the key that signed the ID block; zero without one.
    #[must_use]
    pub fn id_key_digest(&self) -> [u8; 48] {
        self.array(offset::ID_KEY_DIGEST)
    }

    /// SHA-384 of the key that certified the ID key; zero without one.
    #[must_use]
    pub fn author_key_digest(&self) -> [u8; 48] {
        self.array(offset::AUTHOR_KEY_DIGEST)
    }

    /// Chosen by the firmware for this guest.
    #[must_use]
    pub fn report_id(&self) -> [u8; 32] {
        self.array(offset::REPORT_ID)
    }

    /// Report id of the migration agent; all 0xff without one.
    #[must_use]
    pub fn report_id_ma(&self) -> [u8; 32] {
        self.array(offset::REPORT_ID_MA)
    }

    /// TCB for which the endorsement key was issued.
    #[must_use]
    pub fn reported_tcb(&self) -> TcbVersion {
        self.tcb(offset::REPORTED_TCB)
    }

    /// Identity of the chip.
    #[must_use]
    pub fn chip_id(&self) -> [u8; 64] {
        self.array(offset::CHIP_ID)
    }

    /// TCB below which the host cannot roll back.
    #[must_use]
    pub fn committed_tcb(&self) -> TcbVersion {
        self.tcb(offset::COMMITTED_TCB)
    }

    /// TCB on which the guest was launched or into which it was migrated.
    #[must_use]
    pub fn launch_tcb(&self) -> TcbVersion {
        self.tcb(offset::LAUNCH_TCB)
    }

    /// Mitigations in force when the guest was launched; none before version 5, which defines them.
    #[must_use]
    pub fn launch_mit_vector(&self) -> Option<u64> {
        (self.version() >= 5).then(|| self.u64(offset::LAUNCH_MIT_VECTOR))
    }

    /// Mitigations in force now; none before version 5.
    #[must_use]
    pub fn current_mit_vector(&self) -> Option<u64> {
        (self.version() >= 5).then(|| self.u64(offset::CURRENT_MIT_VECTOR))
    }

    /// Combined family, combined model and stepping by CPUID leaf 1; none in version 2.
    #[must_use]
    pub fn cpuid(&self) -> Option<[u8; 3]> {
        (self.version() >= 3).then(|| self.array(offset::CPUID_FAMILY))
    }

    /// SNP firmware that runs.
    #[must_use]
    pub fn current_version(&self) -> FirmwareVersion {
        FirmwareVersion::decode(self.array(offset::CURRENT_VERSION))
    }

    /// SNP firmware below which the host cannot roll back.
    #[must_use]
    pub fn committed_version(&self) -> FirmwareVersion {
        FirmwareVersion::decode(self.array(offset::COMMITTED_VERSION))
    }

    /// `N` bytes at an offset; every caller stays inside [`LENGTH`], which the tests walk through.
    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[offset..offset + N]);
        array
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    fn tcb(&self, offset: usize) -> TcbVersion {
        TcbVersion::decode(self.array(offset), self.tcb_layout())
    }
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report")
            .field("version", &self.version())
            .field("product", &self.product)
            .field("measurement", &self.measurement())
            .field("reported_tcb", &self.reported_tcb())
            .finish_non_exhaustive()
    }
}

/// Bytes that are zero in every genuine report of this version and product.
fn zero_ranges(version: u32, layout: TcbLayout) -> Vec<Range<usize>> {
    let mut ranges = vec![
        // Reserved.
        0x04c..0x050,
        (if version >= 3 { 0x18b } else { 0x188 })..0x1a0,
        0x1eb..0x1ec,
        0x1ef..0x1f0,
        // Version 4 was never published; firmware that writes it was followed by version 5 with the mitigation vectors,
        // so its bytes there are signed but have no meaning here.
        (if version >= 4 { 0x208 } else { 0x1f8 })..0x2a0,
        // Outside the signed range: what R and S do not use, and the rest of the signature.
        offset::SIGNATURE_R + SCALAR..offset::SIGNATURE_S,
        offset::SIGNATURE_S + SCALAR..LENGTH,
    ];
    for tcb in [offset::CURRENT_TCB, offset::REPORTED_TCB, offset::COMMITTED_TCB, offset::LAUNCH_TCB] {
        let reserved = layout.reserved();
        ranges.push(tcb + reserved.start..tcb + reserved.end);
    }
    ranges
}
