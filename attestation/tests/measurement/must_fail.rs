//! One test for each input of the launch that an attacker may change: the digest becomes another.

use crate::firmware::usual;
use crate::known::launch;
use attestation::Measurement;
use attestation::measurement::{Launch, VcpuType};

/// The measurement of the release, and that of what an attacker's change makes of it.
fn changed(change: impl FnOnce(&mut Vec<u8>, &mut Guest)) -> (Measurement, Measurement) {
    let mut firmware = usual();
    let released = launch(&firmware).measurement().unwrap();
    let mut guest = Guest {
        kernel: b"kernel".to_vec(),
        initrd: b"initrd".to_vec(),
        command_line: "console=ttyS0".to_owned(),
        vcpus: 2,
        vcpu_type: VcpuType::EPYC_V4,
        guest_features: 1,
    };
    change(&mut firmware, &mut guest);
    let Guest { kernel, initrd, command_line, vcpus, vcpu_type, guest_features } = &guest;
    let (vcpus, vcpu_type, guest_features) = (*vcpus, *vcpu_type, *guest_features);
    let launched =
        Launch { firmware: &firmware, kernel, initrd, command_line, vcpus, vcpu_type, guest_features };
    (released, launched.measurement().unwrap())
}

struct Guest {
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    command_line: String,
    vcpus: u32,
    vcpu_type: VcpuType,
    guest_features: u64,
}

#[track_caller]
fn shows(change: impl FnOnce(&mut Vec<u8>, &mut Guest)) {
    let (released, launched) = changed(change);
    assert_ne!(released, launched);
}

/// Without a change the two are equal, so the tests below fail for the change and nothing else.
#[test]
fn the_same_launch_has_the_same_measurement() {
    let (released, launched) = changed(|_, _| {});
    assert_eq!(released, launched);
}

#[test]
fn a_changed_kernel_shows() {
    shows(|_, guest| guest.kernel[0] ^= 1);
}

#[test]
fn a_changed_initrd_shows() {
    shows(|_, guest| *guest.initrd.last_mut().unwrap() ^= 0x80);
}

#[test]
fn a_missing_initrd_shows() {
    shows(|_, guest| guest.initrd.clear());
}

#[test]
fn swapped_kernel_and_initrd_show() {
    shows(|_, guest| std::mem::swap(&mut guest.kernel, &mut guest.initrd));
}

#[test]
fn a_changed_command_line_shows() {
    shows(|_, guest| guest.command_line.push_str(" init=/bin/sh"));
}

#[test]
fn a_space_in_the_command_line_shows() {
    shows(|_, guest| guest.command_line.push(' '));
}

/// Every byte of the firmware that is no part of its tables: one byte in each page.
#[test]
fn a_changed_firmware_byte_shows() {
    for at in [0, 0x0fff, 0x1800, 0x2000, 0x2fff] {
        shows(|firmware, _| firmware[at] ^= 1);
    }
}

#[test]
fn another_vcpu_count_shows() {
    shows(|_, guest| guest.vcpus = 3);
}

#[test]
fn another_vcpu_type_shows() {
    shows(|_, guest| guest.vcpu_type = "EPYC-Genoa".parse().unwrap());
}

#[test]
fn other_guest_features_show() {
    shows(|_, guest| guest.guest_features = 0x21);
}
