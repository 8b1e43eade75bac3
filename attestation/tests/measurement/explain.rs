//! The search names what was launched, for each thing that may be wrong.

use crate::firmware::{SECTIONS, firmware, usual};
use attestation::Measurement;
use attestation::measurement::{
    Firmware, KernelHashes, VcpuType,
    explain::{Candidate, Explanation, Found, Search, explain_measurement},
};

const LINE: &str = "console=ttyS0 panic=5 quiet";

fn candidate(name: &str, fill: u8) -> Candidate {
    Candidate {
        name: name.to_owned(),
        firmware: Firmware::measure(&usual()).unwrap(),
        kernel: [fill; 32],
        initrd: [fill + 1; 32],
        command_line: LINE.to_owned(),
        vcpus: vec![1, 2, 4],
        vcpu_types: vec![VcpuType::EPYC_V4],
        guest_features: 1,
    }
}

/// What is expected, the other slot, and a release with a firmware of its own.
fn known() -> Vec<Candidate> {
    let mut other_firmware = firmware(SECTIONS, Some(0x81_0c00));
    other_firmware[9] ^= 1;
    let old = Candidate {
        firmware: Firmware::measure(&other_firmware).unwrap(),
        command_line: format!("{LINE} old=1"),
        ..candidate("release 0.9 (older)", 30)
    };
    vec![candidate("release 1.0 (slot A)", 10), candidate("release 1.1 (slot B)", 20), old]
}

fn measured(candidate: &Candidate, vcpus: u32, model: VcpuType, features: u64, hashes: bool) -> Measurement {
    let Candidate { kernel, initrd, command_line, .. } = candidate;
    let kernel_hashes = KernelHashes::of_files(*kernel, *initrd, command_line).unwrap();
    let pages = candidate.firmware.pages(hashes.then_some(&kernel_hashes)).unwrap();
    pages.vcpus(model, features).unwrap().nth(vcpus as usize - 1).unwrap()
}

fn search() -> Search {
    // Enough for every case here; the default is only slower when nothing is found.
    Search { max_vcpus: 64, ..Search::default() }
}

fn explain(measurement: Measurement) -> Explanation {
    explain_measurement(measurement, &known(), &search()).unwrap()
}

/// The launch of a candidate after a change; names the nearest candidate and the inputs that differ.
fn explained(
    candidate: &Candidate,
    vcpus: u32,
    model: VcpuType,
    features: u64,
) -> (Found, Vec<&'static str>) {
    let found = explain(measured(candidate, vcpus, model, features, true)).found.unwrap();
    let differences = found.differences.iter().map(|difference| difference.input).collect();
    (found, differences)
}

const V4: VcpuType = VcpuType::EPYC_V4;

#[test]
fn the_expected_launch_is_named_so() {
    let (found, differences) = explained(&known()[0], 2, V4, 1);
    assert!(found.expected && differences.is_empty());
    assert_eq!((found.nearest.as_str(), found.vcpus), ("release 1.0 (slot A)", 2));
    assert_eq!(found.command_line.as_deref(), Some(LINE));
}

#[test]
fn another_slot_or_release_is_named() {
    for other in &known()[1..] {
        let (found, differences) = explained(other, 4, V4, 1);
        assert!(!found.expected && differences.is_empty());
        assert_eq!(found.nearest, other.name);
    }
}

#[test]
fn another_vcpu_count_is_named() {
    let (found, differences) = explained(&known()[0], 3, V4, 1);
    assert_eq!(differences, ["vcpus"]);
    assert_eq!(found.differences[0].meaning, "vCPU count 3 instead of 1 or 2 or 4");
}

#[test]
fn another_vcpu_type_and_other_features_are_named() {
    let (found, differences) = explained(&known()[0], 2, "EPYC-Turin".parse().unwrap(), 0x21);
    assert_eq!(differences, ["vcpu-type", "guest-features"]);
    assert_eq!(found.vcpu_types, ["EPYC-Turin", "EPYC-Turin-v1", "EPYC-Turin-v2"]);
    assert_eq!(found.differences[1].meaning, "guest features 0x21 instead of 0x1");
}

