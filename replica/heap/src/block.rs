//! References to blocks of 4096 bytes, and where things lie on the medium.

use super::batch::PAGE;
use super::seal::{NonceBytes, Tag};
use crate::media::MediaKind;

/// Bytes of a reference on the medium.
pub(crate) const REF: usize = 32;

/// Most slots that references can name: 4 TiB of pages.
pub(crate) const MAX_SLOTS: u32 = (1 << 30) - 1;

/// Names a block: its slot, and nonce and tag that only its right content has. Slot 0 means none.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ref {
    slot: u32,
    nonce: NonceBytes,
    tag: Tag,
}

impl Ref {
    pub(crate) const NONE: Self = Self { slot: 0, nonce: [0; 12], tag: [0; 16] };

    pub(crate) fn new(slot: u32, nonce: NonceBytes, tag: Tag) -> Self {
        Self { slot, nonce, tag }
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    pub(crate) fn is_none(&self) -> bool {
        self.slot == 0
    }

    /// `None` for the reference to nothing.
    pub(crate) fn some(self) -> Option<Self> {
        (!self.is_none()).then_some(self)
    }

    pub(crate) fn nonce(&self) -> &NonceBytes {
        &self.nonce
    }

    pub(crate) fn tag(&self) -> &Tag {
        &self.tag
    }

    pub(crate) fn encode(&self) -> [u8; REF] {
        let mut out = [0; REF];
        out[..4].copy_from_slice(&self.slot.to_le_bytes());
        out[4..16].copy_from_slice(&self.nonce);
        out[16..].copy_from_slice(&self.tag);
        out
    }

    pub(crate) fn decode(bytes: &[u8; REF]) -> Self {
        let (slot, rest) = bytes.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let mut reference = Self { slot: u32::from_le_bytes(*slot), ..Self::NONE };
        reference.nonce.copy_from_slice(&rest[..12]);
        reference.tag.copy_from_slice(&rest[12..]);
        reference
    }
}

impl std::fmt::Debug for Ref {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "slot {}", self.slot)
    }
}

const BLOCK: u64 = PAGE as u64;

/// Where the superblock copies lie, in bytes.
pub(crate) const SUPERBLOCKS: [u64; 2] = [0, BLOCK];
/// Where the watermark cells lie, in bytes.
pub(crate) const WATERMARKS: [u64; 2] = [2 * BLOCK, 3 * BLOCK];
/// Where the ring begins, in bytes.
pub(crate) const RING: u64 = 4 * BLOCK;

/// Least length of a medium in bytes.
pub const MIN_MEDIA: u64 = RING + MIN_RING + 96 * BLOCK;
const MIN_RING: u64 = 32 << 10;
const MAX_RING: u64 = 256 << 20;

/// Division of a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes of the ring.
    pub(crate) ring: u64,
    /// Number of slots; they are numbered from 1.
    pub(crate) slots: u32,
    /// Unit of writes that may tear: frames begin at multiples of it.
    pub(crate) alignment: u64,
}

impl Geometry {
    /// Ring of a new medium: the 32nd part, so that one commit can rewrite all pages.
    pub(crate) fn new_ring(length: u64) -> u64 {
        (length / 32 / BLOCK * BLOCK).clamp(MIN_RING, MAX_RING)
    }

    pub(crate) fn new(length: u64, ring: u64, alignment: u64) -> Self {
        let slots = length.saturating_sub(RING + ring) / BLOCK;
        Self { ring, slots: u32::try_from(slots).unwrap_or(MAX_SLOTS).min(MAX_SLOTS), alignment }
    }

    /// Where a slot lies, in bytes; `None` if there is no such slot.
    pub(crate) fn offset(&self, slot: u32) -> Option<u64> {
        (slot >= 1 && slot <= self.slots).then(|| RING + self.ring + (u64::from(slot) - 1) * BLOCK)
    }
}

/// Alignment of frames: writing one must never touch a cache line or disk block that holds a durable one.
pub(crate) fn frame_alignment(kind: MediaKind) -> u64 {
    match kind {
        MediaKind::File | MediaKind::DaxFsync => BLOCK,
        MediaKind::Memory | MediaKind::SharedMemory | MediaKind::Bar | MediaKind::Dax => 64,
    }
}
