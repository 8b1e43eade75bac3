//! From the files of a release to what is written on a disk: signatures, profile, sizes and hashes, in this order.

use crate::{
    archive::{self, Files, MANIFEST},
    pe::{self, PeError},
};
use release::{Digest, File, FileError, Manifest, ManifestError, Profile, ProfileMismatch, Root};
use std::io;

/// Ending of the name of the unified kernel image's detached signature.
pub const SIGNATURE: &str = ".p7s";

/// A release is not installed.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// No manifest.
    #[error("there is no {MANIFEST} in the release; write the medium again")]
    NoManifest,
    /// Not approved by the root.
    #[error("the release is refused: {0}")]
    Manifest(#[from] ManifestError),
    /// For other nodes.
    #[error("the release is refused: {0}")]
    Profile(#[from] ProfileMismatch),
    /// Only a guest.
    #[error("release {0} has no host, only a guest; take one that has both")]
    NoHost(String),
    /// A file is missing.
    #[error("the release lacks its file {0}; write the medium again")]
    Missing(String),
    /// A file is another one.
    #[error("the release is refused: {0}")]
    File(#[from] FileError),
    /// Firmware with Secure Boot would not start it.
    #[error("the host's kernel image has no signature for Secure Boot ({0}); have its key's holder sign it")]
    Unsigned(String),
    /// The kernel image cannot carry its signature.
    #[error("the host's kernel image is refused: {0}")]
    Image(#[from] PeError),
    /// The kernel image would look for another root.
    #[error(
        "the host's kernel image is for the root {image}, the release has {manifest}; build the release again"
    )]
    RootHash {
        /// In its command line.
        image: String,
        /// In the manifest.
        manifest: String,
    },
    /// Too long a name for an archive.
    #[error("the guest's files cannot be packed: {0}")]
    Pack(io::Error),
}

impl ReleaseError {
    /// A short fixed name, for scripts and tests.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoManifest => "release-without-manifest",
            Self::Manifest(ManifestError::ThresholdNotMet { .. }) => "release-unsigned",
            Self::Manifest(ManifestError::BadSignature { .. } | ManifestError::UnknownKey { .. }) => {
                "release-wrongly-signed"
            }
            Self::Manifest(_) => "release-manifest-refused",
            Self::Profile(_) => "release-wrong-profile",
            Self::NoHost(_) => "release-without-host",
            Self::Missing(_) => "release-incomplete",
            Self::File(_) => "release-file-changed",
            Self::Unsigned(_) => "kernel-image-unsigned",
            Self::Image(_) | Self::RootHash { .. } => "kernel-image-refused",
            Self::Pack(_) => "guest-not-packed",
        }
    }
}

/// A verified release, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// [`Manifest::version`].
    pub version: String,
    /// [`Manifest::security_epoch`].
    pub security_epoch: u64,
    /// [`Manifest::profile`].
    pub profile: Profile,
    /// What was signed: identifies the release.
    pub digest: Digest,
    /// The signed unified kernel image.
    pub uki: Vec<u8>,
    /// The host's root.
    pub root: Vec<u8>,
    /// Its hash area.
    pub verity: Vec<u8>,
    /// Its root hash.
    pub root_hash: [u8; 32],
    /// The guest slot: an archive of the manifest and the guest's files.
    pub guest: Vec<u8>,
}

impl Parts {
    /// Judges the files of a release by a root and takes them apart.
    pub fn of(mut files: Files, root: &Root, profile: Profile) -> Result<Self, ReleaseError> {
        let approved = release::verify(files.get(MANIFEST).ok_or(ReleaseError::NoManifest)?, root)?
            .require_profile(profile)?;
        let manifest = approved.manifest();
        let host = manifest.host.as_ref().ok_or_else(|| ReleaseError::NoHost(manifest.version.clone()))?;
        let guest = archive::pack(&guest_files(manifest, &files)?).map_err(ReleaseError::Pack)?;
        let mut take = |name, file: &File| {
            let content = files.remove(&file.path).ok_or_else(|| ReleaseError::Missing(file.path.clone()))?;
            file.check(name, &content)?;
            Ok::<_, ReleaseError>(content)
        };
        let uki = take("unified kernel image", &host.uki)?;
        let (root, verity) =
            (take("host's root", &host.root)?, take("host's hash tree", &host.root_hash_tree)?);
        let manifest_hash = hex::encode(host.verity_root_hash.0);
        let image_hash = root_hash_of(&uki).map(hex::encode).unwrap_or_default();
        if image_hash != manifest_hash {
            return Err(ReleaseError::RootHash { image: image_hash, manifest: manifest_hash });
        }
        let signature = format!("{}{SIGNATURE}", host.uki.path);
        let signature = files.get(&signature).ok_or(ReleaseError::Unsigned(signature))?;
        Ok(Self {
            version: manifest.version.clone(),
            security_epoch: manifest.security_epoch,
            profile: manifest.profile,
            digest: approved.digest(),
            uki: pe::attach(&uki, signature)?,
            root,
            verity,
            root_hash: host.verity_root_hash.0,
            guest,
        })
    }
}

