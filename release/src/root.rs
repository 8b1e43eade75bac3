//! The root of trust: which keys speak in which role, how many of them must, and how one root follows another.
//!
//! The rules are those of The Update Framework (specification 1.0, section 5.3, "Update the root role").

use crate::{
    KeyId, ROOT_TYPE,
    canonical::CanonicalError,
    digest::from_hex,
    document::{Document, DocumentError, Signed, document_codes},
};
use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, spki::der::pem::LineEnding,
    },
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::Digest as _;
use std::collections::{BTreeMap, BTreeSet};

/// Most keys of a root; bounds the work on a hostile document.
const MAX_KEYS: usize = 64;

/// An ed25519 key as roots write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub VerifyingKey);

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

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let keyval = WireKeyValue { public: hex::encode(self.0.as_bytes()) };
        WireKey { keytype: "ed25519".into(), keyval, scheme: "ed25519".into() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = WireKey::deserialize(deserializer)?;
        from_hex(&wire.keyval.public)
            .ok()
            .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
            .filter(|_| wire.keytype == "ed25519" && wire.scheme == "ed25519")
            .map(PublicKey)
            .ok_or_else(|| de::Error::custom("a key is no ed25519 key"))
    }
}

/// The key id of an ed25519 key: SHA-256 of its canonical form, as in TUF.
pub fn key_id(key: &VerifyingKey) -> KeyId {
    let public = hex::encode(key.as_bytes());
    let canonical = format!(r#"{{"keytype":"ed25519","keyval":{{"public":"{public}"}},"scheme":"ed25519"}}"#);
    KeyId(sha2::Sha256::digest(canonical).into())
}

/// What keys are trusted to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleName {
    /// The next root. TUF: root.
    Root,
    /// What a release consists of: manifests. TUF: targets.
    Release,
    /// Which releases are blessed now, until when: blessings. TUF: snapshot and timestamp.
    Blessing,
}

/// Keys of a role, and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Who may sign.
    pub keyids: BTreeSet<KeyId>,
    /// How many different ones must.
    pub threshold: u64,
}

impl Role {
    /// A role of these keys.
    pub fn new(threshold: u64, keyids: impl IntoIterator<Item = KeyId>) -> Role {
        Role { keyids: keyids.into_iter().collect(), threshold }
    }

    pub(crate) fn threshold_count(&self) -> usize {
        usize::try_from(self.threshold).unwrap_or(usize::MAX)
    }
}

/// The roles of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// [`RoleName::Root`].
    pub root: Role,
    /// [`RoleName::Release`].
    pub release: Role,
    /// [`RoleName::Blessing`].
    pub blessing: Role,
}

impl Roles {
    /// Each role with its name for people.
    pub fn all(&self) -> [(&'static str, &Role); 3] {
        [("root", &self.root), ("release", &self.release), ("blessing", &self.blessing)]
    }
}

/// The signed part of a root. On the wire it also has `_type` and `spec_version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootContent {
    /// 1 for the first root; each rotation adds 1.
    pub version: u64,
    /// When nothing new is believed under this root any more: seconds since 1970 (UTC).
    pub expires: u64,
    /// Keys by their ids.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// Who speaks in which role.
    pub roles: Roles,
}

impl RootContent {
    /// A root in which the same keys and threshold hold for all three roles.
    pub fn of_keys(
        version: u64,
        expires: u64,
        threshold: u64,
        keys: impl IntoIterator<Item = VerifyingKey>,
    ) -> RootContent {
        let keys: BTreeMap<_, _> = keys.into_iter().map(|key| (key_id(&key), PublicKey(key))).collect();
        let role = Role::new(threshold, keys.keys().copied());
        let roles = Roles { root: role.clone(), release: role.clone(), blessing: role };
        RootContent { version, expires, keys, roles }
    }
}

