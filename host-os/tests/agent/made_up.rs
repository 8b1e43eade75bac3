//! A small release of made-up files, really measured and signed with development keys.

use attestation::measurement::{Launch, VcpuType};
use release::{Envelope, File, Files, Guest, Manifest, Measurement, Profile, VcpuMeasurement};
use std::path::Path;

/// Writes the files and a manifest with that many signatures.
pub(crate) fn write(directory: &Path, manifest: &Manifest, signatures: usize) {
    std::fs::create_dir_all(directory).unwrap();
    for (name, content) in [("vmlinuz", kernel()), ("initrd", initrd()), ("firmware", firmware())] {
        std::fs::write(directory.join(name), content).unwrap();
    }
    let mut envelope = Envelope::new(manifest.clone()).unwrap();
    for key in release::development::signing_keys().unwrap().iter().take(signatures) {
        release::sign(&mut envelope, key).unwrap();
    }
    std::fs::write(directory.join("manifest.json"), envelope.to_bytes()).unwrap();
}

fn kernel() -> Vec<u8> {
    vec![0x4b; 8192]
}

fn initrd() -> Vec<u8> {
    vec![0x49; 5000]
}

fn firmware() -> Vec<u8> {
    vec![0x46; 8192]
}

/// The manifest of these files, with their real measurement.
pub(crate) fn manifest() -> Manifest {
    let launch = Launch {
        firmware: &firmware(),
        kernel: &kernel(),
        initrd: &initrd(),
        command_line: "console=ttyS0",
        vcpus: 2,
        vcpu_type: VcpuType::EPYC_V4,
        guest_features: 1,
    };
    let measurement = Measurement(launch.measurement().unwrap().0);
    Manifest {
        version: "1.2.3".into(),
        security_epoch: 1,
        profile: Profile::Virtual,
        source_commit: "0123456789abcdef0123456789abcdef01234567".into(),
        input_lock: release::Digest([3; 32]),
        host: None,
        guest: Guest {
            files: Files {
                kernel: File::describe("vmlinuz", &kernel()),
                initrd: File::describe("initrd", &initrd()),
                firmware: File::describe("firmware", &firmware()),
            },
            command_line: "console=ttyS0".into(),
            vcpu_type: "EPYC-v4".into(),
            policy: 0x30000,
            guest_features: 1,
            id_block: None,
            measurements: vec![VcpuMeasurement { vcpu_type: "EPYC-v4".into(), vcpus: 2, measurement }],
        },
        inputs: Default::default(),
    }
}
