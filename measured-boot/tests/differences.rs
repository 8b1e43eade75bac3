//! Every way in which a start can differ from the release, named; and quotes by a software key in a TPM's form.

#![expect(clippy::unwrap_used, reason = "a failure ends the test")]

use measured_boot::{
    Hash, QUOTED, SHA256,
    expected::{Difference, compare, measured as sections_of, pcr11},
    key::AttestationKey,
    log::{ACTION, APPLICATION, Event, EventLog, IPL, VARIABLE_AUTHORITY, VARIABLE_CONFIG, write},
    quote::{self, QuoteError},
    samples::{CERTIFICATE, event, expected, measured, numbered, signature_list, started, variable},
    sha256,
};
use proptest::prelude::*;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use std::{collections::BTreeMap, io::Write as _, process::Command};

fn quoted(events: &[Event]) -> BTreeMap<u8, Hash> {
    let pcrs = EventLog::parse(&write::log(events)).unwrap().replay();
    QUOTED.iter().map(|pcr| (*pcr, pcrs[usize::from(*pcr)])).collect()
}

/// The differences when these events were measured and this log is shown.
fn differences(measured: &[Event], shown: &[Event]) -> Vec<Difference> {
    compare(&EventLog::parse(&write::log(shown)).unwrap(), &quoted(measured), &expected())
}

/// Code, PCR and event of the differences of a machine that was started that way and shows its true log.
fn found(events: Vec<Event>) -> Vec<(&'static str, u8, Option<usize>)> {
    let events = numbered(events);
    let found = differences(&events, &events);
    for difference in &found {
        assert!(difference.expected != difference.found, "{difference}");
    }
    found.iter().map(|difference| (difference.code, difference.pcr, difference.event)).collect()
}

fn position(of: impl Fn(&Event) -> bool) -> usize {
    started().iter().position(of).unwrap()
}

fn with(change: impl FnOnce(&mut Vec<Event>)) -> Vec<Event> {
    let mut events = started();
    change(&mut events);
    events
}

#[test]
fn a_machine_started_from_the_release_does_not_differ() {
    assert_eq!(found(started()), []);
}

#[test]
fn another_image_is_named_by_its_section_and_hash() {
    let cmdline = expected().sections[2].sha256;
    let at = position(|event| event.digest == cmdline);
    let other = with(|events| events[at].digest = sha256(b"another command line"));
    assert_eq!(found(other), [("section-differs", 11, Some(at + 1))]);
    let name = |events: Vec<Event>| {
        let events = numbered(events);
        differences(&events, &events)[0].what.clone()
    };
    let other = with(|events| events[at].digest = sha256(b"another command line"));
    assert!(name(other).contains(".cmdline"));

    let image = position(|event| event.kind == APPLICATION);
    let other = with(|events| events[image].digest = sha256(b"another image"));
    assert_eq!(found(other), [("image-differs", 4, Some(image + 1))]);
    let loader = measured(4, APPLICATION, sha256(b"shell"), b"path");
    let before = found(with(|events| events.insert(image, loader.clone())));
    assert_eq!(before.len(), 3, "each executable is another: {before:?}");
    let after = found(with(|events| events.push(loader)));
    assert_eq!(after, [("image-differs", 4, Some(started().len() + 1))]);
    // Under Secure Boot the stub starts the kernel past the firmware.
    assert_eq!(
        found(with(|events| {
            events.pop();
        })),
        []
    );
    assert_eq!(
        found(with(|events| events.retain(|event| event.kind != APPLICATION))),
        [("image-missing", 4, None)]
    );
    assert_eq!(
        found(with(|events| {
            events.remove(image);
        })),
        [("image-differs", 4, Some(started().len() - 1))]
    );
    let returned = event(4, ACTION, b"Returning from EFI Application from Boot Option");
    let back = found(with(|events| events.insert(image, returned)));
    assert_eq!(back, [("unknown-event", 4, Some(image + 1))]);
}

