//! The fixed head of the medium: two superblock copies and two watermark cells.

use crate::codec::Fields;
use crate::media::MediaKind;
use crate::seal::{KeyId, Keys, MacKey, SealError, Tag};

/// Version of the on-media format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Offsets of the two superblock copies. The first is always written, and fenced, before the second.
pub(crate) const SUPERBLOCKS: [u64; 2] = [0, 4096];
/// Offsets of the two watermark cells. Each lies in a 4 KiB block of its own: one bad sector harms one cell.
pub(crate) const WATERMARKS: [u64; 2] = [8192, 12288];
/// Offset of the first arena.
const ARENAS: u64 = 16384;
/// Smallest medium in bytes: the head and two arenas of 16 KiB.
pub const MIN_MEDIA: u64 = ARENAS + 2 * 16384;

pub(crate) const BLOCK: usize = 4096;
const MAGIC: &[u8; 16] = b"REDOUBT HEAP\r\n\x1a\n";
const SIGNED: usize = 96;
pub(crate) const SUPERBLOCK: usize = SIGNED + 32;
pub(crate) const WATERMARK: usize = 64;

/// Random name that a medium gets when it is initialised.
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

/// Where the arenas lie on a medium of a given length.
pub(crate) fn arena(media_length: u64, generation: u64) -> std::ops::Range<u64> {
    let length = media_length.saturating_sub(ARENAS) / 2 / 4096 * 4096;
    let start = ARENAS + (generation & 1) * length;
    start..start + length
}

/// Frames begin at multiples of this many bytes, so that writing a frame never touches the smallest unit that
/// the medium may tear (cache line, disk block) of one that is already durable.
pub(crate) fn frame_alignment(kind: MediaKind) -> u32 {
    match kind {
        MediaKind::Memory | MediaKind::SharedMemory | MediaKind::Bar | MediaKind::Dax => 64,
        MediaKind::File | MediaKind::DaxFsync => 4096,
    }
}

/// Says which generation is current. Generation 0 marks an initialisation that has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) alignment: u32,
    pub(crate) media: MediaId,
    /// Length of the medium in bytes when it was initialised; fixes where the arenas lie.
    pub(crate) length: u64,
    pub(crate) generation: u64,
    /// Epoch of the base at the start of the arena.
    pub(crate) base_epoch: u64,
    /// Random start of the chain of tags, so that no frame of another generation fits in.
    pub(crate) seed: Tag,
}

/// What one superblock copy turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copy {
    Valid(Superblock),
    /// All zeros.
    Blank,
    /// Not ours: no heap ever wrote this.
    Foreign,
    /// Authentic, but of another format version.
    Version(u32),
    /// Intact magic, another key's name.
    OtherKey(KeyId),
    /// Ours, torn or damaged.
    Damaged,
}

impl Superblock {
    pub(crate) fn arena(&self) -> std::ops::Range<u64> {
        arena(self.length, self.generation)
    }

    pub(crate) fn encode(&self, keys: &Keys) -> [u8; SUPERBLOCK] {
        let mut out = [0; SUPERBLOCK];
        out[..16].copy_from_slice(MAGIC);
        out[16..20].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[20..24].copy_from_slice(&self.alignment.to_le_bytes());
        out[24..40].copy_from_slice(&keys.id.0);
        out[40..56].copy_from_slice(&self.media.0);
        out[56..64].copy_from_slice(&self.length.to_le_bytes());
        out[64..72].copy_from_slice(&self.generation.to_le_bytes());
        out[72..80].copy_from_slice(&self.base_epoch.to_le_bytes());
        out[80..96].copy_from_slice(&self.seed);
        let mac = keys.superblock.sign(&out[..SIGNED]);
        out[SIGNED..].copy_from_slice(&mac);
        out
    }
}

impl Copy {
    pub(crate) fn parse(block: &[u8; BLOCK], keys: &Keys) -> Self {
        if block.iter().all(|byte| *byte == 0) {
            return Self::Blank;
        }
        let (content, rest) = block.split_at(SUPERBLOCK);
        if content.starts_with(MAGIC) {
            return Self::parse_ours(content, keys).unwrap_or(Self::Damaged);
        }
        // A torn first write leaves nothing behind the superblock. Anything else was never ours and must not be
        // overwritten.
        let ours = torn(content, MAGIC) && rest.iter().all(|byte| *byte == 0);
        if ours { Self::Damaged } else { Self::Foreign }
    }

