//! What can go wrong: at open, at commit, at a read.

use thiserror::Error;

use super::batch::InvalidBatch;
use super::block::MIN_MEDIA;
use super::seal::{KeyId, SealError};
use super::superblock::{FORMAT_VERSION, MediaId};
use crate::media::{MediaError, MediaKind};

/// Why a heap could not be opened. The medium was not changed, unless it failed ([`OpenError::Media`]).
#[derive(Debug, Error)]
pub enum OpenError {
    /// The medium could not be read, written or fenced.
    #[error("the heap's medium failed while it was opened")]
    Media(#[from] MediaError),
    /// The random source or the cryptographic library failed.
    #[error("the heap's keys could not be made")]
    Seal(#[from] SealError),
    /// The medium is weaker or other than what the caller asked for.
    #[error("the medium is {found}, {expected} was asked for; attach that, or ask for less")]
    OtherKind {
        /// What it is.
        found: MediaKind,
        /// What was asked for.
        expected: MediaKind,
    },
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
    /// Protected by another key.
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
        /// Length in bytes that it had.
        recorded: u64,
        /// Length in bytes now.
        found: u64,
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
    /// A record is authentic, but its content is not valid in this version.
    #[error("the authentic record at byte {offset} cannot be decoded: a fault of the program that wrote it")]
    Malformed {
        /// Where it begins, in bytes.
        offset: u64,
    },
    /// The index cannot be read as far as recovery needs it.
    #[error("the heap's index cannot be read")]
    Index(#[source] ReadError),
    /// The state of the log does not fit the medium.
    #[error("the medium has no room to replay its log: a fault of the program that wrote it")]
    NoRoom,
    /// The medium is older than the caller's anchor.
    #[error(
        "the medium ends at commit {epoch}, but commit {anchor} was reached before: an older image was put back"
    )]
    RolledBack {
        /// Last commit on the medium.
        epoch: u64,
        /// The caller's [`OpenOptions::at_least`](super::OpenOptions::at_least).
        anchor: u64,
    },
}

impl OpenError {
    /// Fixed name of the kind of error, in kebab-case, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Media(_) => "medium-failed",
            Self::Seal(_) => "cannot-seal",
            Self::OtherKind { .. } => "other-kind-of-medium",
            Self::TooSmall { .. } => "medium-too-small",
            Self::Blank => "medium-blank",
            Self::Wiped => "medium-wiped",
            Self::Foreign => "not-a-heap",
            Self::UnknownVersion { .. } => "unknown-version",
            Self::OtherKey { .. } => "other-key",
            Self::OtherMedia { .. } => "other-medium",
            Self::SuperblocksDamaged => "superblocks-damaged",
            Self::Truncated { .. } => "medium-truncated",
            Self::LogDamaged { .. } => "log-damaged",
            Self::WatermarksDamaged => "watermarks-damaged",
            Self::Malformed { .. } => "malformed-record",
            Self::Index(_) => "index-damaged",
            Self::NoRoom => "no-room",
            Self::RolledBack { .. } => "rolled-back",
        }
    }
}

/// Why a commit was refused or failed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The batch breaks a limit. Nothing changed.
    #[error("the batch is not valid")]
    Invalid(#[from] InvalidBatch),
    /// The medium is full. Nothing changed; smaller batches, and those that free space, go on.
    #[error(
        "the medium is full: up to {needed} pages are needed, {free} are free; free some, or use a larger medium"
    )]
    Full {
        /// Pages needed, the index included.
        needed: u64,
        /// Pages free.
        free: u64,
    },
    /// The batch is larger than the log. Nothing changed.
    #[error("the batch takes {needed} bytes of log, which has {capacity}; split it, or use a larger medium")]
    TooLarge {
        /// Bytes of log needed.
        needed: u64,
        /// Bytes of log there are.
        capacity: u64,
    },
    /// A sealed heap cannot become a plain one, nor the other way round. Nothing changed.
    #[error("the heap is sealed and the new key is plain, or the other way round; copy the content instead")]
    KeyKind,
    /// The medium failed during this commit. The heap refuses further commits. Whether this one became
    /// durable is known only after the next open.
    #[error("the medium failed during the commit; open the heap again to learn whether it became durable")]
    Media(#[source] MediaError),
    /// Sealing failed. As for [`CommitError::Media`], the heap refuses further commits.
    #[error("the commit could not be sealed; open the heap again")]
    Seal(#[source] SealError),
    /// The index is damaged where the commit changes it. The heap refuses further commits.
    #[error("the heap's index cannot be changed")]
    Index(#[source] ReadError),
    /// An earlier commit failed, after which nothing is known about the medium.
    #[error("the heap stopped after an earlier failure ({reason}); open it again")]
    Poisoned {
        /// What failed.
        reason: String,
    },
}

/// Why something committed cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The medium failed.
    #[error("the heap's medium failed while it was read")]
    Media(#[from] MediaError),
    /// What lies there is not what was written.
    #[error(
        "the page at byte {offset} of the medium is damaged; what it held is lost, restore it from a copy"
    )]
    Damaged {
        /// Where it lies, in bytes.
        offset: u64,
    },
    /// An index node is authentic, but its content is not valid.
    #[error("the authentic page at byte {offset} cannot be decoded: a fault of the program that wrote it")]
    Malformed {
        /// Where it lies, in bytes.
        offset: u64,
    },
}

/// Why the writer cannot go on with its index. Each of them stops the heap.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    #[error("the medium failed")]
    Media(#[from] MediaError),
    #[error("sealing failed")]
    Seal(#[from] SealError),
    #[error("the index is damaged")]
    Read(#[from] ReadError),
    #[error("no slot is left for the index")]
    NoSlot,
    /// The program contradicts itself.
    #[error("a fault of the program: {0}; report it")]
    Fault(&'static str),
}
