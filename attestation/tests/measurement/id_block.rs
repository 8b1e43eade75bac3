//! ID blocks: test vectors and tool of others, and what must be refused.

use crate::python;
use attestation::measurement::{
    Measurement,
    id_block::{
        Expected, ID_AUTH_LENGTH, IdAuth, IdBlock, IdBlockError,
        sign::{SigningKey, sign},
    },
};
use attestation::report::{GuestPolicy, Report, offset};
use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;

const ID_KEY: &str = include_str!("data/id-key.pem");
const AUTHOR_KEY: &str = include_str!("data/author-key.pem");
const ID_AUTH: &[u8; ID_AUTH_LENGTH] = include_bytes!("data/id-auth.bin");
/// From `tests/id-block.rs` of the crate `sev` 8.0.0.
const LAUNCH_DIGEST: &str =
    "a14d638341e5674628fe1e02fbedebe5e5ab4faf1dd72d8966068e615bb99efd13d214b35c231715b38e263dc6059745";
const ID_BLOCK_BASE64: &str = "oU1jg0HlZ0Yo/h4C++3r5eWrT68d1y2JZgaOYVu5nv0T0hSzXCMXFbOOJj3GBZdFAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAwAAAAAA";
const ID_KEY_DIGEST: &str = "WfssaG36T+9J84M5qndckAUcKNVzg93DuvO160sUlt87DbvcuuX+J2d6ZEggdz/i";
const AUTHOR_KEY_DIGEST: &str = "7tgRafsMteDsNHlPEo/U4MSkb2fGWhrfqB/LJLzAiMJyNpt//D6ytq9qQoShs2xf";

fn block() -> IdBlock {
    IdBlock {
        measurement: LAUNCH_DIGEST.parse().unwrap(),
        family_id: [0; 16],
        image_id: [0; 16],
        guest_svn: 0,
        policy: GuestPolicy(0x30000),
    }
}

fn keys() -> [SigningKey; 2] {
    [ID_KEY, AUTHOR_KEY].map(|pem| SigningKey::from_pem(pem).unwrap())
}

/// A release's block, and what is expected of it.
fn signed() -> (IdBlock, IdAuth, Expected) {
    let [id_key, author_key] = keys();
    let block =
        IdBlock { family_id: *b"redoubt guest os", image_id: *b"image number one", guest_svn: 7, ..block() };
    let auth = sign(&block, &id_key, Some(&author_key)).unwrap();
    let expected = Expected {
        block,
        id_key: id_key.public_key().digest(),
        author_key: Some(author_key.public_key().digest()),
    };
    (block, auth, expected)
}

#[test]
fn agrees_with_the_vectors_of_the_sev_crate() {
    assert_eq!(STANDARD.encode(block().to_bytes()), ID_BLOCK_BASE64);
    assert_eq!(IdBlock::from_bytes(&block().to_bytes()), Ok(block()));

    let auth = IdAuth::from_bytes(ID_AUTH).unwrap();
    assert_eq!(*auth.to_bytes(), *ID_AUTH);
    let [id_key, author_key] = keys();
    assert_eq!(auth.id_key, id_key.public_key());
    assert_eq!(auth.author.unwrap().0, author_key.public_key());
    assert_eq!(STANDARD.encode(auth.id_key.digest().0), ID_KEY_DIGEST);
    assert_eq!(STANDARD.encode(auth.author.unwrap().0.digest().0), AUTHOR_KEY_DIGEST);
    auth.verify(&block()).unwrap();
}

#[test]
fn verifies_what_sev_snp_measure_signs() {
    let Some(interpreter) = python::interpreter() else { return };
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/measurement/data");
    let digests: Vec<_> = (0..20_u8).map(|n| Measurement(std::array::from_fn(|i| n ^ i as u8))).collect();
    let questions: Vec<_> = digests
        .iter()
        .map(|digest| {
            serde_json::json!({
                "measurement": digest,
                "id_key": format!("{data}/id-key.pem"),
                "author_key": format!("{data}/author-key.pem"),
            })
        })
        .collect();
    for (digest, answer) in digests.iter().zip(python::ask(&interpreter, &questions)) {
        let answer = answer.as_str().unwrap();
        let part = |name: &str| {
            let text = answer.split(['\n', ',']).find_map(|part| part.strip_prefix(name)).unwrap();
            STANDARD.decode(text).unwrap()
        };
        let theirs = IdBlock::from_bytes(&part("id-block=")).unwrap();
        assert_eq!(theirs, IdBlock { measurement: *digest, ..block() });
        let auth = IdAuth::from_bytes(&part("id-auth=")).unwrap();
        auth.verify(&theirs).unwrap();
        assert_eq!(auth.id_key.digest().0.as_slice(), part("id_key_hash: "));
        assert_eq!(auth.author.unwrap().0.digest().0.as_slice(), part("author_key: "));
    }
}

