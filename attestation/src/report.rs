//! The attestation report: 1184 bytes at fixed offsets, versions 2 to 5.
//!
//! Source: AMD document 56860 (SEV-SNP Firmware ABI Specification), table ATTESTATION_REPORT. The parser is
//! canonical: a byte that the firmware always writes as zero must be zero, inside the signed range and outside it,
//! so that one report has exactly one encoding (up to the choice of the signature itself).

mod fields;

pub use fields::{GuestPolicy, KeyInfo, PlatformInfo, SigningKey, TcbLayout, TcbVersion};

use crate::{Measurement, Product};
use std::ops::Range;

/// Length of a report, in bytes.
pub const LENGTH: usize = 0x4a0;
/// What the signature covers.
pub const SIGNED: Range<usize> = 0..0x2a0;

/// Offsets of the fields, in bytes. Integers are little endian.
pub mod offset {
    /// u32.
    pub const VERSION: usize = 0x000;
    /// u32.
    pub const GUEST_SVN: usize = 0x004;
    /// u64, [`super::GuestPolicy`].
    pub const POLICY: usize = 0x008;
    /// 16 bytes.
    pub const FAMILY_ID: usize = 0x010;
    /// 16 bytes.
    pub const IMAGE_ID: usize = 0x020;
    /// u32.
    pub const VMPL: usize = 0x030;
    /// u32; 1 is ECDSA P-384 with SHA-384.
    pub const SIGNATURE_ALGO: usize = 0x034;
    /// 8 bytes, [`super::TcbVersion`].
    pub const CURRENT_TCB: usize = 0x038;
    /// u64, [`super::PlatformInfo`].
    pub const PLATFORM_INFO: usize = 0x040;
    /// u32, [`super::KeyInfo`].
    pub const KEY_INFO: usize = 0x048;
    /// 64 bytes.
    pub const REPORT_DATA: usize = 0x050;
    /// 48 bytes.
    pub const MEASUREMENT: usize = 0x090;
    /// 32 bytes.
    pub const HOST_DATA: usize = 0x0c0;
    /// 48 bytes.
    pub const ID_KEY_DIGEST: usize = 0x0e0;
    /// 48 bytes.
    pub const AUTHOR_KEY_DIGEST: usize = 0x110;
    /// 32 bytes.
    pub const REPORT_ID: usize = 0x140;
    /// 32 bytes; all 0xff without a migration agent.
    pub const REPORT_ID_MA: usize = 0x160;
    /// 8 bytes, [`super::TcbVersion`]; the one for which the endorsement key was issued.
    pub const REPORTED_TCB: usize = 0x180;
    /// u8, version 3 and newer: combined family of CPUID leaf 1. Model and stepping follow.
    pub const CPUID_FAMILY: usize = 0x188;
    /// u8.
    pub const CPUID_MODEL: usize = 0x189;
    /// u8.
    pub const CPUID_STEPPING: usize = 0x18a;
    /// 64 bytes; Turin uses the first 8.
    pub const CHIP_ID: usize = 0x1a0;
    /// 8 bytes, [`super::TcbVersion`].
    pub const COMMITTED_TCB: usize = 0x1e0;
    /// Build, minor, major of the running firmware, u8 each.
    pub const CURRENT_VERSION: usize = 0x1e8;
    /// Build, minor, major of the committed firmware, u8 each.
    pub const COMMITTED_VERSION: usize = 0x1ec;
    /// 8 bytes, [`super::TcbVersion`].
    pub const LAUNCH_TCB: usize = 0x1f0;
    /// u64, version 5 and newer.
    pub const LAUNCH_MIT_VECTOR: usize = 0x1f8;
    /// u64, version 5 and newer.
    pub const CURRENT_MIT_VECTOR: usize = 0x200;
    /// R of the signature: 72 bytes, little endian, the upper 24 zero.
    pub const SIGNATURE_R: usize = 0x2a0;
    /// S of the signature, like R.
    pub const SIGNATURE_S: usize = 0x2e8;
}

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
    /// Stable name of the failure.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Length(_) => "report-length",
            Self::Version(_) => "report-version-unknown",
            Self::Product { .. } => "product-unknown",
            Self::SignatureAlgorithm(_) => "signature-algorithm",
            Self::NotCanonical { .. } => "report-not-canonical",
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

    /// Encoding of the TCB versions in this report. Version 2 is older than Turin.
    #[must_use]
    pub fn tcb_layout(&self) -> TcbLayout {
        self.product.map_or(TcbLayout::Legacy, TcbLayout::of)
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

    /// Mitigations in force when the guest was launched; 0 before version 5.
    #[must_use]
    pub fn launch_mit_vector(&self) -> u64 {
        self.u64(offset::LAUNCH_MIT_VECTOR)
    }

    /// Mitigations in force now; 0 before version 5.
    #[must_use]
    pub fn current_mit_vector(&self) -> u64 {
        self.u64(offset::CURRENT_MIT_VECTOR)
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
        (if version >= 5 { 0x208 } else { 0x1f8 })..0x2a0,
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn minimal(version: u32, family: u8, model: u8) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH];
        bytes[offset::VERSION] = version as u8;
        bytes[offset::SIGNATURE_ALGO] = 1;
        if version >= 3 {
            bytes[offset::CPUID_FAMILY] = family;
            bytes[offset::CPUID_MODEL] = model;
        }
        bytes
    }

    /// Every byte of the report either carries something or must be zero. The carrying ranges are spelt out here a
    /// second time, from the specification's table, so that a slip in one of the two lists shows.
    #[test]
    fn exactly_the_reserved_bytes_are_refused() {
        for (version, family, model) in
            [(2, 0, 0), (3, 0x19, 1), (4, 0x19, 0x11), (5, 0x19, 0xa0), (5, 0x1a, 2)]
        {
            let turin = family == 0x1a;
            let tcb = |at: usize| {
                let reserved = if turin { at + 4..at + 7 } else { at + 2..at + 6 };
                (at..at + 8).filter(move |byte| !reserved.contains(byte))
            };
            let carrying: std::collections::BTreeSet<usize> = (0x004..0x034)
                .chain(tcb(0x038))
                .chain(0x040..0x048)
                .chain(0x050..0x180)
                .chain(tcb(0x180))
                .chain(if version >= 3 { 0x18a..0x18b } else { 0..0 })
                .chain(0x1a0..0x1e0)
                .chain(tcb(0x1e0))
                .chain(0x1e8..0x1eb)
                .chain(0x1ec..0x1ef)
                .chain(tcb(0x1f0))
                .chain(if version >= 5 { 0x1f8..0x208 } else { 0..0 })
                .chain(0x2a0..0x2d0)
                .chain(0x2e8..0x318)
                .collect();
            // Read by the parser itself; judged below.
            let special = |byte: &usize| {
                (0..4).contains(byte)
                    || (0x034..0x038).contains(byte)
                    || (0x048..0x04c).contains(byte)
                    || (version >= 3 && (0x188..0x18a).contains(byte))
            };
            assert!(Report::parse(&minimal(version, family, model)).is_ok());
            for byte in (0..LENGTH).filter(|byte| !special(byte)) {
                for bit in 0..8 {
                    let mut bytes = minimal(version, family, model);
                    bytes[byte] ^= 1 << bit;
                    let value = 1 << bit;
                    let expected = if carrying.contains(&byte) {
                        Ok(())
                    } else {
                        Err(ParseError::NotCanonical { offset: byte, value })
                    };
                    assert_eq!(
                        Report::parse(&bytes).map(|_| ()),
                        expected,
                        "version {version}, byte {byte:#x}"
                    );
                }
            }
            for bit in 0..32 {
                let mut bytes = minimal(version, family, model);
                bytes[offset::KEY_INFO + bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Report::parse(&bytes).is_ok(), bit < 5, "KEY_INFO bit {bit}");
            }
        }
    }

    #[test]
    fn each_error_has_its_name() {
        let parse = |bytes: &[u8]| Report::parse(bytes).unwrap_err();
        assert_eq!(parse(&[0; LENGTH - 1]), ParseError::Length(1183));
        assert_eq!(parse(&[0; LENGTH + 1]), ParseError::Length(1185));
        for version in [0, 1, 6, 0x0100_0003_u32] {
            let mut bytes = minimal(3, 0x19, 1);
            bytes[..4].copy_from_slice(&version.to_le_bytes());
            assert_eq!(parse(&bytes), ParseError::Version(version));
        }
        for (family, model) in [(0x19, 0x20), (0x19, 0x9f), (0x19, 0xb0), (0x1a, 0x12), (0x17, 1), (0, 0)] {
            assert_eq!(parse(&minimal(3, family, model)), ParseError::Product { family, model });
        }
        let mut bytes = minimal(5, 0x1a, 2);
        bytes[offset::SIGNATURE_ALGO] = 0;
        assert_eq!(parse(&bytes), ParseError::SignatureAlgorithm(0));
        assert!(ParseError::Version(6).to_string().contains("version 6"));
    }

    #[test]
    fn scalars_are_turned_to_big_endian() {
        let mut bytes = minimal(5, 0x19, 0x11);
        bytes[offset::SIGNATURE_R] = 1;
        bytes[offset::SIGNATURE_S + 47] = 2;
        let signature = Report::parse(&bytes).unwrap().signature();
        assert_eq!((signature[47], signature[48]), (1, 2));
        assert_eq!(signature.iter().filter(|byte| **byte != 0).count(), 2);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..LENGTH + 8)) {
            let _ = Report::parse(&bytes);
        }

        #[test]
        fn every_getter_stays_inside(filling: u8, version in 2u32..=5) {
            let mut bytes = minimal(version, 0x19, 1);
            bytes[offset::REPORT_DATA..offset::REPORTED_TCB].fill(filling);
            bytes[offset::CHIP_ID..offset::COMMITTED_TCB].fill(filling);
            let report = Report::parse(&bytes).unwrap();
            prop_assert_eq!(report.report_data(), [filling; 64]);
            prop_assert_eq!(report.measurement().0, [filling; 48]);
            prop_assert_eq!(report.host_data(), [filling; 32]);
            prop_assert_eq!(report.id_key_digest(), [filling; 48]);
            prop_assert_eq!(report.author_key_digest(), [filling; 48]);
            prop_assert_eq!(report.report_id(), [filling; 32]);
            prop_assert_eq!(report.report_id_ma(), [filling; 32]);
            prop_assert_eq!(report.chip_id(), [filling; 64]);
            let rest = (report.guest_svn(), report.family_id(), report.image_id(), report.vmpl());
            prop_assert_eq!(rest, (0, [0; 16], [0; 16], 0));
            prop_assert_eq!((report.launch_mit_vector(), report.current_mit_vector()), (0, 0));
        }
    }
}
