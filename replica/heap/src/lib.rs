//! The persistent heap: sealed, atomic, durable commits of pages and metadata to NVRAM.
//!
//! A [`Heap`] holds the last committed image in RAM: numbered *spaces* of 4 KiB pages (a canister's wasm
//! memory, its stable memory) and a sorted map of small *metadata* values. [`Heap::commit`] makes one
//! [`Batch`] durable as a whole or not at all; when it returns, the batch survives a power cut.
//!
//! The medium ([`Media`]) belongs to somebody hostile: everything on it is encrypted and authenticated, and
//! nothing read from it is believed before its tag is checked. What the heap cannot see by itself is that the
//! *whole* medium was put back to an earlier moment; a caller that keeps an epoch where the owner of the
//! medium cannot rewind it passes it as [`OpenOptions::at_least`].
//!
//! The format, byte by byte, and why its order of writes and fences is enough: `docs/HEAP.md`.
//!
//! ```
//! use heap::{Batch, Change, Heap, Key, MemMedia, OpenOptions, SpaceId};
//!
//! let media = MemMedia::new(1 << 20);
//! let key = Key::new([7; 32]);
//! let options = OpenOptions { create: true, ..OpenOptions::default() };
//! let (mut heap, recovery) = Heap::open(Box::new(media.clone()), &key, &options)?;
//! assert!(recovery.created);
//! let put = Change::Put { key: b"name".to_vec(), value: b"counter".to_vec() };
//! let page = Change::Page { space: SpaceId(1), page: 3, data: Box::new([9; heap::PAGE]) };
//! assert_eq!(heap.commit(Batch { changes: vec![put, page] })?, 1);
//! drop(heap);
//!
//! let (heap, recovery) = Heap::open(Box::new(media), &key, &OpenOptions::default())?;
//! assert_eq!(recovery.epoch, 1);
//! assert_eq!(heap.meta(b"name"), Some(b"counter".as_slice()));
//! assert_eq!(heap.space(SpaceId(1)).map(|space| (space.pages(), space.page(3)[0])), Some((4, 9)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod codec;
mod error;
mod frame;
mod heap;
mod image;
mod media;
pub mod paged;
mod recovery;
mod seal;
mod store;
mod superblock;

pub use batch::{Batch, Change, InvalidBatch, MAX_KEY, MAX_PAGES, MAX_VALUE, PAGE, Page, SpaceId};
pub use error::{CommitError, OpenError};
pub use heap::{Heap, Status};
pub use image::Space;
pub use media::{BarMedia, FileMedia, Media, MediaError, MediaKind, MemMedia};
pub use recovery::{OpenOptions, Recovery, TornTail};
pub use seal::{Key, KeyId, SealError};
pub use superblock::{FORMAT_VERSION, MIN_MEDIA, MediaId};
