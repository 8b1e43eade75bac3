//! Signing a manifest and verifying it.

use crate::{
    Digest, FileError, FileName, InvalidManifest, KeyId, MANIFEST_TYPE, MAX_DOCUMENT, Manifest, Profile,
    Root, SPEC_VERSION,
    canonical::{self, DocumentError},
    digest::from_hex,
    key_id,
};
use ed25519_dalek::{Signature, Signer, SigningKey};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A manifest with the signatures collected so far. Valid in form; says nothing about who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    manifest: Manifest,
    /// Canonical form of `manifest`: the bytes that signatures are over.
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

/// Bytes are not an approved manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Nothing of that length is looked at.
    #[error(
        "the manifest has {length} bytes, at most {MAX_DOCUMENT} are accepted; this is not a release manifest"
    )]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// No JSON at all.
    #[error("the manifest is not JSON ({0}); fetch it again")]
    NotJson(String),
    /// JSON in another representation than the one allowed.
    #[error(
        "the manifest is not in the canonical form from byte {offset} on; fetch it again and do not reformat it"
    )]
    NotCanonical {
        /// First byte that differs from the canonical form.
        offset: usize,
    },
    /// A missing, unknown or ill-typed member.
    #[error(
        "the manifest is malformed ({0}); fetch it again, or use the program version that it was made for"
    )]
    Malformed(String),
    /// Another kind of document, perhaps signed by the same keys for another purpose.
    #[error("the document is a {found:?}, not a {MANIFEST_TYPE:?}; give the release manifest")]
    WrongType {
        /// Its `_type`.
        found: String,
    },
    /// A format this program does not know.
    #[error("the manifest has spec_version {found}, this program knows {SPEC_VERSION}; use a newer program")]
    UnsupportedSpecVersion {
        /// Its `spec_version`.
        found: u64,
    },
    /// Well-formed, but its content breaks a rule.
    #[error("the manifest is invalid; ask the release's owners for a correct one")]
    Invalid(#[from] InvalidManifest),
    /// Signed by someone whom the root does not name.
    #[error(
        "the manifest is signed by key {keyid}, which the root does not name; check that manifest and root belong together"
    )]
    UnknownKey {
        /// The signer.
        keyid: KeyId,
    },
    /// The signature is not by that key over this content.
    #[error(
        "the signature by key {keyid} does not fit the manifest; it was changed after signing: fetch it again"
    )]
    BadSignature {
        /// The signer that is claimed.
        keyid: KeyId,
    },
    /// One signer listed twice, as if they were two.
    #[error("the manifest has two signatures by key {keyid}; each key signs once")]
    DuplicateSignature {
        /// The signer.
        keyid: KeyId,
    },
    /// Too few signers.
    #[error(
        "the manifest has {valid} valid signatures, the root asks for {needed}; have more release keys sign it"
    )]
    ThresholdNotMet {
        /// Different keys with a valid signature.
        valid: usize,
        /// Threshold of the root.
        needed: usize,
    },
}

impl From<DocumentError> for ManifestError {
    fn from(error: DocumentError) -> ManifestError {
        match error {
            DocumentError::TooLong { length } => ManifestError::TooLong { length },
            DocumentError::NotJson(why) => ManifestError::NotJson(why),
            DocumentError::Malformed(why) => ManifestError::Malformed(why),
            DocumentError::WrongType { found } => ManifestError::WrongType { found },
            DocumentError::UnsupportedSpecVersion { found } => {
                ManifestError::UnsupportedSpecVersion { found }
            }
        }
    }
}

/// A manifest was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// This key's signature is there already.
    #[error("key {keyid} has signed this manifest already; sign with another release key")]
    AlreadySigned {
        /// The signer.
        keyid: KeyId,
    },
}

/// The profile is not the wanted one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the release is for the {found} profile, this node is {expected}; use a release made for this node")]
pub struct ProfileMismatch {
    /// Profile that is wanted.
    pub expected: Profile,
    /// Profile of the release.
    pub found: Profile,
}