#[test]
fn more_and_fewer_sections_are_named() {
    let all = with(|events| events.retain(|event| event.pcr != 11));
    assert_eq!(found(all).len(), 8, "name and content of four sections");
    let more = with(|events| events.push(event(11, IPL, b"enter-initrd")));
    assert_eq!(found(more), [("section-extra", 11, Some(started().len() + 1))]);
    let credential = with(|events| events.push(event(12, IPL, b"credential")));
    assert_eq!(found(credential), [("foreign-input", 12, Some(started().len() + 1))]);
}

#[test]
fn secure_boot_is_on_with_the_releases_keys_only() {
    let at = |name: &str| {
        position(|event| event.kind == VARIABLE_CONFIG && event.data == variable(name, &value(name)))
    };
    fn value(name: &str) -> Vec<u8> {
        if name == "SecureBoot" { vec![1] } else { signature_list(CERTIFICATE) }
    }
    let set = |name: &str, value: &[u8]| {
        with(|events| events[at(name)] = event(7, VARIABLE_CONFIG, &variable(name, value)))
    };
    assert_eq!(found(set("SecureBoot", &[0])), [("secure-boot-off", 7, Some(at("SecureBoot") + 1))]);
    let none = with(|events| {
        events.remove(at("SecureBoot"));
    });
    assert_eq!(found(none), [("secure-boot-off", 7, None)]);
    for name in ["PK", "KEK", "db"] {
        let both = [signature_list(CERTIFICATE), signature_list(b"somebody else's")].concat();
        assert_eq!(found(set(name, &both)), [("key-unknown", 7, Some(at(name) + 1))], "{name}");
        assert_eq!(
            found(set(name, &both[..70])),
            [("key-unknown", 7, Some(at(name) + 1))],
            "{name}, cut off"
        );
    }
    let authority = position(|event| event.kind == VARIABLE_AUTHORITY);
    let list = signature_list(b"somebody else's");
    let other = with(|events| events[authority] = event(7, VARIABLE_AUTHORITY, &variable("db", &list[28..])));
    assert_eq!(found(other), [("authority-unknown", 7, Some(authority + 1)), ("authority-missing", 7, None)]);
    let none = with(|events| {
        events.remove(authority);
    });
    assert_eq!(found(none), [("authority-missing", 7, None)]);
    // What the event says is not what was measured.
    let lie = with(|events| events[at("SecureBoot")].digest = sha256(&variable("SecureBoot", &[0])));
    assert_eq!(found(lie), [("unknown-event", 7, Some(at("SecureBoot") + 1)), ("secure-boot-off", 7, None)]);
    let debug = with(|events| events.push(event(7, ACTION, b"UEFI Debug Mode")));
    assert_eq!(found(debug), [("unknown-event", 7, Some(started().len() + 1))]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever one event of the log becomes, the PCR that it was measured into tells.
    #[test]
    fn a_log_that_is_not_what_was_measured_is_named(at: prop::sample::Index, how in 0..4_u8) {
        let events = started();
        let at = at.index(events.len());
        let mut shown = events.clone();
        match how {
            0 => { shown.remove(at); }
            1 => shown.insert(at, events[at].clone()),
            2 => shown[at].digest[0] ^= 1,
            _ => shown[at].pcr = (shown[at].pcr + 1) % 8,
        }
        let found = differences(&events, &numbered(shown));
        prop_assert!(found.iter().any(|d| d.code == "log-differs" && d.pcr == events[at].pcr), "{found:?}");
    }
}

/// A key in the form of a TPM's, and statements that it signs.
struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Self { pair, random }
    }

    fn area(&self, attributes: u32) -> Vec<u8> {
        let point = self.pair.public_key().as_ref();
        let mut out = Vec::new();
        for number in [0x23, SHA256] {
            out.extend(u16::to_be_bytes(number));
        }
        out.extend(attributes.to_be_bytes());
        // No policy; symmetric: null; ECDSA with SHA-256; P-256; no KDF.
        for number in [0, 0x10, 0x18, SHA256, 3, 0x10] {
            out.extend(u16::to_be_bytes(number));
        }
        for part in [&point[1..33], &point[33..]] {
            out.extend(32_u16.to_be_bytes());
            out.extend(part);
        }
        out
    }

    fn sign(&self, statement: &[u8]) -> Vec<u8> {
        let signature = self.pair.sign(&self.random, statement).unwrap();
        let mut out = [0x18_u16, SHA256].map(u16::to_be_bytes).concat();
        for part in signature.as_ref().chunks(32) {
            out.extend(32_u16.to_be_bytes());
            out.extend(part);
        }
        out
    }
}

