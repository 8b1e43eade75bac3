//! The SNP launch digest of a guest that QEMU boots directly: firmware, kernel, initrd, command line, vCPUs.
//!
//! The digest chains one record for each page that the host gives to the PSP, in order: the firmware's pages, the
//! pages that the firmware's SEV metadata names (one of which holds the hashes of kernel, initrd and command line,
//! QEMU's `kernel-hashes=on`), and one VMSA for each vCPU. [`Launch`] holds the files; [`Inputs`] what remains of
//! them once each is hashed, from which the digest follows. Memory size is not measured.
//!
//! Each byte is hashed once: [`Firmware`] stands for a firmware, [`KernelHashes`] for kernel, initrd and command
//! line ([`FileHasher`] takes files piece by piece), and [`Pages::vcpus`] gives the digests for 1, 2, 3... vCPUs at
//! the price of the last. [`explain()`] searches what produced a digest; [`id_block`] is what the owner of a guest signs
//! about it.
//!
//! # Firmware without SEV metadata
//!
//! The virtual profile boots with firmware that no PSP could launch (SeaBIOS); [`Firmware::require_sev_metadata`]
//! refuses it where hardware is meant. For such a firmware, which lacks the whole GUID table, the digest is defined here: it starts from SHA-384 of [`SIMULATED_SEED`] instead of zeros, so that no
//! real PSP can ever produce it; then the firmware's pages up to 4 GiB, the page with the kernel hashes at
//! 0x810000 (table at 0xc00 in it), and the VMSAs, all starting at the reset vector.

pub mod explain;
pub mod id_block;

mod firmware;
mod gctx;
mod kernel_hashes;
mod vmsa;

pub use explain::explain;
pub use firmware::{FirmwareLayout, Section, SectionKind};
pub use kernel_hashes::{FileHasher, KernelHashes};
pub use vmsa::VcpuType;

use gctx::{Gctx, PAGE};
use ring::digest::{SHA384, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// Label from which the digest starts for firmware that only a simulation launches.
pub const SIMULATED_SEED: &[u8] = b"redoubt simulated launch of firmware without SEV metadata";
/// Most vCPUs that can be measured: what QEMU's q35 machine has at most.
pub const MAX_VCPUS: u32 = 4096;
/// SEV_FEATURES bit 0: the guest runs under SNP (AMD document 24593, table B-4).
const SNP_ACTIVE: u64 = 1;
/// Just above the firmware.
const FOUR_GIB: u64 = 1 << 32;

/// A launch digest: 48 bytes, written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Measurement(pub [u8; 48]);

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no measurement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a launch measurement is 96 lower-case hexadecimal digits; this has {0} characters or others among them"
)]
pub struct MeasurementTextError(usize);

impl FromStr for Measurement {
    type Err = MeasurementTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = MeasurementTextError(text.len());
        let mut bytes = [0; 48];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| error.clone())?;
        // One measurement has one text.
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) { Err(error) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for Measurement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Measurement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What QEMU is given to launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// `-bios`.
    pub firmware: &'a [u8],
    /// `-kernel`.
    pub kernel: &'a [u8],
    /// `-initrd`; empty for none.
    pub initrd: &'a [u8],
    /// `-append`, without a NUL.
    pub command_line: &'a str,
    /// `-smp`.
    pub vcpus: u32,
    /// `-cpu`.
    pub vcpu_type: VcpuType,
    /// SEV_FEATURES of the VMSAs; QEMU and KVM set 0x1 (SNP active) by default.
    pub guest_features: u64,
}

/// Why there is no launch digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Not whole pages below 4 GiB.
    #[error(
        "the firmware has {0} bytes; it must be whole pages of {PAGE} bytes, at least one and at most 16 MiB"
    )]
    FirmwareSize(usize),
    /// The GUID table or the SEV metadata of the firmware is broken.
    #[error(
        "the firmware's {table} is broken: {what}; use a firmware that is built for SEV-SNP (OvmfPkg/AmdSev)"
    )]
    FirmwareTable {
        /// Which table.
        table: &'static str,
        /// What is wrong.
        what: String,
    },
    /// No PSP can launch it.
    #[error(
        "the firmware has no SEV metadata, so SEV-SNP cannot launch it; use one that is built for it (OvmfPkg/AmdSev)"
    )]
    NoSevMetadata,
    /// The firmware would boot a kernel without checking it.
    #[error(
        "the firmware has {0}; it would boot any kernel: use one that checks kernel hashes (OvmfPkg/AmdSev)"
    )]
    NoKernelHashes(&'static str),
    /// No or too many vCPUs.
    #[error("{0} vCPUs cannot be measured; give 1 to {MAX_VCPUS}")]
    VcpuCount(u32),
    /// Not a CPU model of QEMU with a known signature.
    #[error(
        "the CPU model {0} has no known signature; use one of QEMU's EPYC models by its full name, such as EPYC-v4"
    )]
    VcpuType(String),
    /// Not an SNP guest.
    #[error("the guest features {0:#x} lack bit 0 (SNP active), so this would be no SEV-SNP guest; set it")]
    GuestFeatures(u64),
    /// The command line holds a NUL, where the kernel would end it.
    #[error("the kernel command line holds a NUL byte at {0}; remove it")]
    CommandLine(usize),
}