#[test]
fn another_command_line_is_named() {
    for (line, meaning) in [
        (format!("{LINE} debug"), "the command line with `debug` added"),
        (format!("rdinit=/bin/sh {LINE}"), "the command line with `rdinit=/bin/sh` added"),
        ("console=ttyS0 quiet".to_owned(), "the command line without `panic=5`"),
        (format!("{LINE} "), "the command line differs in white space or in the order of its words"),
    ] {
        let other = Candidate { command_line: line, ..known()[0].clone() };
        let (found, differences) = explained(&other, 2, V4, 1);
        assert_eq!(
            (differences.as_slice(), found.differences[0].meaning.as_str()),
            (&["command-line"][..], meaning)
        );
    }
}

#[test]
fn a_mixture_of_releases_is_named() {
    let [a, b, old] = known().try_into().unwrap();
    let mixed = Candidate { initrd: b.initrd, ..a.clone() };
    let (found, differences) = explained(&mixed, 2, V4, 1);
    assert_eq!((found.nearest.as_str(), differences.as_slice()), ("release 1.0 (slot A)", &["initrd"][..]));
    assert_eq!(found.differences[0].meaning, "the initrd is that of release 1.1 (slot B)");

    let mixed = Candidate { firmware: old.firmware, ..a.clone() };
    let (found, differences) = explained(&mixed, 2, V4, 1);
    assert_eq!(differences, ["firmware"]);
    assert_eq!(found.differences[0].meaning, "the firmware is that of release 0.9 (older)");

    let none = Candidate { initrd: KernelHashes::of(b"", b"", "").unwrap().initrd, ..a };
    let (found, _) = explained(&none, 2, V4, 1);
    assert_eq!(found.differences[0].meaning, "the initrd is that of no initrd");
}

#[test]
fn kernel_hashes_that_are_off_are_named() {
    let found = explain(measured(&known()[0], 2, V4, 1, false)).found.unwrap();
    assert_eq!((found.differences[0].input, found.command_line), ("kernel-hashes", None));
}

#[test]
fn what_the_caller_adds_is_searched() {
    let mut firmware = usual();
    firmware[100] ^= 1;
    let firmware = Firmware::measure(&firmware).unwrap();
    let other =
        Candidate { firmware: firmware.clone(), command_line: "mine".to_owned(), ..known()[0].clone() };
    let measurement = measured(&other, 1, V4, 0x201, true);
    assert_eq!(explain(measurement).found, None);
    let search = Search {
        firmware: vec![("OVMF.fd".to_owned(), firmware)],
        command_lines: vec!["mine".to_owned()],
        guest_features: vec![0x201],
        ..search()
    };
    let found = explain_measurement(measurement, &known(), &search).unwrap().found.unwrap();
    let differences: Vec<_> = found.differences.iter().map(|difference| difference.input).collect();
    assert_eq!(differences, ["firmware", "command-line", "guest-features"]);
}

#[test]
fn what_was_tried_is_told() {
    let explanation = explain(Measurement([9; 48]));
    let tried = &explanation.tried;
    assert!(explanation.found.is_none() && tried.complete);
    let images =
        tried.firmware.len() * (1 + tried.kernels.len() * tried.initrds.len() * tried.command_lines.len());
    let vcpus = tried.max_vcpus as usize * tried.vcpu_types.len() * tried.guest_features.len();
    assert_eq!(tried.digests, (images * vcpus) as u64);
    let text = explanation.to_string();
    assert!(text.contains(&tried.digests.to_string()) && text.contains("release 1.1 (slot B)"), "{text}");

    let limited = Search { limit: 1000, ..search() };
    let tried = explain_measurement(Measurement([9; 48]), &known(), &limited).unwrap().tried;
    assert!(!tried.complete && (1000..2000).contains(&tried.digests), "{}", tried.digests);
}
