//! What an upgrade keeps in the node's directory.
//!
//! | name | content |
//! |---|---|
//! | `upgrade.record` | the state of the guest's upgrade, as `upgrade::record` says, each copy in a block of its own |
//! | `upgrade-host.record` | the same of the host's, on a machine of its own |
//! | `upgrade.json` | the order that is being carried out |
//! | `upgrade.failed` | why the last one was given up |
//! | `audit.log` | what happened, as `upgrade::audit` says |
//! | `incoming/` | a release that is being fetched, and in `recovery/` the recovery release that comes with it |
//! | `slot-a/`, `slot-b/` | releases; a node's first one stays where it was installed from |
//! | `slot-r/` | the recovery release; in `slot-r.new/` the one that comes, until it has its key |
//! | `roots/` | the roots that the node has followed, each as `release::root_file` calls it |
//! | `disk.img`, `disk-b.img`, `disk-r.img`, `disk-r.new.img` | the guests' disks of these |

use super::{Order, UpgradeError};
use crate::bundle::{self, ReleaseError, ReleaseFiles, RootSource};
use crate::node::{NodeDir, Place, write_atomically};
use release::{ApprovedManifest, BLESSING_FILE, Digest, Profile, Roots, root_file};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use upgrade::audit::{AuditError, Head};
use upgrade::machine::{Content, Event, Part, Phase, Slot};
use upgrade::node::Which;
use upgrade::record::{self, Unreadable};

/// Each copy of the record begins a block that a disk writes as one.
const BLOCK: u64 = 4096;
/// The audit log is refused where it is longer: nothing cuts it.
const MAX_AUDIT: u64 = 64 << 20;

/// What an upgrade keeps cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}; check its owner, mode and the free space")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Both copies are damaged.
    #[error(transparent)]
    Record(#[from] Unreadable),
    /// The log is not what this node wrote.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// What was written is not what was to be written.
    #[error("the release in {path} reads back differently; check the disk")]
    ReadBack {
        /// The slot.
        path: PathBuf,
        /// How.
        source: Box<ReleaseError>,
    },
}

impl StoreError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => "upgrade-disk-full",
            Self::Io { .. } => "upgrade-store",
            Self::Record(_) => "upgrade-record-unreadable",
            Self::Audit(error) => error.code(),
            Self::ReadBack { .. } => "upgrade-read-back",
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

/// The files of one node's upgrades.
#[derive(Debug, Clone)]
pub struct Store(NodeDir);

impl Store {
    /// Files that are no guest's disk.
    pub const FILES: [&str; 5] =
        ["upgrade.record", "upgrade-host.record", "upgrade.json", "upgrade.failed", "audit.log"];
    /// Folders.
    pub const FOLDERS: [&str; 6] = ["incoming", "slot-a", "slot-b", "slot-r", "slot-r.new", "roots"];

    /// In the directory of a node.
    pub fn of(node: &NodeDir) -> Store {
        Store(node.clone())
    }

    fn record(&self, which: Which) -> PathBuf {
        self.0.path().join(match which {
            Which::Guest => "upgrade.record",
            Which::Host => "upgrade-host.record",
        })
    }

    /// The audit log.
    pub fn log(&self) -> PathBuf {
        self.0.path().join("audit.log")
    }

    /// What was asked for and is not done.
    pub fn order(&self) -> PathBuf {
        self.0.path().join("upgrade.json")
    }

    /// Keeps an order; the agent looks for one while nothing is under way.
    pub fn ask(&self, order: &Order) -> Result<(), UpgradeError> {
        let path = self.order();
        let text = serde_json::to_vec(order).map_err(UpgradeError::Malformed)?;
        write_atomically(&path, &text).map_err(|source| UpgradeError::Order { path, source })
    }

    /// The order that is kept.
    pub(crate) fn ordered(&self) -> Result<Option<Order>, UpgradeError> {
        let path = self.order();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(UpgradeError::Malformed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(UpgradeError::Order { path, source }),
        }
    }