#[test]
fn what_was_signed_is_accepted() {
    let (block, auth, expected) = signed();
    expected.check(&block, &auth).unwrap();
    assert_eq!(IdAuth::from_bytes(auth.to_bytes().as_slice()), Ok(auth));
    // A later release of the same family is fine where an earlier one is the least.
    let later = Expected { block: IdBlock { guest_svn: 3, ..expected.block }, ..expected };
    later.check(&block, &auth).unwrap();

    let without = sign(&block, &keys()[0], None).unwrap();
    assert_eq!(IdAuth::from_bytes(without.to_bytes().as_slice()), Ok(without));
    Expected { author_key: None, ..expected }.check(&block, &without).unwrap();
}

/// Whatever of a signed block is changed, its signature shows it.
#[test]
fn a_changed_block_is_refused() {
    let (block, auth, _) = signed();
    for other in [
        IdBlock { measurement: Measurement([1; 48]), ..block },
        IdBlock { family_id: [0; 16], ..block },
        IdBlock { image_id: [0; 16], ..block },
        IdBlock { guest_svn: 8, ..block },
        IdBlock { policy: GuestPolicy(0xb0000), ..block },
    ] {
        assert_eq!(auth.verify(&other).unwrap_err().code(), "id-block-bad-signature");
    }
}

#[test]
fn wrong_keys_and_signatures_are_refused() {
    let (block, auth, expected) = signed();
    let [id_key, author_key] = keys();
    let code = |auth: &IdAuth| expected.check(&block, auth).unwrap_err().code();

    let mut changed = auth;
    changed.block_signature.0[50] ^= 1;
    assert_eq!(code(&changed), "id-block-bad-signature");
    let mut changed = auth;
    changed.author.as_mut().unwrap().1.0[3] ^= 1;
    assert_eq!(code(&changed), "id-block-bad-author-signature");
    // The author key signed something else.
    let other =
        IdAuth { author: Some((author_key.public_key(), author_key.sign_block(&block).unwrap())), ..auth };
    assert_eq!(code(&other), "id-block-bad-author-signature");
    // Well signed, by others.
    assert_eq!(code(&sign(&block, &author_key, Some(&author_key)).unwrap()), "id-block-wrong-key");
    assert_eq!(code(&sign(&block, &id_key, Some(&id_key)).unwrap()), "id-block-wrong-key");
    assert_eq!(code(&sign(&block, &id_key, None).unwrap()), "id-block-wrong-key");
    let none = Expected { author_key: None, ..expected };
    assert_eq!(none.check(&block, &auth).unwrap_err().code(), "id-block-wrong-key");
}

/// Well signed, but for another launch than the one expected.
#[test]
fn a_block_for_another_launch_is_refused() {
    let (block, _, expected) = signed();
    let [id_key, author_key] = keys();
    for (other, code) in [
        (IdBlock { measurement: Measurement([1; 48]), ..block }, "id-block-wrong-measurement"),
        (IdBlock { policy: GuestPolicy(0xb0000), ..block }, "id-block-wrong-policy"),
        (IdBlock { family_id: [1; 16], ..block }, "id-block-wrong-identity"),
        (IdBlock { image_id: [1; 16], ..block }, "id-block-wrong-identity"),
        (IdBlock { guest_svn: 6, ..block }, "id-block-svn-too-low"),
    ] {
        let auth = sign(&other, &id_key, Some(&author_key)).unwrap();
        assert_eq!(expected.check(&other, &auth).unwrap_err().code(), code);
    }
}

