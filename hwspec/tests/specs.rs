//! The built-in specifications against probes: good machines pass, and every single check can be failed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use hwspec::{Condition, Fact, Probe, Report, Severity, Spec, Status, Verdict, check, probe};
use std::path::Path;

/// Recorded by `cargo run -p hwspec --example probe` on a cloud machine with 2 vCPUs (Turin) and Debian 12.
const RECORDED: &str = include_str!("probes/cloud-turin-debian12.json");

fn recorded() -> Probe {
    Probe::from_json(RECORDED.as_bytes()).unwrap()
}

/// A machine as the specification describes it. Put together by hand: no such machine was at hand to record.
fn rack_server(generation: &str) -> Probe {
    let (family, model, drive) = match generation {
        "gen1" => (0x17, 0x31, 3_200_631_791_616),
        _ => (0x19, 0x11, 6_401_252_745_216),
    };
    let mut probe = recorded();
    probe.cpu.family = Some(family);
    probe.cpu.model = Some(model);
    probe.cpu.sockets = Some(2);
    probe.cpu.threads = Some(64);
    probe.cpu.flags = Some(["lm", "sse2", "cx16", "sev", "sev_es", "sev_snp"].map(String::from).into());
    probe.memory.total_bytes = Some(501 << 30);
    probe.nvme_bytes = Some(vec![drive; 10]);
    probe.nvdimm_bytes = Some(64 << 30);
    probe.nic_mbps = Some(vec![1_000, 10_000]);
    probe.tpm = Some("2.0".into());
    probe.secure_boot = Some(true);
    probe.snp_enabled = Some(true);
    probe.kernel_release = Some("6.12.117".into());
    probe.qemu.version = Some("10.0.2".into());
    probe
}

fn good(spec: &str) -> Probe {
    if spec == "virtual" { recorded() } else { rack_server(spec) }
}

fn report(spec: &str, probe: &Probe) -> Report {
    check(&Spec::named(spec).unwrap(), probe)
}

fn not_passed(report: &Report) -> Vec<(&str, Status)> {
    report.checks.iter().filter(|c| c.status != Status::Pass).map(|c| (c.id.as_str(), c.status)).collect()
}

#[test]
fn good_machines_pass() {
    for spec in Spec::names() {
        let report = report(spec, &good(spec));
        assert_eq!((report.verdict, not_passed(&report)), (Verdict::Pass, vec![]), "{spec}");
        assert!(report.meets_spec());
        assert!(report.checks.iter().all(|check| check.fix.is_empty()));
    }
}

/// Whoever runs these tests is about to start virtual nodes here. Wants QEMU and the resources, as they do.
#[test]
fn this_machine_meets_virtual() {
    let probe = probe::this_machine(Path::new(env!("CARGO_TARGET_TMPDIR")));
    // What was probed survives being recorded.
    let json = serde_json::to_vec(&probe).unwrap();
    assert_eq!(Probe::from_json(&json).unwrap(), probe);

    let report = report("virtual", &probe);
    assert!(report.meets_spec(), "{:#?}", not_passed(&report));
    assert!(report.checks.iter().all(|check| check.status != Status::Unknown), "{:#?}", not_passed(&report));
}

/// Changes the fact to the nearest value that does not meet the condition.
fn spoil(probe: &mut Probe, fact: Fact, condition: &Condition) {
    let below = match condition {
        Condition::Range { at_least, .. } => at_least.checked_sub(1),
        _ => None,
    };
    let without = |list: &mut Option<Vec<String>>| {
        let (Condition::Includes(wanted) | Condition::AnyOf(wanted)) = condition else { panic!("{fact:?}") };
        list.as_mut().unwrap().retain(|item| item != wanted.last().unwrap());
    };
    match fact {
        Fact::CpuArchitecture => probe.cpu.architecture = Some("aarch64".into()),
        Fact::CpuGeneration if matches!(condition, Condition::OneOf(list) if !list.contains(&"milan".into())) =>
        {
            (probe.cpu.family, probe.cpu.model) = (Some(0x19), Some(0x01));
        }
        Fact::CpuGeneration => probe.cpu.vendor = Some("GenuineIntel".into()),
        Fact::CpuFlags => without(&mut probe.cpu.flags),
        Fact::CpuSockets => probe.cpu.sockets = below,
        Fact::CpuThreads => probe.cpu.threads = below,
        Fact::MemoryTotal => probe.memory.total_bytes = below,
        Fact::MemoryAvailable => probe.memory.available_bytes = below,
        Fact::DirectoryFree => probe.directory.free_bytes = below,
        Fact::DirectoryPersistent => probe.directory.persistent = Some(false),
        Fact::NvramMedia => probe.directory.nvram_file = Some(false),
        Fact::NvdimmTotal => probe.nvdimm_bytes = below,
        Fact::Accelerators if matches!(condition, Condition::AnyOf(_)) => {
            probe.qemu.accelerators = Some(vec!["xen".into()]);
        }
        Fact::Accelerators => probe.kvm_device = Some(false),
        Fact::QemuVersion => {
            let Condition::VersionAtLeast(wanted) = condition else { panic!("{condition:?}") };
            let older = if wanted == "7.2" { "7.1.99" } else { "9.0.4" };
            probe.qemu.version = Some(older.into());
        }
        Fact::QemuDevices => without(&mut probe.qemu.devices),
        Fact::KernelVersion => probe.kernel_release = Some("6.10.99-amd64".into()),
        Fact::SnpEnabled => probe.snp_enabled = Some(false),
        Fact::Tpm => probe.tpm = Some("1.2".into()),
        Fact::SecureBoot => probe.secure_boot = Some(false),
        Fact::NvmeCount => probe.nvme_bytes = Some(vec![]),
        Fact::NvmeSmallest => probe.nvme_bytes.as_mut().unwrap().push(below.unwrap()),
        Fact::NvmeTotal => probe.nvme_bytes = Some(vec![7_000_000_000_000; 4]),
        Fact::NicSpeed => probe.nic_mbps = Some(vec![1_000]),
        Fact::Clock => probe.clock_unix_s = below,
    }
}

