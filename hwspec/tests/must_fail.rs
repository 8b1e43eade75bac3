//! One wrong fact at a time: exactly its check fails, under its name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

mod common;

use common::{good, not_passed, report};
use hwspec::probe::{Dimm, NvmeDrive, PciDevice, Smart, SnpPlatform};
use hwspec::{Probe, Seen, Severity, Spec, Status, Verdict};

fn known<T>(seen: &mut Seen<T>) -> &mut T {
    match seen {
        Seen::Known(value) => value,
        Seen::Unknown(reason) => panic!("{reason}"),
    }
}

fn without(seen: &mut Seen<Vec<String>>, item: &str) {
    let list = known(seen);
    assert!(list.iter().any(|other| other == item), "{item} is not there");
    list.retain(|other| other != item);
}

fn drive(probe: &mut Probe, change: impl FnOnce(&mut NvmeDrive)) {
    change(&mut known(&mut probe.nvme)[1]);
}

fn smart(probe: &mut Probe, change: impl FnOnce(&mut Smart)) {
    drive(probe, |drive| change(known(&mut drive.smart)));
}

fn dimm(probe: &mut Probe, change: impl FnOnce(&mut Dimm)) {
    change(&mut known(&mut probe.memory.dimms)[3]);
}

fn platform(probe: &mut Probe, change: impl FnOnce(&mut SnpPlatform)) {
    change(known(&mut probe.sev.platform));
}

