//! Representation-independent hashing (Interface Specification, "Representation-independent hashing of
//! structured data"); the hash of a request's content is its request id.

use ring::digest::{Context, SHA256, digest};

use crate::encoding::leb128;

/// A value that can be hashed independent of its encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// Bytes.
    Blob(&'a [u8]),
    /// Text, hashed as its UTF-8.
    Text(&'a str),
    /// Natural number, hashed as its LEB128.
    Nat(u64),
    /// Values in order.
    Array(Vec<Value<'a>>),
    /// Fields by name.
    Map(Vec<(&'a str, Value<'a>)>),
}

/// The hash of a map: its fields' hashes, sorted, hashed.
pub fn hash_of_map(fields: &[(&str, Value<'_>)]) -> [u8; 32] {
    let mut pairs: Vec<_> =
        fields.iter().map(|(name, value)| (sha256(name.as_bytes()), hash_of(value))).collect();
    pairs.sort();
    let mut context = Context::new(&SHA256);
    for (name, value) in pairs {
        context.update(&name);
        context.update(&value);
    }
    array(context.finish().as_ref())
}

fn hash_of(value: &Value<'_>) -> [u8; 32] {
    match value {
        Value::Blob(bytes) => sha256(bytes),
        Value::Text(text) => sha256(text.as_bytes()),
        Value::Nat(number) => sha256(&leb128(*number)),
        Value::Array(values) => {
            let mut context = Context::new(&SHA256);
            for value in values {
                context.update(&hash_of(value));
            }
            array(context.finish().as_ref())
        }
        Value::Map(fields) => hash_of_map(fields),
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    array(digest(&SHA256, bytes).as_ref())
}

fn array(digest: &[u8]) -> [u8; 32] {
    let mut array = [0; 32];
    array.copy_from_slice(digest);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Interface Specification, "Request ids".
    #[test]
    fn request_id_of_the_specifications_example() {
        let id = hash_of_map(&[
            ("request_type", Value::Text("call")),
            ("sender", Value::Blob(&[4])),
            ("ingress_expiry", Value::Nat(1_685_570_400_000_000_000)),
            ("canister_id", Value::Blob(&[0, 0, 0, 0, 0, 0, 0x04, 0xd2])),
            ("method_name", Value::Text("hello")),
            ("arg", Value::Blob(b"DIDL\x00\xfd*")),
        ]);
        assert_eq!(hex::encode(id), "1d1091364d6bb8a6c16b203ee75467d59ead468f523eb058880ae8ec80e2b101");
    }

    #[test]
    fn field_order_does_not_matter_and_arrays_do() {
        let fields =
            [("a", Value::Nat(300)), ("b", Value::Array(vec![Value::Blob(b"x"), Value::Blob(b"y")]))];
        let reversed = [fields[1].clone(), fields[0].clone()];
        assert_eq!(hash_of_map(&fields), hash_of_map(&reversed));
        let swapped =
            [("a", Value::Nat(300)), ("b", Value::Array(vec![Value::Blob(b"y"), Value::Blob(b"x")]))];
        assert_ne!(hash_of_map(&fields), hash_of_map(&swapped));
    }
}
