//! What manifest, root and blessing have in common: one canonical form, signatures around it, and errors.

use crate::{
    Digest, KeyId, MAX_DOCUMENT, SPEC_VERSION,
    canonical::{self, CanonicalError, FormError},
    digest::from_hex,
    key_id,
    root::Role,
    root::RootContent,
};
use ed25519_dalek::{Signature, Signer, SigningKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, error::Error, fmt};

/// Content that is signed. On the wire it also has `_type` and `spec_version`.
pub trait Document: Serialize + DeserializeOwned + Clone + fmt::Debug + Eq {
    /// Its `_type`.
    const TYPE: &'static str;
    /// Its name for people.
    const NAME: &'static str;
    /// Fixed names of its errors, in the order of the variants of [`DocumentError`].
    const CODES: [&'static str; 11];
    /// Which rule a content breaks.
    type Invalid: Error + Clone + Eq + From<CanonicalError> + 'static;

    /// Checks every rule of the content. What breaks one can be neither signed nor accepted.
    fn validate(&self) -> Result<(), Self::Invalid>;
}

/// The value of [`Document::CODES`] for a name.
macro_rules! document_codes {
    ($name:literal) => {
        [
            concat!($name, "-too-long"),
            concat!($name, "-not-json"),
            concat!($name, "-not-canonical"),
            concat!($name, "-malformed"),
            concat!($name, "-wrong-type"),
            concat!($name, "-unsupported-version"),
            concat!($name, "-invalid"),
            concat!($name, "-unknown-key"),
            concat!($name, "-bad-signature"),
            concat!($name, "-duplicate-signature"),
            concat!($name, "-threshold-not-met"),
        ]
    };
}
pub(crate) use document_codes;

/// Bytes are not a document that enough keys have signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError<T: Document> {
    /// Nothing of that length is looked at.
    #[error("the {name} has {length} bytes, at most {MAX_DOCUMENT} are accepted; give another file", name = T::NAME)]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// No JSON at all.
    #[error("the {name} is not JSON ({0}); fetch it again", name = T::NAME)]
    NotJson(String),
    /// JSON in another representation than the one allowed.
    #[error(
        "the {name} is not in the canonical form from byte {offset} on; fetch it again and do not reformat it",
        name = T::NAME
    )]
    NotCanonical {
        /// First byte that differs from the canonical form.
        offset: usize,
    },
    /// A missing, unknown or ill-typed member.
    #[error(
        "the {name} is malformed ({0}); fetch it again, or use the program version that it was made for",
        name = T::NAME
    )]
    Malformed(String),
    /// Another kind of document, perhaps signed by the same keys for another purpose.
    #[error("the document is a {found:?}, not a {kind:?}; give the {name}", kind = T::TYPE, name = T::NAME)]
    WrongType {
        /// Its `_type`.
        found: String,
    },
    /// A format this program does not know.
    #[error(
        "the {name} has spec_version {found}, this program knows {SPEC_VERSION}; use a newer program",
        name = T::NAME
    )]
    UnsupportedSpecVersion {
        /// Its `spec_version`.
        found: u64,
    },
    /// Well-formed, but its content breaks a rule.
    #[error("the {name} is invalid; ask the release's owners for a correct one", name = T::NAME)]
    Invalid(#[source] T::Invalid),
    /// Signed by someone whom the root does not name for that.
    #[error(
        "the {name} is signed by key {keyid}, which the root does not name for it; check that they belong together",
        name = T::NAME
    )]
    UnknownKey {
        /// The signer.
        keyid: KeyId,
    },
    /// The signature is not by that key over this content.
    #[error(
        "the signature by key {keyid} does not fit the {name}; it was changed after signing: fetch it again",
        name = T::NAME
    )]
    BadSignature {
        /// The signer that is claimed.
        keyid: KeyId,
    },
    /// One signer listed twice, as if they were two.
    #[error("the {name} has two signatures by key {keyid}; each key signs once", name = T::NAME)]
    DuplicateSignature {
        /// The signer.
        keyid: KeyId,
    },
    /// Too few signers.
    #[error(
        "the {name} has {valid} valid signatures, the root asks for {needed}; have more release keys sign it",
        name = T::NAME
    )]
    ThresholdNotMet {
        /// Different keys with a valid signature.
        valid: usize,
        /// Threshold of the role.
        needed: usize,
    },
}

