//! Whom nodes trust: the root that releases are judged by, and the Secure Boot keys that the installer enrols.
//!
//! Those of the virtual profile are public. Those of the production profile belong to the cloud that runs the nodes and are
//! given as a folder:
//!
//! | file | holds |
//! |---|---|
//! | `root.json` | the root, signed by a threshold of its own keys |
//! | `certificate.der` | X.509, of the key that signs the unified kernel images |
//! | `PK.auth`, `KEK.auth`, `db.auth` | what is written to these variables of the firmware in setup mode |

use crate::{
    compare,
    error::Result,
    files::{self, FileError},
    host::{
        HostError,
        authenticode::{self, Signer},
        pe, secure_boot,
    },
    recipe,
    workshop::Workshop,
};
use release::{Digest, Profile, Root, RootError};
use std::path::{Path, PathBuf};

/// Whom the nodes of a release trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Signed root, in its canonical form.
    pub root: Vec<u8>,
    /// Certificate of the key that signs unified kernel images, DER.
    pub certificate: Vec<u8>,
    /// Variable and what is written to it: PK, KEK, db.
    pub variables: Vec<(&'static str, Vec<u8>)>,
}

/// Folder in [`recipe::folder`] that is taken where none is given.
pub const FOLDER: &str = "production";
const ROOT: &str = "root.json";
const CERTIFICATE: &str = "certificate.der";
const VARIABLES: [&str; 3] = ["PK", "KEK", "db"];
/// Where the installer has them.
const IN_INSTALLER: (&str, &str, &str) =
    ("etc/redoubt/root.json", "etc/redoubt/secure-boot/certificate.der", "etc/redoubt/secure-boot");

/// It is not known, or not well enough, whom nodes are to trust.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// No folder.
    #[error(
        "nobody said whom production nodes trust: there is no folder {0}. Make one as docs/REPRODUCING.md says (Keys of a \
         cloud): root.json by 'redoubt release create-root' and 'redoubt release sign', then the folder by 'redoubt image \
         create-trust'; give it with --trust DIR"
    )]
    None(PathBuf),
    /// A file of the folder.
    #[error(
        "the folder of whom nodes trust is not complete: {0}; make it again with 'redoubt image create-trust'"
    )]
    File(#[from] FileError),
    /// The root.
    #[error(
        "the root in {path} is refused: {source}; make and sign it with 'redoubt release create-root' and 'sign'"
    )]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RootError,
    },
    /// The certificate.
    #[error("{0} is no X.509 certificate in DER; make the folder again with 'redoubt image create-trust'")]
    Certificate(PathBuf),
    /// A variable.
    #[error(
        "{0} does not enrol the certificate beside it, so that machines would not start what its key signs; make the folder \
         again with 'redoubt image create-trust'"
    )]
    Variable(PathBuf),
    /// The public keys of the virtual profile.
    #[error(
        "{0} is a public development key, with which anybody signs: no production node may trust it; use your own"
    )]
    Development(PathBuf),
    /// The installer of a release has none.
    #[error(
        "the installer of the release does not say whom nodes trust; download it again, or give --trust DIR"
    )]
    NotInInstaller,
}

impl Trust {
    /// Reads a folder.
    pub fn read(folder: &Path) -> Result<Self, TrustError> {
        if !folder.is_dir() {
            return Err(TrustError::None(folder.to_owned()));
        }
        let read = |name: &str| files::read(&folder.join(name));
        let variable = |name| Ok::<_, FileError>((name, read(&format!("{name}.auth"))?));
        let trust = Self {
            root: read(ROOT)?,
            certificate: read(CERTIFICATE)?,
            variables: VARIABLES.into_iter().map(variable).collect::<Result<_, _>>()?,
        };
        let path = folder.join(ROOT);
        Root::from_bytes(&trust.root).map_err(|source| TrustError::Root { path: path.clone(), source })?;
        #[cfg(feature = "virtual")]
        if trust.root == release::development::ROOT {
            return Err(TrustError::Development(path));
        }
        let path = folder.join(CERTIFICATE);
        if !authenticode::is_certificate(&trust.certificate) {
            return Err(TrustError::Certificate(path));
        }
        if trust.certificate == secure_boot::CERTIFICATE {
            return Err(TrustError::Development(path));
        }
        let enrols = |value: &[u8]| secure_boot::enrols(value, &trust.certificate);
        if !trust.variables.iter().any(|(name, value)| *name == "db" && enrols(value)) {
            return Err(TrustError::Variable(folder.join("db.auth")));
        }
        Ok(trust)
    }

