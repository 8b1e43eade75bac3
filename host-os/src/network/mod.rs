//! The host's network: from the signed configuration and what the kernel has, to what has to be changed. No I/O.
//!
//! Applied to what the kernel has after the changes, the same function finds nothing to do: so it is run again whenever
//! something changes, and what was lost comes back.

pub mod keeper;
pub mod kernel;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
pub(crate) mod namespace;
#[cfg(test)]
mod tests;

use installer::network::{Bond, Ipv6, Link, Network, mac};
use serde::Serialize;
use std::net::IpAddr;

/// Addresses that advertisements may give the host; whoever advertises more is not followed.
const MAX_ADDRESSES: u32 = 4;

/// A network interface as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address; for a card under a bond, the one that it was made with.
    pub mac: [u8; 6],
    /// Whether it is a network card and nothing that was made by software.
    pub card: bool,
    /// Switched on.
    pub up: bool,
    /// A cable with somebody at the other end.
    pub carrier: bool,
    /// Number of the interface that it is part of; 0 for none.
    pub master: u32,
    /// Addresses and their prefixes' lengths; link-local ones are not looked at.
    pub addresses: Vec<Address>,
    /// Routers of the default routes.
    pub gateways: Vec<Gateway>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix, in bits.
    pub prefix: u8,
    /// From an advertisement, with an end.
    pub advertised: bool,
}

/// A default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// The router.
    pub address: IpAddr,
    /// From an advertisement.
    pub advertised: bool,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Makes a bond.
    Bond {
        /// Its name.
        name: String,
        /// How it works.
        bond: Bond,
    },
    /// Makes the VLAN `id` on `parent`.
    Vlan {
        /// Its name.
        name: String,
        /// The interface below.
        parent: String,
        /// Its number.
        id: u16,
    },
    /// Makes an interface part of another.
    Join {
        /// The part.
        name: String,
        /// The whole.
        master: String,
    },
    /// Switches an interface on or off.
    Switch {
        /// Which.
        name: String,
        /// On.
        on: bool,
    },
    /// Sets `/proc/sys/net/ipv6/conf/NAME/KEY`.
    Setting {
        /// The interface.
        name: String,
        /// What.
        key: &'static str,
        /// To what.
        value: u32,
    },
    /// Gives an address.
    Add {
        /// The interface.
        name: String,
        /// The address.
        address: IpAddr,
        /// Length of the prefix, in bits.
        prefix: u8,
    },
    /// Takes an address away.
    Remove {
        /// The interface.
        name: String,
        /// The address.
        address: IpAddr,
        /// Length of the prefix, in bits.
        prefix: u8,
    },
    /// Makes the default route by this router.
    Route {
        /// The interface.
        name: String,
        /// The router.
        gateway: IpAddr,
    },
    /// Removes the default route by this router.
    Unroute {
        /// The interface.
        name: String,
        /// The router.
        gateway: IpAddr,
    },
}

/// The machine does not have what the configuration names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// No such card.
    #[error(
        "the {role} needs the network card {device}, which this machine does not have; it has {found}. Check the card, or install the node again with another configuration"
    )]
    NoDevice {
        /// `uplink` or `management`.
        role: &'static str,
        /// As in the configuration.
        device: String,
        /// What there is.
        found: String,
    },
    /// No card at all.
    #[error(
        "this machine has no network card that the kernel knows; check the firmware's settings of the card"
    )]
    NoCard,
}

/// Names of what is made, by role.
#[derive(Debug, Clone, Copy)]
struct Names {
    role: &'static str,
    bond: &'static str,
    vlan: &'static str,
}

const UPLINK: Names = Names { role: "uplink", bond: "bond0", vlan: "vlan0" };
const MANAGEMENT: Names = Names { role: "management", bond: "bond1", vlan: "vlan1" };

/// Name of the interface of a role that has its addresses.
pub fn interface(network: &Network, found: &[Found], management: bool) -> Option<String> {
    let (names, link) = match management {
        true => (MANAGEMENT, network.management.as_ref()?),
        false => (UPLINK, &network.uplink),
    };
    if link.vlan.is_some() {
        return Some(names.vlan.into());
    }
    match link.bond {
        Some(_) => Some(names.bond.into()),
        None => card(names.role, link.devices.first()?, found).ok().map(|card| card.name.clone()),
    }
}

/// The first card with a cable, or the first, by what routers advertise: for a node whose configuration says nothing.
pub fn automatic(found: &[Found]) -> Result<Network, NetworkError> {
    let mut cards = found.iter().filter(|found| found.card);
    let first = cards.clone().find(|card| card.carrier).or(cards.next()).ok_or(NetworkError::NoCard)?;
    let devices = vec![first.name.clone()];
    let uplink = Link { devices, bond: None, vlan: None, ipv6: Ipv6::RouterAdvertisement, ipv4: None };
    Ok(Network { uplink, management: None, time: Vec::new(), nts: Vec::new() })
}

fn card<'a>(role: &'static str, device: &str, found: &'a [Found]) -> Result<&'a Found, NetworkError> {
    let mut cards = found.iter().filter(|found| found.card);
    let card = match mac(device) {
        Some(mac) => cards.find(|card| card.mac == mac),
        None => cards.find(|card| card.name == device),
    };
    card.ok_or_else(|| {
        let names = found
            .iter()
            .filter(|found| found.card)
            .map(|card| format!("{} ({})", card.name, shown(card.mac)));
        let found = names.collect::<Vec<_>>().join(", ");
        NetworkError::NoDevice {
            role,
            device: device.to_owned(),
            found: if found.is_empty() { "none".into() } else { found },
        }
    })
}

fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What has to be changed so that the host is connected as the configuration says.
pub fn plan(network: &Network, found: &[Found]) -> Result<Vec<Change>, NetworkError> {
    let mut changes = Vec::new();
    link(&mut changes, UPLINK, &network.uplink, found)?;
    if let Some(management) = &network.management {
        link(&mut changes, MANAGEMENT, management, found)?;
    }
    Ok(changes)
}

fn link(changes: &mut Vec<Change>, names: Names, link: &Link, found: &[Found]) -> Result<(), NetworkError> {
    let cards: Vec<_> =
        link.devices.iter().map(|device| card(names.role, device, found)).collect::<Result<_, _>>()?;
    let have = |name: &str| found.iter().find(|found| found.name == name);
    let on = |name: &str| Change::Switch { name: name.to_owned(), on: true };
    let mut top = cards.first().map(|card| card.name.clone()).unwrap_or_default();
    // What lies below the interface with the addresses has none.
    let mut below: Vec<String> = Vec::new();
    if let Some(bond) = link.bond {
        let made = have(names.bond);
        if made.is_none() {
            changes.push(Change::Bond { name: names.bond.into(), bond });
        }
        for card in &cards {
            below.push(card.name.clone());
            if made.is_none_or(|made| card.master != made.index) {
                // The kernel bonds what is switched off.
                changes.push(Change::Switch { name: card.name.clone(), on: false });
                changes.push(Change::Join { name: card.name.clone(), master: names.bond.into() });
            }
        }
        top = names.bond.into();
    }
    if let Some(id) = link.vlan {
        if have(names.vlan).is_none() {
            changes.push(Change::Vlan { name: names.vlan.into(), parent: top.clone(), id });
        }
        below.push(std::mem::replace(&mut top, names.vlan.into()));
    }
    for name in &below {
        let part = have(name);
        let off = Change::Switch { name: name.clone(), on: false };
        if part.is_none_or(|part| !part.up) || changes.contains(&off) {
            changes.push(Change::Setting { name: name.clone(), key: "disable_ipv6", value: 1 });
            changes.push(on(name));
        }
        for Address { address, prefix, .. } in part.into_iter().flat_map(|part| &part.addresses) {
            changes.push(Change::Remove { name: name.clone(), address: *address, prefix: *prefix });
        }
    }
    addresses(changes, &top, link, have(&top));
    Ok(())
}

/// The interface with the addresses.
fn addresses(changes: &mut Vec<Change>, name: &str, link: &Link, found: Option<&Found>) {
    let advertised = link.ipv6 == Ipv6::RouterAdvertisement;
    if found.is_none_or(|found| !found.up) {
        // Before it is on, else the kernel's defaults decide.
        for (key, value) in settings(advertised) {
            changes.push(Change::Setting { name: name.to_owned(), key, value });
        }
        changes.push(Change::Switch { name: name.to_owned(), on: true });
    }
    let mut wanted: Vec<(IpAddr, u8, Option<IpAddr>)> = Vec::new();
    if let Ipv6::Static(six) = &link.ipv6 {
        wanted.push((six.address.into(), six.prefix, six.gateway.map(Into::into)));
    }
    if let Some(four) = &link.ipv4 {
        wanted.push((four.address.into(), four.prefix, four.gateway.map(Into::into)));
    }
    let empty = Found::default();
    let found = found.unwrap_or(&empty);
    // Gone first what is not wanted: a route can hang on an address.
    for Address { address, prefix, advertised: by_router } in &found.addresses {
        let keep = wanted.iter().any(|(ip, length, _)| (ip, length) == (address, prefix))
            || (*by_router && advertised && address.is_ipv6());
        if !keep {
            changes.push(Change::Remove { name: name.to_owned(), address: *address, prefix: *prefix });
        }
    }
    for Gateway { address, advertised: by_router } in &found.gateways {
        let keep = wanted.iter().any(|(_, _, gateway)| *gateway == Some(*address))
            || (*by_router && advertised && address.is_ipv6());
        if !keep {
            changes.push(Change::Unroute { name: name.to_owned(), gateway: *address });
        }
    }
    for (address, prefix, gateway) in wanted {
        if !found.addresses.iter().any(|have| (have.address, have.prefix) == (address, prefix)) {
            changes.push(Change::Add { name: name.to_owned(), address, prefix });
        }
        let routed = |gateway| found.gateways.iter().any(|have| have.address == gateway);
        if let Some(gateway) = gateway.filter(|gateway| !routed(*gateway)) {
            changes.push(Change::Route { name: name.to_owned(), gateway });
        }
    }
}

/// What the kernel may believe of advertisements (Documentation/networking/ip-sysctl.rst).
fn settings(advertised: bool) -> Vec<(&'static str, u32)> {
    let believe = u32::from(advertised);
    vec![
        ("disable_ipv6", 0),
        ("forwarding", 0),
        ("accept_ra", believe),
        ("autoconf", believe),
        ("accept_ra_defrtr", believe),
        ("accept_ra_pinfo", believe),
        // The wire chooses neither the size of packets nor other routes.
        ("accept_ra_mtu", 0),
        ("accept_redirects", 0),
        ("accept_source_route", 0),
        ("max_addresses", MAX_ADDRESSES),
        // A server is found by its address.
        ("use_tempaddr", 0),
        ("router_solicitations", if advertised { u32::MAX } else { 0 }),
    ]
}
