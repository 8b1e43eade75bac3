//! TLS keys without authorities: the host's own, and an operator's. A certificate is only the form in which TLS wants
//! to see a key; nothing else in it counts.

use crate::decommission::Signer;
use crate::tls::public_key;
use ring::signature::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The name in every certificate, for programs that compare one with something.
pub const NAME: &str = "redoubt";

/// A private key with a certificate around its public key.
#[derive(Debug)]
pub struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub key_sha256: [u8; 32],
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("cannot {action} the key {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no key.
    #[error("{path} is no private key (PKCS#8 in PEM): {reason}; make one with `redoubt operator key`")]
    Form {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Identity {
    /// Reads a key from a file.
    pub fn read(path: &Path) -> Result<Self, IdentityError> {
        let text = std::fs::read_to_string(path).map_err(|source| IdentityError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let form = |reason: String| IdentityError::Form { path: path.to_owned(), reason };
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|e| form(e.to_string()))?;
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ED25519)
            .map_err(|error| form(error.to_string()))?;
        Self::around(&key).map_err(form)
    }

    /// Makes a key and writes it to a file, which must not exist yet. Only its owner may read it.
    pub fn create(path: &Path) -> Result<Self, IdentityError> {
        let io = |action| move |source| IdentityError::Io { action, path: path.to_owned(), source };
        let form = |reason: String| IdentityError::Form { path: path.to_owned(), reason };
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|e| form(e.to_string()))?;
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(io("create"))?;
        file.write_all(key.serialize_pem().as_bytes()).and_then(|()| file.sync_all()).map_err(io("write"))?;
        Self::around(&key).map_err(form)
    }

    /// Reads the key, or makes it if there is none.
    pub fn read_or_create(path: &Path) -> Result<Self, IdentityError> {
        match path.try_exists() {
            Ok(true) => Self::read(path),
            Ok(false) => Self::create(path),
            Err(source) => Err(IdentityError::Io { action: "find", path: path.to_owned(), source }),
        }
    }

    /// The 32 bytes of the public key, as the installer's configuration takes an operator's.
    pub fn public_key(&self) -> Option<[u8; 32]> {
        ed25519_of(&self.certificate)
    }

    /// The certificate in PEM, for programs that want one. The same key gives the same certificate.
    pub fn certificate_pem(&self) -> String {
        pem(&self.certificate)
    }

    /// Signs with this key; gives the public key and the signature, hexadecimal.
    pub fn into_signer(self) -> Option<Signer> {
        let key = ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(self.key.secret_der()).ok()?;
        let public_key = hex::encode(key.public_key().as_ref());
        Some(Box::new(move |bytes| (public_key.clone(), hex::encode(key.sign(bytes).as_ref()))))
    }

    fn around(key: &rcgen::KeyPair) -> Result<Self, String> {
        let params = rcgen::CertificateParams::new([NAME.to_owned()]).map_err(|error| error.to_string())?;
        let certificate = params.self_signed(key).map_err(|error| error.to_string())?.der().clone();
        let key_sha256 = key_of(&certificate).map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(str::to_owned)?;
        Ok(Self { certificate, key, key_sha256 })
    }
}

/// A certificate in PEM (RFC 7468, 5.1).
pub fn pem(certificate: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    const WIDTH: usize = 48;
    let lines: String = certificate.chunks(WIDTH).map(|bytes| STANDARD.encode(bytes) + "\n").collect();
    format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n")
}

/// SubjectPublicKeyInfo of an ed25519 key before its 32 bytes (RFC 8410, 4).
const ED25519: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The 32 bytes of an ed25519 key in a certificate; none if it is a key of another kind.
pub(crate) fn ed25519_of(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    public_key(certificate).ok()?.strip_prefix(&ED25519)?.try_into().ok()
}

/// SHA-256 of the SubjectPublicKeyInfo of an ed25519 key.
pub fn key_sha256_of(public_key: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(ED25519).chain_update(public_key).finalize().into()
}

/// SHA-256 of the public key in a certificate.
pub(crate) fn key_of(certificate: &CertificateDer<'_>) -> Result<[u8; 32], rustls::Error> {
    Ok(Sha256::digest(public_key(certificate)?).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        let made = Identity::read_or_create(&path).unwrap();
        let again = Identity::read_or_create(&path).unwrap();
        assert_eq!(again.key_sha256, made.key_sha256);
        let pem = again.certificate_pem();
        assert_eq!(pem, made.certificate_pem());
        assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(), made.certificate);
        assert_eq!(key_sha256_of(&made.public_key().unwrap()), made.key_sha256);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Identity::create(&path), Err(IdentityError::Io { action: "create", .. })));
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        assert!(matches!(Identity::read(&path), Err(IdentityError::Form { .. })));
    }
}
