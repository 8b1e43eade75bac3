//! The client `tough` of The Update Framework as oracle: generated histories of roots, statements and manifests are
//! written in TUF's form too, and both sides must give the same verdict at every step.
//!
//! | here | there |
//! |---|---|
//! | root | `N.root.json`; the blessing role is both `snapshot` and `timestamp` |
//! | blessing | `timestamp.json` and `snapshot.json` of its version |
//! | manifest | `targets.json` |
//!
//! Left out because the two differ on purpose: signatures by strangers (refused here, skipped there), two statements of one
//! version (refused here only), and a threshold of the blessing role that changes while its keys stay (there the statement
//! that was seen before may cease to be valid and is then forgotten; here it is not).

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use olpc_cjson::CanonicalFormatter;
use proptest::{prelude::*, test_runner::TestRunner};
use release::{
    Blessing, Envelope, KeyId, Profile, PublicKey, Purpose, Revoked, Role, Roles, Root, RootContent, Seen,
    Signed, SigningKey, blessing, key_id, sign, verify,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{cell::Cell, collections::BTreeSet, path::Path};
use tough::{ExpirationEnforcement, RepositoryLoader};

const GOLDEN: &[u8] = include_bytes!("golden/manifest.json");
/// How many keys there are.
const KEYS: u8 = 5;
/// 2000 and 2100; the tests run between them.
const TIMES: [(u64, &str); 2] =
    [(946_684_800, "2000-01-01T00:00:00Z"), (4_102_444_800, "2100-01-01T00:00:00Z")];

fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number + 1; 32])
}

/// Keys by a bit each.
fn keys(mask: u8) -> impl Iterator<Item = SigningKey> {
    (0..KEYS).filter(move |number| mask >> number & 1 == 1).map(key)
}

fn ids(mask: u8) -> BTreeSet<KeyId> {
    keys(mask).map(|key| key_id(&key.verifying_key())).collect()
}

#[derive(Debug, Clone)]
struct RootStep {
    /// Members of the roles root and release, and of blessing.
    root: u8,
    blessing: u8,
    threshold: u64,
    fresh: bool,
    /// Added to the right version.
    skew: i8,
    /// Who signs of the old and the new role.
    signers: u8,
}

#[derive(Debug, Clone)]
struct Session {
    roots: Vec<RootStep>,
    version: u64,
    fresh: bool,
    blessing_signers: u8,
    release_signers: u8,
}

fn root_step() -> impl Strategy<Value = RootStep> {
    // Mostly good, so that histories get somewhere.
    let mask = || prop_oneof![3 => Just(0b00111u8), 1 => Just(0b01110), 1 => 1..1u8 << KEYS];
    let signers = prop_oneof![4 => Just(u8::MAX), 1 => any::<u8>()];
    let skew = prop_oneof![12 => Just(0i8), 1 => Just(1), 1 => Just(-1)];
    (mask(), mask(), 1..4u64, prop::bool::weighted(0.9), skew, signers).prop_map(
        |(root, blessing, threshold, fresh, skew, signers)| RootStep {
            root,
            blessing,
            threshold: threshold.min(u64::from(root.count_ones())).min(u64::from(blessing.count_ones())),
            fresh,
            skew,
            signers,
        },
    )
}

fn session() -> impl Strategy<Value = Session> {
    let signers = || prop_oneof![4 => Just(u8::MAX), 1 => any::<u8>()];
    (prop::collection::vec(root_step(), 0..3), 1..5u64, prop::bool::weighted(0.9), signers(), signers())
        .prop_map(|(roots, version, fresh, blessing_signers, release_signers)| Session {
            roots,
            version,
            fresh,
            blessing_signers,
            release_signers,
        })
}

