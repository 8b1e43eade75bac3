//! Known answers, and what the parser must refuse.

use crate::common;
use crate::firmware::{SECTIONS, firmware};
use attestation::measurement::{
    Firmware, FirmwareLayout, Inputs, KernelHashes, Launch, LaunchError, Measurement, Section, SectionKind,
    VcpuType,
};
use proptest::prelude::*;
use std::fs;

pub(crate) fn launch(firmware: &[u8]) -> Launch<'_> {
    Launch {
        firmware,
        kernel: b"kernel",
        initrd: b"initrd",
        command_line: "console=ttyS0",
        vcpus: 2,
        vcpu_type: VcpuType::EPYC_V4,
        guest_features: 1,
    }
}

/// Digests from sev-snp-measure 0.0.13 (PyPI), over the firmware above, for QEMU.
#[test]
fn agrees_with_sev_snp_measure() {
    let firmware = firmware(SECTIONS, Some(0x81_0c00));
    let (kernel, initrd) = (b"kernel".repeat(1000), b"initrd".repeat(333));
    for (vcpus, cpu, guest_features, with_initrd, command_line, expected) in [
        (
            1,
            "EPYC-v4",
            0x1,
            true,
            "console=ttyS0",
            "f83ee2081cd87ae0d3d494aa623cc037ee844823115a0e0dd4457328aa43382d8cd793fd84ff6972b1d893efa8a80f73",
        ),
        (
            2,
            "EPYC-v4",
            0x1,
            true,
            "console=ttyS0",
            "cf69c53aa8fcf74478d2166afe949c4f10e3382ca2615af8665147b7777f0af76f121109f2a71841b6cd7a499560cc1a",
        ),
        (
            8,
            "EPYC-Milan",
            0x21,
            true,
            "console=ttyS0 a=b",
            "b9e3235c9809163aa675d991d8d76fb7bac1c632850be32c46c1d9bd600c2471d2efc86a4c256f0f01ebb35bb6037698",
        ),
        (
            2,
            "EPYC-Genoa",
            0x1,
            false,
            "",
            "593a6e4f652362879b54573a60d9cb7ce55d21da69ab21a560dd4bcc9ef6e96e5cd07b61801b8ab1b77bcfc7fb289b14",
        ),
        (
            3,
            "EPYC-Rome",
            0x1,
            true,
            "",
            "ae2af13d372edac49fd8b79390ca98ed577bf08e0c258c63c94b5982c500f12f1da9ccaf34db616d5c081ab73e4125dd",
        ),
    ] {
        let launch = Launch {
            firmware: &firmware,
            kernel: &kernel,
            initrd: if with_initrd { &initrd } else { &[] },
            command_line,
            vcpus,
            vcpu_type: cpu.parse().unwrap(),
            guest_features,
        };
        assert_eq!(launch.measurement().unwrap().to_string(), expected, "{vcpus} {cpu}");
    }
}

