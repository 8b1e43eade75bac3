//! Words of the report with bits or components of their own.

use crate::Product;
use std::{fmt, ops::Range};

/// Encoding of a TCB version in 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcbLayout {
    /// Milan and Genoa: bootloader, TEE, 4 reserved, SNP, microcode.
    Legacy,
    /// Turin: FMC, bootloader, TEE, SNP, 3 reserved, microcode.
    Turin,
}

impl TcbLayout {
    /// The layout that a product uses.
    #[must_use]
    pub const fn of(product: Product) -> Self {
        match product {
            Product::Milan | Product::Genoa => Self::Legacy,
            Product::Turin => Self::Turin,
        }
    }

    /// Reserved bytes of the 8.
    #[must_use]
    pub const fn reserved(self) -> Range<usize> {
        match self {
            Self::Legacy => 2..6,
            Self::Turin => 4..7,
        }
    }
}

/// Security versions of the platform's parts. Compared part by part, never as a number: a host could otherwise pay
/// for an old microcode with a new bootloader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcbVersion {
    /// Turin only.
    pub fmc: Option<u8>,
    /// PSP bootloader.
    pub bootloader: u8,
    /// PSP operating system.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// CPU microcode.
    pub microcode: u8,
}

impl TcbVersion {
    /// From the 8 bytes of the report.
    #[must_use]
    pub const fn decode(bytes: [u8; 8], layout: TcbLayout) -> Self {
        match layout {
            TcbLayout::Legacy => {
                Self { fmc: None, bootloader: bytes[0], tee: bytes[1], snp: bytes[6], microcode: bytes[7] }
            }
            TcbLayout::Turin => Self {
                fmc: Some(bytes[0]),
                bootloader: bytes[1],
                tee: bytes[2],
                snp: bytes[3],
                microcode: bytes[7],
            },
        }
    }

    /// To the 8 bytes of the report; the layout follows from whether there is an FMC.
    #[must_use]
    pub const fn encode(self) -> [u8; 8] {
        match self.fmc {
            None => [self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode],
            Some(fmc) => [fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode],
        }
    }

    /// Each part with its name as policies write it; the first is there on Turin only.
    #[must_use]
    pub const fn parts(self) -> [(&'static str, Option<u8>); 5] {
        [
            ("fmc", self.fmc),
            ("bootloader", Some(self.bootloader)),
            ("tee", Some(self.tee)),
            ("snp", Some(self.snp)),
            ("microcode", Some(self.microcode)),
        ]
    }
}

impl fmt::Display for TcbVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc}, ")?;
        }
        let Self { bootloader, tee, snp, microcode, .. } = self;
        write!(f, "bootloader {bootloader}, tee {tee}, snp {snp}, microcode {microcode}")
    }
}

/// Version of the SNP firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FirmwareVersion {
    /// Of the ABI.
    pub major: u8,
    /// Of the ABI.
    pub minor: u8,
    /// Counts up.
    pub build: u8,
}

impl FirmwareVersion {
    /// From the 3 bytes of the report.
    #[must_use]
    pub const fn decode([build, minor, major]: [u8; 3]) -> Self {
        Self { major, minor, build }
    }
}

impl fmt::Display for FirmwareVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

/// POLICY of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPolicy(pub u64);

impl GuestPolicy {
    /// SMT is allowed.
    pub const SMT: u64 = 1 << 16;
    /// Reserved, always 1.
    pub const RESERVED_ONE: u64 = 1 << 17;
    /// A migration agent may be associated.
    pub const MIGRATE_MA: u64 = 1 << 18;
    /// The host may read and write the guest.
    pub const DEBUG: u64 = 1 << 19;
    /// The guest may run on one socket only.
    pub const SINGLE_SOCKET: u64 = 1 << 20;
    /// CXL memory and devices are allowed.
    pub const CXL_ALLOW: u64 = 1 << 21;
    /// Requires AES-256-XTS for memory.
    pub const MEM_AES_256_XTS: u64 = 1 << 22;
    /// Requires that power readings are off.
    pub const RAPL_DIS: u64 = 1 << 23;
    /// Requires ciphertext hiding.
    pub const CIPHERTEXT_HIDING: u64 = 1 << 24;
    /// Forbids page swapping commands.
    pub const PAGE_SWAP_DISABLE: u64 = 1 << 25;
    /// Must be zero.
    pub const RESERVED_ZERO: u64 = !0x3ff_ffff;

