//! The end of a node: its keys are erased, then the machine is switched off.

use super::AgentError;
use crate::check::{CheckError, Options};
use crate::decommission::{self, Ordered};
use crate::installation;
use crate::node::NodeDir;
use crate::operator::identity::Identity;
use std::time::Duration;
use tokio::sync::mpsc;

/// For the answer to an order after which there is no node.
pub(super) const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Erases the node's keys, or goes on erasing.
pub(super) async fn end_node(
    options: &Options,
    node: &NodeDir,
    operator: &str,
) -> Result<Ordered, AgentError> {
    let machine = options.power.is_some();
    let (node, operator) = (node.clone(), operator.to_owned());
    let erase = move || {
        let identity = || Identity::read(&node.host_key()).ok();
        let (name, signer, records) = match machine {
            true => (
                installation::read().map(|configuration| configuration.node),
                installation::signer(),
                installation::records(),
            ),
            false => {
                let name = identity().map(|identity| hex::encode(identity.key_sha256));
                (name, identity().and_then(Identity::into_signer), None)
            }
        };
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let nvdimm = crate::nvram::nvdimm(&node).filter(|_| machine);
        decommission::Node { dir: &node, name: name.unwrap_or_default(), records, signer, nvdimm }
            .end(&operator, now)
    };
    match tokio::task::spawn_blocking(erase).await {
        Ok(ended) => Ok(ended?),
        Err(error) => Err(CheckError::Interrupted(error.to_string()).into()),
    }
}

/// After the node's end: the machine is switched off; a process just ends.
pub(super) async fn end_machine(options: &Options, mut stops: mpsc::Receiver<()>) -> Result<(), AgentError> {
    if let Some(power) = &options.power {
        match power.request(crate::power::Action::PowerOff, "the node was decommissioned") {
            Ok(()) => {
                let _ = stops.recv().await;
            }
            Err(error) => tracing::error!(%error, "the machine stays on"),
        }
    }
    Err(AgentError::Decommissioned)
}
