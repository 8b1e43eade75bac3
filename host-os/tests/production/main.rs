//! Planning the launch of a production release on a made-up guest: the command line, and what is refused.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../../attestation/tests/measurement/firmware.rs"]
mod firmware;

use attestation::measurement::Launch;
use attestation::measurement::id_block::sign::{SigningKey, sign};
use host_os::accel;
use host_os::bundle::{ReleaseFiles, RootSource, expected_identity};
use host_os::check::{Options, PortChoice};
use host_os::dry_run::{Plan, plan};
use host_os::launch::Platform;
use host_os::machine::Policy;
use host_os::node::NodeDir;
use release::{
    AuthorSignature, BlockSignature, Envelope, File, Files, Guest, ID_BLOCK_FILE, IdBlock, IdBlockSignatures,
    LaunchId, Manifest, Measurement, P384Key, P384Signature, Profile, VcpuMeasurement,
};
use std::path::PathBuf;

const ID_KEY: &str = include_str!("../../../attestation/tests/measurement/data/id-key.pem");
const AUTHOR_KEY: &str = include_str!("../../../attestation/tests/measurement/data/author-key.pem");
const LAUNCHES: [(&str, u32); 3] = [("EPYC-Turin", 2), ("EPYC-v4", 1), ("EPYC-v4", 2)];

/// A release in a directory of its own. Change the parts, then write it.
struct Release {
    directory: tempfile::TempDir,
    firmware: Vec<u8>,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    manifest: Manifest,
    id_key: SigningKey,
    author_key: Option<SigningKey>,
}

fn keys() -> [SigningKey; 2] {
    [ID_KEY, AUTHOR_KEY].map(|pem| SigningKey::from_pem(pem).unwrap())
}

impl Release {
    fn new() -> Self {
        Self::with(firmware::usual(), 1)
    }