/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign.
const ATTRIBUTES: u32 = 0x0005_0072;

fn statement(magic: u32, kind: u16, qualifying: &[u8], bank: u16, pcrs: &[u8], digest: &[u8]) -> Vec<u8> {
    let mut out = magic.to_be_bytes().to_vec();
    out.extend(kind.to_be_bytes());
    let sized = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend((bytes.len() as u16).to_be_bytes());
        out.extend(bytes);
    };
    sized(&mut out, b"signer");
    sized(&mut out, qualifying);
    out.extend(7_u64.to_be_bytes());
    out.extend([0, 0, 0, 3, 0, 0, 0, 0, 1]);
    out.extend(9_u64.to_be_bytes());
    out.extend(1_u32.to_be_bytes());
    out.extend(bank.to_be_bytes());
    let mut bits = [0; 3];
    for pcr in pcrs {
        bits[usize::from(pcr / 8)] |= 1 << (pcr % 8);
    }
    out.push(3);
    out.extend(bits);
    sized(&mut out, digest);
    out
}

fn digest(values: &BTreeMap<u8, Hash>) -> Hash {
    sha256(&values.values().flatten().copied().collect::<Vec<u8>>())
}

const GENERATED: u32 = 0xff54_4347;

#[test]
fn a_quote_is_what_it_should_be_in_every_part() {
    let signer = Signer::new();
    let key = AttestationKey::parse(&signer.area(ATTRIBUTES)).unwrap();
    let values = quoted(&started());
    let verify = |statement: &[u8], signature: &[u8]| {
        quote::verify(statement, signature, &key, b"nonce", &QUOTED, &values)
    };
    let judged = |statement: Vec<u8>| verify(&statement, &signer.sign(&statement));
    let good = || statement(GENERATED, 0x8018, b"nonce", SHA256, &QUOTED, &digest(&values));
    let quote = judged(good()).unwrap();
    assert_eq!((quote.pcrs.clone(), quote.clock.resets, quote.clock.firmware), (values.clone(), 3, 9));

    let code = |result: Result<_, QuoteError>| result.err().map(|error| error.code());
    let made = |magic, kind, nonce: &[u8], bank, pcrs: &[u8], digest: &[u8]| {
        code(judged(statement(magic, kind, nonce, bank, pcrs, digest)))
    };
    let digest = digest(&values);
    assert_eq!(made(0, 0x8018, b"nonce", SHA256, &QUOTED, &digest), Some("quote-malformed"));
    assert_eq!(made(GENERATED, 0x8017, b"nonce", SHA256, &QUOTED, &digest), Some("quote-malformed"));
    assert_eq!(made(GENERATED, 0x8018, b"older", SHA256, &QUOTED, &digest), Some("quote-nonce-differs"));
    assert_eq!(made(GENERATED, 0x8018, b"nonce", 4, &QUOTED, &digest), Some("quote-wrong-bank"));
    assert_eq!(
        made(GENERATED, 0x8018, b"nonce", SHA256, &QUOTED[1..], &digest),
        Some("quote-wrong-selection")
    );
    assert_eq!(made(GENERATED, 0x8018, b"nonce", SHA256, &QUOTED, &[0; 32]), Some("quote-values-differ"));
    let other = Signer::new();
    assert_eq!(code(verify(&good(), &other.sign(&good()))), Some("quote-signature-wrong"));
    for end in 0..good().len() {
        assert_eq!(code(judged(good()[..end].to_vec())), Some("quote-malformed"), "{end}");
    }
    let longer = [good(), vec![0]].concat();
    assert_eq!(code(judged(longer)), Some("quote-malformed"));
}

