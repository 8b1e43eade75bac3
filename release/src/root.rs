//! The root of trust: which keys may sign a release, and how many of them must.

use crate::{
    KeyId, MAX_DOCUMENT, ROOT_TYPE, SPEC_VERSION,
    canonical::{self, DocumentError},
    digest::from_hex,
};
use ed25519_dalek::{SigningKey, VerifyingKey, pkcs8::DecodePrivateKey};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::collections::BTreeMap;

/// Most keys of a root; bounds the work on a hostile document.
const MAX_KEYS: usize = 64;

/// Release keys and their threshold. Whoever holds a `Root` trusts it: it comes with the program or from the
/// operator, never along with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    version: u64,
    threshold: usize,
    keys: BTreeMap<KeyId, VerifyingKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRoot {
    version: u64,
    threshold: u64,
    keys: BTreeMap<KeyId, WireKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireKey {
    keytype: String,
    keyval: WireKeyValue,
    scheme: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireKeyValue {
    public: String,
}

impl WireKey {
    fn new(key: &VerifyingKey) -> WireKey {
        let public = hex::encode(key.as_bytes());
        WireKey { keytype: "ed25519".into(), keyval: WireKeyValue { public }, scheme: "ed25519".into() }
    }
}

/// The key id of an ed25519 key: SHA-256 of its canonical form, as in TUF.
pub fn key_id(key: &VerifyingKey) -> KeyId {
    let public = hex::encode(key.as_bytes());
    let canonical = format!(r#"{{"keytype":"ed25519","keyval":{{"public":"{public}"}},"scheme":"ed25519"}}"#);
    KeyId(sha2::Sha256::digest(canonical).into())
}

/// A root cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Nothing of that length is looked at.
    #[error("the root has {length} bytes, at most {MAX_DOCUMENT} are accepted; this is not a release root")]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// No JSON at all.
    #[error("the root is not JSON ({0}); copy it again from a trusted place")]
    NotJson(String),
    /// JSON in another representation than the one allowed.
    #[error(
        "the root is not in the canonical form from byte {offset} on; copy it again without reformatting it"
    )]
    NotCanonical {
        /// First byte that differs from the canonical form.
        offset: usize,
    },
    /// A missing, unknown or ill-typed member.
    #[error("the root is malformed ({0}); copy it again from a trusted place")]
    Malformed(String),
    /// Another kind of document.
    #[error("the document is a {found:?}, not a {ROOT_TYPE:?}; give the root file")]
    WrongType {
        /// Its `_type`.
        found: String,
    },
    /// A format this program does not know.
    #[error("the root has spec_version {found}, this program knows {SPEC_VERSION}; use a newer program")]
    UnsupportedSpecVersion {
        /// Its `spec_version`.
        found: u64,
    },
    /// A key that is not ed25519, not a point, or of small order.
    #[error("the key {0} is not a usable ed25519 key; replace it in the root")]
    BadKey(KeyId),
    /// The id does not belong to the key, so one key might count twice.
    #[error("the key listed as {listed} has the key id {actual}; correct the root")]
    WrongKeyId {
        /// Id in the root.
        listed: KeyId,
        /// SHA-256 of the key's canonical form.
        actual: KeyId,
    },
    /// No signature needed, or more than there are keys.
    #[error("the threshold {threshold} is impossible with {keys} keys; it must be 1 to the number of keys")]
    Threshold {
        /// Threshold in the root.
        threshold: u64,
        /// Keys in the root.
        keys: usize,
    },
    /// More keys than are looked at.
    #[error("the root has {0} keys, at most {MAX_KEYS} are accepted")]
    TooManyKeys(usize),
}

impl From<DocumentError> for RootError {
    fn from(error: DocumentError) -> RootError {
        match error {
            DocumentError::TooLong { length } => RootError::TooLong { length },
            DocumentError::NotJson(why) => RootError::NotJson(why),
            DocumentError::Malformed(why) => RootError::Malformed(why),
            DocumentError::WrongType { found } => RootError::WrongType { found },
            DocumentError::UnsupportedSpecVersion { found } => RootError::UnsupportedSpecVersion { found },
        }
    }
}

impl Root {
    /// A root of these keys. Keys given twice count once.
    pub fn new(
        version: u64,
        threshold: usize,
        keys: impl IntoIterator<Item = VerifyingKey>,
    ) -> Result<Root, RootError> {
        let keys: BTreeMap<_, _> = keys.into_iter().map(|key| (key_id(&key), key)).collect();
        // A key of small order has signatures that fit many messages.
        if let Some((&id, _)) = keys.iter().find(|(_, key)| key.is_weak()) {
            return Err(RootError::BadKey(id));
        }
        if keys.len() > MAX_KEYS {
            return Err(RootError::TooManyKeys(keys.len()));
        }
        if threshold == 0 || threshold > keys.len() {
            return Err(RootError::Threshold { threshold: threshold as u64, keys: keys.len() });
        }
        Ok(Root { version, threshold, keys })
    }

