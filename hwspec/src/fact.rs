//! Facts: the questions that a specification can ask about a probe.

use crate::Probe;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What a check looks at. The name in a specification is the variant's in kebab case (`cpu-threads`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    /// Text: machine name by the kernel, `x86_64`.
    CpuArchitecture,
    /// Text: `naples`, `rome`, `milan`, `genoa`, `turin`, else vendor, family and model.
    CpuGeneration,
    /// Set: feature flags as in /proc/cpuinfo.
    CpuFlags,
    /// Number: packages.
    CpuSockets,
    /// Number: logical processors.
    CpuThreads,
    /// Bytes: what the kernel manages; firmware, RMP and the kernel's own tables are off already.
    MemoryTotal,
    /// Bytes: available without swapping.
    MemoryAvailable,
    /// Bytes: free in the node's directory.
    DirectoryFree,
    /// Flag: the node's directory outlives a reboot (it is not in memory).
    DirectoryPersistent,
    /// Set of `nvdimm`, `file`: what can back the guest's NVRAM.
    NvramMedia,
    /// Bytes: sum of the NVDIMM namespaces.
    NvdimmTotal,
    /// Set: accelerators of QEMU; `kvm` only if its device can be opened.
    Accelerators,
    /// Version of QEMU.
    QemuVersion,
    /// Set: devices that QEMU can emulate.
    QemuDevices,
    /// Version of the running kernel.
    KernelVersion,
    /// Flag: KVM can start SEV-SNP guests.
    SnpEnabled,
    /// Text: `2.0`, `1.2` or `none`.
    Tpm,
    /// Flag: UEFI Secure Boot is on.
    SecureBoot,
    /// Number: NVMe drives.
    NvmeCount,
    /// Bytes: the smallest NVMe drive.
    NvmeSmallest,
    /// Bytes: all NVMe drives.
    NvmeTotal,
    /// Megabits per second: fastest network link that is up.
    NicSpeed,
    /// Seconds since 1970: the machine's clock.
    Clock,
}

/// Unit of a number, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Count,
    Bytes,
    MegabitsPerSecond,
    UnixTime,
}

impl Unit {
    pub(crate) fn show(self, value: u64) -> String {
        match self {
            Unit::Count => value.to_string(),
            // With the exact value, since a near miss would look like a hit when rounded.
            Unit::Bytes if value >= 1 << 20 => {
                let hundredths = (u128::from(value) * 100) >> 30;
                format!("{}.{:02} GiB ({value} bytes)", hundredths / 100, hundredths % 100)
            }
            Unit::Bytes => format!("{value} bytes"),
            Unit::MegabitsPerSecond => format!("{value} Mb/s"),
            Unit::UnixTime => date(value),
        }
    }
}

/// A fact as found; `None` if the probe does not know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Number(Option<u64>, Unit),
    Text(Option<Cow<'a, str>>),
    Version(Option<&'a str>),
    Set(Option<Vec<&'a str>>),
    Flag(Option<bool>),
}

impl Fact {
    /// Looks the fact up in a probe. The variant depends on the fact alone.
    pub(crate) fn look<'a>(self, probe: &'a Probe) -> Found<'a> {
        let Probe { cpu, memory, directory, qemu, .. } = probe;
        let text = |text: &'a Option<String>| Found::Text(text.as_deref().map(Cow::Borrowed));
        let set = |set: &'a Option<Vec<String>>| {
            Found::Set(set.as_ref().map(|items| items.iter().map(String::as_str).collect()))
        };
        let count = |count: Option<u64>| Found::Number(count, Unit::Count);
        let bytes = |bytes: Option<u64>| Found::Number(bytes, Unit::Bytes);
        let nvme = probe.nvme_bytes.as_deref();
        match self {
            Fact::CpuArchitecture => text(&cpu.architecture),
            Fact::CpuGeneration => Found::Text(generation(cpu).map(Cow::Owned)),
            Fact::CpuFlags => set(&cpu.flags),
            Fact::CpuSockets => count(cpu.sockets),
            Fact::CpuThreads => count(cpu.threads),
            Fact::MemoryTotal => bytes(memory.total_bytes),
            Fact::MemoryAvailable => bytes(memory.available_bytes),
            Fact::DirectoryFree => bytes(directory.free_bytes),
            Fact::DirectoryPersistent => Found::Flag(directory.persistent),
            Fact::NvramMedia => Found::Set(nvram_media(probe)),
            Fact::NvdimmTotal => bytes(probe.nvdimm_bytes),
            Fact::Accelerators => Found::Set(accelerators(probe)),
            Fact::QemuVersion => Found::Version(qemu.version.as_deref()),
            Fact::QemuDevices => set(&qemu.devices),
            Fact::KernelVersion => Found::Version(probe.kernel_release.as_deref()),
            Fact::SnpEnabled => Found::Flag(probe.snp_enabled),
            Fact::Tpm => text(&probe.tpm),
            Fact::SecureBoot => Found::Flag(probe.secure_boot),
            Fact::NvmeCount => count(nvme.map(|drives| drives.len() as u64)),
            Fact::NvmeSmallest => bytes(nvme.map(|drives| drives.iter().copied().min().unwrap_or(0))),
            Fact::NvmeTotal => {
                bytes(nvme.map(|drives| drives.iter().fold(0, |sum: u64, drive| sum.saturating_add(*drive))))
            }
            Fact::NicSpeed => Found::Number(
                probe.nic_mbps.as_ref().map(|links| links.iter().copied().max().unwrap_or(0)),
                Unit::MegabitsPerSecond,
            ),
            Fact::Clock => Found::Number(probe.clock_unix_s, Unit::UnixTime),
        }
    }
}

