//! Signature schemes that authenticate requests (Interface Specification, "Signatures").

use k256::ecdsa::signature::Verifier as _;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};

use crate::keys::ED25519_DER_PREFIX;

/// DER of a SubjectPublicKeyInfo up to the 65 bytes of an uncompressed P-256 point (RFC 5480).
const P256_DER_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// DER of a SubjectPublicKeyInfo up to the 65 bytes of an uncompressed secp256k1 point.
const SECP256K1_DER_PREFIX: [u8; 23] = [
    0x30, 0x56, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81,
    0x04, 0x00, 0x0a, 0x03, 0x42, 0x00,
];
/// AlgorithmIdentifier of a key wrapped as COSE (WebAuthn).
const COSE_ALGORITHM: [u8; 14] =
    [0x30, 0x0c, 0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xb8, 0x43, 0x01, 0x01];
/// AlgorithmIdentifier of a canister signature key.
const CANISTER_ALGORITHM: [u8; 14] =
    [0x30, 0x0c, 0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xb8, 0x43, 0x01, 0x02];

/// Why a signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// WebAuthn is not supported.
    #[error(
        "the key is a WebAuthn (COSE) key, which this replica does not support; sign with Ed25519, P-256 or secp256k1"
    )]
    WebAuthn,
    /// Canister signatures are not supported.
    #[error(
        "the key is a canister signature key, which this replica does not support; sign with Ed25519, P-256 or secp256k1"
    )]
    CanisterSignature,
    /// No known scheme.
    #[error(
        "the public key is no Ed25519, P-256 or secp256k1 key in DER (points uncompressed); check how it was encoded"
    )]
    UnknownKey,
    /// The signature is not by this key on this message.
    #[error(
        "the {0} signature does not verify; sign the domain separator and the request id with the key that the request names"
    )]
    Invalid(&'static str),
}