    /// Keeps why an upgrade was given up, a code and words, or forgets it.
    pub(crate) fn keep_failure(&self, why: Option<&(String, String)>) -> Result<(), StoreError> {
        let path = self.0.path().join("upgrade.failed");
        let kept = match why {
            Some(why) => write_atomically(&path, &serde_json::to_vec(why).unwrap_or_default()),
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        kept.map_err(failed("write", &path))
    }

    /// Why the last upgrade was given up.
    pub(crate) fn failure(&self) -> Option<(String, String)> {
        serde_json::from_slice(&fs::read(self.0.path().join("upgrade.failed")).ok()?).ok()
    }

    /// Where a release is fetched to.
    pub fn incoming(&self) -> PathBuf {
        self.0.path().join("incoming")
    }

    fn root(&self, version: u64) -> PathBuf {
        self.0.path().join("roots").join(root_file(version))
    }

    /// The root from which trust starts, and those that the node has followed.
    pub fn roots(&self, first: &RootSource, profile: Profile) -> Result<Roots, ReleaseError> {
        let mut roots = Roots::from(first.load(profile)?);
        loop {
            let path = self.root(roots.present().version() + 1);
            match fs::read(&path) {
                Ok(next) => roots
                    .follow(&next)
                    .map_err(|source| ReleaseError::NextRoot { path, source: Box::new(source) })?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(roots),
                Err(source) => return Err(ReleaseError::Unreadable { path, source }),
            }
        }
    }

    /// Keeps the root that was followed last.
    pub(crate) fn keep_root(&self, roots: &Roots) -> Result<(), StoreError> {
        let path = self.root(roots.present().version());
        let folder = self.0.path().join("roots");
        fs::create_dir_all(&folder).map_err(failed("make", &folder))?;
        write_atomically(&path, &roots.present().to_bytes()).map_err(failed("write", &path))
    }

    /// The roots that a guest may have to follow, oldest first: its image may be older than this program, and it passes over what
    /// it has.
    pub(crate) fn roots_for_guests(&self, roots: &Roots) -> Vec<String> {
        let known: Vec<_> = std::iter::once(roots.present()).chain(roots.earlier()).collect();
        let first = known.last().map_or(0, |root| root.version());
        // An earlier program followed these until it was replaced by this one.
        let before = (1..first).rev().map_while(|version| fs::read(self.root(version)).ok());
        let known = known.iter().filter(|root| root.version() > 1).map(|root| root.to_bytes());
        let mut texts: Vec<_> =
            known.chain(before).map(|root| String::from_utf8_lossy(&root).into_owned()).collect();
        texts.reverse();
        texts
    }

    /// Where the recovery release that comes with it is fetched to; it exists if the blessing names one.
    pub(crate) fn incoming_recovery(&self) -> PathBuf {
        self.incoming().join(RECOVERY)
    }

    /// Directory of a release.
    pub fn slot(&self, place: impl Into<Place>) -> PathBuf {
        self.0.path().join(match place.into() {
            Place::Slot(Slot::A) => "slot-a",
            Place::Slot(Slot::B) => "slot-b",
            Place::Recovery => "slot-r",
            Place::NextRecovery => "slot-r.new",
        })
    }

    /// Manifest of a release that was staged.
    pub(crate) fn staged(&self, place: impl Into<Place>) -> PathBuf {
        self.slot(place).join(MANIFEST)
    }

    /// Manifest of the release in a slot. A node's first release was never staged: it is where it was `installed`.
    pub fn manifest(&self, slot: Slot, installed: &Path) -> PathBuf {
        let staged = self.staged(slot);
        if staged.exists() || slot == Slot::B { staged } else { installed.to_owned() }
    }

    /// Manifest of the release that the node runs or, unless it is `running`, starts with next.
    pub fn runs(&self, installed: &Path, running: bool) -> Result<PathBuf, UpgradeError> {
        let part = match self.load(Which::Guest) {
            Ok(Some((_, part))) => part,
            // Nobody knows: the agent will say so.
            Ok(None) | Err(StoreError::Record(_)) => return Ok(installed.to_owned()),
            Err(error) => return Err(error.into()),
        };
        let part = if running { part } else { part.step(Event::Crash, None)? };
        let slot = match part.phase {
            Phase::Trying | Phase::Healthy => part.active.other(),
            _ => part.active,
        };
        Ok(self.manifest(slot, installed))
    }

    /// The state of a part; none before its first upgrade.
    pub fn load(&self, which: Which) -> Result<Option<(u64, Part<Digest>)>, StoreError> {
        let path = self.record(which);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file.take(2 * BLOCK).read_to_end(&mut bytes).map_err(failed("read", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let copy = |index: usize| bytes.get(index * BLOCK as usize..).unwrap_or_default();
        Ok(Some(record::read([copy(0), copy(1)])?))
    }

    /// Keeps the state that follows the one with this sequence number (0 for the first); returns its own.
    pub fn save(&self, which: Which, sequence: u64, part: &Part<Digest>) -> Result<u64, StoreError> {
        let path = self.record(which);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        let (copy, sequence) = record::next(sequence);
        file.write_all_at(&record::encode(sequence, part), copy as u64 * BLOCK)
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &path))?;
        if sequence == 1 {
            self.sync_directory()?;
        }
        Ok(sequence)
    }

    /// The audit log, and where it ends; what a power cut left of an entry is cut off.
    fn open_log(&self) -> Result<(File, Head), StoreError> {
        let path = self.log();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        let mut log = Vec::new();
        (&file).take(MAX_AUDIT).read_to_end(&mut log).map_err(failed("read", &path))?;
        let (head, kept) = upgrade::audit::verify(&log, None)?;
        if kept < log.len() {
            file.set_len(kept as u64).map_err(failed("cut", &path))?;
        }
        Ok((file, head))
    }

    /// The end of the audit log.
    pub(crate) fn head(&self) -> Result<Head, StoreError> {
        self.open_log().map(|(_, head)| head)
    }

    /// Appends to the audit log.
    pub fn audit(&self, now: u64, text: &str) -> Result<Head, StoreError> {
        let (mut file, head) = self.open_log()?;
        let (line, head) = head.append(now, &printable(text))?;
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(failed("write", &self.log()))?;
        Ok(head)
    }

    /// Puts a release that was fetched and verified where it is started from, and reads it back.
    pub fn stage(
        &self,
        release: &ApprovedManifest,
        place: impl Into<Place>,
        roots: &Roots,
        profile: Profile,
    ) -> Result<(), StoreError> {
        let place = place.into();
        let from = match place {
            Place::Slot(_) => self.incoming(),
            Place::Recovery | Place::NextRecovery => self.incoming_recovery(),
        };
        let to = self.slot(place);
        remove(&to)?;
        DirBuilder::new().mode(0o700).create(&to).map_err(failed("make", &to))?;
        copy(release.manifest(), &from, &to)?;
        File::open(&to).and_then(|directory| directory.sync_all()).map_err(failed("write", &to))?;
        self.sync_directory()?;
        self.read_back(release, &to, roots, profile)
            .map_err(|source| StoreError::ReadBack { path: to, source: Box::new(source) })
    }

    /// Keeps the release that the guest was installed with, which lies in the running host's slot, among what the node keeps:
    /// another host has another release there. Does nothing if it is kept, or slot A holds something else.
    pub(crate) fn keep_installed(&self, installed: &Path) -> Result<(), UpgradeError> {
        let to = self.slot(Slot::A);
        let in_use =
            self.load(Which::Guest)?.is_none_or(|(_, part)| matches!(part.content[0], Content::Release(_)));
        if !in_use || to.join(MANIFEST).exists() {
            return Ok(());
        }
        fs::create_dir_all(&to).map_err(failed("make", &to))?;
        let bytes = fs::read(installed).map_err(failed("read", installed))?;
        // It was judged before it was launched, and is again before the next time.
        let envelope = release::Envelope::from_bytes(&bytes)
            .map_err(|source| ReleaseError::Manifest { path: installed.to_owned(), source })?;
        copy(envelope.manifest(), installed.parent().unwrap_or(Path::new(".")), &to)?;
        File::open(&to).and_then(|directory| directory.sync_all()).map_err(failed("write", &to))?;
        Ok(self.sync_directory()?)
    }

    fn read_back(
        &self,
        expected: &ApprovedManifest,
        slot: &Path,
        roots: &Roots,
        profile: Profile,
    ) -> Result<(), ReleaseError> {
        let path = slot.join(MANIFEST);
        let found = bundle::manifest(&path, roots, profile)?;
        if found.digest() != expected.digest() {
            let source = io::Error::other("it is another manifest");
            return Err(ReleaseError::Unreadable { path, source });
        }
        ReleaseFiles::read(&path, found)?.check_all()
    }

    /// The recovery release that has come takes the place of the one before, with its key. After a power cut on the way there may be
    /// none; the upgrade that goes on then begins with this again.
    pub(crate) fn take_next_recovery(&self) -> Result<(), StoreError> {
        self.erase_key(Place::Recovery)?;
        let rename = |from: PathBuf, to: PathBuf| fs::rename(from, &to).map_err(failed("write", &to));
        let to = self.slot(Place::Recovery);
        remove(&to)?;
        rename(self.slot(Place::NextRecovery), to)?;
        rename(self.0.disk_path(Place::NextRecovery), self.0.disk_path(Place::Recovery))?;
        self.sync_directory()
    }

    /// There is no recovery release any more: the key first.
    pub(crate) fn drop_recovery(&self) -> Result<(), StoreError> {
        for place in [Place::Recovery, Place::NextRecovery] {
            self.erase_key(place)?;
            remove(&self.slot(place))?;
        }
        self.sync_directory()
    }

    /// Erases the guest's disk of a release, and with it the key that is wrapped for it.
    pub fn erase_key(&self, place: impl Into<Place>) -> Result<(), StoreError> {
        let path = self.0.disk_path(place);
        let file = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        // The vault, overwritten before the file goes: a file system keeps the blocks of a removed file.
        file.write_all_at(&[0; 64 * 1024], 0)
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::remove_file(&path))
            .map_err(failed("erase", &path))?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> Result<(), StoreError> {
        File::open(self.0.path())
            .and_then(|directory| directory.sync_all())
            .map_err(failed("write", self.0.path()))
    }
}

const MANIFEST: &str = "manifest.json";
/// The directory of a recovery release, beside the manifest of the release that it comes with.
pub(super) const RECOVERY: &str = "recovery";

/// Removes a folder, which need not be there.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("empty", path)(error)),
        _ => Ok(()),
    }
}

