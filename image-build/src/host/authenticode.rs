//! Detached Authenticode signatures: PKCS #7 signed data over the hash of an image (RFC 2315; Microsoft "Windows
//! Authenticode Portable Executable Signature Format"). There is no signing time in them, so the same key and image give
//! the same signature.

use super::pe::{self, PeError};
use ring::{rand::SystemRandom, rsa, signature};
use sha2::{Digest, Sha256};

const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
/// SPC_INDIRECT_DATA_OBJID.
const INDIRECT_DATA: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04];
/// SPC_PE_IMAGE_DATA_OBJID.
const IMAGE_DATA: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f];

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const NULL: u8 = 0x05;
const OBJECT: u8 = 0x06;
/// Constructed, context-specific 0.
const TAGGED_0: u8 = 0xa0;

/// An image cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The image.
    #[error(transparent)]
    Image(#[from] PeError),
    /// The key.
    #[error("the signing key is no RSA key of 2048 bits or more in PKCS #8: {0}")]
    Key(String),
    /// The certificate.
    #[error("the signing certificate is no X.509 certificate in DER")]
    Certificate,
    /// Certificate and key.
    #[error("the signing certificate is for another key; give the two that belong together")]
    OtherKey,
}

/// A key and its certificate.
#[derive(Debug, Clone, Copy)]
pub struct Signer<'a> {
    /// RSA, PKCS #8, DER.
    pub key: &'a [u8],
    /// X.509, DER.
    pub certificate: &'a [u8],
}

impl Signer<'_> {
    /// Key, and the two elements that name it.
    fn open(&self) -> Result<(rsa::KeyPair, Vec<u8>), SignError> {
        let key = rsa::KeyPair::from_pkcs8(self.key).map_err(bad_key)?;
        let name = name(self.certificate).ok_or(SignError::Certificate)?;
        // RSAPublicKey, as it stands in the certificate.
        let public = key.public().as_ref();
        if !self.certificate.windows(public.len()).any(|window| window == public) {
            return Err(SignError::OtherKey);
        }
        Ok((key, name))
    }
}

fn bad_key(why: impl std::fmt::Display) -> SignError {
    SignError::Key(why.to_string())
}

fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let digits = &bytes[length.leading_zeros() as usize / 8..];
        out.push(0x80 | digits.len() as u8);
        out.extend(digits);
    }
    out.extend(parts.concat());
    out
}

fn object(id: &[u8]) -> Vec<u8> {
    tlv(OBJECT, &[id])
}

fn algorithm(id: &[u8]) -> Vec<u8> {
    tlv(SEQUENCE, &[&object(id), &[NULL, 0]])
}

fn attribute(id: &[u8], value: &[u8]) -> Vec<u8> {
    tlv(SEQUENCE, &[&object(id), &tlv(SET, &[value])])
}

/// One DER element: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if first & 0x80 == 0 {
        (usize::from(*first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        (digits.iter().try_fold(0_usize, |n, d| n.checked_mul(256)?.checked_add((*d).into()))?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// Issuer and serial number of a certificate (RFC 5280, section 4.1), as the two elements that name a signer.
fn name(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut body, _) = element(certificate)?;
    if let Some((TAGGED_0, _, rest)) = element(body) {
        body = rest;
    }
    let (_, _, after_serial) = element(body).filter(|(tag, ..)| *tag == INTEGER)?;
    let serial = &body[..body.len() - after_serial.len()];
    let (_, _, issuer_on) = element(after_serial)?;
    let (_, _, after_issuer) = element(issuer_on)?;
    Some(tlv(SEQUENCE, &[&issuer_on[..issuer_on.len() - after_issuer.len()], serial]))
}

/// Whether these bytes look like one X.509 certificate in DER and nothing else.
#[must_use]
pub fn is_certificate(bytes: &[u8]) -> bool {
    name(bytes).is_some() && element(bytes).is_some_and(|(tag, _, rest)| tag == SEQUENCE && rest.is_empty())
}

/// The signature of an unsigned image.
pub fn sign(image: &[u8], signer: Signer<'_>) -> Result<Vec<u8>, SignError> {
    let (key, name) = signer.open()?;
    let hash = pe::authenticode_hash(image)?;

    // SpcPeImageData: no flags; an absent file name.
    let image_data = tlv(SEQUENCE, &[&[0x03, 0x01, 0x00], &tlv(TAGGED_0, &[&tlv(0xa2, &[&[0x80, 0x00]])])]);
    let data = tlv(SEQUENCE, &[&object(IMAGE_DATA), &image_data]);
    let digest = tlv(SEQUENCE, &[&algorithm(SHA256), &tlv(OCTETS, &[&hash])]);
    // The digest of the content leaves out the outermost tag and length.
    let content_digest = Sha256::new().chain_update(&data).chain_update(&digest).finalize();
    let content =
        tlv(SEQUENCE, &[&object(INDIRECT_DATA), &tlv(TAGGED_0, &[&tlv(SEQUENCE, &[&data, &digest])])]);

    // In the order of DER: the shorter one first.
    let attributes = [
        attribute(CONTENT_TYPE, &object(INDIRECT_DATA)),
        attribute(MESSAGE_DIGEST, &tlv(OCTETS, &[&content_digest])),
    ]
    .concat();
    let mut signature = vec![0; key.public().modulus_len()];
    // The padding of PKCS #1 v1.5 is fixed; the random numbers only blind the computation.
    key.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), &tlv(SET, &[&attributes]), &mut signature)
        .map_err(bad_key)?;

    let one: &[u8] = &[INTEGER, 1, 1];
    let info = tlv(
        SEQUENCE,
        &[
            one,
            &name,
            &algorithm(SHA256),
            &tlv(TAGGED_0, &[&attributes]),
            &algorithm(RSA),
            &tlv(OCTETS, &[&signature]),
        ],
    );
    let signed = tlv(
        SEQUENCE,
        &[
            one,
            &tlv(SET, &[&algorithm(SHA256)]),
            &content,
            &tlv(TAGGED_0, &[signer.certificate]),
            &tlv(SET, &[&info]),
        ],
    );
    Ok(tlv(SEQUENCE, &[&object(SIGNED_DATA), &tlv(TAGGED_0, &[&signed])]))
}

