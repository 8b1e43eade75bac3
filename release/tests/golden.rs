//! A fixed envelope and root, made by an independent program: Python's `json.dumps(sort_keys=True,
//! separators=(",", ":"))`, `hashlib`, and OpenSSL's ed25519 through `cryptography`. `securesystemslib` 1.6.0,
//! the library below TUF's reference implementation, computes the same key ids and canonical bytes and accepts
//! both signatures.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use release::{
    Digest, Envelope, File, FileName, Files, Guest, HostImages, IdBlock, LaunchId, Manifest, Measurement,
    MeasurementError, Profile, RoleName, VcpuMeasurement, development, key_id, sign, verify,
};

const GOLDEN: &[u8] = include_bytes!("golden/manifest.json");

fn manifest() -> Manifest {
    let entry = |vcpu_type: &str, vcpus, hex: &str| VcpuMeasurement {
        vcpu_type: vcpu_type.into(),
        vcpus,
        measurement: hex.parse::<Measurement>().unwrap(),
    };
    let measurement = |vcpus, hex| entry("EPYC-Genoa", vcpus, hex);
    Manifest {
        version: "1.2.3-golden".into(),
        security_epoch: 4,
        profile: Profile::Virtual,
        source_commit: "0123456789abcdef0123456789abcdef01234567".into(),
        input_lock: Digest::of(b"lock bytes"),
        host: Some(HostImages {
            uki: File::describe("host.efi", b"uki bytes"),
            uki_authenticode: Digest::of(b"authenticode"),
            root: File::describe("host-root.erofs", b"root bytes"),
            root_hash_tree: File::describe("host-root.verity", b"hash tree bytes"),
            verity_root_hash: Digest::of(b"root hash"),
            installer: Some(File::describe("installer.efi", b"installer bytes")),
            measured: None,
        }),
        guest: Guest {
            files: Files {
                kernel: File::describe("guest/bzImage", b"kernel bytes"),
                initrd: File::describe("guest/initrd.img", b"initrd bytes"),
                firmware: File::describe("guest/bios.bin", b"firmware bytes"),
            },
            command_line: r#"console=ttyS0 quoted="a\b" redoubt.profile=virtual"#.into(),
            vcpu_type: "EPYC-Genoa".into(),
            policy: 0x30000,
            guest_features: 1,
            // SHA-384 of "id key" and "author key".
            id_block: Some(IdBlock {
                family_id: LaunchId(*b"redoubt\0\0\0\0\0\0\0\0\0"),
                image_id: LaunchId(*b"guest-os\0\0\0\0\0\0\0\0"),
                id_key_digest: "666b8b8e7ce8dd758a26294b568260ce78ac1aaeac2a58548b580c4ddc3351d2d48c47aff47ac2071d51aa5754e65876"
                    .parse()
                    .unwrap(),
                author_key_digest: Some(
                    "63d6261f607b8d84d843c8343782018767f2431925b941dea00438801d44823c07e2c51b5cd7ee2866835d38c4c1b9fd"
                        .parse()
                        .unwrap(),
                ),
            }),
            // SHA-384 of "measurement 1", "measurement 2", "measurement 4", "measurement 1 of EPYC-v4".
            measurements: vec![
                measurement(
                    1,
                    "4fc806f5d3a1d1e608788d41ac758f5b88fcb15712b7eaa2166988a0acaa027338121025bcb2b70fb987d00fdaac80ea",
                ),
                measurement(
                    2,
                    "22ce70dcb2c3d960d32287100958e8c03c24b98f9fe13de832dbb5502032d96faa3eec5d21b9ef3563a4f1ab54537abc",
                ),
                measurement(
                    4,
                    "3015c4129a91d30bae318231d4c53c0ce27e47c0aa2f42a565fd053ea3786fc8c4b4f43f6fab23472edae98d06308604",
                ),
                entry(
                    "EPYC-v4",
                    1,
                    "1a7073cacc1fbec4a5f895bf6b90ce153ccee9505d02fd1f53025ecff3fc23826a3f4cf1267fc0ef473083af203fb4bc",
                ),
            ],
        },
        inputs: [
            ("linux", "6.12.117"),
            ("Toolchain", "1.95"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into(),
    }
}

#[test]
fn we_write_the_same_bytes() {
    let keys = development::signing_keys().unwrap();
    let mut envelope = Envelope::new(manifest()).unwrap();
    // In the order that is not the order of the ids: the result may not depend on who signs first.
    sign(&mut envelope, &keys[0]).unwrap();
    sign(&mut envelope, &keys[2]).unwrap();
    assert_eq!(String::from_utf8(envelope.to_bytes()).unwrap(), std::str::from_utf8(GOLDEN).unwrap());
}

#[test]
fn we_accept_it() {
    let approved = verify(GOLDEN, &development::root().unwrap()).unwrap();
    assert_eq!(approved.manifest(), &manifest());
    assert_eq!(
        approved.digest().to_string(),
        "7e41cec0deb27127832293a0febf199b5c809996f97a10c2c6de1be6f58bdc19"
    );
    assert_eq!(approved.signers().len(), 2);
    let approved = approved.require_profile(Profile::Virtual).unwrap();
    approved.check_file(FileName::Kernel, b"kernel bytes").unwrap();
    approved.check_file(FileName::Initrd, b"initrd bytes").unwrap();
    approved.check_file(FileName::Firmware, b"firmware bytes").unwrap();
    let guest = &approved.manifest().guest;
    assert_eq!(guest.measurement_for("EPYC-Genoa", 4), Some(guest.measurements[2].measurement));
    assert_eq!(guest.measurement_for("EPYC-v4", 1), Some(guest.measurements[3].measurement));
    assert_eq!(guest.measurement_for("EPYC-v4", 4), None);
    assert_eq!(guest.supported(), "EPYC-Genoa (1, 2, 4) and EPYC-v4 (1)");
}

#[test]
fn measurements_are_compared_by_type_and_count() {
    let guest = manifest().guest;
    let listed = |index: usize| guest.measurements[index].measurement;
    guest.check_measurement("EPYC-Genoa", 2, listed(1)).unwrap();
    guest.check_measurement("EPYC-v4", 1, listed(3)).unwrap();
    // That of another count, and that of another type.
    for (vcpu_type, other) in [("EPYC-Genoa", listed(1)), ("EPYC-v4", listed(0))] {
        let error = guest.check_measurement(vcpu_type, 1, other).unwrap_err();
        let expected = guest.measurement_for(vcpu_type, 1).unwrap();
        let vcpu_type = vcpu_type.to_owned();
        assert_eq!(error, MeasurementError::Differs { vcpu_type, vcpus: 1, computed: other, expected });
    }
    for (vcpu_type, vcpus) in [("EPYC-v4", 2), ("EPYC-Milan", 1)] {
        let error = guest.check_measurement(vcpu_type, vcpus, listed(0)).unwrap_err();
        assert!(matches!(error, MeasurementError::NotListed { .. }), "{error}");
    }
}

#[test]
fn development_root_names_the_development_keys() {
    let root = development::root().unwrap();
    assert_eq!(root.to_bytes(), development::ROOT);
    let role = root.role(RoleName::Release);
    assert_eq!((role.threshold, role.keyids.len()), (2, 3));
    let ids = development::signing_keys().unwrap().map(|key| key_id(&key.verifying_key()));
    assert_eq!(ids[0].to_string(), "c36789257cebec866977108107c935bf6237a848960ddd60869d770fa9f30d6a");
    assert!(ids.iter().all(|id| role.keyids.contains(id)));
    // A changed root is a decision, not an accident.
    assert_eq!(
        Digest::of(development::ROOT).to_string(),
        "4d614af536b2ba06887536d3c76b27011eac08dd0c825668d3f3aa6e7bb4b4a3"
    );
}
