//! A hand-over as two guests do it, with a host in between that does what it likes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use attestation::{Evidence, EvidenceKind, Measurement, TrustAnchors, authenticate, report::GuestPolicy};
use proptest::prelude::*;
use release::{
    Blessing, Document, Envelope, Manifest, Profile, Purpose, Revoked, Root, RootContent, Seen, Signed,
    SigningKey, VcpuMeasurement, development, sign,
};
use simulated_psp::chip::{Chip, LaunchContext, Psp};
use simulated_psp::protocol::{Bytes, Request, Response};
use upgrade::exchange::{Documents, ExchangeError, Given, Giver, Judge, Receiver};
use upgrade::hand_over::Facts;
use zeroize::Zeroizing;

const GOLDEN: &[u8] = include_bytes!("../../release/tests/golden/manifest.json");
const NOW: u64 = 1000;
const SECRET: &[u8] = b"the storage key and what was seen";

fn signed<T: Document>(content: T) -> String {
    signed_by(content, &development::signing_keys().unwrap()[..2])
}

fn signed_by<T: Document>(content: T, keys: &[SigningKey]) -> String {
    let mut envelope = Signed::new(content).unwrap();
    for key in keys {
        sign(&mut envelope, key).unwrap();
    }
    String::from_utf8(envelope.to_bytes()).unwrap()
}

fn root() -> Root {
    development::root().unwrap()
}

/// A release whose guest has this measurement.
fn manifest(measurement: u8, version: &str) -> Manifest {
    let mut manifest = Envelope::from_bytes(GOLDEN).unwrap().content().clone();
    version.clone_into(&mut manifest.version);
    manifest.guest.policy = GuestPolicy::RESERVED_ONE | GuestPolicy::SMT;
    manifest.guest.id_block = None;
    let first = manifest.guest.measurements[0].clone();
    manifest.guest.vcpu_type.clone_from(&first.vcpu_type);
    manifest.guest.measurements =
        vec![VcpuMeasurement { measurement: release::Measurement([measurement; 48]), ..first }];
    manifest
}

fn blessing(version: u64, manifest: &str) -> String {
    blessed_as(Purpose::Node, version, manifest)
}

fn blessed_as(purpose: Purpose, version: u64, manifest: &str) -> String {
    signed(statement(purpose, version, manifest))
}

fn statement(purpose: Purpose, version: u64, manifest: &str) -> Blessing {
    Blessing {
        version,
        profile: Profile::Virtual,
        issued: 1,
        expires: 2000,
        security_epoch: 4,
        releases: [(Envelope::from_bytes(manifest.as_bytes()).unwrap().digest(), purpose)].into(),
        revoked: Revoked::default(),
    }
}

/// A guest: its Secure Processor and what it judges by.
struct Guest {
    chip: Vec<u8>,
    psp: Psp,
    own: Facts,
    anchors: TrustAnchors,
    root: Root,
}

impl Guest {
    fn start(chip: &Chip, measurement: u8) -> Guest {
        let psp = chip.launch(LaunchContext::new(Measurement([measurement; 48]), [0; 32])).unwrap();
        let anchors = simulated_psp::root::trust_anchors();
        let table = chip.certificate_table().to_vec();
        let evidence = quote(&psp, &table, [0; 64]).unwrap();
        let own = Facts::from(&authenticate(&evidence, &anchors).unwrap());
        Guest { chip: table, psp, own, anchors, root: root() }
    }

    fn quote(&self, data: [u8; 64]) -> Result<Evidence, String> {
        quote(&self.psp, &self.chip, data)
    }

    fn judge(&self) -> Judge<'_> {
        Judge { own: &self.own, anchors: &self.anchors, root: &self.root }
    }
}

