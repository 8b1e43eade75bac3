//! The node directory: everything that one node keeps on this machine.

use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use upgrade::machine::Slot;

/// What a node directory holds, as the names in it. `wipe` removes these, but for certificates, operators
/// and the host's key, and nothing else.
mod name {
    pub(super) const LOCK: &str = "lock";
    pub(super) const NVRAM: &str = "nvram.img";
    pub(super) const NVRAM_RECORD: &str = "nvram.json";
    pub(super) const CHIP: &str = "chip";
    pub(super) const CERTIFICATES: &str = "certificates.bin";
    pub(super) const CONSOLE: &str = "console.log";
    pub(super) const CANDIDATE: &str = "candidate.log";
    pub(super) const AGENT_LOG: &str = "log.ring";
    pub(super) const RECORD: &str = "agent.json";
    pub(super) const KVM: &str = "kvm-probe.json";
    pub(super) const OPERATORS: &str = "operators.json";
    pub(super) const HOST_KEY: &str = "host-key.pem";
    pub(super) const DECOMMISSIONED: &str = "decommissioned.json";

    pub(super) const fn disk(place: super::Place) -> &'static str {
        match place {
            super::Place::Slot(super::Slot::A) => "disk.img",
            super::Place::Slot(super::Slot::B) => "disk-b.img",
            super::Place::Recovery => "disk-r.img",
            super::Place::NextRecovery => "disk-r.new.img",
        }
    }
}

/// Where a release of the guest lies, each with a disk of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// One of the two slots.
    Slot(Slot),
    /// The recovery release.
    Recovery,
    /// The recovery release that comes, until it has its key.
    NextRecovery,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Slot(Slot::A), Self::Slot(Slot::B), Self::Recovery, Self::NextRecovery];
}

impl From<Slot> for Place {
    fn from(slot: Slot) -> Self {
        Self::Slot(slot)
    }
}

/// Why the node directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeDirError {
    /// Another agent holds the lock.
    #[error("another agent already runs in {0}; stop it with `redoubt down`, or choose another --node-dir")]
    Running(PathBuf),
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
    /// An image has another size than asked for. Growing or cutting it would lose what the guest stored in it.
    #[error(
        "{path} has {found} bytes, but {wanted} were asked for; give the old size, or start anew with --fresh \
         (this deletes what the node stored)"
    )]
    SizeChanged {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size asked for, in bytes.
        wanted: u64,
    },
}

impl NodeDirError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Running(_) => "already-running",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => "disk-full",
            Self::Io { .. } => "node-dir-unusable",
            Self::SizeChanged { .. } => "image-size-changed",
        }
    }
}

/// A node directory. Holding one says nothing about the lock.
#[derive(Debug, Clone)]
pub struct NodeDir(PathBuf);

/// Gives an empty file its size and its space, or nothing.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match nix::fcntl::posix_fallocate(file, 0, bytes.cast_signed()) {
        // The file system knows no such thing.
        Err(nix::Error::EOPNOTSUPP) => file.set_len(bytes),
        Err(error) => {
            file.set_len(0)?;
            Err(error.into())
        }
        Ok(()) => Ok(()),
    }
}

/// Proof that this process is the only agent of the node. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct NodeLock(#[expect(dead_code, reason = "held, not used")] File);

impl NodeDir {
    /// Takes the directory, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the guest's console goes.
    pub fn console_log(&self) -> PathBuf {
        self.0.join(name::CONSOLE)
    }

    /// Console of the last guest that took over a key.
    pub fn candidate_log(&self) -> PathBuf {
        self.0.join(name::CANDIDATE)
    }

    /// The ring with the agent's own log ([`crate::log`]).
    pub fn agent_log(&self) -> PathBuf {
        self.0.join(name::AGENT_LOG)
    }

    /// Who may operate the node ([`crate::operator::keys::Operators`]); without it there is no operator interface.
    pub fn operators(&self) -> PathBuf {
        self.0.join(name::OPERATORS)
    }

    /// The host's own TLS key.
    pub fn host_key(&self) -> PathBuf {
        self.0.join(name::HOST_KEY)
    }

    /// The order to end this node, and the statement of what was erased ([`crate::decommission`]).
    pub fn decommissioned(&self) -> PathBuf {
        self.0.join(name::DECOMMISSIONED)
    }

    /// Directory of the simulated secure processor's identity.
    pub fn chip(&self) -> PathBuf {
        self.0.join(name::CHIP)
    }

    /// Where the answer of the KVM probe is kept.
    pub fn kvm_probe(&self) -> PathBuf {
        self.0.join(name::KVM)
    }

