//! Launching under SEV-SNP: parameters of QEMU's `sev-snp-guest`.
//!
//! Source: QEMU 10.0 `qapi/qom.json` (SevSnpGuestProperties), and AMD document 24593 (AMD64 Architecture Programmer's
//! Manual, volume 3), appendix E, CPUID leaf 0x8000001F.

use attestation::measurement::id_block::{IdAuth, IdBlock};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::fmt::Write;

/// The SEV_FEATURES that `sev-snp-guest` sets: SNP active and nothing else. It has no option for others.
pub const QEMU_GUEST_FEATURES: u64 = 0x1;

/// `reduced-phys-bits`: a guest's physical addresses become one bit shorter, whatever CPUID says of the host's own
/// (QEMU's `query-sev-capabilities` answers the same).
const REDUCED_PHYS_BITS: u32 = 1;

/// How the processor marks encrypted memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Encryption {
    /// Bit of a page table entry that says "encrypted": `cbitpos`.
    pub c_bit: u32,
}

/// The processor cannot run SEV-SNP guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncryptionError {
    /// Not an AMD processor of the right generation, or hidden by a hypervisor.
    #[error(
        "this processor does not know SEV (CPUID has no leaf 0x8000001F); use an EPYC of the Milan generation or later, \
         not a virtual machine"
    )]
    NoLeaf,
    /// SEV, but not SNP.
    #[error(
        "this processor or its firmware settings do not offer SEV-SNP (CPUID 0x8000001F EAX is {eax:#x}, bit 4 is clear); \
         turn SEV-SNP on in the BIOS"
    )]
    NoSnp {
        /// What CPUID says.
        eax: u32,
    },
}

impl EncryptionError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoLeaf => "processor-without-sev",
            Self::NoSnp { .. } => "processor-without-snp",
        }
    }
}

impl Encryption {
    /// What all EPYC processors with SEV-SNP so far have, for showing a command line on another machine.
    pub const EPYC: Self = Self { c_bit: 51 };

    /// From CPUID: EAX of leaf 0x80000000 (the highest leaf), EAX and EBX of leaf 0x8000001F.
    pub fn from_cpuid(highest: u32, eax: u32, ebx: u32) -> Result<Self, EncryptionError> {
        if highest < LEAF {
            return Err(EncryptionError::NoLeaf);
        }
        if eax & (1 << 4) == 0 {
            return Err(EncryptionError::NoSnp { eax });
        }
        Ok(Self { c_bit: ebx & 0x3f })
    }

    /// Of the processor that runs this.
    pub fn of_this_processor() -> Result<Self, EncryptionError> {
        use std::arch::x86_64::__cpuid;
        let highest = __cpuid(0x8000_0000).eax;
        // Above the highest leaf CPUID answers with something else; `from_cpuid` does not look at it then.
        let leaf = __cpuid(LEAF);
        Self::from_cpuid(highest, leaf.eax, leaf.ebx)
    }
}

/// CPUID leaf "Encrypted Memory Capabilities".
const LEAF: u32 = 0x8000_001f;

/// A checked ID block with its signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What is signed.
    pub block: IdBlock,
    /// Who signed.
    pub auth: IdAuth,
}

/// Parameters of a launch that the Secure Processor enforces or reports, beside what is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snp {
    /// The processor's.
    pub encryption: Encryption,
    /// Guest policy.
    pub policy: u64,
    /// HOST_DATA.
    pub host_data: [u8; 32],
    /// ID block, if the release has one.
    pub identity: Option<Identity>,
}

impl Snp {
    /// The value of `-object`.
    pub(super) fn object(&self) -> String {
        let Self { encryption: Encryption { c_bit }, policy, host_data, identity } = self;
        let mut object = format!(
            "sev-snp-guest,id=snp,cbitpos={c_bit},reduced-phys-bits={REDUCED_PHYS_BITS},policy={policy:#x},\
             kernel-hashes=on,host-data={}",
            STANDARD.encode(host_data)
        );
        if let Some(Identity { block, auth }) = identity {
            let (block, bytes) =
                (STANDARD.encode(block.to_bytes()), STANDARD.encode(auth.to_bytes().as_slice()));
            let author = if auth.author.is_some() { "on" } else { "off" };
            // Writing to a String never fails.
            let _ = write!(object, ",id-block={block},id-auth={bytes},author-key-enabled={author}");
        }
        object
    }
}