    /// Whether all bits of `bits` are set.
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Least ABI version of the firmware that the guest accepts: major, minor.
    #[must_use]
    pub const fn abi(self) -> (u8, u8) {
        ((self.0 >> 8) as u8, self.0 as u8)
    }
}

/// PLATFORM_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlatformInfo(pub u64);

impl PlatformInfo {
    /// SMT is on.
    pub const SMT: u64 = 1 << 0;
    /// Transparent memory encryption is on.
    pub const TSME: u64 = 1 << 1;
    /// Memory has ECC.
    pub const ECC: u64 = 1 << 2;
    /// Power readings are off.
    pub const RAPL_DIS: u64 = 1 << 3;
    /// Ciphertext hiding is on.
    pub const CIPHERTEXT_HIDING: u64 = 1 << 4;
    /// No aliased memory was found at the last check (BadRAM, CVE-2024-21944).
    pub const ALIAS_CHECK_COMPLETE: u64 = 1 << 5;
    /// The IOMMU's own writes cannot reach guests (AMD-SB-3016). Not in every revision of the specification.
    pub const IOMMU_WRITE_SAFE: u64 = 1 << 6;
    /// Trusted I/O (SEV-TIO) is on.
    pub const TIO: u64 = 1 << 7;
    /// Bits with a known meaning.
    pub const KNOWN: u64 = 0xff;

    /// Whether all bits of `bits` are set.
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }
}

/// KEY_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyInfo(pub u32);

/// Key that signed a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningKey {
    /// Versioned chip endorsement key: of one chip.
    Vcek,
    /// Versioned loaded endorsement key: of a cloud provider.
    Vlek,
    /// Unsigned, or a value that means nothing: 2 to 7.
    None(u8),
}

impl fmt::Display for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcek => f.write_str("VCEK"),
            Self::Vlek => f.write_str("VLEK"),
            Self::None(value) => write!(f, "none ({value})"),
        }
    }
}

impl KeyInfo {
    /// An author key certified the ID key.
    #[must_use]
    pub const fn author_key_enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// The host masks the chip's key: the firmware does not sign.
    #[must_use]
    pub const fn chip_key_masked(self) -> bool {
        self.0 & 2 != 0
    }

    /// Bits 2 to 4.
    #[must_use]
    pub const fn signing_key(self) -> SigningKey {
        match (self.0 >> 2) & 7 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            other => SigningKey::None(other as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbouring_bits_do_not_leak() {
        assert_eq!(GuestPolicy(0x000b_1f07).abi(), (0x1f, 0x07));
        assert!(
            GuestPolicy(0xb_0000).has(GuestPolicy::DEBUG) && !GuestPolicy(0x3_0000).has(GuestPolicy::DEBUG)
        );
        assert_eq!(KeyInfo(0b00011).signing_key(), SigningKey::Vcek);
        assert_eq!(KeyInfo(0b00100).signing_key(), SigningKey::Vlek);
        assert_eq!(KeyInfo(0b11100).signing_key(), SigningKey::None(7));
        assert!(KeyInfo(1).author_key_enabled() && !KeyInfo(2).author_key_enabled());
        assert!(KeyInfo(2).chip_key_masked() && !KeyInfo(1).chip_key_masked());
    }

    proptest! {
        #[test]
        fn tcb_versions_survive_both_layouts(bytes: [u8; 8]) {
            for layout in [TcbLayout::Legacy, TcbLayout::Turin] {
                let mut clean = bytes;
                clean[layout.reserved()].fill(0);
                prop_assert_eq!(TcbVersion::decode(clean, layout).encode(), clean);
            }
        }
    }
}
