//! ID block and ID authentication information: what the owner of a guest signs about it, and the firmware checks
//! before the guest starts.
//!
//! Source: AMD document 56860 (SEV-SNP Firmware ABI Specification), SNP_LAUNCH_FINISH, tables "ID Block Structure",
//! "ID Authentication Information Structure", and the chapter on keys and signatures. The host hands both structures
//! to the firmware, which starts the guest only when launch digest and policy are those of the block and the
//! signatures fit, and puts the digests of the two keys into each report. So a verifier can trust a key instead of
//! a list of measurements, and sealing keys can follow FAMILY_ID, IMAGE_ID and GUEST_SVN.
//!
//! Verifying needs public keys only; signing is in `sign`, behind the feature `id-block-signing`.

#[cfg(feature = "id-block-signing")]
pub mod sign;

use super::{Measurement, sha384};
use crate::report::{GuestPolicy, Report};
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use std::fmt;

/// Length of an ID block, in bytes.
pub const ID_BLOCK_LENGTH: usize = 96;
/// Length of the ID authentication information, in bytes.
pub const ID_AUTH_LENGTH: usize = 4096;

/// VERSION of the ID block.
const VERSION: u32 = 1;
/// ID_KEY_ALGO and AUTHOR_KEY_ALGO: ECDSA over P-384 with SHA-384.
const ALGORITHM: u32 = 1;
/// CURVE of a key: P-384.
const CURVE: u32 = 2;
/// Length of a key with its padding.
const KEY: usize = 0x404;
/// Length of a coordinate or scalar, and of its field (little endian, zero-padded).
const SCALAR: usize = 48;
const SCALAR_FIELD: usize = 72;

// Offsets in the ID authentication information.
const ID_KEY_ALGO: usize = 0x000;
const AUTHOR_KEY_ALGO: usize = 0x004;
const ID_BLOCK_SIGNATURE: usize = 0x040;
const ID_KEY: usize = 0x240;
const ID_KEY_SIGNATURE: usize = 0x680;
const AUTHOR_KEY: usize = 0x880;

/// Why an ID block or its authentication is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdBlockError {
    /// Not the length of the structure.
    #[error("the {structure} has {found} bytes instead of {expected}; give it whole, decoded from base64")]
    Length {
        /// Which structure.
        structure: &'static str,
        /// Its length.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A version, algorithm or curve that the firmware's specification does not define.
    #[error("the {field} is {found}, but the only one defined is {expected}; make the structure anew")]
    Undefined {
        /// Which field.
        field: &'static str,
        /// The defined value.
        expected: u32,
        /// What stands there.
        found: u32,
    },
    /// A second encoding of the same content.
    #[error("byte {0:#x} of the ID authentication is padding or reserved and not zero; make it anew")]
    NotCanonical(usize),
    /// Not a point of the curve.
    #[error(
        "the {0} is no P-384 public key in the uncompressed form (0x04, x, y: 97 bytes); give another key"
    )]
    Key(&'static str),
    /// The ID key did not sign this block.
    #[error(
        "the signature of the ID block does not fit the ID key {id_key}; \
         the block was changed or belongs to another key: sign it again"
    )]
    BlockSignature {
        /// Digest of the ID key.
        id_key: KeyDigest,
    },
    /// The author key did not sign this ID key.
    #[error(
        "the signature of the ID key does not fit the author key {author_key}; \
         have the author key's holder certify the ID key"
    )]
    AuthorSignature {
        /// Digest of the author key.
        author_key: KeyDigest,
    },
    /// Signed by someone else.
    #[error("the {which} is {found}, not {expected}; use the signature made with the release's key")]
    WrongKey {
        /// ID key or author key.
        which: &'static str,
        /// Digest that is wanted, or `none`.
        expected: String,
        /// Digest found, or `none`.
        found: String,
    },
    /// The block is for another launch.
    #[error("the ID block is for the launch digest {found}, but {expected} is launched; sign a block for it")]
    WrongMeasurement {
        /// What is launched.
        expected: Measurement,
        /// What the block says.
        found: Measurement,
    },
    /// The block is for another policy.
    #[error(
        "the ID block is for the guest policy {found:#x}, but {expected:#x} is launched; sign a block for it"
    )]
    WrongPolicy {
        /// What is launched.
        expected: u64,
        /// What the block says.
        found: u64,
    },
    /// The block names another family or image.
    #[error("the ID block has the {which} {found}, not {expected}; use the block made for this release")]
    WrongIdentity {
        /// FAMILY_ID or IMAGE_ID.
        which: &'static str,
        /// What is wanted, hexadecimal.
        expected: String,
        /// What the block says, hexadecimal.
        found: String,
    },
    /// The block is that of an older release.
    #[error("the ID block has the guest SVN {found}, below {minimum}; use the block of the newer release")]
    SvnTooLow {
        /// The least that is accepted.
        minimum: u32,
        /// What the block says.
        found: u32,
    },
}