/// Makes one fact wrong, as little as it takes. Returns the other checks that must not pass either, because they
/// ask for more of the same fact or because one thing has two names.
fn spoil(spec: &str, id: &str, probe: &mut Probe) -> &'static [&'static str] {
    let Probe { cpu, sev, memory, nvdimm, tpm, firmware, bmc, kernel, clock, directory, qemu, .. } = probe;
    let gen1 = spec == "gen1";
    match id {
        "cpu-architecture" => cpu.architecture = Seen::Known("aarch64".into()),
        "cpu-generation" if gen1 => {
            cpu.model = Seen::Known(0x01);
        }
        "cpu-generation" => {
            (cpu.family, cpu.model) = (Seen::Known(0x17), Seen::Known(0x31));
            // The floors name no generation without SEV-SNP, and Genoa alone among the trusted has this model.
            return &["cpu-generation-trusted", "tcb-snp"];
        }
        "cpu-generation-trusted" => {
            (cpu.family, cpu.model) = (Seen::Known(0x19), Seen::Known(0x01));
            platform(probe, |platform| {
                platform.current_tcb |= 24 << 48;
                platform.reported_tcb = platform.current_tcb;
            });
        }
        "cpu-model" => cpu.model_name = Seen::Known("AMD EPYC 7313P 16-Core Processor".into()),
        "cpu-sockets" => cpu.sockets = Seen::Known(1),
        "cpu-identical" => cpu.identical = Seen::Known(false),
        "cpu-cores" => cpu.cores = Seen::Known(31),
        "cpu-threads" if spec == "virtual" => cpu.threads = Seen::Known(1),
        "cpu-threads" => cpu.threads = Seen::Known(63),
        "cpu-online" => cpu.offline = Seen::Known(1),
        "cpu-speed" => known(&mut cpu.speeds)[1].1 = 2_399,
        "cpu-microcode" => *known(&mut cpu.microcode).last_mut().unwrap() -= 1,
        "cpu-vulnerable" => cpu.vulnerable = Seen::Known(vec!["retbleed".into()]),
        "virtualisation" => without(&mut cpu.flags, "npt"),
        "cpu-entropy" => without(&mut cpu.flags, "rdseed"),
        "cpu-huge-pages" => without(&mut cpu.flags, "pdpe1gb"),
        "bare-metal" => known(&mut cpu.flags).push("hypervisor".into()),
        "numa-nodes" => cpu.numa_nodes = Seen::Known(8),
        "iommu" => cpu.iommu = Seen::Known(false),
        "cpu-sev" => without(&mut cpu.flags, "sev"),
        "cpu-sev-snp" => without(&mut cpu.flags, "sev_snp"),
        "cpu-features" => without(&mut cpu.flags, "cx16"),
        "cpu-vector" => without(&mut cpu.flags, "avx2"),
        "sev-smee" => sev.smee = Seen::Known(false),
        "snp-asids" => {
            sev.min_sev_asid = Seen::Known(2);
            return &["snp-asids-spare"];
        }
        "snp-asids-spare" => sev.min_sev_asid = Seen::Known(99),
        "snp-rmp" => *known(&mut sev.rmp_end) -= 16,
        "snp-on" => sev.snp_en = Seen::Known(false),
        "sev-es-enabled" => sev.kvm_sev_es = Seen::Known(false),
        "snp-enabled" => sev.kvm_sev_snp = Seen::Known(false),
        "snp-initialised" => platform(probe, |platform| platform.rmp_initialised = false),
        "snp-api" => {
            platform(probe, |platform| platform.api_minor = 50);
            return &["snp-firmware"];
        }
        "snp-firmware" => platform(probe, |platform| platform.build = 28),
        "snp-reports" => platform(probe, |platform| platform.chip_id_masked = true),
        "snp-tcb-reported" => platform(probe, |platform| platform.reported_tcb -= 1),
        "tcb-snp" => platform(probe, |platform| {
            platform.current_tcb -= 1 << 48;
            platform.reported_tcb = platform.current_tcb;
        }),
        "memory-total" => memory.total_bytes = Seen::Known(532_575_944_703),
        "memory-available" => memory.available_bytes = Seen::Known((2 << 30) - 1),
        "memory-installed" => {
            for dimm in known(&mut memory.dimms) {
                dimm.bytes = if gen1 { 31 << 30 } else { 21 << 30 };
            }
            return &["dimm-size"];
        }
        "dimm-count" => {
            for dimm in known(&mut memory.dimms).iter_mut() {
                dimm.bytes = 64 << 30;
            }
            known(&mut memory.dimms).truncate(15);
            return &["memory-channels"];
        }
        "dimm-size" => {
            known(&mut memory.dimms)[0].bytes += 32 << 30;
            dimm(probe, |dimm| dimm.bytes -= 1 << 30);
        }
        "dimm-speed" => dimm(probe, |dimm| dimm.mts = Seen::Known(2_666)),
        "dimm-ranks" => dimm(probe, |dimm| dimm.ranks = Seen::Known(1)),
        "memory-channels" => {
            for dimm in known(&mut memory.dimms) {
                dimm.bank = "P0 CHANNEL A".into();
            }
        }
        "memory-ecc" => memory.error_correction = Seen::Known(vec!["none".into()]),
        "dimm-ecc" => dimm(probe, |dimm| dimm.check_bits = Seen::Known(0)),
        "memory-uncorrected" => memory.uncorrected_errors = Seen::Known(1),
        "memory-corrected" => memory.corrected_errors = Seen::Known(101),
        "nvdimm" => nvdimm.bytes = Seen::Known((16 << 30) - 1),
        "nvdimm-badblocks" => nvdimm.badblocks = Seen::Known(8),
        "nvdimm-health" => nvdimm.flags = Seen::Known(vec!["smart_notify".into(), "not_armed".into()]),
        "nvdimm-persistence" => nvdimm.persistence = Seen::Known(vec!["unknown".into()]),
        "nvram" => directory.nvram_file = Seen::Known(false),
        "nvme-count" => {
            for drive in known(&mut probe.nvme) {
                drive.bytes = Seen::Known(12_800_000_000_000);
            }
            known(&mut probe.nvme).truncate(4);
        }
        "nvme-size" => {
            known(&mut probe.nvme)[0].bytes = Seen::Known(12_800_000_000_000);
            drive(probe, |drive| drive.bytes = Seen::Known(1_600_000_000_000));
        }
        "nvme-total" if gen1 => known(&mut probe.nvme).truncate(9),
        "nvme-total" => {
            known(&mut probe.nvme).truncate(4);
            return &["nvme-count"];
        }
        "nvme-endurance" => drive(probe, |drive| drive.bytes = Seen::Known(7_681_501_126_656)),
        "nvme-warning" => smart(probe, |smart| smart.critical_warning = 1),
        "nvme-spare" => smart(probe, |smart| smart.spare = smart.spare_threshold),
        "nvme-used" => smart(probe, |smart| smart.used = 81),
        "nvme-media-errors" => smart(probe, |smart| smart.media_errors = 1),
        "nvme-temperature" => smart(probe, |smart| smart.celsius = 71),
        "nvme-lanes" => drive(probe, |drive| drive.lanes = Seen::Known(2)),
        "no-raid-controller" => {
            known(&mut probe.pci).push(PciDevice { class: 0x01_0400, ..PciDevice::default() })
        }
        "nic-ports" => {
            known(&mut probe.nics).truncate(1);
            return &["nic-second-speed"];
        }
        "nic-speed" => {
            for nic in known(&mut probe.nics) {
                nic.mbps = Seen::Known(1_000);
            }
            return &["nic-second-speed"];
        }
        "nic-second-speed" => known(&mut probe.nics)[1].up = Seen::Known(false),
        "tpm" => tpm.version = Seen::Known("1.2".into()),
        "tpm-banks" => without(&mut tpm.banks, "sha256"),
        "uefi" => firmware.uefi = Seen::Known(false),
        "uefi-version" => firmware.uefi_version = Seen::Known("2.6".into()),
        "secure-boot" => firmware.secure_boot = Seen::Known(false),
        "firmware-date" => firmware.released_unix_s = Seen::Known(1_700_000_000),
        "bmc" => bmc.present = Seen::Known(false),
        "ipmi-version" => bmc.ipmi_version = Seen::Known("1.5".into()),
        "watchdog" => kernel.watchdogs = Seen::Known(vec![]),
        "kernel-version" => {
            kernel.release = Seen::Known(if gen1 { "6.1.192" } else { "6.10.99-amd64" }.into())
        }
        "kvm" => kernel.kvm_device = Seen::Known(false),
        "accelerator" => {
            qemu.accelerators = Seen::Known(vec!["xen".into()]);
            return &["kvm"];
        }
        "qemu-version" => qemu.version = Seen::Known(if spec == "gen2" { "9.0.4" } else { "7.1.99" }.into()),
        "qemu-objects" => without(&mut qemu.objects, "sev-snp-guest"),
        "qemu-devices" => without(&mut qemu.devices, "ivshmem-plain"),
        "clock" => clock.unix_s = Seen::Known(1_767_225_599),
        "clock-synchronised" => clock.synchronised = Seen::Known(false),
        "clock-source" => clock.source = Seen::Known("hpet".into()),
        "rtc-offset" => clock.rtc_offset_s = Seen::Known(121),
        "disk-free" => directory.free_bytes = Seen::Known((4 << 30) - 1),
        "disk-persistent" => directory.persistent = Seen::Known(false),
        other => panic!("no test makes {other} of {spec} fail"),
    }
    &[]
}

