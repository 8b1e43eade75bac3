//! What an upgrade keeps in the node's directory.
//!
//! | name | content |
//! |---|---|
//! | `upgrade.record` | the state of the guest's upgrade, as `upgrade::record` says, each copy in a block of its own |
//! | `upgrade-host.record` | the same of the host's, on a machine of its own |
//! | `upgrade.json` | the order that is being carried out |
//! | `upgrade.failed` | why the last one was given up |
//! | `audit.log` | what happened, as `upgrade::audit` says |
//! | `incoming/` | a release that is being fetched |
//! | `slot-a/`, `slot-b/` | releases; a node's first one stays where it was installed from |
//! | `disk.img`, `disk-b.img` | the guest's disks of the two slots |

use super::{Order, UpgradeError};
use crate::bundle::{self, ReleaseError, ReleaseFiles, RootSource};
use crate::node::{NodeDir, write_atomically};
use release::{ApprovedManifest, BLESSING_FILE, Digest, Profile};
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
    pub const FOLDERS: [&str; 3] = ["incoming", "slot-a", "slot-b"];

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

    /// Directory of the release in a slot.
    pub fn slot(&self, slot: Slot) -> PathBuf {
        self.0.path().join(match slot {
            Slot::A => "slot-a",
            Slot::B => "slot-b",
        })
    }

    /// Manifest of the release in a slot. A node's first release was never staged: it is where it was `installed`.
    pub fn manifest(&self, slot: Slot, installed: &Path) -> PathBuf {
        let staged = self.slot(slot).join(MANIFEST);
        if staged.exists() || slot == Slot::B { staged } else { installed.to_owned() }
    }

    /// Manifest of the release that the node runs or, unless it is `running`, starts with next.
    pub fn runs(&self, installed: &Path, running: bool) -> Result<PathBuf, UpgradeError> {
        let Some((_, part)) = self.load(Which::Guest)? else { return Ok(installed.to_owned()) };
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

    /// Puts the release that was fetched into a slot and reads it back. `digest` is the one that was verified.
    pub fn stage(
        &self,
        release: &ApprovedManifest,
        slot: Slot,
        root: &RootSource,
        profile: Profile,
    ) -> Result<(), StoreError> {
        let (from, to) = (self.incoming(), self.slot(slot));
        if to.exists() {
            fs::remove_dir_all(&to).map_err(failed("empty", &to))?;
        }
        DirBuilder::new().mode(0o700).create(&to).map_err(failed("make", &to))?;
        copy(release.manifest(), &from, &to)?;
        File::open(&to).and_then(|directory| directory.sync_all()).map_err(failed("write", &to))?;
        self.sync_directory()?;
        self.read_back(release, &to, root, profile)
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
        root: &RootSource,
        profile: Profile,
    ) -> Result<(), ReleaseError> {
        let path = slot.join(MANIFEST);
        let found = bundle::manifest(&path, &root.load(profile)?, profile)?;
        if found.digest() != expected.digest() {
            let source = io::Error::other("it is another manifest");
            return Err(ReleaseError::Unreadable { path, source });
        }
        ReleaseFiles::read(&path, found)?.check_all()
    }

    /// Erases the guest's disk of a slot, and with it the key that is wrapped for the slot's release.
    pub fn erase_key(&self, slot: Slot) -> Result<(), StoreError> {
        let path = self.0.disk_path(slot);
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
