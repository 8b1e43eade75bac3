//! Keeps the host connected as its configuration says, and tells how that goes.

use super::{Change, Found, NetworkError, automatic, interface, kernel, plan};
use crate::netlink::Socket;
use installer::network::{Ipv6, Network};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Even if the kernel says nothing: so often.
const LOOK: Duration = Duration::from_secs(30);
/// Changes come in bursts.
const SETTLE: Duration = Duration::from_millis(300);
/// Rounds of changes at a time; more would mean that somebody else works against them.
const ROUNDS: usize = 4;

/// How the host is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NetworkStatus {
    /// `connected`, `no-cable`, `no-router`, `no-device`, `refused`.
    pub state: String,
    /// In words.
    pub text: String,
    /// The links with addresses.
    pub links: Vec<LinkStatus>,
    /// How often a cable or what is behind it was lost since the agent started.
    pub losses: u64,
}

/// One link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinkStatus {
    /// `uplink` or `management`.
    pub role: String,
    /// The kernel's name.
    pub name: String,
    /// Whether somebody is at the other end.
    pub carrier: bool,
    /// Addresses with the lengths of their prefixes.
    pub addresses: Vec<String>,
    /// Routers.
    pub gateways: Vec<String>,
}

/// Judges what was found after all changes. `refused` are changes that the kernel did not make.
pub fn judge(network: &Network, found: &[Found], refused: &[String]) -> NetworkStatus {
    let mut links = Vec::new();
    for (role, management) in [("uplink", false), ("management", true)] {
        let name = interface(network, found, management);
        let Some(found) = name.and_then(|name| found.iter().find(|found| found.name == name)) else {
            continue;
        };
        links.push(LinkStatus {
            role: role.into(),
            name: found.name.clone(),
            carrier: found.carrier,
            addresses: found
                .addresses
                .iter()
                .map(|have| format!("{}/{}", have.address, have.prefix))
                .collect(),
            gateways: found.gateways.iter().map(|have| have.address.to_string()).collect(),
        });
    }
    let advertised = network.uplink.ipv6 == Ipv6::RouterAdvertisement;
    let (state, text) = match links.first() {
        _ if !refused.is_empty() => ("refused", refused.join("; ")),
        Some(link) if !link.carrier => {
            ("no-cable", format!("{} has no link: check its cable and the switch", link.name))
        }
        Some(link) if advertised && link.addresses.is_empty() => (
            "no-router",
            format!(
                "no router advertises a prefix on {}: check the router, or give a static address",
                link.name
            ),
        ),
        Some(link) => ("connected", format!("{} has {}", link.name, link.addresses.join(", "))),
        None => ("no-device", "the uplink does not exist".into()),
    };
    NetworkStatus { state: state.into(), text, links, losses: 0 }
}

/// One look, and what follows from it. `None` as configuration is what [`automatic`] makes of it.
pub fn round(configured: Option<&Network>) -> NetworkStatus {
    match try_round(configured) {
        Ok(status) => status,
        Err(error) => {
            NetworkStatus { state: "no-device".into(), text: error.to_string(), ..Default::default() }
        }
    }
}

/// What ends a round early.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("the kernel's network cannot be read: {0}; restart the machine")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

fn try_round(configured: Option<&Network>) -> Result<NetworkStatus, RoundError> {
    let mut found = kernel::read()?;
    let automatic = configured.is_none().then(|| automatic(&found)).transpose()?;
    let network = configured.or(automatic.as_ref()).ok_or(NetworkError::NoCard)?;
    let mut refused = Vec::new();
    for _ in 0..ROUNDS {
        let changes = plan(network, &found)?;
        if changes.is_empty() {
            break;
        }
        refused = changes.iter().filter_map(tried).collect();
        found = kernel::read()?;
        if !refused.is_empty() {
            break;
        }
    }
    Ok(judge(network, &found, &refused))
}

/// Makes a change; returns why it was refused.
fn tried(change: &Change) -> Option<String> {
    match kernel::apply(change) {
        Ok(()) => {
            tracing::info!(?change, "network");
            None
        }
        Err(error) => {
            tracing::warn!("{error}");
            Some(error.to_string())
        }
    }
}

/// Runs for ever; `tell` hears each change of the status.
pub async fn keep(configured: Option<Network>, tell: impl Fn(NetworkStatus)) {
    let changed = Arc::new(Notify::new());
    match Socket::route_changes() {
        Ok(socket) => {
            let changed = changed.clone();
            std::thread::spawn(move || listen(&socket, &changed));
        }
        Err(error) => tracing::warn!(%error, "changes of the network are seen late"),
    }
    let (mut last, mut losses) = (NetworkStatus::default(), 0);
    loop {
        let mut status = round(configured.as_ref());
        let had = |status: &NetworkStatus| status.links.iter().filter(|link| link.carrier).count();
        losses += had(&last).saturating_sub(had(&status)) as u64;
        status.losses = losses;
        if status != last {
            tracing::info!(state = status.state, "network: {}", status.text);
            tell(status.clone());
            last = status;
        }
        let _ = tokio::time::timeout(LOOK, changed.notified()).await;
        tokio::time::sleep(SETTLE).await;
    }
}

/// Waits for changes, for ever.
fn listen(socket: &Socket, changed: &Notify) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    loop {
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        // An interruption is no change, and looking once too often does no harm.
        let _ = poll(&mut polled, PollTimeout::NONE);
        if socket.drain() {
            changed.notify_one();
        }
    }
}