/// The content of a root breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoot {
    /// A key of small order has signatures that fit many messages.
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
    /// A role names a key that is not in the root.
    #[error("the {role} role names the key {keyid}, which is not in the root; add it or take it out")]
    NoSuchKey {
        /// The role.
        role: &'static str,
        /// The key.
        keyid: KeyId,
    },
    /// No signature needed, or more than there are keys.
    #[error(
        "the threshold {threshold} of the {role} role is impossible with {keys} keys; it must be 1 to the number of keys"
    )]
    Threshold {
        /// The role.
        role: &'static str,
        /// Its threshold.
        threshold: u64,
        /// Its keys.
        keys: usize,
    },
    /// More keys than are looked at.
    #[error("the root has {0} keys, at most {MAX_KEYS} are accepted")]
    TooManyKeys(usize),
    /// Versions count from 1.
    #[error("the root has version 0; the first root is version 1")]
    Version,
    /// A text or number outside of the canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

impl Document for RootContent {
    const TYPE: &'static str = ROOT_TYPE;
    const NAME: &'static str = "root";
    const CODES: [&'static str; 11] = document_codes!("root");
    type Invalid = InvalidRoot;

    fn validate(&self) -> Result<(), InvalidRoot> {
        if self.version == 0 {
            return Err(InvalidRoot::Version);
        }
        if self.keys.len() > MAX_KEYS {
            return Err(InvalidRoot::TooManyKeys(self.keys.len()));
        }
        for (&listed, key) in &self.keys {
            let actual = key_id(&key.0);
            if actual != listed {
                return Err(InvalidRoot::WrongKeyId { listed, actual });
            }
            if key.0.is_weak() {
                return Err(InvalidRoot::BadKey(listed));
            }
        }
        for (role, Role { keyids, threshold }) in self.roles.all() {
            if let Some(&keyid) = keyids.iter().find(|keyid| !self.keys.contains_key(keyid)) {
                return Err(InvalidRoot::NoSuchKey { role, keyid });
            }
            let (threshold, keys) = (*threshold, keyids.len());
            if threshold == 0 || threshold > keys as u64 {
                return Err(InvalidRoot::Threshold { role, threshold, keys });
            }
        }
        Ok(())
    }
}

/// A root cannot be used.
pub type RootError = DocumentError<RootContent>;

/// A root does not follow the trusted one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootUpdateError {
    /// It is not even signed by its own keys.
    #[error("the new root cannot be used")]
    Document(#[from] RootError),
    /// The trusted root's keys did not agree.
    #[error(
        "the new root has {valid} signatures by keys of the present root, which asks for {needed}; \
         have its holders sign the new root too"
    )]
    NotByPredecessor {
        /// Different keys of the present root with a valid signature.
        valid: usize,
        /// Threshold of the present root.
        needed: usize,
    },
    /// One was left out, or an old one is offered again.
    #[error("the new root has version {found}, the present one is followed by {expected}; give that one")]
    Version {
        /// The present version and one.
        expected: u64,
        /// Version offered.
        found: u64,
    },
}

impl RootUpdateError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Document(error) => error.code(),
            Self::NotByPredecessor { .. } => "root-not-by-predecessor",
            Self::Version { .. } => "root-version",
        }
    }
}

/// The root has expired.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the root of version {version} expired at {expires}, now it is {now} (seconds since 1970); rotate the root"
)]
pub struct RootExpired {
    /// Its version.
    pub version: u64,
    /// Seconds since 1970.
    pub expires: u64,
    /// Seconds since 1970.
    pub now: u64,
}

/// The root that is trusted: it came with the program or from the operator, or followed such a one by
/// [`Root::update`]; never along with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(Signed<RootContent>);

impl Root {
    /// Reads the root from which trust starts. Its own keys must have signed it, so that it can not be one that nobody
    /// agreed to.
    pub fn from_bytes(bytes: &[u8]) -> Result<Root, RootError> {
        let signed = Signed::<RootContent>::from_bytes(bytes)?;
        signed.require_role(signed.content(), &signed.content().roles.root)?;
        Ok(Root(signed))
    }