    /// Reads a root in the canonical form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Root, RootError> {
        let wire: WireRoot = canonical::from_typed(canonical::parse(bytes)?, ROOT_TYPE)?;
        if wire.keys.len() > MAX_KEYS {
            return Err(RootError::TooManyKeys(wire.keys.len()));
        }
        let threshold = usize::try_from(wire.threshold).unwrap_or(usize::MAX);
        let keys = wire
            .keys
            .iter()
            .map(|(&listed, wire_key)| {
                let key = from_hex(&wire_key.keyval.public)
                    .ok()
                    .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
                    .filter(|_| wire_key.keytype == "ed25519" && wire_key.scheme == "ed25519")
                    .ok_or(RootError::BadKey(listed))?;
                let actual = key_id(&key);
                if actual != listed {
                    return Err(RootError::WrongKeyId { listed, actual });
                }
                Ok(key)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let root = Root::new(wire.version, threshold, keys)?;
        let canonical = root.to_bytes();
        if canonical != bytes {
            return Err(RootError::NotCanonical { offset: canonical::first_difference(&canonical, bytes) });
        }
        Ok(root)
    }

    /// The root in the canonical form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let keys = self.keys.iter().map(|(&id, key)| (id, WireKey::new(key))).collect();
        let wire = WireRoot { version: self.version, threshold: self.threshold as u64, keys };
        // Every part is ASCII or a small integer, except a version above 2^53, which then equals no input.
        canonical::encode(&canonical::to_typed(&wire, ROOT_TYPE)).unwrap_or_default()
    }

    /// Version of the root; each rotation of keys raises it.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many different keys must have signed.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// Ids of the keys that may sign, ascending.
    pub fn key_ids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys.keys()
    }

    pub(crate) fn key(&self, id: &KeyId) -> Option<&VerifyingKey> {
        self.keys.get(id)
    }
}

/// A signing key cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the signing key is not an ed25519 private key in PKCS#8 PEM; make one with: openssl genpkey -algorithm ed25519"
)]
pub struct KeyError;

/// Reads an ed25519 private key in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it.
pub fn signing_key_from_pem(pem: &str) -> Result<SigningKey, KeyError> {
    SigningKey::from_pkcs8_pem(pem).map_err(|_| KeyError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn keys(n: u8) -> Vec<VerifyingKey> {
        (1..=n).map(|i| SigningKey::from_bytes(&[i; 32]).verifying_key()).collect()
    }

    fn wire(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut value = serde_json::from_slice(&Root::new(1, 2, keys(3)).unwrap().to_bytes()).unwrap();
        change(&mut value);
        canonical::encode(&value).unwrap()
    }

    #[test]
    fn reads_what_it_writes() {
        let root = Root::new(7, 2, keys(3)).unwrap();
        assert_eq!(Root::from_bytes(&root.to_bytes()).unwrap(), root);
        assert_eq!((root.version(), root.threshold(), root.key_ids().count()), (7, 2, 3));
    }

    #[test]
    fn key_id_is_the_hash_of_the_canonical_key() {
        let key = keys(1)[0];
        let canonical = canonical::encode(&serde_json::to_value(WireKey::new(&key)).unwrap()).unwrap();
        assert_eq!(key_id(&key).as_bytes(), crate::Digest::of(&canonical).as_bytes());
    }

    #[test]
    fn thresholds_must_be_possible() {
        for threshold in [0, 4] {
            assert!(matches!(Root::new(1, threshold, keys(3)), Err(RootError::Threshold { .. })));
        }
        // The same key three times is one key.
        let key = keys(1)[0];
        assert!(matches!(Root::new(1, 2, [key, key, key]), Err(RootError::Threshold { keys: 1, .. })));
    }

    #[test]
    fn refuses_defects_by_name() {
        assert!(matches!(Root::from_bytes(b"{"), Err(RootError::NotJson(_))));
        assert!(matches!(Root::from_bytes(&vec![b' '; MAX_DOCUMENT + 1]), Err(RootError::TooLong { .. })));
        let bytes = wire(|root| root["_type"] = json!("redoubt-release"));
        assert!(matches!(Root::from_bytes(&bytes), Err(RootError::WrongType { .. })));
        let bytes = wire(|root| root["spec_version"] = json!(2));
        assert_eq!(Root::from_bytes(&bytes), Err(RootError::UnsupportedSpecVersion { found: 2 }));
        let bytes = wire(|root| root["extra"] = json!(2));
        assert!(matches!(Root::from_bytes(&bytes), Err(RootError::Malformed(_))));
        let mut bytes = wire(|_| ());
        bytes.push(b'\n');
        assert_eq!(Root::from_bytes(&bytes), Err(RootError::NotCanonical { offset: bytes.len() - 1 }));
    }

    #[test]
    fn a_key_listed_under_another_id_does_not_count_twice() {
        let bytes = wire(|root| {
            let keys = root["keys"].as_object_mut().unwrap();
            let same = keys.values().next().unwrap().clone();
            keys.insert("00".repeat(32), same);
        });
        assert!(matches!(Root::from_bytes(&bytes), Err(RootError::WrongKeyId { .. })));
    }

    #[test]
    fn refuses_keys_of_small_order() {
        // The neutral element, encoded: y = 1.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let weak = VerifyingKey::from_bytes(&neutral).unwrap();
        assert_eq!(Root::new(1, 1, [weak]), Err(RootError::BadKey(key_id(&weak))));
    }

    #[test]
    fn signing_keys_are_pkcs8_pem() {
        assert_eq!(signing_key_from_pem("-----BEGIN PRIVATE KEY-----\n"), Err(KeyError));
    }
}