/// The EPYC generation by family and model: from Milan on the ranges by which AMD names the product of a VCEK
/// (Bergamo and Siena count as Genoa); Naples and Rome by their model numbers in family 17h.
fn generation(cpu: &crate::probe::Cpu) -> Option<String> {
    let (vendor, family, model) = (cpu.vendor.as_deref()?, cpu.family?, cpu.model?);
    Some(match (vendor, family, model) {
        ("AuthenticAMD", 0x17, 0x00..=0x0f) => "naples".into(),
        ("AuthenticAMD", 0x17, 0x30..=0x3f) => "rome".into(),
        ("AuthenticAMD", 0x19, 0x00..=0x0f) => "milan".into(),
        ("AuthenticAMD", 0x19, 0x10..=0x1f | 0xa0..=0xaf) => "genoa".into(),
        ("AuthenticAMD", 0x1a, 0x00..=0x11) => "turin".into(),
        _ => format!("{vendor} family {family} model {model}"),
    })
}

fn nvram_media(probe: &Probe) -> Option<Vec<&'static str>> {
    let (nvdimm, file) = (probe.nvdimm_bytes.map(|bytes| bytes > 0), probe.directory.nvram_file);
    if nvdimm.is_none() && file.is_none() {
        return None;
    }
    let mut media = Vec::new();
    if nvdimm == Some(true) {
        media.push("nvdimm");
    }
    if file == Some(true) {
        media.push("file");
    }
    Some(media)
}

fn accelerators(probe: &Probe) -> Option<Vec<&str>> {
    let listed = probe.qemu.accelerators.as_ref()?;
    let usable = |name: &&str| *name != "kvm" || probe.kvm_device == Some(true);
    Some(listed.iter().map(String::as_str).filter(usable).collect())
}

/// The first three numbers of a version: `7.2.22` and `6.18.44-cloud` have three, `7.2` gets a zero.
pub(crate) fn version(text: &str) -> Option<[u32; 3]> {
    let mut numbers = [0; 3];
    for (i, (number, part)) in numbers.iter_mut().zip(text.split('.')).enumerate() {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        match part[..end].parse() {
            Ok(parsed) => *number = parsed,
            // `7.2.rc1` is 7.2.0; a text that does not begin with a number is no version.
            Err(_) if i > 0 => break,
            Err(_) => return None,
        }
        if end < part.len() {
            break;
        }
    }
    Some(numbers)
}

/// Day of a time in UTC, proleptic Gregorian: `2026-01-31`.
fn date(unix_s: u64) -> String {
    // Counting years from March puts the leap day last; eras of 400 years repeat exactly.
    let days = unix_s / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions() {
        assert_eq!(version("7.2.22"), Some([7, 2, 22]));
        assert_eq!(version("7.2"), Some([7, 2, 0]));
        assert_eq!(version("6.18.44-fc.9"), Some([6, 18, 44]));
        assert_eq!(version("6.1-rc3.5"), Some([6, 1, 0]));
        assert_eq!(version("10.0.2"), Some([10, 0, 2]));
        assert!(version("10.0.2") > version("7.2.22"));
        for none in ["", "not installed", ".7", "99999999999"] {
            assert_eq!(version(none), None, "{none}");
        }
    }

    #[test]
    fn dates() {
        // By `date -u -d @N +%F`.
        for (unix_s, expected) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_767_225_599, "2025-12-31"),
            (1_767_225_600, "2026-01-01"),
            (4_102_444_800, "2100-01-01"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(unix_s), expected, "{unix_s}");
        }
    }

    #[test]
    fn bytes_show_near_misses() {
        assert_eq!(Unit::Bytes.show(2 << 30), "2.00 GiB (2147483648 bytes)");
        assert_eq!(Unit::Bytes.show((2 << 30) - 1), "1.99 GiB (2147483647 bytes)");
        assert_eq!(Unit::Bytes.show(12), "12 bytes");
    }

    proptest! {
        #[test]
        fn showing_never_panics(value: u64, text in ".{0,40}") {
            for unit in [Unit::Count, Unit::Bytes, Unit::MegabitsPerSecond, Unit::UnixTime] {
                unit.show(value);
            }
            version(&text);
        }
    }
}
