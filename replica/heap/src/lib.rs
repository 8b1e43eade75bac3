//! The persistent heap: atomic, durable commits of pages and metadata to NVRAM or a file.
//!
//! A [`Heap`] keeps numbered *spaces* of 4 KiB pages (a canister's wasm memory, its stable memory) and a sorted
//! map of *metadata*. [`Heap::commit`] makes one [`Batch`] durable as a whole or not at all; when it returns,
//! the batch survives a power cut. A [`Snapshot`] reads one committed state from any thread and never blocks a
//! commit. Pages are written once, each into a free slot of the medium; an index on the medium finds them; a log
//! says what the index does not say yet. Opening reads the end of the log, whatever the heap holds.
//!
//! The medium ([`Media`]) may belong to somebody hostile: with [`Key::new`] everything on it is encrypted and
//! authenticated, and nothing read from it is believed before its tag is checked. What the heap cannot see by
//! itself is that the *whole* medium was put back to an earlier moment; a caller that keeps an epoch where the
//! owner of the medium cannot rewind it passes it as [`OpenOptions::at_least`].
//!
//! The format, byte by byte, and why its order of writes and fences is enough: `docs/HEAP.md`.
//!
//! ```
//! use heap::{Batch, Heap, Key, MemMedia, OpenOptions, PAGE, SpaceId};
//!
//! let media = MemMedia::new(1 << 20);
//! let key = Key::new([7; 32]);
//! let options = OpenOptions { create: true, ..OpenOptions::default() };
//! let (mut heap, recovery) = Heap::open(Box::new(media.clone()), &key, &options)?;
//! assert!(recovery.created);
//! let page = [9; PAGE];
//! let mut batch = Batch::new();
//! batch.put_meta(b"name", b"counter").put_page(SpaceId(1), 3, &page);
//! assert_eq!(heap.commit(&batch)?, 1);
//! drop(heap);
//!
//! let (heap, recovery) = Heap::open(Box::new(media), &key, &OpenOptions::default())?;
//! assert_eq!(recovery.epoch, 1);
//! let snapshot = heap.snapshot();
//! assert_eq!(snapshot.meta(b"name")?.as_deref(), Some(b"counter".as_slice()));
//! assert_eq!(snapshot.space_pages(SpaceId(1))?, Some(4));
//! let mut into = [0; PAGE];
//! snapshot.read_page(SpaceId(1), 3, &mut into)?;
//! assert_eq!(into, page);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod admit;
mod apply;
mod audit;
mod batch;
mod block;
mod catalog;
mod checkpoint;
mod checksum;
mod commit;
mod error;
mod fold;
mod free;
mod heap;
mod history;
mod inspect;
mod media;
mod merkle;
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
mod sync;
mod writer;

pub use audit::{Audit, Owner};
pub use batch::{Batch, InvalidBatch, MAX_KEY, MAX_PAGES, MAX_SPACE, MAX_VALUE, PAGE, Page, SpaceId};
pub use block::MIN_MEDIA;
pub use checksum::{PageSum, page_sum};
pub use error::{CommitError, OpenError, ReadError};
pub use heap::{Heap, Status};
pub use inspect::{CopyState, SuperblockCopy, SuperblockFields, inspect};
pub use media::{BarMedia, DaxMedia, FileMedia, ImageMedia, Media, MediaError, MediaKind, MemMedia, probe};
pub use merkle::{Hash, Merkle};
pub use recovery::{OpenOptions, Recovery};
pub use seal::{Key, KeyId, SealError};
pub use snapshot::{Entry, Snapshot};
pub use superblock::{FORMAT_VERSION, MediaId};
