//! Whether a verified release may be launched by this node now: blessing, security epoch, and what the node has seen.

use super::{ReleaseError, read};
use crate::node::write_atomically;
use crate::tpm::anchor::Anchor;
use release::{
    ApprovedManifest, BLESSING_FILE, Profile, Refusal, Root, Seen,
    blessing::{self, Launch},
};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the node has seen, in its directory. The owner of the machine can put back an old one; where there is a TPM, its
/// counter shows that (docs/THREATS.md).
pub const SEEN_FILE: &str = "seen.json";

/// Decides on a release whose manifest lies at `manifest`, and keeps in the node's directory what was seen, **before**
/// anything is launched. Returns why the node hands out no keys, if its blessing has expired.
///
/// A release for real processors needs a blessing beside its manifest; one for virtual nodes is held against it if there is
/// one. A release that is only tried is not kept as the one that the node has committed to.
pub fn admit(
    root: &Root,
    manifest: &Path,
    release: &ApprovedManifest,
    node: &Path,
    tried: bool,
) -> Result<Option<Refusal>, ReleaseError> {
    admit_anchored(root, manifest, release, node, tried, &mut Anchor::of_machine()?)
}

/// Whether a release may be brought to the node as its next one: the blessing beside its manifest names it, now. Nothing is
/// kept.
pub fn admissible(
    root: &Root,
    manifest: &Path,
    release: &ApprovedManifest,
    node: &Path,
) -> Result<(), ReleaseError> {
    let refused = |source| ReleaseError::Refused { path: manifest.to_owned(), source: Box::new(source) };
    let statement = read(&manifest.with_file_name(BLESSING_FILE))?;
    let seen = seen(&node.join(SEEN_FILE), &mut Anchor::of_machine()?)?;
    let standing = blessing::accept(root, root, &statement, &seen, now()).map_err(refused)?;
    standing.may_have_keys(release).map(|_| ()).map_err(refused)
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
    root: &Root,
    manifest: &Path,
    release: &ApprovedManifest,
    node: &Path,
    tried: bool,
    anchor: &mut Option<Anchor>,
) -> Result<Option<Refusal>, ReleaseError> {
    let path = node.join(SEEN_FILE);
    let seen = seen(&path, anchor)?;
    let file = manifest.with_file_name(BLESSING_FILE);
    let refused = |source| ReleaseError::Refused { path: manifest.to_owned(), source: Box::new(source) };
    let (next, stale) = match read(&file) {
        Ok(beside) => {
            let latest = node.join(BLESSING_FILE);
            let (standing, statement) = match blessing::accept(root, root, &beside, &seen, now()) {
                // A later one came since with another release; it speaks for this one too.
                Err(Refusal::BlessingRolledBack { .. }) if latest.exists() => {
                    let latest = read(&latest)?;
                    (blessing::accept(root, root, &latest, &seen, now()).map_err(refused)?, latest)
                }
                standing => (standing.map_err(refused)?, beside),
            };
            // What forbids is kept, whatever becomes of this release.
            write(&path, &seen, standing.seen(), anchor)?;
            if read(&latest).ok().as_deref() != Some(&statement) {
                write_atomically(&latest, &statement)
                    .map_err(|source| ReleaseError::Unwritable { path: latest, source })?;
            }
            match standing.may_launch(release).map_err(refused)? {
                Launch::Blessed(_) => (*standing.seen(), None),
                Launch::Stale(why) => (*standing.seen(), Some(why)),
            }
        }
        Err(ReleaseError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => {
            if release.manifest().profile == Profile::Production {
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
    if tried {
        return Ok(stale);
    }
    let committed = next.after_commit(release.digest(), release.manifest().security_epoch);
    write(&path, &next, &committed, anchor)?;
    Ok(stale)
}

fn write(path: &Path, before: &Seen, after: &Seen, anchor: &mut Option<Anchor>) -> Result<(), ReleaseError> {
    if before != after || !path.exists() {
        write_atomically(path, &after.to_bytes())
            .map_err(|source| ReleaseError::Unwritable { path: path.to_owned(), source })?;
    }
    // After the file: a power cut between them leaves a counter that lags, and the next call makes up for it.
    if let Some(anchor) = anchor {
        anchor.raise(after)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::{PublicKeys, Quote, Tpm, TpmError};
    use release::{Blessing, Envelope, Purpose, Signed, development, sign, verify};
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
            let root = development::root().unwrap();
            admit(&root, &self.0.path().join("manifest.json"), release, self.0.path(), false)
        }

        fn bless(&self, version: u64, expires: u64, release: &ApprovedManifest) {
            let statement = signed(Blessing {
                version,
                profile: Profile::Virtual,
                issued: 1,
                expires,
                security_epoch: 4,
                releases: [(release.digest(), Purpose::Node)].into(),
                revoked: Default::default(),
            });
            std::fs::write(self.0.path().join(BLESSING_FILE), statement).unwrap();
        }
    }

    fn signed<T: release::Document>(content: T) -> Vec<u8> {
        let mut envelope = Signed::new(content).unwrap();
        for key in &development::signing_keys().unwrap()[..2] {
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
        let root = development::root().unwrap();
        let golden = verify(GOLDEN, &root).unwrap();
        let (manifest, seen) = (node.path().join("manifest.json"), node.path().join(SEEN_FILE));
        let admit = || {
            let mut anchor = Some(Anchor::new(Box::new(Counter(counter.clone())), BASE));
            admit_anchored(&root, &manifest, &golden, node.path(), false, &mut anchor)
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
        let root = development::root().unwrap();
        let path = node.0.path().join("manifest.json");
        let allowed = || admissible(&root, &path, &golden, node.0.path());
        assert_eq!(allowed().unwrap_err().code(), "release-unreadable", "without a blessing");
        node.bless(7, 1 << 40, &golden);
        allowed().unwrap();
        admit(&root, &path, &golden, node.0.path(), true).unwrap();
        let seen = || Seen::from_bytes(&std::fs::read(node.0.path().join(SEEN_FILE)).unwrap()).unwrap();
        assert_eq!((seen().blessing_version, seen().release), (7, None));
        admit(&root, &path, &golden, node.0.path(), false).unwrap();
        assert_eq!(seen().release, Some(golden.digest()));
        // The committed one's own blessing is older than what came with another release, which names both or does not.
        let beside = node.0.path().join("other");
        std::fs::create_dir(&beside).unwrap();
        std::fs::rename(node.0.path().join(BLESSING_FILE), beside.join(BLESSING_FILE)).unwrap();
        let back = |node: &Node| admit(&root, &beside.join("m"), &golden, node.0.path(), false);
        node.bless(9, 1 << 40, &golden);
        admit(&root, &path, &golden, node.0.path(), true).unwrap();
        back(&node).unwrap();
        std::fs::remove_file(node.0.path().join(BLESSING_FILE)).unwrap();
        assert_eq!(code(back(&node)), "blessing-rolled-back", "no later one is kept");
        node.bless(10, 2, &golden);
        assert_eq!(allowed().unwrap_err().code(), "blessing-expired", "it runs on, and is not brought");
        node.bless(6, 1 << 40, &golden);
        assert_eq!(allowed().unwrap_err().code(), "blessing-rolled-back");
    }

    #[test]
    fn blessings_are_obeyed_and_remembered() {
        let node = Node(tempfile::tempdir().unwrap());
        let golden = verify(GOLDEN, &development::root().unwrap()).unwrap();
        node.bless(7, 1 << 40, &golden);
        assert_eq!(node.release(&golden).unwrap(), None);
        assert_eq!(code(node.admit(Profile::Virtual, 4, "other")), "release-not-blessed");
        node.bless(6, 1 << 40, &golden);
        assert_eq!(code(node.release(&golden)), "blessing-rolled-back");
        // Expired: it goes on with what it runs, and says so.
        node.bless(8, 2, &golden);
        assert_eq!(node.release(&golden).unwrap().unwrap().code(), "blessing-expired");
        std::fs::remove_file(node.0.path().join(SEEN_FILE)).unwrap();
        assert_eq!(code(node.release(&golden)), "blessing-expired");
    }
}
