//! Frames: what an arena is a sequence of.
//!
//! A commit is one frame or several, the last one marked so; the base at the start of an arena is a commit
//! that makes the whole state from nothing. A frame authenticates its header, its payload and the tag of its
//! predecessor, so a frame that opens proves that all before it are in place and whole: nothing can be torn,
//! reordered, spliced in or left out before it.

use crate::codec::{Fields, Op};
use crate::error::OpenError;
use crate::media::Media;
use crate::seal::{Opener, SealSalt, Sealer, Tag};
use crate::store::StoreError;
use crate::superblock::Superblock;

const MAGIC: &[u8; 4] = b"RHFr";
const HEADER: usize = 64;
const TAG: usize = size_of::<Tag>();

/// A frame is closed when its payload has reached this many bytes. Changes are not split between frames.
const TARGET: usize = 256 << 10;
/// Longest payload that can come of this: bounds what recovery allocates on the word of a header.
const MAX_PAYLOAD: u64 = (TARGET + 7 + crate::MAX_KEY + crate::MAX_VALUE) as u64;

/// What a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Base = 1,
    Commit = 2,
}

struct Header {
    kind: Kind,
    last: bool,
    generation: u64,
    /// Number of the frame within its generation.
    sequence: u64,
    epoch: u64,
    /// Length of the payload in bytes.
    length: u64,
    salt: SealSalt,
    counter: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(MAGIC);
        out[4] = self.kind as u8;
        out[5] = u8::from(self.last);
        out[8..16].copy_from_slice(&self.generation.to_le_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        out[32..40].copy_from_slice(&self.length.to_le_bytes());
        out[40..56].copy_from_slice(&self.salt);
        out[56..64].copy_from_slice(&self.counter.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8; HEADER]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic: [u8; 4] = fields.array()?;
        let kind = match fields.byte()? {
            1 => Kind::Base,
            2 => Kind::Commit,
            _ => return None,
        };
        let last = match fields.byte()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let reserved = fields.u16()?;
        let header = Self {
            kind,
            last,
            generation: fields.u64()?,
            sequence: fields.u64()?,
            epoch: fields.u64()?,
            length: fields.u64()?,
            salt: fields.array()?,
            counter: fields.u64()?,
        };
        (magic == *MAGIC && reserved == 0).then_some(header)
    }
}

fn aad(header: &[u8; HEADER], chain: &Tag) -> [u8; HEADER + TAG] {
    let mut aad = [0; HEADER + TAG];
    aad[..HEADER].copy_from_slice(header);
    aad[HEADER..].copy_from_slice(chain);
    aad
}

/// Where the next frame of an arena belongs.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    generation: u64,
    alignment: u64,
    pub(crate) offset: u64,
    end: u64,
    sequence: u64,
    chain: Tag,
}

impl Cursor {
    /// At the start of a generation's arena.
    pub(crate) fn new(superblock: &Superblock) -> Self {
        let arena = superblock.arena();
        Self {
            generation: superblock.generation,
            alignment: u64::from(superblock.alignment),
            offset: arena.start,
            end: arena.end,
            sequence: 0,
            chain: superblock.seed,
        }
    }

    /// Bytes left in the arena.
    pub(crate) fn free(&self) -> u64 {
        self.end - self.offset
    }

    fn advance(&mut self, length: u64, tag: Tag) {
        self.offset += length;
        self.sequence += 1;
        self.chain = tag;
    }
}

/// Bytes that a frame takes in an arena.
fn frame_length(payload: u64, alignment: u64) -> u64 {
    (HEADER as u64 + payload + TAG as u64).next_multiple_of(alignment)
}

/// Bytes that [`write`] takes in an arena for these changes.
pub(crate) fn length<'a>(ops: impl Iterator<Item = Op<'a>>, superblock: &Superblock) -> u64 {
    let alignment = u64::from(superblock.alignment);
    let (mut whole, mut payload) = (0, 0);
    for op in ops {
        payload += op.length();
        if payload >= TARGET {
            whole += frame_length(payload as u64, alignment);
            payload = 0;
        }
    }
    whole + frame_length(payload as u64, alignment)
}