/// Copies what a guest's slot holds; the manifest, by which a slot is known to hold a release, last.
fn copy(manifest: &release::Manifest, from: &Path, to: &Path) -> Result<(), StoreError> {
    let files = &manifest.guest.files;
    let names = [&files.kernel, &files.initrd, &files.firmware].map(|file| file.path.as_str());
    for name in names.into_iter().chain([BLESSING_FILE, release::ID_BLOCK_FILE, MANIFEST]) {
        let (source, target) = (from.join(name), to.join(name));
        // Blessing and signatures of ID blocks are not part of every release; what has to be there is checked afterwards.
        if !source.exists() {
            continue;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(failed("make", parent))?;
        }
        fs::copy(&source, &target).map_err(failed("write", &target))?;
        File::open(&target).and_then(|file| file.sync_all()).map_err(failed("write", &target))?;
    }
    Ok(())
}

/// As the audit log takes it.
fn printable(text: &str) -> String {
    let mut text: String = text
        .chars()
        .map(|c| if matches!(c, ' '..='~') { c } else { '?' })
        .take(upgrade::audit::MAX_TEXT)
        .collect();
    if text.is_empty() {
        text.push('?');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A release with a key, as far as the store looks at it.
    fn put(store: &Store, place: Place, content: &str) {
        fs::create_dir(store.slot(place)).unwrap();
        fs::write(store.staged(place), content).unwrap();
        fs::write(store.0.disk_path(place), content).unwrap();
    }

    fn found(store: &Store, place: Place) -> [Option<String>; 2] {
        [store.staged(place), store.0.disk_path(place)].map(|path| fs::read_to_string(path).ok())
    }

    #[test]
    fn the_recovery_release_changes_with_its_key_and_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::of(&NodeDir::at(directory.path()));
        let both = |content: &str| [Some(content.to_owned()), Some(content.to_owned())];
        put(&store, Place::NextRecovery, "one");
        store.take_next_recovery().unwrap();
        assert_eq!(found(&store, Place::Recovery), both("one"));
        put(&store, Place::NextRecovery, "two");
        // A hard link shows what becomes of the blocks of the old vault.
        let kept = directory.path().join("kept");
        fs::hard_link(store.0.disk_path(Place::Recovery), &kept).unwrap();
        store.take_next_recovery().unwrap();
        assert_eq!(found(&store, Place::Recovery), both("two"));
        assert_eq!(found(&store, Place::NextRecovery), [None, None]);
        assert!(fs::read(&kept).unwrap().iter().all(|byte| *byte == 0), "the old key was not overwritten");
        store.drop_recovery().unwrap();
        assert_eq!(found(&store, Place::Recovery), [None, None]);
        store.drop_recovery().unwrap();
        assert!(store.take_next_recovery().is_err(), "there is none");
    }

    #[test]
    fn a_record_that_nobody_can_read_names_no_release() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::of(&NodeDir::at(directory.path()));
        fs::write(directory.path().join("upgrade.record"), [7; 5000]).unwrap();
        assert!(matches!(store.load(Which::Guest), Err(StoreError::Record(_))));
        assert_eq!(store.runs(Path::new("installed"), true).unwrap(), Path::new("installed"));
    }
}
