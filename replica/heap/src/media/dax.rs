//! A file on persistent memory, mapped; and finding out what a file is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{SYSFS_MAGIC, TMPFS_MAGIC, fstatfs};

use super::mapping::{Mapping, is_dax};
use super::{BarMedia, FileMedia, LINE, Media, MediaError, MediaKind, file, lines, range};
use crate::batch::Page;
use crate::checksum::PageSum;

/// A mapped file whose pages are the persistent memory itself. With MAP_SYNC the file system keeps its own records
/// durable before a page can be written, so that `sfence` is enough; without it each fence calls `fdatasync`.
#[derive(Debug)]
pub struct DaxMedia {
    mapping: Mapping,
    file: File,
    kind: MediaKind,
}

impl DaxMedia {
    /// Maps a file; `None` if its file system is not on persistent memory, or not mounted with `dax`.
    pub fn open(path: &Path) -> Result<Option<Self>, MediaError> {
        let failed =
            |action: &str, source| MediaError::new(format!("{action} {}", path.display()), 0, 0, source);
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|source| failed("open", source))?;
        let length = file::size(&file).map_err(|source| failed("measure", source))?;
        let length = usize::try_from(length).unwrap_or(usize::MAX) / LINE * LINE;
        let (mapping, kind) = match Mapping::new_sync(&file, length) {
            Ok(mapping) => (mapping, MediaKind::Dax),
            Err(_) if is_dax(&file).map_err(|source| failed("examine", source))? => {
                let mapping = Mapping::new(&file, length).map_err(|source| failed("map", source))?;
                (mapping, MediaKind::DaxFsync)
            }
            Err(_) => return Ok(None),
        };
        file.try_lock().map_err(|error| failed("lock (is it open twice?)", error.into()))?;
        // A hole that finds no room would end the process when it is written.
        let allocated = fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length as i64);
        allocated.map_err(|errno| failed("allocate all of", errno.into()))?;
        file.sync_all().map_err(|source| failed("sync", source))?;
        Ok(Some(Self { mapping, file, kind }))
    }
}

/// Opens the best that a path allows, and makes a file of `length` bytes if there is none: a PCI BAR, shared memory,
/// persistent memory with and without MAP_SYNC, or a plain file or block device. What it turned out to be is its
/// [`Media::kind`]; whoever needs a certain one says so in [`OpenOptions::kind`](crate::OpenOptions::kind).
pub fn probe(path: &Path, length: u64) -> Result<Box<dyn Media>, MediaError> {
    let failed = |action: &str, source| MediaError::new(format!("{action} {}", path.display()), 0, 0, source);
    if !path.exists() {
        let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let sized = new.and_then(|file| file.set_len(length).and_then(|()| file.sync_all()));
        sized.map_err(|source| failed("create", source))?;
    }
    let file = File::open(path).map_err(|source| failed("open", source))?;
    let regular = file.metadata().map_err(|source| failed("examine", source))?.is_file();
    let found = fstatfs(&file).map_err(|errno| failed("examine", io::Error::from(errno)))?.filesystem_type();
    drop(file);
    match found {
        // Not a device node: devtmpfs is a tmpfs, too.
        SYSFS_MAGIC | TMPFS_MAGIC if regular => return Ok(Box::new(BarMedia::open(path)?)),
        _ => {}
    }
    if regular && let Some(dax) = DaxMedia::open(path)? {
        return Ok(Box::new(dax));
    }
    Ok(Box::new(FileMedia::open_or_create(path, length)?))
}

impl Media for DaxMedia {
    fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    fn kind(&self) -> MediaKind {
        self.kind
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let range = range("read persistent memory", self.mapping.len(), offset, into.len())?;
        self.mapping.read(range.start, into);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        let range = lines("write persistent memory", self.mapping.len(), offset, bytes.len())?;
        self.mapping.write(range.start, bytes);
        Ok(())
    }

    fn write_page_summed(&self, offset: u64, page: &Page, next: &Page) -> Result<PageSum, MediaError> {
        let range = lines("write persistent memory", self.mapping.len(), offset, page.len())?;
        Ok(self.mapping.write_page_summed(range.start, page, next))
    }

    fn fence(&self) -> Result<(), MediaError> {
        self.mapping.fence();
        if self.kind == MediaKind::DaxFsync {
            let synced = self.file.sync_data();
            return synced.map_err(|source| MediaError::new("sync persistent memory", 0, 0, source));
        }
        Ok(())
    }
}
