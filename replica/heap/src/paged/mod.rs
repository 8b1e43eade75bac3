//! The persistent heap as pages on a medium: sealed, written once each, found through an index that lies on the
//! medium too. Format and reasons: `docs/HEAP.md`.

mod audit;
mod batch;
mod block;
mod catalog;
mod checkpoint;
mod error;
mod heap;
mod history;
pub mod mutants;
mod node;
mod radix;
mod recent;
mod record;
mod recovery;
mod ring;
mod seal;
mod slots;
mod snapshot;
mod store;
mod superblock;
mod writer;

pub use audit::{Audit, Owner};
pub use batch::{Batch, InvalidBatch, MAX_KEY, MAX_PAGES, MAX_SPACE, MAX_VALUE, PAGE, Page, SpaceId};
pub use block::MIN_MEDIA;
pub use error::{CommitError, OpenError, ReadError};
pub use heap::{Heap, Status};
pub use recovery::{OpenOptions, Recovery};
pub use seal::{Key, KeyId, SealError};
pub use snapshot::Snapshot;
pub use superblock::{FORMAT_VERSION, MediaId};
