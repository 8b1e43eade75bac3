//! One certificate of the chain: just what AMD's certificates carry, and nothing more lenient.

use crate::{Product, report::TcbVersion};
use ring::signature::{ECDSA_P384_SHA384_FIXED, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use x509_parser::{
    certificate::X509Certificate,
    der_parser::{
        asn1_rs::{FromDer, Ia5String, Integer},
        oid,
    },
    extensions::ParsedExtension,
    oid_registry::Oid,
    x509::SubjectPublicKeyInfo,
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
    #[error(
        "it is not the canonical encoding of a certificate signed with RSA-PSS, SHA-384 and a salt of 48 bytes"
    )]
    SignatureAlgorithm,
    #[error("its key is neither RSA nor ECDSA on P-384")]
    Key,
    #[error("its extension {0} stands twice or is malformed")]
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
    signed: Vec<u8>,
    signature: Vec<u8>,
    key: Key,
    pub(crate) issuer: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    /// Empty when there is not exactly one.
    pub(crate) common_name: String,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    /// Seconds since 1970.
    pub(crate) not_after: i64,
    /// CA:TRUE and the key usage keyCertSign.
    pub(crate) may_issue: bool,
    pub(crate) amd: AmdExtensions,
}

/// AMD's extensions of an endorsement certificate, as far as they are there (AMD document 57230, VCEK specification).
#[derive(Debug, Default)]
pub(crate) struct AmdExtensions {
    /// productName, 1.3.6.1.4.1.3704.1.2.
    pub(crate) product: Option<Product>,
    /// HWID, .4: 64 bytes, or 8 on Turin.
    pub(crate) hwid: Option<Vec<u8>>,
    /// CSP_ID, .5: only in a VLEK.
    pub(crate) csp_id: Option<String>,
    bootloader: Option<u8>,
    tee: Option<u8>,
    snp: Option<u8>,
    microcode: Option<u8>,
    fmc: Option<u8>,
    /// .3.4 to .3.7 are reserved bytes of the TCB version.
    reserved_spl: bool,
}

impl AmdExtensions {
    /// TCB for which the key was issued; none unless every part is there.
    pub(crate) fn tcb(&self) -> Option<TcbVersion> {
        if self.reserved_spl || (self.product == Some(Product::Turin)) != self.fmc.is_some() {
            return None;
        }
        Some(TcbVersion {
            fmc: self.fmc,
            bootloader: self.bootloader?,
            tee: self.tee?,
            snp: self.snp?,
            microcode: self.microcode?,
        })
    }
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
        let (signed, signature) = (x509.tbs_certificate.as_ref(), x509.signature_value.data.as_ref());
        if !is_canonical(der, signed, signature) || x509.signature_algorithm != x509.tbs_certificate.signature
        {
            return Err(CertificateError::SignatureAlgorithm);
        }
        let (may_issue, amd) = extensions(&x509)?;
        let mut names = x509.subject().iter_common_name();
        let common_name = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        Ok(Self {
            signed: signed.to_vec(),
            signature: signature.to_vec(),
            key: key(x509.public_key()).ok_or(CertificateError::Key)?,
            issuer: x509.issuer().as_raw().to_vec(),
            subject: x509.subject().as_raw().to_vec(),
            common_name,
            not_before: x509.validity().not_before.timestamp(),
            not_after: x509.validity().not_after.timestamp(),
            may_issue,
            amd,
        })
    }

    /// Whether this certificate's RSA key signed the other one.
    pub(crate) fn signed(&self, other: &Self) -> bool {
        let Key::Rsa(key) = &self.key else { return false };
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key).verify(&other.signed, &other.signature).is_ok()
    }

    /// Whether this certificate's key on P-384 made the signature (R and S, big endian) of a report.
    pub(crate) fn signed_report(&self, message: &[u8], signature: &[u8; 96]) -> bool {
        let Key::P384(key) = &self.key else { return false };
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key).verify(message, signature).is_ok()
    }

    pub(crate) fn has_report_key(&self) -> bool {
        matches!(self.key, Key::P384(_))
    }
}

/// RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes, as an AlgorithmIdentifier in DER: as AMD writes
/// it into endorsement certificates, and (with the default trailer field spelt out) into ARK and ASK.
const PSS_SHA384: [&[u8]; 2] = [
    b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\
      \x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\
      \x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30",
    b"\x30\x46\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x39\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\
      \x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\
      \x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30\xa3\x03\x02\x01\x01",
];

