//! A value that was found, or the reason why it was not.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser::SerializeMap};
use serde_json::Value;

/// A value that was found, or the reason why it could not be found out. What is known to be absent is a known
/// zero, empty list, `false`, or a text that says so.
///
/// In JSON the value itself, or `{"unknown": "why"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// Found.
    Known(T),
    /// Not found out, and why: printable ASCII, at most 128 bytes.
    Unknown(String),
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self::unknown("not in this probe")
    }
}

impl<T> Seen<T> {
    /// Not found out.
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown(reason.into())
    }

    /// A value, or the reason why there is none.
    pub fn or(value: Option<T>, reason: &str) -> Self {
        value.map_or_else(|| Self::unknown(reason), Self::Known)
    }

    /// The value, or the reason.
    pub fn get(&self) -> Result<&T, &str> {
        match self {
            Self::Known(value) => Ok(value),
            Self::Unknown(reason) => Err(reason),
        }
    }

    /// Another value made of this one.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Self::Known(value) => Seen::Known(change(value)),
            Self::Unknown(reason) => Seen::Unknown(reason),
        }
    }

    /// Another value made of this one, which may not work out.
    pub fn and_then<U>(self, change: impl FnOnce(T) -> Seen<U>) -> Seen<U> {
        match self {
            Self::Known(value) => change(value),
            Self::Unknown(reason) => Seen::Unknown(reason),
        }
    }
}

impl<T: Serialize> Serialize for Seen<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(value) => value.serialize(serializer),
            Self::Unknown(reason) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("unknown", reason)?;
                map.end()
            }
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Seen<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand: serde's untagged enums answer every defect with "did not match any variant".
        let value = Value::deserialize(deserializer)?;
        if let Value::Object(members) = &value
            && members.len() == 1
            && let Some(reason) = members.get("unknown")
        {
            return match reason {
                Value::String(reason) => Ok(Self::Unknown(reason.clone())),
                _ => Err(serde::de::Error::custom("the reason in `unknown` must be a text")),
            };
        }
        T::deserialize(value).map(Self::Known).map_err(serde::de::Error::custom)
    }
}
