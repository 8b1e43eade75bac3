//! The slots of the machine's own disk, for recovery: the firmware is told to start the other system, once. What it usually
//! starts stays as it is.

use crate::pid1::verity;
use installer::disk::{Content, inspect};
use installer::gpt::Guid;
use installer::layout::Slot;
use installer::linux::{self, Device};
use installer::uefi::{ATTRIBUTES, GLOBAL, description};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Description of the entry that starts the image before the present one, as the installer makes it.
const PREVIOUS: &str = "Redoubt (previous)";
const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// Where PID 1 mounts the state.
const STATE: &str = "/state";

/// The other system cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// No disk of a node.
    #[error("the disk that this machine started from is not found; install the host anew")]
    NoDisk,
    /// Nothing there.
    #[error("there is no system before this one; install a release first")]
    Empty,
    /// No entry.
    #[error("the firmware has no entry \"{PREVIOUS}\"; choose the disk in its menu")]
    NoEntry,
    /// A variable or the disk.
    #[error("cannot {0} {path}: {source}; choose the system in the firmware's menu", path = .1.display(), source = .2)]
    Io(&'static str, PathBuf, io::Error),
}

/// The disk with the state, hence with all of this node; the kernel's name.
pub fn own_disk() -> Option<String> {
    disk_of(&fs::read_to_string("/proc/self/mounts").ok()?, Path::new("/sys/class/block"))
}

fn disk_of(mounts: &str, devices: &Path) -> Option<String> {
    let mounted = |line: &&str| line.split(' ').nth(1) == Some(STATE);
    let device = mounts.lines().find(mounted)?.split(' ').next()?.strip_prefix("/dev/")?;
    let mut folder = devices.join(device).canonicalize().ok()?;
    // Encrypted, it lies on a partition of the disk.
    if let Some(below) = fs::read_dir(folder.join("slaves")).ok().and_then(|mut slaves| slaves.next()?.ok()) {
        folder = below.path().canonicalize().ok()?;
    }
    Some(folder.parent()?.file_name()?.to_string_lossy().into_owned())
}

/// Device of a partition of the own disk, by its label.
pub fn own_partition(label: &str) -> Option<PathBuf> {
    linux::partition(&own_disk()?, label)
}

fn variable(folder: &Path, name: &str) -> PathBuf {
    let owner: Guid = GLOBAL;
    folder.join(format!("{name}-{owner}"))
}

/// Value of a variable, after its attributes.
fn value(folder: &Path, name: &str) -> Option<Vec<u8>> {
    fs::read(variable(folder, name)).ok()?.get(4..).map(<[u8]>::to_vec)
}

/// Has the firmware start the system that does not run now, the next time only.
pub(crate) fn start_other_next() -> Result<(), SlotError> {
    let device = Path::new("/dev").join(own_disk().ok_or(SlotError::NoDisk)?);
    let mut disk =
        Device::open_read_only(&device).map_err(|error| SlotError::Io("read", device.clone(), error))?;
    match inspect(&mut disk).map_err(|error| SlotError::Io("read", device, error))? {
        // The usual start leads to the other one already.
        Content::Node(node) if Some(node.slot) != running() => Ok(()),
        Content::Node(node) if node.esp.previous().is_some() => start_previous_next(),
        _ => Err(SlotError::Empty),
    }
}

/// Slot of the root that runs.
pub(crate) fn running() -> Option<Slot> {
    let parts = verity::parts().ok()?;
    parts.iter().find_map(|(_, label)| Slot::of_label(label))
}

/// Has the firmware start the image before the one that it usually starts, the next time only.
pub(crate) fn start_previous_next() -> Result<(), SlotError> {
    set_next(Path::new(VARIABLES))
}

fn set_next(folder: &Path) -> Result<(), SlotError> {
    let list = fs::read_dir(folder).map_err(|error| SlotError::Io("read", folder.to_owned(), error))?;
    let number = list.flatten().find_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let digits = name.strip_prefix("Boot")?.strip_suffix(&format!("-{GLOBAL}"))?.to_owned();
        let number = u16::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4)?;
        let option = value(folder, &format!("Boot{digits}"))?;
        (description(&option).as_deref() == Some(PREVIOUS)).then_some(number)
    });
    let number = number.ok_or(SlotError::NoEntry)?;
    let bytes = [&ATTRIBUTES.to_le_bytes()[..], &number.to_le_bytes()].concat();
    let path = variable(folder, "BootNext");
    // One write is one call of the firmware.
    fs::write(&path, bytes).map_err(|error| SlotError::Io("write", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(text: &str) -> Vec<u8> {
        let text: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        [vec![7, 0, 0, 0], vec![0; 6], text].concat()
    }

    #[test]
    fn the_entry_of_the_other_system_is_started_next() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(variable(folder.path(), name), bytes).unwrap();
        put("Boot0000", &option("UEFI Shell"));
        put("Boot0001", &option("Redoubt"));
        assert!(matches!(set_next(folder.path()), Err(SlotError::NoEntry)));
        put("Boot00A2", &option(PREVIOUS));
        put("BootOrder", &[7, 0, 0, 0, 1, 0, 0xa2, 0]);
        set_next(folder.path()).unwrap();
        assert_eq!(value(folder.path(), "BootNext"), Some(vec![0xa2, 0]));
        assert_eq!(value(folder.path(), "BootOrder"), Some(vec![1, 0, 0xa2, 0]));
    }

    #[test]
    fn the_own_disk_is_the_one_with_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let devices = folder.path().join("class");
        fs::create_dir_all(folder.path().join("nvme0n1/nvme0n1p9")).unwrap();
        fs::create_dir(&devices).unwrap();
        std::os::unix::fs::symlink("../nvme0n1/nvme0n1p9", devices.join("nvme0n1p9")).unwrap();
        let mounts = "/dev/root / erofs ro 0 0\n/dev/nvme0n1p9 /state ext4 rw 0 0\n";
        assert_eq!(disk_of(mounts, &devices).as_deref(), Some("nvme0n1"));
        // Encrypted.
        let slaves = folder.path().join("virtual/dm-1/slaves");
        fs::create_dir_all(&slaves).unwrap();
        std::os::unix::fs::symlink("../../../nvme0n1/nvme0n1p9", slaves.join("nvme0n1p9")).unwrap();
        std::os::unix::fs::symlink("../virtual/dm-1", devices.join("dm-1")).unwrap();
        let mounts = mounts.replace("nvme0n1p9", "dm-1");
        assert_eq!(disk_of(&mounts, &devices).as_deref(), Some("nvme0n1"));
        assert_eq!(disk_of("/dev/nvme0n1p9 /stateless ext4 rw 0 0\n", &devices), None);
    }
}
