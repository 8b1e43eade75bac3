//! Requests for tests, signed as an agent signs them.

use candid::Principal;
use ciborium::Value as Cbor;

use crate::authentication::separated;
use crate::request_id::{Value, hash_of_map};
use crate::signature::testing::Signer;

/// A time in ns since 1970 for tests.
pub(crate) const NOW: u64 = 1_800_000_000_000_000_000;
/// Five minutes, in ns.
pub(crate) const FIVE_MINUTES: u64 = 300_000_000_000;

/// Fields of a map.
pub(crate) type Fields = Vec<(&'static str, Cbor)>;

pub(crate) fn blob(bytes: impl AsRef<[u8]>) -> Cbor {
    Cbor::Bytes(bytes.as_ref().to_vec())
}

pub(crate) fn map(fields: Fields) -> Cbor {
    Cbor::Map(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

pub(crate) fn bytes(value: &Cbor) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

/// Request id of a content, or hash of a delegation.
pub(crate) fn hash(fields: &Fields) -> [u8; 32] {
    fn value(cbor: &Cbor) -> Value<'_> {
        match cbor {
            Cbor::Bytes(bytes) => Value::Blob(bytes),
            Cbor::Text(text) => Value::Text(text),
            Cbor::Integer(number) => Value::Nat(u64::try_from(*number).unwrap()),
            Cbor::Array(items) => Value::Array(items.iter().map(value).collect()),
            other => panic!("{other:?} has no hash"),
        }
    }
    hash_of_map(&fields.iter().map(|(name, cbor)| (*name, value(cbor))).collect::<Vec<_>>())
}

/// Principal of a signer.
pub(crate) fn principal(signer: &Signer) -> Principal {
    Principal::self_authenticating(signer.der())
}

/// Content of a call or query that expires in five minutes.
pub(crate) fn invocation(request_type: &str, sender: Principal, canister: Principal, method: &str) -> Fields {
    vec![
        ("request_type", request_type.into()),
        ("sender", blob(sender)),
        ("canister_id", blob(canister)),
        ("method_name", method.into()),
        ("arg", blob(b"DIDL\0\0")),
        ("ingress_expiry", (NOW + FIVE_MINUTES).into()),
        ("nonce", blob([1; 16])),
    ]
}

/// Content of a `read_state` request that expires in five minutes.
pub(crate) fn state_paths(sender: Principal, paths: &[&[&[u8]]]) -> Fields {
    let paths = paths.iter().map(|path| Cbor::Array(path.iter().map(blob).collect())).collect();
    vec![
        ("request_type", "read_state".into()),
        ("sender", blob(sender)),
        ("paths", Cbor::Array(paths)),
        ("ingress_expiry", (NOW + FIVE_MINUTES).into()),
    ]
}

/// A link from one key to the next.
pub(crate) fn delegation(from: &Signer, to: &Signer, expiration: u64, more: Fields) -> Cbor {
    let mut fields = vec![("pubkey", blob(to.der())), ("expiration", expiration.into())];
    fields.extend(more);
    let signature = from.sign(&separated("ic-request-auth-delegation", &hash(&fields)));
    map(vec![("delegation", map(fields)), ("signature", blob(signature))])
}

/// An envelope without signature.
pub(crate) fn anonymous(content: Fields) -> Vec<u8> {
    bytes(&map(vec![("content", map(content))]))
}

/// An envelope whose sender's key is `owner` and which `signer` signed.
pub(crate) fn signed(content: Fields, owner: &Signer, signer: &Signer, chain: Vec<Cbor>) -> Vec<u8> {
    let signature = signer.sign(&separated("ic-request", &hash(&content)));
    let mut envelope = vec![
        ("content", map(content)),
        ("sender_pubkey", blob(owner.der())),
        ("sender_sig", blob(signature)),
    ];
    if !chain.is_empty() {
        envelope.push(("sender_delegation", Cbor::Array(chain)));
    }
    bytes(&Cbor::Tag(55799, Box::new(map(envelope))))
}