#[test]
fn only_keys_that_stay_in_their_tpm_and_sign_its_words_are_taken() {
    let signer = Signer::new();
    AttestationKey::parse(&signer.area(ATTRIBUTES)).unwrap();
    for bit in [1, 4, 5, 16, 18] {
        let error = AttestationKey::parse(&signer.area(ATTRIBUTES & !(1 << bit))).unwrap_err();
        assert!(error.to_string().contains("lacks"), "{bit}: {error}");
    }
    AttestationKey::parse(&signer.area(ATTRIBUTES | 1 << 17)).unwrap_err();
}

proptest! {
    #[test]
    fn no_bytes_make_keys_quotes_or_signatures_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        at: prop::sample::Index,
        to: u8,
    ) {
        let signer = Signer::new();
        let area = signer.area(ATTRIBUTES);
        let _ = AttestationKey::parse(&bytes);
        let mut changed = area.clone();
        changed[at.index(area.len())] = to;
        let _ = AttestationKey::parse(&changed);
        let key = AttestationKey::parse(&area).unwrap();
        let _ = quote::verify(&bytes, &bytes, &key, b"nonce", &QUOTED, &BTreeMap::new());
        let mut good = statement(GENERATED, 0x8018, b"nonce", SHA256, &QUOTED, &[0; 32]);
        let signature = signer.sign(&good);
        let at = at.index(good.len());
        let same = good[at] == to;
        good[at] = to;
        let values = QUOTED.iter().map(|pcr| (*pcr, [0; 32])).collect();
        let refused = quote::verify(&good, &signature, &key, b"nonce", &QUOTED, &values).unwrap_err();
        prop_assert!(same || ["quote-malformed", "quote-signature-wrong"].contains(&refused.code()));
    }
}

fn program(name: &str) -> bool {
    let there = Command::new(name).arg("--version").output().is_ok();
    assert!(there || std::env::var_os("CI").is_none(), "CI must have {name}");
    if !there {
        // Not captured, as what is printed would be.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no program {name} to compare with");
    }
    there
}

#[test]
fn systemd_measure_predicts_the_same_pcr_11() {
    const PROGRAM: &str = "/usr/lib/systemd/systemd-measure";
    if !program(PROGRAM) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let contents: [(&str, &[u8]); 4] =
        [(".osrel", b"ID=x\n"), (".cmdline", b"quiet"), (".linux", b"kernel"), (".initrd", b"archive")];
    let mut measure = Command::new(PROGRAM);
    measure.args(["calculate", "--bank=sha256", "--phase=", "--json=short"]);
    for (name, content) in contents {
        let file = dir.path().join(&name[1..]);
        std::fs::write(&file, content).unwrap();
        measure.arg(format!("--{}={}", &name[1..], file.display()));
    }
    let output = measure.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ours = hex::encode(pcr11(&sections_of(contents)));
    assert!(text.contains(&ours), "{ours} is not in {text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn tpm2_eventlog_replays_to_the_same_pcrs() {
    if !program("tpm2_eventlog") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    std::fs::write(&file, write::log(&started())).unwrap();
    let output = Command::new("tpm2_eventlog").arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pcrs = EventLog::parse(&write::log(&started())).unwrap().replay();
    for pcr in [0, 4, 7, 11] {
        let ours = hex::encode(pcrs[pcr]);
        assert!(
            text.contains(&ours),
            "PCR {pcr} {ours} is not in {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
