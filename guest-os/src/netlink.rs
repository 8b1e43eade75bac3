//! Requests of rtnetlink (rtnetlink(7), linux/rtnetlink.h), as bytes. Fields are in the machine's byte order.

use std::net::IpAddr;

/// Sequence number of the only request under way.
const SEQUENCE: u32 = 1;
const HEADER: usize = 16;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;

/// What the kernel said to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// Refused with this errno.
    Errno(i32),
    /// Not an answer to the request.
    Other,
}

/// Switches the interface on.
pub fn set_up(interface: u32) -> Vec<u8> {
    let mut body = vec![0; 4]; // family unspecified, padding, type unspecified
    body.extend(interface.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes()); // flags
    body.extend(IFF_UP.to_ne_bytes()); // which of them to change
    request(RTM_NEWLINK, 0, &body)
}

/// Gives the interface an address, or replaces the one that it has.
pub fn add_address(interface: u32, address: IpAddr, prefix: u8) -> Vec<u8> {
    let mut body = vec![family(address), prefix, 0, RT_SCOPE_UNIVERSE];
    body.extend(interface.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &octets(address));
    attribute(&mut body, IFA_ADDRESS, &octets(address));
    request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
}

/// Makes the default route.
pub fn add_default_route(interface: u32, gateway: IpAddr) -> Vec<u8> {
    // Destination and source of length 0: everything.
    let mut body =
        vec![family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST];
    body.extend(0_u32.to_ne_bytes());
    attribute(&mut body, RTA_GATEWAY, &octets(gateway));
    attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
    request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
}

/// Reads the acknowledgement of a request.
pub fn answer(datagram: &[u8]) -> Answer {
    let kind = datagram.get(4..6).and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
    let sequence = datagram.get(8..12).and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)));
    let code =
        datagram.get(HEADER..HEADER + 4).and_then(|bytes| Some(i32::from_ne_bytes(bytes.try_into().ok()?)));
    match (kind, sequence, code) {
        (Some(NLMSG_ERROR), Some(SEQUENCE), Some(0)) => Answer::Done,
        (Some(NLMSG_ERROR), Some(SEQUENCE), Some(code)) => Answer::Errno(code.wrapping_neg()),
        _ => Answer::Other,
    }
}

fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u32; // a few dozen bytes
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend(SEQUENCE.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes()); // to the kernel
    message.extend(body);
    message
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16; // an address at most
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,  // AF_INET
        IpAddr::V6(_) => 10, // AF_INET6
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by hand from linux/rtnetlink.h for a little-endian machine.
    #[test]
    fn requests_have_the_kernels_layout() {
        #[rustfmt::skip]
        let up = [
            32, 0, 0, 0,  16, 0,  5, 0,  1, 0, 0, 0,  0, 0, 0, 0,
            0, 0, 0, 0,  2, 0, 0, 0,  1, 0, 0, 0,  1, 0, 0, 0,
        ];
        assert_eq!(set_up(2), up);
        #[rustfmt::skip]
        let address = [
            40, 0, 0, 0,  20, 0,  5, 5,  1, 0, 0, 0,  0, 0, 0, 0,
            2, 24, 0, 0,  2, 0, 0, 0,
            8, 0, 2, 0, 10, 0, 2, 15,
            8, 0, 1, 0, 10, 0, 2, 15,
        ];
        assert_eq!(add_address(2, "10.0.2.15".parse().unwrap(), 24), address);
        #[rustfmt::skip]
        let route = [
            56, 0, 0, 0,  24, 0,  5, 5,  1, 0, 0, 0,  0, 0, 0, 0,
            10, 0, 0, 0, 254, 4, 0, 1,  0, 0, 0, 0,
            20, 0, 5, 0,  0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            8, 0, 4, 0,  3, 0, 0, 0,
        ];
        assert_eq!(add_default_route(3, "fe80::1".parse().unwrap()), route);
    }

    fn acknowledgement(kind: u16, sequence: u32, code: i32) -> Vec<u8> {
        let mut message = 36_u32.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 2]);
        message.extend(sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(code.to_ne_bytes());
        message.extend([0; 16]);
        message
    }

    #[test]
    fn acknowledgements_are_told_from_everything_else() {
        assert_eq!(answer(&acknowledgement(2, 1, 0)), Answer::Done);
        assert_eq!(answer(&acknowledgement(2, 1, -17)), Answer::Errno(17));
        assert_eq!(answer(&acknowledgement(2, 1, i32::MIN)), Answer::Errno(i32::MIN));
        assert_eq!(answer(&acknowledgement(2, 2, 0)), Answer::Other);
        assert_eq!(answer(&acknowledgement(16, 1, 0)), Answer::Other);
        for length in 0..20 {
            assert_eq!(answer(&acknowledgement(2, 1, 0)[..length]), Answer::Other);
        }
    }
}
