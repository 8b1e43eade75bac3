//! The guest's network on a host: a cable from the host to the guest (a tap device) with nothing else on it, and the kernel's own
//! driver for the guest's end (vhost-net).
//!
//! Both ends use their link-local addresses only, so that no address of the machine's networks can be in the way, and nothing has
//! to be configured in the guest. The host hands connections to the guest's port on ([`crate::relay`]); the firewall lets the
//! guest answer and begin nothing. QEMU gets the device open and has no network of its own.

use crate::launch::{GUEST_PORT, Wire};
use crate::network::{Change, kernel};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs::File;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

/// The host's end.
pub(crate) const NAME: &str = "guest0";
/// The guest's end: what QEMU gives the first card by itself. The guest's address follows from it.
pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

const TUN: &str = "/dev/net/tun";
const VHOST: &str = "/dev/vhost-net";

/// There is no cable.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} for the guest's network: {source}; start the host by the kernel of its release")]
pub struct CableError {
    action: String,
    source: io::Error,
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    action: impl Into<String>,
) -> impl FnOnce(E) -> CableError {
    let action = action.into();
    move |source| CableError { action, source: io::Error::other(source) }
}

/// The host's end, switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cable {
    index: u32,
}

/// The guest's end, for QEMU to inherit.
#[derive(Debug)]
pub(crate) struct Plug {
    tap: File,
    vhost: Option<File>,
}

/// Link-local address that the kernel gives a card by its MAC address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let [high, low] = [[a ^ 2, b, c, 0xff], [0xfe, d, e, f]].map(u32::from_be_bytes);
    Ipv6Addr::from((0xfe80 << 112) | (u128::from(high) << 32) | u128::from(low))
}

fn open(path: &str) -> Result<File, CableError> {
    File::options().read(true).write(true).open(path).map_err(failed(format!("open {path}")))
}

fn tap() -> Result<File, CableError> {
    let tun = open(TUN)?;
    crate::sys::attach_tap(&tun, NAME).map_err(failed(format!("make {NAME}")))?;
    Ok(tun)
}

impl Cable {
    /// Lays the cable, or takes the one that lies there since an earlier start of the agent.
    pub(crate) fn lay() -> Result<Self, CableError> {
        if kernel::index(NAME).is_err() {
            crate::sys::keep_tap(&tap()?).map_err(failed(format!("keep {NAME}")))?;
        }
        let set = |key, value| Change::Setting { name: NAME.into(), key, value };
        // The guest is no router: nothing that it advertises is believed.
        let off = ["accept_ra", "autoconf", "accept_redirects", "forwarding", "disable_ipv6"];
        let on = Change::Switch { name: NAME.into(), on: true };
        for change in off.map(|key| set(key, 0)).iter().chain([&on]) {
            kernel::apply(change).map_err(failed(format!("switch {NAME} on")))?;
        }
        let index = kernel::index(NAME).map_err(failed(format!("find {NAME}")))?;
        Ok(Self { index })
    }

    /// Where the guest answers.
    pub(crate) fn guest(self) -> SocketAddr {
        SocketAddrV6::new(link_local(MAC), GUEST_PORT, 0, self.index).into()
    }

    /// Opens the guest's end. Only one guest has it at a time.
    pub(crate) fn plug(self) -> Result<Plug, CableError> {
        let plug = Plug {
            tap: tap()?,
            vhost: open(VHOST)
                .inspect_err(|error| tracing::warn!(%error, "the guest's network goes through QEMU"))
                .ok(),
        };
        for file in [Some(&plug.tap), plug.vhost.as_ref()].into_iter().flatten() {
            fcntl(file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(failed("hand a device on"))?;
        }
        Ok(plug)
    }
}

impl Plug {
    pub(crate) fn wire(&self) -> Wire {
        Wire::Tap { tap: self.tap.as_raw_fd(), vhost: self.vhost.as_ref().map(AsRawFd::as_raw_fd) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{OpenPort, enforce};
    use crate::network::namespace::{Machine, say, skip, with_peer};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    #[test]
    fn the_guests_address_follows_from_its_card() {
        assert_eq!(link_local(MAC), "fe80::5054:ff:fe12:3456".parse::<Ipv6Addr>().unwrap());
    }

    /// Carries frames, as QEMU does.
    fn carry(mut from: File, mut to: File) {
        std::thread::spawn(move || {
            let mut frame = [0; 4096];
            while let Ok(length) = from.read(&mut frame) {
                // A card that is still off drops it.
                let _ = to.write(&frame[..length]);
            }
        });
    }

    fn listen(machine: &Machine, port: u16) {
        machine.run(move || {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
            std::thread::spawn(move || listener.incoming().for_each(drop));
        });
    }

    /// Whether a connection comes about; addresses need a moment at first.
    fn connects(machine: &Machine, to: SocketAddr, patience: u64) -> bool {
        machine.run(move || {
            let end = Instant::now() + Duration::from_secs(patience);
            while Instant::now() < end {
                if TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok() {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            false
        })
    }

    #[test]
    fn the_host_reaches_the_guest_and_not_the_other_way_round() {
        let done = with_peer(|host, guest| {
            let (cable, plug) = match host.run(|| Cable::lay().and_then(|cable| Ok((cable, cable.plug()?)))) {
                Ok(laid) => laid,
                Err(error) => return skip(&error.to_string()),
            };
            if plug.vhost.is_none() {
                say("this kernel has no vhost-net; the host's own has it");
            }
            assert_eq!(host.run(|| Cable::lay().unwrap()), cable, "it stays the same one");
            assert!(host.run(move || cable.plug().is_err()), "one guest has it at a time");
            let card = guest.run(|| {
                let card = open(TUN).unwrap();
                crate::sys::attach_tap(&card, "card").unwrap();
                card
            });
            carry(plug.tap.try_clone().unwrap(), card.try_clone().unwrap());
            carry(card, plug.tap.try_clone().unwrap());
            let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
            guest.ip(&format!("link set card address {mac}"));
            guest.ip("link set card up");
            listen(&guest, GUEST_PORT);
            listen(&host, 18444);

            assert!(connects(&host, cable.guest(), 20), "the host does not reach the guest");
            let own = host
                .run(|| kernel::read().unwrap().into_iter().find(|found| found.name == NAME).unwrap().mac);
            let index = guest.run(|| kernel::index("card").unwrap());
            let operators = SocketAddr::from(SocketAddrV6::new(link_local(own), 18444, 0, index));
            assert!(connects(&guest, operators, 20), "without a firewall the way is open");
            let open =
                OpenPort { port: 18444, interface: None, rate: 20, burst: 40, what: "operators".into() };
            let firewall = host.run(move || enforce(vec![open]));
            assert_eq!(firewall.state, "on", "{}", firewall.text);
            assert!(!connects(&guest, operators, 3), "the guest reaches the operators' port");
            assert!(connects(&host, cable.guest(), 20), "the firewall cuts the guest off");
        });
        done.unwrap_or_else(|why| skip(&why));
    }
}
