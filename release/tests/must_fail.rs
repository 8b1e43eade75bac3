//! What an attacker would try, and the name under which each attempt is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use release::{
    CanonicalError, Digest, Envelope, FileError, FileName, HostImages, InvalidManifest, MAX_DOCUMENT,
    Manifest, ManifestError, Measured, MeasuredSection, Measurement, Profile, ProfileMismatch, Root,
    RootContent, SignError, Signed, SigningKey, VcpuMeasurement, development, key_id, sign, verify,
};
use serde_json::{Value, json};

const GOLDEN: &[u8] = include_bytes!("golden/manifest.json");

fn refused(bytes: &[u8]) -> ManifestError {
    verify(bytes, &development::root().unwrap()).unwrap_err()
}

/// The golden manifest, signed by these keys.
fn signed_by(keys: &[&SigningKey]) -> Vec<u8> {
    let golden = Envelope::from_bytes(GOLDEN).unwrap();
    let mut envelope = Envelope::new(golden.manifest().clone()).unwrap();
    for key in keys {
        sign(&mut envelope, key).unwrap();
    }
    envelope.to_bytes()
}

/// The golden envelope, changed as JSON. serde_json sorts keys and writes no white space, so what comes out is
/// canonical as long as the change is.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(GOLDEN).unwrap();
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}

fn host(manifest: &mut Manifest) -> &mut HostImages {
    manifest.host.as_mut().unwrap()
}

/// What is measured of a host, spoilt.
fn measured(spoil: impl FnOnce(&mut Measured)) -> Measured {
    let section = |name: &str| MeasuredSection { name: name.into(), sha256: Digest([1; 32]) };
    let mut measured = Measured {
        kernel_authenticode: Digest([1; 32]),
        sections: vec![section(".linux"), section(".cmdline")],
        certificates: vec![Digest([1; 32]), Digest([2; 32])],
    };
    spoil(&mut measured);
    measured
}

#[test]
fn what_is_measured_of_a_host_is_signed_with_the_rest() {
    let mut manifest = Envelope::from_bytes(GOLDEN).unwrap().manifest().clone();
    host(&mut manifest).measured = Some(measured(|_| ()));
    let envelope = Envelope::new(manifest.clone()).unwrap();
    assert_ne!(envelope.digest(), Envelope::from_bytes(GOLDEN).unwrap().digest());
    assert_eq!(*Envelope::from_bytes(&envelope.to_bytes()).unwrap().manifest(), manifest);
}

fn golden_text() -> String {
    String::from_utf8(GOLDEN.to_vec()).unwrap()
}

#[test]
fn the_helpers_change_nothing_by_themselves() {
    let [one, _, three] = development::signing_keys().unwrap();
    assert_eq!(signed_by(&[&one, &three]), GOLDEN);
    assert_eq!(changed(|_| ()), GOLDEN);
}

#[test]
fn unsigned_and_one_signature_only() {
    let [one, ..] = development::signing_keys().unwrap();
    assert_eq!(refused(&signed_by(&[])), ManifestError::ThresholdNotMet { valid: 0, needed: 2 });
    assert_eq!(refused(&signed_by(&[&one])), ManifestError::ThresholdNotMet { valid: 1, needed: 2 });
}

#[test]
fn same_signer_twice() {
    let [one, ..] = development::signing_keys().unwrap();
    let keyid = key_id(&one.verifying_key());
    let mut envelope = Envelope::from_bytes(&signed_by(&[&one])).unwrap();
    assert_eq!(sign(&mut envelope, &one), Err(SignError::AlreadySigned { keyid }));
    assert_eq!(refused(&envelope.to_bytes()), ManifestError::ThresholdNotMet { valid: 1, needed: 2 });

    let mut twice: Value = serde_json::from_slice(&signed_by(&[&one])).unwrap();
    let signature = twice["signatures"][0].clone();
    twice["signatures"].as_array_mut().unwrap().push(signature);
    let bytes = serde_json::to_vec(&twice).unwrap();
    assert_eq!(refused(&bytes), ManifestError::DuplicateSignature { keyid });
}

