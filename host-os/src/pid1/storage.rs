//! The disk that the host was started from: which slot, the guest's release in it, identifiers of its own, and the two
//! partitions that outlive a release.
//!
//! The configuration partition holds records and no file system; the state partition gets its file system here, once.

use super::verity;
use crate::installation::CONFIGURATION;
use crate::sys;
use crate::tpm::{
    self,
    anchor::{Anchor, BASE},
    records::{IDENTITY, Protection, ProtectionStatus, Records, RecordsError},
};
use installer::{
    archive::{self, ArchiveError},
    config::{ConfigError, Signed},
    disk::{Reader, table},
    gpt::{LayoutError, Table},
    layout::{self, Slot, labels},
    linux::{self, Device},
    record::{self, Kind},
    run::Medium,
};
use nix::mount::{MsFlags, mount};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    thread::JoinHandle,
};

/// Where the guest's release goes.
const GUEST: &str = "/guest";
/// Where the state is mounted.
pub(super) const STATE: &str = "/state";
/// Makes the file system.
const MAKER: &str = "/usr/sbin/mke2fs";
/// What the record of the state says when its file system is complete.
const READY: &[u8] = b"ready";

/// The disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StorageError {
    #[error("the root is on no partition of a slot ({0}); install the host anew")]
    NoSlot(String),
    #[error("{0} has no partition {1}; install the host anew")]
    Absent(String, String),
    #[error("cannot {action} {path}: {source}; the disk fails, replace it")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the partition table cannot be renewed: {0}; install the host anew")]
    Layout(#[from] LayoutError),
    #[error("no random numbers: {0}; restart the machine")]
    Random(String),
    #[error("{MAKER} on {0} ended with {1}; the disk fails, replace it")]
    Maker(PathBuf, String),
    #[error(
        "the state on {device} does not mount: {source}. It is not erased; replace the disk, or install the host anew"
    )]
    State { device: PathBuf, source: io::Error },
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error(transparent)]
    Records(#[from] RecordsError),
}

/// A guest slot has no release.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("it is empty; install a release")]
    Empty,
}

/// The disk with the root.
pub(super) struct Disk {
    /// The kernel's name.
    pub(super) name: String,
    /// Slot of the root.
    pub(super) slot: Slot,
    /// Key of the encrypted state.
    state_key: Option<[u8; 64]>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Io { action, path, source }
}

/// Writes a file in memory that only root reads.
fn leave(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let file = crate::node::open_options().write(true).create(true).truncate(true).open(path);
    file.and_then(|mut file| file.write_all(content)).map_err(failed("write", path))
}

fn unpack_guest(path: &Path) -> Result<usize, SlotError> {
    let mut device = Device::open_read_only(path).map_err(failed("open", path))?;
    let end = device.size();
    let files = archive::unpack(Reader { medium: &mut device, at: 0, end })?;
    if files.is_empty() {
        return Err(SlotError::Empty);
    }
    for (name, content) in &files {
        let target = Path::new(GUEST).join(name);
        let folder = target.parent().unwrap_or(Path::new(GUEST));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&target, content))
            .map_err(failed("write", &target))?;
    }
    Ok(files.len())
}

impl Disk {
    /// The signed command line names the root by its hash, and with it the partition; the partition's label is the slot.
    pub(super) fn of_root() -> Result<Self, StorageError> {
        let parts = verity::parts().map_err(|error| StorageError::NoSlot(error.to_string()))?;
        let found = parts.iter().find_map(|(name, label)| Some((name, Slot::of_label(label)?)));
        let (name, slot) = found.ok_or_else(|| StorageError::NoSlot(format!("{parts:?}")))?;
        let folder = Path::new("/sys/class/block").join(name);
        let folder = folder.canonicalize().map_err(failed("find", &folder))?;
        let disk = folder.parent().and_then(Path::file_name).unwrap_or_default();
        Ok(Self { name: disk.to_string_lossy().into_owned(), slot, state_key: None })
    }

    fn device(&self, label: &str) -> Result<PathBuf, StorageError> {
        linux::partition(&self.name, label)
            .ok_or_else(|| StorageError::Absent(self.name.clone(), label.to_owned()))
    }

    fn open(path: &Path) -> Result<Device, StorageError> {
        Device::open(path).map_err(failed("open", path))
    }

    /// Takes the guest's release out of its slot, on a thread of its own; the agent holds each file against the signed manifest.
    /// The thread returns how many files there are.
    pub(super) fn unpack_guest(&self) -> JoinHandle<Result<usize, SlotError>> {
        let path = self.device(&self.slot.guest());
        std::thread::spawn(|| unpack_guest(&path?))
    }