#[test]
fn malformed_structures_are_refused() {
    let code = |error: IdBlockError| error.code();
    let bytes = block().to_bytes();
    assert_eq!(code(IdBlock::from_bytes(&bytes[1..]).unwrap_err()), "id-block-length");
    let mut version = bytes;
    version[0x50] = 2;
    assert_eq!(code(IdBlock::from_bytes(&version).unwrap_err()), "id-block-undefined");

    let refused = |at: usize, value: u8| {
        let mut bytes = *ID_AUTH;
        bytes[at] = value;
        code(IdAuth::from_bytes(&bytes).unwrap_err())
    };
    assert_eq!(code(IdAuth::from_bytes(&ID_AUTH[1..]).unwrap_err()), "id-block-length");
    assert_eq!(refused(0, 2), "id-block-undefined"); // algorithm of the ID key
    assert_eq!(refused(4, 2), "id-block-undefined"); // algorithm of the author key
    assert_eq!(refused(0x240, 1), "id-block-undefined"); // curve P-256
    assert_eq!(refused(0x880, 1), "id-block-undefined");
    // No author, but an author's key.
    assert_eq!(refused(4, 0), "id-block-not-canonical");
    for reserved in
        [8, 0x3f, 0x40 + 48, 0x88 + 48, 0xd0, 0x274, 0x2d8, 0x643, 0x644, 0x710, 0x914, 0xc84, 0xfff]
    {
        assert_eq!(refused(reserved, 1), "id-block-not-canonical", "{reserved:#x}");
    }
}

/// A key that is no point of the curve verifies nothing, rather than anything.
#[test]
fn a_key_off_the_curve_is_refused() {
    let mut bytes = *ID_AUTH;
    bytes[0x244] ^= 1;
    let auth = IdAuth::from_bytes(&bytes).unwrap();
    assert_eq!(auth.verify(&block()).unwrap_err().code(), "id-block-bad-signature");
}

#[test]
fn only_p384_keys_sign() {
    assert!(SigningKey::from_pem("").is_err());
    assert!(SigningKey::from_pem("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n").is_err());
    assert!(SigningKey::from_pem(&ID_KEY.replace("PRIVATE KEY", "EC PRIVATE KEY")).is_err());
}

/// The same demands judge a report. The report is made up: whether it is authentic is another's question.
#[test]
fn a_report_with_another_identity_is_refused() {
    let (block, _, expected) = signed();
    let good = {
        let mut bytes = vec![0; attestation::report::LENGTH];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(offset::VERSION, &3_u32.to_le_bytes());
        put(offset::GUEST_SVN, &7_u32.to_le_bytes());
        put(offset::POLICY, &block.policy.0.to_le_bytes());
        put(offset::FAMILY_ID, &block.family_id);
        put(offset::IMAGE_ID, &block.image_id);
        put(offset::SIGNATURE_ALGO, &1_u32.to_le_bytes());
        put(offset::KEY_INFO, &1_u32.to_le_bytes());
        put(offset::MEASUREMENT, &block.measurement.0);
        put(offset::ID_KEY_DIGEST, &expected.id_key.0);
        put(offset::AUTHOR_KEY_DIGEST, &expected.author_key.unwrap().0);
        put(offset::CPUID_FAMILY, &[0x19, 0x11, 1]);
        bytes
    };
    let check = |bytes: &[u8]| expected.check_report(&Report::parse(bytes).unwrap());
    check(&good).unwrap();
    for (at, code) in [
        (offset::ID_KEY_DIGEST, "id-block-wrong-key"),
        (offset::AUTHOR_KEY_DIGEST, "id-block-wrong-key"),
        (offset::KEY_INFO, "id-block-wrong-key"), // the author key was not enabled
        (offset::MEASUREMENT, "id-block-wrong-measurement"),
        (offset::POLICY, "id-block-wrong-policy"),
        (offset::FAMILY_ID, "id-block-wrong-identity"),
        (offset::IMAGE_ID, "id-block-wrong-identity"),
        (offset::GUEST_SVN, "id-block-svn-too-low"), // 7 becomes 6
    ] {
        let mut other = good.clone();
        other[at] ^= 1;
        assert_eq!(check(&other).unwrap_err().code(), code, "{at:#x}");
    }
}

proptest! {
    /// What parses is canonical, and nothing panics.
    #[test]
    fn parsing_is_canonical(changes in proptest::collection::vec((0..ID_AUTH_LENGTH, any::<u8>()), 0..4)) {
        let mut bytes = *ID_AUTH;
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(auth) = IdAuth::from_bytes(&bytes) {
            prop_assert_eq!(*auth.to_bytes(), bytes);
            prop_assert_eq!(auth.verify(&block()).is_ok(), bytes == *ID_AUTH);
        }
    }
}