    /// The root that follows this one: version one higher, signed by the threshold of this root and by its own
    /// (TUF 5.3.4 and 5.3.5).
    ///
    /// Expiry is not looked at, since an expired root is how a later one is reached (TUF 5.3.10): see
    /// [`Root::require_fresh`].
    pub fn update(&self, bytes: &[u8]) -> Result<Root, RootUpdateError> {
        let next = Signed::<RootContent>::from_bytes(bytes)?;
        let (old, new) = (self.content(), next.content());
        let (old_role, new_role) = (&old.roles.root, &new.roles.root);
        next.verify_each(&[(old, old_role), (new, new_role)])?;
        let (valid, needed) = (next.signers_in(old_role), old_role.threshold_count());
        if valid < needed {
            return Err(RootUpdateError::NotByPredecessor { valid, needed });
        }
        let (valid, needed) = (next.signers_in(new_role), new_role.threshold_count());
        if valid < needed {
            return Err(RootError::ThresholdNotMet { valid, needed }.into());
        }
        let (expected, found) = (old.version.saturating_add(1), new.version);
        if found != expected {
            return Err(RootUpdateError::Version { expected, found });
        }
        Ok(Root(next))
    }

    /// Whether something new may be believed under this root at a time in seconds since 1970.
    pub fn require_fresh(&self, now: u64) -> Result<(), RootExpired> {
        let RootContent { version, expires, .. } = *self.content();
        if expires <= now { Err(RootExpired { version, expires, now }) } else { Ok(()) }
    }

    /// The root with its signatures in the canonical form.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes()
    }

    /// What it says.
    pub fn content(&self) -> &RootContent {
        self.0.content()
    }

    /// Version of the root; each rotation of keys raises it.
    pub fn version(&self) -> u64 {
        self.content().version
    }

    /// Keys and threshold of a role.
    pub fn role(&self, name: RoleName) -> &Role {
        let roles = &self.content().roles;
        match name {
            RoleName::Root => &roles.root,
            RoleName::Release => &roles.release,
            RoleName::Blessing => &roles.blessing,
        }
    }
}

/// A signing key cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the signing key is not an ed25519 private key in PKCS#8 PEM; make one with: openssl genpkey -algorithm ed25519"
)]
pub struct KeyError;

/// A public key cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no ed25519 public key in PEM; take one out of a private key with: openssl pkey -pubout")]
pub struct PublicKeyError;

/// Reads an ed25519 public key in PEM (SubjectPublicKeyInfo), as `openssl pkey -pubout` writes it.
pub fn public_key_from_pem(pem: &str) -> Result<VerifyingKey, PublicKeyError> {
    VerifyingKey::from_public_key_pem(pem).map_err(|_| PublicKeyError)
}

/// Writes an ed25519 public key in PEM.
pub fn public_key_to_pem(key: &VerifyingKey) -> Result<String, PublicKeyError> {
    key.to_public_key_pem(LineEnding::LF).map_err(|_| PublicKeyError)
}

/// Reads an ed25519 private key in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it.
pub fn signing_key_from_pem(pem: &str) -> Result<SigningKey, KeyError> {
    SigningKey::from_pkcs8_pem(pem).map_err(|_| KeyError)
}