impl<T: Document> DocumentError<T> {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        T::CODES[match self {
            Self::TooLong { .. } => 0,
            Self::NotJson(_) => 1,
            Self::NotCanonical { .. } => 2,
            Self::Malformed(_) => 3,
            Self::WrongType { .. } => 4,
            Self::UnsupportedSpecVersion { .. } => 5,
            Self::Invalid(_) => 6,
            Self::UnknownKey { .. } => 7,
            Self::BadSignature { .. } => 8,
            Self::DuplicateSignature { .. } => 9,
            Self::ThresholdNotMet { .. } => 10,
        }]
    }
}

impl<T: Document> From<FormError> for DocumentError<T> {
    fn from(error: FormError) -> Self {
        match error {
            FormError::TooLong { length } => Self::TooLong { length },
            FormError::NotJson(why) => Self::NotJson(why),
            FormError::Malformed(why) => Self::Malformed(why),
            FormError::WrongType { found } => Self::WrongType { found },
            FormError::UnsupportedSpecVersion { found } => Self::UnsupportedSpecVersion { found },
        }
    }
}

/// A signature was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// This key's signature is there already.
    #[error("key {keyid} has signed this document already; sign with another key")]
    AlreadySigned {
        /// The signer.
        keyid: KeyId,
    },
    /// The two hold signatures over different contents.
    #[error("the documents differ in content, not only in signatures; merge copies of one document")]
    OtherContent,
    /// Two signatures by one key that differ: ed25519 gives one per content.
    #[error("the documents have different signatures by key {keyid}; one of them is forged or damaged")]
    Conflict {
        /// The signer.
        keyid: KeyId,
    },
}

