//! Every way in which a release, a root or a blessing is refused, by its code. The list of codes in docs/OPERATING.md is
//! held to be exactly these.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use proptest::prelude::*;
use release::{
    ApprovedManifest, Authority, Blessing, Digest, Document, Envelope, Manifest, ManifestError, Profile,
    Purpose, Refusal, Revoked, Root, RootContent, RootUpdateError, Roots, Seen, Signed, SigningKey,
    blessing::{InvalidBlessing, Launch, StatementError, accept},
    development, key_id, sign, verify,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const GOLDEN: &[u8] = include_bytes!("golden/manifest.json");
const GUIDE: &str = include_str!("../../docs/OPERATING.md");
/// Some moment at which everything here is fresh.
const NOW: u64 = 1_000;

fn keys() -> [SigningKey; 3] {
    development::signing_keys().unwrap()
}

fn signed<T: Document>(content: T, signers: &[&SigningKey]) -> Vec<u8> {
    let mut envelope = Signed::new(content).unwrap();
    for key in signers {
        sign(&mut envelope, key).unwrap();
    }
    envelope.to_bytes()
}

/// By the first two keys.
fn by_two<T: Document>(content: T) -> Vec<u8> {
    let [one, two, _] = &keys();
    signed(content, &[one, two])
}

fn manifest() -> Manifest {
    Envelope::from_bytes(GOLDEN).unwrap().content().clone()
}

fn root() -> Root {
    development::root().unwrap()
}

fn release() -> ApprovedManifest {
    verify(&by_two(manifest()), &root()).unwrap()
}

fn blessing() -> Blessing {
    Blessing {
        version: 5,
        profile: Profile::Virtual,
        issued: NOW - 10,
        expires: NOW + 10,
        security_epoch: 4,
        releases: [(release().digest(), Purpose::Node)].into(),
        revoked: Revoked::default(),
    }
}

/// What comes of the golden release under a changed blessing.
fn launch(change: impl FnOnce(&mut Blessing), seen: &Seen, now: u64) -> Result<Launch, Refusal> {
    let mut blessing = blessing();
    change(&mut blessing);
    let root = root();
    accept(&root, &root, &by_two(blessing), seen, now)?.may_launch(&release(), Purpose::Node)
}

fn keys_for(change: impl FnOnce(&mut Blessing), seen: &Seen, now: u64) -> Result<(), Refusal> {
    let mut blessing = blessing();
    change(&mut blessing);
    let root = root();
    accept(&root, &root, &by_two(blessing), seen, now)?.may_have_keys(&release(), Purpose::Node)
}

/// The root that follows the development root, changed.
fn next_root(change: impl FnOnce(&mut RootContent), signers: &[&SigningKey]) -> Vec<u8> {
    let mut content = root().content().clone();
    content.version = 2;
    change(&mut content);
    signed(content, signers)
}

fn update(change: impl FnOnce(&mut RootContent), signers: &[&SigningKey]) -> RootUpdateError {
    root().update(&next_root(change, signers)).unwrap_err()
}

fn strangers() -> [SigningKey; 2] {
    [7, 8].map(|seed| SigningKey::from_bytes(&[seed; 32]))
}

fn of_strangers(content: &mut RootContent) {
    *content =
        RootContent::of_keys(2, content.expires, 2, strangers().each_ref().map(SigningKey::verifying_key));
}

/// The root, followed by one with other keys for everything.
fn replaced() -> Roots {
    let ([a, b], [one, two, _]) = (&strangers(), &keys());
    let mut roots = Roots::from(root());
    roots.follow(&next_root(of_strangers, &[a, b, one, two])).unwrap();
    roots
}

/// The blessing by these.
fn by_strangers() -> Vec<u8> {
    signed(blessing(), &strangers().each_ref())
}

/// The eleven defects of any signed document: what is wrong with it, and the end of the code.
fn defects<T: Document>(content: &T, refuse: impl Fn(&[u8]) -> &'static str) -> Vec<(String, &'static str)> {
    let [one, two, _] = &keys();
    let good = signed(content.clone(), &[one, two]);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut value = serde_json::from_slice(&good).unwrap();
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    };
    let cases: [(&str, Vec<u8>); 11] = [
        ("too-long", vec![b' '; release::MAX_DOCUMENT + 1]),
        ("not-json", good[..good.len() - 1].to_vec()),
        ("not-canonical", [&good[..], b"\n"].concat()),
        ("malformed", changed(&|v| v["signed"]["surprise"] = json!(1))),
        ("wrong-type", changed(&|v| v["signed"]["_type"] = json!("redoubt-other"))),
        ("unsupported-version", changed(&|v| v["signed"]["spec_version"] = json!(2))),
        // A text beyond ASCII in a manifest; version 0 in the others.
        (
            "invalid",
            changed(&|v| v["signed"]["version"] = if T::NAME == "manifest" { json!("") } else { json!(0) }),
        ),
        ("unknown-key", signed(content.clone(), &[one, two, &strangers()[0]])),
        ("bad-signature", changed(&|v| v["signatures"][0]["sig"] = v["signatures"][1]["sig"].clone())),
        ("duplicate-signature", {
            changed(&|v| {
                let first = v["signatures"][0].clone();
                v["signatures"].as_array_mut().unwrap().insert(0, first);
            })
        }),
        ("threshold-not-met", signed(content.clone(), &[one])),
    ];
    cases.into_iter().map(|(end, bytes)| (format!("{}-{end}", T::NAME), refuse(&bytes))).collect()
}

