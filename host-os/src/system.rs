//! What a host does beside its guest: firewall first, then the network and the clock. Only under PID 1; a virtual node on somebody's machine
//! leaves that machine alone.

use crate::boot_facts::{self, BootFacts};
use crate::clock::{self, ClockStatus};
use crate::firewall::{self, FirewallStatus, OpenPort};
use crate::http::Shared;
use crate::launch::GUEST_PORT;
use crate::network::keeper::{self, NetworkStatus};
use crate::network::{self, kernel};
use installer::{config::Signed, network::Network};
use serde::{Deserialize, Serialize};

/// Port for operators.
const OPERATOR_PORT: u16 = 18_444;

/// The host beside its guest, for the status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SystemStatus {
    /// How the machine started: watchdog, crashes of earlier runs.
    pub boot: Option<BootFacts>,
    /// What may come in.
    pub firewall: FirewallStatus,
    /// How the host is connected.
    pub network: NetworkStatus,
    /// Whether its clock is right.
    pub clock: ClockStatus,
    /// What of the machine the guest gets, in words; nothing if it takes what the kernel gives it.
    #[serde(default)]
    pub guest: Vec<String>,
    /// Where the guest's NVRAM is, in words.
    #[serde(default)]
    pub nvram: String,
}

/// What the installer left, as PID 1 verified it.
fn configured() -> Option<Network> {
    let document = std::fs::read("/run/configuration.json").ok()?;
    Signed::parse(&document).ok()?.configuration.network
}

/// The ports of a host. Operators come by the link of their own, if there is one.
fn open_ports(management: Option<String>) -> Vec<OpenPort> {
    let port = |port, interface, rate, burst, what: &str| OpenPort {
        port,
        interface,
        rate,
        burst,
        what: what.into(),
    };
    vec![port(GUEST_PORT, None, 50, 200, "guest"), port(OPERATOR_PORT, management, 5, 20, "operators")]
}

/// Closes the machine, and then connects it and keeps it so.
pub(crate) fn start(shared: Shared) {
    let configured = configured();
    let found = kernel::read().unwrap_or_default();
    let management = configured.as_ref().and_then(|network| network::interface(network, &found, true));
    let firewall = firewall::enforce(open_ports(management));
    tracing::info!(state = firewall.state, "firewall: {}", firewall.text);
    let closed = firewall.state == "on";
    shared.update(|status| {
        let boot = boot_facts::read();
        status.system = Some(SystemStatus { boot, firewall, ..SystemStatus::default() });
    });
    if !closed {
        // The status says why; a machine that is open to everybody is not connected.
        return;
    }
    let of_time = configured.as_ref().map(|network| (network.time.clone(), network.nts.clone()));
    let (servers, nts) = of_time.unwrap_or_default();
    let (one, other) = (shared.clone(), shared);
    tokio::spawn(keeper::keep(configured, move |network| {
        one.update(|status| {
            if let Some(system) = &mut status.system {
                system.network = network;
            }
        });
    }));
    tokio::spawn(async move {
        let tell = |clock| {
            other.update(|status| {
                if let Some(system) = &mut status.system {
                    system.clock = clock;
                }
            });
        };
        clock::keeper::keep(servers, &nts, tell).await;
    });
}