impl IdBlockError {
    /// A short fixed name, for scripts and tests.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Length { .. } => "id-block-length",
            Self::Undefined { .. } => "id-block-undefined",
            Self::NotCanonical(_) => "id-block-not-canonical",
            Self::Key(_) => "id-block-key",
            Self::BlockSignature { .. } => "id-block-bad-signature",
            Self::AuthorSignature { .. } => "id-block-bad-author-signature",
            Self::WrongKey { .. } => "id-block-wrong-key",
            Self::WrongMeasurement { .. } => "id-block-wrong-measurement",
            Self::WrongPolicy { .. } => "id-block-wrong-policy",
            Self::WrongIdentity { .. } => "id-block-wrong-identity",
            Self::SvnTooLow { .. } => "id-block-svn-too-low",
        }
    }
}

/// What is signed about a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdBlock {
    /// LD: the launch digest.
    pub measurement: Measurement,
    /// FAMILY_ID; its meaning is the signer's.
    pub family_id: [u8; 16],
    /// IMAGE_ID; its meaning is the signer's.
    pub image_id: [u8; 16],
    /// GUEST_SVN: security version of the guest.
    pub guest_svn: u32,
    /// POLICY of the launch.
    pub policy: GuestPolicy,
}

impl IdBlock {
    /// The 96 bytes that are signed and that QEMU takes as `id-block`, in base64.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ID_BLOCK_LENGTH] {
        let mut bytes = [0; ID_BLOCK_LENGTH];
        bytes[..0x30].copy_from_slice(&self.measurement.0);
        bytes[0x30..0x40].copy_from_slice(&self.family_id);
        bytes[0x40..0x50].copy_from_slice(&self.image_id);
        bytes[0x50..0x54].copy_from_slice(&VERSION.to_le_bytes());
        bytes[0x54..0x58].copy_from_slice(&self.guest_svn.to_le_bytes());
        bytes[0x58..].copy_from_slice(&self.policy.0.to_le_bytes());
        bytes
    }

    /// Reads the 96 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let bytes: &[u8; ID_BLOCK_LENGTH] = exactly("ID block", bytes)?;
        defined("version of the ID block", VERSION, word(bytes, 0x50))?;
        let mut policy = [0; 8];
        policy.copy_from_slice(&bytes[0x58..]);
        Ok(Self {
            measurement: Measurement(array(bytes, 0)),
            family_id: array(bytes, 0x30),
            image_id: array(bytes, 0x40),
            guest_svn: word(bytes, 0x54),
            policy: GuestPolicy(u64::from_le_bytes(policy)),
        })
    }
}

/// SHA-384 of a key with its padding, as ID_KEY_DIGEST and AUTHOR_KEY_DIGEST of the report state it.
pub type KeyDigest = Measurement;

/// A P-384 public key: 0x04, x, y, big endian (SEC 1, uncompressed).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 1 + 2 * SCALAR]);

impl PublicKey {
    /// From the uncompressed form. Whether the point is on the curve shows when a signature is checked.
    pub fn from_point(which: &'static str, point: &[u8]) -> Result<Self, IdBlockError> {
        match <[u8; 1 + 2 * SCALAR]>::try_from(point) {
            Ok(point) if point[0] == 4 => Ok(Self(point)),
            _ => Err(IdBlockError::Key(which)),
        }
    }

    /// The uncompressed form.
    #[must_use]
    pub const fn point(&self) -> &[u8; 1 + 2 * SCALAR] {
        &self.0
    }

