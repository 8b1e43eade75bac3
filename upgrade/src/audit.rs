//! The audit log: what happened to a node, in a chain of hashes.
//!
//! A log is text, one entry a line: `DIGEST SEQUENCE TIME TEXT`. The digest is SHA-256 over the digest of the entry before
//! (zeros for the first), sequence number and time as u64 little endian, and the text. So no entry can be changed, taken
//! out, put in or moved without changing every digest after it. **Cutting entries off the end** does not show in the log
//! itself: it shows to whoever knows a later [`Head`], which is why support bundles and status carry it.

use release::Digest;
use sha2::{Digest as _, Sha256};

/// Longest text of an entry in bytes.
pub const MAX_TEXT: usize = 4096;

/// The end of a log: what the next entry follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Entries so far.
    pub entries: u64,
    /// Digest of the last one.
    pub digest: Digest,
    /// Time of the last one: seconds since 1970.
    pub time: u64,
}

impl Default for Head {
    /// Of an empty log.
    fn default() -> Head {
        Head { entries: 0, digest: Digest([0; 32]), time: 0 }
    }
}

/// A log, or an entry for it, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// Too long, or with characters that could pass for another line.
    #[error("an entry's text must be 1 to {MAX_TEXT} bytes of printable ASCII; shorten or escape it")]
    Text,
    /// Not an entry.
    #[error("line {line} of the audit log is no entry; the log was damaged or changed from there on")]
    Malformed {
        /// Counted from 1.
        line: u64,
    },
    /// Not the entry that follows.
    #[error(
        "line {line} of the audit log does not follow the one before; the log was changed there or before"
    )]
    Broken {
        /// Counted from 1.
        line: u64,
    },
    /// A head that is known is not in the log.
    #[error(
        "the audit log has {found} entries and not the known entry {known}; entries were cut off or replaced"
    )]
    NotReached {
        /// Entries of the known head.
        known: u64,
        /// Entries of the log.
        found: u64,
    },
}

impl AuditError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Text => "audit-text",
            Self::Malformed { .. } => "audit-malformed",
            Self::Broken { .. } => "audit-broken",
            Self::NotReached { .. } => "audit-not-reached",
        }
    }
}

impl Head {
    fn then(&self, time: u64, text: &str) -> Head {
        let mut hash = Sha256::new();
        hash.update(self.digest.as_bytes());
        hash.update(self.entries.to_le_bytes());
        hash.update(time.to_le_bytes());
        hash.update(text);
        Head { entries: self.entries + 1, digest: Digest(hash.finalize().into()), time }
    }

    /// The line to append, with its line feed, and the head after it. A clock that was set back does not take the log back:
    /// the time is at least that of the entry before.
    pub fn append(&self, time: u64, text: &str) -> Result<(String, Head), AuditError> {
        let printable = text.bytes().all(|byte| matches!(byte, 0x20..=0x7e));
        if text.is_empty() || text.len() > MAX_TEXT || !printable {
            return Err(AuditError::Text);
        }
        let next = self.then(time.max(self.time), text);
        Ok((format!("{} {} {} {text}\n", next.digest, self.entries, next.time), next))
    }

    fn read(&self, line: &str) -> Result<Head, AuditError> {
        let number = self.entries + 1;
        let mut words = line.splitn(4, ' ');
        let mut entry = || {
            let digest: Digest = words.next()?.parse().ok()?;
            let sequence: u64 = words.next()?.parse().ok()?;
            let time: u64 = words.next()?.parse().ok()?;
            Some((digest, sequence, time, words.next()?))
        };
        let (digest, sequence, time, text) = entry().ok_or(AuditError::Malformed { line: number })?;
        // Written again and compared, so that there is one way to write each entry.
        let (again, next) = self.append(time, text).map_err(|_| AuditError::Malformed { line: number })?;
        let follows =
            sequence == self.entries && next.digest == digest && again.trim_end_matches('\n') == line;
        if follows { Ok(next) } else { Err(AuditError::Broken { line: number }) }
    }
}

/// Reads a log from its beginning. `known` is a head that was seen before and must be in it.
///
/// What stands behind the last line feed is an entry that a power cut left unfinished: it does not count, and the second
/// value is how many bytes are to be kept before the next is appended.
pub fn verify(log: &[u8], known: Option<&Head>) -> Result<(Head, usize), AuditError> {
    let kept = log.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut head = Head::default();
    let mut reached = known.is_none_or(|known| *known == head);
    for line in log[..kept].split_inclusive(|byte| *byte == b'\n') {
        let malformed = AuditError::Malformed { line: head.entries + 1 };
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        head = head.read(std::str::from_utf8(line).map_err(|_| malformed)?)?;
        reached |= known == Some(&head);
    }
    match known {
        Some(known) if !reached => Err(AuditError::NotReached { known: known.entries, found: head.entries }),
        _ => Ok((head, kept)),
    }
}
