//! The commit log: frames in a ring, each vouching for the one before.

use super::block::{Geometry, RING};
use super::error::WriteError;
use super::mutants::{self, Mutant};
use super::node::Fields;
use super::seal::{Nonces, Sealer, Tag};
use super::store::Store;
use crate::media::{Media, MediaError};

/// Bytes of a frame before its payload.
pub(crate) const HEADER: usize = 64;
const TAG: usize = 16;
/// The tag of the frame before stands before the header while a frame is sealed.
const BEFORE: usize = TAG;
const MAGIC: [u8; 4] = *b"RHL2";
/// Payload at which a frame is closed: a quarter of the ring, at most 256 KiB.
fn most_payload(geometry: &Geometry) -> usize {
    (geometry.ring / 4).min(256 << 10) as usize
}

/// A place in the log: all that is needed to write or read the next frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bytes since the ring was made; modulo its length the offset within it.
    pub(crate) at: u64,
    /// Number of the next frame.
    pub(crate) number: u64,
    /// Tag of the frame before.
    pub(crate) tag: Tag,
}

/// The end of the log that is written.
pub(crate) struct Log {
    pub(crate) head: Place,
    /// From here on the log is needed.
    pub(crate) tail: u64,
    buffer: Vec<u8>,
}

impl Log {
    pub(crate) fn new(head: Place, tail: u64) -> Self {
        Self { head, tail, buffer: Vec::new() }
    }

    /// Bytes of the ring that are needed.
    pub(crate) fn used(&self) -> u64 {
        self.head.at - self.tail
    }

    /// Whether a record with so many bytes of payload fits, wherever the ring ends, and the smallest record
    /// after it.
    pub(crate) fn fits(&self, geometry: &Geometry, payload: usize) -> bool {
        let free = geometry.ring - self.used().min(geometry.ring);
        needed(geometry, payload) <= free || mutants::on(Mutant::LogOverrun)
    }

    /// Whether the smallest record fits at the very place where the head is. If not, nobody wrote there either.
    pub(crate) fn room(&self, geometry: &Geometry) -> bool {
        let length = frame_length(geometry, 0);
        let offset = self.head.at % geometry.ring;
        let gap = if offset + length > geometry.ring { geometry.ring - offset } else { 0 };
        self.used() + gap + length <= geometry.ring
    }

    /// Writes the frames of a commit.
    pub(crate) fn write(
        &mut self,
        store: &Store,
        nonces: &mut Nonces,
        (epoch, durable): (u64, u64),
        payload: &[u8],
    ) -> Result<(), WriteError> {
        let mut parts = payload.chunks(most_payload(&store.geometry)).peekable();
        let mut part: &[u8] = parts.next().unwrap_or_default();
        loop {
            let last = parts.peek().is_none();
            self.write_frame(store, nonces, (epoch, durable, last), part)?;
            match parts.next() {
                Some(next) => part = next,
                None => return Ok(()),
            }
        }
    }

    fn write_frame(
        &mut self,
        store: &Store,
        nonces: &mut Nonces,
        (epoch, durable, last): (u64, u64, bool),
        payload: &[u8],
    ) -> Result<(), WriteError> {
        let nonce = nonces.next()?;
        let last = last || mutants::on(Mutant::LastFrameNotMarked);
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend(if mutants::on(Mutant::FrameChainIgnored) { [0; 16] } else { self.head.tag });
        buffer.extend(MAGIC);
        buffer.extend([u8::from(last), 0, 0, 0]);
        buffer.extend(epoch.to_le_bytes());
        buffer.extend(durable.to_le_bytes());
        buffer.extend(self.head.number.to_le_bytes());
        buffer.extend((payload.len() as u32).to_le_bytes());
        buffer.extend(nonce);
        buffer.extend([0; 16]);
        buffer.extend(payload);
        let tag = store.sealer.seal_record(nonce, buffer, BEFORE + HEADER)?;
        buffer.extend(tag);
        let geometry = &store.geometry;
        let length = frame_length(geometry, payload.len());
        buffer.resize(BEFORE + length as usize, 0);
        let offset = self.head.at % geometry.ring;
        if offset + length > geometry.ring {
            self.head.at += geometry.ring - offset;
        }
        store.media.write(RING + self.head.at % geometry.ring, &buffer[BEFORE..])?;
        self.head = Place { at: self.head.at + length, number: self.head.number + 1, tag };
        Ok(())
    }
}