#[test]
fn unknown_key() {
    let [one, two, _] = development::signing_keys().unwrap();
    let stranger = SigningKey::from_bytes(&[7; 32]);
    let keyid = key_id(&stranger.verifying_key());
    assert_eq!(refused(&signed_by(&[&one, &stranger])), ManifestError::UnknownKey { keyid });
    // Also on top of enough good ones.
    assert_eq!(refused(&signed_by(&[&one, &two, &stranger])), ManifestError::UnknownKey { keyid });
}

#[test]
fn another_root() {
    let strangers = [1, 2].map(|seed| SigningKey::from_bytes(&[seed; 32]));
    let content = RootContent::of_keys(1, 1, 2, strangers.each_ref().map(SigningKey::verifying_key));
    let mut root = Signed::new(content).unwrap();
    for key in &strangers {
        sign(&mut root, key).unwrap();
    }
    let root = Root::from_bytes(&root.to_bytes()).unwrap();
    assert!(matches!(verify(GOLDEN, &root), Err(ManifestError::UnknownKey { .. })));
}

#[test]
fn bad_signature_bytes() {
    for sig in ["00".repeat(64), "ff".repeat(64), "00".repeat(63), "xy".repeat(64), String::new()] {
        let bytes = changed(|envelope| envelope["signatures"][1]["sig"] = json!(sig));
        assert!(matches!(refused(&bytes), ManifestError::BadSignature { .. }), "{sig}");
    }
    // Two good signatures under each other's key.
    let bytes = changed(|envelope| {
        let first = envelope["signatures"][0]["sig"].take();
        let second = envelope["signatures"][1]["sig"].take();
        envelope["signatures"][0]["sig"] = second;
        envelope["signatures"][1]["sig"] = first;
    });
    assert!(matches!(refused(&bytes), ManifestError::BadSignature { .. }));
}

#[test]
fn altered_payload() {
    let alterations: [fn(&mut Value); 9] = [
        |signed| signed["version"] = json!("1.2.4"),
        |signed| signed["security_epoch"] = json!(5),
        |signed| signed["profile"] = json!("production"),
        |signed| signed["guest"]["policy"] = json!(0xb0000), // debugging allowed
        |signed| signed["guest"]["command_line"] = json!("init=/bin/sh"),
        |signed| signed["guest"]["files"]["kernel"]["sha256"] = json!("00".repeat(32)),
        |signed| signed["guest"]["measurements"][0]["measurement"] = json!("11".repeat(48)),
        |signed| drop(signed["guest"]["measurements"].as_array_mut().unwrap().pop()),
        |signed| signed["inputs"]["linux"] = json!("6.12.1"),
    ];
    for (i, alter) in alterations.into_iter().enumerate() {
        let bytes = changed(|envelope| alter(&mut envelope["signed"]));
        assert!(matches!(refused(&bytes), ManifestError::BadSignature { .. }), "alteration {i}");
    }
}