impl Envelope {
    /// An unsigned envelope around a manifest that obeys every rule.
    pub fn new(manifest: Manifest) -> Result<Envelope, InvalidManifest> {
        let signed = manifest.to_canonical()?;
        if signed.len() > MAX_DOCUMENT {
            return Err(InvalidManifest::TooLong(signed.len()));
        }
        Ok(Envelope { manifest, signed, signatures: BTreeMap::new() })
    }

    /// Reads an envelope in the canonical form **without** verifying signatures: to add one, or to show it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Envelope, ManifestError> {
        let wire: WireEnvelope = canonical::parse(bytes)?;
        let mut envelope = Envelope::new(canonical::from_typed(wire.signed, MANIFEST_TYPE)?)?;
        for WireSignature { keyid, sig } in wire.signatures {
            let sig = from_hex(&sig).map_err(|_| ManifestError::BadSignature { keyid })?;
            if envelope.signatures.insert(keyid, Signature::from_bytes(&sig)).is_some() {
                return Err(ManifestError::DuplicateSignature { keyid });
            }
        }
        // Covers white space, order, duplicate members, escapes and every other second way to write the same.
        let canonical = envelope.to_bytes();
        if canonical != bytes {
            return Err(ManifestError::NotCanonical {
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

    /// The manifest, not verified.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Keys that claim to have signed, ascending.
    pub fn signers(&self) -> impl Iterator<Item = &KeyId> {
        self.signatures.keys()
    }

    fn approve(self, root: &Root) -> Result<ApprovedManifest, ManifestError> {
        for (&keyid, signature) in &self.signatures {
            let key = root.key(&keyid).ok_or(ManifestError::UnknownKey { keyid })?;
            key.verify_strict(&self.signed, signature).map_err(|_| ManifestError::BadSignature { keyid })?;
        }
        // Ids are hashes of keys and unique in the map, so this counts different keys.
        let valid = self.signatures.len();
        if valid < root.threshold() {
            return Err(ManifestError::ThresholdNotMet { valid, needed: root.threshold() });
        }
        Ok(ApprovedManifest {
            digest: Digest::of(&self.signed),
            signers: self.signatures.into_keys().collect(),
            manifest: self.manifest,
        })
    }
}

/// Adds the signature of one release key; returns the key's id.
pub fn sign(envelope: &mut Envelope, key: &SigningKey) -> Result<KeyId, SignError> {
    let keyid = key_id(&key.verifying_key());
    if envelope.signatures.contains_key(&keyid) {
        return Err(SignError::AlreadySigned { keyid });
    }
    envelope.signatures.insert(keyid, key.sign(&envelope.signed));
    Ok(keyid)
}

/// Decides whether `bytes` are a manifest that enough keys of `root` have signed.
pub fn verify(bytes: &[u8], root: &Root) -> Result<ApprovedManifest, ManifestError> {
    Envelope::from_bytes(bytes)?.approve(root)
}

/// Proof that a manifest was verified: only [`verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovedManifest {
    manifest: Manifest,
    digest: Digest,
    signers: Vec<KeyId>,
}

impl ApprovedManifest {
    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of the signed bytes: names this release, whoever signed it.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The keys that signed, ascending.
    pub fn signers(&self) -> &[KeyId] {
        &self.signers
    }

    /// Passes the manifest on only if it is for this kind of node.
    pub fn require_profile(self, expected: Profile) -> Result<ApprovedManifest, ProfileMismatch> {
        match self.manifest.profile {
            found if found == expected => Ok(self),
            found => Err(ProfileMismatch { expected, found }),
        }
    }

    /// Checks size and hash of a file's content. Use the same bytes afterwards: a second read may differ.
    pub fn check_file(&self, name: FileName, content: &[u8]) -> Result<(), FileError> {
        self.manifest.guest.files.get(name).check(name.as_str(), content)
    }
}