/// Detached signed data over these bytes, without attributes: what authenticates a UEFI variable (UEFI specification
/// 2.10, 8.2.2).
pub fn sign_data(content: &[u8], signer: Signer<'_>) -> Result<Vec<u8>, SignError> {
    /// PKCS #7 data.
    const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
    let (key, name) = signer.open()?;
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), content, &mut signature).map_err(bad_key)?;
    let one: &[u8] = &[INTEGER, 1, 1];
    let info = tlv(SEQUENCE, &[one, &name, &algorithm(SHA256), &algorithm(RSA), &tlv(OCTETS, &[&signature])]);
    Ok(tlv(
        SEQUENCE,
        &[
            one,
            &tlv(SET, &[&algorithm(SHA256)]),
            &tlv(SEQUENCE, &[&object(DATA)]),
            &tlv(TAGGED_0, &[signer.certificate]),
            &tlv(SET, &[&info]),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::secure_boot::{CERTIFICATE, KEY};
    use std::process::Command;

    #[test]
    fn sbverify_accepts_the_signature_and_no_other_image() {
        let image = pe::unified_kernel_image(&pe::samples::stub(), &[(".linux", b"kernel")]).unwrap();
        let signer = Signer { key: KEY, certificate: CERTIFICATE };
        let signature = sign(&image, signer).unwrap();
        assert_eq!(signature, sign(&image, signer).unwrap());
        let Some(sbverify) = crate::host::tests::program("sbverify") else { return };
        let dir = tempfile::tempdir().unwrap();
        let (file, pem) = (dir.path().join("image.efi"), dir.path().join("certificate.pem"));
        let certificate = Command::new("openssl")
            .args(["x509", "-inform", "DER", "-in"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/secure-boot/INSECURE-development.crt"))
            .arg("-out")
            .arg(&pem)
            .status()
            .unwrap();
        assert!(certificate.success());
        let verified = |image: &[u8]| {
            std::fs::write(&file, image).unwrap();
            let output = Command::new(&sbverify).arg("--cert").arg(&pem).arg(&file).output().unwrap();
            output.status.success()
                && String::from_utf8_lossy(&output.stdout).contains("Signature verification OK")
        };
        let signed = pe::attach(&image, &signature).unwrap();
        assert!(verified(&signed));
        let mut changed = signed.clone();
        let at = changed.windows(6).rposition(|w| w == b"kernel").unwrap();
        changed[at] ^= 1;
        assert!(!verified(&changed));
    }

    #[test]
    fn keys_and_certificates_that_are_none_are_refused() {
        let image = pe::unified_kernel_image(&pe::samples::stub(), &[(".linux", b"kernel")]).unwrap();
        let refused = |image: &[u8], key, certificate| sign(image, Signer { key, certificate }).unwrap_err();
        assert!(matches!(refused(&image, b"no key", CERTIFICATE), SignError::Key(_)));
        for end in [0, 1, 10, 40] {
            assert!(matches!(refused(&image, KEY, &CERTIFICATE[..end]), SignError::Certificate));
        }
        let mut other = CERTIFICATE.to_vec();
        // In the middle of a certificate is its key.
        other[CERTIFICATE.len() / 2] ^= 1;
        assert!(matches!(refused(&image, KEY, &other), SignError::OtherKey));
        assert!(matches!(refused(b"no image", KEY, CERTIFICATE), SignError::Image(_)));
        assert!(is_certificate(CERTIFICATE) && !is_certificate(&CERTIFICATE[..40]));
        assert!(!is_certificate(&[CERTIFICATE, b"x"].concat()));
    }
}
