//! The production firmware, as built: SEV-SNP can launch it with measured hashes of kernel, initrd and command line.
//! Needs the firmware in the cache, where `redoubt image firmware` puts it.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test says where it failed")]

mod skip;

use attestation::measurement::{FirmwareLayout, Launch, SectionKind};
use image_build::{compare, fetch::Sources, firmware, recipe, workshop::Workshop};
use release::{Digest, Profile};
use std::path::Path;

/// The built firmware, and the hash that the recipe pins.
fn built() -> Option<(Vec<u8>, Digest)> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let required = std::env::var_os("REDOUBT_RELEASE").is_some();
    let workshop = Workshop::open(repository, Sources::only(Vec::new()));
    let found = match workshop.and_then(|workshop| firmware::cached(&workshop)) {
        Ok(Some(path)) => Some(std::fs::read(path).unwrap()),
        Ok(None) => None,
        Err(error) if required => panic!("{error}"),
        Err(_) => None,
    };
    assert!(found.is_some() || !required, "no firmware in the cache; run 'redoubt image firmware'");
    let recipe::Firmware::AmdSev { sha256 } =
        recipe::recipe(repository, Profile::Production).unwrap().firmware
    else {
        panic!("the production profile must have AmdSev OVMF");
    };
    if found.is_none() {
        skip::skip("no firmware in the cache; run 'redoubt image firmware'");
    }
    Some((found?, sha256))
}

#[test]
fn it_is_the_pinned_one_and_its_kernel_hashes_are_measured() {
    let Some((firmware, pinned)) = built() else { return };
    assert_eq!(Digest::of(&firmware), pinned);
    let layout = FirmwareLayout::parse(&firmware).unwrap().expect("SEV metadata");
    for kind in [SectionKind::KernelHashes, SectionKind::Secrets, SectionKind::Cpuid] {
        assert_eq!(layout.sections.iter().filter(|section| section.kind == kind).count(), 1, "{kind:?}");
    }
    let measure = |kernel: &[u8], initrd: &[u8], command_line: &str| {
        let vcpu_type = "EPYC-v4".parse().unwrap();
        let launch = Launch {
            firmware: &firmware,
            kernel,
            initrd,
            command_line,
            vcpus: 2,
            vcpu_type,
            guest_features: 1,
        };
        launch.measurement().unwrap()
    };
    let one = measure(b"kernel", b"initrd", "a");
    assert_ne!(one, measure(b"kerneL", b"initrd", "a"));
    assert_ne!(one, measure(b"kernel", b"initrD", "a"));
    assert_ne!(one, measure(b"kernel", b"initrd", "b"));
}

/// Names of all modules, from a comparison with an empty image of the same shape.
fn modules(firmware: &[u8]) -> String {
    let names = compare::inventory("firmware", firmware);
    names.into_iter().map(|place| place.join(" > ") + "\n").collect()
}

#[test]
fn it_verifies_blobs_and_carries_no_boot_loader_and_no_shell() {
    let Some((firmware, _)) = built() else { return };
    let modules = modules(&firmware);
    // The driver that hands the verified kernel over is there, so this test sees the modules at all.
    assert!(modules.contains("QemuKernelLoaderFsDxe"), "{modules}");
    assert!(modules.contains("AmdSevDxe"), "{modules}");
    // GUID of AmdSev's GRUB (OvmfPkg.dec), and the shell's.
    for absent in ["b5ae312c-bc8a-43b1-9c62-ebb826dd5d07", "7c04a583-9e3e-4f1c-ad65-e05268d0b4d1"] {
        assert!(!modules.contains(absent), "{modules}");
    }
}