    fn with(firmware: Vec<u8>, guest_features: u64) -> Self {
        let (kernel, initrd) = (vec![0x4b; 8192], vec![0x49; 5000]);
        let [id_key, author_key] = keys();
        let entry = |(vcpu_type, vcpus): (&str, u32)| {
            let launch = Launch {
                firmware: &firmware,
                kernel: &kernel,
                initrd: &initrd,
                command_line: "panic=5",
                vcpus,
                vcpu_type: vcpu_type.parse().unwrap(),
                guest_features,
            };
            // Firmware that cannot be launched has some measurement in a manifest all the same.
            let measurement = launch.measurement().map_or([7; 48], |measurement| measurement.0);
            VcpuMeasurement { vcpu_type: vcpu_type.into(), vcpus, measurement: Measurement(measurement) }
        };
        let manifest = Manifest {
            version: "2.0.0".into(),
            security_epoch: 5,
            profile: Profile::Production,
            source_commit: "0123456789abcdef0123456789abcdef01234567".into(),
            input_lock: release::Digest([3; 32]),
            host: None,
            guest: Guest {
                files: Files {
                    kernel: File::describe("vmlinuz", &kernel),
                    initrd: File::describe("initrd", &initrd),
                    firmware: File::describe("firmware.fd", &firmware),
                },
                command_line: "panic=5".into(),
                vcpu_type: "EPYC-v4".into(),
                policy: 0x30000,
                guest_features,
                id_block: Some(IdBlock {
                    family_id: LaunchId(*b"redoubt\0\0\0\0\0\0\0\0\0"),
                    image_id: LaunchId(*b"guest-os\0\0\0\0\0\0\0\0"),
                    id_key_digest: Measurement(id_key.public_key().digest().0),
                    author_key_digest: Some(Measurement(author_key.public_key().digest().0)),
                }),
                measurements: LAUNCHES.map(entry).into(),
            },
            inputs: Default::default(),
        };
        let directory = tempfile::tempdir().unwrap();
        Self { directory, firmware, kernel, initrd, manifest, id_key, author_key: Some(author_key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes files, manifest and the signatures of the ID blocks after a change.
    fn write(&self, change: impl FnOnce(&mut IdBlockSignatures)) {
        for (name, content) in
            [("vmlinuz", &self.kernel), ("initrd", &self.initrd), ("firmware.fd", &self.firmware)]
        {
            std::fs::write(self.path(name), content).unwrap();
        }
        let mut envelope = Envelope::new(self.manifest.clone()).unwrap();
        // Named on purpose, as a production root is; the keys happen to be the development ones.
        std::fs::write(self.path("root.json"), release::development::ROOT).unwrap();
        for key in &release::development::signing_keys().unwrap()[..2] {
            release::sign(&mut envelope, key).unwrap();
        }
        std::fs::write(self.path("manifest.json"), envelope.to_bytes()).unwrap();
        if self.manifest.guest.id_block.is_none() {
            return;
        }
        let mut author = None;
        let block = |entry: &VcpuMeasurement| {
            let measurement = attestation::Measurement(entry.measurement.0);
            let block = expected_identity(&self.manifest, measurement).unwrap().block;
            let auth = sign(&block, &self.id_key, self.author_key.as_ref()).unwrap();
            author = auth.author.map(|(key, signature)| AuthorSignature {
                key: P384Key(*key.point()),
                signature: P384Signature(signature.0),
            });
            BlockSignature {
                vcpu_type: entry.vcpu_type.clone(),
                vcpus: entry.vcpus,
                signature: P384Signature(auth.block_signature.0),
            }
        };
        let blocks = self.manifest.guest.measurements.iter().map(block).collect();
        let id_key = P384Key(*self.id_key.public_key().point());
        let mut signatures = IdBlockSignatures { id_key, author, blocks };
        change(&mut signatures);
        std::fs::write(self.path(ID_BLOCK_FILE), signatures.to_bytes().unwrap()).unwrap();
    }

    fn options(&self, vcpu_type: Option<&str>, vcpus: u32) -> Options {
        Options {
            manifest: self.path("manifest.json"),
            root: RootSource::File(self.path("root.json")),
            profile: Profile::Production,
            memory_mib: 1024,
            vcpus,
            vcpu_type: vcpu_type.map(str::to_owned),
            nvram_bytes: 64 << 20,
            disk_bytes: 64 << 20,
            ports: PortChoice::default(),
            accel: accel::Choice::Auto,
            qemu: "qemu-system-x86_64".into(),
            ignore_hardware: Vec::new(),
            policy: Policy::default(),
            trial: host_os::upgrade::Patience {
                trial: std::time::Duration::MAX,
                healthy: std::time::Duration::ZERO,
            },
            confinement: host_os::confine::Level::Off,
            placement: None,
            power: None,
        }
    }

    fn plan(&self, vcpu_type: Option<&str>, vcpus: u32) -> Result<Plan, host_os::check::CheckError> {
        plan(&self.options(vcpu_type, vcpus), &NodeDir::at(self.path("node")))
    }

    /// Why no launch is planned.
    #[track_caller]
    fn refused(&self) -> &'static str {
        self.plan(None, 2).unwrap_err().code()
    }

    /// The same for all launches at once, as `redoubt release verify` judges.
    #[track_caller]
    fn check_all(&self) -> Result<(), host_os::bundle::ReleaseError> {
        let bytes = std::fs::read(self.path("manifest.json")).unwrap();
        let approved = release::verify(&bytes, &release::development::root().unwrap()).unwrap();
        ReleaseFiles::read(&self.path("manifest.json"), approved)?.check_all()
    }
}

#[test]
fn the_plan_is_what_the_manifest_promises() {
    let release = Release::new();
    release.write(|_| {});
    release.check_all().unwrap();
    for (index, (vcpu_type, vcpus)) in LAUNCHES.into_iter().enumerate() {
        let plan = release.plan(Some(vcpu_type), vcpus).unwrap();
        let listed = release.manifest.guest.measurements[index].measurement.to_string();
        let json = plan.to_json();
        assert_eq!(json["measurement"], listed);
        assert_eq!(plan.launch().measured.measurement().unwrap().to_string(), listed);
        let Platform::Snp(snp) = &plan.launch().platform else { unreachable!() };
        assert_eq!(snp.identity.as_ref().unwrap().block.measurement.to_string(), listed);
        assert_eq!(json["id_block"]["guest_svn"], 5);

        let words: Vec<&str> =
            json["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let value = |option: &str| words[words.iter().position(|word| *word == option).unwrap() + 1];
        assert_eq!((value("-cpu"), value("-smp")), (vcpu_type, vcpus.to_string().as_str()));
        assert_eq!(value("-bios"), release.path("firmware.fd").to_str().unwrap());
        let object = words.iter().find(|word| word.starts_with("sev-snp-guest")).unwrap();
        assert!(object.contains(json["id_block"]["id_auth"].as_str().unwrap()), "{object}");
        let text = plan.to_string();
        assert!(text.contains(&listed) && text.contains("-object sev-snp-guest,"), "{text}");
    }
    // The release's own model is the default.
    let default = release.plan(None, 1).unwrap().to_json();
    assert_eq!(default["measured"]["vcpu_type"], "EPYC-v4");
    assert!(!release.path("node").exists(), "a dry run writes nothing");
}

#[test]
fn a_release_without_id_block_is_launched_without() {
    let mut release = Release::new();
    release.manifest.guest.id_block = None;
    release.write(|_| {});
    assert!(!release.path(ID_BLOCK_FILE).exists());
    release.check_all().unwrap();
    assert!(release.plan(None, 2).unwrap().to_json().get("id_block").is_none());
}

#[test]
fn a_changed_file_is_refused() {
    for name in ["vmlinuz", "initrd", "firmware.fd"] {
        let release = Release::new();
        release.write(|_| {});
        let mut bytes = std::fs::read(release.path(name)).unwrap();
        bytes[17] ^= 1;
        std::fs::write(release.path(name), bytes).unwrap();
        assert_eq!(release.refused(), "file-wrong-hash", "{name}");
    }
}

/// Signed by the release keys, but the measurement is of other inputs.
#[test]
fn a_measurement_of_other_inputs_is_refused() {
    type Change = fn(&mut Guest);
    let changes: [Change; 3] = [
        |guest| guest.command_line.push_str(" init=/bin/sh"),
        |guest| guest.measurements[2].measurement = guest.measurements[1].measurement,
        |guest| guest.measurements[2].measurement.0[0] ^= 1,
    ];
    for change in changes {
        let mut release = Release::new();
        change(&mut release.manifest.guest);
        release.write(|_| {});
        assert_eq!(release.refused(), "measurement-differs");
        assert_eq!(release.check_all().unwrap_err().code(), "measurement-differs");
    }
}

/// One wrong entry of the matrix is found although the launch at hand would be right.
#[test]
fn every_measurement_is_checked() {
    let mut release = Release::new();
    release.manifest.guest.measurements[0].measurement.0[0] ^= 1;
    release.write(|_| {});
    release.plan(None, 2).unwrap();
    assert_eq!(release.check_all().unwrap_err().code(), "measurement-differs");
}

#[test]
fn a_launch_that_is_not_listed_is_refused() {
    let release = Release::new();
    release.write(|_| {});
    for (vcpu_type, vcpus) in [(None, 3), (Some("EPYC-Turin"), 1), (Some("EPYC-Milan"), 2), (None, 0)] {
        let code = release.plan(vcpu_type, vcpus).unwrap_err().code();
        assert_eq!(code, if vcpus == 0 { "vcpu-count" } else { "vcpus-not-in-release" });
    }
    assert_eq!(release.plan(Some("EPYC,policy=0"), 2).unwrap_err().code(), "vcpu-type-unknown");
}

#[test]
fn firmware_that_does_not_protect_the_guest_is_refused() {
    let without_metadata = Release::with(vec![0x90; 3 * 4096], 1);
    without_metadata.write(|_| {});
    assert_eq!(without_metadata.refused(), "firmware-without-sev-metadata");
    let without_hashes = Release::with(firmware::firmware(&firmware::SECTIONS[..5], Some(0x81_0c00)), 1);
    without_hashes.write(|_| {});
    assert_eq!(without_hashes.refused(), "firmware-without-kernel-hashes");
}

/// QEMU has no option for other features, so the guest would have another measurement than the one that was checked.
#[test]
fn guest_features_that_qemu_does_not_set_are_refused() {
    let release = Release::with(firmware::usual(), 0x21);
    release.write(|_| {});
    release.check_all().unwrap();
    assert_eq!(release.refused(), "guest-features-not-launched");
}

#[test]
fn id_blocks_that_do_not_fit_are_refused() {
    type Change = fn(&mut IdBlockSignatures);
    let cases: [(Change, &str); 7] = [
        (|file| file.blocks[2].signature.0[40] ^= 1, "id-block-bad-signature"),
        // Well signed, for another number of vCPUs.
        (|file| file.blocks[2].signature = file.blocks[1].signature, "id-block-bad-signature"),
        (|file| file.author.as_mut().unwrap().signature.0[40] ^= 1, "id-block-bad-author-signature"),
        (|file| file.author = None, "id-block-wrong-key"),
        (|file| file.id_key.0[0] = 2, "id-block-key"),
        (|file| file.id_key = file.author.as_ref().unwrap().key, "id-block-bad-signature"),
        (|file| drop(file.blocks.pop()), "id-block-missing"),
    ];
    for (change, code) in cases {
        let release = Release::new();
        release.write(change);
        assert_eq!(release.refused(), code);
        assert_eq!(release.check_all().unwrap_err().code(), code);
    }
}

/// Signed in full by keys that the manifest does not name.
#[test]
fn id_blocks_of_other_signers_are_refused() {
    let mut release = Release::new();
    let [id_key, author_key] = keys();
    (release.id_key, release.author_key) = (author_key, Some(id_key));
    release.write(|_| {});
    assert_eq!(release.refused(), "id-block-wrong-key");
}

/// The ID blocks of an older release, whose security epoch was lower.
#[test]
fn id_blocks_of_an_older_release_are_refused() {
    let mut release = Release::new();
    release.manifest.security_epoch = 4;
    release.write(|_| {});
    let older = std::fs::read(release.path(ID_BLOCK_FILE)).unwrap();
    release.manifest.security_epoch = 5;
    release.write(|_| {});
    release.plan(None, 2).unwrap();
    std::fs::write(release.path(ID_BLOCK_FILE), older).unwrap();
    assert_eq!(release.refused(), "id-block-bad-signature");
}

#[test]
fn id_blocks_that_cannot_be_read_are_refused() {
    let release = Release::new();
    release.write(|_| {});
    std::fs::write(release.path(ID_BLOCK_FILE), b"{}").unwrap();
    assert_eq!(release.refused(), "id-block-unreadable");
    std::fs::remove_file(release.path(ID_BLOCK_FILE)).unwrap();
    assert_eq!(release.refused(), "release-unreadable");
}

/// Whoever names no root gets the development root only for virtual nodes: its private keys are public.
#[test]
fn the_development_root_is_refused() {
    let release = Release::new();
    release.write(|_| {});
    let options = Options { root: RootSource::Development, ..release.options(None, 2) };
    let error = plan(&options, &NodeDir::at(release.path("node"))).unwrap_err();
    assert_eq!(error.code(), "root-for-development");
}

/// A release for simulations is no release for processors, whoever signed it.
#[test]
fn a_virtual_release_is_refused() {
    let mut release = Release::new();
    release.manifest.profile = Profile::Virtual;
    release.write(|_| {});
    assert_eq!(release.refused(), "profile-mismatch");
}
