//! The kernel's part, in namespaces of its own.

use super::keeper::{NetworkStatus, round};
use super::namespace::{Machine, skip, with_peer};
use super::*;
use installer::network::{Static4, Static6};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

fn network(ipv6: Ipv6) -> Network {
    let uplink = Link { devices: vec!["eth0".into()], bond: None, vlan: None, ipv6, ipv4: None };
    Network { uplink, management: None, time: Vec::new(), nts: Vec::new() }
}

fn fixed() -> Network {
    let gateway = Some("fd00::2".parse().unwrap());
    let mut network =
        network(Ipv6::Static(Static6 { address: "fd00::1".parse().unwrap(), prefix: 64, gateway }));
    network.uplink.ipv4 =
        Some(Static4 { address: [192, 0, 2, 1].into(), prefix: 24, gateway: Some([192, 0, 2, 2].into()) });
    network
}

fn until(
    host: &Machine,
    network: &Network,
    what: &str,
    fits: impl Fn(&NetworkStatus) -> bool,
) -> NetworkStatus {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let network = network.clone();
        let status = host.run(move || round(Some(&network)));
        if fits(&status) {
            return status;
        }
        assert!(Instant::now() < end, "never {what}: {status:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_static_address_is_there_and_comes_back_and_a_lost_cable_is_told() {
    let done = with_peer(|host, peer| {
        // A router speaks from an address of the link, which it has at once so.
        peer.run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth1/accept_dad", "0").unwrap());
        peer.up("fd00::2/64", "192.0.2.2/24");
        let network = fixed();
        let status = until(&host, &network, "connected", |status| status.state == "connected");
        assert_eq!(status.links[0].addresses, ["192.0.2.1/24", "fd00::1/64"]);
        let mut gateways = status.links[0].gateways.clone();
        gateways.sort();
        assert_eq!(gateways, ["192.0.2.2", "fd00::2"]);
        // Nothing is left to do.
        let again = network.clone();
        assert_eq!(host.run(move || plan(&again, &kernel::read().unwrap())), Ok(vec![]));
        // Advertisements are not followed.
        let before = addresses(&host);
        for _ in 0..5 {
            advertise(&peer, 3);
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(addresses(&host), before, "a router was believed");
        // Somebody took the addresses away, and added one.
        host.ip("addr flush dev eth0 scope global");
        host.ip("addr add fd00::bad/64 dev eth0");
        let status = until(&host, &network, "connected again", |status| status.state == "connected");
        assert_eq!(status.links[0].addresses, ["192.0.2.1/24", "fd00::1/64"]);
        peer.ip("link set eth1 down");
        let status = until(&host, &network, "without a cable", |status| status.state == "no-cable");
        assert!(status.text.contains("check its cable"), "{}", status.text);
        peer.ip("link set eth1 up");
        until(&host, &network, "connected after the cable", |status| {
            status.state == "connected" && status.links[0].gateways.len() == 2
        });
    });
    done.unwrap_or_else(|why| skip(&why));
}

fn addresses(host: &Machine) -> Vec<Address> {
    let found = host.run(|| kernel::read().unwrap());
    found.into_iter().find(|found| found.name == "eth0").unwrap().addresses
}

/// A router advertisement (RFC 4861, 4.2) with so many prefixes, and an MTU.
fn advertise(router: &Machine, prefixes: u8) {
    router.run(move || {
        let found = kernel::read().unwrap();
        let index = found.iter().find(|found| found.name == "eth1").unwrap().index;
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        socket.set_multicast_if_v6(index).unwrap();
        let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        message.extend([5, 1, 0, 0, 0, 0, 5, 0]); // MTU 1280
        for number in 0..prefixes {
            message.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 7, 8, 0, 0, 0, 0]);
            message.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, number, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        let all = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
        // A cable needs a moment, and the router an address of its own.
        let end = Instant::now() + Duration::from_secs(20);
        while let Err(error) = socket.send_to(&message, &SockAddr::from(all)) {
            assert!(Instant::now() < end, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn an_advertisement_connects_within_bounds() {
    let done = with_peer(|host, peer| {
        peer.run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth1/accept_dad", "0").unwrap());
        peer.ip("link set eth1 up");
        let network = network(Ipv6::RouterAdvertisement);
        let status = until(&host, &network, "waiting for a router", |status| status.state == "no-router");
        assert!(status.text.contains("no router advertises"), "{}", status.text);
        let end = Instant::now() + Duration::from_secs(20);
        let status = loop {
            advertise(&peer, 40);
            let asked = network.clone();
            let status = host.run(move || round(Some(&asked)));
            if status.state == "connected" && !status.links[0].gateways.is_empty() {
                break status;
            }
            assert!(Instant::now() < end, "{status:?}");
            std::thread::sleep(Duration::from_millis(200));
        };
        let count = status.links[0].addresses.len();
        assert!((1..=MAX_ADDRESSES as usize).contains(&count), "{count} of 40 advertised addresses");
        assert!(status.links[0].gateways[0].starts_with("fe80:"), "{status:?}");
        let mtu = host.run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu").unwrap());
        assert_eq!(mtu.trim(), "1500", "the wire chose the size of packets");
        let again = network.clone();
        assert_eq!(host.run(move || plan(&again, &kernel::read().unwrap())), Ok(vec![]), "fights the router");
    });
    done.unwrap_or_else(|why| skip(&why));
}

/// Addresses lie on the link that is made of others.
#[test]
fn links_are_made_of_links() {
    let done = with_peer(|host, peer| {
        peer.up("fd00::2/64", "192.0.2.2/24");
        let mut network = fixed();
        (network.uplink.bond, network.uplink.vlan) = (Some(Bond::ActiveBackup), Some(7));
        let asked = network.clone();
        let first = host.run(move || round(Some(&asked)));
        if first.text.contains("Operation not supported") {
            // Bonds and VLANs are in the host's own kernel.
            return super::namespace::say("this kernel has no bonds");
        }
        let status = until(&host, &network, "connected", |status| status.state == "connected");
        assert_eq!(status.links[0].name, "vlan0");
        let again = network.clone();
        assert_eq!(host.run(move || plan(&again, &kernel::read().unwrap())), Ok(vec![]));
    });
    done.unwrap_or_else(|why| skip(&why));
}
