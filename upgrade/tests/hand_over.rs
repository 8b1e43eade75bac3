//! Who gets the storage key, and the name under which everybody else is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use attestation::{
    EvidenceKind, Measurement,
    binding::{Binding, Freshness, Role},
    report::GuestPolicy,
};
use release::{
    ApprovedManifest, Blessing, Document, Envelope, Manifest, Profile, Purpose, Revoked, Root, Seen, Signed,
    blessing, development, sign, verify,
};
use std::collections::BTreeSet;
use upgrade::hand_over::{Channel, Facts, Grant, HandOverError, accept_giver, decide, is_weaker};

const GOLDEN: &[u8] = include_bytes!("../../release/tests/golden/manifest.json");
const CHANNEL: Channel<'_> = Channel { old: b"old guest's key", new: b"new guest's key" };
const NONCE: [u8; 32] = [9; 32];
const NOW: u64 = 1000;
/// Codes of `tests/exchange.rs`.
const EXCHANGE: [&str; 3] = ["hand-over-message", "hand-over-roots", "hand-over-evidence"];
const KIND: EvidenceKind = EvidenceKind::SimSnp;

fn signed<T: Document>(content: T) -> Vec<u8> {
    let mut envelope = Signed::new(content).unwrap();
    for key in &development::signing_keys().unwrap()[..2] {
        sign(&mut envelope, key).unwrap();
    }
    envelope.to_bytes()
}

fn root() -> Root {
    development::root().unwrap()
}

fn manifest() -> Manifest {
    Envelope::from_bytes(GOLDEN).unwrap().content().clone()
}

fn approved(manifest: Manifest) -> ApprovedManifest {
    verify(&signed(manifest), &root()).unwrap()
}

/// A guest of the golden release, bound to the channel in this role.
fn facts(role: Role) -> Facts {
    let guest = manifest().guest;
    Facts {
        kind: KIND,
        measurement: Measurement(guest.measurements[0].measurement.0),
        chip_id: [1; 64],
        policy: GuestPolicy(guest.policy),
        guest_svn: 4,
        vmpl: 0,
        report_data: CHANNEL.report_data(KIND, role, NONCE),
    }
}

/// What may be different from the good case.
struct Case {
    own: Facts,
    peer: Facts,
    manifest: Manifest,
    blessing: Blessing,
    asked: Purpose,
    seen: Seen,
    now: u64,
}

fn case() -> Case {
    Case {
        own: facts(Role::HandOverOld),
        peer: facts(Role::HandOverNew),
        manifest: manifest(),
        blessing: Blessing {
            version: 1,
            profile: Profile::Virtual,
            issued: 1,
            expires: 2000,
            security_epoch: 4,
            releases: [(approved(manifest()).digest(), Purpose::Node)].into(),
            revoked: Revoked::default(),
        },
        asked: Purpose::Node,
        seen: Seen::default(),
        now: NOW,
    }
}

fn give(change: impl FnOnce(&mut Case)) -> Result<Grant, HandOverError> {
    let mut case = case();
    change(&mut case);
    let root = root();
    let standing = blessing::accept(&root, &root, &signed(case.blessing), &case.seen, case.now).unwrap();
    decide(&case.own, &case.peer, CHANNEL, NONCE, &approved(case.manifest), &standing, case.asked)
}

fn refused(change: impl FnOnce(&mut Case)) -> &'static str {
    give(change).unwrap_err().code()
}

#[test]
fn the_blessed_successor_gets_the_key() {
    let grant = give(|_| ()).unwrap();
    assert_eq!(grant.measurement, facts(Role::HandOverNew).measurement);
    // A later epoch and a stricter launch are welcome.
    give(|case| case.peer.guest_svn = 5).unwrap();
    give(|case| case.own.policy.0 |= GuestPolicy::CXL_ALLOW).unwrap();
}