    /// Certificate table of this machine's processor (AMD document 56421, "Certificate table"), as the operator put it
    /// there; empty when it is absent.
    pub fn certificates(&self) -> Result<Vec<u8>, NodeDirError> {
        let path = self.0.join(name::CERTIFICATES);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|source| NodeDirError::Io { action: "read", path, source }),
        }
    }

    /// Where the node's NVRAM is ([`crate::nvram::Place`]).
    pub fn nvram_record(&self) -> PathBuf {
        self.0.join(name::NVRAM_RECORD)
    }

    /// Where the NVRAM's file is or will be.
    pub fn nvram_path(&self) -> PathBuf {
        self.0.join(name::NVRAM)
    }

    /// Where the image of a release's disk is or will be.
    pub fn disk_path(&self, place: impl Into<Place>) -> PathBuf {
        self.0.join(name::disk(place.into()))
    }

    /// Makes the directory (mode 0700) and takes its lock.
    pub fn lock(&self) -> Result<NodeLock, NodeDirError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| NodeDirError::Io { action, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(io("create", &self.0))?;
        let path = self.0.join(name::LOCK);
        let file =
            open_options().write(true).create(true).truncate(false).open(&path).map_err(io("open", &path))?;
        // `is_running` takes the lock for an instant; an agent that starts just then must not give up.
        for attempt in 0..5 {
            match file.try_lock() {
                Ok(()) => return Ok(NodeLock(file)),
                Err(fs::TryLockError::Error(source)) => {
                    return Err(NodeDirError::Io { action: "lock", path, source });
                }
                Err(fs::TryLockError::WouldBlock) if attempt < 4 => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(fs::TryLockError::WouldBlock) => {}
            }
        }
        Err(NodeDirError::Running(self.0.clone()))
    }

    /// Whether an agent holds the lock now.
    pub fn is_running(&self) -> bool {
        let Ok(file) = File::open(self.0.join(name::LOCK)) else { return false };
        matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
    }

    /// The NVRAM's file, made when absent. Its space is reserved: who has a file mapped cannot be told that a disk is full, and
    /// is killed instead.
    pub fn nvram(&self, _: &NodeLock, bytes: u64) -> Result<PathBuf, NodeDirError> {
        self.image(name::NVRAM, bytes, reserve)
    }

    /// The file of a release's disk, made sparse when absent.
    pub fn disk(&self, _: &NodeLock, place: impl Into<Place>, bytes: u64) -> Result<PathBuf, NodeDirError> {
        self.image(name::disk(place.into()), bytes, File::set_len)
    }

    fn image(
        &self,
        name: &str,
        wanted: u64,
        extend: fn(&File, u64) -> io::Result<()>,
    ) -> Result<PathBuf, NodeDirError> {
        let path = self.0.join(name);
        let io = |action| {
            let path = path.clone();
            move |source| NodeDirError::Io { action, path, source }
        };
        let file = open_options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open"))?;
        let found = file.metadata().map_err(io("read the size of"))?.len();
        if found == 0 {
            extend(&file, wanted).map_err(io("extend"))?;
        } else if found != wanted {
            return Err(NodeDirError::SizeChanged { path, found, wanted });
        }
        Ok(path)
    }

    /// Deletes what the node stored: NVRAM, disk, identity, logs. Takes the lock as proof that nothing runs.
    pub fn wipe(&self, _: &NodeLock) -> Result<(), NodeDirError> {
        let mut names =
            vec![name::NVRAM.to_owned(), name::NVRAM_RECORD.into(), name::RECORD.into(), name::KVM.into()];
        names.extend(Place::ALL.map(|place| name::disk(place).to_owned()));
        names.extend(crate::upgrade::Store::FILES.map(str::to_owned));
        for log in [name::CONSOLE, name::CANDIDATE, name::AGENT_LOG] {
            names.push(log.to_owned());
            names.extend((1..=crate::console::KEPT).map(|old| format!("{log}.{old}")));
        }
        for name in names {
            let path = self.0.join(name);
            absent_is_fine(fs::remove_file(&path)).map_err(|source| NodeDirError::Io {
                action: "remove",
                path,
                source,
            })?;
        }
        let staged = crate::upgrade::Store::FOLDERS.map(|name| self.0.join(name));
        for path in staged.into_iter().chain([self.chip()]) {
            absent_is_fine(fs::remove_dir_all(&path)).map_err(|source| NodeDirError::Io {
                action: "remove",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Writes the record in one step: a reader sees the old one or the new one.
    pub fn write_record(&self, record: &AgentRecord) -> Result<(), NodeDirError> {
        let path = self.0.join(name::RECORD);
        write_atomically(&path, &serde_json::to_vec_pretty(record).unwrap_or_default())
            .map_err(|source| NodeDirError::Io { action: "write", path, source })
    }

    /// The record of the agent that runs here or ran here last; `None` when there is none or it is not readable.
    pub fn read_record(&self) -> Option<AgentRecord> {
        serde_json::from_slice(&fs::read(self.0.join(name::RECORD)).ok()?).ok()
    }
}

impl NodeDir {
    /// The process that runs the node now: the one in the record, if it really has the lock open. A record may be
    /// older than the process that now has its number.
    pub fn agent(&self) -> Option<AgentRecord> {
        let record = self.read_record().filter(|_| self.is_running())?;
        let lock = fs::canonicalize(self.0.join(name::LOCK)).ok()?;
        let descriptors = fs::read_dir(format!("/proc/{}/fd", record.pid)).ok()?;
        let holds = descriptors.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == lock));
        holds.then_some(record)
    }
}

/// What the agent leaves in `agent.json` for whoever wants to find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Process of the agent.
    pub pid: u32,
    /// Seconds since 1970.
    pub started_unix_s: u64,
    /// Ports on 127.0.0.1.
    pub ports: Ports,
    /// The manifest that was given.
    pub manifest: PathBuf,
    /// Digest of the release (SHA-256 of what was signed), hexadecimal; empty until it was verified.
    pub digest: String,
    /// Version of the release; empty until it was verified.
    pub release: String,
    /// Launch measurement, hexadecimal; empty until it was recomputed.
    pub measurement: String,
    /// How the agent ended, absent while it runs.
    pub end: Option<End>,
}

