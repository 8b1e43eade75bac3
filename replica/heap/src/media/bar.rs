//! NVRAM behind a shared-memory PCI BAR (or, in trials, a shared memory file).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::statfs::{SYSFS_MAGIC, TMPFS_MAGIC, fstatfs};

use super::mapping::Mapping;
use super::{LINE, Media, MediaError, MediaKind, lines, range};
use crate::batch::Page;
use crate::checksum::PageSum;

/// A mapped PCI BAR: `resource2_wc` of an ivshmem device in sysfs. Streaming stores, fenced by `sfence`.
#[derive(Debug)]
pub struct BarMedia {
    mapping: Mapping,
    kind: MediaKind,
}

impl BarMedia {
    /// Opens and maps a BAR by its path in sysfs.
    pub fn open(path: &Path) -> Result<Self, MediaError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|source| failed(format!("open {}", path.display()), source))?;
        Self::from_fd(file.into())
    }

    /// Maps a BAR whose file somebody else opened. Files that are neither in sysfs nor shared memory are
    /// refused: `sfence` would not make their content durable.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, MediaError> {
        let kind =
            match fstatfs(&fd).map_err(|errno| failed("examine the BAR", errno.into()))?.filesystem_type() {
                SYSFS_MAGIC => MediaKind::Bar,
                TMPFS_MAGIC => MediaKind::SharedMemory,
                _ => {
                    let advice =
                        "it is neither a PCI resource in sysfs nor shared memory; use it as a file medium";
                    return Err(failed("map the file as NVRAM", io::Error::other(advice)));
                }
            };
        let file = File::from(fd);
        let length = file.metadata().map_err(|source| failed("measure the BAR", source))?.len();
        // Whole cache lines only; a BAR's length is a power of two anyway.
        let length = usize::try_from(length).unwrap_or(usize::MAX) / LINE * LINE;
        let mapping = Mapping::new(&file, length).map_err(|source| failed("map the BAR", source))?;
        Ok(Self { mapping, kind })
    }

    /// Takes all of the memory now, as a device has it from the beginning. Costs what the medium is long.
    pub fn prefault(&self) -> Result<(), MediaError> {
        self.mapping.prefault().map_err(|source| failed("prefault the shared memory", source))
    }
}

fn failed(action: impl Into<String>, source: io::Error) -> MediaError {
    MediaError::new(action, 0, 0, source)
}

impl Media for BarMedia {
    fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    fn kind(&self) -> MediaKind {
        self.kind
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let range = range("read the BAR", self.mapping.len(), offset, into.len())?;
        self.mapping.read(range.start, into);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        let range = lines("write the BAR", self.mapping.len(), offset, bytes.len())?;
        self.mapping.write(range.start, bytes);
        Ok(())
    }

    fn write_page_summed(&self, offset: u64, page: &Page, next: &Page) -> Result<PageSum, MediaError> {
        let range = lines("write the BAR", self.mapping.len(), offset, page.len())?;
        Ok(self.mapping.write_page_summed(range.start, page, next))
    }

    fn fence(&self) -> Result<(), MediaError> {
        self.mapping.fence();
        Ok(())
    }
}
