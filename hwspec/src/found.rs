//! Looking a fact up in a probe.

use crate::fact::Fact;
use crate::probe::{Dimm, NvmeDrive, Probe, Smart, SnpPlatform};
use crate::seen::Seen;
use crate::sev::{self, TcbPart};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// A fact as found. The variant depends on the fact alone (see [`Fact::kind`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Number(u64),
    /// Names of the parts, and the value or the reason why it is not known.
    Each(Vec<(Cow<'a, str>, Result<u64, &'a str>)>),
    Text(Cow<'a, str>),
    Version(Cow<'a, str>),
    Set(Vec<&'a str>),
    Flag(bool),
}

type Look<'a> = Result<Found<'a>, &'a str>;

fn number(seen: &Seen<u64>) -> Look<'_> {
    seen.get().map(|value| Found::Number(*value))
}

fn text(seen: &Seen<String>) -> Look<'_> {
    seen.get().map(|value| Found::Text(value.into()))
}

fn version(seen: &Seen<String>) -> Look<'_> {
    seen.get().map(|value| Found::Version(value.into()))
}

fn flag(seen: &Seen<bool>) -> Look<'_> {
    seen.get().map(|value| Found::Flag(*value))
}

fn set(seen: &Seen<Vec<String>>) -> Look<'_> {
    seen.get().map(|items| Found::Set(items.iter().map(String::as_str).collect()))
}

