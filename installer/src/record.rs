//! Small documents on the configuration partition: each has two copies, written in turn, so that a power cut during one
//! leaves the other. There is no file system, hence none that could be damaged or hostile.
//!
//! A copy is the magic number, a sequence number and a length (little-endian), the SHA-256 of these two and the content,
//! and the content. Behind the records a host marks that its node has ended (crate `host-os`, `decommission`).

use sha2::{Digest, Sha256};

/// Bytes at the start of the partition that hold all records.
pub const AREA: usize = Kind::ALL.len() * 2 * COPY;
/// Most bytes of a document.
pub const MAX: usize = COPY - HEADER;
const COPY: usize = 64 << 10;
const MAGIC: &[u8; 8] = b"RDBTREC1";
const HEADER: usize = 52;

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The node's signed configuration: [`crate::config::Signed`].
    Configuration,
    /// The node's own key: [`crate::config::Identity`], or what the host made of it.
    Identity,
    /// Whether the state partition has its file system: `ready`.
    State,
    /// The host's secret, sealed to the TPM.
    Sealed,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Configuration, Kind::Identity, Kind::State, Kind::Sealed];

    fn start(self) -> usize {
        self as usize * 2 * COPY
    }
}

/// A document is too long.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a document of {0} bytes does not fit on the configuration partition; at most {MAX} do")]
pub struct TooLong(usize);

fn digest(head: &[u8], content: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(head).chain_update(content).finalize().into()
}

/// The newest sound document of this kind in [`AREA`], with its sequence number.
#[must_use]
pub fn read(area: &[u8], kind: Kind) -> Option<(u64, &[u8])> {
    let copy = |index: usize| {
        let copy = area.get(kind.start() + index * COPY..)?.get(..COPY)?;
        let sequence = u64::from_le_bytes(copy[8..16].try_into().ok()?);
        let length = u32::from_le_bytes(copy[16..20].try_into().ok()?) as usize;
        let content = copy[HEADER..].get(..length)?;
        (copy.starts_with(MAGIC) && copy[20..HEADER] == digest(&copy[8..20], content))
            .then_some((sequence, content))
    };
    [copy(0), copy(1)].into_iter().flatten().max_by_key(|(sequence, _)| *sequence)
}

/// Where in [`AREA`] the next version of a document goes, and its bytes. What [`read`] gives now is not touched.
pub fn write(area: &[u8], kind: Kind, content: &[u8]) -> Result<(usize, Vec<u8>), TooLong> {
    if content.len() > MAX {
        return Err(TooLong(content.len()));
    }
    let sequence = read(area, kind).map_or(0, |(sequence, _)| sequence.wrapping_add(1));
    let mut head = sequence.to_le_bytes().to_vec();
    head.extend((content.len() as u32).to_le_bytes());
    let mut bytes = MAGIC.to_vec();
    bytes.extend(&head);
    bytes.extend(digest(&head, content));
    bytes.extend(content);
    // Copies take turns.
    Ok((kind.start() + (sequence % 2) as usize * COPY, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(area: &mut [u8], kind: Kind, content: &[u8]) {
        let (at, bytes) = write(area, kind, content).unwrap();
        area[at..at + bytes.len()].copy_from_slice(&bytes);
    }

    #[test]
    fn the_newest_sound_copy_counts() {
        let mut area = vec![0; AREA];
        assert_eq!(read(&area, Kind::Configuration), None);
        for number in 0..5_u8 {
            put(&mut area, Kind::Configuration, &[number; 100]);
            put(&mut area, Kind::State, b"ready");
            assert_eq!(read(&area, Kind::Configuration), Some((number.into(), &[number; 100][..])));
        }
        assert_eq!(read(&area, Kind::Identity), None);
        assert_eq!(write(&area, Kind::State, &[0; MAX + 1]), Err(TooLong(MAX + 1)));
        put(&mut area, Kind::State, &[0; MAX]);
        assert_eq!(read(&area, Kind::State).unwrap().1.len(), MAX);
    }

    proptest! {
        #[test]
        fn a_write_that_is_cut_off_leaves_the_document_before_it(cut in 0_usize..200, garbage: u8) {
            let mut area = vec![0; AREA];
            put(&mut area, Kind::Identity, b"zero");
            put(&mut area, Kind::Identity, b"one");
            let (at, bytes) = write(&area, Kind::Identity, &[9; 100]).unwrap();
            let whole = cut >= bytes.len();
            let cut = cut.min(bytes.len());
            area[at..at + cut].copy_from_slice(&bytes[..cut]);
            if !whole {
                area[at + cut] = garbage;
            }
            let found = read(&area, Kind::Identity).unwrap().1;
            prop_assert!(found == b"one" || (found == [9; 100] && area[at..at + bytes.len()] == bytes));
        }
    }
}