/// Of the files of a release, the checked ones that a guest slot gets: manifest, guest, and the signatures of ID blocks if
/// there are any.
pub fn guest_files(manifest: &Manifest, files: &Files) -> Result<Files, ReleaseError> {
    let mut guest = Files::new();
    for name in release::FileName::ALL {
        let file = manifest.guest.files.get(name);
        let content = files.get(&file.path).ok_or_else(|| ReleaseError::Missing(file.path.clone()))?;
        file.check(name.as_str(), content)?;
        guest.insert(file.path.clone(), content.clone());
    }
    for name in [MANIFEST, release::ID_BLOCK_FILE] {
        if let Some(content) = files.get(name) {
            guest.insert(name.to_owned(), content.clone());
        }
    }
    Ok(guest)
}

/// Paths of all files that the installer's medium carries of a release; those behind the manifest's own may be absent.
#[must_use]
pub fn carried(manifest: &Manifest) -> (Vec<String>, Vec<String>) {
    let mut required = vec![MANIFEST.to_owned()];
    required.extend(release::FileName::ALL.map(|name| manifest.guest.files.get(name).path.clone()));
    let mut optional = vec![release::ID_BLOCK_FILE.to_owned()];
    if let Some(host) = &manifest.host {
        required.extend([&host.uki, &host.root, &host.root_hash_tree].map(|file| file.path.clone()));
        optional.push(format!("{}{SIGNATURE}", host.uki.path));
    }
    (required, optional)
}

/// The root hash in the command line of a unified kernel image.
#[must_use]
pub fn root_hash_of(uki: &[u8]) -> Option<[u8; 32]> {
    let line = std::str::from_utf8(pe::section(uki, ".cmdline")?).ok()?;
    // dm-mod.create="root,,0,ro,0 N verity 1 DATA HASHES 4096 4096 BLOCKS 1 sha256 ROOT SALT ..."
    let (_, hash) = line.split_once(" sha256 ")?;
    hex::decode(hash.split(' ').next()?).ok()?.try_into().ok()
}

/// Whether the first release is older than the second: by security epoch, then by the numbers that their versions begin
/// with. Versions that do not begin with numbers are not ordered.
#[must_use]
pub fn is_older(one: (u64, &str), other: (u64, &str)) -> bool {
    let numbers = |version: &str| -> Vec<u64> {
        let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
        version[..end].split('.').map_while(|number| number.parse().ok()).collect()
    };
    let (a, b) = (numbers(one.1), numbers(other.1));
    one.0 < other.0 || one.0 == other.0 && !a.is_empty() && !b.is_empty() && a < b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_epoch_then_numbers() {
        assert!(is_older((1, "9.0.0"), (2, "0.1.0")));
        assert!(!is_older((2, "0.1.0"), (1, "9.0.0")));
        assert!(is_older((1, "0.9.10"), (1, "0.10.0")));
        assert!(is_older((1, "0.1"), (1, "0.1.1")));
        assert!(!is_older((1, "0.1.0"), (1, "0.1.0")));
        assert!(!is_older((1, "0.1.0-rc1"), (1, "0.1.0")));
        assert!(!is_older((1, "nightly"), (1, "1.0")));
        assert!(!is_older((1, "1.0"), (1, "nightly")));
        assert!(is_older((1, "1.99999999999999999999999"), (1, "2")));
    }
}
