//! Whether a verified release may be launched by this node now: blessing, security epoch, and what the node has seen.

use super::{ReleaseError, read};
use crate::node::write_atomically;
use crate::tpm::anchor::Anchor;
use release::{
    ApprovedManifest, BLESSING_FILE, Profile, Purpose, Refusal, Roots, Seen, Standing,
    blessing::{self, Launch},
};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the node has seen, in its directory. The owner of the machine can put back an old one; where there is a TPM, its
/// counter shows that (docs/THREATS.md).
pub const SEEN_FILE: &str = "seen.json";

/// Decides on a release whose manifest lies at `manifest`, and keeps in the node's directory what was seen, **before**
/// anything is launched. Returns why the node hands out no keys, if its blessing has expired or the keys were replaced.
///
/// A release for real processors needs a blessing beside its manifest; one for virtual nodes is held against it if there is
/// one; one for recovery always needs it. A release that is only tried, or is there for recovery, is not kept as the one that the
/// node has committed to.
pub fn admit(
    roots: &Roots,
    manifest: &Path,
    release: &ApprovedManifest,
    node: &Path,
    launched: LaunchedAs,
) -> Result<Option<Refusal>, ReleaseError> {
    admit_anchored(roots, manifest, release, node, launched, &mut Anchor::of_machine()?)
}

/// As what a release is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchedAs {
    /// The node, which has committed to it.
    Committed,
    /// The node, to see how it does.
    Tried,
    /// The recovery release.
    Recovery,
}

impl LaunchedAs {
    /// What it has to be blessed for.
    pub fn purpose(self) -> Purpose {
        match self {
            Self::Committed | Self::Tried => Purpose::Node,
            Self::Recovery => Purpose::Recovery,
        }
    }
}

/// Whether a release may be brought to the node for a purpose: the blessing beside its manifest names it for that, now. Nothing
/// is kept.
pub fn admissible(
    roots: &Roots,
    manifest: &Path,
    release: &ApprovedManifest,
    node: &Path,
    purpose: Purpose,
) -> Result<(), ReleaseError> {
    let refused = |source| ReleaseError::Refused { path: manifest.to_owned(), source: Box::new(source) };
    let statement = read(&manifest.with_file_name(BLESSING_FILE))?;
    let seen = roots.seen(seen(&node.join(SEEN_FILE), &mut Anchor::of_machine()?)?);
    let root = roots.present();
    let standing = blessing::accept(root, root, &statement, &seen, now()).map_err(refused)?;
    standing.may_have_keys(release, purpose).map_err(refused)
}

/// Whether a release that runs may get and give keys now. Nothing is kept, and one without a blessing, as virtual nodes may have
/// it, stands.
pub fn stands(
    roots: &Roots,
    manifest: &Path,
    release: &ApprovedManifest,
    node: &Path,
    purpose: Purpose,
) -> Result<(), ReleaseError> {
    let refused = |source| ReleaseError::Refused { path: manifest.to_owned(), source: Box::new(source) };
    let file = manifest.with_file_name(BLESSING_FILE);
    if !file.exists() {
        return Ok(());
    }
    let seen = roots.seen(seen(&node.join(SEEN_FILE), &mut None)?);
    let (judged, _) = judge(roots, &read(&file)?, node, &seen)?;
    judged.and_then(|standing| standing.may_have_keys(release, purpose)).map_err(refused)
}