fn quote(psp: &Psp, table: &[u8], report_data: [u8; 64]) -> Result<Evidence, String> {
    let Response::Report { report, .. } =
        psp.handle(&Request::Report { report_data: Bytes(report_data), vmpl: 0 })
    else {
        return Err("refused".to_owned());
    };
    Evidence::from_tsm(EvidenceKind::SimSnp, report.0.to_vec(), table).map_err(|error| error.to_string())
}

fn chip() -> Chip {
    Chip::open_or_create(tempfile::tempdir().unwrap().path()).unwrap()
}

/// What the host gives and changes.
struct Host {
    old: Guest,
    new: Guest,
    old_manifest: String,
    documents: Documents,
    seen: Seen,
    /// Sees each message, with its number, and may change it.
    relay: Box<dyn Fn(usize, String) -> String>,
}

fn host() -> Host {
    let chip = chip();
    let new_manifest = signed(manifest(2, "new"));
    let documents = Documents {
        roots: Vec::new(),
        blessing: blessing(7, &new_manifest),
        manifest: new_manifest,
        purpose: Purpose::Node,
    };
    Host {
        old: Guest::start(&chip, 1),
        new: Guest::start(&chip, 2),
        old_manifest: signed(manifest(1, "old")),
        documents,
        seen: Seen::default(),
        relay: Box::new(|_, message| message),
    }
}

/// What the new guest got, and what the old one has to remember.
fn exchange(host: Host) -> Result<(Vec<u8>, Given), ExchangeError> {
    let Host { old, new, old_manifest, documents, seen, relay } = host;
    // What is handed over says what for.
    let payload = |_: &Seen, purpose: Purpose| Zeroizing::new([SECRET, &[purpose as u8]].concat());
    let (receiver, hello) = Receiver::begin()?;
    let (giver, challenge) =
        Giver::challenge(&relay(1, hello), EvidenceKind::SimSnp, &|data| old.quote(data))?;
    let (waiting, request) =
        receiver
            .request(&relay(2, challenge), new.judge(), &old_manifest, documents, &|data| new.quote(data))?;
    let given = giver.give(&relay(3, request), old.judge(), seen, NOW, &payload)?;
    let secret = waiting.finish(&relay(4, given.message.clone()))?;
    Ok((secret.to_vec(), given))
}

fn refused(change: impl FnOnce(&mut Host)) -> &'static str {
    let mut host = host();
    change(&mut host);
    match exchange(host) {
        Ok(_) => "given",
        Err(error) => error.code(),
    }
}

#[test]
fn the_successor_gets_the_key_and_the_blessing_is_remembered() {
    let (secret, given) = exchange(host()).unwrap();
    assert_eq!(secret, [SECRET, &[0]].concat());
    assert_eq!((given.seen.blessing_version, given.grant.purpose), (7, Purpose::Node));
    assert_eq!(given.grant.measurement, Measurement([2; 48]));
}

#[test]
fn roots_are_followed_from_the_one_in_the_image() {
    let keys = development::signing_keys().unwrap();
    let next = |version: u64| {
        let mut content = root().content().clone();
        content.version += version;
        let mut signed = Signed::new(content).unwrap();
        for key in &keys[..2] {
            sign(&mut signed, key).unwrap();
        }
        String::from_utf8(signed.to_bytes()).unwrap()
    };
    let (_, given) = exchange({
        let mut host = host();
        host.documents.roots = vec![next(1), next(2)];
        host
    })
    .unwrap();
    assert_eq!(given.seen.root_version, root().version() + 2);
    // What a guest with an older image needs is passed over by one that is further.
    let (_, given) = exchange({
        let mut host = host();
        host.documents.roots = vec![String::from_utf8(root().to_bytes()).unwrap(), next(1)];
        host
    })
    .unwrap();
    assert_eq!(given.seen.root_version, root().version() + 1);
    assert_eq!(refused(|host| host.documents.roots = vec![next(2)]), "hand-over-roots");
    // The old guest has followed a later root than the host shows now.
    assert_eq!(refused(|host| host.seen.root_version = root().version() + 1), "root-rolled-back");
}

