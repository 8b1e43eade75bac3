//! Public keys in a TPM: TPMT_PUBLIC, its name, and signatures by it (TPM 2.0 Library, Part 2, sections 11 and 12).

use crate::{
    Hash, SHA256,
    reader::{CutOff, Reader},
    sha256,
};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};

/// Longest public area or signature that is looked at, in bytes.
const MAX: usize = 1024;

const RSA: u16 = 0x0001;
const ECC: u16 = 0x0023;
const NULL: u16 = 0x0010;
const AES: u16 = 0x0006;
const CFB: u16 = 0x0043;
const RSASSA: u16 = 0x0014;
const RSAPSS: u16 = 0x0016;
const ECDSA: u16 = 0x0018;
const P256: u16 = 0x0003;

/// TPMA_OBJECT (Part 2, 8.3): bits that matter here.
const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;

/// Bytes are no key, or not one for this purpose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a TPMT_PUBLIC that is understood.
    #[error(
        "the {what} key is no public key of a TPM that is understood here ({reason}); fetch the evidence again"
    )]
    Form {
        /// Which key.
        what: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// Made elsewhere and imported, free to sign anything, or for another purpose.
    #[error(
        "the {what} key is not one that stays in the TPM for that purpose only: it lacks {lacks}; do not believe this host"
    )]
    Attributes {
        /// Which key.
        what: &'static str,
        /// Attributes of TPMA_OBJECT.
        lacks: &'static str,
    },
    /// The signature does not verify.
    #[error("the signature is not one by the host's attestation key; do not believe this host")]
    Signature,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Public {
    Rsa { modulus: Vec<u8>, exponent: u32 },
    P256 { point: [u8; 65] },
}

/// A public area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    area: Vec<u8>,
    attributes: u32,
    public: Public,
}

fn form(what: &'static str, reason: &'static str) -> KeyError {
    KeyError::Form { what, reason }
}

impl Key {
    fn parse(what: &'static str, area: &[u8]) -> Result<Self, KeyError> {
        if area.len() > MAX {
            return Err(form(what, "it is too long"));
        }
        Self::read(what, area).map_err(|_| form(what, "it is cut off"))?
    }

    /// TPMT_PUBLIC.
    fn read(what: &'static str, area: &[u8]) -> Result<Result<Self, KeyError>, CutOff> {
        let mut reader = Reader::new(area);
        let (kind, name_algorithm, attributes) = (reader.be16()?, reader.be16()?, reader.be32()?);
        let _policy = reader.sized()?;
        if name_algorithm != SHA256 {
            return Ok(Err(form(what, "its name is not by SHA-256")));
        }
        // TPMT_SYM_DEF_OBJECT.
        if reader.be16()? != NULL {
            let _bits_and_mode = reader.take(4)?;
        }
        // TPMT_RSA_SCHEME or TPMT_ECC_SCHEME.
        if reader.be16()? != NULL {
            let _hash = reader.take(2)?;
        }
        let public = match kind {
            RSA => {
                let (_bits, exponent) = (reader.be16()?, reader.be32()?);
                let exponent = if exponent == 0 { 65537 } else { exponent };
                Public::Rsa { modulus: reader.sized()?.to_vec(), exponent }
            }
            ECC => {
                let curve = reader.be16()?;
                if reader.be16()? != NULL {
                    let _kdf = reader.take(2)?;
                }
                let (x, y) = (reader.sized()?, reader.sized()?);
                if curve != P256 || x.len() > 32 || y.len() > 32 {
                    return Ok(Err(form(what, "its curve is not NIST P-256")));
                }
                let mut point = [0; 65];
                point[0] = 4;
                point[33 - x.len()..33].copy_from_slice(x);
                point[65 - y.len()..].copy_from_slice(y);
                Public::P256 { point }
            }
            _ => return Ok(Err(form(what, "it is neither RSA nor ECC"))),
        };
        if !reader.is_empty() {
            return Ok(Err(form(what, "something follows it")));
        }
        Ok(Ok(Self { area: area.to_vec(), attributes, public }))
    }

    /// What the key was parsed from: TPMT_PUBLIC.
    pub fn area(&self) -> &[u8] {
        &self.area
    }

    /// The key's name (Part 1, 16): the algorithm and the hash of the public area.
    pub fn name(&self) -> [u8; 34] {
        let mut name = [0; 34];
        name[..2].copy_from_slice(&SHA256.to_be_bytes());
        name[2..].copy_from_slice(&self.fingerprint());
        name
    }