/// What the blessing beside a release says, or the latest one that the node keeps; and that statement.
fn judge<'a>(
    roots: &'a Roots,
    beside: &[u8],
    node: &Path,
    seen: &Seen,
) -> Result<(Result<Standing<'a>, Refusal>, Vec<u8>), ReleaseError> {
    let root = roots.present();
    let latest = node.join(BLESSING_FILE);
    let judge = |statement: &[u8]| blessing::accept(root, root, statement, seen, now());
    Ok(match judge(beside) {
        // A later one came since with another release; it speaks for this one too.
        Err(Refusal::BlessingRolledBack { .. } | Refusal::Statement(_)) if latest.exists() => {
            let latest = read(&latest)?;
            (judge(&latest), latest)
        }
        judged => (judged, beside.to_vec()),
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

/// What the node has seen; with a TPM, held against its counter.
fn seen(path: &Path, anchor: &mut Option<Anchor>) -> Result<Seen, ReleaseError> {
    let seen = match read(path) {
        Ok(bytes) => Seen::from_bytes(&bytes)?,
        Err(ReleaseError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Seen::default()
        }
        Err(error) => return Err(error),
    };
    if let Some(anchor) = anchor {
        anchor.check(&seen)?;
    }
    Ok(seen)
}

/// The same with a TPM's counter, if there is one.
fn admit_anchored(
    roots: &Roots,
    manifest: &Path,
    release: &ApprovedManifest,
    node: &Path,
    launched: LaunchedAs,
    anchor: &mut Option<Anchor>,
) -> Result<Option<Refusal>, ReleaseError> {
    let path = node.join(SEEN_FILE);
    let seen = roots.seen(seen(&path, anchor)?);
    let file = manifest.with_file_name(BLESSING_FILE);
    let refused = |source| ReleaseError::Refused { path: manifest.to_owned(), source: Box::new(source) };
    let (next, stale) = match read(&file) {
        Ok(beside) => {
            let (judged, statement) = judge(roots, &beside, node, &seen)?;
            let standing = match judged {
                Ok(standing) => standing,
                // By the keys of now nobody has said anything yet.
                Err(replaced @ Refusal::Statement(_))
                    if goes_on(roots, [&statement, &beside], release, &seen, launched) =>
                {
                    return Ok(Some(replaced));
                }
                Err(refusal) => return Err(refused(refusal)),
            };
            // What forbids is kept, whatever becomes of this release.
            write(&path, standing.seen(), anchor)?;
            let latest = node.join(BLESSING_FILE);
            if read(&latest).ok().as_deref() != Some(&statement) {
                write_atomically(&latest, &statement)
                    .map_err(|source| ReleaseError::Unwritable { path: latest, source })?;
            }
            match standing.may_launch(release, launched.purpose()).map_err(refused)? {
                Launch::Blessed => (*standing.seen(), None),
                Launch::Stale(why) => (*standing.seen(), Some(why)),
            }
        }
        Err(ReleaseError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => {
            if release.manifest().profile == Profile::Production || launched == LaunchedAs::Recovery {
                return Err(ReleaseError::NoBlessing(file));
            }
            let (floor, found) = (seen.security_epoch, release.manifest().security_epoch);
            if found < floor {
                return Err(refused(Refusal::BelowEpoch { floor, found }));
            }
            (seen, None)
        }
        Err(error) => return Err(error),
    };
    if launched != LaunchedAs::Committed {
        return Ok(stale);
    }
    let committed = next.after_commit(release.digest(), release.manifest().security_epoch);
    write(&path, &committed, anchor)?;
    Ok(stale)
}

/// Whether what the node has committed to, or its recovery release, may go on by the keys of an earlier root: by the first of these
/// statements that such keys have signed.
fn goes_on(
    roots: &Roots,
    statements: [&[u8]; 2],
    release: &ApprovedManifest,
    seen: &Seen,
    launched: LaunchedAs,
) -> bool {
    let is_left = match launched {
        LaunchedAs::Committed => seen.release == Some(release.digest()),
        LaunchedAs::Tried => false,
        LaunchedAs::Recovery => true,
    };
    let judged = statements.iter().find_map(|statement| {
        roots.earlier().find_map(|root| {
            let seen = Seen { root_version: root.version(), ..*seen };
            let standing = blessing::accept(root, root, statement, &seen, now()).ok()?;
            Some(standing.may_launch(release, launched.purpose()).is_ok())
        })
    });
    is_left && judged == Some(true)
}

/// Keeps what was seen, if that is new.
fn write(path: &Path, seen: &Seen, anchor: &mut Option<Anchor>) -> Result<(), ReleaseError> {
    let bytes = seen.to_bytes();
    if read(path).ok().as_deref() != Some(&bytes) {
        write_atomically(path, &bytes)
            .map_err(|source| ReleaseError::Unwritable { path: path.to_owned(), source })?;
    }
    // After the file: a power cut between them leaves a counter that lags, and the next call makes up for it.
    if let Some(anchor) = anchor {
        anchor.raise(seen)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::{PublicKeys, Quote, Tpm, TpmError};
    use release::{Blessing, Envelope, RootContent, Signed, SigningKey, development, sign, verify};
    use std::collections::BTreeMap;
    use std::sync::atomic::Ordering;

    const GOLDEN: &[u8] = include_bytes!("../../../release/tests/golden/manifest.json");

    struct Node(tempfile::TempDir);

    impl Node {
        fn admit(
            &self,
            profile: Profile,
            epoch: u64,
            version: &str,
        ) -> Result<Option<Refusal>, ReleaseError> {
            let mut manifest = Envelope::from_bytes(GOLDEN).unwrap().content().clone();
            manifest.security_epoch = epoch;
            manifest.profile = profile;
            manifest.version = version.into();
            let release = verify(&signed(manifest), &development::root().unwrap()).unwrap();
            self.release(&release)
        }

        fn release(&self, release: &ApprovedManifest) -> Result<Option<Refusal>, ReleaseError> {
            let root = Roots::from(development::root().unwrap());
            let path = self.0.path().join("manifest.json");
            admit(&root, &path, release, self.0.path(), LaunchedAs::Committed)
        }

        fn bless(&self, version: u64, expires: u64, release: &ApprovedManifest) {
            self.bless_as(Purpose::Node, version, expires, release);
        }

        fn bless_as(&self, purpose: Purpose, version: u64, expires: u64, release: &ApprovedManifest) {
            self.put(signed(blessing_of(purpose, version, expires, release)));
        }

        fn put(&self, statement: Vec<u8>) {
            std::fs::write(self.0.path().join(BLESSING_FILE), statement).unwrap();
        }
    }

    fn blessing_of(purpose: Purpose, version: u64, expires: u64, release: &ApprovedManifest) -> Blessing {
        Blessing {
            version,
            profile: Profile::Virtual,
            issued: 1,
            expires,
            security_epoch: 4,
            releases: [(release.digest(), purpose)].into(),
            revoked: Default::default(),
        }
    }

    fn signed<T: release::Document>(content: T) -> Vec<u8> {
        signed_by(content, &development::signing_keys().unwrap()[..2])
    }

    fn signed_by<T: release::Document>(content: T, keys: &[SigningKey]) -> Vec<u8> {
        let mut envelope = Signed::new(content).unwrap();
        for key in keys {
            sign(&mut envelope, key).unwrap();
        }
        envelope.to_bytes()
    }

    fn code(result: Result<Option<Refusal>, ReleaseError>) -> &'static str {
        result.unwrap_err().code()
    }

    #[test]
    fn the_epoch_only_rises() {
        let node = Node(tempfile::tempdir().unwrap());
        assert_eq!(node.admit(Profile::Virtual, 4, "a").unwrap(), None);
        assert_eq!(node.admit(Profile::Virtual, 6, "b").unwrap(), None);
        assert_eq!(code(node.admit(Profile::Virtual, 5, "c")), "release-below-epoch");
        assert_eq!(code(node.admit(Profile::Production, 6, "d")), "blessing-missing");
        std::fs::write(node.0.path().join(SEEN_FILE), "{}").unwrap();
        assert_eq!(code(node.admit(Profile::Virtual, 9, "e")), "seen-unreadable");
    }

    /// A TPM that counts.
    struct Counter(std::sync::Arc<std::sync::atomic::AtomicU64>);

    impl Tpm for Counter {
        fn counter(&mut self) -> Result<u64, TpmError> {
            Ok(self.0.load(Ordering::Relaxed))
        }
        fn increment(&mut self) -> Result<(), TpmError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        fn keys(&mut self) -> Result<PublicKeys, TpmError> {
            Err(TpmError::Absent)
        }
        fn activate(&mut self, _: &[u8], _: &[u8]) -> Result<[u8; 32], TpmError> {
            Err(TpmError::Absent)
        }
        fn quote(&mut self, _: &[u8; 32]) -> Result<Quote, TpmError> {
            Err(TpmError::Absent)
        }
        fn pcrs(&mut self, _: &[u8]) -> Result<BTreeMap<u8, [u8; 32]>, TpmError> {
            Err(TpmError::Absent)
        }
        fn seal(&mut self, _: &[u8], _: &BTreeMap<u8, [u8; 32]>) -> Result<Vec<u8>, TpmError> {
            Err(TpmError::Absent)
        }
        fn unseal(&mut self, _: &[u8], _: &[u8]) -> Result<Vec<u8>, TpmError> {
            Err(TpmError::Absent)
        }
    }

    #[test]
    fn an_old_file_of_what_was_seen_is_refused_by_the_tpms_counter() {
        const BASE: u64 = 70;
        let counter = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(BASE));
        let node = tempfile::tempdir().unwrap();
        let root = Roots::from(development::root().unwrap());
        let golden = root.verify(GOLDEN).unwrap();
        let (manifest, seen) = (node.path().join("manifest.json"), node.path().join(SEEN_FILE));
        let admit = || {
            let mut anchor = Some(Anchor::new(Box::new(Counter(counter.clone())), BASE));
            admit_anchored(&root, &manifest, &golden, node.path(), LaunchedAs::Committed, &mut anchor)
        };
        admit().unwrap();
        assert_eq!(counter.load(Ordering::Relaxed), BASE + 4, "the golden manifest's epoch");
        admit().unwrap();
        assert_eq!(counter.load(Ordering::Relaxed), BASE + 4);
        std::fs::write(&seen, Seen { security_epoch: 3, ..Seen::default() }.to_bytes()).unwrap();
        assert_eq!(code(admit()), "seen-rolled-back");
        std::fs::remove_file(&seen).unwrap();
        assert_eq!(code(admit()), "seen-rolled-back");
        // A power cut after the file was written and before the counter rose.
        std::fs::write(&seen, Seen { security_epoch: 4, ..Seen::default() }.to_bytes()).unwrap();
        counter.store(BASE + 2, Ordering::Relaxed);
        admit().unwrap();
        assert_eq!(counter.load(Ordering::Relaxed), BASE + 4);
    }

    #[test]
    fn a_tried_release_raises_nothing() {
        let node = Node(tempfile::tempdir().unwrap());
        let golden = verify(GOLDEN, &development::root().unwrap()).unwrap();
        let root = Roots::from(development::root().unwrap());
        let path = node.0.path().join("manifest.json");
        let allowed = || admissible(&root, &path, &golden, node.0.path(), Purpose::Node);
        let admit = |path: &Path, launched| admit(&root, path, &golden, node.0.path(), launched);
        let (committed, tried) = (LaunchedAs::Committed, LaunchedAs::Tried);
        assert_eq!(allowed().unwrap_err().code(), "release-unreadable", "without a blessing");
        node.bless(7, 1 << 40, &golden);
        allowed().unwrap();
        admit(&path, tried).unwrap();
        let seen = || Seen::from_bytes(&std::fs::read(node.0.path().join(SEEN_FILE)).unwrap()).unwrap();
        assert_eq!((seen().blessing_version, seen().release), (7, None));
        admit(&path, committed).unwrap();
        assert_eq!(seen().release, Some(golden.digest()));
        // The committed one's own blessing is older than what came with another release, which names both or does not.
        let beside = node.0.path().join("other");
        std::fs::create_dir(&beside).unwrap();
        std::fs::rename(node.0.path().join(BLESSING_FILE), beside.join(BLESSING_FILE)).unwrap();
        let back = || admit(&beside.join("m"), committed);
        node.bless(9, 1 << 40, &golden);
        admit(&path, tried).unwrap();
        back().unwrap();
        std::fs::remove_file(node.0.path().join(BLESSING_FILE)).unwrap();
        assert_eq!(code(back()), "blessing-rolled-back", "no later one is kept");
        node.bless(10, 2, &golden);
        assert_eq!(allowed().unwrap_err().code(), "blessing-expired", "it runs on, and is not brought");
        node.bless(6, 1 << 40, &golden);
        assert_eq!(allowed().unwrap_err().code(), "blessing-rolled-back");
    }

    #[test]
    fn a_recovery_release_is_blessed_for_that_and_nothing_else_is() {
        let node = Node(tempfile::tempdir().unwrap());
        let golden = verify(GOLDEN, &development::root().unwrap()).unwrap();
        let root = Roots::from(development::root().unwrap());
        let path = node.0.path().join("manifest.json");
        let allowed = |purpose| admissible(&root, &path, &golden, node.0.path(), purpose);
        let admit = |launched| admit(&root, &path, &golden, node.0.path(), launched);
        assert_eq!(code(admit(LaunchedAs::Recovery)), "blessing-missing", "also of a virtual node");
        node.bless(7, 1 << 40, &golden);
        assert_eq!(code(admit(LaunchedAs::Recovery)), "release-other-purpose");
        assert_eq!(allowed(Purpose::Recovery).unwrap_err().code(), "release-other-purpose");
        node.bless_as(Purpose::Recovery, 8, 1 << 40, &golden);
        assert_eq!(code(admit(LaunchedAs::Tried)), "release-other-purpose");
        assert_eq!(code(admit(LaunchedAs::Committed)), "release-other-purpose");
        assert_eq!(allowed(Purpose::Node).unwrap_err().code(), "release-other-purpose");
        allowed(Purpose::Recovery).unwrap();
        assert_eq!(admit(LaunchedAs::Recovery).unwrap(), None);
        let seen = Seen::from_bytes(&std::fs::read(node.0.path().join(SEEN_FILE)).unwrap()).unwrap();
        assert_eq!((seen.blessing_version, seen.release), (8, None), "nobody has committed to it");
        // After expiry it still starts, and is not brought.
        node.bless_as(Purpose::Recovery, 9, 2, &golden);
        assert_eq!(admit(LaunchedAs::Recovery).unwrap().unwrap().code(), "blessing-expired");
        assert_eq!(allowed(Purpose::Recovery).unwrap_err().code(), "blessing-expired");
    }

    #[test]
    fn blessings_are_obeyed_and_remembered() {
        let node = Node(tempfile::tempdir().unwrap());
        let golden = verify(GOLDEN, &development::root().unwrap()).unwrap();
        let stands = || {
            let (roots, path) =
                (Roots::from(development::root().unwrap()), node.0.path().join("manifest.json"));
            super::stands(&roots, &path, &golden, node.0.path(), Purpose::Node).map_err(|error| error.code())
        };
        assert_eq!(stands(), Ok(()), "a virtual node's release without a blessing");
        node.bless(7, 1 << 40, &golden);
        assert_eq!(node.release(&golden).unwrap(), None);
        assert_eq!(stands(), Ok(()));
        assert_eq!(code(node.admit(Profile::Virtual, 4, "other")), "release-not-blessed");
        node.bless(6, 1 << 40, &golden);
        assert_eq!(code(node.release(&golden)), "blessing-rolled-back");
        // Expired: it goes on with what it runs, and says so.
        node.bless(8, 2, &golden);
        assert_eq!(node.release(&golden).unwrap().unwrap().code(), "blessing-expired");
        assert_eq!(stands(), Err("blessing-expired"));
        std::fs::remove_file(node.0.path().join(SEEN_FILE)).unwrap();
        assert_eq!(code(node.release(&golden)), "blessing-expired");
    }

    /// The development root, and one that follows it with other keys for everything.
    fn replaced() -> (Roots, Vec<SigningKey>) {
        let keys: Vec<_> = (1..=2).map(|n| SigningKey::from_bytes(&[n; 32])).collect();
        let old = development::root().unwrap();
        let (version, expires) = (old.version() + 1, old.content().expires);
        let content = RootContent::of_keys(version, expires, 2, keys.iter().map(SigningKey::verifying_key));
        let both = [&development::signing_keys().unwrap()[..2], &keys].concat();
        let mut roots = Roots::from(old);
        roots.follow(&signed_by(content, &both)).unwrap();
        (roots, keys)
    }

    #[test]
    fn replaced_keys_bring_nothing_new_and_what_runs_goes_on() {
        let node = Node(tempfile::tempdir().unwrap());
        let (roots, keys) = replaced();
        let golden = roots.verify(GOLDEN).unwrap();
        let path = node.0.path().join("manifest.json");
        let admit =
            |release: &ApprovedManifest, launched| admit(&roots, &path, release, node.0.path(), launched);
        let allowed = |release: &ApprovedManifest| {
            admissible(&roots, &path, release, node.0.path(), Purpose::Node).map_err(|error| error.code())
        };
        let (committed, tried) = (LaunchedAs::Committed, LaunchedAs::Tried);
        node.bless(7, 1 << 40, &golden);
        assert_eq!(code(admit(&golden, committed)), "blessing-unknown-key", "it never ran");
        node.release(&golden).unwrap();

        assert_eq!(admit(&golden, committed).unwrap().unwrap().code(), "blessing-unknown-key");
        assert_eq!(code(admit(&golden, tried)), "blessing-unknown-key");
        assert_eq!(allowed(&golden), Err("blessing-unknown-key"));
        // The old keys spoke again: who has them now brings nothing.
        let mut another = golden.manifest().clone();
        another.version = "another".to_owned();
        let another = roots.verify(&signed(another)).unwrap();
        node.bless(8, 1 << 40, &another);
        assert_eq!(code(admit(&another, committed)), "blessing-unknown-key");
        assert_eq!(allowed(&another), Err("blessing-unknown-key"));

        // The new keys bless what the old ones signed: what runs goes on, what does not is not brought. Their blessings count anew.
        let bless = |version, release| {
            node.put(signed_by(blessing_of(Purpose::Node, version, 1 << 40, release), &keys));
        };
        bless(1, &another);
        assert_eq!(code(admit(&another, tried)), "release-keys-replaced");
        assert_eq!(allowed(&another), Err("release-keys-replaced"));
        bless(2, &golden);
        assert_eq!(admit(&golden, committed).unwrap().unwrap().code(), "release-keys-replaced");
        // Theirs is taken, and then there is no way back to the root before.
        let mut new = golden.manifest().clone();
        new.version = "new".to_owned();
        let new = roots.verify(&signed_by(new, &keys)).unwrap();
        bless(3, &new);
        assert_eq!(allowed(&new), Ok(()));
        assert_eq!(admit(&new, committed).unwrap(), None);
        node.bless(9, 1 << 40, &golden);
        assert_eq!(code(node.release(&golden)), "root-rolled-back");
    }

    #[test]
    fn what_the_replaced_keys_forbade_stays_forbidden() {
        let node = Node(tempfile::tempdir().unwrap());
        let (roots, _) = replaced();
        let golden = roots.verify(GOLDEN).unwrap();
        let beside = node.0.path().join("slot");
        std::fs::create_dir(&beside).unwrap();
        node.bless(7, 1 << 40, &golden);
        node.release(&golden).unwrap();
        std::fs::copy(node.0.path().join(BLESSING_FILE), beside.join(BLESSING_FILE)).unwrap();
        let admit =
            || admit(&roots, &beside.join("manifest.json"), &golden, node.0.path(), LaunchedAs::Committed);
        assert!(admit().unwrap().is_some());
        let mut revoking = blessing_of(Purpose::Node, 8, 1 << 40, &golden);
        revoking.releases.clear();
        revoking.revoked.releases.insert(golden.digest());
        node.put(signed(revoking));
        assert_eq!(code(admit()), "blessing-unknown-key");
    }
}