/// A registry whose certificate is a prefix: the seam for a governing subnet.
struct Registry;

impl Authority for Registry {
    fn authenticate(&self, statement: &[u8]) -> Result<Blessing, StatementError> {
        let bytes = statement
            .strip_prefix(b"certified:")
            .ok_or_else(|| StatementError::NotCertified("no certificate".to_owned()))?;
        Ok(Signed::<Blessing>::from_bytes(bytes)?.content().clone())
    }
}

/// Each code with what brings it about.
fn refusals() -> Vec<(String, &'static str)> {
    let [one, two, three] = &keys();
    let seen = Seen { root_version: 1, blessing_version: 5, security_epoch: 4, ..Seen::default() };
    let epoch = |security_epoch| Seen { security_epoch, ..Seen::default() };
    let other = Digest([9; 32]);
    let digest = release().digest();
    let refused = |result: Result<Launch, Refusal>| result.unwrap_err().code();
    let root = root();
    let mut all: Vec<(String, &'static str)> = [
        // Roots.
        ("root-not-by-predecessor", update(of_strangers, &strangers().each_ref()).code()),
        ("root-not-by-predecessor", {
            let [a, b] = &strangers();
            update(of_strangers, &[a, b, one]).code()
        }),
        ("root-threshold-not-met", {
            let [a, _] = &strangers();
            update(of_strangers, &[a, one, two]).code()
        }),
        ("root-version", update(|root| root.version = 1, &[one, two, three]).code()),
        ("root-version", update(|root| root.version = 3, &[one, two, three]).code()),
        ("root-expired", refused(launch(|b| b.expires = 1 << 40, &seen, root.content().expires))),
        ("root-rolled-back", refused(launch(|_| (), &Seen { root_version: 2, ..seen }, NOW))),
        // Blessings.
        ("blessing-expired", refused(launch(|_| (), &seen, NOW + 10))),
        // The clock was set back, but this time is known to have passed.
        ("blessing-expired", refused(launch(|_| (), &Seen { time: NOW + 10, ..seen }, 0))),
        ("blessing-rolled-back", refused(launch(|b| b.version = 4, &seen, NOW))),
        ("blessing-equivocates", refused(launch(|_| (), &Seen { blessing: Some(other), ..seen }, NOW))),
        ("release-below-epoch", refused(launch(|b| b.security_epoch = 4, &epoch(5), NOW))),
        ("blessing-profile", refused(launch(|b| b.profile = Profile::Production, &seen, NOW))),
        ("blessing-not-certified", {
            let error = accept(&root, &Registry, &by_two(blessing()), &seen, NOW).unwrap_err();
            error.code()
        }),
        // Releases.
        ("release-below-epoch", refused(launch(|b| b.security_epoch = 5, &seen, NOW))),
        (
            "release-not-blessed",
            refused(launch(|b| b.releases = [(other, Purpose::Node)].into(), &seen, NOW)),
        ),
        (
            "release-other-purpose",
            refused(launch(|b| b.releases = [(digest, Purpose::Recovery)].into(), &seen, NOW)),
        ),
        ("release-revoked", {
            refused(launch(
                |b| {
                    b.releases.clear();
                    b.revoked.releases.insert(digest);
                },
                &seen,
                NOW,
            ))
        }),
        ("release-key-revoked", {
            let keyid = key_id(&one.verifying_key());
            refused(launch(
                |b| {
                    b.revoked.keys.insert(keyid);
                },
                &seen,
                NOW,
            ))
        }),
        ("release-keys-replaced", {
            let roots = replaced();
            let standing = accept(roots.present(), roots.present(), &by_strangers(), &epoch(4), NOW).unwrap();
            refused(standing.may_launch(&roots.verify(&by_two(manifest())).unwrap(), Purpose::Node))
        }),
        ("seen-unreadable", Seen::from_bytes(b"{}").unwrap_err().code()),
    ]
    .map(|(code, found)| (code.to_owned(), found))
    .into();
    all.extend(defects(&manifest(), |bytes| verify(bytes, &root).unwrap_err().code()));
    all.extend(defects(root.content(), |bytes| Root::from_bytes(bytes).unwrap_err().code()));
    all.extend(defects(&blessing(), |bytes| accept(&root, &root, bytes, &seen, NOW).unwrap_err().code()));
    all
}

