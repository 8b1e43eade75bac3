//! The two encodings of everything that leaves: CBOR with the self-described tag, and LEB128.

use ciborium::tag::Required;
use serde::Serialize;

/// CBOR of a value under the self-described tag 55799.
pub(crate) fn cbor(value: &impl Serialize) -> Vec<u8> {
    let mut encoded = Vec::new();
    // Cannot fail: the types given here have no failing `Serialize`, and a vector takes every byte.
    let _ = ciborium::into_writer(&Required::<_, 55799>(value), &mut encoded);
    encoded
}

/// Shortest unsigned LEB128 of a number.
pub(crate) fn leb128(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(10);
    while value > 0x7f {
        encoded.push(value as u8 | 0x80);
        value >>= 7;
    }
    encoded.push(value as u8);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_in_the_specification() {
        for (number, encoded) in
            [(0, vec![0]), (127, vec![127]), (128, vec![0x80, 1]), (624_485, vec![0xe5, 0x8e, 0x26])]
        {
            assert_eq!(leb128(number), encoded);
        }
    }

    #[test]
    fn cbor_is_self_described() {
        assert_eq!(cbor(&7u8), [0xd9, 0xd9, 0xf7, 7]);
    }
}