    /// SHA-256 of the public area.
    pub fn fingerprint(&self) -> Hash {
        sha256(&self.area)
    }

    fn needs(&self, what: &'static str, needed: &[(u32, &'static str)]) -> Result<(), KeyError> {
        match needed.iter().find(|(bit, _)| self.attributes & bit == 0) {
            Some((_, lacks)) => Err(KeyError::Attributes { what, lacks }),
            None => Ok(()),
        }
    }
}

const STAYS: [(u32, &str); 4] = [
    (FIXED_TPM, "fixedTPM"),
    (FIXED_PARENT, "fixedParent"),
    (SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
    (RESTRICTED, "restricted"),
];

/// An attestation key: made in the TPM, and able to sign only what the TPM itself states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationKey(Key);

impl AttestationKey {
    /// Reads a TPMT_PUBLIC and checks that it is such a key. That it is in a TPM at all shows only a
    /// [`crate::credential`].
    pub fn parse(area: &[u8]) -> Result<Self, KeyError> {
        let key = Key::parse("attestation", area)?;
        key.needs("attestation", &STAYS)?;
        key.needs("attestation", &[(SIGN, "sign")])?;
        if key.attributes & DECRYPT != 0 {
            return Err(KeyError::Attributes { what: "attestation", lacks: "a purpose of its own" });
        }
        Ok(Self(key))
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.0
    }

    /// Verifies a TPMT_SIGNATURE over a message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        let fail = |_| KeyError::Signature;
        if signature.len() > MAX {
            return Err(KeyError::Signature);
        }
        let mut reader = Reader::new(signature);
        let scheme = reader.be16().map_err(fail)?;
        if reader.be16().map_err(fail)? != SHA256 {
            return Err(KeyError::Signature);
        }
        let first = reader.sized().map_err(fail)?;
        match (scheme, &self.0.public) {
            (RSASSA | RSAPSS, Public::Rsa { modulus, exponent }) if reader.is_empty() => {
                let parameters =
                    if scheme == RSASSA { &RSA_PKCS1_2048_8192_SHA256 } else { &RSA_PSS_2048_8192_SHA256 };
                let exponent = exponent.to_be_bytes();
                let zeros = exponent.iter().take_while(|byte| **byte == 0).count();
                let key = RsaPublicKeyComponents { n: modulus.as_slice(), e: &exponent[zeros..] };
                key.verify(parameters, message, first).map_err(|_| KeyError::Signature)
            }
            (ECDSA, Public::P256 { point }) => {
                let second = reader.sized().map_err(fail)?;
                if !reader.is_empty() || first.len() > 32 || second.len() > 32 {
                    return Err(KeyError::Signature);
                }
                let mut fixed = [0; 64];
                fixed[32 - first.len()..32].copy_from_slice(first);
                fixed[64 - second.len()..].copy_from_slice(second);
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
                key.verify(message, &fixed).map_err(|_| KeyError::Signature)
            }
            _ => Err(KeyError::Signature),
        }
    }
}

/// An endorsement key by the TCG's template L-1: RSA of 2048 bits, AES-128 in CFB mode (TCG EK Credential Profile 2.5, B.3.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndorsementKey {
    key: Key,
    modulus: Vec<u8>,
    exponent: u32,
}

impl EndorsementKey {
    /// Reads a TPMT_PUBLIC and checks that it is such a key.
    pub fn parse(area: &[u8]) -> Result<Self, KeyError> {
        let key = Key::parse("endorsement", area)?;
        key.needs("endorsement", &STAYS)?;
        key.needs("endorsement", &[(DECRYPT, "decrypt")])?;
        let policy = usize::from(u16::from_be_bytes([area[8], area[9]]));
        let symmetric = [AES, 128, CFB].map(u16::to_be_bytes).concat();
        if area.get(10 + policy..16 + policy) != Some(&symmetric[..]) {
            return Err(form("endorsement", "it does not wrap secrets by AES-128 in CFB mode"));
        }
        match &key.public {
            Public::Rsa { modulus, exponent } if modulus.len() == 256 => {
                let (modulus, exponent) = (modulus.clone(), *exponent);
                Ok(Self { key, modulus, exponent })
            }
            _ => Err(form("endorsement", "it is not an RSA key of 2048 bits")),
        }
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The modulus, big-endian, 256 bytes.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The public exponent.
    pub fn exponent(&self) -> u32 {
        self.exponent
    }
}
