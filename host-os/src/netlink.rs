//! Netlink (netlink(7)): messages as bytes, and the socket that carries them. Integers are in the machine's byte order
//! unless a subsystem says otherwise.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, recv, send, socket,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
/// Without the flags in the two highest bits.
const KIND: u16 = 0x3fff;

/// One message on its way to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// With the fixed part of its body.
    pub(crate) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8]); // sequence, sender
        bytes.extend(body);
        Self(bytes).sized()
    }

    fn sized(mut self) -> Self {
        // A few kilobytes at most.
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an attribute.
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.sized()
    }

    /// Adds a text, with its end.
    pub(crate) fn with_text(self, kind: u16, text: &str) -> Self {
        self.with(kind, &[text.as_bytes(), b"\0"].concat())
    }

    /// Adds an attribute that holds attributes.
    pub(crate) fn with_nested(self, kind: u16, inside: impl FnOnce(Attributes) -> Attributes) -> Self {
        let inside = inside(Attributes::default());
        self.with(kind | NESTED, &inside.0)
    }

    fn numbered(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Attributes inside of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn with_text(self, kind: u16, text: &str) -> Self {
        self.with(kind, &[text.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn with_nested(self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let inside = inside(Self::default());
        self.with(kind | NESTED, &inside.0)
    }
}

/// Reads attributes, as far as they are sound.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & KIND;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The messages of a datagram: kind, sequence, body.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let (kind, sequence) = (u16_at(rest, 4)?, u32_at(rest, 8)?);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

/// The answer to a request: the kernel's errno, negated.
fn verdict(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A connection to one subsystem of the kernel.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Links, addresses, routes.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute, 0)
    }

    /// Rules for packets.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter, 0)
    }

    /// Hears of every change of links, addresses and routes: RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR,
    /// _IPV6_ROUTE. Does not block.
    pub(crate) fn route_changes() -> io::Result<Self> {
        let socket = Self::open(SockProtocol::NetlinkRoute, 0x1 | 0x10 | 0x40 | 0x100 | 0x400)?;
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&socket.socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(socket)
    }

    fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // Only what the kernel sends is read.
        if groups == 0 {
            connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        }
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a request and waits for the kernel's answer.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        let sequence = self.send(&[flagged(message, ACK)])?;
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, number, body) in messages(&buffer[..length]) {
                if kind == ERROR && number == sequence {
                    return verdict(body);
                }
            }
        }
    }

    /// Sends messages as one; those that ask for an answer must all succeed.
    pub(crate) fn batch(&mut self, batch: &[Message]) -> io::Result<()> {
        let last = self.send(batch)?;
        let first = last + 1 - batch.len() as u32;
        let asks = |message: &Message| u16_at(&message.0, 6).is_some_and(|flags| flags & ACK != 0);
        let mut open: Vec<u32> =
            (first..).zip(batch).filter(|(_, message)| asks(message)).map(|(number, _)| number).collect();
        let mut buffer = vec![0; 64 * 1024];
        while !open.is_empty() {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (_, number, body) in messages(&buffer[..length]).filter(|(kind, ..)| *kind == ERROR) {
                open.retain(|waiting| *waiting != number);
                // The whole batch is refused then; what refused it first counts.
                verdict(body)?;
            }
        }
        Ok(())
    }

    /// Asks for all of a kind.
    pub(crate) fn dump(&mut self, message: Message) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let sequence = self.send(&[flagged(message, DUMP)])?;
        let (mut buffer, mut found) = (vec![0; 64 * 1024], Vec::new());
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, number, body) in messages(&buffer[..length]) {
                match kind {
                    _ if number != sequence => {}
                    DONE => return Ok(found),
                    ERROR => {
                        verdict(body)?;
                        return Ok(found);
                    }
                    kind => found.push((kind, body.to_vec())),
                }
            }
        }
    }

    fn send(&mut self, batch: &[Message]) -> io::Result<u32> {
        let mut bytes = Vec::new();
        for message in batch {
            self.sequence += 1;
            bytes.extend(message.numbered(self.sequence));
        }
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(self.sequence)
    }

    /// Reads away what has come; whether there was anything, or something was lost.
    pub(crate) fn drain(&self) -> bool {
        let (mut buffer, mut any) = ([0; 16 * 1024], false);
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                // The kernel had no room for all of it.
                Ok(_) | Err(nix::Error::ENOBUFS) => any = true,
                Err(nix::Error::EINTR) => {}
                Err(_) => return any,
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

fn flagged(mut message: Message, more: u16) -> Message {
    let flags = u16_at(&message.0, 6).unwrap_or_default() | more;
    message.0[6..8].copy_from_slice(&flags.to_ne_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_has_the_kernels_layout() {
        let message = Message::new(16, ACK, &[1, 2, 3, 4])
            .with_text(3, "ab")
            .with_nested(18, |inside| inside.with(1, &[7]));
        #[rustfmt::skip]
        assert_eq!(message.bytes(), [
            40, 0, 0, 0,  16, 0,  5, 0,  0, 0, 0, 0,  0, 0, 0, 0,
            1, 2, 3, 4,
            7, 0, 3, 0, b'a', b'b', 0, 0,
            12, 0, 18, 0x80,  5, 0, 1, 0, 7, 0, 0, 0,
        ]);
        let found: Vec<_> = attributes(&message.bytes()[20..]).collect();
        assert_eq!(found, [(3, &b"ab\0"[..]), (18, &[5, 0, 1, 0, 7, 0, 0, 0][..])]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(attributes(&bytes).count() <= bytes.len());
            prop_assert!(messages(&bytes).count() <= bytes.len());
            let _ = verdict(&bytes);
        }
    }
}
