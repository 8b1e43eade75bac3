//! Values of a policy, as they are written.

use serde::{Deserialize, Deserializer, de};
use std::{collections::BTreeSet, fmt, marker::PhantomData};

/// A set of values of which one must be there, or `"any"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand<T: Ord> {
    /// Whatever is there.
    Any,
    /// One of these. Empty allows nothing.
    OneOf(BTreeSet<T>),
}

impl<T: Ord> Demand<T> {
    /// Nothing will do.
    #[must_use]
    pub const fn none() -> Self {
        Self::OneOf(BTreeSet::new())
    }

    /// One of these.
    #[must_use]
    pub fn only<V: Into<T>>(values: impl IntoIterator<Item = V>) -> Self {
        Self::OneOf(values.into_iter().map(Into::into).collect())
    }

    pub(super) fn allows(&self, value: &T) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(values) => values.contains(value),
        }
    }
}

/// What would be allowed, in words.
impl<T: Ord + fmt::Display> fmt::Display for Demand<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anything"),
            Self::OneOf(values) if values.is_empty() => f.write_str("a value, but the policy lists none"),
            Self::OneOf(values) if values.len() > 4 => {
                write!(f, "one of the {} values that the policy lists", values.len())
            }
            Self::OneOf(values) => {
                f.write_str(&values.iter().map(T::to_string).collect::<Vec<_>>().join(" or "))
            }
        }
    }
}

impl<'de, T: Ord + Deserialize<'de>> Deserialize<'de> for Demand<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Ord + Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Demand<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"any\" or a list of values")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                match text {
                    "any" => Ok(Demand::Any),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                BTreeSet::deserialize(de::value::SeqAccessDeserializer::new(list)).map(Demand::OneOf)
            }
        }
        deserializer.deserialize_any(Visitor(PhantomData))
    }
}

/// What one bit must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Bit {
    /// Set.
    Required,
    /// Clear.
    Forbidden,
    /// Either.
    Any,
}

/// `N` bytes, written as lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> From<[u8; N]> for Hex<N> {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes)
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; N];
        // One value has one text.
        if text.bytes().any(|byte| byte.is_ascii_uppercase())
            || hex::decode_to_slice(&text, &mut bytes).is_err()
        {
            return Err(de::Error::custom(format_args!(
                "{text:?} is not {N} bytes as {} lower-case hexadecimal digits",
                2 * N
            )));
        }
        Ok(Self(bytes))
    }
}

/// CHIP_ID: 64 bytes, or the 8 that Turin uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChipId(pub [u8; 64]);

impl ChipId {
    /// Whether only the first 8 bytes are in use, as on Turin.
    pub(super) fn is_short(&self) -> bool {
        self.0[8..] == [0; 56]
    }
}

impl From<[u8; 64]> for ChipId {
    fn from(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ChipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(if self.is_short() { &self.0[..8] } else { &self.0 }))
    }
}

impl<'de> Deserialize<'de> for ChipId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 64];
        let used = if text.len() == 16 { &mut bytes[..8] } else { &mut bytes[..] };
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) || hex::decode_to_slice(&text, used).is_err() {
            return Err(de::Error::custom(format_args!(
                "{text:?} is no chip: 128 lower-case hexadecimal digits, or 16 on Turin"
            )));
        }
        Ok(Self(bytes))
    }
}

/// A version of `N` numbers of 0 to 255, written with dots between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dotted<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Dotted<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|number| number.to_string()).join("."))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Dotted<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let numbers: Option<Vec<u8>> = text.split('.').map(|number| number.parse().ok()).collect();
        let numbers = numbers.and_then(|numbers| <[u8; N]>::try_from(numbers).ok());
        let version = numbers.map(Self).filter(|version| version.to_string() == text);
        version.ok_or_else(|| {
            de::Error::custom(format_args!("{text:?} is no version of {N} numbers with dots between"))
        })
    }
}

/// What derives cannot say about these types.
#[cfg(test)]
mod schema {
    use super::{ChipId, Demand, Dotted, Hex};
    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
    use std::borrow::Cow;

    impl<T: Ord + JsonSchema> JsonSchema for Demand<T> {
        fn inline_schema() -> bool {
            true
        }
        fn schema_name() -> Cow<'static, str> {
            "Demand".into()
        }
        fn json_schema(generator: &mut SchemaGenerator) -> Schema {
            let item = generator.subschema_for::<T>();
            json_schema!({ "anyOf": [
                { "const": "any" },
                { "type": "array", "items": item, "uniqueItems": true },
            ] })
        }
    }

    fn text(pattern: String) -> Schema {
        json_schema!({ "type": "string", "pattern": pattern })
    }

    macro_rules! text_schema {
        ([$($generic:tt)*] $type:ty, $pattern:expr) => {
            impl<$($generic)*> JsonSchema for $type {
                fn inline_schema() -> bool {
                    true
                }
                fn schema_name() -> Cow<'static, str> {
                    stringify!($type).into()
                }
                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    text($pattern)
                }
            }
        };
    }
    text_schema!([const N: usize] Hex<N>, format!("^[0-9a-f]{{{}}}$", 2 * N));
    text_schema!([] ChipId, "^([0-9a-f]{16}|[0-9a-f]{128})$".to_owned());
    text_schema!([const N: usize] Dotted<N>, format!("^[0-9]{{1,3}}(\\.[0-9]{{1,3}}){{{}}}$", N - 1));
}