    /// The digest by which a report names it.
    #[must_use]
    pub fn digest(&self) -> KeyDigest {
        Measurement(sha384(&self.encode()))
    }

    /// The key as the firmware takes it.
    fn encode(&self) -> [u8; KEY] {
        let mut bytes = [0; KEY];
        bytes[..4].copy_from_slice(&CURVE.to_le_bytes());
        let (x, y) = self.0[1..].split_at(SCALAR);
        put_scalar(&mut bytes[4..], x);
        put_scalar(&mut bytes[4 + SCALAR_FIELD..], y);
        bytes
    }

    fn decode(which: &'static str, bytes: &[u8]) -> Result<Self, IdBlockError> {
        defined("curve of a key", CURVE, word(bytes, 0))?;
        let mut point = [4; 1 + 2 * SCALAR];
        take_scalar(bytes, 4, &mut point[1..=SCALAR]);
        take_scalar(bytes, 4 + SCALAR_FIELD, &mut point[1 + SCALAR..]);
        Self::from_point(which, &point)
    }

    fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &self.0).verify(message, &signature.0).is_ok()
    }
}

/// An ECDSA signature: r, s, big endian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 2 * SCALAR]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Who vouches for an ID block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdAuth {
    /// The key that signed the block.
    pub id_key: PublicKey,
    /// Its signature over the block.
    pub block_signature: Signature,
    /// The key that certified the ID key, and its signature over that key; QEMU's `author-key-enabled=on`.
    pub author: Option<(PublicKey, Signature)>,
}

impl IdAuth {
    /// The 4096 bytes that QEMU takes as `id-auth`, in base64.
    #[must_use]
    pub fn to_bytes(&self) -> Box<[u8; ID_AUTH_LENGTH]> {
        let mut bytes = Box::new([0; ID_AUTH_LENGTH]);
        bytes[ID_KEY_ALGO..][..4].copy_from_slice(&ALGORITHM.to_le_bytes());
        put_signature(&mut bytes[ID_BLOCK_SIGNATURE..], &self.block_signature);
        bytes[ID_KEY..][..KEY].copy_from_slice(&self.id_key.encode());
        if let Some((key, signature)) = &self.author {
            bytes[AUTHOR_KEY_ALGO..][..4].copy_from_slice(&ALGORITHM.to_le_bytes());
            put_signature(&mut bytes[ID_KEY_SIGNATURE..], signature);
            bytes[AUTHOR_KEY..][..KEY].copy_from_slice(&key.encode());
        }
        bytes
    }

    /// Reads the 4096 bytes. An author is there when AUTHOR_KEY_ALGO is not zero.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let bytes: &[u8; ID_AUTH_LENGTH] = exactly("ID authentication", bytes)?;
        defined("algorithm of the ID key", ALGORITHM, word(bytes, ID_KEY_ALGO))?;
        let author = match word(bytes, AUTHOR_KEY_ALGO) {
            0 => None,
            algorithm => {
                defined("algorithm of the author key", ALGORITHM, algorithm)?;
                let key = PublicKey::decode("author key", &bytes[AUTHOR_KEY..])?;
                Some((key, take_signature(bytes, ID_KEY_SIGNATURE)))
            }
        };
        let auth = Self {
            id_key: PublicKey::decode("ID key", &bytes[ID_KEY..])?,
            block_signature: take_signature(bytes, ID_BLOCK_SIGNATURE),
            author,
        };
        // Covers every reserved byte and every padding at once.
        match auth.to_bytes().iter().zip(bytes).position(|(ours, theirs)| ours != theirs) {
            None => Ok(auth),
            Some(offset) => Err(IdBlockError::NotCanonical(offset)),
        }
    }

    /// Checks the signatures over a block and over the ID key.
    pub fn verify(&self, block: &IdBlock) -> Result<(), IdBlockError> {
        if !self.id_key.verifies(&block.to_bytes(), &self.block_signature) {
            return Err(IdBlockError::BlockSignature { id_key: self.id_key.digest() });
        }
        match &self.author {
            Some((key, signature)) if !key.verifies(&self.id_key.encode(), signature) => {
                Err(IdBlockError::AuthorSignature { author_key: key.digest() })
            }
            _ => Ok(()),
        }
    }
}