#[test]
fn each_refusal_has_its_code() {
    for (expected, found) in refusals() {
        assert_eq!(found, expected);
    }
}

/// Codes of the guide's table: `{a,b}-c` stands for `a-c` and `b-c`.
fn documented() -> BTreeSet<String> {
    let (_, section) = GUIDE.split_once("<!-- codes of releases -->").unwrap();
    let (section, _) = section.split_once("<!-- end -->").unwrap();
    let codes = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    codes
        .flat_map(|(code, _)| match code.strip_prefix('{').and_then(|code| code.split_once('}')) {
            Some((names, end)) => names.split(',').map(|name| format!("{name}{end}")).collect(),
            None => vec![code.to_owned()],
        })
        .collect()
}

#[test]
fn the_guide_lists_exactly_these_codes() {
    let codes: BTreeSet<String> = refusals().into_iter().map(|(code, _)| code).collect();
    assert_eq!(documented(), codes);
}

#[test]
fn the_good_case_is_good() {
    assert_eq!(launch(|_| (), &Seen::default(), NOW), Ok(Launch::Blessed));
    assert_eq!(keys_for(|_| (), &Seen::default(), NOW), Ok(()));
    let [one, two, three] = &keys();
    let next = root().update(&next_root(|_| (), &[one, two])).unwrap();
    assert_eq!(next.version(), 2);
    // All keys replaced: the old ones and the new ones agree.
    let [a, b] = &strangers();
    root().update(&next_root(of_strangers, &[a, b, two, three])).unwrap();
    // The same key cannot stand for two, neither in the envelope nor by signing again.
    let mut envelope = Signed::new(manifest()).unwrap();
    sign(&mut envelope, one).unwrap();
    assert!(sign(&mut envelope, one).is_err());
    let refused = verify(&envelope.to_bytes(), &root()).unwrap_err();
    assert_eq!(refused, ManifestError::ThresholdNotMet { valid: 1, needed: 2 });
}