/// Both guests start from the old root. The key goes to a release of the new keys, also from one whose release they signed, and to
/// none of the old ones any more.
#[test]
fn with_new_roots_the_new_keys_count() {
    let keys = [7, 8].map(|seed| SigningKey::from_bytes(&[seed; 32]));
    let old = root();
    let (version, expires) = (old.version() + 1, old.content().expires);
    let next = RootContent::of_keys(version, expires, 2, keys.iter().map(SigningKey::verifying_key));
    let next = signed_by(next, &[&development::signing_keys().unwrap()[..2], &keys].concat());
    let of = |old: &[SigningKey], new: &[SigningKey], blesses: &[SigningKey], version| {
        let mut host = host();
        host.old_manifest = signed_by(manifest(1, "old"), old);
        let new = signed_by(manifest(2, "new"), new);
        host.documents.roots = vec![next.clone()];
        host.documents.blessing = signed_by(statement(Purpose::Node, version, &new), blesses);
        host.documents.manifest = new;
        // The old keys' last statement.
        host.seen = Seen { root_version: 1, blessing_version: 9, ..Seen::default() };
        host
    };
    let development = &development::signing_keys().unwrap()[..2];
    let (_, given) = exchange(of(development, &keys, &keys, 1)).unwrap();
    assert_eq!((given.seen.root_version, given.seen.blessing_version), (2, 1));
    exchange(of(&keys, &keys, &keys, 1)).unwrap();
    let refused = |host: Host| exchange(host).map(drop).unwrap_err().code();
    assert_eq!(refused(of(development, development, &keys, 1)), "release-keys-replaced");
    assert_eq!(refused(of(development, &keys, development, 10)), "blessing-unknown-key");
    let mut host = of(development, &keys, &keys, 1);
    host.documents.roots.clear();
    assert_eq!(refused(host), "manifest-unknown-key");
}

