//! Facts: the questions that a specification can ask about a probe.

use serde::{Deserialize, Serialize};

/// What kind of value a fact is, and with it which conditions fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number(Unit),
    /// A number for each of several parts; a condition must hold for every one, and there must be one.
    Each(Unit),
    /// A text.
    Text,
    /// A version.
    Version,
    /// A set of texts.
    Set,
    /// Yes or no.
    Flag,
}

impl Kind {
    /// For people: `number of bytes`, `text`, ...
    pub fn describe(self) -> String {
        match self {
            Kind::Number(unit) => format!("number{}", unit.of()),
            Kind::Each(unit) => format!("number{} for each part", unit.of()),
            Kind::Text => "text".into(),
            Kind::Version => "version".into(),
            Kind::Set => "set of texts".into(),
            Kind::Flag => "true or false".into(),
        }
    }
}

/// Unit of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Megabits per second.
    MegabitsPerSecond,
    /// Megatransfers per second.
    MegatransfersPerSecond,
    /// Megahertz.
    Megahertz,
    /// Percent.
    Percent,
    /// Degrees Celsius.
    Celsius,
    /// Seconds.
    Seconds,
    /// Seconds since 1970.
    UnixTime,
    /// Hundredths of the drive's size that may be written each day for five years.
    CentiDwpd,
    /// A number that is written in hexadecimal.
    Hex,
}

impl Unit {
    fn of(self) -> &'static str {
        match self {
            Unit::Count => "",
            Unit::Bytes => " of bytes",
            Unit::MegabitsPerSecond => " of Mb/s",
            Unit::MegatransfersPerSecond => " of MT/s",
            Unit::Megahertz => " of MHz",
            Unit::Percent => " of percent",
            Unit::Celsius => " of degrees Celsius",
            Unit::Seconds => " of seconds",
            Unit::UnixTime => " of seconds since 1970",
            Unit::CentiDwpd => " of hundredths of a drive write per day",
            Unit::Hex => ", shown in hexadecimal",
        }
    }

    /// A value for people.
    pub fn show(self, value: u64) -> String {
        match self {
            Unit::Count => value.to_string(),
            // With the exact value, since a near miss would look like a hit when rounded.
            Unit::Bytes if value >= 1 << 20 => {
                let hundredths = (u128::from(value) * 100) >> 30;
                format!("{}.{:02} GiB ({value} bytes)", hundredths / 100, hundredths % 100)
            }
            Unit::Bytes => format!("{value} bytes"),
            Unit::MegabitsPerSecond => format!("{value} Mb/s"),
            Unit::MegatransfersPerSecond => format!("{value} MT/s"),
            Unit::Megahertz => format!("{value} MHz"),
            Unit::Percent => format!("{value} %"),
            Unit::Celsius => format!("{value} C"),
            Unit::Seconds => format!("{value} s"),
            Unit::UnixTime => crate::calendar::date(value),
            Unit::CentiDwpd => format!("{}.{:02} drive writes per day", value / 100, value % 100),
            Unit::Hex => format!("{value:#010x}"),
        }
    }
}