#[test]
fn everybody_else_is_refused_by_name() {
    let another = |old, new| Channel { old, new }.report_data(KIND, Role::HandOverNew, NONCE);
    type Change<'a> = &'a dyn Fn(&mut Case);
    let cases: [(&str, Change<'_>); 19] = [
        ("hand-over-other-kind", &|case| case.peer.kind = EvidenceKind::Snp),
        ("hand-over-other-chip", &|case| case.peer.chip_id[63] = 2),
        // An old nonce.
        ("hand-over-replayed", &|case| {
            case.peer.report_data = CHANNEL.report_data(KIND, Role::HandOverNew, [8; 32]);
        }),
        // The host sits between the two, with a key of its own towards either.
        ("hand-over-replayed", &|case| case.peer.report_data = another(b"host", CHANNEL.new)),
        ("hand-over-replayed", &|case| case.peer.report_data = another(CHANNEL.old, b"host")),
        // The old guest's own evidence, or that of a replica, sent back.
        ("hand-over-replayed", &|case| case.peer.report_data = case.own.report_data),
        ("hand-over-replayed", &|case| {
            case.peer.report_data = CHANNEL.report_data(KIND, Role::Replica, NONCE);
        }),
        ("hand-over-debug-guest", &|case| case.peer.policy.0 |= GuestPolicy::DEBUG),
        ("hand-over-privilege-level", &|case| case.peer.vmpl = 1),
        ("hand-over-weaker-policy", &|case| case.own.policy.0 |= GuestPolicy::SINGLE_SOCKET),
        ("hand-over-weaker-policy", &|case| case.own.policy.0 &= !GuestPolicy::SMT),
        ("hand-over-not-the-policy", &|case| case.peer.policy.0 |= GuestPolicy::MIGRATE_MA),
        ("hand-over-unblessed", &|case| case.peer.measurement.0[0] ^= 1),
        ("hand-over-lower-epoch", &|case| case.peer.guest_svn = 3),
        ("release-not-blessed", &|case| case.manifest.version = "9.9.9".into()),
        ("release-other-purpose", &|case| case.asked = Purpose::Recovery),
        ("release-below-epoch", &|case| case.blessing.security_epoch = 5),
        ("release-revoked", &|case| {
            let release = case.blessing.releases.pop_first().unwrap().0;
            case.blessing.revoked.releases.insert(release);
        }),
        ("blessing-expired", &|case| case.now = 2000),
    ];
    let mut codes = BTreeSet::new();
    for (expected, change) in cases {
        assert_eq!(refused(change), expected);
        codes.insert(expected);
    }
    let listed: BTreeSet<&str> = documented().into_iter().filter(|code| !EXCHANGE.contains(code)).collect();
    let named: BTreeSet<&str> = codes.into_iter().filter(|code| code.starts_with("hand-over")).collect();
    assert_eq!(listed, named, "the list in docs/OPERATING.md");
}

fn documented() -> BTreeSet<&'static str> {
    let guide = include_str!("../../docs/OPERATING.md");
    let (_, section) = guide.split_once("<!-- codes of hand-overs -->").unwrap();
    let (section, _) = section.split_once("<!-- end -->").unwrap();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(code, _)| code)
        .collect()
}

/// A host that lies about the old guest: the new one takes keys only of a guest that release keys approved, on its chip,
/// at the other end of this channel.
#[test]
fn the_new_guest_judges_the_old_one() {
    let (own, old) = (facts(Role::HandOverNew), facts(Role::HandOverOld));
    let accept = |change: &dyn Fn(&mut Facts)| {
        let mut peer = old.clone();
        change(&mut peer);
        accept_giver(&own, &peer, CHANNEL, NONCE, &approved(manifest())).map_err(|error| error.code())
    };
    assert_eq!(accept(&|_| ()), Ok(()));
    assert_eq!(accept(&|peer| peer.chip_id[0] = 7), Err("hand-over-other-chip"));
    assert_eq!(accept(&|peer| peer.report_data = own.report_data), Err("hand-over-replayed"));
    assert_eq!(accept(&|peer| peer.measurement.0[9] ^= 1), Err("hand-over-unblessed"));
    assert_eq!(accept(&|peer| peer.policy.0 |= GuestPolicy::DEBUG), Err("hand-over-debug-guest"));
    assert_eq!(accept(&|peer| peer.kind = EvidenceKind::Snp), Err("hand-over-other-kind"));
}

/// Each side binds its own key as its key and the other's as its peer's.
#[test]
fn what_evidence_is_bound_to() {
    for (role, key, peer) in
        [(Role::HandOverOld, CHANNEL.old, CHANNEL.new), (Role::HandOverNew, CHANNEL.new, CHANNEL.old)]
    {
        let freshness = Freshness::Nonce(NONCE);
        let binding = Binding { kind: KIND, role, freshness, key, peer: Some(peer) };
        assert_eq!(CHANNEL.report_data(KIND, role, NONCE), binding.report_data());
    }
}

#[test]
fn weaker_policies() {
    let base = GuestPolicy(0x30000);
    for (bits, weaker) in [
        (GuestPolicy::MIGRATE_MA, true),
        (GuestPolicy::DEBUG, true),
        (GuestPolicy::CXL_ALLOW, true),
        (GuestPolicy::SINGLE_SOCKET, false),
        (GuestPolicy::CIPHERTEXT_HIDING, false),
        (GuestPolicy::RAPL_DIS, false),
        (GuestPolicy::PAGE_SWAP_DISABLE, false),
        (GuestPolicy::MEM_AES_256_XTS, false),
    ] {
        let more = GuestPolicy(base.0 | bits);
        assert_eq!((is_weaker(more, base), is_weaker(base, more)), (weaker, !weaker), "{bits:#x}");
    }
    assert!(is_weaker(GuestPolicy(0x30001), GuestPolicy(0x30002)), "an older ABI");
    assert!(!is_weaker(base, base));
}
