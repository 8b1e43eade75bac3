//! A release as somebody downloaded it: its manifest and the files beside it.

use crate::{guest::names, images::AUDIT};
use release::{Digest, Envelope, Manifest, ManifestError};
use std::path::{Path, PathBuf};

/// The manifest of a release cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Not there.
    #[error("cannot read {path}: {source}; give the manifest of a release or the directory that holds it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a manifest.
    #[error("{path} is no release manifest: {source}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// Another release than this checkout makes.
    #[error(
        "the release was made from {what} {expected}, this checkout has {found}; check out the commit of the release \
         ({commit}) and try again"
    )]
    OtherSources {
        /// Commit or lock.
        what: &'static str,
        /// In the manifest.
        expected: String,
        /// Here.
        found: String,
        /// Commit in the manifest.
        commit: String,
    },
    /// A kernel that is to be taken from the release cannot be.
    #[error("{name} of the release cannot be used ({why}); download it again, or rebuild the kernels too")]
    NoKernel {
        /// The file.
        name: String,
        /// Why not.
        why: String,
    },
}

impl ReleaseError {
    /// A short fixed name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "release-unreadable",
            Self::Manifest { .. } => "manifest-refused",
            Self::OtherSources { .. } => "other-sources",
            Self::NoKernel { .. } => "kernel-unusable",
        }
    }
}

/// A release on a disk: its manifest and the folder in which its files lie. Signatures are not looked at: what is
/// rebuilt is compared with what the manifest says, whoever signed it.
pub struct Release {
    /// The manifest.
    pub manifest: Manifest,
    folder: PathBuf,
}

impl Release {
    /// Reads the manifest; `path` may be the folder that holds it.
    pub fn read(path: &Path) -> Result<Self, ReleaseError> {
        let path = if path.is_dir() { path.join(names::MANIFEST) } else { path.to_owned() };
        let bytes =
            std::fs::read(&path).map_err(|source| ReleaseError::Unreadable { path: path.clone(), source })?;
        let envelope = Envelope::from_bytes(&bytes)
            .map_err(|source| ReleaseError::Manifest { path: path.clone(), source })?;
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        Ok(Self { manifest: envelope.manifest().clone(), folder })
    }

    /// A file of the release, if it is there.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>, ReleaseError> {
        let path = self.folder.join(name);
        match std::fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ReleaseError::Unreadable { path, source }),
        }
    }

    /// A file of the release that has the hash in the manifest.
    pub(crate) fn checked(&self, name: &str, expected: Option<Digest>) -> Result<Vec<u8>, ReleaseError> {
        let unusable = |why: &str| ReleaseError::NoKernel { name: name.to_owned(), why: why.to_owned() };
        let content = self.file(name)?.ok_or_else(|| unusable("it is not beside the manifest"))?;
        if expected == Some(Digest::of(&content)) {
            Ok(content)
        } else {
            Err(unusable("its hash is not the manifest's"))
        }
    }

    /// Names and hashes of everything that the manifest binds, and whether it is there for auditors only.
    pub(crate) fn bound(&self) -> Vec<Bound> {
        let manifest = &self.manifest;
        let files = manifest.files();
        let mut bound: Vec<Bound> = files
            .map(|(_, file)| Bound { name: file.path.clone(), sha256: Some(file.sha256), audit: false })
            .collect();
        let lock = Bound { name: names::LOCK.to_owned(), sha256: Some(manifest.input_lock), audit: true };
        bound.push(lock);
        for (key, name) in AUDIT {
            if let Some(text) = manifest.inputs.get(*key) {
                bound.push(Bound { name: (*name).to_owned(), sha256: text.parse().ok(), audit: true });
            }
        }
        bound
    }
}

/// A file that the manifest binds.
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) sha256: Option<Digest>,
    pub(crate) audit: bool,
}
