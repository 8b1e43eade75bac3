//! What a machine was found to have.

mod linux;

pub use linux::this_machine;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest recorded probe that is read, in bytes.
const MAX_PROBE: usize = 256 * 1024;
/// Most items of a list in a probe.
const MAX_ITEMS: usize = 4096;
/// Longest text in a probe, in bytes.
const MAX_TEXT: usize = 128;

/// Facts about one machine. `None` is "could not be found out"; what is known to be absent is zero, empty,
/// false, or a text that says so.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Processors.
    #[serde(default)]
    pub cpu: Cpu,
    /// Main memory.
    #[serde(default)]
    pub memory: Memory,
    /// The directory in which a node keeps its state.
    #[serde(default)]
    pub directory: Directory,
    /// The virtual machine monitor.
    #[serde(default)]
    pub qemu: Qemu,
    /// /dev/kvm can be opened. Whether guests really boot under it, only a boot can tell.
    pub kvm_device: Option<bool>,
    /// Sum of the sizes of all NVDIMM namespaces, in bytes.
    pub nvdimm_bytes: Option<u64>,
    /// Sizes of the NVMe drives, in bytes.
    pub nvme_bytes: Option<Vec<u64>>,
    /// Speeds of the physical network links that are up, in megabits per second.
    pub nic_mbps: Option<Vec<u64>>,
    /// `2.0`, `1.2` or `none`.
    pub tpm: Option<String>,
    /// UEFI Secure Boot is on; false as well on a machine that did not boot by UEFI.
    pub secure_boot: Option<bool>,
    /// kvm_amd was initialised for SEV-SNP.
    pub snp_enabled: Option<bool>,
    /// Release of the running kernel, `uname -r`.
    pub kernel_release: Option<String>,
    /// The machine's clock, in seconds since 1970.
    pub clock_unix_s: Option<u64>,
}

/// Processors.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Machine name by the kernel, `uname -m`.
    pub architecture: Option<String>,
    /// `AuthenticAMD`, `GenuineIntel`, ...
    pub vendor: Option<String>,
    /// CPUID family, extended family included.
    pub family: Option<u32>,
    /// CPUID model, extended model included.
    pub model: Option<u32>,
    /// Marketing name; for people only.
    pub model_name: Option<String>,
    /// Packages.
    pub sockets: Option<u64>,
    /// Logical processors.
    pub threads: Option<u64>,
    /// Feature flags by the kernel.
    pub flags: Option<Vec<String>>,
}

/// Main memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// `MemTotal`, in bytes.
    pub total_bytes: Option<u64>,
    /// `MemAvailable`, in bytes.
    pub available_bytes: Option<u64>,
}

/// The directory in which a node keeps its state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Free for this user, in bytes.
    pub free_bytes: Option<u64>,
    /// Not on a file system in memory.
    pub persistent: Option<bool>,
    /// A file for NVRAM can be made, sized, written and synchronised there.
    pub nvram_file: Option<bool>,
}

/// The virtual machine monitor. Without it: version `not installed`, empty lists.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    /// `7.2.22`.
    pub version: Option<String>,
    /// Accelerators built in: `kvm`, `tcg`, ...
    pub accelerators: Option<Vec<String>>,
    /// Devices that it can emulate.
    pub devices: Option<Vec<String>>,
}

/// A recorded probe cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Not read at all.
    #[error("the probe has {0} bytes; at most {MAX_PROBE} are read")]
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
