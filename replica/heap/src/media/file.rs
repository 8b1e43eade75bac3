//! A plain file or block device.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Media, MediaError, MediaKind};

/// A file or block device, written with pwrite and fenced with fdatasync.
#[derive(Debug)]
pub struct FileMedia {
    file: File,
    length: u64,
}

impl FileMedia {
    /// Opens an existing file or block device.
    pub fn open(path: &Path) -> Result<Self, MediaError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Self::from_file(file.map_err(|source| failed("open", path, source))?)
    }

    /// Opens a file; if it is missing or empty, makes it with `length` bytes (sparse), readable by its owner
    /// only.
    pub fn open_or_create(path: &Path, length: u64) -> Result<Self, MediaError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(|source| failed("open or create", path, source))?;
        // Empty also if a crash came between the two steps.
        if size(&file).map_err(|source| failed("measure", path, source))? == 0 {
            file.set_len(length).map_err(|source| failed("set the length of", path, source))?;
            file.sync_all().map_err(|source| failed("sync", path, source))?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            let synced = File::open(parent).and_then(|directory| directory.sync_all());
            synced.map_err(|source| failed("sync the directory of", path, source))?;
        }
        Self::from_file(file)
    }

    /// Takes an open file or block device. Locks it: two heaps on one file would destroy each other.
    pub fn from_file(file: File) -> Result<Self, MediaError> {
        let whole = |action: &str, source: io::Error| MediaError::new(action, 0, 0, source);
        file.try_lock().map_err(|error| whole("lock the heap file (is it open twice?)", error.into()))?;
        let length = size(&file).map_err(|source| whole("measure the heap file", source))?;
        // After a failed fdatasync Linux may keep pages in its cache that never reached the disk and are
        // marked clean. Recovery must not believe those: write what is dirty, forget the rest, read the disk.
        file.sync_data().map_err(|source| whole("sync the heap file", source))?;
        let forget = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        forget.map_err(|errno| whole("drop the heap file from the page cache", errno.into()))?;
        Ok(Self { file, length })
    }
}

fn failed(action: &str, path: &Path, source: io::Error) -> MediaError {
    MediaError::new(format!("{action} {}", path.display()), 0, 0, source)
}

/// Length in bytes; by seeking, since the metadata of a block device says 0.
pub(super) fn size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

impl Media for FileMedia {
    fn len(&self) -> u64 {
        self.length
    }

    fn kind(&self) -> MediaKind {
        MediaKind::File
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let result = self.file.read_exact_at(into, offset);
        result.map_err(|source| MediaError::new("read the heap file", offset, into.len(), source))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        let result = self.file.write_all_at(bytes, offset);
        result.map_err(|source| MediaError::new("write the heap file", offset, bytes.len(), source))
    }

    fn fence(&self) -> Result<(), MediaError> {
        self.file.sync_data().map_err(|source| MediaError::new("sync the heap file", 0, 0, source))
    }
}