macro_rules! facts {
    ($($(#[doc = $meaning:literal])+ $name:ident: $kind:expr;)*) => {
        /// What a check looks at. The name in a specification is the variant's in kebab case (`cpu-threads`).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Fact { $($(#[doc = $meaning])+ $name,)* }

        impl Fact {
            /// All facts.
            pub const ALL: &[Fact] = &[$(Fact::$name),*];

            /// What kind of value it is.
            pub fn kind(self) -> Kind {
                use {Kind::*, Unit::*};
                match self { $(Fact::$name => $kind,)* }
            }

            /// What it is, in words.
            pub fn meaning(self) -> &'static str {
                match self { $(Fact::$name => concat!($($meaning),+).trim_ascii(),)* }
            }
        }
    };
}

facts! {
    /// Machine name by the kernel: x86_64.
    CpuArchitecture: Text;
    /// EPYC generation by family and model: naples, rome, milan, genoa, turin; else vendor, family and model.
    CpuGeneration: Text;
    /// Marketing name of the processor.
    CpuModel: Text;
    /// All processors have the same family, model and stepping.
    CpuIdentical: Flag;
    /// Microcode revisions that run, one for each that differs.
    CpuMicrocode: Each(Hex);
    /// Feature flags as in /proc/cpuinfo.
    CpuFlags: Set;
    /// Packages.
    CpuSockets: Number(Count);
    /// Cores of all packages.
    CpuCores: Number(Count);
    /// Logical processors that are online.
    CpuThreads: Number(Count);
    /// Logical processors that are there but offline.
    CpuOffline: Number(Count);
    /// Two threads run on a core.
    CpuSmt: Flag;
    /// Present speed of each package by SMBIOS.
    CpuSpeed: Each(Megahertz);
    /// Known flaws of the processor that the kernel does not mitigate.
    CpuVulnerable: Set;
    /// NUMA nodes.
    NumaNodes: Number(Count);
    /// The machine is real: no hypervisor announces itself.
    BareMetal: Flag;
    /// An IOMMU is in use.
    Iommu: Flag;
    /// The firmware turned memory encryption on (SYSCFG bit MemEncryptionModEn; SMEE in the menu).
    SevSmee: Flag;
    /// Encrypted guests that can run at a time.
    SevAsids: Number(Count);
    /// Of these, guests with SEV-ES or SEV-SNP.
    SnpAsids: Number(Count);
    /// The firmware reserved an RMP that has an entry for every page of memory.
    SnpRmpCoversMemory: Flag;
    /// The kernel turned secure nested paging on (SYSCFG bit SecureNestedPagingEn).
    SnpOn: Flag;
    /// KVM can start SEV-ES guests.
    SevEsEnabled: Flag;
    /// KVM can start SEV-SNP guests.
    SnpEnabled: Flag;
    /// The AMD Secure Processor is initialised for SNP.
    SnpInitialised: Flag;
    /// API version of the AMD Secure Processor's SNP firmware.
    SnpApi: Version;
    /// Attestation reports name the chip (CHIP_ID is not masked) and are signed.
    SnpReportsComplete: Flag;
    /// The TCB version in reports is the one in use: nothing newer awaits SNP_COMMIT or SNP_SET_CONFIG.
    SnpTcbReported: Flag;
    /// TCB version in use: boot loader.
    TcbBootloader: Number(Count);
    /// TCB version in use: trusted operating system of the Secure Processor.
    TcbTee: Number(Count);
    /// TCB version in use: SNP firmware.
    TcbSnp: Number(Count);
    /// TCB version in use: microcode.
    TcbMicrocode: Number(Count);
    /// What the kernel manages; firmware, RMP and the kernel's own tables are off already.
    MemoryTotal: Number(Bytes);
    /// Available without swapping.
    MemoryAvailable: Number(Bytes);
    /// Sum of the volatile modules by SMBIOS.
    MemoryInstalled: Number(Bytes);
    /// Volatile modules that are fitted.
    DimmCount: Number(Count);
    /// Size of each volatile module.
    DimmSize: Each(Bytes);
    /// Speed at which each volatile module runs.
    DimmSpeed: Each(MegatransfersPerSecond);
    /// Ranks of each volatile module.
    DimmRanks: Each(Count);
    /// Check bits of each volatile module: 8 or more with ECC.
    DimmCheckBits: Each(Count);
    /// Memory channels with a volatile module, of all sockets, by the names of banks and slots.
    MemoryChannels: Number(Count);
    /// Error correction of the memory by SMBIOS: none, parity, single-bit, multi-bit, crc.
    MemoryErrorCorrection: Set;
    /// Memory errors since boot that were corrected.
    MemoryCorrectedErrors: Number(Count);
    /// Memory errors since boot that were not corrected.
    MemoryUncorrectedErrors: Number(Count);
    /// Sum of the NVDIMM namespaces.
    NvdimmTotal: Number(Bytes);
    /// Bad blocks of the NVDIMMs.
    NvdimmBadblocks: Number(Count);
    /// What of the NVDIMMs survives a power cut: memory_controller, cpu_cache.
    NvdimmPersistence: Set;
    /// What the firmware says is wrong with NVDIMMs: save_fail, restore_fail, flush_fail, not_armed, ...
    NvdimmFlags: Set;
    /// What can back the guest's NVRAM: nvdimm, file.
    NvramMedia: Set;
    /// NVMe drives.
    NvmeCount: Number(Count);
    /// Size of each NVMe drive.
    NvmeSize: Each(Bytes);
    /// Size of all NVMe drives together.
    NvmeTotal: Number(Bytes);
    /// Writes that each NVMe drive bears: by the drive, else estimated from the class that its size belongs to.
    NvmeEndurance: Each(CentiDwpd);
    /// Used share of each NVMe drive's life.
    NvmeUsed: Each(Percent);
    /// Spare capacity of each NVMe drive above its threshold.
    NvmeSpare: Each(Percent);
    /// Critical warning bits of each NVMe drive.
    NvmeWarning: Each(Hex);
    /// Errors of each NVMe drive that lost data.
    NvmeMediaErrors: Each(Count);
    /// Temperature of each NVMe drive.
    NvmeTemperature: Each(Celsius);
    /// PCIe lanes that each NVMe drive has but does not use.
    NvmeLanesUnused: Each(Count);
    /// RAID and SAS controllers.
    RaidControllers: Number(Count);
    /// Physical network ports.
    NicPorts: Number(Count);
    /// Fastest network link that is up.
    NicSpeed: Number(MegabitsPerSecond);
    /// Second fastest network link that is up; 0 if there is none.
    NicSecondSpeed: Number(MegabitsPerSecond);
    /// Version of the TPM: 2.0, 1.2 or none.
    Tpm: Text;
    /// Banks of PCRs in use: sha1, sha256, sha384.
    TpmBanks: Set;
    /// The machine booted by UEFI.
    Uefi: Flag;
    /// Revision of the UEFI specification that the firmware follows.
    UefiVersion: Version;
    /// UEFI Secure Boot is on.
    SecureBoot: Flag;
    /// Secure Boot awaits its platform key.
    SecureBootSetupMode: Flag;
    /// Day on which the firmware was released.
    FirmwareDate: Number(UnixTime);
    /// Maker of the machine.
    SystemVendor: Text;
    /// Name of the machine.
    SystemProduct: Text;
    /// There is a baseboard management controller.
    Bmc: Flag;
    /// Version of IPMI that the management controller speaks.
    IpmiVersion: Version;
    /// Version of the running kernel.
    KernelVersion: Version;
    /// Hardware watchdogs.
    Watchdogs: Set;
    /// The machine's clock.
    Clock: Number(UnixTime);
    /// Something keeps the machine's clock right.
    ClockSynchronised: Flag;
    /// What the kernel counts time with: tsc, hpet, acpi_pm, ...
    ClockSource: Text;
    /// Between the battery-backed clock and the system's.
    RtcOffset: Number(Seconds);
    /// Free in the node's directory.
    DirectoryFree: Number(Bytes);
    /// The node's directory outlives a reboot (it is not in memory).
    DirectoryPersistent: Flag;
    /// Accelerators of QEMU; kvm only if its device can be opened.
    Accelerators: Set;
    /// Version of QEMU.
    QemuVersion: Version;
    /// Devices that QEMU can emulate.
    QemuDevices: Set;
    /// Object types of QEMU: sev-snp-guest, ...
    QemuObjects: Set;
}

impl Fact {
    /// Its name in specifications.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
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
    fn values_are_shown_with_their_unit() {
        assert_eq!(Unit::Bytes.show(2 << 30), "2.00 GiB (2147483648 bytes)");
        assert_eq!(Unit::Bytes.show((2 << 30) - 1), "1.99 GiB (2147483647 bytes)");
        assert_eq!(Unit::Bytes.show(12), "12 bytes");
        assert_eq!(Unit::CentiDwpd.show(305), "3.05 drive writes per day");
        assert_eq!(Unit::Hex.show(0x0a00_11db), "0x0a0011db");
    }

    #[test]
    fn facts_have_names_and_meanings() {
        assert_eq!(Fact::SnpRmpCoversMemory.name(), "snp-rmp-covers-memory");
        for fact in Fact::ALL {
            assert!(fact.meaning().ends_with('.') && !fact.name().is_empty(), "{fact:?}");
        }
    }

    proptest! {
        #[test]
        fn showing_never_panics(value: u64, text in ".{0,40}") {
            for fact in Fact::ALL {
                if let Kind::Number(unit) | Kind::Each(unit) = fact.kind() {
                    unit.show(value);
                }
            }
            version(&text);
        }
    }
}