/// What an ID block and its authentication must say; also what a report must then say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// What is launched: launch digest, policy, ids, and as SVN the least that is accepted.
    pub block: IdBlock,
    /// The ID key.
    pub id_key: KeyDigest,
    /// The author key; `None`: there must be none.
    pub author_key: Option<KeyDigest>,
}

impl Expected {
    /// Checks what will be handed to the firmware. The firmware would refuse some of it at the end of the launch, by a
    /// number; and start the guest with some of it, under another identity.
    pub fn check(&self, block: &IdBlock, auth: &IdAuth) -> Result<(), IdBlockError> {
        auth.verify(block)?;
        let author = auth.author.map(|(key, _)| key.digest());
        self.check_identity(block, auth.id_key.digest(), author)
    }

    /// Checks what a report says. That the report is authentic is for the caller to know.
    pub fn check_report(&self, report: &Report) -> Result<(), IdBlockError> {
        let block = IdBlock {
            measurement: report.measurement(),
            family_id: report.family_id(),
            image_id: report.image_id(),
            guest_svn: report.guest_svn(),
            policy: report.policy(),
        };
        let author = report.key_info().author_key_enabled().then(|| Measurement(report.author_key_digest()));
        self.check_identity(&block, Measurement(report.id_key_digest()), author)
    }

    fn check_identity(
        &self,
        found: &IdBlock,
        id_key: KeyDigest,
        author_key: Option<KeyDigest>,
    ) -> Result<(), IdBlockError> {
        let text = |key: Option<KeyDigest>| key.map_or_else(|| "none".to_owned(), |key| key.to_string());
        for (which, expected, found) in
            [("ID key", Some(self.id_key), Some(id_key)), ("author key", self.author_key, author_key)]
        {
            if expected != found {
                return Err(IdBlockError::WrongKey { which, expected: text(expected), found: text(found) });
            }
        }
        let expected = &self.block;
        if found.measurement != expected.measurement {
            return Err(IdBlockError::WrongMeasurement {
                expected: expected.measurement,
                found: found.measurement,
            });
        }
        if found.policy != expected.policy {
            return Err(IdBlockError::WrongPolicy { expected: expected.policy.0, found: found.policy.0 });
        }
        for (which, expected, found) in [
            ("FAMILY_ID", expected.family_id, found.family_id),
            ("IMAGE_ID", expected.image_id, found.image_id),
        ] {
            if expected != found {
                let [expected, found] = [expected, found].map(hex::encode);
                return Err(IdBlockError::WrongIdentity { which, expected, found });
            }
        }
        if found.guest_svn < expected.guest_svn {
            return Err(IdBlockError::SvnTooLow { minimum: expected.guest_svn, found: found.guest_svn });
        }
        Ok(())
    }
}

fn exactly<'a, const N: usize>(
    structure: &'static str,
    bytes: &'a [u8],
) -> Result<&'a [u8; N], IdBlockError> {
    let found = bytes.len();
    bytes.try_into().map_err(|_| IdBlockError::Length { structure, expected: N, found })
}

fn defined(field: &'static str, expected: u32, found: u32) -> Result<(), IdBlockError> {
    if found == expected { Ok(()) } else { Err(IdBlockError::Undefined { field, expected, found }) }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// Writes a big-endian scalar as the firmware takes it: little endian, zeros after it.
fn put_scalar(place: &mut [u8], scalar: &[u8]) {
    for (place, byte) in place.iter_mut().zip(scalar.iter().rev()) {
        *place = *byte;
    }
}

fn take_scalar(bytes: &[u8], at: usize, scalar: &mut [u8]) {
    for (byte, place) in bytes[at..at + SCALAR].iter().zip(scalar.iter_mut().rev()) {
        *place = *byte;
    }
}

fn put_signature(place: &mut [u8], signature: &Signature) {
    let (r, s) = signature.0.split_at(SCALAR);
    put_scalar(place, r);
    put_scalar(&mut place[SCALAR_FIELD..], s);
}

fn take_signature(bytes: &[u8], at: usize) -> Signature {
    let mut signature = [0; 2 * SCALAR];
    let (r, s) = signature.split_at_mut(SCALAR);
    take_scalar(bytes, at, r);
    take_scalar(bytes, at + SCALAR_FIELD, s);
    Signature(signature)
}
