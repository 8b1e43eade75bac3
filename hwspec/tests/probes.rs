//! Recorded probes of several machines, good and bad, and what is said about them.
//!
//! - `qemu-*`: recorded by `cargo xtask record-probes` in QEMU machines.
//! - `cloud-*`: recorded by `cargo run -p hwspec --example probe` on a machine as the name says.
//! - `hand-made-*`: put together by hand after the specification, since no such server was at hand.

#![allow(clippy::unwrap_used, reason = "test helpers fail the test")]

mod common;

use common::{files, good, not_passed, recorded, report};
use hwspec::{Probe, Report, Seen, Severity, Spec, Status, Verdict, probe};
use std::path::Path;

#[test]
fn good_machines_pass() {
    for spec in Spec::names() {
        let report = report(spec, &good(spec));
        assert_eq!((report.verdict, not_passed(&report)), (Verdict::Pass, vec![]), "{spec}");
        assert!(report.meets_spec());
        assert!(report.checks.iter().all(|check| check.fix.is_empty()));
    }
    assert_eq!(not_passed(&report("gen2", &recorded("hand-made-gen2-turin"))), []);
    let rome = report("gen1", &recorded("hand-made-gen1-rome"));
    assert_eq!((not_passed(&rome), rome.meets_spec()), (vec![("snp-enabled", Status::Warn)], true));
}

#[test]
fn the_fixed_specs_have_enough_checks() {
    for name in ["gen1", "gen2"] {
        assert!(Spec::named(name).unwrap().requirements.len() >= 35, "{name}");
    }
}

/// Names of the checks with one status.
fn with(report: &Report, status: Status) -> Vec<&str> {
    report.checks.iter().filter(|check| check.status == status).map(|check| check.id.as_str()).collect()
}

#[test]
fn milan_is_warned_about() {
    let report = report("gen2", &recorded("hand-made-gen2-milan"));
    assert_eq!(
        (report.verdict, not_passed(&report)),
        (Verdict::Warn, vec![("cpu-generation-trusted", Status::Warn)])
    );
    assert!(report.meets_spec());
}

#[test]
fn a_server_with_factory_settings() {
    let report = report("gen2", &recorded("hand-made-genoa-factory-settings"));
    assert_eq!(report.verdict, Verdict::Fail);
    let failed = [
        "cpu-sev-snp",
        "sev-smee",
        "snp-asids",
        "snp-rmp",
        "snp-on",
        "sev-es-enabled",
        "snp-enabled",
        "no-raid-controller",
        "tpm",
        "tpm-banks",
        "secure-boot",
    ];
    assert_eq!(with(&report, Status::Fail), failed);
    // The Secure Processor does not answer before SNP is on.
    assert_eq!(
        with(&report, Status::Unknown),
        ["snp-initialised", "snp-api", "snp-firmware", "snp-reports", "snp-tcb-reported", "tcb-snp"]
    );
    let smee = report.checks.iter().find(|check| check.id == "sev-smee").unwrap();
    assert!(smee.fix.contains("SMEE: Enabled"));
}

#[test]
fn a_server_with_old_firmware() {
    let report = report("gen2", &recorded("hand-made-milan-old-firmware"));
    let failed = ["cpu-microcode", "snp-rmp", "snp-enabled", "snp-initialised", "snp-api", "snp-reports"];
    assert_eq!(with(&report, Status::Fail), failed);
    let warned = ["cpu-generation-trusted", "snp-firmware", "snp-tcb-reported", "tcb-snp"];
    assert_eq!(with(&report, Status::Warn), warned);
    let found = |id| report.checks.iter().find(|check| check.id == id).unwrap().found.as_str();
    assert_eq!((found("snp-api"), found("cpu-microcode")), ("1.49.3", "0x0a001173"));
}

#[test]
fn a_worn_server() {
    let report = report("gen2", &recorded("hand-made-genoa-worn"));
    let failed = [
        "memory-total",
        "memory-installed",
        "memory-uncorrected",
        "nvdimm-badblocks",
        "nvdimm-health",
        "nvme-warning",
        "nvme-spare",
    ];
    assert_eq!(with(&report, Status::Fail), failed);
    let warned = [
        "dimm-count",
        "memory-channels",
        "memory-corrected",
        "nvme-used",
        "nvme-media-errors",
        "nvme-temperature",
        "nvme-lanes",
        "nic-second-speed",
        "clock-synchronised",
        "rtc-offset",
    ];
    assert_eq!(with(&report, Status::Warn), warned);
    let found = |id| report.checks.iter().find(|check| check.id == id).unwrap().found.as_str();
    assert_eq!((found("nvme-used"), found("nvme-lanes")), ("nvme2n1: 112 %", "nvme4n1: 3"));
}