#[test]
fn non_canonical() {
    let text = golden_text();
    let pretty = {
        let value: Value = serde_json::from_str(&text).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    };
    let variants = [
        ("pretty", pretty),
        ("line feed at the end", format!("{text}\n")),
        ("space at the start", format!(" {text}")),
        ("escaped letter", text.replace("1.2.3-golden", r"\u0031.2.3-golden")),
        ("escaped slash", text.replace("guest/bzImage", r"guest\/bzImage")),
        ("upper-case key id", {
            let start = text.find("9e6d0a5d").unwrap();
            let id = &text[start..start + 64];
            text.replacen(id, &id.to_uppercase(), 1)
        }),
        (
            "order of members",
            text.replace(
                r#""profile":"virtual","security_epoch":4"#,
                r#""security_epoch":4,"profile":"virtual""#,
            ),
        ),
        ("order of signatures", {
            let mut value: Value = serde_json::from_str(&text).unwrap();
            value["signatures"].as_array_mut().unwrap().reverse();
            serde_json::to_string(&value).unwrap()
        }),
        ("duplicate in a map", text.replace(r#""linux":"6.12.117""#, r#""linux":"1","linux":"6.12.117""#)),
        (
            "duplicate in a struct",
            text.replace(r#""security_epoch":4"#, r#""security_epoch":3,"security_epoch":4"#),
        ),
        ("array for an object", {
            let mut value: Value = serde_json::from_str(&text).unwrap();
            let entry = value["signed"]["guest"]["measurements"][0].take();
            value["signed"]["guest"]["measurements"][0] =
                json!([entry["vcpu_type"], entry["vcpus"], entry["measurement"]]);
            serde_json::to_string(&value).unwrap()
        }),
        ("object for a profile", text.replace(r#""profile":"virtual""#, r#""profile":{"virtual":null}"#)),
    ];
    for (name, variant) in variants {
        assert_ne!(variant, text, "{name} changes nothing");
        let error = refused(variant.as_bytes());
        // Upper-case hexadecimal does not even have the right type.
        let expected = match name {
            "upper-case key id" => matches!(error, ManifestError::Malformed(_)),
            _ => matches!(error, ManifestError::NotCanonical { .. }),
        };
        assert!(expected, "{name}: {error:?}");
    }
}

#[test]
fn floats_negative_and_non_ascii() {
    let text = golden_text();
    for number in ["4.0", "4e0", "-4", "18446744073709551616", "true", "null", "\"4\""] {
        let bytes = text.replace(r#""security_epoch":4"#, &format!(r#""security_epoch":{number}"#));
        assert!(matches!(refused(bytes.as_bytes()), ManifestError::Malformed(_)), "{number}");
    }
    for version in ["1\u{fc}", "1\\u00fc", "1\\u0000", "1\\n"] {
        let bytes = text.replace("1.2.3-golden", version);
        let expected = ManifestError::Invalid(InvalidManifest::Name("version"));
        assert_eq!(refused(bytes.as_bytes()), expected, "{version}");
    }
    for value in ["6.12.117\u{fc}", "6.12.117\\u001b[2J"] {
        let bytes = text.replace("6.12.117", value);
        let error = refused(bytes.as_bytes());
        assert!(matches!(error, ManifestError::Invalid(InvalidManifest::Canonical(_))), "{error:?}");
    }
    // 2^53 would be read differently by programs that use doubles.
    let bytes = changed(|envelope| envelope["signed"]["guest"]["policy"] = json!(1u64 << 53));
    assert!(matches!(refused(&bytes), ManifestError::Invalid(InvalidManifest::Canonical(_))));
}

#[test]
fn not_json_and_too_long() {
    let deep = [&br#"{"signatures":[],"signed":"#[..], &b"[".repeat(100_000)].concat();
    for bytes in [&b""[..], b"{", b"\0", b"\xff\xfe", &GOLDEN[..GOLDEN.len() - 1], &deep] {
        assert!(matches!(refused(bytes), ManifestError::NotJson(_)));
    }
    assert!(matches!(refused(b"[]"), ManifestError::Malformed(_)));
    let bytes = vec![b' '; MAX_DOCUMENT + 1];
    assert_eq!(refused(&bytes), ManifestError::TooLong { length: MAX_DOCUMENT + 1 });
}

#[test]
fn wrong_type_and_later_format() {
    // The development root is a properly made document too, of another type.
    let bytes = changed(|envelope| envelope["signed"]["_type"] = json!("redoubt-root"));
    assert_eq!(refused(&bytes), ManifestError::WrongType { found: "redoubt-root".into() });
    let bytes = changed(|envelope| {
        envelope["signed"]["spec_version"] = json!(2);
        envelope["signed"]["added_by_version_2"] = json!(1);
    });
    assert_eq!(refused(&bytes), ManifestError::UnsupportedSpecVersion { found: 2 });
    for missing in ["_type", "spec_version"] {
        let bytes = changed(|envelope| drop(envelope["signed"].as_object_mut().unwrap().remove(missing)));
        assert!(matches!(refused(&bytes), ManifestError::Malformed(_)), "{missing}");
    }
}

#[test]
fn unknown_fields() {
    for path in [
        "",
        "/signatures/0",
        "/signed",
        "/signed/guest",
        "/signed/guest/files",
        "/signed/guest/files/kernel",
        "/signed/guest/measurements/0",
    ] {
        let bytes = changed(|envelope| envelope.pointer_mut(path).unwrap()["extra"] = json!("x"));
        assert!(matches!(refused(&bytes), ManifestError::Malformed(_)), "{path}");
    }
}

#[test]
fn missing_measurements_and_files() {
    let bytes = changed(|envelope| envelope["signed"]["guest"]["measurements"] = json!([]));
    assert_eq!(refused(&bytes), ManifestError::Invalid(InvalidManifest::NoMeasurements));
    let bytes = changed(|envelope| {
        envelope["signed"]["guest"].as_object_mut().unwrap().remove("measurements");
    });
    assert_eq!(refused(&bytes), ManifestError::Invalid(InvalidManifest::NoMeasurements));
    for name in ["kernel", "initrd", "firmware"] {
        let bytes = changed(|envelope| {
            envelope["signed"]["guest"]["files"].as_object_mut().unwrap().remove(name);
        });
        match refused(&bytes) {
            ManifestError::Malformed(why) => assert!(why.contains(name), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

/// The rules hold before anything can be signed, by the same code that refuses to read.
#[test]
fn invalid_manifests_cannot_be_signed() {
    type Spoil = fn(&mut release::Manifest);
    let cases: [(Spoil, InvalidManifest); 26] = [
        (|m| m.guest.measurements.clear(), InvalidManifest::NoMeasurements),
        (
            |m| m.guest.measurements.reverse(),
            InvalidManifest::MeasurementOrder { vcpu_type: "EPYC-Genoa".into(), vcpus: 4 },
        ),
        (
            |m| m.guest.measurements.insert(1, m.guest.measurements[0].clone()),
            InvalidManifest::MeasurementOrder { vcpu_type: "EPYC-Genoa".into(), vcpus: 1 },
        ),
        (|m| m.guest.vcpu_type = "EPYC-Turin".into(), InvalidManifest::DefaultVcpuType("EPYC-Turin".into())),
        (|m| m.security_epoch = 1 << 32, InvalidManifest::GuestSvn(1 << 32)),
        (|m| m.guest.measurements[0].vcpu_type = "EPYC,policy=0".into(), InvalidManifest::Name("vCPU type")),
        (
            |m| m.guest.measurements[1].measurement = Measurement([0; 48]),
            InvalidManifest::BlankMeasurement { vcpus: 2 },
        ),
        (
            |m| {
                let vcpu_type = "EPYC-Genoa".into();
                m.guest.measurements =
                    vec![VcpuMeasurement { vcpu_type, vcpus: 0, measurement: Measurement([1; 48]) }];
            },
            InvalidManifest::BlankMeasurement { vcpus: 0 },
        ),
        (|m| m.guest.files.initrd.size = 0, InvalidManifest::EmptyFile("initrd")),
        (|m| host(m).root.size = 0, InvalidManifest::EmptyFile("host's root")),
        (|m| host(m).uki.path = "/host.efi".into(), InvalidManifest::Path("unified kernel image")),
        (
            |m| host(m).root_hash_tree.path = host(m).root.path.clone(),
            InvalidManifest::SamePath("host's hash tree"),
        ),
        (|m| host(m).verity_root_hash = Digest([0; 32]), InvalidManifest::BlankHostHash),
        (|m| host(m).uki_authenticode = Digest([0; 32]), InvalidManifest::BlankHostHash),
        (|m| host(m).measured = Some(measured(|m| m.sections.clear())), InvalidManifest::Measured),
        (
            |m| host(m).measured = Some(measured(|m| m.sections[1].name = ".linux".into())),
            InvalidManifest::Measured,
        ),
        (
            |m| host(m).measured = Some(measured(|m| m.sections[0].name = "linux".into())),
            InvalidManifest::Measured,
        ),
        (
            |m| host(m).measured = Some(measured(|m| m.sections[0].sha256.0 = [0; 32])),
            InvalidManifest::Measured,
        ),
        (
            |m| host(m).measured = Some(measured(|m| m.kernel_authenticode.0 = [0; 32])),
            InvalidManifest::Measured,
        ),
        (|m| host(m).measured = Some(measured(|m| m.certificates.reverse())), InvalidManifest::Measured),
        (|m| m.source_commit = String::new(), InvalidManifest::Name("source commit")),
        (|m| m.guest.files.kernel.path = "../kernel".into(), InvalidManifest::Path("kernel")),
        (|m| m.guest.files.firmware.path = "/etc/passwd".into(), InvalidManifest::Path("firmware")),
        (|m| m.version.clear(), InvalidManifest::Name("version")),
        (|m| m.guest.vcpu_type = "EPYC,policy=0".into(), InvalidManifest::Name("vCPU type")),
        (|m| m.guest.command_line = "x".repeat(2048), InvalidManifest::CommandLineTooLong(2048)),
    ];
    let golden = Envelope::from_bytes(GOLDEN).unwrap();
    for (spoil, expected) in cases {
        let mut manifest = golden.manifest().clone();
        spoil(&mut manifest);
        assert_eq!(Envelope::new(manifest).unwrap_err(), expected);
    }
    let mut manifest = golden.manifest().clone();
    manifest.inputs.insert("long".into(), "x".repeat(MAX_DOCUMENT));
    assert!(matches!(Envelope::new(manifest), Err(InvalidManifest::Canonical(CanonicalError::TooLong(_)))));
}

#[test]
fn profile_mismatch() {
    let approved = verify(GOLDEN, &development::root().unwrap()).unwrap();
    assert_eq!(
        approved.require_profile(Profile::Production).unwrap_err(),
        ProfileMismatch { expected: Profile::Production, found: Profile::Virtual }
    );
}

#[test]
fn tampered_files() {
    let approved = verify(GOLDEN, &development::root().unwrap()).unwrap();
    for (name, content) in [
        (FileName::Kernel, &b"kernel byteS"[..]),
        (FileName::Initrd, b"initrd byteS"),
        (FileName::Firmware, b"firmware byteS"),
        // Another file of the same release, of the same length.
        (FileName::Kernel, b"initrd bytes"),
    ] {
        match approved.check_file(name, content).unwrap_err() {
            FileError::WrongHash { name: found, .. } => assert_eq!(found, name.as_str()),
            other => panic!("{other:?}"),
        }
    }
    for content in [&b""[..], b"kernel byte", b"kernel bytes\0"] {
        match approved.check_file(FileName::Kernel, content).unwrap_err() {
            FileError::WrongSize { expected: 12, found, .. } => assert_eq!(found, content.len() as u64),
            other => panic!("{other:?}"),
        }
    }
}

/// Messages are shown to operators: they name the thing and never carry a terminal's control characters.
#[test]
fn messages() {
    let [one, ..] = development::signing_keys().unwrap();
    let message = refused(&signed_by(&[&one])).to_string();
    assert_eq!(
        message,
        "the manifest has 1 valid signatures, the root asks for 2; have more release keys sign it"
    );
    let bytes = changed(|envelope| envelope["signed"]["\u{1b}[2J"] = json!(1));
    let message = refused(&bytes).to_string();
    assert!(message.contains("[2J") && !message.contains('\u{1b}'), "{message:?}");
}