/// Seals changes into frames and writes them at the cursor; does not fence. The caller has checked with
/// [`length`] that they fit. `buffer` is only kept to spare allocations.
pub(crate) fn write<'a>(
    media: &mut dyn Media,
    sealer: &mut Sealer,
    cursor: &mut Cursor,
    (kind, epoch): (Kind, u64),
    ops: impl Iterator<Item = Op<'a>>,
    buffer: &mut Vec<u8>,
) -> Result<(), StoreError> {
    let mut emit = |last: bool, buffer: &mut Vec<u8>| {
        let once = sealer.once();
        let header = Header {
            kind,
            last,
            generation: cursor.generation,
            sequence: cursor.sequence,
            epoch,
            length: (buffer.len() - HEADER) as u64,
            salt: sealer.salt(),
            counter: once.counter(),
        };
        let header = header.encode();
        let tag = sealer.seal(once, &aad(&header, &cursor.chain), &mut buffer[HEADER..])?;
        buffer[..HEADER].copy_from_slice(&header);
        buffer.extend_from_slice(&tag);
        buffer.resize(buffer.len().next_multiple_of(cursor.alignment as usize), 0);
        debug_assert!(buffer.len() as u64 <= cursor.free(), "frames were measured before");
        media.write(cursor.offset, buffer)?;
        cursor.advance(buffer.len() as u64, tag);
        Ok::<(), StoreError>(())
    };
    let begin = |buffer: &mut Vec<u8>| {
        buffer.clear();
        buffer.resize(HEADER, 0);
    };
    begin(buffer);
    for op in ops {
        op.encode(buffer);
        if buffer.len() - HEADER >= TARGET {
            emit(false, buffer)?;
            begin(buffer);
        }
    }
    emit(true, buffer)?;
    // A module upload must not pin hundreds of megabytes.
    buffer.shrink_to(2 * TARGET);
    Ok(())
}

/// What stands at a cursor.
pub(crate) enum Found {
    /// The next frame; its payload is in the buffer. The cursor has moved behind it.
    Frame { last: bool },
    /// No authentic next frame. `torn` if the remains of one are there.
    End { torn: bool },
}

/// Reads the frame at the cursor. The header is hostile until the tag fits: it is copied once, and its length
/// is only used to bound the copy of what is then authenticated.
pub(crate) fn read(
    media: &dyn Media,
    opener: &mut Opener<'_>,
    cursor: &mut Cursor,
    (kind, epoch): (Kind, u64),
    buffer: &mut Vec<u8>,
) -> Result<Found, OpenError> {
    if cursor.free() < frame_length(0, cursor.alignment) {
        return Ok(Found::End { torn: false });
    }
    let mut bytes = [0; HEADER];
    media.read(cursor.offset, &mut bytes)?;
    let expected = |header: &Header| {
        header.kind == kind
            && header.generation == cursor.generation
            && header.sequence == cursor.sequence
            && header.epoch == epoch
    };
    let Some(header) = Header::parse(&bytes).filter(expected) else {
        return Ok(Found::End { torn: false });
    };
    if header.length > MAX_PAYLOAD || frame_length(header.length, cursor.alignment) > cursor.free() {
        return Ok(Found::End { torn: true });
    }
    let length = header.length as usize;
    buffer.resize(length + TAG, 0);
    media.read(cursor.offset + HEADER as u64, buffer)?;
    if opener.open(&header.salt, header.counter, &aad(&bytes, &cursor.chain), buffer)?.is_none() {
        return Ok(Found::End { torn: true });
    }
    let mut tag = [0; TAG];
    tag.copy_from_slice(&buffer[length..]);
    buffer.truncate(length);
    cursor.advance(frame_length(header.length, cursor.alignment), tag);
    Ok(Found::Frame { last: header.last })
}
