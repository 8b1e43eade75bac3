//! Upgrades: fetch, verify, stage, hand the key over, try, and commit or go back; of the guest, and on a machine of its own
//! of the host before it.
//!
//! The phases and what follows from what is the crate [`upgrade`]'s; here is what is done in each.

pub(crate) mod begin;
pub mod delta;
pub(crate) mod driver;
mod fetch;
pub mod hand_over;
pub(crate) mod host;
mod probe;
mod recovery;
mod releases;
mod status;
mod store;

pub use fetch::{FetchError, Source};
pub use host::machine::HostError;
pub use status::{HostStatus, Order, Patience, UpgradeStatus};
pub use store::{Store, StoreError};

use crate::bundle::ReleaseError;
use crate::check::CheckError;
use hand_over::CarryError;
use std::path::PathBuf;
use upgrade::machine::Unexpected;
use upgrade::node::Refused;

/// An upgrade cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Something cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The release is refused.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Record, audit log or slot.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The order cannot be kept or read.
    #[error("cannot keep the order in {path}: {source}; check its owner, mode and the free space")]
    Order {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The files were exchanged since they were looked at.
    #[error("another release lies there than the one that was verified; ask for the upgrade again")]
    AnotherRelease,
    /// Both slots are bad, and there is no recovery release.
    #[error(
        "neither slot has a release with a key to start with, and no recovery release can be started; restore the node's directory, or install the node anew, which loses what it stored"
    )]
    NothingBoots,
    /// Somebody without an operator's key wants to bring a release to a node in recovery.
    #[error(
        "this node is in recovery and takes a release only from an operator; ask for it with --node, --node-key and --key"
    )]
    NoOperator,
    /// The machine or the release is not fit for a launch.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// No key passed.
    #[error(transparent)]
    HandOver(#[from] CarryError),
    /// The node is being stopped.
    #[error("the agent is ending; the upgrade goes on with its next start")]
    AgentEnded,
    /// One is under way.
    #[error("an upgrade is {0}; wait for its end, `redoubt upgrade status` shows it")]
    Running(String),
    /// An order that is none.
    #[error("the order to upgrade cannot be read: {0}")]
    Malformed(#[source] serde_json::Error),
    /// A defect of the driver.
    #[error(transparent)]
    Unexpected(#[from] Unexpected),
    /// The machine, or the host's part of the release.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Both parts at once.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl UpgradeError {
    /// Whether a release is at fault, and not the machine, its disk or the command line.
    fn is_of_release(&self) -> bool {
        use ReleaseError as R;
        match self {
            Self::Release(error) | Self::Check(CheckError::Release(error)) => !matches!(
                error,
                R::Copy { .. }
                    | R::Seen(_)
                    | R::Anchor(_)
                    | R::Unwritable { .. }
                    | R::Root { .. }
                    | R::NextRoot { .. }
            ),
            Self::AnotherRelease | Self::NothingBoots => true,
            _ => false,
        }
    }

    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &str {
        match self {
            Self::Fetch(error) => error.code(),
            Self::Release(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Order { .. } => "upgrade-store",
            Self::AnotherRelease => "upgrade-another-release",
            Self::NothingBoots => "upgrade-nothing-boots",
            Self::NoOperator => "recovery-without-operator",
            Self::Check(error) => error.code(),
            Self::HandOver(error) => error.code(),
            Self::AgentEnded => "agent-ended",
            Self::Running(_) => "upgrade-running",
            Self::Malformed(_) => "upgrade-order-malformed",
            Self::Unexpected(_) | Self::Refused(_) => "upgrade-unexpected",
            Self::Host(error) => error.code(),
        }
    }
}