/// An expired statement forbids as much as a fresh one, lets a node go on with what it runs, and gives no keys.
#[test]
fn after_expiry_a_node_keeps_running_and_hands_out_no_keys() {
    let committed = Seen::default().after_commit(release().digest(), 4);
    let Ok(Launch::Stale(why)) = launch(|_| (), &committed, NOW + 10) else { panic!("it does not run on") };
    assert_eq!(why.code(), "blessing-expired");
    assert!(why.to_string().contains("hands out no keys"), "{why}");
    assert_eq!(keys_for(|_| (), &committed, NOW + 10).unwrap_err().code(), "blessing-expired");
    // Not with another release, and not with this one once it is revoked or too old.
    let other = Seen { release: Some(Digest([9; 32])), ..committed };
    assert_eq!(launch(|_| (), &other, NOW + 10).unwrap_err().code(), "blessing-expired");
    assert_eq!(
        launch(|b| b.releases.clear(), &committed, NOW + 10).unwrap_err().code(),
        "release-not-blessed"
    );
    assert_eq!(
        launch(|b| b.security_epoch = 5, &committed, NOW + 10).unwrap_err().code(),
        "release-below-epoch"
    );
}

/// What a release is stays true when keys are replaced; that it may run, nobody has said any more.
#[test]
fn roots_are_followed_and_the_earlier_ones_only_say_what_releases_are() {
    let [one, two, _] = &keys();
    let mut roots = replaced();
    assert_eq!((roots.present().version(), roots.earlier().map(Root::version).collect()), (2, vec![1]));
    let refused = roots.follow(&next_root(|_| (), &[one, two])).unwrap_err();
    assert_eq!((refused.code(), roots.present().version()), ("root-not-by-predecessor", 2));
    let old = roots.verify(&by_two(manifest())).unwrap();
    assert_eq!(roots.verify(&signed(manifest(), &strangers().each_ref())).unwrap().digest(), old.digest());
    assert_eq!(roots.verify(&signed(manifest(), &[one])).unwrap_err().code(), "manifest-unknown-key");
    // What was seen under the old keys counts no more, but for what only rises.
    let seen = Seen { root_version: 1, blessing_version: 9, security_epoch: 4, ..Seen::default() };
    let after = Seen { root_version: 2, blessing_version: 0, ..seen };
    assert_eq!((roots.seen(seen), roots.seen(after)), (after, after));
    // The one that a node has committed to goes on, without keys.
    let standing = |seen: Seen| {
        let standing = accept(roots.present(), roots.present(), &by_strangers(), &seen, NOW).unwrap();
        let launch = standing.may_launch(&old, Purpose::Node).map_err(|refusal| refusal.code());
        (launch, standing.may_have_keys(&old, Purpose::Node).map_err(|refusal| refusal.code()))
    };
    let keys_replaced = "release-keys-replaced";
    assert_eq!(standing(after), (Err(keys_replaced), Err(keys_replaced)));
    let (launch, keys) = standing(after.after_commit(old.digest(), 4));
    assert!(
        matches!(launch, Ok(Launch::Stale(Refusal::KeysReplaced { valid: 0, needed: 2, .. }))),
        "{launch:?}"
    );
    assert_eq!(keys, Err(keys_replaced));
}

