//! The superblock, in two copies, and the watermark cells.

use super::block::{REF, Ref};
use super::node::Fields;
use super::ring::Place;
use super::seal::{Key, KeyId, Nonces, SealError, Sealer};
use super::slots::FreeList;

/// Version of the format that this program writes and reads.
pub const FORMAT_VERSION: u32 = 2;

const MAGIC: [u8; 16] = *b"REDOUBT HEAP\r\n\x1a\n";
/// Bytes of a superblock that are written; the rest of its block is not used.
pub(crate) const SUPERBLOCK: usize = 512;
const SIGNED: usize = SUPERBLOCK - 32;
/// No count comes this far, so that none overflows.
const FAR: u64 = 1 << 62;
/// Bytes of a watermark cell.
pub(crate) const WATERMARK: usize = 64;

/// Name of a medium, random, given when it is initialised.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MediaId(pub [u8; 16]);

impl std::fmt::Display for MediaId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl std::fmt::Debug for MediaId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "MediaId({self})")
    }
}

/// One durable checkpoint, and where the log goes on from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) alignment: u32,
    pub(crate) key: KeyId,
    pub(crate) media: MediaId,
    /// Length of the medium in bytes.
    pub(crate) length: u64,
    /// Bytes of the ring.
    pub(crate) ring: u64,
    /// Counts superblocks; the copy with the higher number holds.
    pub(crate) generation: u64,
    /// Last epoch that the checkpoint holds.
    pub(crate) epoch: u64,
    /// The data key, wrapped under the caller's.
    pub(crate) data_key: [u8; 60],
    /// Where the records after the checkpoint begin.
    pub(crate) log: Place,
    pub(crate) free: FreeList,
    pub(crate) catalog: (u8, Ref),
    pub(crate) shares: (u8, Ref),
    /// Number of the next tree to be freed.
    pub(crate) next_trash: u64,
}

/// What one of the two copies turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "two of them exist, at open")]
pub(crate) enum Copy {
    Valid(Superblock),
    Blank,
    /// Signed under another key.
    OtherKey(KeyId),
    /// Signed under our key, but of another version.
    Version(u32),
    /// Not a heap's.
    Foreign,
    Damaged,
}

impl Superblock {
    pub(crate) fn encode(&self, key: &Key) -> [u8; SUPERBLOCK] {
        let mut bytes = Vec::with_capacity(SUPERBLOCK);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend(self.alignment.to_le_bytes());
        bytes.extend(self.key.0);
        bytes.extend(self.media.0);
        for number in [self.length, self.ring, self.generation, self.epoch] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.data_key);
        bytes.extend(self.free.fresh.to_le_bytes());
        for number in [self.free.listed, self.log.at, self.log.number, self.next_trash] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.log.tag);
        bytes.extend([self.catalog.0, self.shares.0, 0, 0, 0, 0, 0, 0]);
        for reference in [self.catalog.1, self.shares.1, self.free.chain] {
            bytes.extend(reference.encode());
        }
        let mut out = [0; SUPERBLOCK];
        out[..bytes.len()].copy_from_slice(&bytes);
        let mac = key.sign(&out[..SIGNED]);
        out[SIGNED..].copy_from_slice(&mac);
        out
    }

    /// What bytes say that nobody has authenticated: version and fields.
    pub(crate) fn peek(bytes: &[u8; SUPERBLOCK]) -> Option<(u32, Self)> {
        let mut fields = Fields(bytes);
        (fields.array()? == MAGIC).then_some(())?;
        Some((fields.u32()?, Self::decode(bytes)?))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        fields.take(MAGIC.len() + 4)?;
        let alignment = fields.u32()?;
        let (key, media) = (KeyId(fields.array()?), MediaId(fields.array()?));
        let (length, ring, generation, epoch) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let data_key = fields.array()?;
        let fresh = fields.u32()?;
        let (listed, at, number, next_trash) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let tag = fields.array()?;
        let [catalog, shares, ..] = fields.array::<8>()?;
        let mut reference = || fields.array::<REF>().map(|bytes| Ref::decode(&bytes));
        let (catalog, shares) = ((catalog, reference()?), (shares, reference()?));
        let free = FreeList { fresh, chain: reference()?, listed };
        let log = Place { at, number, tag };
        let counts = [length, generation, epoch, at, number, next_trash, listed];
        let sound = counts.iter().all(|count| *count < FAR)
            && (64..=4096).contains(&alignment)
            && alignment.is_power_of_two()
            && ring >= 4096
            && ring.is_multiple_of(4096)
            && ring < length
            && at.is_multiple_of(alignment.into())
            && fresh >= 1
            && [&catalog, &shares].iter().all(|(height, root)| *height > 0 || root.is_none());
        let superblock = Self {
            alignment,
            key,
            media,
            length,
            ring,
            generation,
            epoch,
            data_key,
            log,
            free,
            catalog,
            shares,
            next_trash,
        };
        sound.then_some(superblock)
    }
}