/// A document with the signatures collected so far. Valid in form; says nothing about who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    content: T,
    /// Canonical form of `content`: the bytes that signatures are over.
    signed: Vec<u8>,
    signatures: BTreeMap<KeyId, Signature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEnvelope {
    signatures: Vec<WireSignature>,
    signed: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature {
    keyid: KeyId,
    sig: String,
}

impl<T: Document> Signed<T> {
    /// An unsigned envelope around a content that obeys every rule.
    pub fn new(content: T) -> Result<Self, T::Invalid> {
        content.validate()?;
        let signed = canonical::encode(&canonical::to_typed(&content, T::TYPE))?;
        if signed.len() > MAX_DOCUMENT {
            return Err(CanonicalError::TooLong(signed.len()).into());
        }
        Ok(Self { content, signed, signatures: BTreeMap::new() })
    }

    /// Reads an envelope in the canonical form **without** verifying signatures: to add one, or to show it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError<T>> {
        let wire: WireEnvelope = canonical::parse(bytes)?;
        let mut envelope =
            Self::new(canonical::from_typed(wire.signed, T::TYPE)?).map_err(DocumentError::Invalid)?;
        for WireSignature { keyid, sig } in wire.signatures {
            let sig = from_hex(&sig).map_err(|_| DocumentError::BadSignature { keyid })?;
            if envelope.signatures.insert(keyid, Signature::from_bytes(&sig)).is_some() {
                return Err(DocumentError::DuplicateSignature { keyid });
            }
        }
        // Covers white space, order, duplicate members, escapes and every other second way to write the same.
        let canonical = envelope.to_bytes();
        if canonical != bytes {
            return Err(DocumentError::NotCanonical {
                offset: canonical::first_difference(&canonical, bytes),
            });
        }
        Ok(envelope)
    }

    /// The envelope in the canonical form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let signatures: Vec<String> = self
            .signatures
            .iter()
            .map(|(keyid, sig)| format!(r#"{{"keyid":"{keyid}","sig":"{}"}}"#, hex::encode(sig.to_bytes())))
            .collect();
        let mut bytes = format!(r#"{{"signatures":[{}],"signed":"#, signatures.join(",")).into_bytes();
        bytes.extend_from_slice(&self.signed);
        bytes.push(b'}');
        bytes
    }

    /// The content, not verified.
    pub fn content(&self) -> &T {
        &self.content
    }

    /// The bytes that a key signs.
    pub fn signed_bytes(&self) -> &[u8] {
        &self.signed
    }

    /// SHA-256 of the signed bytes: names this document, whoever signed it.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.signed)
    }

    /// Keys that claim to have signed, ascending.
    pub fn signers(&self) -> impl Iterator<Item = &KeyId> {
        self.signatures.keys()
    }

    /// Adds a signature that was made elsewhere over [`Signed::signed_bytes`], after checking it.
    pub fn attach(
        &mut self,
        key: &ed25519_dalek::VerifyingKey,
        signature: [u8; 64],
    ) -> Result<KeyId, AttachError> {
        let keyid = key_id(key);
        if self.signatures.contains_key(&keyid) {
            return Err(SignError::AlreadySigned { keyid }.into());
        }
        let signature = Signature::from_bytes(&signature);
        key.verify_strict(&self.signed, &signature).map_err(|_| AttachError::BadSignature { keyid })?;
        self.signatures.insert(keyid, signature);
        Ok(keyid)
    }

    /// Takes over the signatures of a copy that somebody else signed. None of them is verified here.
    pub fn merge(&mut self, other: &Self) -> Result<(), SignError> {
        if self.signed != other.signed {
            return Err(SignError::OtherContent);
        }
        for (&keyid, signature) in &other.signatures {
            if self.signatures.insert(keyid, *signature).is_some_and(|known| known != *signature) {
                return Err(SignError::Conflict { keyid });
            }
        }
        Ok(())
    }

    /// Checks every signature against keys of `roots` that are in the role, which a signature may be of any of.
    pub(crate) fn verify_each(&self, allowed: &[(&RootContent, &Role)]) -> Result<(), DocumentError<T>> {
        for (&keyid, signature) in &self.signatures {
            let key = allowed
                .iter()
                .find_map(|(root, role)| role.keyids.contains(&keyid).then(|| root.keys.get(&keyid))?)
                .ok_or(DocumentError::UnknownKey { keyid })?;
            key.0
                .verify_strict(&self.signed, signature)
                .map_err(|_| DocumentError::BadSignature { keyid })?;
        }
        Ok(())
    }

    /// How many keys of a role are among the signers. Ids are hashes of keys and unique in the map, so this counts
    /// different keys.
    pub(crate) fn signers_in(&self, role: &Role) -> usize {
        self.signatures.keys().filter(|&keyid| role.keyids.contains(keyid)).count()
    }

    /// Whether enough keys of a role signed, and nobody else.
    pub(crate) fn require_role(&self, root: &RootContent, role: &Role) -> Result<(), DocumentError<T>> {
        self.verify_each(&[(root, role)])?;
        let valid = self.signers_in(role);
        let needed = role.threshold_count();
        if valid < needed { Err(DocumentError::ThresholdNotMet { valid, needed }) } else { Ok(()) }
    }
}

/// A signature that was made elsewhere was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// It is there already.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// It is no signature of this document.
    #[error("the signature is not by key {keyid} over this document; sign this very file")]
    BadSignature {
        /// The signer that is claimed.
        keyid: KeyId,
    },
}

/// Adds the signature of one key; returns the key's id.
pub fn sign<T: Document>(envelope: &mut Signed<T>, key: &SigningKey) -> Result<KeyId, SignError> {
    let keyid = key_id(&key.verifying_key());
    if envelope.signatures.contains_key(&keyid) {
        return Err(SignError::AlreadySigned { keyid });
    }
    envelope.signatures.insert(keyid, key.sign(&envelope.signed));
    Ok(keyid)
}
