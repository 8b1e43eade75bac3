//! What a machine was found to have.

pub use crate::linux::{QEMU_QUESTIONS, nvme_wear, qemu_answers, this_machine};
use crate::seen::Seen;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where an image keeps what its own QEMU answered when the image was built: both are in a root that is verified.
pub const IMAGE_QEMU: &str = "/usr/share/redoubt/qemu.json";

/// Longest recorded probe that is read, in bytes.
pub const MAX_PROBE: usize = 512 * 1024;
/// Most items of a list in a probe.
pub const MAX_ITEMS: usize = 4096;
/// Longest text in a probe, in bytes.
pub const MAX_TEXT: usize = 128;

macro_rules! sections {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
        )*
    };
}

sections! {
    /// Facts about one machine. A fact that the JSON leaves out is unknown.
    pub struct Probe {
        /// Processors.
        pub cpu: Cpu,
        /// Memory encryption of the processor.
        pub sev: Sev,
        /// Main memory.
        pub memory: Memory,
        /// NVDIMMs.
        pub nvdimm: Nvdimm,
        /// NVMe drives, in order of their names.
        pub nvme: Seen<Vec<NvmeDrive>>,
        /// PCI devices, in order of their addresses.
        pub pci: Seen<Vec<PciDevice>>,
        /// Physical network ports.
        pub nics: Seen<Vec<Nic>>,
        /// Trusted Platform Module.
        pub tpm: Tpm,
        /// UEFI and SMBIOS.
        pub firmware: Firmware,
        /// Baseboard management controller.
        pub bmc: Bmc,
        /// The running kernel.
        pub kernel: Kernel,
        /// Clocks.
        pub clock: Clock,
        /// The directory in which a node keeps its state.
        pub directory: Directory,
        /// The virtual machine monitor.
        pub qemu: Qemu,
    }

    /// Processors.
    pub struct Cpu {
        /// Machine name by the kernel, `uname -m`.
        pub architecture: Seen<String>,
        /// `AuthenticAMD`, `GenuineIntel`, ...
        pub vendor: Seen<String>,
        /// CPUID family, extended family included.
        pub family: Seen<u32>,
        /// CPUID model, extended model included.
        pub model: Seen<u32>,
        /// CPUID stepping.
        pub stepping: Seen<u32>,
        /// Marketing name.
        pub model_name: Seen<String>,
        /// All processors have the same vendor, family, model and stepping.
        pub identical: Seen<bool>,
        /// Distinct microcode revisions that run.
        pub microcode: Seen<Vec<u32>>,
        /// Packages.
        pub sockets: Seen<u64>,
        /// Cores of all packages.
        pub cores: Seen<u64>,
        /// Logical processors that are online.
        pub threads: Seen<u64>,
        /// Logical processors that are there but offline.
        pub offline: Seen<u64>,
        /// Two threads run on a core.
        pub smt: Seen<bool>,
        /// Feature flags by the kernel.
        pub flags: Seen<Vec<String>>,
        /// NUMA nodes.
        pub numa_nodes: Seen<u64>,
        /// Present speed of each package by SMBIOS type 4, in MHz, with the socket's name.
        pub speeds: Seen<Vec<(String, u64)>>,
        /// Names under /sys/devices/system/cpu/vulnerabilities whose text begins with `Vulnerable`.
        pub vulnerable: Seen<Vec<String>>,
        /// An IOMMU is in use.
        pub iommu: Seen<bool>,
    }

    /// Memory encryption of the processor.
    pub struct Sev {
        /// Encrypted guests at a time: CPUID 8000_001F ECX (APM volume 3, section E.4.17).
        pub asids: Seen<u64>,
        /// Smallest ASID of a guest with SEV but not SEV-ES: CPUID 8000_001F EDX. Those below are for SEV-ES and
        /// SEV-SNP.
        pub min_sev_asid: Seen<u64>,
        /// SYSCFG (MSR C001_0010) bit 23, MemEncryptionModEn, on all processors: the firmware's SMEE.
        pub smee: Seen<bool>,
        /// SYSCFG bit 24, SecureNestedPagingEn, on all processors: set by the kernel.
        pub snp_en: Seen<bool>,
        /// RMP_BASE (MSR C001_0132): address of the table's first byte; 0 if the firmware reserved none.
        pub rmp_base: Seen<u64>,
        /// RMP_END (MSR C001_0133): address of the table's last byte.
        pub rmp_end: Seen<u64>,
        /// RMP_CFG (MSR C001_0136) bit 0: the table is in segments and RMP_END has no meaning.
        pub rmp_segmented: Seen<bool>,
        /// kvm_amd was initialised for SEV.
        pub kvm_sev: Seen<bool>,
        /// kvm_amd was initialised for SEV-ES.
        pub kvm_sev_es: Seen<bool>,
        /// kvm_amd was initialised for SEV-SNP.
        pub kvm_sev_snp: Seen<bool>,
        /// Answer of the AMD Secure Processor to SNP_PLATFORM_STATUS.
        pub platform: Seen<SnpPlatform>,
    }

    /// SNP_PLATFORM_STATUS (SEV-SNP Firmware ABI, document 56860, section 8.4).
    pub struct SnpPlatform {
        /// API version, major number.
        pub api_major: u8,
        /// API version, minor number.
        pub api_minor: u8,
        /// Build of the firmware.
        pub build: u32,
        /// SNP is initialised (state INIT).
        pub initialised: bool,
        /// The RMP is initialised.
        pub rmp_initialised: bool,
        /// Attestation reports leave the chip's identity out.
        pub chip_id_masked: bool,
        /// Attestation reports are not signed.
        pub chip_key_masked: bool,
        /// TCB version in use; layout by processor generation.
        pub current_tcb: u64,
        /// TCB version in reports.
        pub reported_tcb: u64,
    }

    /// Main memory.
    pub struct Memory {
        /// `MemTotal`, in bytes.
        pub total_bytes: Seen<u64>,
        /// `MemAvailable`, in bytes.
        pub available_bytes: Seen<u64>,
        /// One past the last byte of memory in the physical address space.
        pub end_address: Seen<u64>,
        /// Error correction of the arrays by SMBIOS type 16, distinct: `none`, `parity`, `single-bit`,
        /// `multi-bit`, `crc`.
        pub error_correction: Seen<Vec<String>>,
        /// Slots, empty ones too.
        pub slots: Seen<u64>,
        /// Modules that are fitted.
        pub dimms: Seen<Vec<Dimm>>,
        /// Errors that were corrected since boot, by EDAC.
        pub corrected_errors: Seen<u64>,
        /// Errors that were not corrected since boot, by EDAC.
        pub uncorrected_errors: Seen<u64>,
    }

    /// A memory module, by SMBIOS type 17.
    pub struct Dimm {
        /// Slot.
        pub locator: String,
        /// Bank, often with the channel's name.
        pub bank: String,
        /// Size in bytes.
        pub bytes: u64,
        /// `DDR4`, `DDR5`, else the number of the type.
        pub kind: String,
        /// Speed at which it runs, in MT/s.
        pub mts: Seen<u64>,
        /// Ranks.
        pub ranks: Seen<u64>,
        /// Bits for error correction beside the data.
        pub check_bits: Seen<u64>,
        /// Non-volatile: an NVDIMM.
        pub persistent: bool,
    }

    /// NVDIMMs.
    pub struct Nvdimm {
        /// Sum of the sizes of all namespaces, in bytes.
        pub bytes: Seen<u64>,
        /// Bad blocks of all regions, in sectors of 512 bytes.
        pub badblocks: Seen<u64>,
        /// What survives a power cut without flushing more, of each region: `memory_controller`, `cpu_cache`.
        pub persistence: Seen<Vec<String>>,
        /// Flags of the ACPI NFIT that say something is wrong: `save_fail`, `not_armed`, ...
        pub flags: Seen<Vec<String>>,
    }

    /// An NVMe drive.
    pub struct NvmeDrive {
        /// Name of the block device.
        pub name: String,
        /// Model by the drive.
        pub model: Seen<String>,
        /// Firmware revision by the drive.
        pub firmware: Seen<String>,
        /// Size in bytes.
        pub bytes: Seen<u64>,
        /// PCIe lanes in use.
        pub lanes: Seen<u64>,
        /// PCIe lanes that the drive has.
        pub lanes_max: Seen<u64>,
        /// SMART / Health Information log page.
        pub smart: Seen<Smart>,
        /// Bytes that may be written in its life (endurance group log page, "Endurance Estimate").
        pub endurance_bytes: Seen<u64>,
    }

    /// SMART / Health Information log page (NVM Express Base Specification, section "SMART / Health Information").
    pub struct Smart {
        /// Critical warning bits.
        pub critical_warning: u8,
        /// Temperature in degrees Celsius.
        pub celsius: u64,
        /// Spare capacity that is left, in percent.
        pub spare: u8,
        /// Spare capacity below which the drive warns, in percent.
        pub spare_threshold: u8,
        /// Used share of the drive's life in percent; may exceed 100.
        pub used: u8,
        /// Bytes written by the host, rounded to 512,000.
        pub bytes_written: u64,
        /// Errors of data integrity that were not recovered.
        pub media_errors: u64,
        /// Hours in operation.
        pub hours: u64,
    }

    /// A PCI device.
    pub struct PciDevice {
        /// Domain, bus, device and function: `0000:c1:00.0`.
        pub address: String,
        /// Class, subclass and interface: 0x010802 is NVMe.
        pub class: u32,
        /// Vendor.
        pub vendor: u16,
        /// Device.
        pub device: u16,
    }

    /// A physical network port.
    pub struct Nic {
        /// Name of the interface.
        pub name: String,
        /// The link is up.
        pub up: Seen<bool>,
        /// Speed of the link in megabits per second; 0 without a link.
        pub mbps: Seen<u64>,
    }

    /// Trusted Platform Module.
    pub struct Tpm {
        /// `2.0`, `1.2` or `none`.
        pub version: Seen<String>,
        /// Banks of PCRs that are in use: `sha1`, `sha256`, `sha384`.
        pub banks: Seen<Vec<String>>,
    }

    /// UEFI and SMBIOS.
    pub struct Firmware {
        /// The machine booted by UEFI.
        pub uefi: Seen<bool>,
        /// Revision of the UEFI specification.
        pub uefi_version: Seen<String>,
        /// Secure Boot is on; false as well on a machine that did not boot by UEFI.
        pub secure_boot: Seen<bool>,
        /// Secure Boot has no platform key yet.
        pub setup_mode: Seen<bool>,
        /// Who made the firmware.
        pub vendor: Seen<String>,
        /// Its version.
        pub version: Seen<String>,
        /// Day of its release, in seconds since 1970.
        pub released_unix_s: Seen<u64>,
        /// Who made the machine.
        pub system_vendor: Seen<String>,
        /// What the machine is called.
        pub system_product: Seen<String>,
    }

    /// Baseboard management controller.
    pub struct Bmc {
        /// SMBIOS or the kernel names one.
        pub present: Seen<bool>,
        /// Version of IPMI that it speaks.
        pub ipmi_version: Seen<String>,
        /// Its firmware's version.
        pub firmware: Seen<String>,
    }

    /// The running kernel.
    pub struct Kernel {
        /// `uname -r`.
        pub release: Seen<String>,
        /// /dev/kvm can be opened. Whether guests really boot under it, only a boot can tell.
        pub kvm_device: Seen<bool>,
        /// Hardware watchdogs, by driver.
        pub watchdogs: Seen<Vec<String>>,
    }

    /// Clocks.
    pub struct Clock {
        /// The system clock, in seconds since 1970.
        pub unix_s: Seen<u64>,
        /// The kernel says that something keeps the clock right.
        pub synchronised: Seen<bool>,
        /// What the kernel counts time with: `tsc`, `hpet`, ...
        pub source: Seen<String>,
        /// Seconds between the battery-backed clock and the system's.
        pub rtc_offset_s: Seen<u64>,
    }

    /// The directory in which a node keeps its state.
    pub struct Directory {
        /// Free for this user, in bytes.
        pub free_bytes: Seen<u64>,
        /// Not on a file system in memory.
        pub persistent: Seen<bool>,
        /// A file for NVRAM can be made, sized, written and synchronised there.
        pub nvram_file: Seen<bool>,
    }

    /// The virtual machine monitor. Without it: version `not installed`, empty lists.
    pub struct Qemu {
        /// `7.2.22`.
        pub version: Seen<String>,
        /// Accelerators built in: `kvm`, `tcg`, ...
        pub accelerators: Seen<Vec<String>>,
        /// Devices that it can emulate.
        pub devices: Seen<Vec<String>>,
        /// Object types: `sev-snp-guest`, ...
        pub objects: Seen<Vec<String>>,
    }
}