/// `trusted` is the root under which the last statement was kept. With its keys for blessing goes its threshold: tough forgets
/// a kept statement that has too few signatures for a later threshold, and here its version stays the floor.
fn content(step: &RootStep, version: u64, trusted: Option<&RootContent>) -> RootContent {
    let role = |mask: u8| Role { threshold: step.threshold, keyids: ids(mask) };
    let mut blessing = role(step.blessing);
    if let Some(same) = trusted.map(|root| &root.roles.blessing).filter(|role| role.keyids == blessing.keyids)
    {
        blessing = same.clone();
    }
    RootContent {
        version,
        expires: TIMES[usize::from(step.fresh)].0,
        keys: keys(step.root | step.blessing)
            .map(|key| (key_id(&key.verifying_key()), PublicKey(key.verifying_key())))
            .collect(),
        roles: Roles { root: role(step.root), release: role(step.root), blessing },
    }
}

/// A document in TUF's form, signed.
fn tuf(kind: &str, version: u64, fresh: bool, more: Value, signers: &[SigningKey]) -> Value {
    let mut signed = json!({
        "_type": kind, "spec_version": "1.0.0", "version": version, "expires": TIMES[usize::from(fresh)].1,
    });
    signed.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut bytes = Vec::new();
    signed
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, CanonicalFormatter::new()))
        .unwrap();
    let signature = |key: &SigningKey| {
        use ed25519_dalek::Signer;
        json!({ "keyid": key_id(&key.verifying_key()), "sig": hex::encode(key.sign(&bytes).to_bytes()) })
    };
    json!({ "signed": signed, "signatures": signers.iter().map(signature).collect::<Vec<_>>() })
}

fn tuf_root(content: &RootContent, signers: &[SigningKey]) -> Value {
    let role = |role: &Role| json!({ "keyids": role.keyids, "threshold": role.threshold });
    let Roles { root, release, blessing } = &content.roles;
    let more = json!({
        "consistent_snapshot": false,
        "keys": content.keys,
        "roles": {
            "root": role(root), "targets": role(release), "snapshot": role(blessing), "timestamp": role(blessing),
        },
    });
    tuf("root", content.version, content.expires == TIMES[1].0, more, signers)
}

fn ours(content: &RootContent, signers: &[SigningKey]) -> Vec<u8> {
    let mut envelope = Signed::new(content.clone()).unwrap();
    for key in signers {
        sign(&mut envelope, key).unwrap();
    }
    envelope.to_bytes()
}

fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), serde_json::to_vec(value).unwrap()).unwrap();
}

/// A node of each kind.
struct Both {
    runtime: tokio::runtime::Runtime,
    datastore: tempfile::TempDir,
    /// The trusted root in either form.
    root: Root,
    tuf_root: Value,
    seen: Seen,
}

impl Both {
    /// Gives both sides the same documents; whether they accept.
    fn run(&mut self, session: &Session) -> (bool, bool) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| write(folder.path(), name, value);
        let (mut last, mut last_tuf) = (self.root.content().clone(), self.tuf_root.clone());
        let mut chain = Vec::new();
        for (i, step) in session.roots.iter().enumerate() {
            let named = self.root.version() + 1 + i as u64;
            let next = content(
                step,
                named.saturating_add_signed(step.skew.into()).max(1),
                Some(self.root.content()),
            );
            let allowed: BTreeSet<_> = last.roles.root.keyids.union(&next.roles.root.keyids).collect();
            let signers: Vec<_> =
                keys(step.signers).filter(|key| allowed.contains(&key_id(&key.verifying_key()))).collect();
            last_tuf = tuf_root(&next, &signers);
            write(&format!("{named}.root.json"), &last_tuf);
            chain.push(ours(&next, &signers));
            last = next;
        }
        let of_role = |role: &Role, mask| -> Vec<_> {
            keys(mask).filter(|key| role.keyids.contains(&key_id(&key.verifying_key()))).collect()
        };
        let blessing_signers = of_role(&last.roles.blessing, session.blessing_signers);
        let release_signers = of_role(&last.roles.release, session.release_signers);