/// Ports on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Ports {
    /// The guest's HTTPS interface.
    pub https: u16,
    /// The gateway: plain HTTP to the attested guest.
    pub http: u16,
    /// Status and metrics of the agent.
    pub status: u16,
}

/// How an agent ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Exit code of the process.
    pub exit: u8,
    /// Fixed name of the error; empty when all was well.
    pub code: String,
    /// Error in words with its causes; empty when all was well.
    pub error: String,
}

/// Replaces `path` by `content` in one step.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = open_options().write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// Options that make files only their owner can read.
pub(crate) fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn only_one_agent_per_node() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeDir::at(dir.path().join("a/node"));
        assert!(!node.is_running());
        let lock = node.lock().unwrap();
        assert!(node.is_running());
        assert!(matches!(node.lock(), Err(NodeDirError::Running(_))));
        drop(lock);
        assert!(!node.is_running());
        node.lock().unwrap();
    }

    #[test]
    fn disks_are_sparse_nvram_has_its_space_and_both_keep_their_size() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeDir::at(dir.path());
        let lock = node.lock().unwrap();
        let path = node.disk(&lock, Slot::A, 1 << 30).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 1 << 20, "not sparse");
        assert_eq!(metadata.mode() & 0o777, 0o600);
        node.disk(&lock, Slot::A, 1 << 30).unwrap();
        let error = node.disk(&lock, Slot::A, 1 << 29).unwrap_err();
        assert!(matches!(error, NodeDirError::SizeChanged { found: 0x4000_0000, wanted: 0x2000_0000, .. }));
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 30);
        let nvram = fs::metadata(node.nvram(&lock, 1 << 20).unwrap()).unwrap();
        assert_eq!((nvram.len(), nvram.mode() & 0o777), (1 << 20, 0o600));
        assert!(nvram.blocks() * 512 >= 1 << 20, "sparse");
    }

    #[test]
    fn an_old_record_does_not_name_a_stranger() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeDir::at(dir.path());
        let record = |pid| AgentRecord {
            pid,
            started_unix_s: 1,
            ports: Ports { https: 1, http: 2, status: 3 },
            manifest: "m".into(),
            digest: String::new(),
            release: String::new(),
            measurement: String::new(),
            end: None,
        };
        let lock = node.lock().unwrap();
        assert_eq!(node.agent(), None);
        node.write_record(&record(1)).unwrap();
        assert_eq!(node.agent(), None, "process 1 is not the agent");
        node.write_record(&record(std::process::id())).unwrap();
        assert_eq!(node.agent(), Some(record(std::process::id())));
        drop(lock);
        assert_eq!(node.agent(), None, "nothing runs");
    }

    #[test]
    fn wipe_removes_what_the_node_stored_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeDir::at(dir.path());
        let lock = node.lock().unwrap();
        node.nvram(&lock, 4096).unwrap();
        node.disk(&lock, Slot::B, 4096).unwrap();
        node.disk(&lock, Place::Recovery, 4096).unwrap();
        fs::create_dir(dir.path().join("slot-r")).unwrap();
        fs::create_dir(node.chip()).unwrap();
        fs::write(node.chip().join("key"), "k").unwrap();
        fs::write(node.console_log(), "c").unwrap();
        fs::write(dir.path().join("console.log.3"), "c").unwrap();
        fs::write(dir.path().join("mine"), "m").unwrap();
        node.wipe(&lock).unwrap();
        node.wipe(&lock).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["lock", "mine"]);
    }
}