/// A report of a real Milan gives the digest of a guest whose inputs are published (the firmware as the digest after
/// its pages).
#[test]
fn agrees_with_a_real_processor() {
    let Some(folder) = common::folder() else { return };
    let own = folder.join("dstack-milan");
    let report = attestation::Report::parse(&fs::read(own.join("report.bin")).unwrap()).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(own.join("launch_inputs.json")).unwrap()).unwrap();
    let number = |value: &serde_json::Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let hash =
        |name: &str| -> [u8; 32] { hex::decode(json[name].as_str().unwrap()).unwrap().try_into().unwrap() };
    let sections = json["ovmf_sections"].as_array().unwrap().iter().map(|section| Section {
        gpa: number(&section["gpa"]),
        size: number(&section["size"]),
        kind: SectionKind::from_number(number(&section["section_type"])).unwrap(),
    });
    let inputs = Inputs {
        firmware: Firmware {
            digest: json["ovmf_hash"].as_str().unwrap().parse().unwrap(),
            layout: Some(FirmwareLayout {
                sections: sections.collect(),
                hash_table_gpa: number(&json["sev_hashes_table_gpa"]),
                reset_eip: number(&json["sev_es_reset_eip"]),
            }),
        },
        kernel_hashes: KernelHashes::of_files(
            hash("kernel_hash"),
            hash("initrd_hash"),
            json["base_cmdline"].as_str().unwrap(),
        )
        .unwrap(),
        vcpus: number(&json["vcpus"]),
        vcpu_type: json["vcpu_type"].as_str().unwrap().parse().unwrap(),
        guest_features: json["guest_features"].as_u64().unwrap(),
    };
    assert_eq!(inputs.measurement().unwrap(), report.measurement());
    for other in [
        Inputs { vcpus: 1, ..inputs.clone() },
        Inputs { guest_features: 0x21, ..inputs.clone() },
        Inputs { vcpu_type: "EPYC-Milan".parse().unwrap(), ..inputs.clone() },
        Inputs { kernel_hashes: KernelHashes { kernel: [0; 32], ..inputs.kernel_hashes }, ..inputs.clone() },
    ] {
        assert_ne!(other.measurement().unwrap(), report.measurement());
    }
}

#[test]
fn every_input_counts() {
    let sev = firmware(SECTIONS, Some(0x81_0c00));
    // Pages without the GUID table: what the virtual profile boots.
    let plain = vec![0x90; 4 * 4096];
    for firmware in [sev, plain] {
        let base = launch(&firmware);
        let measured = base.measurement().unwrap();
        let mut other_firmware = firmware.clone();
        other_firmware[5] ^= 1;
        for (what, other) in [
            ("firmware", Launch { firmware: &other_firmware, ..base }),
            ("kernel", Launch { kernel: b"kernek", ..base }),
            ("initrd", Launch { initrd: b"", ..base }),
            ("command line", Launch { command_line: "console=ttyS0 ", ..base }),
            ("vcpus", Launch { vcpus: 3, ..base }),
            ("vcpu type", Launch { vcpu_type: "EPYC-Genoa".parse().unwrap(), ..base }),
            ("guest features", Launch { guest_features: 0x21, ..base }),
        ] {
            assert_ne!(other.measurement().unwrap(), measured, "{what}");
        }
    }
}

/// The digest of firmware without SEV metadata is this project's own definition; this one was computed with the classes
/// GCTX (seeded), SevHashes and VMSA of sev-snp-measure 0.0.13.
#[test]
fn the_definition_for_a_simulation_is_fixed() {
    let measured = launch(&[0x90; 2 * 4096]).measurement().unwrap();
    assert_eq!(
        measured.to_string(),
        "000f72fd65b490e6f45d2761b82a1706d13d52570881b914762718ebf54eb196ff05e0ff50f93116ae1be17af05a0b7d"
    );
}

#[test]
fn firmware_that_does_not_check_the_kernel_is_refused() {
    let without_page = firmware(&SECTIONS[..5], Some(0x81_0c00));
    let without_table = firmware(SECTIONS, None);
    let zero_table = firmware(SECTIONS, Some(0));
    for firmware in [without_page, without_table, zero_table] {
        assert!(matches!(launch(&firmware).measurement(), Err(LaunchError::NoKernelHashes(_))));
    }
}

