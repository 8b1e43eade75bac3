//! The kernel's links, addresses and routes: read, and changed, by rtnetlink (rtnetlink(7), linux/if_link.h).

use super::{Address, Change, Found, Gateway};
use crate::netlink::{CREATE, EXCLUSIVE, Message, REPLACE, Socket, attributes, u16_at, u32_at};
use installer::network::Bond;
use std::fs;
use std::io;
use std::net::IpAddr;

const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;

const ETHERNET: u16 = 1;
const UP: u32 = 1;
const LOWER_UP: u32 = 0x1_0000;
const MAIN_TABLE: u32 = 254;
const BY_ADVERTISEMENT: u8 = 9;
const PERMANENT: u32 = 0x80;
/// Between two looks at a bond's cables, in milliseconds.
const MIIMON_MS: u32 = 100;

/// A change was refused.
#[derive(Debug, thiserror::Error)]
#[error(
    "{change} was refused: {source}; correct the node's network configuration, or look at the card and its cable"
)]
pub struct ChangeError {
    change: String,
    source: io::Error,
}

/// Reads all links with their addresses and default routes.
pub fn read() -> io::Result<Vec<Found>> {
    let mut socket = Socket::route()?;
    let all = |kind| Message::new(kind, 0, &[0; 16]);
    let mut found: Vec<Found> =
        socket.dump(all(GETLINK))?.iter().filter_map(|(_, body)| link(body)).collect();
    for (_, body) in socket.dump(all(GETADDR))? {
        if let Some((index, address)) = address(&body)
            && let Some(found) = found.iter_mut().find(|found| found.index == index)
        {
            found.addresses.push(address);
        }
    }
    for (_, body) in socket.dump(all(GETROUTE))? {
        if let Some((index, gateway)) = gateway(&body)
            && let Some(found) = found.iter_mut().find(|found| found.index == index)
        {
            found.gateways.push(gateway);
        }
    }
    Ok(found)
}

/// `struct ifinfomsg` and its attributes.
fn link(body: &[u8]) -> Option<Found> {
    let (kind, index, flags) = (u16_at(body, 2)?, u32_at(body, 4)?, u32_at(body, 8)?);
    let mut found = Found { index, up: flags & UP != 0, carrier: flags & LOWER_UP != 0, ..Found::default() };
    let (mut made, mut permanent) = (None, None);
    for (kind, value) in attributes(body.get(16..)?) {
        let mac = || <[u8; 6]>::try_from(value).ok();
        match kind {
            1 => found.mac = mac().unwrap_or_default(),
            3 => found.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            10 => found.master = u32_at(value, 0)?,
            18 => made = attributes(value).find(|(kind, _)| *kind == 1).map(|(_, name)| name.to_vec()),
            54 => permanent = mac(),
            _ => {}
        }
    }
    found.mac = permanent.filter(|mac| *mac != [0; 6]).unwrap_or(found.mac);
    // Cards have no kind. A host's kernel knows no virtual pairs; where they are, they stand for cards.
    found.card = kind == ETHERNET && made.is_none_or(|made| made == b"veth\0");
    Some(found)
}

/// `struct ifaddrmsg` and its attributes.
fn address(body: &[u8]) -> Option<(u32, Address)> {
    let [_, prefix, flags, scope, ..] = *body else { return None };
    const SITE: u8 = 200;
    let mut flags = u32::from(flags);
    let (mut local, mut peer) = (None, None);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            1 => peer = ip(value),
            2 => local = ip(value),
            8 => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    // Of the link or the host only.
    if scope > SITE {
        return None;
    }
    let address = Address { address: local.or(peer)?, prefix, advertised: flags & PERMANENT == 0 };
    Some((u32_at(body, 4)?, address))
}