/// A good machine, probed without root, is not good enough: nothing that was not seen passes.
#[test]
fn a_server_probed_without_root() {
    let report = report("gen2", &recorded("hand-made-genoa-not-root"));
    assert_eq!((report.verdict, report.meets_spec()), (Verdict::Unknown, false));
    let not = not_passed(&report);
    assert!(not.len() > 20 && not.iter().all(|(_, status)| *status == Status::Unknown), "{not:?}");
    let smee = report.checks.iter().find(|check| check.id == "sev-smee").unwrap();
    assert_eq!(smee.found, "unknown: /dev/cpu/0/msr: permission denied; probe as root");
}

#[test]
fn a_cloud_machine_is_no_gen2() {
    let report = report("gen2", &recorded("cloud-turin-debian12"));
    assert_eq!(report.verdict, Verdict::Fail);
    for id in
        ["cpu-sockets", "cpu-sev-snp", "snp-enabled", "bare-metal", "memory-total", "tpm", "secure-boot"]
    {
        assert!(not_passed(&report).contains(&(id, Status::Fail)), "{id}");
    }
}

/// QEMU's own devices, read by the real probe: SMBIOS, NVMe, NVDIMM, TPM and management controller say what the
/// command line said.
#[test]
fn machines_in_qemu() {
    let probe = recorded("qemu-milan-two-sockets");
    assert_eq!(
        (&probe.cpu.sockets, &probe.cpu.cores, &probe.cpu.threads),
        (&Seen::Known(2), &Seen::Known(8), &Seen::Known(8))
    );
    assert_eq!(probe.firmware.system_product, Seen::Known("AS -1124US-TNRP".into()));
    assert_eq!(probe.nvdimm.bytes, Seen::Known(1 << 30));
    let gen2 = report("gen2", &probe);
    let passed = with(&gen2, Status::Pass);
    for id in [
        "cpu-generation",
        "cpu-sockets",
        "numa-nodes",
        "iommu",
        "memory-installed",
        "dimm-count",
        "dimm-size",
        "dimm-speed",
        "dimm-ranks",
        "memory-channels",
        "memory-ecc",
        "dimm-ecc",
        "nvdimm-badblocks",
        "nvdimm-persistence",
        "uefi",
        "nvme-count",
        "nvme-size",
        "nvme-total",
        "nvme-endurance",
        "nvme-warning",
        "nvme-used",
        "no-raid-controller",
        "nic-ports",
        "tpm",
        "bmc",
        "ipmi-version",
        "firmware-date",
    ] {
        assert!(passed.contains(&id), "{id}: {:?}", gen2.checks.iter().find(|check| check.id == id));
    }
    // A machine in QEMU has neither SEV-SNP nor 512 GiB, and says that it is none.
    for id in ["bare-metal", "cpu-sev-snp", "snp-enabled", "memory-total", "nic-speed", "secure-boot"] {
        assert!(with(&gen2, Status::Fail).contains(&id), "{id}");
    }

    let gen1 = report("gen1", &recorded("qemu-rome-dying-drive-raid"));
    let failed = with(&gen1, Status::Fail);
    for id in ["cpu-sockets", "nvme-warning", "nvme-size", "no-raid-controller", "bmc", "memory-installed"] {
        assert!(failed.contains(&id), "{id}");
    }
    let found = |id| gen1.checks.iter().find(|check| check.id == id).unwrap().found.as_str();
    assert_eq!(found("nvme-warning"), "nvme1n1: 0x00000004");
    assert_eq!(found("tpm"), "1.2");
    assert!(with(&gen1, Status::Pass).contains(&"cpu-generation"));

    let desktop = report("gen1", &recorded("qemu-intel-desktop"));
    for id in ["cpu-generation", "nvme-size", "nvme-total", "virtualisation"] {
        assert!(with(&desktop, Status::Fail).contains(&id), "{id}");
    }

    let uefi = recorded("qemu-uefi-nvdimm");
    assert_eq!(uefi.firmware.uefi, Seen::Known(true));
    assert_eq!(uefi.firmware.uefi_version, Seen::Known("2.7".into()));
    assert_eq!(uefi.firmware.secure_boot, Seen::Known(false));
    assert_eq!(uefi.tpm.version, Seen::Known("2.0".into()));
    assert!(with(&report("gen2", &uefi), Status::Pass).contains(&"tpm-banks"));
}

/// Every recorded probe is read, keeps its content, and is judged by every specification.
#[test]
fn all_probes_are_judged() {
    let files = files("tests/probes");
    assert!(files.len() >= 10);
    for path in files {
        let probe = Probe::from_json(&std::fs::read(&path).unwrap()).unwrap();
        let again = serde_json::to_vec(&probe).unwrap();
        assert_eq!(Probe::from_json(&again).as_ref(), Ok(&probe), "{}", path.display());
        for spec in Spec::names() {
            for check in report(spec, &probe).checks {
                assert_eq!(check.status == Status::Pass, check.fix.is_empty());
                assert!(check.status != Status::Warn || check.severity == Severity::Recommended);
            }
        }
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

#[test]
fn the_json_has_the_documented_shape() {
    let mut probe = good("virtual");
    probe.memory.available_bytes = Seen::Known(1 << 30);
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
