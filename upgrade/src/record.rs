//! How a part is kept: two copies with a sequence number and a checksum, written in turn.
//!
//! A power cut during a write damages at most the copy that is written, which is never the newer of the two. So after it
//! the old state or the new one is read, and never something else. A copy is smaller than a sector.

use crate::machine::{Content, Part, Phase, Slot};
use sha2::{Digest as _, Sha256};

/// Length of a copy in bytes: sequence number (u64, little endian), phase, active slot, tries, contents and digests of the
/// slots, keys, incoming release, recovery release, and SHA-256 over all before it.
pub const LENGTH: usize = WITHOUT_RECOVERY + 33;
/// Of a copy that an earlier program wrote: there was no recovery release.
const WITHOUT_RECOVERY: usize = 8 + 3 + 2 * 33 + 2 + 33 + 32;

/// A release by the digest of its manifest.
pub type Release = release::Digest;

/// Neither copy can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "neither copy of the upgrade's record can be read; start the recovery release and stage a release anew"
)]
pub struct Unreadable;

fn option(release: Option<&Release>) -> [u8; 33] {
    let mut bytes = [0; 33];
    if let Some(release) = release {
        bytes[0] = 1;
        bytes[1..].copy_from_slice(release.as_bytes());
    }
    bytes
}

fn read_option(bytes: &[u8]) -> Option<Option<Release>> {
    match bytes.split_first()? {
        (0, rest) if rest.iter().all(|byte| *byte == 0) => Some(None),
        (1, rest) => Some(Some(release::Digest(rest.try_into().ok()?))),
        _ => None,
    }
}

fn flag(byte: u8) -> Option<bool> {
    (byte <= 1).then_some(byte == 1)
}

/// One copy.
pub fn encode(sequence: u64, part: &Part<Release>) -> Vec<u8> {
    let mut bytes = sequence.to_le_bytes().to_vec();
    bytes.extend([part.phase as u8, part.active as u8, part.tries]);
    for content in &part.content {
        bytes.extend(option(match content {
            Content::Partial => None,
            Content::Release(release) => Some(release),
        }));
    }
    bytes.extend(part.keys.map(u8::from));
    bytes.extend(option(part.incoming.as_ref()));
    bytes.extend(option(part.recovery.as_ref()));
    let checksum = Sha256::digest(&bytes);
    bytes.extend(checksum);
    bytes
}

fn decode(copy: &[u8]) -> Option<(u64, Part<Release>)> {
    decode_of(copy, LENGTH).or_else(|| decode_of(copy, WITHOUT_RECOVERY))
}

fn decode_of(copy: &[u8], length: usize) -> Option<(u64, Part<Release>)> {
    let (bytes, checksum) = copy.get(..length)?.split_at_checked(length - 32)?;
    if Sha256::digest(bytes)[..] != *checksum {
        return None;
    }
    let content = |bytes: &[u8]| Some(read_option(bytes)?.map_or(Content::Partial, Content::Release));
    let part = Part {
        phase: *Phase::ALL.get(usize::from(bytes[8]))?,
        active: if flag(bytes[9])? { Slot::B } else { Slot::A },
        tries: bytes[10],
        content: [content(&bytes[11..44])?, content(&bytes[44..77])?],
        keys: [flag(bytes[77])?, flag(bytes[78])?],
        incoming: read_option(&bytes[79..112])?,
        recovery: if length == LENGTH { read_option(&bytes[112..])? } else { None },
    };
    Some((u64::from_le_bytes(bytes[..8].try_into().ok()?), part))
}

/// The state that holds, out of both copies, with its sequence number.
pub fn read(copies: [&[u8]; 2]) -> Result<(u64, Part<Release>), Unreadable> {
    copies.into_iter().filter_map(decode).max_by_key(|(sequence, _)| *sequence).ok_or(Unreadable)
}

/// Which copy is overwritten next, and with which sequence number, when the one that holds has `sequence`.
pub const fn next(sequence: u64) -> (usize, u64) {
    let next = sequence.wrapping_add(1);
    ((next % 2) as usize, next)
}
