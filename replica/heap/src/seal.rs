//! Keys, sealing and opening.
//!
//! AES-256-GCM fails badly when a nonce is used twice under one key, and here the owner of the medium may put
//! an earlier image back, so no counter kept on the medium can be trusted to go on where it stopped.
//! Therefore each [`Sealer`] draws a fresh 128-bit salt, derives a key of its own from it, and counts from
//! zero in RAM: a nonce repeats only if two salts collide. A sealer is made at every open and for every new
//! generation, never restored.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Okm, Prk, Salt};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::superblock::MediaId;

/// An AES-256-GCM tag.
pub(crate) type Tag = [u8; 16];
/// Random input that tells the keys of two sealers apart.
pub(crate) type SealSalt = [u8; 16];
/// An HMAC-SHA-256 tag.
pub(crate) type Mac = [u8; 32];

/// The secret that seals one heap: 32 uniformly random bytes. Wiped from memory when dropped.
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// Takes 32 bytes that are uniformly random, or derived from such by a key derivation function.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Key(secret)")
    }
}

/// A public name of a [`Key`], derived one way: stands on the medium to tell a wrong key from damage.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 16]);

impl std::fmt::Display for KeyId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl std::fmt::Debug for KeyId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "KeyId({self})")
    }
}

/// The cryptographic library or the operating system's random source refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}; this is a fault of the machine or the program, not of the medium")]
pub struct SealError(&'static str);

/// Fills an array with random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    let failed = |_| SealError("the operating system gave no random bytes");
    SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// What is derived from a [`Key`]. Each use has its own label, so that no two uses share a key.
pub(crate) struct Keys {
    root: Prk,
    pub(crate) id: KeyId,
    pub(crate) superblock: MacKey,
}

impl Keys {
    pub(crate) fn derive(key: &Key) -> Result<Self, SealError> {
        let root = Salt::new(HKDF_SHA256, b"redoubt heap version 1").extract(key.0.as_slice());
        let mut id = [0; 16];
        expand(&root, &[b"key id"], Length(16), |okm| okm.fill(&mut id))?.map_err(|_| DERIVATION)?;
        let superblock = MacKey::derive(&root, &[b"superblock"])?;
        Ok(Self { root, id: KeyId(id), superblock })
    }

    /// Key for the watermark cells of one medium.
    pub(crate) fn watermark(&self, media: MediaId) -> Result<MacKey, SealError> {
        MacKey::derive(&self.root, &[b"watermark", &media.0])
    }

    fn frame(&self, salt: &SealSalt) -> Result<LessSafeKey, SealError> {
        expand(&self.root, &[b"frame", salt], &AES_256_GCM, |okm| LessSafeKey::new(UnboundKey::from(okm)))
    }
}

const DERIVATION: SealError = SealError("the cryptographic library refused to derive a key");

fn expand<L: KeyType, T>(
    root: &Prk,
    info: &[&[u8]],
    length: L,
    make: impl FnOnce(Okm<'_, L>) -> T,
) -> Result<T, SealError> {
    root.expand(info, length).map(make).map_err(|_| DERIVATION)
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// A key for HMAC-SHA-256.
pub(crate) struct MacKey(hmac::Key);

impl MacKey {
    fn derive(root: &Prk, info: &[&[u8]]) -> Result<Self, SealError> {
        expand(root, info, hmac::HMAC_SHA256, |okm| Self(hmac::Key::from(okm)))
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Mac {
        let mut mac = [0; 32];
        mac.copy_from_slice(hmac::sign(&self.0, bytes).as_ref());
        mac
    }

    pub(crate) fn verify(&self, bytes: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.0, bytes, mac).is_ok()
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Seals frames under a key that no other sealer, of this or any other run, has.
pub(crate) struct Sealer {
    key: LessSafeKey,
    salt: SealSalt,
    next: u64,
}

/// A nonce not used so far. Not `Clone`, and sealing consumes it.
pub(crate) struct Once(u64);

impl Once {
    pub(crate) fn counter(&self) -> u64 {
        self.0
    }
}

impl Sealer {
    pub(crate) fn new(keys: &Keys) -> Result<Self, SealError> {
        let salt = random()?;
        Ok(Self { key: keys.frame(&salt)?, salt, next: 0 })
    }

    pub(crate) fn salt(&self) -> SealSalt {
        self.salt
    }

    pub(crate) fn once(&mut self) -> Once {
        let once = Once(self.next);
        self.next += 1;
        once
    }

    /// Encrypts in place and returns the tag.
    pub(crate) fn seal(&self, once: Once, aad: &[u8], in_out: &mut [u8]) -> Result<Tag, SealError> {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(once.0), Aad::from(aad), in_out)
            .map_err(|_| SealError("the cryptographic library refused to seal a frame"))?;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }
}

/// Opens frames; remembers the last key, since frames of one sealer follow each other.
pub(crate) struct Opener<'a> {
    keys: &'a Keys,
    last: Option<(SealSalt, LessSafeKey)>,
}

impl<'a> Opener<'a> {
    pub(crate) fn new(keys: &'a Keys) -> Self {
        Self { keys, last: None }
    }

    /// Decrypts ciphertext and tag in place; the plaintext, or `None` if they are not authentic.
    pub(crate) fn open<'b>(
        &mut self,
        salt: &SealSalt,
        counter: u64,
        aad: &[u8],
        in_out: &'b mut [u8],
    ) -> Result<Option<&'b [u8]>, SealError> {
        let (_, key) = match self.last.take() {
            Some(last) if last.0 == *salt => self.last.insert(last),
            _ => self.last.insert((*salt, self.keys.frame(salt)?)),
        };
        Ok(key.open_in_place(nonce(counter), Aad::from(aad), in_out).ok().map(|plain| &*plain))
    }
}