#[test]
fn each_check_fails_alone() {
    for name in Spec::names() {
        let spec = Spec::named(name).unwrap();
        for requirement in &spec.requirements {
            let mut probe = good(name);
            let also = spoil(name, &requirement.id, &mut probe);
            let report = report(name, &probe);
            let status = |severity| match severity {
                Severity::Required => (Status::Fail, Verdict::Fail),
                Severity::Recommended => (Status::Warn, Verdict::Warn),
            };
            let (expected, verdict) = status(requirement.severity);
            let found = report.checks.iter().find(|check| check.id == requirement.id).unwrap();
            assert_eq!((found.status, &found.fix), (expected, &requirement.fix), "{name}: {found:?}");
            let others: Vec<&str> = not_passed(&report)
                .into_iter()
                .map(|(id, _)| id)
                .filter(|id| *id != requirement.id)
                .collect();
            assert_eq!(others, also, "{name}: {}", requirement.id);
            if others.is_empty() {
                assert_eq!(report.verdict, verdict, "{name}: {}", requirement.id);
                assert_eq!(report.meets_spec(), requirement.severity == Severity::Recommended);
            }
        }
    }
}

/// Each fact of a good probe made unknown: no check that depends on it passes, and a required one refuses.
#[test]
fn what_is_not_known_is_not_met() {
    for name in Spec::names() {
        let whole = serde_json::to_value(good(name)).unwrap();
        let mut hidden = std::collections::BTreeSet::new();
        for (section, facts) in whole.as_object().unwrap() {
            let keys: Vec<String> = match facts.as_object() {
                Some(facts) => facts.keys().map(|key| format!("/{section}/{key}")).collect(),
                None => vec![format!("/{section}")],
            };
            for pointer in keys {
                let mut value = whole.clone();
                *value.pointer_mut(&pointer).unwrap() =
                    serde_json::json!({ "unknown": "hidden by the test" });
                let probe = Probe::from_json(&serde_json::to_vec(&value).unwrap()).unwrap();
                let report = report(name, &probe);
                for check in report.checks.iter().filter(|check| check.status == Status::Unknown) {
                    assert!(check.found.contains("hidden by the test") && !check.fix.is_empty(), "{check:?}");
                    assert!(check.severity == Severity::Recommended || !report.meets_spec(), "{pointer}");
                    hidden.insert(check.id.clone());
                }
            }
        }
        for requirement in Spec::named(name).unwrap().requirements {
            // NVRAM may be on either medium, and whether KVM can be used is a yes or no: one unknown hides neither.
            let covered = hidden.contains(&requirement.id) || requirement.id == "nvram";
            assert!(covered, "{name}: {} passes without its fact", requirement.id);
        }
    }
}

