//! What one message changes.

use std::borrow::Cow;

pub use crate::batch::{InvalidBatch, MAX_KEY, MAX_PAGES, MAX_VALUE, PAGE, Page, SpaceId};

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
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets one page; the space is made, and grown with zero pages, as needed. A page of zeros takes no room.
    pub fn put_page(&mut self, space: SpaceId, page: u64, data: &'a Page) -> &mut Self {
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

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}
