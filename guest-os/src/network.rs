//! Network: loopback and the first Ethernet interface, as the configuration says.

use crate::devices::{DeviceError, first_interface};
use crate::netlink::{self, Answer};
use crate::sysctl::{self, SysctlError};
use host_guest::{GuestConfig, Ipv6Config};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Index of the loopback interface in every network namespace of Linux.
const LOOPBACK: u32 = 1;

/// The network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No interface.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An interface setting failed.
    #[error(transparent)]
    Setting(#[from] SysctlError),
    /// The netlink socket failed.
    #[error(
        "talking to the kernel's network stack failed: {0}; build the image with the kernel of its recipe"
    )]
    Socket(nix::Error),
    /// The kernel refused a request.
    #[error("{what} was refused: {errno}; correct the guest's network configuration")]
    Refused {
        /// What was tried.
        what: String,
        /// The kernel's reason.
        errno: nix::Error,
    },
    /// The kernel's answer is not understood.
    #[error("the kernel's answer to {0} is not understood; build the image with the kernel of its recipe")]
    Answer(String),
}

/// Brings loopback and the first Ethernet interface up. Returns the name of the latter.
pub fn configure(sys: &Path, config: &GuestConfig) -> Result<String, NetworkError> {
    let (interface, name) = first_interface(sys)?;
    // Before the interface is up, else the kernel's default decides.
    let accept = if config.ipv6 == Ipv6Config::RouterAdvertisement { "1" } else { "0" };
    sysctl::set(&format!("net/ipv6/conf/{name}/accept_ra"), accept)?;
    sysctl::set(&format!("net/ipv6/conf/{name}/autoconf"), accept)?;
    request("switching loopback on", &netlink::set_up(LOOPBACK))?;
    request(&format!("switching {name} on"), &netlink::set_up(interface))?;
    let add = |address: IpAddr, prefix: u8, gateway: Option<IpAddr>| {
        request(
            &format!("the address {address}/{prefix} on {name}"),
            &netlink::add_address(interface, address, prefix),
        )?;
        let Some(gateway) = gateway else { return Ok(()) };
        request(&format!("the gateway {gateway}"), &netlink::add_default_route(interface, gateway))
    };
    if let Some(ipv4) = &config.ipv4 {
        add(ipv4.address.into(), ipv4.prefix, ipv4.gateway.map(Into::into))?;
    }
    if let Ipv6Config::Static { address, prefix, gateway } = &config.ipv6 {
        add((*address).into(), *prefix, gateway.map(Into::into))?;
    }
    Ok(name)
}

fn request(what: &str, message: &[u8]) -> Result<(), NetworkError> {
    let exchange = || -> nix::Result<Answer> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        connect(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        send(netlink.as_raw_fd(), message, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        Ok(netlink::answer(&answer[..length]))
    };
    match exchange().map_err(NetworkError::Socket)? {
        Answer::Done => Ok(()),
        Answer::Errno(code) => {
            Err(NetworkError::Refused { what: what.to_owned(), errno: nix::Error::from_raw(code) })
        }
        Answer::Other => Err(NetworkError::Answer(what.to_owned())),
    }
}

/// Addresses by which the guest can be reached from other machines: the static IPv4 address and what the kernel
/// has in IPv6.
pub fn addresses(config: &GuestConfig) -> Vec<String> {
    let ipv6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let ipv4 = config.ipv4.iter().map(|ipv4| ipv4.address.to_string());
    ipv4.chain(routable(&ipv6).map(|address| address.to_string())).collect()
}

/// Addresses of /proc/net/if_inet6 beyond the link: 32 hexadecimal digits, interface, prefix, scope, flags, name.
fn routable(table: &str) -> impl Iterator<Item = Ipv6Addr> {
    const HOST: u8 = 0x10;
    const LINK: u8 = 0x20;
    table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let scope = u8::from_str_radix(fields.nth(2)?, 16).ok()?;
        (scope != HOST && scope != LINK).then_some(Ipv6Addr::from(address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_host_and_the_link_are_not_routable() {
        let table = "fe80000000000000505400fffe123456 02 40 20 80     eth0\n\
                     fec0000000000000505400fffe123456 02 40 40 00     eth0\n\
                     20010db8000000000000000000000001 02 40 00 80     eth0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n\
                     garbage\n\n";
        let found: Vec<_> = routable(table).map(|address| address.to_string()).collect();
        assert_eq!(found, ["fec0::5054:ff:fe12:3456", "2001:db8::1"]);
    }
}
