//! What PID 1 found when the machine started, for the agent to show.

use crate::crashes::Crash;
use crate::tpm::records::ProtectionStatus;
use crate::watchdog::WatchdogStatus;
use serde::{Deserialize, Serialize};
use std::io;

/// On a file system in memory: facts of this start only.
const PATH: &str = "/run/boot.json";

/// How this machine started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BootFacts {
    /// The hardware watchdog.
    pub watchdog: WatchdogStatus,
    /// Crashes of earlier runs, the newest last.
    pub crashes: Vec<Crash>,
    /// What keeps the host's secrets.
    #[serde(default)]
    pub protection: Option<ProtectionStatus>,
    /// The root file system.
    #[serde(default)]
    pub root: RootStatus,
}

/// Whether all of the root was read, and is as it was signed. What runs was verified when it was read, in any case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RootStatus {
    /// "being-read", "verified" or "unreadable"; a changed block stops the machine.
    pub state: String,
    /// In words.
    pub text: String,
}

impl Default for RootStatus {
    fn default() -> Self {
        Self {
            state: "being-read".into(),
            text: "what was not needed to start is read once the guest runs".into(),
        }
    }
}

/// Written by PID 1, also while the agent reads.
pub(crate) fn write(facts: &BootFacts) -> io::Result<()> {
    let next = format!("{PATH}.new");
    std::fs::write(&next, serde_json::to_vec(facts)?)?;
    std::fs::rename(next, PATH)
}

/// Read by the agent; absent where it is not PID 1's.
pub fn read() -> Option<BootFacts> {
    serde_json::from_slice(&std::fs::read(PATH).ok()?).ok()
}
