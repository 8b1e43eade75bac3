//! Just enough DER (X.690) to write certificates and revocation lists.

/// One element: tag, length, the parts as its contents.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let mut out = vec![tag];
    match contents.len() {
        short @ 0..0x80 => out.push(short as u8),
        long => {
            let bytes = long.to_be_bytes();
            let used = &bytes[long.leading_zeros() as usize / 8..];
            out.push(0x80 | used.len() as u8);
            out.extend_from_slice(used);
        }
    }
    out.extend_from_slice(&contents);
    out
}

pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(0x30, parts)
}

/// Explicitly tagged, context-specific.
pub(crate) fn tagged(number: u8, contents: &[u8]) -> Vec<u8> {
    element(0xa0 | number, &[contents])
}

/// INTEGER of 0 to 255.
pub(crate) fn integer(value: u8) -> Vec<u8> {
    // A leading zero keeps it positive.
    if value < 0x80 { vec![2, 1, value] } else { vec![2, 2, 0, value] }
}

/// BIT STRING with this many bits unused at its end.
pub(crate) fn bits(unused: u8, bytes: &[u8]) -> Vec<u8> {
    element(3, &[&[unused], bytes])
}

pub(crate) fn octets(bytes: &[u8]) -> Vec<u8> {
    element(4, &[bytes])
}

pub(crate) fn ia5(text: &str) -> Vec<u8> {
    element(0x16, &[text.as_bytes()])
}

/// UTCTime, as YYMMDDHHMMSSZ.
pub(crate) fn time(text: &str) -> Vec<u8> {
    element(0x17, &[text.as_bytes()])
}

pub(crate) fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut bytes = vec![(arcs[0] * 40 + arcs[1]) as u8];
    for arc in &arcs[2..] {
        let mut groups = vec![(arc & 0x7f) as u8];
        let mut rest = arc >> 7;
        while rest > 0 {
            groups.insert(0, 0x80 | (rest & 0x7f) as u8);
            rest >>= 7;
        }
        bytes.extend(groups);
    }
    element(6, &[&bytes])
}

/// A name with one common name.
pub(crate) fn name(common_name: &str) -> Vec<u8> {
    let text = element(0x0c, &[common_name.as_bytes()]);
    sequence(&[&element(0x31, &[&sequence(&[&oid(&[2, 5, 4, 3]), &text])])])
}

/// RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of this many bytes (RFC 4055).
pub(crate) fn pss(salt: u8) -> Vec<u8> {
    let sha384 = sequence(&[&oid(&[2, 16, 840, 1, 101, 3, 4, 2, 2]), &[5, 0]]);
    let mgf1 = sequence(&[&oid(&[1, 2, 840, 113_549, 1, 1, 8]), &sha384]);
    let parameters = sequence(&[&tagged(0, &sha384), &tagged(1, &mgf1), &tagged(2, &integer(salt))]);
    sequence(&[&oid(&[1, 2, 840, 113_549, 1, 1, 10]), &parameters])
}

pub(crate) fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der)).into_bytes()
}