    fn parse_ours(content: &[u8], keys: &Keys) -> Option<Self> {
        let (signed, mac) = content.split_at_checked(SIGNED)?;
        let mut fields = Fields(signed);
        let _magic: [u8; 16] = fields.array()?;
        let version = fields.u32()?;
        let alignment = fields.u32()?;
        let key = KeyId(fields.array()?);
        if !keys.superblock.verify(signed, mac) {
            // A torn write leaves whole or zero words of our own name, which are not another's.
            return (!torn(&key.0, &keys.id.0)).then_some(Self::OtherKey(key));
        }
        // Every version keeps magic, version, key name and MAC in place, so this is authentic, not damage.
        if version != FORMAT_VERSION {
            return Some(Self::Version(version));
        }
        let superblock = Superblock {
            alignment,
            media: MediaId(fields.array()?),
            length: fields.u64()?,
            generation: fields.u64()?,
            base_epoch: fields.u64()?,
            seed: fields.array()?,
        };
        let sound = alignment.is_power_of_two() && alignment >= 64 && superblock.length >= MIN_MEDIA;
        sound.then_some(Self::Valid(superblock))
    }
}

/// Whether bytes may be what a torn write of `ours` left on a blank medium: each 8-byte word whole or zero.
fn torn(found: &[u8], ours: &[u8]) -> bool {
    std::iter::zip(found.chunks_exact(8), ours.chunks_exact(8))
        .all(|(found, ours)| found == ours || found == [0; 8])
}

/// The watermark says that all commits up to an epoch have been durable. Commits alternate between the two
/// cells, and a cell is written after the fence that made its commit durable, so at most one can be torn.
pub(crate) fn encode_watermark(epoch: u64, key: &MacKey) -> [u8; WATERMARK] {
    let mut out = [0; WATERMARK];
    out[..8].copy_from_slice(&epoch.to_le_bytes());
    let mac = key.sign(&out[..32]);
    out[32..].copy_from_slice(&mac);
    out
}

pub(crate) fn parse_watermark(cell: &[u8; WATERMARK], key: &MacKey) -> Option<u64> {
    let (signed, mac) = cell.split_at(32);
    if key.verify(signed, mac) { Fields(signed).u64() } else { None }
}

/// The cell that takes an epoch.
pub(crate) fn watermark_offset(epoch: u64) -> u64 {
    WATERMARKS[usize::from(epoch & 1 == 1)]
}

/// A new superblock for generation 0.
pub(crate) fn initial(length: u64, kind: MediaKind) -> Result<Superblock, SealError> {
    let media = MediaId(crate::seal::random()?);
    let alignment = frame_alignment(kind);
    Ok(Superblock { alignment, media, length, generation: 0, base_epoch: 0, seed: [0; 16] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Key;

    fn keys(byte: u8) -> Keys {
        Keys::derive(&Key::new([byte; 32])).unwrap()
    }

    fn block(superblock: &Superblock, keys: &Keys) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..SUPERBLOCK].copy_from_slice(&superblock.encode(keys));
        block
    }

    #[test]
    fn each_kind_of_copy_is_told_apart() {
        let ours = keys(1);
        let superblock = Superblock { generation: 5, ..initial(1 << 20, MediaKind::File).unwrap() };
        let good = block(&superblock, &ours);
        assert_eq!(Copy::parse(&good, &ours), Copy::Valid(superblock));
        assert_eq!(Copy::parse(&good, &keys(2)), Copy::OtherKey(ours.id));
        assert_eq!(Copy::parse(&[0; BLOCK], &ours), Copy::Blank);
        let mut torn = good;
        torn[8..40].fill(0);
        assert_eq!(Copy::parse(&torn, &ours), Copy::Damaged);
        let mut torn = good;
        torn[32..48].fill(0);
        assert_eq!(Copy::parse(&torn, &ours), Copy::Damaged, "half of our key's name");
        let mut foreign = [0; BLOCK];
        foreign[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(Copy::parse(&foreign, &ours), Copy::Foreign);
        let mut newer = good;
        newer[16] = 2;
        assert_eq!(Copy::parse(&newer, &ours), Copy::Damaged, "not authentic");
        let mac = ours.superblock.sign(&newer[..SIGNED]);
        newer[SIGNED..SUPERBLOCK].copy_from_slice(&mac);
        assert_eq!(Copy::parse(&newer, &ours), Copy::Version(2));
    }

    #[test]
    fn arenas_do_not_overlap_and_fit() {
        for length in [MIN_MEDIA, MIN_MEDIA + 4095, 1 << 20, (1 << 20) + 12288, 512 << 30] {
            let (even, odd) = (arena(length, 4), arena(length, 5));
            assert_eq!((even.start, even.end), (16384, odd.start));
            assert!(odd.end <= length && length - odd.end < 8192);
            assert_eq!(even.end - even.start, odd.end - odd.start);
        }
    }
}