/// `struct rtmsg` and its attributes, if it is a default route.
fn gateway(body: &[u8]) -> Option<(u32, Gateway)> {
    let [_, length, _, _, table, protocol, _, kind, ..] = *body else { return None };
    const UNICAST: u8 = 1;
    let mut table = u32::from(table);
    let (mut router, mut interface) = (None, None);
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            4 => interface = u32_at(value, 0),
            5 => router = ip(value),
            15 => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    if length != 0 || table != MAIN_TABLE || kind != UNICAST {
        return None;
    }
    Some((interface?, Gateway { address: router?, advertised: protocol == BY_ADVERTISEMENT }))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Makes one change.
pub fn apply(change: &Change) -> Result<(), ChangeError> {
    try_apply(change).map_err(|source| ChangeError {
        change: serde_json::to_string(change).unwrap_or_else(|_| format!("{change:?}")),
        source,
    })
}

fn try_apply(change: &Change) -> io::Result<()> {
    let mut socket = Socket::route()?;
    let mut index = |name: &str| index_of(&mut socket, name);
    let message = match change {
        Change::Setting { name, key, value } => {
            // The largest number stands for "no end", which the kernel writes as -1.
            let value = value.cast_signed().to_string();
            return fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{key}"), value);
        }
        Change::Bond { name, bond } => {
            let mode: u8 = match bond {
                Bond::ActiveBackup => 1,
                Bond::Lacp => 4,
            };
            new_link(name).with_nested(18, |info| {
                info.with_text(1, "bond")
                    .with_nested(2, |data| data.with(1, &[mode]).with(3, &MIIMON_MS.to_ne_bytes()))
            })
        }
        Change::Vlan { name, parent, id } => {
            let parent = index(parent)?;
            new_link(name).with(5, &parent.to_ne_bytes()).with_nested(18, |info| {
                info.with_text(1, "vlan").with_nested(2, |data| data.with(1, &id.to_ne_bytes()))
            })
        }
        Change::Join { name, master } => {
            let (part, whole) = (index(name)?, index(master)?);
            change_link(part, 0, 0).with(10, &whole.to_ne_bytes())
        }
        Change::Switch { name, on } => change_link(index(name)?, if *on { UP } else { 0 }, UP),
        Change::Add { name, address, prefix } => {
            address_message(NEWADDR, CREATE | REPLACE, index(name)?, *address, *prefix)
        }
        Change::Remove { name, address, prefix } => {
            address_message(DELADDR, 0, index(name)?, *address, *prefix)
        }
        Change::Route { name, gateway } => route_message(NEWROUTE, CREATE | REPLACE, index(name)?, *gateway),
        Change::Unroute { name, gateway } => route_message(DELROUTE, 0, index(name)?, *gateway),
    };
    socket.request(message)
}

/// The number of an interface.
pub(crate) fn index(name: &str) -> io::Result<u32> {
    index_of(&mut Socket::route()?, name)
}

fn index_of(socket: &mut Socket, name: &str) -> io::Result<u32> {
    let links = socket.dump(Message::new(GETLINK, 0, &[0; 16]))?;
    let found = links.iter().filter_map(|(_, body)| link(body)).find(|found| found.name == name);
    found.map(|found| found.index).ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENODEV))
}

fn new_link(name: &str) -> Message {
    Message::new(NEWLINK, CREATE | EXCLUSIVE, &[0; 16]).with_text(3, name)
}

fn change_link(index: u32, flags: u32, change: u32) -> Message {
    let body = [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), change.to_ne_bytes()].concat();
    Message::new(NEWLINK, 0, &body)
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(four) => (2, four.octets().to_vec()),
        IpAddr::V6(six) => (10, six.octets().to_vec()),
    }
}

fn address_message(kind: u16, flags: u16, index: u32, address: IpAddr, prefix: u8) -> Message {
    let (family, octets) = octets(address);
    let mut body = vec![family, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    Message::new(kind, flags, &body).with(2, &octets).with(1, &octets)
}

fn route_message(kind: u16, flags: u16, index: u32, gateway: IpAddr) -> Message {
    const STATIC: u8 = 4;
    // What is deleted may have been made by anybody.
    let protocol = if kind == DELROUTE { 0 } else { STATIC };
    let (family, octets) = octets(gateway);
    let body = [family, 0, 0, 0, MAIN_TABLE as u8, protocol, 0, 1, 0, 0, 0, 0];
    Message::new(kind, flags, &body).with(5, &octets).with(4, &index.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_machines_loopback_is_read() {
        let found = read().unwrap();
        let loopback = found.iter().find(|found| found.name == "lo").unwrap();
        assert!(loopback.index == 1 && !loopback.card, "{loopback:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = (link(&bytes), address(&bytes), gateway(&bytes));
        }
    }
}
