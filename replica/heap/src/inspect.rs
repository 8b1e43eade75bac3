//! What stands at the head of a medium, for people who look for what is wrong with it.

use super::block::SUPERBLOCKS;
use super::seal::{Key, KeyId};
use super::superblock::{Copy, MediaId, SUPERBLOCK, Superblock};
use crate::media::{Media, MediaError};

/// One of the two superblock copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuperblockCopy {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// What it turned out to be.
    pub state: CopyState,
    /// What it says, if it looks like a heap's; to be believed only if it is valid.
    pub says: Option<SuperblockFields>,
}

/// What a superblock copy turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    /// Authentic under the key given.
    Valid,
    /// All zeros.
    Blank,
    /// It names another key than the one given.
    OtherKey,
    /// Authentic, and of another version of the format.
    OtherVersion,
    /// Not a heap's.
    Foreign,
    /// Neither blank nor authentic.
    Damaged,
    /// A heap's, but no key was given to check it with.
    Unchecked,
}

impl std::fmt::Display for CopyState {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Valid => "valid",
            Self::Blank => "blank",
            Self::OtherKey => "other-key",
            Self::OtherVersion => "other-version",
            Self::Foreign => "foreign",
            Self::Damaged => "damaged",
            Self::Unchecked => "unchecked",
        })
    }
}

/// Fields of a superblock that need no key to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperblockFields {
    /// Version of the format.
    pub version: u32,
    /// Name of the key; zeros on a plain heap.
    pub key: KeyId,
    /// Name of the medium.
    pub media: MediaId,
    /// Length of the medium in bytes.
    pub length: u64,
    /// Bytes of the log.
    pub ring: u64,
    /// Number of the superblock.
    pub generation: u64,
    /// Last commit of its checkpoint.
    pub epoch: u64,
}

/// Reads both superblock copies; changes nothing. Without a key it is not checked whether they are authentic.
pub fn inspect(media: &dyn Media, key: Option<&Key>) -> Result<[SuperblockCopy; 2], MediaError> {
    let mut copies = SUPERBLOCKS.map(|offset| SuperblockCopy { offset, state: CopyState::Blank, says: None });
    for copy in &mut copies {
        let mut bytes = [0; SUPERBLOCK];
        media.read(copy.offset, &mut bytes)?;
        copy.says = Superblock::peek(&bytes).map(|(version, superblock)| SuperblockFields {
            version,
            key: superblock.key,
            media: superblock.media,
            length: superblock.length,
            ring: superblock.ring,
            generation: superblock.generation,
            epoch: superblock.epoch,
        });
        copy.state = match key.map(|key| Copy::parse(&bytes, key)) {
            Some(Copy::Valid(_)) => CopyState::Valid,
            Some(Copy::Blank) => CopyState::Blank,
            Some(Copy::OtherKey(_)) => CopyState::OtherKey,
            Some(Copy::Version(_)) => CopyState::OtherVersion,
            Some(Copy::Foreign) => CopyState::Foreign,
            Some(Copy::Damaged) => CopyState::Damaged,
            None if bytes.iter().all(|byte| *byte == 0) => CopyState::Blank,
            None if copy.says.is_some() => CopyState::Unchecked,
            None => CopyState::Foreign,
        };
    }
    Ok(copies)
}