/// A public key of a supported scheme; whether a point is on its curve shows when it verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicKey<'a> {
    /// 32 bytes.
    Ed25519(&'a [u8]),
    /// Uncompressed point, 65 bytes.
    P256(&'a [u8]),
    /// Uncompressed point, 65 bytes.
    Secp256k1(&'a [u8]),
}

impl<'a> PublicKey<'a> {
    /// Reads a key from its DER encoding, of which each scheme allows exactly one form.
    pub fn parse(der: &'a [u8]) -> Result<Self, SignatureError> {
        let key = |prefix: &[u8], length| der.strip_prefix(prefix).filter(|key| key.len() == length);
        if let Some(key) = key(&ED25519_DER_PREFIX, 32) {
            Ok(Self::Ed25519(key))
        } else if let Some(point) = key(&P256_DER_PREFIX, 65) {
            Ok(Self::P256(point))
        } else if let Some(point) = key(&SECP256K1_DER_PREFIX, 65) {
            Ok(Self::Secp256k1(point))
        } else {
            // The algorithm follows the outer SEQUENCE's tag and length, which take two to five bytes.
            let is = |algorithm: &[u8]| {
                (2..=5).any(|at| der.get(at..).is_some_and(|rest| rest.starts_with(algorithm)))
            };
            Err(if is(&COSE_ALGORITHM) {
                SignatureError::WebAuthn
            } else if is(&CANISTER_ALGORITHM) {
                SignatureError::CanisterSignature
            } else {
                SignatureError::UnknownKey
            })
        }
    }

    /// Checks a signature on `message`, which carries its domain separator. ECDSA signatures are the 32-byte
    /// big-endian r and s; those on secp256k1 need the low s, so that a third party cannot make a second one.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        let (name, valid) = match self {
            Self::Ed25519(key) => {
                ("Ed25519", UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok())
            }
            Self::P256(point) => {
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
                ("P-256", key.verify(message, signature).is_ok())
            }
            Self::Secp256k1(point) => {
                let key = k256::ecdsa::VerifyingKey::from_sec1_bytes(point);
                let signature = k256::ecdsa::Signature::from_slice(signature);
                let valid = matches!((key, signature), (Ok(key), Ok(signature)) if key.verify(message, &signature).is_ok());
                ("secp256k1", valid)
            }
        };
        if valid { Ok(()) } else { Err(SignatureError::Invalid(name)) }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Keys that sign, for tests.
    use super::*;
    use k256::ecdsa::signature::Signer as _;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};

    /// A key pair of one scheme.
    pub(crate) enum Signer {
        Ed25519(Ed25519KeyPair),
        P256(EcdsaKeyPair),
        Secp256k1(k256::ecdsa::SigningKey),
    }

    impl Signer {
        /// Ed25519 from a seed.
        pub(crate) fn ed25519(seed: u8) -> Self {
            Self::Ed25519(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
        }

        /// One of each scheme.
        pub(crate) fn each() -> [Self; 3] {
            let random = SystemRandom::new();
            let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let p256 =
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, p256.as_ref(), &random).unwrap();
            let secp256k1 = k256::ecdsa::SigningKey::from_slice(&[3; 32]).unwrap();
            [Self::ed25519(1), Self::P256(p256), Self::Secp256k1(secp256k1)]
        }

        pub(crate) fn der(&self) -> Vec<u8> {
            match self {
                Self::Ed25519(key) => [&ED25519_DER_PREFIX[..], key.public_key().as_ref()].concat(),
                Self::P256(key) => [&P256_DER_PREFIX[..], key.public_key().as_ref()].concat(),
                Self::Secp256k1(key) => {
                    let point = key.verifying_key().to_encoded_point(false);
                    [&SECP256K1_DER_PREFIX[..], point.as_bytes()].concat()
                }
            }
        }

        pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
            match self {
                Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
                Self::P256(key) => key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
                Self::Secp256k1(key) => {
                    let signature: k256::ecdsa::Signature = key.sign(message);
                    signature.to_bytes().to_vec()
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Signer;
    use super::*;

    #[test]
    fn each_scheme_verifies_and_any_flipped_bit_is_refused() {
        for signer in Signer::each() {
            let der = signer.der();
            let key = PublicKey::parse(&der).unwrap();
            let signature = signer.sign(b"message");
            key.verify(b"message", &signature).unwrap();
            assert!(key.verify(b"massage", &signature).is_err());
            for at in 0..signature.len() * 8 {
                let mut flipped = signature.clone();
                flipped[at / 8] ^= 1 << (at % 8);
                assert!(key.verify(b"message", &flipped).is_err(), "bit {at}");
            }
            assert!(key.verify(b"message", &signature[1..]).is_err());
            assert!(key.verify(b"message", &[]).is_err());
        }
    }

    #[test]
    fn high_s_on_secp256k1_is_refused() {
        let [_, _, signer] = Signer::each();
        let der = signer.der();
        let signature = k256::ecdsa::Signature::from_slice(&signer.sign(b"message")).unwrap();
        let (r, s) = signature.split_scalars();
        let high = k256::ecdsa::Signature::from_scalars(r, -*s).unwrap();
        assert!(PublicKey::parse(&der).unwrap().verify(b"message", &high.to_bytes()).is_err());
    }

    #[test]
    fn unsupported_schemes_are_named() {
        // The WebAuthn key of the Interface Specification's example.
        let cose = "305e300c060a2b0601040183b8430101034e00a50102032620012158207ffd83632072fd1bfeaf3fbaa43146e0ef95c3f5\
                    5e3994a41bbf2b5174d771da22582032497eed0a7f6f000928765b8318162cfd80a94e525a6a368c2363063d04e6ed";
        let cose = hex::decode(cose).unwrap();
        assert_eq!(PublicKey::parse(&cose), Err(SignatureError::WebAuthn));
        let mut canister = vec![0x30, 0x1c];
        canister.extend(CANISTER_ALGORITHM);
        canister.extend([0x03, 0x0c, 0x00, 0x0a, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
        assert_eq!(PublicKey::parse(&canister), Err(SignatureError::CanisterSignature));
        assert_eq!(PublicKey::parse(&[]), Err(SignatureError::UnknownKey));
        assert_eq!(PublicKey::parse(&Signer::ed25519(1).der()[..43]), Err(SignatureError::UnknownKey));
    }
}
