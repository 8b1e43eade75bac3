//! The TPM's counter behind `seen.json`: whoever puts an old file back cannot put the counter back.
//!
//! The counter's value when the host's secret was made is sealed with that secret; the security epoch is the distance from
//! there. A counter that is deleted and made again goes on from the highest value that any had (TPM 2.0 Library, Part 1,
//! 37.2.3), so the epoch can be pushed up, which only the machine's owner suffers from, and never down.

use super::{Tpm, TpmError};
use release::Seen;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Written by PID 1 for the agent: the counter's value at epoch 0.
pub const BASE: &str = "/run/counter.json";
/// Most steps at once: a counter takes a while for each, and wears out.
const MAX_STEPS: u64 = 10_000;

/// What the counter says of `seen.json`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// An old file.
    #[error(
        "what this node has seen is older than the TPM's counter: security epoch {found}, the counter says {counted}; an old file was put back: restore the latest, or install the node anew"
    )]
    RolledBack {
        /// By the file.
        found: u64,
        /// By the counter.
        counted: u64,
    },
    /// Not a step, a leap.
    #[error("the security epoch would rise from {from} to {to} at once; at most {MAX_STEPS} steps are taken")]
    Leap {
        /// By the counter.
        from: u64,
        /// Asked for.
        to: u64,
    },
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// What PID 1 wrote is not readable.
    #[error("{BASE} cannot be read: {0}; restart the machine")]
    Base(String),
}

impl AnchorError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::RolledBack { .. } => "seen-rolled-back",
            Self::Leap { .. } => "epoch-leap",
            Self::Tpm(_) | Self::Base(_) => "tpm-failed",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Base {
    counter: u64,
}

/// The counter, as the anchor of one node.
pub struct Anchor {
    tpm: Box<dyn Tpm>,
    base: u64,
}

impl Anchor {
    /// With the counter's value at epoch 0.
    pub fn new(tpm: Box<dyn Tpm>, base: u64) -> Self {
        Self { tpm, base }
    }

    /// The machine's, if PID 1 opened the host's secret; `None` where there is no TPM to speak of.
    pub fn of_machine() -> Result<Option<Self>, AnchorError> {
        let bytes = match std::fs::read(Path::new(BASE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(AnchorError::Base(error.to_string())),
        };
        let base: Base =
            serde_json::from_slice(&bytes).map_err(|error| AnchorError::Base(error.to_string()))?;
        Ok(Some(Self::new(super::open()?, base.counter)))
    }

    /// What [`Anchor::of_machine`] reads.
    pub fn base_file(counter: u64) -> Vec<u8> {
        serde_json::to_vec(&Base { counter }).unwrap_or_default()
    }

    /// The epoch by the counter.
    fn epoch(&mut self) -> Result<u64, AnchorError> {
        Ok(self.tpm.counter()?.saturating_sub(self.base))
    }

    /// Refuses what is older than the counter.
    pub fn check(&mut self, seen: &Seen) -> Result<(), AnchorError> {
        let (found, counted) = (seen.counter(), self.epoch()?);
        if found < counted { Err(AnchorError::RolledBack { found, counted }) } else { Ok(()) }
    }

    /// Raises the counter to what was seen, before that is acted upon. A power cut between two steps leaves less than the file
    /// says, which the next time makes up for.
    pub fn raise(&mut self, seen: &Seen) -> Result<(), AnchorError> {
        let (from, to) = (self.epoch()?, seen.counter());
        if to.saturating_sub(from) > MAX_STEPS {
            return Err(AnchorError::Leap { from, to });
        }
        for _ in from..to {
            self.tpm.increment()?;
        }
        Ok(())
    }
}
