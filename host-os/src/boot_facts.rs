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
}

/// Written by PID 1.
pub(crate) fn write(facts: &BootFacts) -> io::Result<()> {
    std::fs::write(PATH, serde_json::to_vec(facts)?)
}

/// Read by the agent; absent where it is not PID 1's.
pub fn read() -> Option<BootFacts> {
    serde_json::from_slice(&std::fs::read(PATH).ok()?).ok()
}
