//! What execution uses of the heap.

pub(crate) use heap::{Batch, CommitError, Heap, PAGE, Page, ReadError, Snapshot, SpaceId, Status};
