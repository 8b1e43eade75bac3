//! Differences between a file of one release and that of the next, so that a small change moves few bytes.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | magic `RDBDELTA` |
//! | 8 | format version, 1 |
//! | 9 | how both files are packed: 0 not at all, else the zstd level that makes the new one from its content |
//! | 10..18 | length of the new content in bytes, u64 little endian |
//! | 18.. | zstd frame with the difference of the contents, as the crate `bipatch` reads it |
//!
//! A difference is not signed and need not be: what comes out is held against the manifest's hash, and where it is not that,
//! the whole file is fetched. It is hostile input, so sizes are bounded before anything is unpacked.

use release::File;
use std::io::{Cursor, Read};

const MAGIC: &[u8; 8] = b"RDBDELTA";
const VERSION: u8 = 1;
const HEADER: usize = 18;
/// As initrds are packed (`image_build::guest`).
const LEVEL: u8 = 19;
/// First bytes of a zstd frame (RFC 8878, 3.1.1).
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Longest content in bytes.
const MAX_CONTENT: u64 = 1 << 30;

/// Bytes are no difference to this file.
#[derive(Debug, thiserror::Error)]
#[error("the difference cannot be used ({0}); the whole file is fetched instead")]
pub struct DeltaError(String);

impl From<std::io::Error> for DeltaError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Name of the file with the difference, beside the files of the new release.
pub fn name(old: &File, new: &File) -> String {
    let short = |file: &File| hex::encode(&file.sha256.0[..16]);
    format!("{}-{}.delta", short(old), short(new))
}

/// The content of a file, and the level at which it is packed.
fn content(file: &[u8]) -> std::io::Result<(Vec<u8>, u8)> {
    if !file.starts_with(ZSTD) {
        return Ok((file.to_vec(), 0));
    }
    let mut content = Vec::new();
    zstd::Decoder::new(file)?.take(MAX_CONTENT).read_to_end(&mut content)?;
    Ok((content, LEVEL))
}

/// Packs the difference `patch(old, new)` of two files' contents; `None` where the new one cannot be packed again as it was.
pub fn make<E: From<std::io::Error>>(
    old: &[u8],
    new: &[u8],
    patch: impl FnOnce(&[u8], &[u8]) -> Result<Vec<u8>, E>,
) -> Result<Option<Vec<u8>>, E> {
    let ((old_content, old_level), (new_content, level)) = (content(old)?, content(new)?);
    if old_level != level || level > 0 && zstd::bulk::compress(&new_content, level.into())? != new {
        return Ok(None);
    }
    let mut delta = MAGIC.to_vec();
    delta.extend([VERSION, level]);
    delta.extend((new_content.len() as u64).to_le_bytes());
    delta.extend(zstd::bulk::compress(&patch(&old_content, &new_content)?, LEVEL.into())?);
    Ok(Some(delta))
}

/// The new file.
pub fn apply(old: &[u8], delta: &[u8]) -> Result<Vec<u8>, DeltaError> {
    let refused = |why: &str| Err(DeltaError(why.to_owned()));
    let Some((header, patch)) = delta.split_at_checked(HEADER) else { return refused("it is too short") };
    if header[..8] != *MAGIC || header[8] != VERSION {
        return refused("it is of another kind or version");
    }
    let (packed, size) = (header[9], u64::from_le_bytes(header[10..].try_into().unwrap_or_default()));
    if size > MAX_CONTENT || packed > LEVEL {
        return refused("its sizes are out of bounds");
    }
    let (old, level) = content(old)?;
    if level != packed {
        return refused("the files are packed differently");
    }
    // Each byte of the new content is one of the patch; the rest is lengths.
    let patch = zstd::Decoder::new(patch)?.take(size * 2 + (1 << 20));
    let reader =
        bipatch::Reader::new(patch, Cursor::new(old)).map_err(|error| DeltaError(error.to_string()))?;
    let mut new = Vec::new();
    reader.take(size + 1).read_to_end(&mut new)?;
    if new.len() as u64 != size {
        return refused("what comes out has another length");
    }
    if packed > 0 { Ok(zstd::bulk::compress(&new, packed.into())?) } else { Ok(new) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn difference(old: &[u8], new: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut patch = Vec::new();
        bidiff::simple_diff(old, new, &mut patch)?;
        Ok(patch)
    }

    fn text(seed: u64) -> Vec<u8> {
        (0..20_000_u64)
            .flat_map(|line| format!("{}\n", line.wrapping_mul(seed | 1) % 9973).into_bytes())
            .collect()
    }

    #[test]
    fn a_small_change_is_a_small_difference() {
        let old = text(7);
        let mut new = old.clone();
        new.splice(500..500, *b"one line more");
        for pack in [false, true] {
            let file = |content: &[u8]| {
                if pack { zstd::bulk::compress(content, 19).unwrap() } else { content.to_vec() }
            };
            let (old, new) = (file(&old), file(&new));
            let delta = make(&old, &new, difference).unwrap().unwrap();
            assert!(delta.len() * 10 < new.len(), "{} of {}", delta.len(), new.len());
            assert_eq!(apply(&old, &delta).unwrap(), new);
        }
        let otherwise = zstd::bulk::compress(&new, 3).unwrap();
        assert!(
            make(&otherwise, &otherwise, difference).unwrap().is_none(),
            "another level cannot be made again"
        );
    }

    proptest! {
        #[test]
        fn hostile_differences_are_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            flip in 1..=255_u8,
        ) {
            let (old, new) = (text(3), text(5));
            let _ = apply(&old, &bytes);
            let mut delta = make(&old, &new, difference).unwrap().unwrap();
            let at = at.index(delta.len());
            delta[at] ^= flip;
            let _ = apply(&old, &delta);
        }
    }
}