impl Fact {
    /// Looks the fact up; the reason if the probe does not tell.
    pub(crate) fn look(self, probe: &Probe) -> Look<'_> {
        let Probe { cpu, sev, memory, nvdimm, firmware, bmc, kernel, clock, directory, qemu, .. } = probe;
        match self {
            Fact::CpuArchitecture => text(&cpu.architecture),
            Fact::CpuGeneration => sev::generation(cpu).map(|name| Found::Text(name.into())),
            Fact::CpuModel => text(&cpu.model_name),
            Fact::CpuIdentical => flag(&cpu.identical),
            Fact::CpuMicrocode => {
                let revisions = cpu.microcode.get()?;
                Ok(Found::Each(
                    revisions.iter().map(|revision| ("".into(), Ok(u64::from(*revision)))).collect(),
                ))
            }
            Fact::CpuFlags => set(&cpu.flags),
            Fact::CpuSockets => number(&cpu.sockets),
            Fact::CpuCores => number(&cpu.cores),
            Fact::CpuThreads => number(&cpu.threads),
            Fact::CpuOffline => number(&cpu.offline),
            Fact::CpuSmt => flag(&cpu.smt),
            Fact::CpuSpeed => {
                let speeds = cpu.speeds.get()?;
                Ok(Found::Each(speeds.iter().map(|(name, mhz)| (name.into(), Ok(*mhz))).collect()))
            }
            Fact::CpuVulnerable => set(&cpu.vulnerable),
            Fact::NumaNodes => number(&cpu.numa_nodes),
            Fact::BareMetal => {
                cpu.flags.get().map(|flags| Found::Flag(!flags.iter().any(|f| f == "hypervisor")))
            }
            Fact::Iommu => flag(&cpu.iommu),
            Fact::SevSmee => flag(&sev.smee),
            Fact::SevAsids => number(&sev.asids),
            Fact::SnpAsids => {
                sev.min_sev_asid.get().map(|smallest| Found::Number(smallest.saturating_sub(1)))
            }
            Fact::SnpRmpCoversMemory => sev::rmp_covers_memory(probe).map(Found::Flag),
            Fact::SnpOn => flag(&sev.snp_en),
            Fact::SevEsEnabled => flag(&sev.kvm_sev_es),
            Fact::SnpEnabled => flag(&sev.kvm_sev_snp),
            Fact::SnpInitialised
            | Fact::SnpApi
            | Fact::SnpReportsComplete
            | Fact::SnpTcbReported
            | Fact::TcbBootloader
            | Fact::TcbTee
            | Fact::TcbSnp
            | Fact::TcbMicrocode => self.look_at_platform(sev.platform.get()?, cpu),
            Fact::MemoryTotal => number(&memory.total_bytes),
            Fact::MemoryAvailable => number(&memory.available_bytes),
            Fact::MemoryInstalled
            | Fact::DimmCount
            | Fact::DimmSize
            | Fact::DimmSpeed
            | Fact::DimmRanks
            | Fact::DimmCheckBits
            | Fact::MemoryChannels => {
                let dimms: Vec<&Dimm> = memory.dimms.get()?.iter().filter(|dimm| !dimm.persistent).collect();
                self.look_at_dimms(&dimms)
            }
            Fact::MemoryErrorCorrection => set(&memory.error_correction),
            Fact::MemoryCorrectedErrors => number(&memory.corrected_errors),
            Fact::MemoryUncorrectedErrors => number(&memory.uncorrected_errors),
            Fact::NvdimmTotal => number(&nvdimm.bytes),
            Fact::NvdimmBadblocks => number(&nvdimm.badblocks),
            Fact::NvdimmPersistence => set(&nvdimm.persistence),
            Fact::NvdimmFlags => set(&nvdimm.flags),
            Fact::NvramMedia => nvram_media(probe),
            Fact::NvmeCount
            | Fact::NvmeSize
            | Fact::NvmeTotal
            | Fact::NvmeEndurance
            | Fact::NvmeUsed
            | Fact::NvmeSpare
            | Fact::NvmeWarning
            | Fact::NvmeMediaErrors
            | Fact::NvmeTemperature
            | Fact::NvmeLanesUnused => self.look_at_drives(probe.nvme.get()?),
            Fact::RaidControllers => {
                // Mass storage, RAID or SAS (PCI Code and ID Assignment Specification, class 01h).
                let raid = |class: u32| matches!(class >> 8, 0x0104 | 0x0107);
                let devices = probe.pci.get()?;
                Ok(Found::Number(devices.iter().filter(|device| raid(device.class)).count() as u64))
            }
            Fact::NicPorts => Ok(Found::Number(probe.nics.get()?.len() as u64)),
            Fact::NicSpeed => nic_speed(probe, 0),
            Fact::NicSecondSpeed => nic_speed(probe, 1),
            Fact::Tpm => text(&probe.tpm.version),
            Fact::TpmBanks => set(&probe.tpm.banks),
            Fact::Uefi => flag(&firmware.uefi),
            Fact::UefiVersion => version(&firmware.uefi_version),
            Fact::SecureBoot => flag(&firmware.secure_boot),
            Fact::SecureBootSetupMode => flag(&firmware.setup_mode),
            Fact::FirmwareDate => number(&firmware.released_unix_s),
            Fact::SystemVendor => text(&firmware.system_vendor),
            Fact::SystemProduct => text(&firmware.system_product),
            Fact::Bmc => flag(&bmc.present),
            Fact::IpmiVersion => version(&bmc.ipmi_version),
            Fact::KernelVersion => version(&kernel.release),
            Fact::Watchdogs => set(&kernel.watchdogs),
            Fact::Clock => number(&clock.unix_s),
            Fact::ClockSynchronised => flag(&clock.synchronised),
            Fact::ClockSource => text(&clock.source),
            Fact::RtcOffset => number(&clock.rtc_offset_s),
            Fact::DirectoryFree => number(&directory.free_bytes),
            Fact::DirectoryPersistent => flag(&directory.persistent),
            Fact::Accelerators => {
                let usable = |name: &&str| *name != "kvm" || kernel.kvm_device == Seen::Known(true);
                let listed = qemu.accelerators.get()?;
                Ok(Found::Set(listed.iter().map(String::as_str).filter(usable).collect()))
            }
            Fact::QemuVersion => version(&qemu.version),
            Fact::QemuDevices => set(&qemu.devices),
            Fact::QemuObjects => set(&qemu.objects),
        }
    }

    fn look_at_platform<'a>(self, platform: &'a SnpPlatform, cpu: &'a crate::probe::Cpu) -> Look<'a> {
        let part = match self {
            Fact::SnpInitialised => {
                return Ok(Found::Flag(platform.initialised && platform.rmp_initialised));
            }
            Fact::SnpApi => {
                let SnpPlatform { api_major, api_minor, build, .. } = platform;
                return Ok(Found::Version(format!("{api_major}.{api_minor}.{build}").into()));
            }
            Fact::SnpReportsComplete => {
                return Ok(Found::Flag(!platform.chip_id_masked && !platform.chip_key_masked));
            }
            Fact::SnpTcbReported => return Ok(Found::Flag(platform.current_tcb == platform.reported_tcb)),
            Fact::TcbBootloader => TcbPart::Bootloader,
            Fact::TcbTee => TcbPart::Tee,
            Fact::TcbSnp => TcbPart::Snp,
            _ => TcbPart::Microcode,
        };
        let generation = sev::generation(cpu)?;
        Ok(Found::Number(sev::tcb_part(platform.current_tcb, &generation, part)))
    }

    fn look_at_dimms<'a>(self, dimms: &[&'a Dimm]) -> Look<'a> {
        let each = |value: fn(&'a Dimm) -> Result<u64, &'a str>| {
            Found::Each(dimms.iter().map(|dimm| (dimm.locator.as_str().into(), value(dimm))).collect())
        };
        Ok(match self {
            Fact::MemoryInstalled => {
                Found::Number(dimms.iter().fold(0, |sum: u64, dimm| sum.saturating_add(dimm.bytes)))
            }
            Fact::DimmCount => Found::Number(dimms.len() as u64),
            Fact::DimmSize => each(|dimm| Ok(dimm.bytes)),
            Fact::DimmSpeed => each(|dimm| dimm.mts.get().copied()),
            Fact::DimmRanks => each(|dimm| dimm.ranks.get().copied()),
            Fact::DimmCheckBits => each(|dimm| dimm.check_bits.get().copied()),
            _ => Found::Number(channels(dimms)?),
        })
    }

    fn look_at_drives(self, drives: &[NvmeDrive]) -> Look<'_> {
        fn each<'a>(
            drives: &'a [NvmeDrive],
            value: impl Fn(&'a NvmeDrive) -> Result<u64, &'a str>,
        ) -> Found<'a> {
            Found::Each(drives.iter().map(|drive| (drive.name.as_str().into(), value(drive))).collect())
        }
        let smart = |value: fn(&Smart) -> u64| each(drives, move |drive| drive.smart.get().map(value));
        Ok(match self {
            Fact::NvmeCount => Found::Number(drives.len() as u64),
            Fact::NvmeTotal => {
                let sizes: Result<Vec<&u64>, &str> = drives.iter().map(|drive| drive.bytes.get()).collect();
                Found::Number(sizes?.into_iter().fold(0, |sum: u64, size| sum.saturating_add(*size)))
            }
            Fact::NvmeSize => each(drives, |drive| drive.bytes.get().copied()),
            Fact::NvmeEndurance => each(drives, endurance),
            Fact::NvmeUsed => smart(|smart| smart.used.into()),
            Fact::NvmeSpare => smart(|smart| smart.spare.saturating_sub(smart.spare_threshold).into()),
            Fact::NvmeWarning => smart(|smart| smart.critical_warning.into()),
            Fact::NvmeMediaErrors => smart(|smart| smart.media_errors),
            Fact::NvmeTemperature => smart(|smart| smart.celsius),
            _ => each(drives, |drive| Ok(drive.lanes_max.get()?.saturating_sub(*drive.lanes.get()?))),
        })
    }
}