#[test]
fn broken_metadata_is_refused() {
    let refused = |sections: &[[u32; 3]], hash_table| {
        let firmware = firmware(sections, Some(hash_table));
        let error = launch(&firmware).measurement().unwrap_err();
        assert!(matches!(error, LaunchError::FirmwareTable { .. }), "{error}");
    };
    let hashes = [0x81_0000, 0x1000, 0x10];
    refused(&[hashes], 0x81_1000); // outside its page
    refused(&[hashes], 0x80_fff0);
    refused(&[hashes], 0x81_0fff); // runs over
    refused(&[hashes, hashes], 0x81_0c00);
    refused(&[[0x81_0000, 0x2000, 0x10]], 0x81_0c00);
    refused(&[hashes, [0x80_0001, 0x1000, 1]], 0x81_0c00);
    refused(&[hashes, [0x80_0000, 0x0800, 1]], 0x81_0c00);
    refused(&[hashes, [0x80_0000, 0, 1]], 0x81_0c00);
    refused(&[hashes, [0x80_0000, 0x2000, 2]], 0x81_0c00);
    refused(&[hashes, [0x80_0000, 0x1000, 5]], 0x81_0c00);
    refused(&[hashes, [0, 0xffff_f000, 1]], 0x81_0c00); // hours of hashing

    let good = firmware(SECTIONS, Some(0x81_0c00));
    for (at, value) in [(0x1000, b'B'), (0x1004, 17), (0x1008, 2), (0x100c, 7), (0x100f, 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(matches!(launch(&bad).measurement(), Err(LaunchError::FirmwareTable { .. })), "{at:#x}");
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let good = firmware(SECTIONS, Some(0x81_0c00));
    let base = launch(&good);
    let refused = |launch: Launch<'_>| launch.measurement().unwrap_err();
    assert_eq!(refused(Launch { vcpus: 0, ..base }), LaunchError::VcpuCount(0));
    assert_eq!(refused(Launch { vcpus: u32::MAX, ..base }), LaunchError::VcpuCount(u32::MAX));
    assert_eq!(refused(Launch { command_line: "a\0b", ..base }), LaunchError::CommandLine(1));
    assert_eq!(refused(Launch { guest_features: 0x20, ..base }), LaunchError::GuestFeatures(0x20));
    assert_eq!(refused(Launch { firmware: &[], ..base }), LaunchError::FirmwareSize(0));
    assert_eq!(refused(Launch { firmware: &good[1..], ..base }), LaunchError::FirmwareSize(3 * 4096 - 1));
}

/// Firmware that only a simulation launches is refused where hardware is meant.
#[test]
fn firmware_without_metadata_is_for_simulations_only() {
    let firmware = |bytes: &[u8]| Firmware::measure(bytes).unwrap().require_sev_metadata();
    assert_eq!(firmware(&[0x90; 4096]), Err(LaunchError::NoSevMetadata));
    assert_eq!(firmware(&crate::firmware::usual()), Ok(()));
}

/// The digests for all vCPU counts at once are those for each; there are as many as QEMU has vCPUs.
#[test]
fn vcpus_add_up() {
    let firmware = crate::firmware::usual();
    let inputs = launch(&firmware).inputs().unwrap();
    let pages = inputs.firmware.pages(Some(&inputs.kernel_hashes)).unwrap();
    let all: Vec<_> = pages.vcpus(VcpuType::EPYC_V4, 1).unwrap().collect();
    assert_eq!(all.len(), 4096);
    for vcpus in [1, 2, 3, 512, 4096] {
        let one = Inputs { vcpus, ..inputs.clone() }.measurement().unwrap();
        assert_eq!(one, all[vcpus as usize - 1]);
    }
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
}

#[test]
fn measurements_have_one_text() {
    let text = "ab".repeat(48);
    assert_eq!(text.parse::<Measurement>().unwrap().to_string(), text);
    for bad in [text.to_uppercase(), text[2..].to_owned(), format!("{text}ab"), text.replace("ab", "zz")] {
        assert!(bad.parse::<Measurement>().is_err(), "{bad}");
    }
    assert_eq!(serde_json::to_string(&Measurement([0xab; 48])).unwrap(), format!("\"{text}\""));
}

proptest! {
    /// Any change to the end of a firmware gives a digest or an error, never a panic.
    #[test]
    fn parsing_never_panics(changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..6)) {
        let mut firmware = firmware(SECTIONS, Some(0x81_0c00));
        let end = firmware.len();
        for (index, (distance, value)) in changes.into_iter().enumerate() {
            let at = if index % 2 == 0 { end - 1 - distance % 160 } else { 0x1000 + distance % 96 };
            firmware[at] = value;
        }
        let _ = FirmwareLayout::parse(&firmware);
    }
}