#[test]
fn every_check_can_be_failed() {
    for name in Spec::names() {
        let spec = Spec::named(name).unwrap();
        for requirement in &spec.requirements {
            let mut probe = good(name);
            spoil(&mut probe, requirement.fact, &requirement.condition);
            let report = check(&spec, &probe);
            let found = report.checks.iter().find(|check| check.id == requirement.id).unwrap();
            let (status, verdict) = match requirement.severity {
                Severity::Required => (Status::Fail, Verdict::Fail),
                Severity::Recommended => (Status::Warn, Verdict::Warn),
            };
            assert_eq!(found.status, status, "{name}: {found:?}");
            assert_eq!(found.fix, requirement.fix);
            // One fact may stand behind two checks, but nothing else changes.
            for (check, other) in report.checks.iter().zip(&spec.requirements) {
                let related = other.fact == requirement.fact
                    || matches!(
                        (requirement.fact, other.fact),
                        (Fact::NvmeSmallest | Fact::NvmeTotal, Fact::NvmeSmallest | Fact::NvmeTotal)
                    );
                assert!(related || check.status == Status::Pass, "{name}: {check:?}");
            }
            if report.checks.iter().filter(|check| check.status != Status::Pass).count() == 1 {
                assert_eq!(report.verdict, verdict, "{name}: {}", requirement.id);
            }
        }
    }
}

#[test]
fn what_is_not_known_is_not_met() {
    for name in Spec::names() {
        let report = report(name, &Probe::default());
        assert!(report.checks.iter().all(|check| check.status == Status::Unknown && !check.fix.is_empty()));
        assert_eq!(report.verdict, Verdict::Unknown);
        assert!(!report.meets_spec());
    }
}

#[test]
fn a_failure_outweighs_the_unknown_and_warnings_do_not_refuse() {
    let mut probe = recorded();
    probe.memory.available_bytes = None;
    assert_eq!(report("virtual", &probe).verdict, Verdict::Unknown);
    probe.clock_unix_s = Some(0);
    assert_eq!(report("virtual", &probe).verdict, Verdict::Fail);

    let mut probe = recorded();
    probe.kvm_device = None;
    let report = report("virtual", &probe);
    assert_eq!((report.verdict, not_passed(&report)), (Verdict::Warn, vec![("kvm", Status::Warn)]));
    assert!(report.meets_spec());
}

#[test]
fn a_machine_without_qemu() {
    let mut probe = recorded();
    probe.qemu.version = Some("not installed".into());
    probe.qemu.accelerators = Some(vec![]);
    probe.qemu.devices = Some(vec![]);
    let report = report("virtual", &probe);
    let version = report.checks.iter().find(|check| check.id == "qemu-version").unwrap();
    assert_eq!((version.status, version.found.as_str()), (Status::Fail, "not installed"));
    assert_eq!(report.verdict, Verdict::Fail);
}

#[test]
fn a_cloud_machine_is_no_gen2() {
    let report = report("gen2", &recorded());
    assert_eq!(report.verdict, Verdict::Fail);
    for id in ["cpu-sockets", "cpu-sev-snp", "snp-enabled", "memory-total", "tpm", "secure-boot"] {
        assert!(not_passed(&report).contains(&(id, Status::Fail)), "{id}");
    }
}

#[test]
fn the_json_has_the_documented_shape() {
    let mut probe = recorded();
    probe.memory.available_bytes = Some(1 << 30);
    let value = serde_json::to_value(report("virtual", &probe)).unwrap();
    let keys = |value: &serde_json::Value| -> Vec<String> {
        let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(&value), ["checks", "spec", "verdict"]);
    assert_eq!((&value["spec"], &value["verdict"]), (&"virtual".into(), &"fail".into()));
    let memory = value["checks"].as_array().unwrap().iter().find(|c| c["id"] == "memory-available").unwrap();
    assert_eq!(
        memory,
        &serde_json::json!({
            "id": "memory-available",
            "status": "fail",
            "severity": "required",
            "expected": "at least 2.00 GiB (2147483648 bytes)",
            "found": "1.00 GiB (1073741824 bytes)",
            "fix": "Close programs or add memory: at least 2 GiB must be available (see: free -h).",
        })
    );
    let report: Report = serde_json::from_value(value).unwrap();
    assert_eq!(report.spec, "virtual");
}
