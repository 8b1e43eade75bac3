//! Signatures of the ID blocks of a release: a file beside the manifest, made where the ID key is kept.
//!
//! The file needs no signature of its own: the manifest names the digests of the keys, and each signature in it is
//! over an ID block that follows from the manifest. This crate reads it; `attestation` has the keys' arithmetic.

use crate::{ID_BLOCK_TYPE, P384Key, P384Signature, canonical};
use serde::{Deserialize, Serialize};

/// Name of the file in a release's directory.
pub const ID_BLOCK_FILE: &str = "id-blocks.json";

/// The signatures. On the wire they also have `_type` and `spec_version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdBlockSignatures {
    /// The key that signed the blocks.
    pub id_key: P384Key,
    /// Who certified that key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<AuthorSignature>,
    /// One signature for each measurement of the manifest.
    pub blocks: Vec<BlockSignature>,
}

/// Certifies an ID key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorSignature {
    /// The author key.
    pub key: P384Key,
    /// Its signature over the ID key in the firmware's form.
    pub signature: P384Signature,
}

/// Signature of the ID block for one vCPU model and count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSignature {
    /// QEMU's name of the model.
    pub vcpu_type: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The ID key's signature over the block.
    pub signature: P384Signature,
}

/// Bytes are no signatures of ID blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the signatures of the ID blocks cannot be read ({0}); fetch the release's {ID_BLOCK_FILE} again")]
pub struct IdBlockSignaturesError(String);

impl IdBlockSignatures {
    /// Reads the file. Says nothing about whether a signature fits.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdBlockSignaturesError> {
        canonical::parse(bytes)
            .and_then(|value| canonical::from_typed(value, ID_BLOCK_TYPE))
            .map_err(|error| IdBlockSignaturesError(error.describe()))
    }

    /// Writes the file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, crate::CanonicalError> {
        canonical::encode(&canonical::to_typed(self, ID_BLOCK_TYPE))
    }

    /// The signature for a vCPU model and count.
    pub fn signature_for(&self, vcpu_type: &str, vcpus: u32) -> Option<&P384Signature> {
        let mut blocks = self.blocks.iter();
        blocks
            .find(|block| block.vcpu_type == vcpu_type && block.vcpus == vcpus)
            .map(|block| &block.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signatures() -> IdBlockSignatures {
        let block = |vcpus| BlockSignature {
            vcpu_type: "EPYC-v4".into(),
            vcpus,
            signature: P384Signature([vcpus as u8; 96]),
        };
        IdBlockSignatures {
            id_key: P384Key([4; 97]),
            author: Some(AuthorSignature { key: P384Key([5; 97]), signature: P384Signature([6; 96]) }),
            blocks: vec![block(1), block(2)],
        }
    }

    #[test]
    fn round_trip() {
        let bytes = signatures().to_bytes().unwrap();
        assert_eq!(IdBlockSignatures::from_bytes(&bytes), Ok(signatures()));
        assert_eq!(signatures().signature_for("EPYC-v4", 2), Some(&P384Signature([2; 96])));
        assert_eq!(signatures().signature_for("EPYC-v4", 3), None);
        assert_eq!(signatures().signature_for("EPYC-Milan", 2), None);
    }

    #[test]
    fn other_documents_are_refused() {
        let bytes = signatures().to_bytes().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        for bad in [
            text.replace(ID_BLOCK_TYPE, crate::MANIFEST_TYPE),
            text.replace("\"spec_version\":1", "\"spec_version\":2"),
            text.replace("\"vcpus\":1", "\"vcpus\":-1"),
            text.replace("\"id_key\":\"04", "\"id_key\":\""),
            text.replace("\"author\":", "\"writer\":"),
            text[1..].to_owned(),
            " ".repeat(crate::MAX_DOCUMENT + 1),
        ] {
            assert_ne!(bad, text);
            IdBlockSignatures::from_bytes(bad.as_bytes()).unwrap_err();
        }
    }
}