impl Copy {
    pub(crate) fn parse(bytes: &[u8; SUPERBLOCK], key: &Key) -> Self {
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Blank;
        }
        let mut fields = Fields(bytes);
        let magic = fields.array::<16>().unwrap_or_default();
        let version = fields.u32().unwrap_or_default();
        let id = fields.take(4).and_then(|_| fields.array()).map(KeyId);
        if key.verify(&bytes[..SIGNED], &bytes[SIGNED..]) && magic == MAGIC {
            if version != FORMAT_VERSION {
                return Self::Version(version);
            }
            return Superblock::decode(bytes).map_or(Self::Damaged, Self::Valid);
        }
        match id {
            _ if !torn(&magic, &MAGIC) => Self::Foreign,
            Some(id) if magic == MAGIC && !torn(&id.0, &key.id().0) => Self::OtherKey(id),
            _ => Self::Damaged,
        }
    }
}

/// Whether bytes may be what a torn write of `ours` left on a blank medium: each 8-byte word whole or zero.
fn torn(found: &[u8], ours: &[u8]) -> bool {
    std::iter::zip(found.chunks(8), ours.chunks(8))
        .all(|(found, ours)| found == ours || found.iter().all(|byte| *byte == 0))
}

/// The watermark says that all commits up to an epoch have been durable. It is written after the fence that
/// made them so, to the two cells in turn, so at most one can be torn.
pub(crate) fn encode_watermark(
    sealer: &Sealer,
    nonces: &mut Nonces,
    epoch: u64,
) -> Result<[u8; WATERMARK], SealError> {
    let nonce = nonces.next()?;
    let mut signed = [0; 20];
    signed[..8].copy_from_slice(&epoch.to_le_bytes());
    signed[8..].copy_from_slice(&nonce);
    let tag = sealer.seal_record(nonce, &mut signed, 20)?;
    let mut out = [0; WATERMARK];
    out[..20].copy_from_slice(&signed);
    out[20..36].copy_from_slice(&tag);
    Ok(out)
}

pub(crate) fn parse_watermark(sealer: &Sealer, cell: &[u8; WATERMARK]) -> Option<u64> {
    let mut fields = Fields(cell);
    let mut signed = fields.array::<20>()?;
    let tag = fields.array()?;
    let mut parts = Fields(&signed);
    let (epoch, nonce) = (parts.u64()?, parts.array()?);
    sealer.open_record(nonce, &mut signed, 20, &tag).then_some(epoch)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::block::SUPERBLOCKS;
    use crate::{Heap, MemMedia, OpenError, OpenOptions};

    /// A newer program may have begun to convert the medium, so one new copy is enough to refuse it.
    #[test]
    fn a_newer_version_is_refused_even_beside_an_older_copy() {
        for key in [Key::plain(), Key::new([7; 32])] {
            for copy in SUPERBLOCKS {
                let media = MemMedia::new(1 << 20);
                let options = OpenOptions { create: true, ..OpenOptions::default() };
                drop(Heap::open(Box::new(media.clone()), &key, &options).unwrap());
                media.with_bytes(|bytes| {
                    let bytes = &mut bytes[copy as usize..][..SUPERBLOCK];
                    bytes[16..20].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
                    let mac = key.sign(&bytes[..SIGNED]);
                    bytes[SIGNED..].copy_from_slice(&mac);
                });
                let refused = Heap::open(Box::new(media), &key, &options).unwrap_err();
                let expected = FORMAT_VERSION + 1;
                assert!(
                    matches!(refused, OpenError::UnknownVersion { found } if found == expected),
                    "{refused}"
                );
            }
        }
    }
}
