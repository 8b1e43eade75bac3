//! Block devices, and which ones this machine has.

use crate::{disk::Disk, run::Medium};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// A block device, or a file in its place.
#[derive(Debug)]
pub struct Device {
    file: File,
    size: u64,
}

impl Device {
    /// Opens a device for writing.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::options().read(true).write(true).open(path)?)
    }

    /// Opens a device that is only read.
    pub fn open_read_only(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?)
    }

    fn of(mut file: File) -> io::Result<Self> {
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }
}

impl Medium for Device {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        // Otherwise reading back would show what is in memory, not what the device kept.
        Ok(posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }
}

const BLOCK: &str = "/sys/block";

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Label of a partition, by its folder in sysfs.
fn label(folder: &Path) -> Option<String> {
    let text = text(folder.join("uevent"));
    text.lines().find_map(|line| line.strip_prefix("PARTNAME=")).map(str::to_owned)
}

/// Partitions of a disk: the kernel's name and the label.
fn partitions(disk: &Path) -> Vec<(String, Option<String>)> {
    let Ok(entries) = fs::read_dir(disk) else { return Vec::new() };
    let folders = entries.flatten().filter(|entry| entry.path().join("partition").exists());
    folders.map(|entry| (entry.file_name().to_string_lossy().into_owned(), label(&entry.path()))).collect()
}

/// The disks of this machine that could hold a node, by name. The one with a partition of the label `medium` is the medium
/// that the installer was started from.
pub fn disks(medium: &str) -> io::Result<Vec<Disk>> {
    let mounts = text("/proc/self/mounts");
    let mut disks = Vec::new();
    for entry in fs::read_dir(BLOCK)? {
        let entry = entry?;
        let (name, folder) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        // What has no device below it is made by the kernel: loop, ram, dm, zram.
        let size = text(folder.join("size")).parse::<u64>().unwrap_or(0).saturating_mul(512);
        if size == 0 || !folder.join("device").exists() || name.starts_with("sr") {
            continue;
        }
        let partitions = partitions(&folder);
        let is_medium = partitions.iter().any(|(_, label)| label.as_deref() == Some(medium));
        // Memory that is a block device is the guest's NVRAM, or the medium: firmware hands on a RAM disk of HTTP boot so.
        if name.starts_with("pmem") && !is_medium {
            continue;
        }
        let used = |name: &str, folder: &Path| {
            let device = format!("/dev/{name} ");
            if let Some(line) = mounts.lines().find(|line| line.starts_with(&device)) {
                let target = line.split(' ').nth(1).unwrap_or_default();
                return Some(format!("/dev/{name} is mounted on {target}"));
            }
            let mut holders = fs::read_dir(folder.join("holders")).ok()?.flatten();
            holders
                .next()
                .map(|holder| format!("{} is upon /dev/{name}", holder.file_name().to_string_lossy()))
        };
        let used_by = used(&name, &folder)
            .or_else(|| partitions.iter().find_map(|(part, _)| used(part, &folder.join(part))));
        disks.push(Disk {
            model: text(folder.join("device/model")),
            serial: text(folder.join("device/serial")),
            size,
            block: text(folder.join("queue/logical_block_size")).parse().unwrap_or(512),
            // The kernel calls a USB stick removable; a USB disk is known by its path.
            removable: text(folder.join("removable")) == "1"
                || folder.canonicalize().is_ok_and(|path| path.to_string_lossy().contains("/usb")),
            used_by,
            is_medium,
            name,
        });
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

/// Device of the partition with this label on a disk.
#[must_use]
pub fn partition(disk: &str, wanted: &str) -> Option<PathBuf> {
    let found = partitions(&Path::new(BLOCK).join(disk));
    let (name, _) = found.into_iter().find(|(_, label)| label.as_deref() == Some(wanted))?;
    Some(Path::new("/dev").join(name))
}
