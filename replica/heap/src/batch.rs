//! What one message changes, and the limits it must keep.

use thiserror::Error;

/// Size of one page in bytes.
pub const PAGE: usize = 4096;

/// Content of one page.
pub type Page = [u8; PAGE];

/// Longest metadata key in bytes.
pub const MAX_KEY: usize = 1024;

/// Longest metadata value in bytes: above the 100 MiB that a wasm module may have on the Internet Computer.
pub const MAX_VALUE: usize = 256 << 20;

/// Most pages in one space: 2^36 pages of 4 KiB are a 48-bit address space.
pub const MAX_PAGES: u64 = 1 << 36;

/// Number of a space. The caller gives out the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(pub u64);

/// One change within a batch. Changes apply in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets one page; the space is made, and grown with zero pages, as needed.
    Page {
        /// Space that changes.
        space: SpaceId,
        /// Page number within the space.
        page: u64,
        /// New content.
        data: Box<Page>,
    },
    /// Sets the length of a space in pages (made as needed); new pages are zero, dropped ones are gone.
    Resize {
        /// Space that changes.
        space: SpaceId,
        /// New length in pages.
        pages: u64,
    },
    /// Removes a space.
    Drop {
        /// Space to remove.
        space: SpaceId,
    },
    /// Sets a metadata value.
    Put {
        /// Key, at most [`MAX_KEY`] bytes.
        key: Vec<u8>,
        /// Value, at most [`MAX_VALUE`] bytes.
        value: Vec<u8>,
    },
    /// Removes a metadata value.
    Delete {
        /// Key.
        key: Vec<u8>,
    },
}

/// What one message changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes, in order.
    pub changes: Vec<Change>,
}

/// A batch that breaks a limit of the format. Nothing was committed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InvalidBatch {
    /// A metadata key is too long.
    #[error("a metadata key has {length} bytes, at most {MAX_KEY} are allowed; use a shorter key")]
    KeyTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// A metadata value is too long.
    #[error(
        "a metadata value has {length} bytes, at most {MAX_VALUE} are allowed; split it or put it into pages"
    )]
    ValueTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The number of a space is one of the heap's own.
    #[error("space {} has a number above {}, which the heap keeps for itself", space.0, u64::MAX >> 8)]
    SpaceNumber {
        /// The space.
        space: SpaceId,
    },
    /// A space would become too long.
    #[error("space {} would have {pages} pages, at most {MAX_PAGES} are allowed", space.0)]
    SpaceTooLong {
        /// The space.
        space: SpaceId,
        /// Pages it would have.
        pages: u64,
    },
}

impl Change {
    pub(crate) fn check(&self) -> Result<(), InvalidBatch> {
        match self {
            Self::Put { key, .. } | Self::Delete { key } if key.len() > MAX_KEY => {
                Err(InvalidBatch::KeyTooLong { length: key.len() })
            }
            Self::Put { value, .. } if value.len() > MAX_VALUE => {
                Err(InvalidBatch::ValueTooLong { length: value.len() })
            }
            Self::Page { space, page, .. } if *page >= MAX_PAGES => {
                Err(InvalidBatch::SpaceTooLong { space: *space, pages: page.saturating_add(1) })
            }
            Self::Resize { space, pages } if *pages > MAX_PAGES => {
                Err(InvalidBatch::SpaceTooLong { space: *space, pages: *pages })
            }
            _ => Ok(()),
        }
    }
}

impl Batch {
    pub(crate) fn check(&self) -> Result<(), InvalidBatch> {
        self.changes.iter().try_for_each(Change::check)
    }
}