/// Writes an ed25519 private key in PKCS#8 PEM, erased from memory when dropped.
pub fn signing_key_to_pem(
    key: &SigningKey,
) -> Result<impl std::ops::Deref<Target = String> + use<>, KeyError> {
    key.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_DOCUMENT, canonical, sign};
    use serde_json::json;

    fn keys(n: u8) -> Vec<SigningKey> {
        (1..=n).map(|i| SigningKey::from_bytes(&[i; 32])).collect()
    }

    fn content(threshold: u64, n: u8) -> RootContent {
        RootContent::of_keys(1, 100, threshold, keys(n).iter().map(SigningKey::verifying_key))
    }

    fn signed(content: RootContent, keys: &[SigningKey]) -> Vec<u8> {
        let mut envelope = Signed::new(content).unwrap();
        for key in keys {
            sign(&mut envelope, key).unwrap();
        }
        envelope.to_bytes()
    }

    fn wire(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut value = serde_json::from_slice(&signed(content(2, 3), &keys(2))).unwrap();
        change(&mut value);
        canonical::encode(&value).unwrap()
    }

    #[test]
    fn reads_what_it_writes() {
        let bytes = signed(content(2, 3), &keys(2));
        let root = Root::from_bytes(&bytes).unwrap();
        assert_eq!(root.to_bytes(), bytes);
        assert_eq!((root.version(), root.role(RoleName::Release).keyids.len()), (1, 3));
        assert!(root.require_fresh(99).is_ok());
        assert_eq!(root.require_fresh(100), Err(RootExpired { version: 1, expires: 100, now: 100 }));
    }

    #[test]
    fn key_id_is_the_hash_of_the_canonical_key() {
        let key = keys(1)[0].verifying_key();
        let canonical = canonical::encode(&serde_json::to_value(PublicKey(key)).unwrap()).unwrap();
        assert_eq!(key_id(&key).as_bytes(), crate::Digest::of(&canonical).as_bytes());
    }

    #[test]
    fn thresholds_must_be_possible() {
        for threshold in [0, 4] {
            let error = Signed::new(content(threshold, 3)).unwrap_err();
            assert!(matches!(error, InvalidRoot::Threshold { role: "root", keys: 3, .. }), "{error}");
        }
        // The same key three times is one key.
        let key = keys(1)[0].verifying_key();
        let one = RootContent::of_keys(1, 100, 2, [key, key, key]);
        assert!(matches!(Signed::new(one), Err(InvalidRoot::Threshold { keys: 1, .. })));
    }

    #[test]
    fn refuses_defects_by_name() {
        assert!(matches!(Root::from_bytes(b"{"), Err(RootError::NotJson(_))));
        assert!(matches!(Root::from_bytes(&vec![b' '; MAX_DOCUMENT + 1]), Err(RootError::TooLong { .. })));
        let bytes = wire(|root| root["signed"]["_type"] = json!("redoubt-release"));
        assert!(matches!(Root::from_bytes(&bytes), Err(RootError::WrongType { .. })));
        let bytes = wire(|root| root["signed"]["spec_version"] = json!(2));
        assert_eq!(Root::from_bytes(&bytes), Err(RootError::UnsupportedSpecVersion { found: 2 }));
        let bytes = wire(|root| root["signed"]["extra"] = json!(2));
        assert!(matches!(Root::from_bytes(&bytes), Err(RootError::Malformed(_))));
        let bytes = wire(|root| root["signed"]["version"] = json!(0));
        assert_eq!(Root::from_bytes(&bytes), Err(RootError::Invalid(InvalidRoot::Version)));
        let mut bytes = wire(|_| ());
        bytes.push(b'\n');
        assert_eq!(Root::from_bytes(&bytes), Err(RootError::NotCanonical { offset: bytes.len() - 1 }));
    }

    #[test]
    fn a_key_listed_under_another_id_does_not_count_twice() {
        let bytes = wire(|root| {
            let keys = root["signed"]["keys"].as_object_mut().unwrap();
            let same = keys.values().next().unwrap().clone();
            keys.insert("00".repeat(32), same);
        });
        let error = Root::from_bytes(&bytes).unwrap_err();
        assert!(matches!(error, RootError::Invalid(InvalidRoot::WrongKeyId { .. })), "{error}");
    }

    #[test]
    fn a_role_names_only_keys_of_the_root() {
        let mut root = content(2, 3);
        let stranger = KeyId([7; 32]);
        root.roles.blessing.keyids.insert(stranger);
        let refused = Signed::new(root).unwrap_err();
        assert_eq!(refused, InvalidRoot::NoSuchKey { role: "blessing", keyid: stranger });
    }

    #[test]
    fn refuses_keys_of_small_order_and_too_many() {
        // The neutral element, encoded: y = 1.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let weak = VerifyingKey::from_bytes(&neutral).unwrap();
        let refused = Signed::new(RootContent::of_keys(1, 100, 1, [weak])).unwrap_err();
        assert_eq!(refused, InvalidRoot::BadKey(key_id(&weak)));
        assert_eq!(Signed::new(content(1, 65)).unwrap_err(), InvalidRoot::TooManyKeys(65));
    }

    #[test]
    fn keys_are_pem() {
        let key = &keys(1)[0];
        let pem = signing_key_to_pem(key).unwrap();
        assert_eq!(signing_key_from_pem(&pem).unwrap(), *key);
        let public = public_key_to_pem(&key.verifying_key()).unwrap();
        assert_eq!(public_key_from_pem(&public), Ok(key.verifying_key()));
        assert_eq!(public_key_from_pem(&pem), Err(PublicKeyError));
        assert_eq!(signing_key_from_pem("-----BEGIN PRIVATE KEY-----\n"), Err(KeyError));
    }
}
