//! Writing canonical JSON (the crate's documentation defines it), and reading documents of one type and version.

use crate::{MAX_DOCUMENT, SPEC_VERSION};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Largest integer of the canonical form: beyond it, JSON readers that use doubles lose digits.
const MAX_INTEGER: u64 = (1 << 53) - 1;

/// A value that has no canonical form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// Control characters, DEL or anything beyond ASCII in a string or key.
    #[error("the text {0:?} has characters other than printable ASCII; use 0x20 to 0x7e only")]
    NotPrintableAscii(String),
    /// A negative, fractional or too large number.
    #[error("the number {0} has no canonical form; use an integer from 0 to 2^53 - 1")]
    Number(String),
    /// `null`, `true` or `false`.
    #[error("null and booleans have no canonical form; leave the member out or use a text")]
    NullOrBoolean,
    /// More than a reader would accept.
    #[error("the document would have {0} bytes; at most {MAX_DOCUMENT} are accepted")]
    TooLong(usize),
}

/// Writes `value` in the canonical form.
pub(crate) fn encode(value: &Value) -> Result<Vec<u8>, CanonicalError> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    match value {
        Value::Null | Value::Bool(_) => return Err(CanonicalError::NullOrBoolean),
        Value::Number(number) => match number.as_u64() {
            Some(integer) if integer <= MAX_INTEGER => out.extend(integer.to_string().bytes()),
            _ => return Err(CanonicalError::Number(number.to_string())),
        },
        Value::String(text) => write_text(text, out)?,
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            // Sorted here, since serde_json keeps insertion order when any crate of the build turns that on.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(key, _)| key.as_bytes());
            out.push(b'{');
            for (i, (key, item)) in members.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_text(key, out)?;
                out.push(b':');
                write(item, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_text(text: &str, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    if !text.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) {
        return Err(CanonicalError::NotPrintableAscii(shorten(text)));
    }
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
    Ok(())
}

/// Why bytes are no document of the wanted type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FormError {
    TooLong { length: usize },
    NotJson(String),
    Malformed(String),
    WrongType { found: String },
    UnsupportedSpecVersion { found: u64 },
}

impl FormError {
    pub(crate) fn malformed(error: &serde_json::Error) -> FormError {
        FormError::Malformed(shorten(&error.to_string()))
    }

    /// In words, for errors that need not tell the variants apart.
    pub(crate) fn describe(self) -> String {
        match self {
            FormError::TooLong { length } => format!("{length} bytes are too many"),
            FormError::NotJson(why) | FormError::Malformed(why) => why,
            FormError::WrongType { found } => format!("it is a {found:?}"),
            FormError::UnsupportedSpecVersion { found } => format!("its spec_version is {found}"),
        }
    }
}

/// Parses JSON of bounded length into `T`. That the bytes are canonical is for the caller to check, by
/// writing what was read.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FormError> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(FormError::TooLong { length: bytes.len() });
    }
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => FormError::malformed(&error),
        _ => FormError::NotJson(shorten(&error.to_string())),
    })
}

/// Takes `_type` and `spec_version` off an object, checks them first (a document of a later version is better
/// named so than by its first unknown field), and reads the rest as `T`.
pub(crate) fn from_typed<T: DeserializeOwned>(mut value: Value, kind: &str) -> Result<T, FormError> {
    let Value::Object(members) = &mut value else {
        return Err(FormError::Malformed("the document is no object".into()));
    };
    match members.remove("_type") {
        Some(Value::String(found)) if found == kind => {}
        Some(Value::String(found)) => {
            return Err(FormError::WrongType { found: shorten(&found) });
        }
        _ => return Err(FormError::Malformed("the member _type is missing or no text".into())),
    }
    match members.remove("spec_version").as_ref().and_then(Value::as_u64) {
        Some(SPEC_VERSION) => {}
        Some(found) => return Err(FormError::UnsupportedSpecVersion { found }),
        None => {
            return Err(FormError::Malformed("the member spec_version is missing or no integer".into()));
        }
    }
    serde_json::from_value(value).map_err(|error| FormError::malformed(&error))
}

/// The reverse of [`from_typed`].
pub(crate) fn to_typed<T: Serialize>(document: &T, kind: &str) -> Value {
    // Our document types serialise to objects of texts, integers, arrays and objects with text keys, for which
    // serde_json has no error. Null has no canonical form, so even a mistake here could not be signed.
    let mut value = serde_json::to_value(document).unwrap_or(Value::Null);
    if let Value::Object(members) = &mut value {
        members.insert("_type".into(), kind.into());
        members.insert("spec_version".into(), SPEC_VERSION.into());
    }
    value
}

/// Offset of the first byte in which two documents differ.
pub(crate) fn first_difference(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Text from a hostile document, made fit for an error message: bounded, and without control characters that a
/// terminal would obey.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(160).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn writes_the_one_form() {
        let value = json!({"b": [1, {"z": "q\"\\", "": 0}], "a": "~ /", "B": []});
        assert_eq!(encode(&value).unwrap(), br#"{"B":[],"a":"~ /","b":[1,{"":0,"z":"q\"\\"}]}"#);
    }

    #[test]
    fn refuses_what_has_no_canonical_form() {
        for value in [json!(null), json!([true])] {
            assert_eq!(encode(&value), Err(CanonicalError::NullOrBoolean));
        }
        for value in [json!(-1), json!(1.5), json!(1.0), json!(MAX_INTEGER + 1)] {
            assert!(matches!(encode(&value), Err(CanonicalError::Number(_))), "{value}");
        }
        assert!(encode(&json!(MAX_INTEGER)).is_ok());
        for value in [json!("ü"), json!("a\nb"), json!("\u{7f}"), json!({"é": 1})] {
            assert!(matches!(encode(&value), Err(CanonicalError::NotPrintableAscii(_))), "{value}");
        }
    }

    fn canonical_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![(0..=MAX_INTEGER).prop_map(Value::from), "[ -~]{0,12}".prop_map(Value::from),];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[ -~]{0,6}", inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// What was written reads back as the same value and writes as the same bytes, whatever the layout between.
        #[test]
        fn round_trip(value in canonical_value()) {
            let bytes = encode(&value).unwrap();
            let again: Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(&again, &value);
            let pretty = serde_json::to_vec_pretty(&value).unwrap();
            let again: Value = serde_json::from_slice(&pretty).unwrap();
            prop_assert_eq!(encode(&again).unwrap(), bytes);
        }
    }
}