/// Drive writes per day over five years, in hundredths: by the drive's own estimate, else by the class to which
/// its size belongs. Vendors sell one drive as 6.4 TB for three writes a day (mixed use) and as 7.68 TB for one
/// (read-intensive): the difference is spare capacity.
fn endurance(drive: &NvmeDrive) -> Result<u64, &str> {
    let bytes = *drive.bytes.get()?;
    if let (Seen::Known(life), 1..) = (&drive.endurance_bytes, bytes) {
        let hundredths = u128::from(*life) * 100 / (u128::from(bytes) * 5 * 365);
        return Ok(u64::try_from(hundredths).unwrap_or(u64::MAX));
    }
    let class = |smallest: u64| {
        (0..6).any(|doublings| {
            let nominal = smallest << doublings;
            bytes.abs_diff(nominal) <= nominal / 100
        })
    };
    if class(800_000_000_000) {
        Ok(300)
    } else if class(960_000_000_000) {
        Ok(100)
    } else {
        Err("the drive does not state its endurance, and its size tells no class")
    }
}

/// Channels of all sockets, by names such as `P0 CHANNEL A`, `P0_Node0_Channel3_Dimm0`, `P1-DIMMA1`, `CPU1_DIMM_A1`,
/// or Dell's `A1` to `A16` and `B1` to `B16`, where the letter is the socket and slots 1 to 8 are channels.
fn channels(dimms: &[&Dimm]) -> Result<u64, &'static str> {
    let mut channels = BTreeSet::new();
    for dimm in dimms {
        let name = |text: &str| text.to_ascii_uppercase().replace(['_', '-'], " ");
        let (bank, locator) = (name(&dimm.bank), name(&dimm.locator));
        let channel = channel_of(&bank)
            .or_else(|| channel_of(&locator))
            .or_else(|| dell_channel(&locator))
            .ok_or("the firmware's names of the slots do not tell the channels")?;
        // The bank may name the channel and the slot the socket.
        let socket = socket_of(&bank).or_else(|| socket_of(&locator)).unwrap_or_default();
        channels.insert((socket, channel));
    }
    Ok(channels.len() as u64)
}

/// What follows `CHANNEL`, or the letter in `DIMMA1`.
fn channel_of(name: &str) -> Option<String> {
    let first_word = |text: &str| text.split_whitespace().next().map(str::to_owned);
    if let Some((_, rest)) = name.split_once("CHANNEL") {
        return first_word(rest);
    }
    let (_, rest) = name.split_once("DIMM")?;
    let letter = rest.trim_start().chars().next().filter(char::is_ascii_uppercase)?;
    Some(letter.to_string())
}

