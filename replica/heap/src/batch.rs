//! What one message changes, and the limits it must keep.

use std::borrow::Cow;

use thiserror::Error;

use crate::media::stream;

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

/// Highest number of a space that callers may use; those above are the heap's own.
pub const MAX_SPACE: u64 = u64::MAX >> 8;

/// One change within a batch.
#[derive(Debug, Clone)]
pub(crate) enum Op<'a> {
    Page { space: u64, page: u64, data: &'a Page },
    Resize { space: u64, pages: u64 },
    Delete { space: u64 },
    Clone { from: u64, to: u64 },
    Put { key: Cow<'a, [u8]>, value: Cow<'a, [u8]> },
    Remove { key: Cow<'a, [u8]> },
}

/// Changes that become durable together, in order. Pages are borrowed: committing copies them once, to the
/// medium.
#[derive(Debug, Clone, Default)]
pub struct Batch<'a> {
    pub(crate) ops: Vec<Op<'a>>,
    pub(crate) leave_room: bool,
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets one page; the space is made, and grown with zero pages, as needed. A page of zeros takes no room.
    pub fn put_page(&mut self, space: SpaceId, page: u64, data: &'a Page) -> &mut Self {
        if self.ops.is_empty() {
            // The following ones are fetched while the one before is written.
            stream::fetch(data);
        }
        self.ops.push(Op::Page { space: space.0, page, data });
        self
    }

    /// Sets the length of a space in pages (made as needed); new pages are zero, cut ones are gone.
    pub fn resize(&mut self, space: SpaceId, pages: u64) -> &mut Self {
        self.ops.push(Op::Resize { space: space.0, pages });
        self
    }

    /// Removes a space.
    pub fn delete_space(&mut self, space: SpaceId) -> &mut Self {
        self.ops.push(Op::Delete { space: space.0 });
        self
    }

    /// Makes `to` a copy of `from` as it is at this place of the batch. Both share their pages until one of
    /// them writes; what `to` held is gone. If there is no `from`, there will be no `to`.
    pub fn clone_space(&mut self, from: SpaceId, to: SpaceId) -> &mut Self {
        self.ops.push(Op::Clone { from: from.0, to: to.0 });
        self
    }

    /// Sets a metadata value. Keys have at most [`MAX_KEY`] bytes, values at most [`MAX_VALUE`].
    pub fn put_meta(&mut self, key: impl Into<Cow<'a, [u8]>>, value: impl Into<Cow<'a, [u8]>>) -> &mut Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into() });
        self
    }

    /// Removes a metadata value.
    pub fn delete_meta(&mut self, key: impl Into<Cow<'a, [u8]>>) -> &mut Self {
        self.ops.push(Op::Remove { key: key.into() });
        self
    }

    /// Has the batch refused as [`CommitError::Full`](crate::CommitError::Full) unless a 32nd of the medium, at least 1
    /// and at most 16 MiB, stays free: room for the batches without this, by which a full medium is made to go on.
    pub fn leave_room(&mut self) -> &mut Self {
        self.leave_room = true;
        self
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
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
    #[error("space {} has a number above {}, which the heap keeps for itself", space.0, MAX_SPACE)]
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
