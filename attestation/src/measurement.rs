//! The SNP launch digest of a guest that QEMU boots directly: firmware, kernel, initrd, command line, vCPUs.
//!
//! The digest chains one record for each page that the host gives to the PSP, in order: the firmware's pages, the
//! pages that the firmware's SEV metadata names (one of which holds the hashes of kernel, initrd and command line,
//! QEMU's `kernel-hashes=on`), and one VMSA for each vCPU. [`Launch`] holds the files; [`Inputs`] what remains of
//! them once each is hashed, from which the digest follows. Memory size is not measured.
//!
//! # Firmware without SEV metadata
//!
//! The virtual profile boots with firmware that no PSP could launch (SeaBIOS). For such a firmware, which lacks the
//! whole GUID table, the digest is defined here: it starts from SHA-384 of [`SIMULATED_SEED`] instead of zeros, so that no
//! real PSP can ever produce it; then the firmware's pages up to 4 GiB, the page with the kernel hashes at
//! 0x810000 (table at 0xc00 in it), and the VMSAs, all starting at the reset vector.

mod firmware;
mod gctx;
mod kernel_hashes;
mod vmsa;

pub use firmware::{FirmwareLayout, Section, SectionKind};
pub use kernel_hashes::KernelHashes;
pub use vmsa::VcpuType;

use gctx::{Gctx, PAGE};
use ring::digest::{SHA384, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// Label from which the digest starts for firmware that only a simulation launches.
pub const SIMULATED_SEED: &[u8] = b"redoubt simulated launch of firmware without SEV metadata";
/// vCPUs that are looked at; QEMU's q35 machine has at most 4096.
const MAX_VCPUS: u32 = 4096;
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
    /// The command line holds a NUL, where the kernel would end it.
    #[error("the kernel command line holds a NUL byte at {0}; remove it")]
    CommandLine(usize),
}

impl Launch<'_> {
    /// Hashes the files.
    pub fn inputs(&self) -> Result<Inputs, LaunchError> {
        let layout = FirmwareLayout::parse(self.firmware)?;
        if let Some(position) = self.command_line.find('\0') {
            return Err(LaunchError::CommandLine(position));
        }
        let seed = match &layout {
            Some(_) => [0; 48],
            None => sha384(SIMULATED_SEED),
        };
        let mut gctx = Gctx::new(seed);
        gctx.normal_pages(FOUR_GIB - self.firmware.len() as u64, self.firmware);
        Ok(Inputs {
            firmware_digest: gctx.finish(),
            layout: layout.unwrap_or_else(FirmwareLayout::of_simulation),
            kernel_hashes: KernelHashes::of(self.kernel, self.initrd, self.command_line),
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

/// What the launch digest follows from when the files themselves are not at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// Digest after the firmware's pages.
    pub firmware_digest: Measurement,
    /// What the firmware asks to be measured beside itself.
    pub layout: FirmwareLayout,
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
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(LaunchError::VcpuCount(self.vcpus));
        }
        self.layout.check()?;
        let mut gctx = Gctx::new(self.firmware_digest.0);
        for section in &self.layout.sections {
            let gpa = u64::from(section.gpa);
            match section.kind {
                SectionKind::SecMem | SectionKind::SvsmCaa => gctx.zero_pages(gpa, section.size),
                SectionKind::Secrets => gctx.secrets_page(gpa),
                SectionKind::Cpuid => gctx.cpuid_page(gpa),
                SectionKind::KernelHashes => {
                    gctx.normal_pages(gpa, &self.kernel_hashes.page(self.layout.hash_table_gpa));
                }
            }
        }
        let page = |reset| vmsa::page(reset, self.vcpu_type, self.guest_features);
        let contents = sha384(&page(vmsa::RESET_VECTOR));
        gctx.vmsa_page(contents);
        // The other vCPUs start alike: one page, hashed once.
        let contents = sha384(&page(self.layout.reset_eip));
        (1..self.vcpus).for_each(|_| gctx.vmsa_page(contents));
        Ok(gctx.finish())
    }
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    let mut out = [0; 48];
    out.copy_from_slice(digest(&SHA384, bytes).as_ref());
    out
}