        let (version, fresh) = (session.version, session.fresh);
        let meta = |name: &str, version: u64| json!({ "meta": { name: { "version": version } } });
        write(
            "timestamp.json",
            &tuf("timestamp", version, fresh, meta("snapshot.json", version), &blessing_signers),
        );
        write("snapshot.json", &tuf("snapshot", version, fresh, meta("targets.json", 1), &blessing_signers));
        write("targets.json", &tuf("targets", 1, true, json!({ "targets": {} }), &release_signers));
        let url = url::Url::from_directory_path(folder.path()).unwrap();
        let trusted = serde_json::to_vec(&self.tuf_root).unwrap();
        let theirs = RepositoryLoader::new(&trusted, url.clone(), url)
            .datastore(self.datastore.path())
            .expiration_enforcement(ExpirationEnforcement::Safe);
        let theirs = self.runtime.block_on(theirs.load()).is_ok();

        let golden = Envelope::from_bytes(GOLDEN).unwrap();
        let mut manifest = Envelope::new(golden.content().clone()).unwrap();
        for key in &release_signers {
            sign(&mut manifest, key).unwrap();
        }
        let mut statement = Signed::new(Blessing {
            version,
            profile: Profile::Virtual,
            issued: 1,
            expires: TIMES[usize::from(fresh)].0,
            security_epoch: 0,
            releases: [(manifest.digest(), Purpose::Node)].into(),
            revoked: Revoked::default(),
        })
        .unwrap();
        for key in &blessing_signers {
            sign(&mut statement, key).unwrap();
        }
        let updated = chain.iter().try_fold(self.root.clone(), |root, bytes| root.update(bytes).ok());
        // As a client does that stops where a chain is bad.
        let Some(root) = updated else { return (false, theirs) };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        // There an expired root ends the update before what was seen is forgotten for new keys (TUF 5.3.10 and 5.3.11), and
        // following it again does not make up for that. So neither side keeps an expired root here.
        if root.require_fresh(now).is_err() {
            return (false, theirs);
        }
        self.seen = self.seen.after_root(&self.root, &root);
        (self.root, self.tuf_root) = (root, last_tuf);
        let Ok(standing) = blessing::accept(&self.root, &self.root, &statement.to_bytes(), &self.seen, now)
        else {
            return (false, theirs);
        };
        // There a statement is kept once it is found good by itself, before the manifest is looked at.
        if standing.stale().is_none() {
            // Two statements of one version differ here when one of them has expired.
            self.seen = Seen { blessing: None, ..*standing.seen() };
        }
        let accepted = verify(&manifest.to_bytes(), &self.root)
            .is_ok_and(|release| standing.may_have_keys(&release, Purpose::Node).is_ok());
        (accepted, theirs)
    }
}

#[test]
fn tough_gives_the_same_verdicts() {
    let counts = Cell::new([0u32; 2]);
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let strategy = (root_step(), prop::collection::vec(session(), 1..5));
    TestRunner::new(config)
        .run(&strategy, |(first, sessions)| {
            let content = content(&first, 1, None);
            let signers: Vec<_> = keys(first.root).collect();
            let mut both = Both {
                runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
                datastore: tempfile::tempdir().unwrap(),
                root: Root::from_bytes(&ours(&content, &signers)).unwrap(),
                tuf_root: tuf_root(&content, &signers),
                seen: Seen::default(),
            };
            for (i, session) in sessions.iter().enumerate() {
                let (ours, theirs) = both.run(session);
                prop_assert_eq!(ours, theirs, "session {}: here {}, tough {}", i, ours, theirs);
                let mut seen = counts.get();
                seen[usize::from(ours)] += 1;
                counts.set(seen);
            }
            Ok(())
        })
        .unwrap();
    let [refused, accepted] = counts.get();
    println!("{refused} refusals and {accepted} acceptances, the same on both sides");
    assert!(refused > 100 && accepted > 100, "{refused} refusals, {accepted} acceptances");
}