#[test]
fn a_failure_outweighs_the_unknown_and_warnings_do_not_refuse() {
    let mut probe = good("virtual");
    probe.memory.available_bytes = Seen::unknown("hidden");
    assert_eq!(report("virtual", &probe).verdict, Verdict::Unknown);
    probe.clock.unix_s = Seen::Known(0);
    assert_eq!(report("virtual", &probe).verdict, Verdict::Fail);

    let mut probe = good("virtual");
    probe.kernel.kvm_device = Seen::Known(false);
    let report = report("virtual", &probe);
    assert_eq!((report.verdict, not_passed(&report)), (Verdict::Warn, vec![("kvm", Status::Warn)]));
    assert!(report.meets_spec());
}

/// A drive that cannot be read hides nothing of one that fails.
#[test]
fn a_bad_part_outweighs_an_unknown_one() {
    let mut probe = good("gen2");
    known(&mut probe.nvme)[0].smart = Seen::unknown("no answer");
    let found = |probe: &Probe| {
        let report = report("gen2", probe);
        let check = report.checks.iter().find(|check| check.id == "nvme-warning").unwrap();
        (check.status, check.found.clone())
    };
    assert_eq!(found(&probe), (Status::Unknown, "unknown: no answer".into()));
    smart(&mut probe, |smart| smart.critical_warning = 4);
    assert_eq!(found(&probe), (Status::Fail, "nvme1n1: 0x00000004".into()));
}

#[test]
fn a_machine_without_qemu() {
    let mut probe = good("virtual");
    probe.qemu.version = Seen::Known("not installed".into());
    for list in [&mut probe.qemu.accelerators, &mut probe.qemu.devices, &mut probe.qemu.objects] {
        *list = Seen::Known(vec![]);
    }
    let report = report("virtual", &probe);
    let version = report.checks.iter().find(|check| check.id == "qemu-version").unwrap();
    assert_eq!((version.status, version.found.as_str()), (Status::Fail, "not installed"));
    assert_eq!(report.verdict, Verdict::Fail);
}