/// `P0`, `CPU1`, `PROC 1`, `NODE 0` at the beginning.
fn socket_of(name: &str) -> Option<String> {
    let rest = ["PROC ", "CPU", "NODE ", "P"].iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

/// `A1`, with the slot's number brought down to the channel's.
fn dell_channel(locator: &str) -> Option<String> {
    let (letter, slot) = locator.split_at_checked(1)?;
    let slot: u32 = slot.parse().ok().filter(|slot| *slot > 0)?;
    letter.chars().all(|c| c.is_ascii_uppercase()).then(|| format!("{letter}{}", (slot - 1) % 8))
}

fn nvram_media(probe: &Probe) -> Look<'_> {
    let nvdimm = probe.nvdimm.bytes.get().map(|bytes| *bytes > 0);
    let file = probe.directory.nvram_file.get().copied();
    if let (Err(_), Err(reason)) = (nvdimm, file) {
        return Err(reason);
    }
    let media = [("nvdimm", nvdimm), ("file", file)];
    Ok(Found::Set(media.into_iter().filter(|(_, there)| *there == Ok(true)).map(|(name, _)| name).collect()))
}

fn nic_speed(probe: &Probe, place: usize) -> Look<'_> {
    let nics = probe.nics.get()?;
    let mut speeds: Vec<u64> = nics
        .iter()
        .filter(|nic| nic.up == Seen::Known(true))
        .filter_map(|nic| nic.mbps.get().ok().copied())
        .collect();
    speeds.sort_unstable_by(|a, b| b.cmp(a));
    match speeds.get(place) {
        Some(speed) => Ok(Found::Number(*speed)),
        // A port whose speed is not known may be the one that was asked for.
        None => match nics.iter().find_map(|nic| nic.up.get().err().or(nic.mbps.get().err())) {
            Some(reason) => Err(reason),
            None => Ok(Found::Number(0)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(names: &[(&str, &str)]) -> Result<u64, &'static str> {
        let dimms: Vec<Dimm> = names
            .iter()
            .map(|(bank, locator)| Dimm {
                bank: (*bank).into(),
                locator: (*locator).into(),
                ..Dimm::default()
            })
            .collect();
        channels(&dimms.iter().collect::<Vec<_>>())
    }

    #[test]
    fn channels_by_the_names_of_the_slots() {
        assert_eq!(
            count(&[("P0 CHANNEL A", "DIMM 0"), ("P0 CHANNEL A", "DIMM 1"), ("P1 CHANNEL A", "DIMM 0")]),
            Ok(2)
        );
        assert_eq!(
            count(&[("P0_Node0_Channel0_Dimm0", "P1-DIMMA1"), ("P0_Node0_Channel1_Dimm0", "P1-DIMMB1")]),
            Ok(2)
        );
        assert_eq!(
            count(&[("BANK 0", "CPU1_DIMM_A1"), ("BANK 1", "CPU1_DIMM_A2"), ("BANK 2", "CPU2_DIMM_A1")]),
            Ok(2)
        );
        // Dell: two sockets, A1 and A9 share a channel.
        assert_eq!(count(&[("", "A1"), ("", "A9"), ("", "A2"), ("", "B1")]), Ok(3));
        assert_eq!(count(&[]), Ok(0));
        assert!(count(&[("BANK 0", "SLOT 7")]).is_err());
        for odd in ["", "A", "A0", "1", "CHANNEL", "DIMM", "A99999999999", "\u{e4}1"] {
            let _ = count(&[("", odd)]);
        }
    }

    #[test]
    fn endurance_by_the_drive_or_its_class() {
        let drive = |bytes, life: Option<u64>| NvmeDrive {
            bytes: Seen::Known(bytes),
            endurance_bytes: Seen::or(life, "not stated"),
            ..NvmeDrive::default()
        };
        assert_eq!(endurance(&drive(6_401_252_745_216, None)), Ok(300));
        assert_eq!(endurance(&drive(3_200_631_791_616, None)), Ok(300));
        assert_eq!(endurance(&drive(7_681_501_126_656, None)), Ok(100));
        assert!(endurance(&drive(5_000_000_000_000, None)).is_err());
        assert_eq!(endurance(&drive(1_000_000, Some(1_000_000 * 365 * 5 * 3))), Ok(300));
        assert_eq!(
            endurance(&drive(1, Some(u64::MAX))),
            Ok(u64::MAX / 1825 * 100 + u64::MAX % 1825 * 100 / 1825)
        );
        assert!(endurance(&drive(0, Some(1))).is_err());
    }
}
