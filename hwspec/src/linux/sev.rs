//! Memory encryption: CPUID, model-specific registers, KVM's parameters and the AMD Secure Processor.

use super::{names, read, reason, sys, text_or_absent};
use crate::probe::Sev;
use crate::seen::Seen;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SYSCFG: u64 = 0xc001_0010;
const RMP_BASE: u64 = 0xc001_0132;
const RMP_END: u64 = 0xc001_0133;
const RMP_CFG: u64 = 0xc001_0136;

pub(super) fn probe() -> Sev {
    // Of another maker's processor these registers may mean something else.
    let amd = read("/proc/cpuinfo").is_ok_and(|text| text.contains("AuthenticAMD"));
    let leaf = if amd { sys::cpuid(0x8000_001f) } else { None };
    let leaf = Seen::or(
        leaf,
        "the processor has no CPUID leaf 8000_001F: it is not from AMD, or a hypervisor hides it",
    );
    let no_snp = "the processor does not tell of SEV-SNP (CPUID 8000_001F EAX bit 4)";
    let snp = leaf.clone().and_then(|[eax, ..]| Seen::or((eax & (1 << 4) != 0).then_some(eax), no_snp));
    let syscfg = leaf.clone().and_then(|_| registers(SYSCFG));
    let bit = |bit| syscfg.clone().map(|values| values.iter().all(|value| value & (1u64 << bit) != 0u64));
    let first = |register| snp.clone().and_then(|_| registers(register)).map(|values| values[0]);
    Sev {
        asids: leaf.clone().map(|[_, _, ecx, _]| ecx.into()),
        min_sev_asid: leaf.map(|[.., edx]| edx.into()),
        smee: bit(23),
        snp_en: bit(24),
        rmp_base: first(RMP_BASE),
        rmp_end: first(RMP_END),
        // EAX bit 23: the register is there.
        rmp_segmented: snp.clone().and_then(|eax| {
            if eax & (1 << 23) == 0 { Seen::Known(false) } else { first(RMP_CFG).map(|value| value & 1 != 0) }
        }),
        kvm_sev: parameter("sev"),
        kvm_sev_es: parameter("sev_es"),
        kvm_sev_snp: parameter("sev_snp"),
        platform: platform(),
    }
}

/// A register of every processor; never empty.
fn registers(register: u64) -> Seen<Vec<u64>> {
    let processors = names("/dev/cpu", |name| name.bytes().all(|byte| byte.is_ascii_digit()));
    processors.and_then(|processors| {
        if processors.is_empty() {
            return Seen::unknown("/dev/cpu is empty; load the module: modprobe msr");
        }
        let value = |processor: &String| {
            let path = format!("/dev/cpu/{processor}/msr");
            let mut bytes = [0; 8];
            match File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, register)) {
                Ok(()) => Ok(u64::from_ne_bytes(bytes)),
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EIO as i32) => {
                    Err(format!("{path}: the processor has no register {register:#x}"))
                }
                Err(error) => Err(reason(&path, &error)),
            }
        };
        match processors.iter().map(value).collect::<Result<Vec<u64>, String>>() {
            Ok(values) => Seen::Known(values),
            Err(reason) => Seen::Unknown(reason),
        }
    })
}

/// A parameter of kvm_amd; without the module KVM can do nothing of the kind.
fn parameter(name: &str) -> Seen<bool> {
    let path = format!("/sys/module/kvm_amd/parameters/{name}");
    text_or_absent(&path, "N").map(|on| matches!(on.as_str(), "Y" | "1"))
}

fn platform() -> Seen<crate::probe::SnpPlatform> {
    let path = "/dev/sev";
    match File::open(path).and_then(|device| sys::snp_platform_status(&device)) {
        Ok(status) => Seen::Known(crate::sev::platform(&status)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Seen::unknown("/dev/sev is not there: no AMD Secure Processor, or the ccp driver is missing")
        }
        Err(error) => Seen::Unknown(reason(path, &error)),
    }
}
