//! The CBOR envelopes that requests come in, as they stand on the wire (Interface Specification,
//! "Authentication"). Nothing here is verified yet; [`crate::authentication`] does that.

use std::fmt;
use std::marker::PhantomData;

use candid::Principal;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::request_id::Value;

/// Longest request body, in bytes.
pub const MAX_BODY: usize = 2 << 20;
/// Most delegations in one chain.
pub const MAX_DELEGATIONS: usize = 20;
/// Most targets of one delegation.
pub const MAX_TARGETS: usize = 1000;
/// Most paths of one `read_state` request.
pub const MAX_PATHS: usize = 1000;
/// Most labels of one path.
pub const MAX_LABELS: usize = 127;
/// Deepest nesting of a well-formed envelope is 6; anything deeper is refused before it costs stack.
const MAX_DEPTH: usize = 16;
const SELF_DESCRIBED: [u8; 3] = [0xd9, 0xd9, 0xf7];

/// Why a body is not an envelope.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Too long.
    #[error(
        "the request is {0} bytes long; at most {MAX_BODY} are allowed: send less, or install big modules in chunks"
    )]
    TooLong(usize),
    /// Not CBOR, or not these fields.
    #[error(
        "the request body is not a CBOR envelope of this kind of request: {0}; see the Interface Specification, \"Authentication\""
    )]
    Malformed(String),
    /// Something follows.
    #[error("{0} bytes follow the CBOR envelope; send the envelope alone")]
    Trailing(usize),
}

/// Request content with its authentication.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope<C> {
    pub(crate) content: C,
    pub(crate) sender_pubkey: Option<Blob>,
    pub(crate) sender_sig: Option<Blob>,
    pub(crate) sender_delegation: Option<Bounded<SignedDelegation, MAX_DELEGATIONS>>,
}

/// One link of a delegation chain.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedDelegation {
    pub(crate) delegation: Delegation,
    pub(crate) signature: Blob,
}

/// What a link allows its key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delegation {
    pub(crate) pubkey: Blob,
    pub(crate) expiration: u64,
    pub(crate) targets: Option<Bounded<Id, MAX_TARGETS>>,
    pub(crate) permissions: Option<String>,
}

impl Delegation {
    pub(crate) fn fields(&self) -> Vec<(&str, Value<'_>)> {
        let mut fields =
            vec![("pubkey", Value::Blob(&self.pubkey.0)), ("expiration", Value::Nat(self.expiration))];
        if let Some(targets) = &self.targets {
            let targets = targets.0.iter().map(|target| Value::Blob(target.0.as_slice())).collect();
            fields.push(("targets", Value::Array(targets)));
        }
        if let Some(permissions) = &self.permissions {
            fields.push(("permissions", Value::Text(permissions)));
        }
        fields
    }
}

/// Fields that each kind of content has.
#[derive(Debug)]
pub(crate) struct Common<'a> {
    pub(crate) request_type: &'a str,
    pub(crate) sender: &'a Principal,
    pub(crate) nonce: Option<&'a Blob>,
    pub(crate) ingress_expiry: u64,
}

impl<'a> Common<'a> {
    fn fields(&self) -> Vec<(&'a str, Value<'a>)> {
        let mut fields = vec![
            ("request_type", Value::Text(self.request_type)),
            ("sender", Value::Blob(self.sender.as_slice())),
            ("ingress_expiry", Value::Nat(self.ingress_expiry)),
        ];
        if let Some(nonce) = self.nonce {
            fields.push(("nonce", Value::Blob(&nonce.0)));
        }
        fields
    }
}

/// One kind of request content.
pub(crate) trait Content: DeserializeOwned {
    /// Fields that each kind has.
    fn common(&self) -> Common<'_>;
    /// All fields, for the request id.
    fn fields(&self) -> Vec<(&str, Value<'_>)>;
}

/// Content of `call` and `query` requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Invocation {
    request_type: String,
    sender: Id,
    nonce: Option<Blob>,
    ingress_expiry: u64,
    pub(crate) canister_id: Id,
    pub(crate) method_name: String,
    pub(crate) arg: Blob,
    pub(crate) sender_info: Option<IgnoredAny>,
}

impl Content for Invocation {
    fn common(&self) -> Common<'_> {
        Common {
            request_type: &self.request_type,
            sender: &self.sender.0,
            nonce: self.nonce.as_ref(),
            ingress_expiry: self.ingress_expiry,
        }
    }

    fn fields(&self) -> Vec<(&str, Value<'_>)> {
        let mut fields = self.common().fields();
        fields.extend([
            ("canister_id", Value::Blob(self.canister_id.0.as_slice())),
            ("method_name", Value::Text(&self.method_name)),
            ("arg", Value::Blob(&self.arg.0)),
        ]);
        fields
    }
}

/// A path in the state tree.
pub(crate) type Path = Bounded<Blob, MAX_LABELS>;

/// Content of `read_state` requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatePaths {
    request_type: String,
    sender: Id,
    nonce: Option<Blob>,
    ingress_expiry: u64,
    pub(crate) paths: Bounded<Path, MAX_PATHS>,
}

impl Content for StatePaths {
    fn common(&self) -> Common<'_> {
        Common {
            request_type: &self.request_type,
            sender: &self.sender.0,
            nonce: self.nonce.as_ref(),
            ingress_expiry: self.ingress_expiry,
        }
    }

    fn fields(&self) -> Vec<(&str, Value<'_>)> {
        let paths = self.paths.0.iter();
        let paths =
            paths.map(|path| Value::Array(path.0.iter().map(|label| Value::Blob(&label.0)).collect()));
        let mut fields = self.common().fields();
        fields.push(("paths", Value::Array(paths.collect())));
        fields
    }
}

/// Decodes an envelope. The self-described tag may be there or not.
pub(crate) fn decode<C: Content>(body: &[u8]) -> Result<Envelope<C>, EnvelopeError> {
    if body.len() > MAX_BODY {
        return Err(EnvelopeError::TooLong(body.len()));
    }
    let mut rest = body.strip_prefix(&SELF_DESCRIBED).unwrap_or(body);
    let envelope = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH).map_err(
        |error: ciborium::de::Error<std::io::Error>| {
            EnvelopeError::Malformed(match error {
                ciborium::de::Error::Io(_) => "it ends too early".into(),
                ciborium::de::Error::Syntax(offset) => format!("it is not CBOR at byte {offset}"),
                ciborium::de::Error::Semantic(_, why) => why,
                ciborium::de::Error::RecursionLimitExceeded => "it is nested too deeply".into(),
            })
        },
    )?;
    if rest.is_empty() { Ok(envelope) } else { Err(EnvelopeError::Trailing(rest.len())) }
}

/// A CBOR byte string; text and arrays of numbers are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// A principal: a CBOR byte string of at most 29 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) Principal);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Blob::deserialize(deserializer)?;
        Principal::try_from_slice(&bytes.0)
            .map(Self)
            .map_err(|error| D::Error::custom(format!("no principal: {error}")))
    }
}

/// An array of at most `N` items: a long one ends the decoding before it costs memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bounded<T, const N: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Bounded<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Items<T, N> {
            type Value = Bounded<T, N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {N} items")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut taken = Vec::new();
                while let Some(item) = items.next_element()? {
                    if taken.len() == N {
                        return Err(A::Error::custom(format!("more than {N} items in an array")));
                    }
                    taken.push(item);
                }
                Ok(Bounded(taken))
            }
        }
        deserializer.deserialize_seq(Items(PhantomData))
    }
}
