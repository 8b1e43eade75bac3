//! Just enough DER (X.690) to write one certificate.

/// One element: tag, length, the parts as its contents.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let mut out = vec![tag];
    match contents.len() {
        short @ 0..=0x7f => out.push(short as u8),
        long => {
            let bytes = long.to_be_bytes();
            let used = &bytes[(long.leading_zeros() / 8) as usize..];
            out.push(0x80 | used.len() as u8);
            out.extend_from_slice(used);
        }
    }
    out.extend_from_slice(&contents);
    out
}

pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(0x30, parts)
}

pub(super) fn set(parts: &[&[u8]]) -> Vec<u8> {
    element(0x31, parts)
}

/// Explicitly tagged, context-specific.
pub(super) fn tagged(number: u8, contents: &[u8]) -> Vec<u8> {
    element(0xa0 | number, &[contents])
}

pub(super) fn null() -> Vec<u8> {
    element(5, &[])
}

/// INTEGER of 0 to 255.
pub(super) fn integer(value: u8) -> Vec<u8> {
    // A leading zero keeps it positive.
    if value < 0x80 { element(2, &[&[value]]) } else { element(2, &[&[0, value]]) }
}

/// BIT STRING of whole bytes.
pub(super) fn bits(bytes: &[u8]) -> Vec<u8> {
    element(3, &[&[0], bytes])
}

pub(super) fn octets(bytes: &[u8]) -> Vec<u8> {
    element(4, &[bytes])
}

pub(super) fn utf8(text: &str) -> Vec<u8> {
    element(0x0c, &[text.as_bytes()])
}

pub(super) fn ia5(text: &str) -> Vec<u8> {
    element(0x16, &[text.as_bytes()])
}

/// UTCTime, as YYMMDDHHMMSSZ.
pub(super) fn utc_time(text: &str) -> Vec<u8> {
    element(0x17, &[text.as_bytes()])
}

/// OBJECT IDENTIFIER.
pub(super) fn oid(arcs: &[u32]) -> Vec<u8> {
    let [first, second, rest @ ..] = arcs else { return element(6, &[]) };
    let mut bytes = Vec::new();
    for arc in std::iter::once(first * 40 + second).chain(rest.iter().copied()) {
        let groups = (32 - arc.leading_zeros()).div_ceil(7).max(1);
        for group in (0..groups).rev() {
            let more = if group == 0 { 0 } else { 0x80 };
            bytes.push((arc >> (group * 7)) as u8 & 0x7f | more);
        }
    }
    element(6, &[&bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodings from X.690 and from AMD's certificates.
    #[test]
    fn known_encodings() {
        assert_eq!(oid(&[1, 2, 840, 113549]), [6, 6, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d]);
        assert_eq!(oid(&[1, 3, 6, 1, 4, 1, 3704, 1, 4]), [6, 9, 43, 6, 1, 4, 1, 0x9c, 0x78, 1, 4]);
        assert_eq!(oid(&[2, 5, 4, 0]), [6, 3, 0x55, 4, 0]);
        assert_eq!(integer(0x7f), [2, 1, 0x7f]);
        assert_eq!(integer(0xd5), [2, 2, 0, 0xd5]);
        assert_eq!(octets(&[7; 0x7f])[..3], [4, 0x7f, 7]);
        assert_eq!(octets(&[7; 0x80])[..4], [4, 0x81, 0x80, 7]);
        assert_eq!(octets(&[7; 0x1234])[..5], [4, 0x82, 0x12, 0x34, 7]);
        assert_eq!(null(), [5, 0]);
        assert_eq!(bits(&[1]), [3, 2, 0, 1]);
    }
}