    /// Puts one together: `platform` owns the machine's Secure Boot settings (PK and KEK), the key of `certificate` (DER)
    /// signs kernel images.
    pub fn create(root: &[u8], certificate: &[u8], platform: Signer<'_>) -> Result<Self, HostError> {
        let variables = secure_boot::signed_variables(platform, certificate)?;
        Ok(Self { root: root.to_owned(), certificate: certificate.to_owned(), variables })
    }

    /// Writes a folder, which must be one that [`Self::read`] accepts.
    pub fn write(&self, folder: &Path) -> Result<(), TrustError> {
        files::make_folder(folder)?;
        files::write(&folder.join(ROOT), &self.root)?;
        files::write(&folder.join(CERTIFICATE), &self.certificate)?;
        for (name, value) in &self.variables {
            files::write(&folder.join(format!("{name}.auth")), value)?;
        }
        Self::read(folder).map(|_| ())
    }

    /// The files of the installer that hold it.
    #[must_use]
    pub fn files(&self) -> Vec<(String, &[u8])> {
        let (root, certificate, folder) = IN_INSTALLER;
        let mut files = vec![
            (root.to_owned(), self.root.as_slice()),
            (certificate.to_owned(), self.certificate.as_slice()),
        ];
        let variables = self.variables.iter();
        files.extend(variables.map(|(name, value)| (format!("{folder}/{name}.auth"), value.as_slice())));
        files
    }

    /// What a built installer has.
    pub fn of_installer(uki: &[u8]) -> Result<Self, TrustError> {
        let initrd = pe::section(uki, ".initrd").ok_or(TrustError::NotInInstaller)?;
        let mut files: std::collections::BTreeMap<String, Vec<u8>> =
            compare::files(initrd).into_iter().collect();
        let mut take = |name: &str| files.remove(&format!("/{name}")).ok_or(TrustError::NotInInstaller);
        let (root, certificate, folder) = IN_INSTALLER;
        let (root, certificate) = (take(root)?, take(certificate)?);
        let variable = |name| Ok::<_, TrustError>((name, take(&format!("{folder}/{name}.auth"))?));
        Ok(Self {
            root,
            certificate,
            variables: VARIABLES.into_iter().map(variable).collect::<Result<_, _>>()?,
        })
    }

    /// For people: what to compare with the cloud's own word.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "root.json with SHA-256 {}, certificate with SHA-256 {}",
            Digest::of(&self.root),
            Digest::of(&self.certificate)
        )
    }
}

/// Whom nodes of a profile trust; none where this program lacks the development keys.
pub fn of_profile(workshop: &Workshop, profile: Profile) -> Result<Option<Trust>> {
    match (profile, &workshop.trust) {
        (Profile::Virtual, _) => development(),
        (Profile::Production, Some(trust)) => Ok(Some(trust.clone())),
        (Profile::Production, None) => {
            Ok(Some(Trust::read(&recipe::folder(&workshop.repository).join(FOLDER))?))
        }
    }
}

#[cfg(feature = "virtual")]
fn development() -> Result<Option<Trust>> {
    let signer = Signer { key: secure_boot::KEY, certificate: secure_boot::CERTIFICATE };
    Ok(Some(Trust::create(release::development::ROOT, secure_boot::CERTIFICATE, signer)?))
}

/// A program without the development keys makes no installer that trusts them.
#[cfg(not(feature = "virtual"))]
fn development() -> Result<Option<Trust>> {
    Ok(None)
}

#[cfg(all(test, feature = "virtual"))]
mod tests {
    use super::*;

    #[test]
    fn development_keys_missing_files_and_strangers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("trust");
        assert!(matches!(Trust::read(&folder), Err(TrustError::None(_))));
        let development = development().unwrap().unwrap();
        assert!(
            matches!(development.write(&folder), Err(TrustError::Development(path)) if path.ends_with(ROOT))
        );
        let change = |name: &str, content: &[u8]| {
            let path = folder.join(name);
            let before = std::fs::read(&path).unwrap();
            std::fs::write(&path, content).unwrap();
            let refused = Trust::read(&folder).unwrap_err();
            std::fs::write(&path, before).unwrap();
            refused
        };
        assert!(matches!(change(ROOT, b"{}"), TrustError::Root { .. }));
        std::fs::remove_file(folder.join("KEK.auth")).unwrap();
        assert!(matches!(Trust::read(&folder), Err(TrustError::File(_))));
    }
}