    /// Gives a disk that was written as it was built identifiers of its own, and the state all the space there is.
    pub(super) fn personalise(&self) -> Result<(), StorageError> {
        let path = Path::new("/dev").join(&self.name);
        let mut device = Self::open(&path)?;
        let (_, found) = table(&mut device).map_err(failed("read", &path))?;
        let found = found.filter(layout::is_ours);
        let found = found.ok_or_else(|| StorageError::Absent(self.name.clone(), "table of a node".into()))?;
        let mut failure = None;
        let own = layout::personalise(&found, device.size(), &mut |_| {
            let mut id = [0; 16];
            if let Err(error) = getrandom::fill(&mut id) {
                failure = Some(StorageError::Random(error.to_string()));
            }
            layout::custom(id)
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        let Some(own) = own else { return Ok(()) };
        let (start, end) = layout::encode(&own, device.size())?;
        // The kernel takes the second copy while the first is not sound, so one of them always is.
        let end_at = device.size() - end.len() as u64;
        for (at, bytes) in [(end_at, end), (0, start)] {
            device.write(at, &bytes).and_then(|()| device.flush()).map_err(failed("write", &path))?;
        }
        self.tell_kernel(&path, &own);
        super::say(format_args!("identifiers of this disk made: {}", own.disk));
        Ok(())
    }

    /// The state is in use by nobody yet, so its new length counts at once; if not, from the next start on.
    fn tell_kernel(&self, path: &Path, table: &Table) {
        let state = table.partitions.iter().zip(1..).find(|(partition, _)| partition.name == labels::STATE);
        let Some((state, number)) = state else { return };
        let told = File::open(path).and_then(|disk| {
            sys::resize_partition(&disk, number, state.start.cast_signed(), state.size.cast_signed())
        });
        if let Err(error) = told {
            super::say(format_args!("the state stays small until the next start: {error}"));
        }
    }

    /// Whether this machine's node was decommissioned. If so, what a power cut left of its records goes too.
    pub(super) fn has_ended(&self) -> Result<bool, StorageError> {
        let path = self.device(labels::CONFIG)?;
        let ended = crate::decommission::is_marked(&path).map_err(failed("read", &path))?;
        if ended {
            let mut records = Self::open(&path)?;
            let erased = records.write(0, &vec![0; record::AREA]).and_then(|()| records.flush());
            erased.map_err(failed("erase", &path))?;
        }
        Ok(ended)
    }

    /// Opens the host's secret, or makes it, and leaves what the agent needs of it in memory.
    pub(super) fn secrets(&mut self, profile: &str) -> Result<ProtectionStatus, StorageError> {
        let mut records = Records::open(&self.device(labels::CONFIG)?)?;
        let protection = records.protection(tpm::open(), profile == "production")?;
        if let Some(identity) = records.identity(&protection)? {
            leave(Path::new(IDENTITY), &identity)?;
        }
        if let Protection::Sealed(secret) = &protection {
            leave(Path::new(BASE), &Anchor::base_file(secret.counter))?;
            let mut key = [0; 64];
            key[..32].copy_from_slice(&secret.derive("state, data"));
            key[32..].copy_from_slice(&secret.derive("state, tweak"));
            self.state_key = Some(key);
        }
        Ok(protection.status())
    }

    /// The block device of the state: the partition, or what dm-crypt makes of it.
    fn state(&self) -> Result<PathBuf, StorageError> {
        let device = self.device(labels::STATE)?;
        let Some(key) = &self.state_key else { return Ok(device) };
        let sectors = Self::open(&device)?.size() / 512;
        let target = device.display();
        // 512-bit keys are AES-256 in XTS mode (IEEE 1619).
        let table = format!("aes-xts-plain64 {} 0 {target} 0 1 sector_size:4096", hex::encode(key));
        sys::map_device("state", "crypt", sectors / 8 * 8, &table).map_err(failed("encrypt", &device))
    }

    /// Mounts the state, after making its file system if it never was complete.
    pub(super) fn mount_state(&self) -> Result<(), StorageError> {
        let (config, device) = (self.device(labels::CONFIG)?, self.state()?);
        let mut records = Self::open(&config)?;
        let area = self.records(&config)?;
        if record::read(&area, Kind::State).is_none_or(|(_, content)| content != READY) {
            let made = Command::new(MAKER)
                .args(["-q", "-F", "-t", "ext4", "-L", "state", "-E", "nodiscard"])
                .arg(&device)
                .env_clear()
                .status()
                .map_err(failed("start the maker of the file system on", &device))?;
            if !made.success() {
                return Err(StorageError::Maker(device, made.to_string()));
            }
            // Only a complete file system is called ready: after a power cut it is made again.
            Self::open(&device)?.flush().map_err(failed("flush", &device))?;
            if let Ok((at, bytes)) = record::write(&area, Kind::State, READY) {
                records
                    .write(at as u64, &bytes)
                    .and_then(|()| records.flush())
                    .map_err(failed("write", &config))?;
            }
            super::say(format_args!("file system made on {}", device.display()));
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        mount(Some(&device), STATE, Some("ext4"), flags, Some("errors=remount-ro"))
            .map_err(|errno| StorageError::State { device, source: errno.into() })
    }

    fn records(&self, path: &Path) -> Result<Vec<u8>, StorageError> {
        let mut area = vec![0; record::AREA];
        Self::open(path)?.read(0, &mut area).map_err(failed("read", path))?;
        Ok(area)
    }

    /// Verifies the configuration and hands it to the agent; returns the node's identity, if it was installed.
    pub(super) fn configuration(&self) -> Result<Option<String>, StorageError> {
        let path = self.device(labels::CONFIG)?;
        let area = self.records(&path)?;
        let Some((_, document)) = record::read(&area, Kind::Configuration) else { return Ok(None) };
        let signed = Signed::parse(document)?;
        fs::write(CONFIGURATION, document).map_err(failed("write", Path::new(CONFIGURATION)))?;
        Ok(Some(signed.configuration.node))
    }
}
