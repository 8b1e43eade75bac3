//! Events as firmware and stub write them, for tests.

use crate::{
    Hash,
    expected::{Expected, Section},
    log::{ACTION, APPLICATION, Event, IPL, SEPARATOR, VARIABLE_AUTHORITY, VARIABLE_CONFIG},
    sha256,
};

/// The certificate that [`started`] has in its Secure Boot variables.
pub const CERTIFICATE: &[u8] = b"a certificate";

/// An event whose data is what is measured.
pub fn event(pcr: u8, kind: u32, data: &[u8]) -> Event {
    Event { number: 0, pcr, kind, digest: sha256(data), data: data.to_vec() }
}

/// An event with another digest.
pub fn measured(pcr: u8, kind: u32, digest: Hash, data: &[u8]) -> Event {
    Event { number: 0, pcr, kind, digest, data: data.to_vec() }
}

/// UEFI_VARIABLE_DATA.
pub fn variable(name: &str, value: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut out = vec![0x61; 16];
    out.extend((name.len() as u64 / 2).to_le_bytes());
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(name);
    out.extend(value);
    out
}

/// EFI_SIGNATURE_LIST with one certificate.
pub fn signature_list(certificate: &[u8]) -> Vec<u8> {
    let mut out =
        vec![0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];
    let entry = 16 + certificate.len() as u32;
    for number in [28 + entry, 0, entry] {
        out.extend(number.to_le_bytes());
    }
    out.extend([0x11; 16]);
    out.extend(certificate);
    out
}

/// UEFI_IMAGE_LOAD_EVENT of a file whose path is not said.
fn image_load() -> Vec<u8> {
    let mut out = [0x1000_u64, 0x2000, 0, 4].map(u64::to_le_bytes).concat();
    out.extend([0x7f, 0xff, 4, 0]);
    out
}

/// What a release expects in tests.
pub fn expected() -> Expected {
    let section = |name: &str| Section { name: name.into(), sha256: sha256(name.as_bytes()) };
    Expected {
        images: vec![sha256(b"image"), sha256(b"kernel")],
        sections: [".linux", ".osrel", ".cmdline", ".sbat"].map(section).to_vec(),
        certificates: vec![sha256(CERTIFICATE)],
    }
}

/// The events of a machine that was started as [`expected`], with Secure Boot.
pub fn started() -> Vec<Event> {
    let list = signature_list(CERTIFICATE);
    let mut events =
        vec![event(0, 8, b"firmware 1"), event(7, VARIABLE_CONFIG, &variable("SecureBoot", &[1]))];
    for name in ["PK", "KEK", "db"] {
        events.push(event(7, VARIABLE_CONFIG, &variable(name, &list)));
    }
    events.push(event(7, VARIABLE_CONFIG, &variable("dbx", &[])));
    events.extend((0..8).map(|pcr| event(pcr, SEPARATOR, &[0; 4])));
    // The signature database's entry, without the list around it.
    events.push(event(7, VARIABLE_AUTHORITY, &variable("db", &list[28..])));
    events.push(event(4, ACTION, b"Calling EFI Application from Boot Option"));
    let expected = expected();
    events.push(measured(4, APPLICATION, expected.images[0], &image_load()));
    for section in &expected.sections {
        let name = format!("{}\0", section.name);
        let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        events.push(measured(11, IPL, sha256(name.as_bytes()), &wide));
        events.push(measured(11, IPL, section.sha256, &wide));
    }
    events.push(measured(4, APPLICATION, expected.images[1], &image_load()));
    numbered(events)
}

/// Numbers events as a log does.
pub fn numbered(mut events: Vec<Event>) -> Vec<Event> {
    for (event, number) in events.iter_mut().zip(1..) {
        event.number = number;
    }
    events
}