fn frame_length(geometry: &Geometry, payload: usize) -> u64 {
    ((HEADER + payload + TAG) as u64).next_multiple_of(geometry.alignment)
}

/// Most bytes of ring that a record takes: each frame may leave a gap of less than its own length at the end of
/// the ring, which happens once; beside that the smallest record always finds room.
pub(crate) fn needed(geometry: &Geometry, payload: usize) -> u64 {
    let frames = payload.div_ceil(most_payload(geometry)).max(1);
    let largest = frame_length(geometry, payload.min(most_payload(geometry)));
    largest * (frames as u64 + 1) + 2 * frame_length(geometry, 0)
}

/// A frame as read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) epoch: u64,
    pub(crate) durable: u64,
    pub(crate) last: bool,
    pub(crate) payload: Vec<u8>,
}

/// Reads the frame at a place, wherever the ring ends; the place after it. `Err(torn)` if there is none;
/// `torn` if there are remains of one.
pub(crate) fn read(
    media: &dyn Media,
    geometry: &Geometry,
    sealer: &Sealer,
    place: &Place,
) -> Result<Result<(Frame, Place), bool>, MediaError> {
    let first = read_at(media, geometry, sealer, place, place.at)?;
    let offset = place.at % geometry.ring;
    match first {
        Err(torn) if offset != 0 => {
            let wrapped = place.at + geometry.ring - offset;
            Ok(read_at(media, geometry, sealer, place, wrapped)?.map_err(|other| torn || other))
        }
        other => Ok(other),
    }
}

fn read_at(
    media: &dyn Media,
    geometry: &Geometry,
    sealer: &Sealer,
    place: &Place,
    at: u64,
) -> Result<Result<(Frame, Place), bool>, MediaError> {
    let offset = at % geometry.ring;
    let room = geometry.ring - offset;
    if room < (HEADER + TAG) as u64 {
        return Ok(Err(false));
    }
    // Copied out once; what is authenticated below is this copy.
    let mut bytes = Vec::with_capacity(BEFORE + 512);
    bytes.extend(if mutants::on(Mutant::FrameChainIgnored) { [0; 16] } else { place.tag });
    bytes.resize(BEFORE + HEADER, 0);
    media.read(RING + offset, &mut bytes[BEFORE..])?;
    let Some(header) = Header::parse(&bytes[BEFORE..]) else {
        mutants::refused(0, false);
        return Ok(Err(false));
    };
    let length = u64::from(header.length);
    // A frame left from an earlier round of the ring is no remainder of a commit.
    if header.number != place.number
        || length > room - (HEADER + TAG) as u64
        || length > most_payload(geometry) as u64
    {
        mutants::refused(0, false);
        return Ok(Err(false));
    }
    let length = header.length as usize;
    bytes.resize(BEFORE + HEADER + length + TAG, 0);
    media.read(RING + offset + HEADER as u64, &mut bytes[BEFORE + HEADER..])?;
    let mut tag = [0; TAG];
    tag.copy_from_slice(&bytes[BEFORE + HEADER + length..]);
    bytes.truncate(BEFORE + HEADER + length);
    if !sealer.open_record(header.nonce, &mut bytes, BEFORE + HEADER, &tag) {
        mutants::refused(0, false);
        mutants::refused(1, true);
        return Ok(Err(true));
    }
    let next = Place { at: at + frame_length(geometry, length), number: place.number + 1, tag };
    bytes.drain(..BEFORE + HEADER);
    let Header { epoch, durable, last, .. } = header;
    Ok(Ok((Frame { epoch, durable, last, payload: bytes }, next)))
}

struct Header {
    last: bool,
    epoch: u64,
    durable: u64,
    number: u64,
    length: u32,
    nonce: [u8; 12],
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.array()? != MAGIC {
            return None;
        }
        let [last, ..] = fields.array::<4>()?;
        Some(Self {
            last: last == 1,
            epoch: fields.u64()?,
            durable: fields.u64()?,
            number: fields.u64()?,
            length: fields.u32()?,
            nonce: fields.array()?,
        })
    }
}