/// Whether `der` is exactly what these parts make in DER with one of [`PSS_SHA384`]. What the signature does not cover is
/// so fixed byte for byte; the X.509 parser alone would let some of it vary.
fn is_canonical(der: &[u8], signed: &[u8], signature: &[u8]) -> bool {
    // All lengths of such a certificate take two bytes.
    let header = |tag: u8, length: usize| [tag, 0x82, (length >> 8) as u8, length as u8];
    let bits = header(3, signature.len() + 1);
    PSS_SHA384.into_iter().any(|algorithm| {
        let length = signed.len() + algorithm.len() + bits.len() + 1 + signature.len();
        der == [&header(0x30, length), signed, algorithm, &bits, &[0], signature].concat()
    })
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

fn extensions(x509: &X509Certificate<'_>) -> Result<(bool, AmdExtensions), CertificateError> {
    const AMD: Oid<'_> = oid!(1.3.6.1.4.1.3704.1);
    let mut seen: Vec<&Oid<'_>> = Vec::new();
    let (mut is_ca, mut signs_certificates) = (false, false);
    let mut amd = AmdExtensions::default();
    for extension in x509.extensions() {
        let malformed = || CertificateError::Extension(extension.oid.to_id_string());
        if seen.contains(&&extension.oid) {
            return Err(malformed());
        }
        seen.push(&extension.oid);
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => is_ca = constraints.ca,
            ParsedExtension::KeyUsage(usage) => signs_certificates = usage.key_cert_sign(),
            ParsedExtension::ParseError { .. } => return Err(malformed()),
            _ if extension.oid.starts_with(&AMD) => {
                amd.take(&extension.oid, extension.value).ok_or_else(malformed)?;
            }
            _ if extension.critical => {
                return Err(CertificateError::UnknownCritical(extension.oid.to_id_string()));
            }
            _ => {}
        }
    }
    Ok((is_ca && signs_certificates, amd))
}

impl AmdExtensions {
    /// Takes one extension; `None` when its value is malformed. Ones without a meaning here are left alone.
    fn take(&mut self, oid: &Oid<'_>, value: &[u8]) -> Option<()> {
        let Some(arcs) = oid.iter() else { return Some(()) };
        // 1.3.6.1.4.1.3704.1 are the first eight.
        match arcs.skip(8).collect::<Vec<u64>>().as_slice() {
            [2] => self.product = Product::from_certificate_name(&ia5(value)?),
            [3, 1] => self.bootloader = Some(spl(value)?),
            [3, 2] => self.tee = Some(spl(value)?),
            [3, 3] => self.snp = Some(spl(value)?),
            [3, 4..=7] => self.reserved_spl |= spl(value)? != 0,
            [3, 8] => self.microcode = Some(spl(value)?),
            [3, 9] => self.fmc = Some(spl(value)?),
            [4] => self.hwid = Some(value.to_vec()),
            [5] => self.csp_id = Some(ia5(value)?),
            _ => {}
        }
        Some(())
    }
}

fn ia5(value: &[u8]) -> Option<String> {
    let (rest, text) = Ia5String::from_der(value).ok()?;
    rest.is_empty().then(|| text.string())
}

/// A security patch level: an INTEGER of 0 to 255.
fn spl(value: &[u8]) -> Option<u8> {
    let (rest, integer) = Integer::from_der(value).ok()?;
    if rest.is_empty() { integer.as_u8().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcb_is_whole_or_none() {
        let whole = || AmdExtensions {
            product: Some(Product::Genoa),
            bootloader: Some(1),
            tee: Some(2),
            snp: Some(3),
            microcode: Some(4),
            ..AmdExtensions::default()
        };
        let tcb = TcbVersion { fmc: None, bootloader: 1, tee: 2, snp: 3, microcode: 4 };
        assert_eq!(whole().tcb(), Some(tcb));
        assert_eq!(AmdExtensions { microcode: None, ..whole() }.tcb(), None);
        assert_eq!(AmdExtensions { reserved_spl: true, ..whole() }.tcb(), None);
        assert_eq!(AmdExtensions { fmc: Some(0), ..whole() }.tcb(), None, "only Turin has one");
        assert_eq!(AmdExtensions { product: Some(Product::Turin), ..whole() }.tcb(), None, "Turin has one");
    }

    #[test]
    fn patch_levels_fit_a_byte() {
        assert_eq!(spl(&[2, 1, 0x17]), Some(0x17));
        assert_eq!(spl(&[2, 2, 0, 0xd5]), Some(0xd5));
        for bad in [&[2, 2, 1, 0][..], &[2, 1, 0xff], &[2, 1, 1, 0], &[4, 1, 1], &[2, 1], &[]] {
            assert_eq!(spl(bad), None, "{bad:x?}");
        }
    }
}
