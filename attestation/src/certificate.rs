//! One certificate of the chain: just what AMD's certificates carry, and nothing more lenient.

mod extensions;

pub(crate) use extensions::AmdExtensions;

use crate::signed::Signed;
use extensions::Extensions;
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use x509_parser::{
    certificate::X509Certificate,
    der_parser::{asn1_rs::FromDer, oid},
    oid_registry::Oid,
    x509::{SubjectPublicKeyInfo, X509Version},
};

/// Longest certificate that is looked at, in bytes. AMD's have less than 2000.
const MAX_LENGTH: usize = 8192;

/// Why bytes are no certificate of such a chain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("it has {0} bytes, more than any such certificate")]
    TooLong(usize),
    #[error("it is not one DER certificate: {0}")]
    NotDer(String),
    #[error("it has bytes after its end")]
    Trailing,
    #[error("it is not of version 3, or carries unique identifiers")]
    Version,
    #[error(
        "it is not the canonical encoding of a certificate signed with RSA-PSS, SHA-384 and a salt of 48 bytes"
    )]
    SignatureAlgorithm,
    #[error("its key is neither RSA nor ECDSA on P-384")]
    Key,
    #[error("its extension {0} stands twice, is malformed or of an unknown version")]
    Extension(String),
    #[error("its critical extension {0} is not known")]
    UnknownCritical(String),
}

/// Public key of a certificate.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    /// RSAPublicKey of PKCS#1, DER.
    Rsa(Vec<u8>),
    /// Uncompressed point.
    P384(Vec<u8>),
}

/// A parsed certificate. Nothing about it is trusted before the chain is checked.
#[derive(Debug)]
pub(crate) struct Certificate {
    signed: Signed,
    key: Key,
    /// Name in DER.
    pub(crate) issuer: Vec<u8>,
    /// Name in DER.
    pub(crate) subject: Vec<u8>,
    /// Contents of the INTEGER.
    pub(crate) serial: Vec<u8>,
    /// Of the subject; empty when there is not exactly one.
    pub(crate) common_name: String,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    /// Seconds since 1970.
    pub(crate) not_after: i64,
    /// CA:TRUE and the key usage keyCertSign.
    pub(crate) may_issue: bool,
    /// The key usage cRLSign.
    pub(crate) may_revoke: bool,
    pub(crate) amd: AmdExtensions,
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_LENGTH {
            return Err(CertificateError::TooLong(der.len()));
        }
        let (rest, x509) =
            X509Certificate::from_der(der).map_err(|error| CertificateError::NotDer(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateError::Trailing);
        }
        let unique = x509.issuer_uid.is_some() || x509.subject_uid.is_some();
        if x509.version() != X509Version::V3 || unique {
            return Err(CertificateError::Version);
        }
        if x509.signature_algorithm != x509.tbs_certificate.signature {
            return Err(CertificateError::SignatureAlgorithm);
        }
        let signed = Signed::new(der, x509.tbs_certificate.as_ref(), &x509.signature_value.data)
            .ok_or(CertificateError::SignatureAlgorithm)?;
        let Extensions { may_issue, may_revoke, amd } = Extensions::read(&x509)?;
        let mut names = x509.subject().iter_common_name();
        let common_name = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        Ok(Self {
            signed,
            key: key(x509.public_key()).ok_or(CertificateError::Key)?,
            issuer: x509.issuer().as_raw().to_vec(),
            subject: x509.subject().as_raw().to_vec(),
            serial: x509.raw_serial().to_vec(),
            common_name,
            not_before: x509.validity().not_before.timestamp(),
            not_after: x509.validity().not_after.timestamp(),
            may_issue,
            may_revoke,
            amd,
        })
    }

    /// Whether this certificate's RSA key signed the other one.
    pub(crate) fn signed(&self, other: &Self) -> bool {
        self.made(&other.signed)
    }

    /// Whether this certificate's RSA key made the signature.
    pub(crate) fn made(&self, signed: &Signed) -> bool {
        matches!(&self.key, Key::Rsa(key) if signed.is_by(key))
    }

    /// Whether this certificate's key on P-384 made the signature (R and S, big endian) of a report. R and S outside
    /// 1 to n-1 are refused.
    pub(crate) fn signed_report(&self, message: &[u8], signature: &[u8; 96]) -> bool {
        let Key::P384(key) = &self.key else { return false };
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key).verify(message, signature).is_ok()
    }

    pub(crate) fn has_report_key(&self) -> bool {
        matches!(self.key, Key::P384(_))
    }
}

fn key(info: &SubjectPublicKeyInfo<'_>) -> Option<Key> {
    const RSA: Oid<'_> = oid!(1.2.840.113549.1.1.1);
    const EC: Oid<'_> = oid!(1.2.840.10045.2.1);
    const P384: Oid<'_> = oid!(1.3.132.0.34);
    let bytes = info.subject_public_key.data.to_vec();
    if info.algorithm.algorithm == RSA {
        Some(Key::Rsa(bytes))
    } else if info.algorithm.algorithm == EC {
        let curve = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
        (curve == P384 && bytes.len() == 97 && bytes[0] == 4).then_some(Key::P384(bytes))
    } else {
        None
    }
}
