//! What operators ask for, and what they are shown.

use super::fetch::Source;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Where the release is.
    pub source: Source,
    /// Not tried before this time (seconds since 1970): a schedule is given from outside, so that not all nodes of a subnet
    /// are down at once. The release is fetched and staged at once.
    #[serde(default)]
    pub not_before: u64,
}

/// How an upgrade goes, for status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStatus {
    /// "idle", "fetching", "fetched", "verified", "staged", "trying", "healthy", "committed", "reverting" or "failed".
    pub phase: String,
    /// What is being done, in words.
    pub step: String,
    /// The committed slot: "a" or "b".
    pub active: String,
    /// Digest of the release that is being brought.
    pub incoming: String,
    /// Bytes of it that are here, and all.
    pub fetched: (u64, u64),
    /// Bytes that came over the network for it; less where a difference served.
    pub moved: u64,
    /// How long the last hand-over of the key took, from when the new guest was there: milliseconds.
    pub hand_over_ms: u64,
    /// Why the last upgrade was given up, with a short fixed name; empty if it was not.
    pub code: String,
    /// The same in words.
    pub reason: String,
    /// Entries of the audit log.
    pub audit_entries: u64,
    /// Digest of its last entry.
    pub audit_digest: String,
}

impl UpgradeStatus {
    /// Whether nothing is under way.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase.as_str(), "idle" | "failed" | "")
    }
}

/// When a tried release has to be healthy, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From the start to health.
    pub trial: Duration,
    /// How long it has to last.
    pub healthy: Duration,
}