/// A recovery release gets the key as one, and is told so within what is sealed; whatever it asks for otherwise is refused.
#[test]
fn the_recovery_release_gets_the_key_for_recovery_only() {
    let asks = |asked: Purpose, blessed: Purpose| {
        let mut host = host();
        host.documents.purpose = asked;
        host.documents.blessing = blessed_as(blessed, 7, &host.documents.manifest);
        host
    };
    let (secret, given) = exchange(asks(Purpose::Recovery, Purpose::Recovery)).unwrap();
    assert_eq!((secret, given.grant.purpose), ([SECRET, &[1]].concat(), Purpose::Recovery));
    let refused = |asked, blessed| exchange(asks(asked, blessed)).map(drop).unwrap_err().code();
    assert_eq!(refused(Purpose::Recovery, Purpose::Node), "release-other-purpose");
    assert_eq!(refused(Purpose::Node, Purpose::Recovery), "release-other-purpose");
    // Not named at all.
    let mut host = asks(Purpose::Recovery, Purpose::Recovery);
    host.documents.blessing = blessed_as(Purpose::Recovery, 7, &signed(manifest(2, "another")));
    assert_eq!(exchange(host).map(drop).unwrap_err().code(), "release-not-blessed");
    // An old recovery release with a hole that was closed since.
    let mut host = asks(Purpose::Recovery, Purpose::Recovery);
    host.old.own.guest_svn = 4;
    assert_eq!(exchange(host).map(drop).unwrap_err().code(), "hand-over-lower-epoch");
    // The host exchanges the purpose underway.
    let mut host = asks(Purpose::Recovery, Purpose::Recovery);
    host.relay = Box::new(|number, message: String| match number {
        3 => message.replace(r#","purpose":"recovery""#, ""),
        _ => message,
    });
    assert_eq!(exchange(host).map(drop).unwrap_err().code(), "release-other-purpose");
}

#[test]
fn everybody_else_is_refused_by_name() {
    let another = chip();
    assert_eq!(refused(|host| host.new = Guest::start(&another, 2)), "hand-over-other-chip");
    assert_eq!(refused(|host| host.new = Guest::start(&chip(), 2)), "hand-over-other-chip");
    assert_eq!(refused(|host| host.old_manifest = signed(manifest(3, "old"))), "hand-over-unblessed");
    assert_eq!(refused(|host| host.documents.manifest = signed(manifest(2, "x"))), "release-not-blessed");
    assert_eq!(refused(|host| host.seen.blessing_version = 8), "blessing-rolled-back");
    assert_eq!(refused(|host| host.old.own.guest_svn = 4), "hand-over-lower-epoch");
    let mut unsigned = Signed::new(manifest(2, "new")).unwrap();
    sign(&mut unsigned, &development::signing_keys().unwrap()[0]).unwrap();
    let unsigned = String::from_utf8(unsigned.to_bytes()).unwrap();
    assert_eq!(refused(|host| host.documents.manifest = unsigned), "manifest-threshold-not-met");
    assert_eq!(refused(|host| host.old.anchors = TrustAnchors::amd()), "hand-over-evidence");
    assert_eq!(refused(|host| host.new.anchors = TrustAnchors::amd()), "hand-over-evidence");
}

/// The host takes part in the conversation instead of carrying it.
#[test]
fn a_host_in_the_middle_gets_nothing() {
    // A first message of its own to the old guest: the old guest's evidence is then bound to the host's key.
    let own_hello = || {
        Box::new(|number, message| match number {
            1 => Receiver::begin().unwrap().1,
            _ => message,
        })
    };
    assert_eq!(refused(|host| host.relay = own_hello()), "hand-over-replayed");

    // Messages of an earlier hand-over between the same guests.
    let earlier = |replayed: usize| {
        let chip = chip();
        let mut hosts = [host(), host()];
        for host in &mut hosts {
            host.old = Guest::start(&chip, 1);
            host.new = Guest::start(&chip, 2);
        }
        let [mut first, mut second] = hosts;
        let kept = std::rc::Rc::new(std::cell::RefCell::new(String::new()));
        let keep = kept.clone();
        first.relay = Box::new(move |number, message| {
            if number == replayed {
                keep.borrow_mut().clone_from(&message);
            }
            message
        });
        exchange(first).unwrap();
        second.relay =
            Box::new(move |number, message| if number == replayed { kept.borrow().clone() } else { message });
        exchange(second).unwrap_err().code()
    };
    assert_eq!(earlier(2), "hand-over-replayed", "an old challenge");
    assert_eq!(earlier(3), "hand-over-replayed", "an old request");
    assert_eq!(earlier(4), "hand-over-message", "an old key");

    // One side's message for the other's.
    for (number, instead) in [(2, 1), (3, 1), (4, 1)] {
        let relay = move |at, message| {
            if at == number && instead == 1 { Receiver::begin().unwrap().1 } else { message }
        };
        assert_eq!(refused(|host| host.relay = Box::new(relay)), "hand-over-message");
    }
}

/// Documents that the host exchanges underway are part of what both sides hash.
#[test]
fn what_was_hashed_is_what_came() {
    // A blank in the third message changes no meaning and yet the transcript.
    let relay = |number, message: String| if number == 3 { message.replacen("{", "{ ", 1) } else { message };
    assert_eq!(refused(|host| host.relay = Box::new(relay)), "hand-over-message");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// No change of any byte underway lets a key pass, and nothing panics.
    #[test]
    fn every_changed_byte_is_noticed(number in 1..=4_usize, at in any::<prop::sample::Index>(), flip in 1..128_u8) {
        let relay = move |now, message: String| {
            let mut bytes = message.into_bytes();
            if now == number {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        prop_assert_ne!(refused(|host| host.relay = Box::new(relay)), "given");
    }
}
