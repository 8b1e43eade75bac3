//! What can go wrong at open and at commit.

use thiserror::Error;

use crate::batch::InvalidBatch;
use crate::media::MediaError;
use crate::seal::{KeyId, SealError};
use crate::superblock::{FORMAT_VERSION, MIN_MEDIA, MediaId};

/// Why a heap could not be opened. The medium was not changed, unless it failed ([`OpenError::Media`]).
#[derive(Debug, Error)]
pub enum OpenError {
    /// The medium could not be read, written or fenced.
    #[error("the heap's medium failed while it was opened")]
    Media(#[from] MediaError),
    /// Key derivation or randomness failed.
    #[error("the heap's keys could not be made")]
    Seal(#[from] SealError),
    /// The medium is too small for any heap.
    #[error("the medium has {length} bytes, a heap needs at least {MIN_MEDIA}; give it a larger one")]
    TooSmall {
        /// Its length in bytes.
        length: u64,
    },
    /// The medium was never initialised, and the caller did not ask for that.
    #[error("the medium holds no heap yet; open it once with `create` if it is meant to be new")]
    Blank,
    /// The head of the medium is blank, but there is data behind it.
    #[error(
        "the medium's superblocks are blank but data follows them: they were wiped, or the medium is not a heap's; \
         restore it, or zero all of it to begin anew"
    )]
    Wiped,
    /// Something else is stored on the medium.
    #[error("the medium holds something that is not a heap; name the right one, or zero its first 16 KiB")]
    Foreign,
    /// Written by another version of the format.
    #[error(
        "the medium has heap format version {found}, this program reads {FORMAT_VERSION}; use the release that wrote it"
    )]
    UnknownVersion {
        /// Version found.
        found: u32,
    },
    /// Sealed under another key.
    #[error(
        "the medium is sealed under key {found}, this node has {ours}: it is another node's medium, or the \
         node's secret changed"
    )]
    OtherKey {
        /// Name of the key that sealed it.
        found: KeyId,
        /// Name of the key given.
        ours: KeyId,
    },
    /// Sealed under this key, but not the medium asked for.
    #[error("this is medium {found}, {expected} was expected; attach the right one")]
    OtherMedia {
        /// Medium found.
        found: MediaId,
        /// Medium asked for.
        expected: MediaId,
    },
    /// Both superblock copies are damaged.
    #[error("both superblock copies are damaged; restore the medium from a copy")]
    SuperblocksDamaged,
    /// The medium became shorter.
    #[error("the medium has {found} bytes, the heap on it was made for {recorded}: it was truncated")]
    Truncated {
        /// Length in bytes when it was initialised.
        recorded: u64,
        /// Length in bytes now.
        found: u64,
    },
    /// The base image that the log builds on is not authentic.
    #[error("the base image is damaged at byte {offset} of the medium; restore the medium from a copy")]
    BaseDamaged {
        /// Where the first bad frame begins, in bytes.
        offset: u64,
    },
    /// Commits that were durable cannot be read: damage, truncation or tampering within the log.
    #[error(
        "the log is damaged at byte {offset} of the medium: commits {} to {acknowledged} were durable and \
         cannot be read; restore the medium from a copy", epoch + 1
    )]
    LogDamaged {
        /// Where the first bad frame begins, in bytes.
        offset: u64,
        /// Last epoch that could be read.
        epoch: u64,
        /// Last epoch known to have been durable.
        acknowledged: u64,
    },
    /// Neither watermark cell is authentic, so it cannot be said whether commits are missing.
    #[error("both watermark cells are damaged; restore the medium from a copy")]
    WatermarksDamaged,
    /// A frame is authentic, but its content is not valid in this version.
    #[error("the authentic frame at byte {offset} cannot be decoded: a fault of the program that wrote it")]
    Malformed {
        /// Where the frame begins, in bytes.
        offset: u64,
    },
    /// The medium is older than the caller's anchor.
    #[error(
        "the medium ends at commit {epoch}, but commit {anchor} was reached before: an older image was put back"
    )]
    RolledBack {
        /// Last commit on the medium.
        epoch: u64,
        /// The caller's [`OpenOptions::at_least`](crate::OpenOptions::at_least).
        anchor: u64,
    },
}

/// Why a commit was refused or failed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The batch breaks a limit. Nothing changed.
    #[error("the batch is not valid")]
    Invalid(#[from] InvalidBatch),
    /// The state would not fit the medium. Nothing changed; smaller batches, and those that free space, go on.
    #[error(
        "the medium is full: the state with this change takes {needed} bytes of {capacity}; free some, or \
         use a larger medium"
    )]
    Full {
        /// Bytes that the whole state would take.
        needed: u64,
        /// Bytes that an arena has.
        capacity: u64,
    },
    /// The medium failed during this commit. The heap refuses further commits. Whether this one became
    /// durable is known only after the next open; the image in RAM does not have it.
    #[error("the medium failed during the commit; open the heap again to learn whether it became durable")]
    Media(#[source] MediaError),
    /// Sealing failed. As for [`CommitError::Media`], the heap refuses further commits.
    #[error("the commit could not be sealed; open the heap again")]
    Seal(#[source] SealError),
    /// An earlier commit failed, after which nothing is known about the medium.
    #[error("the heap stopped after an earlier failure ({reason}); open it again")]
    Poisoned {
        /// What failed.
        reason: String,
    },
}
