//! Verifying a manifest.

use crate::{
    Digest, FileError, FileName, InvalidManifest, KeyId, MANIFEST_TYPE, Manifest, Profile, RoleName, Root,
    document::{Document, DocumentError, Signed, document_codes},
};

/// A manifest with the signatures collected so far.
pub type Envelope = Signed<Manifest>;

/// Bytes are not an approved manifest.
pub type ManifestError = DocumentError<Manifest>;

impl Document for Manifest {
    const TYPE: &'static str = MANIFEST_TYPE;
    const NAME: &'static str = "manifest";
    const CODES: [&'static str; 11] = document_codes!("manifest");
    type Invalid = InvalidManifest;

    fn validate(&self) -> Result<(), InvalidManifest> {
        self.check()
    }
}

impl Signed<Manifest> {
    /// The manifest, not verified.
    pub fn manifest(&self) -> &Manifest {
        self.content()
    }
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

/// Decides whether `bytes` are a manifest that enough release keys of `root` have signed.
pub fn verify(bytes: &[u8], root: &Root) -> Result<ApprovedManifest, ManifestError> {
    let envelope = Envelope::from_bytes(bytes)?;
    envelope.require_role(root.content(), root.role(RoleName::Release))?;
    Ok(ApprovedManifest {
        digest: envelope.digest(),
        signers: envelope.signers().copied().collect(),
        manifest: envelope.content().clone(),
    })
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
