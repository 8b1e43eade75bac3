//! Where a heap is stored.

mod bar;
mod dax;
mod file;
mod mapping;
mod memory;
mod overlay;
pub(crate) mod stream;

pub use bar::BarMedia;
pub use dax::{DaxMedia, probe};
pub use file::FileMedia;
pub use memory::MemMedia;
pub use overlay::ImageMedia;

use std::io;

use thiserror::Error;

use crate::batch::Page;
use crate::checksum::{PageSum, page_sum};

/// Granularity of [`Media::write`] in bytes: one cache line.
const LINE: usize = 64;

/// What a medium is, hence what a fence on it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaKind {
    /// Private memory of this process: survives nothing.
    Memory,
    /// A shared memory file (tmpfs): survives the process, not the machine.
    SharedMemory,
    /// A PCI BAR backed by the host's memory: as durable as what the host put behind it (NVDIMM: power cuts).
    Bar,
    /// A file on persistent memory, mapped with MAP_SYNC: survives power cuts.
    Dax,
    /// A file on persistent memory whose file system needs fsync: survives power cuts.
    DaxFsync,
    /// A file or block device, fenced by fdatasync: survives power cuts.
    File,
}

impl std::fmt::Display for MediaKind {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Memory => "memory",
            Self::SharedMemory => "shared-memory",
            Self::Bar => "bar",
            Self::Dax => "dax",
            Self::DaxFsync => "dax-fsync",
            Self::File => "file",
        })
    }
}

/// An operation on a medium failed.
#[derive(Debug, Error)]
#[error("cannot {action} ({length} bytes at {offset})")]
pub struct MediaError {
    /// What was tried: a verb and its object.
    pub action: String,
    /// First byte concerned.
    pub offset: u64,
    /// Number of bytes concerned.
    pub length: u64,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl MediaError {
    pub(crate) fn new(action: impl Into<String>, offset: u64, length: usize, source: io::Error) -> Self {
        Self { action: action.into(), offset, length: length as u64, source }
    }
}

/// A range of durable bytes.
///
/// Between two fences, writes may reach the medium in any order, in part (whole 8-byte words), or not at all.
/// A fence that returned `Ok` promises that all earlier writes are durable. After an error from `write` or
/// `fence` nothing is promised any more: the heap stops using the medium.
#[expect(clippy::len_without_is_empty, reason = "no medium is empty")]
pub trait Media: Send + Sync {
    /// Length in bytes; does not change.
    fn len(&self) -> u64;

    /// What this medium is.
    fn kind(&self) -> MediaKind;

    /// Copies bytes into private memory, each fetched once: whoever shares the medium may change it meanwhile.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError>;

    /// Writes bytes; offset and length are multiples of 64.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError>;

    /// Writes a page and gives its checksum: [`page_sum`]. `next` will be written after it, so a medium in memory may
    /// fetch that meanwhile.
    fn write_page_summed(&self, offset: u64, page: &Page, next: &Page) -> Result<PageSum, MediaError> {
        let _ = next;
        self.write(offset, page)?;
        Ok(page_sum(page))
    }

    /// Makes all earlier writes durable.
    fn fence(&self) -> Result<(), MediaError>;
}

/// Checks that a range lies within a medium kept in memory.
fn range(
    action: &str,
    media: usize,
    offset: u64,
    length: usize,
) -> Result<std::ops::Range<usize>, MediaError> {
    let start = usize::try_from(offset).ok();
    let range = start.and_then(|start| Some(start..start.checked_add(length)?));
    range
        .filter(|range| range.end <= media)
        .ok_or_else(|| MediaError::new(action, offset, length, io::ErrorKind::UnexpectedEof.into()))
}

/// Like [`range`], and refuses what does not lie on whole cache lines.
fn lines(
    action: &str,
    media: usize,
    offset: u64,
    length: usize,
) -> Result<std::ops::Range<usize>, MediaError> {
    let range = range(action, media, offset, length)?;
    if range.start % LINE == 0 && length.is_multiple_of(LINE) {
        return Ok(range);
    }
    Err(MediaError::new(action, offset, length, io::ErrorKind::InvalidInput.into()))
}
