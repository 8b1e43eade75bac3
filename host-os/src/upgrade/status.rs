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
    /// The operator whose key it came with: the node itself says so, whatever a request does. None on the node's own machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
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
    /// Digest of the recovery release that has a key; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub recovery: String,
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
    /// Why the release that runs gets and gives no keys now, such as that its blessing has expired; empty while all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub no_keys: String,
    /// Entries of the audit log.
    pub audit_entries: u64,
    /// Digest of its last entry.
    pub audit_digest: String,
    /// Whether an order is being carried out: between its two parts nothing else shows that.
    #[serde(default)]
    pub ordered: bool,
    /// The host's part, on a machine of its own; the other fields' phase and slot are the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostStatus>,
}

/// How the host's part of an upgrade goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// As the guest's.
    pub phase: String,
    /// The committed slot: "a" or "b".
    pub active: String,
    /// The slot that runs: another one while a new host is tried.
    pub running: String,
    /// Tries that are left, while one is tried.
    pub tries: u8,
    /// Digest of the manifest of the release in the committed slot.
    pub release: String,
}

impl UpgradeStatus {
    /// Whether nothing is under way.
    pub fn is_settled(&self) -> bool {
        let settled = |phase: &str| matches!(phase, "idle" | "failed" | "");
        !self.ordered && settled(&self.phase) && self.host.as_ref().is_none_or(|host| settled(&host.phase))
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