/// A release for recovery is no node and a node no recovery release; after expiry recovery still starts, and gets no key.
#[test]
fn each_purpose_is_one_of_its_own() {
    let root = root();
    let code = |blessed, asked, now| {
        let statement = by_two(Blessing { releases: [(release().digest(), blessed)].into(), ..blessing() });
        let standing = accept(&root, &root, &statement, &Seen::default(), now).unwrap();
        let launch = match standing.may_launch(&release(), asked) {
            Ok(Launch::Blessed) => "blessed",
            Ok(Launch::Stale(_)) => "stale",
            Err(refusal) => refusal.code(),
        };
        (launch, standing.may_have_keys(&release(), asked).map_err(|refusal| refusal.code()))
    };
    use Purpose::{Node, Recovery};
    let refused = ("release-other-purpose", Err("release-other-purpose"));
    assert_eq!(code(Recovery, Recovery, NOW), ("blessed", Ok(())));
    assert_eq!(code(Recovery, Node, NOW), refused);
    assert_eq!(code(Node, Recovery, NOW), refused);
    assert_eq!(code(Node, Recovery, NOW + 10), refused);
    assert_eq!(code(Recovery, Recovery, NOW + 10), ("stale", Err("blessing-expired")));
    assert_eq!(code(Node, Node, NOW + 10), ("blessing-expired", Err("blessing-expired")));
}

#[test]
fn a_registry_can_take_the_place_of_the_keys() {
    let root = root();
    let statement = [&b"certified:"[..], &signed(blessing(), &[])].concat();
    let standing = accept(&root, &Registry, &statement, &Seen::default(), NOW).unwrap();
    assert_eq!(standing.may_have_keys(&release(), Purpose::Node), Ok(()));
    // It does not stand in for the release keys.
    let unsigned = verify(&signed(manifest(), &[]), &root).unwrap_err();
    assert_eq!(unsigned.code(), "manifest-threshold-not-met");
}

#[test]
fn rotated_blessing_keys_end_a_fast_forward_attack() {
    let [one, two, _] = &keys();
    let thief = Seen {
        blessing_version: 1 << 50,
        blessing: Some(Digest([1; 32])),
        security_epoch: 7,
        ..Seen::default()
    };
    let same = root().update(&next_root(|_| (), &[one, two])).unwrap();
    assert_eq!(thief.after_root(&root(), &same).blessing_version, 1 << 50);
    let rotated = next_root(
        |root| {
            root.roles.blessing.keyids.pop_first();
        },
        &[one, two],
    );
    let after = thief.after_root(&root(), &root().update(&rotated).unwrap());
    assert_eq!((after.blessing_version, after.blessing, after.root_version), (0, None, 2));
    assert_eq!(after.security_epoch, 7, "the epoch never falls");
}

#[test]
fn contradictory_blessings_cannot_be_signed() {
    let digest = release().digest();
    type Spoil<'a> = &'a dyn Fn(&mut Blessing);
    let cases: [(Spoil<'_>, InvalidBlessing); 3] = [
        (&|b| b.version = 0, InvalidBlessing::Version),
        (&|b| b.expires = b.issued, InvalidBlessing::Bounds { issued: NOW - 10, expires: NOW - 10 }),
        (
            &|b| {
                b.revoked.releases.insert(digest);
            },
            InvalidBlessing::Contradiction(digest),
        ),
    ];
    for (spoil, expected) in cases {
        let mut blessing = blessing();
        spoil(&mut blessing);
        assert_eq!(Signed::new(blessing).unwrap_err(), expected);
    }
}

proptest! {
    /// Whatever statements come in whatever order, what a node has seen never goes back, and what it accepts is not older.
    #[test]
    fn what_was_seen_only_rises(statements in prop::collection::vec((1..6u64, 0..4u64, 1..20u64), 1..12)) {
        let root = root();
        let mut seen = Seen::default();
        for (version, security_epoch, issued) in statements {
            let statement =
                Blessing { version, security_epoch, issued, expires: issued + 5, ..blessing() };
            if let Ok(standing) = accept(&root, &root, &by_two(statement), &seen, 0) {
                let next = *standing.seen();
                prop_assert!(next.blessing_version >= seen.blessing_version);
                prop_assert!(next.security_epoch >= seen.security_epoch);
                prop_assert!(next.time >= seen.time && next.root_version >= seen.root_version);
                prop_assert_eq!(standing.stale().is_some(), issued + 5 <= next.time);
                seen = next;
            }
        }
    }
}