impl LaunchError {
    /// A short fixed name, for scripts and tests.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::FirmwareSize(_) => "firmware-size",
            Self::FirmwareTable { .. } => "firmware-table-broken",
            Self::NoSevMetadata => "firmware-without-sev-metadata",
            Self::NoKernelHashes(_) => "firmware-without-kernel-hashes",
            Self::VcpuCount(_) => "vcpu-count",
            Self::VcpuType(_) => "vcpu-type-unknown",
            Self::GuestFeatures(_) => "guest-features",
            Self::CommandLine(_) => "command-line-with-nul",
        }
    }
}

impl Launch<'_> {
    /// Hashes the files.
    pub fn inputs(&self) -> Result<Inputs, LaunchError> {
        // The firmware comes first, so that an unusable one is refused before anything long is hashed.
        let firmware = Firmware::measure(self.firmware)?;
        Ok(Inputs {
            firmware,
            kernel_hashes: KernelHashes::of(self.kernel, self.initrd, self.command_line)?,
            vcpus: self.vcpus,
            vcpu_type: self.vcpu_type,
            guest_features: self.guest_features,
        })
    }

    /// The launch digest.
    pub fn measurement(&self) -> Result<Measurement, LaunchError> {
        self.inputs()?.measurement()
    }
}

/// What remains of a firmware once its pages are hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// Digest after the firmware's pages.
    pub digest: Measurement,
    /// What the firmware asks to be measured beside itself; `None` for one that only a simulation launches.
    pub layout: Option<FirmwareLayout>,
}

impl Firmware {
    /// Hashes a firmware.
    pub fn measure(bytes: &[u8]) -> Result<Self, LaunchError> {
        let layout = FirmwareLayout::parse(bytes)?;
        let seed = if layout.is_some() { [0; 48] } else { sha384(SIMULATED_SEED) };
        let mut gctx = Gctx::new(seed);
        gctx.normal_pages(FOUR_GIB - bytes.len() as u64, bytes);
        Ok(Self { digest: gctx.finish(), layout })
    }

    /// Refuses firmware that only a simulation launches.
    pub const fn require_sev_metadata(&self) -> Result<(), LaunchError> {
        if self.layout.is_some() { Ok(()) } else { Err(LaunchError::NoSevMetadata) }
    }

    /// The digest after all pages but the VMSAs. Without hashes the page for them is zero, as with QEMU's
    /// `kernel-hashes=off`: then any kernel could be running.
    pub fn pages(&self, kernel_hashes: Option<&KernelHashes>) -> Result<Pages, LaunchError> {
        let simulated;
        let layout = match &self.layout {
            Some(layout) => layout,
            None => {
                simulated = FirmwareLayout::of_simulation();
                &simulated
            }
        };
        layout.check()?;
        let mut gctx = Gctx::new(self.digest.0);
        for section in &layout.sections {
            let gpa = u64::from(section.gpa);
            match (section.kind, kernel_hashes) {
                (SectionKind::Secrets, _) => gctx.secrets_page(gpa),
                (SectionKind::Cpuid, _) => gctx.cpuid_page(gpa),
                (SectionKind::KernelHashes, Some(hashes)) => {
                    gctx.normal_pages(gpa, &hashes.page(layout.hash_table_gpa));
                }
                (SectionKind::SecMem | SectionKind::SvsmCaa | SectionKind::KernelHashes, _) => {
                    gctx.zero_pages(gpa, section.size);
                }
            }
        }
        Ok(Pages { digest: gctx.finish(), reset_eip: layout.reset_eip })
    }
}

/// The digest after all pages but the VMSAs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    digest: Measurement,
    reset_eip: u32,
}

impl Pages {
    /// The launch digests with 1, 2, 3... vCPUs, up to [`MAX_VCPUS`].
    pub fn vcpus(
        self,
        vcpu_type: VcpuType,
        guest_features: u64,
    ) -> Result<impl Iterator<Item = Measurement>, LaunchError> {
        if guest_features & SNP_ACTIVE == 0 {
            return Err(LaunchError::GuestFeatures(guest_features));
        }
        let contents = |reset| sha384(&vmsa::page(reset, vcpu_type, guest_features));
        // All vCPUs but the first start alike: one page, hashed once.
        let others = std::iter::repeat_n(contents(self.reset_eip), MAX_VCPUS as usize - 1);
        let mut gctx = Gctx::new(self.digest.0);
        Ok(std::iter::once(contents(vmsa::RESET_VECTOR)).chain(others).map(move |contents| {
            gctx.vmsa_page(contents);
            gctx.finish()
        }))
    }
}

/// What the launch digest follows from when the files themselves are not at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// The firmware.
    pub firmware: Firmware,
    /// Kernel, initrd and command line.
    pub kernel_hashes: KernelHashes,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// CPU model.
    pub vcpu_type: VcpuType,
    /// SEV_FEATURES of the VMSAs.
    pub guest_features: u64,
}

impl Inputs {
    /// The launch digest.
    pub fn measurement(&self) -> Result<Measurement, LaunchError> {
        let mut digests =
            self.firmware.pages(Some(&self.kernel_hashes))?.vcpus(self.vcpu_type, self.guest_features)?;
        let index = self.vcpus.checked_sub(1).ok_or(LaunchError::VcpuCount(0))?;
        digests.nth(index as usize).ok_or(LaunchError::VcpuCount(self.vcpus))
    }
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    let mut out = [0; 48];
    out.copy_from_slice(digest(&SHA384, bytes).as_ref());
    out
}
