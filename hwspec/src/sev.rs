//! What registers and firmware answers about SEV-SNP mean.

use crate::probe::{Probe, SnpPlatform};

/// Bytes of SNP_PLATFORM_STATUS (SEV-SNP Firmware ABI, document 56860, table "STRUCT_SNP_PLATFORM_STATUS").
pub const PLATFORM_STATUS: usize = 32;

/// Reads SNP_PLATFORM_STATUS as the kernel hands it on.
pub fn platform(status: &[u8; PLATFORM_STATUS]) -> SnpPlatform {
    let number = |from: usize, size: usize| {
        status[from..from + size].iter().rev().fold(0, |n: u64, b| (n << 8) | u64::from(*b))
    };
    let flags = status[8];
    SnpPlatform {
        api_major: status[0],
        api_minor: status[1],
        initialised: status[2] == 1,
        rmp_initialised: status[3] & 1 != 0,
        build: number(4, 4) as u32,
        chip_id_masked: flags & 1 != 0,
        chip_key_masked: flags & 2 != 0,
        current_tcb: number(16, 8),
        reported_tcb: number(24, 8),
    }
}

/// Part of a TCB version.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TcbPart {
    Bootloader,
    Tee,
    Snp,
    Microcode,
}

/// A part of a TCB version; Turin put the FMC first (document 56860, table "TCB_VERSION").
pub(crate) fn tcb_part(tcb: u64, generation: &str, part: TcbPart) -> u64 {
    let bytes = tcb.to_le_bytes();
    let shift = usize::from(generation == "turin");
    u64::from(match part {
        TcbPart::Bootloader => bytes[shift],
        TcbPart::Tee => bytes[1 + shift],
        TcbPart::Snp if shift == 1 => bytes[3],
        TcbPart::Snp => bytes[6],
        TcbPart::Microcode => bytes[7],
    })
}

/// Whether the RMP has an entry for every page of memory.
pub(crate) fn rmp_covers_memory(probe: &Probe) -> Result<bool, &str> {
    let sev = &probe.sev;
    let base = *sev.rmp_base.get()?;
    if base == 0 {
        return Ok(false);
    }
    // A segmented table is described in memory that only the kernel sees. It refuses SNP if memory is left out.
    if *sev.rmp_segmented.get()? {
        return sev.kvm_sev_snp.get().copied();
    }
    let end = *sev.rmp_end.get()?;
    // 16 KiB for the processors, then 16 bytes for each page of 4 KiB (APM volume 2, section 15.36.3).
    let entries = end.saturating_add(1).saturating_sub(base).saturating_sub(16 << 10) / 16;
    Ok(entries.saturating_mul(4096) >= *probe.memory.end_address.get()?)
}

/// The EPYC generation by family and model: from Milan on the ranges by which AMD names the product of a VCEK
/// (Bergamo and Siena count as Genoa); Naples and Rome by their model numbers in family 17h.
pub(crate) fn generation(cpu: &crate::probe::Cpu) -> Result<String, &str> {
    let (vendor, family, model) = (cpu.vendor.get()?, *cpu.family.get()?, *cpu.model.get()?);
    Ok(match (vendor.as_str(), family, model) {
        ("AuthenticAMD", 0x17, 0x00..=0x0f) => "naples".into(),
        ("AuthenticAMD", 0x17, 0x30..=0x3f) => "rome".into(),
        ("AuthenticAMD", 0x19, 0x00..=0x0f) => "milan".into(),
        ("AuthenticAMD", 0x19, 0x10..=0x1f | 0xa0..=0xaf) => "genoa".into(),
        ("AuthenticAMD", 0x1a, 0x00..=0x11) => "turin".into(),
        _ => format!("{vendor} family {family} model {model}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::Seen;

    #[test]
    fn reads_the_platform_status() {
        let mut bytes = [0; PLATFORM_STATUS];
        bytes[..9].copy_from_slice(&[1, 55, 1, 1, 29, 0, 0, 0, 2]);
        bytes[16..24].copy_from_slice(&[4, 0, 0, 0, 0, 0, 24, 219]);
        bytes[24..32].copy_from_slice(&[3, 0, 0, 0, 0, 0, 23, 213]);
        let status = platform(&bytes);
        assert_eq!((status.api_major, status.api_minor, status.build), (1, 55, 29));
        assert!(status.initialised && status.rmp_initialised);
        assert!(!status.chip_id_masked && status.chip_key_masked);
        let parts = |tcb, generation| {
            [TcbPart::Bootloader, TcbPart::Tee, TcbPart::Snp, TcbPart::Microcode]
                .map(|part| tcb_part(tcb, generation, part))
        };
        assert_eq!(parts(status.current_tcb, "milan"), [4, 0, 24, 219]);
        assert_eq!(parts(status.reported_tcb, "genoa"), [3, 0, 23, 213]);
        let turin = u64::from_le_bytes([1, 2, 3, 4, 0, 0, 0, 82]);
        assert_eq!(parts(turin, "turin"), [2, 3, 4, 82]);
    }

    #[test]
    fn coverage_of_the_rmp() {
        let mut probe = Probe::default();
        assert!(rmp_covers_memory(&probe).is_err());
        probe.sev.rmp_base = Seen::Known(0);
        assert_eq!(rmp_covers_memory(&probe), Ok(false));
        // One entry for each of 256 pages: one MiB.
        probe.sev.rmp_base = Seen::Known(0x1000_0000);
        probe.sev.rmp_end = Seen::Known(0x1000_0000 + (16 << 10) + 256 * 16 - 1);
        probe.sev.rmp_segmented = Seen::Known(false);
        for (end, covered) in [(1 << 20, true), ((1 << 20) + 1, false)] {
            probe.memory.end_address = Seen::Known(end);
            assert_eq!(rmp_covers_memory(&probe), Ok(covered));
        }
        probe.sev.rmp_end = Seen::Known(u64::MAX);
        assert_eq!(rmp_covers_memory(&probe), Ok(true));
        probe.sev.rmp_end = Seen::Known(0);
        assert_eq!(rmp_covers_memory(&probe), Ok(false));
        probe.sev.rmp_segmented = Seen::Known(true);
        probe.sev.kvm_sev_snp = Seen::Known(true);
        assert_eq!(rmp_covers_memory(&probe), Ok(true));
    }
}