/// A recorded probe cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Not read at all.
    #[error(
        "the probe has {0} bytes; at most {MAX_PROBE} are read; record it again: redoubt hw probe --json"
    )]
    TooLong(usize),
    /// No JSON, an unknown field, a value of the wrong type.
    #[error("the probe cannot be read; record it again with the same version of the program: {0}")]
    Json(String),
    /// A text that is too long, or that would do things to a terminal.
    #[error(
        "the probe has a text over {MAX_TEXT} bytes or with characters other than printable ASCII; record it again"
    )]
    Text,
    /// A list that is too long.
    #[error("the probe has a list of {0} items; at most {MAX_ITEMS} are accepted; record it again")]
    TooManyItems(usize),
}

impl Probe {
    /// Reads a recorded probe. It may come from anyone.
    pub fn from_json(bytes: &[u8]) -> Result<Probe, ProbeError> {
        if bytes.len() > MAX_PROBE {
            return Err(ProbeError::TooLong(bytes.len()));
        }
        // Not straight into the type, so that even an unknown field's name has passed the limits before an
        // error message quotes it. The parser's own messages about bad syntax quote nothing.
        let value: Value = serde_json::from_slice(bytes).map_err(|e| ProbeError::Json(e.to_string()))?;
        limit(&value)?;
        serde_json::from_value(value).map_err(|e| ProbeError::Json(e.to_string()))
    }
}

fn limit(value: &Value) -> Result<(), ProbeError> {
    match value {
        Value::String(text) => limit_text(text),
        Value::Array(items) if items.len() > MAX_ITEMS => Err(ProbeError::TooManyItems(items.len())),
        Value::Array(items) => items.iter().try_for_each(limit),
        Value::Object(members) => {
            members.iter().try_for_each(|(key, member)| limit_text(key).and_then(|()| limit(member)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn limit_text(text: &str) -> Result<(), ProbeError> {
    if text.len() <= MAX_TEXT && text.bytes().all(printable) { Ok(()) } else { Err(ProbeError::Text) }
}

fn printable(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e)
}

/// Makes a text fit for [`Probe::from_json`]: trimmed, cut, other characters replaced.
pub(crate) fn clean(text: impl AsRef<[u8]>) -> String {
    let trimmed = text.as_ref().trim_ascii();
    trimmed.iter().take(MAX_TEXT).map(|b| if printable(*b) { char::from(*b) } else { '?' }).collect()
}
