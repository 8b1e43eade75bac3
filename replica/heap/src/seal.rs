//! Keys, and the protection of blocks and records.
//!
//! The caller's key wraps a random *data key* that stands sealed in the superblock, so it can be changed
//! without touching the data. Everything else is sealed with the data key by AES-256-GCM.
//!
//! **Nonces.** GCM fails badly when a nonce is used twice under one key, and the owner of the medium may put an
//! earlier image back: no counter kept there can be trusted to go on where it stopped. So each run of the
//! program draws 64 random bits and counts from zero in RAM; the nonce is both together. A torn commit that was
//! never acknowledged keeps the nonces it used to itself: no later run has them, and this run does not go back.
//! With 2^16 runs under one data key two draws agree with probability 2^-33.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use zeroize::Zeroizing;

use super::batch::Page;
use super::block::Ref;
use super::checksum::{crc, page_sum};
use super::error::WriteError;
use super::mutants::{self, Mutant};
use crate::media::{Media, stream};

/// An AES-256-GCM tag; on a plain heap a block's checksum, or a CRC-64 and zeros.
pub(crate) type Tag = [u8; 16];
/// What makes each sealing unique.
pub(crate) type NonceBytes = [u8; NONCE_LEN];
/// Random bytes of the key that seals everything on one medium.
pub(crate) type DataKeyBytes = Zeroizing<[u8; 32]>;

/// The secret that protects a heap, or the explicit choice to have none.
#[derive(Clone)]
pub struct Key(pub(crate) Protection);

#[derive(Clone)]
pub(crate) enum Protection {
    Plain,
    Sealed(Box<Wrapping>),
}

/// What is derived from the caller's key.
#[derive(Clone)]
pub(crate) struct Wrapping {
    pub(crate) id: KeyId,
    mac: hmac::Key,
    wrap: LessSafeKey,
}

impl Key {
    /// Takes 32 bytes that are uniformly random, or derived from such by a key derivation function.
    pub fn new(bytes: [u8; 32]) -> Self {
        let bytes = Zeroizing::new(bytes);
        let root = Salt::new(HKDF_SHA256, b"redoubt heap version 2").extract(bytes.as_slice());
        #[expect(clippy::expect_used, reason = "HKDF refuses outputs above 8160 bytes only; these have 32")]
        let expand = |label: &'static [u8]| {
            let mut out = Zeroizing::new([0; 32]);
            root.expand(&[label], HKDF_SHA256)
                .and_then(|okm| okm.fill(out.as_mut_slice()))
                .expect("32 bytes from HKDF-SHA-256");
            out
        };
        let mut id = [0; 16];
        id.copy_from_slice(&expand(b"key id")[..16]);
        let mac = hmac::Key::new(hmac::HMAC_SHA256, expand(b"superblock").as_slice());
        Self(Protection::Sealed(Box::new(Wrapping { id: KeyId(id), mac, wrap: aead(&expand(b"wrap")) })))
    }

    /// No secret: pages carry checksums against damage and are neither encrypted nor authenticated. Only for
    /// media that nobody hostile can reach.
    pub fn plain() -> Self {
        Self(Protection::Plain)
    }

    pub(crate) fn sealed(&self) -> bool {
        matches!(self.0, Protection::Sealed(_))
    }

    /// Its public name.
    pub fn id(&self) -> KeyId {
        match &self.0 {
            Protection::Plain => KeyId([0; 16]),
            Protection::Sealed(wrapping) => wrapping.id,
        }
    }

    /// Tag over a superblock.
    pub(crate) fn sign(&self, bytes: &[u8]) -> [u8; 32] {
        let mut out = [0; 32];
        match &self.0 {
            Protection::Plain => out[..8].copy_from_slice(&crc(bytes).to_le_bytes()),
            Protection::Sealed(wrapping) => {
                out.copy_from_slice(hmac::sign(&wrapping.mac, bytes).as_ref());
            }
        }
        out
    }

    pub(crate) fn verify(&self, bytes: &[u8], mac: &[u8]) -> bool {
        match &self.0 {
            Protection::Plain => self.sign(bytes) == mac || mutants::on(Mutant::ChecksumsIgnored),
            Protection::Sealed(wrapping) => hmac::verify(&wrapping.mac, bytes, mac).is_ok(),
        }
    }

    /// Wraps a data key: nonce, ciphertext, tag.
    pub(crate) fn wrap(&self, data_key: &DataKeyBytes) -> Result<[u8; 60], SealError> {
        let mut out = [0; 60];
        if let Protection::Sealed(wrapping) = &self.0 {
            let nonce: NonceBytes = random()?;
            out[..12].copy_from_slice(&nonce);
            out[12..44].copy_from_slice(data_key.as_slice());
            let tag = seal_with(&wrapping.wrap, nonce, b"data key", &mut out[12..44])?;
            out[44..].copy_from_slice(&tag);
        }
        Ok(out)
    }

    /// `None` if the wrapped key is not authentic.
    pub(crate) fn unwrap(&self, wrapped: &[u8; 60]) -> Option<DataKeyBytes> {
        let mut bytes = Zeroizing::new([0; 32]);
        if let Protection::Sealed(wrapping) = &self.0 {
            let mut nonce = [0; 12];
            nonce.copy_from_slice(&wrapped[..12]);
            let mut copy = Zeroizing::new([0; 48]);
            copy.copy_from_slice(&wrapped[12..]);
            let plain = open_with(&wrapping.wrap, nonce, b"data key", copy.as_mut_slice())?;
            bytes.copy_from_slice(plain);
        }
        Some(bytes)
    }

    /// Protection of data under a data key.
    pub(crate) fn protect(&self, data_key: &DataKeyBytes) -> Sealer {
        match self.0 {
            Protection::Plain => Sealer(None),
            Protection::Sealed(_) => Sealer(Some(aead(data_key))),
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self.0 {
            Protection::Plain => "Key(plain)",
            Protection::Sealed(_) => "Key(secret)",
        })
    }
}

#[expect(clippy::expect_used, reason = "AES-256 refuses keys of other lengths only")]
fn aead(bytes: &Zeroizing<[u8; 32]>) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes.as_slice()).expect("a key of 32 bytes"))
}

/// A public name of a [`Key`], derived one way: stands on the medium to tell a wrong key from damage. All zeros
/// for a plain heap.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 16]);

impl std::fmt::Display for KeyId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == [0; 16] {
            return out.write_str("none (plain)");
        }
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

fn crc_tag(bytes: &[u8]) -> Tag {
    let mut tag = [0; 16];
    tag[..8].copy_from_slice(&crc(bytes).to_le_bytes());
    tag
}

fn seal_with(key: &LessSafeKey, nonce: NonceBytes, aad: &[u8], in_out: &mut [u8]) -> Result<Tag, SealError> {
    let tag = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), in_out)
        .map_err(|_| SealError("the cryptographic library refused to seal"))?;
    let mut bytes = [0; 16];
    bytes.copy_from_slice(tag.as_ref());
    Ok(bytes)
}

fn open_with<'a>(
    key: &LessSafeKey,
    nonce: NonceBytes,
    aad: &[u8],
    in_out: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), in_out).ok()
}

/// Gives out nonces, each once.
pub(crate) struct Nonces {
    prefix: [u8; 8],
    next: u32,
}

impl Nonces {
    pub(crate) fn new() -> Result<Self, SealError> {
        Ok(Self { prefix: random()?, next: 0 })
    }

    pub(crate) fn next(&mut self) -> Result<NonceBytes, SealError> {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.prefix);
        nonce[8..].copy_from_slice(&self.next.to_le_bytes());
        match self.next.checked_add(1) {
            _ if mutants::on(Mutant::NonceNotAdvanced) => {}
            Some(next) => self.next = next,
            None => *self = Self::new()?,
        }
        Ok(nonce)
    }
}

/// Seals and opens under one data key; checksums on a plain heap.
pub(crate) struct Sealer(Option<LessSafeKey>);

impl Sealer {
    pub(crate) fn sealed(&self) -> bool {
        self.0.is_some()
    }

    /// Writes a block to where it belongs, protected; its nonce and tag. `next` will be written after it.
    #[inline]
    pub(crate) fn write_block(
        &self,
        nonces: &mut Nonces,
        (media, offset): (&dyn Media, u64),
        data: &Page,
        next: &Page,
    ) -> Result<(NonceBytes, Tag), WriteError> {
        match &self.0 {
            None => Ok(([0; 12], media.write_page_summed(offset, data, next)?)),
            Some(key) => {
                let nonce = nonces.next()?;
                let mut sealed = *data;
                stream::fetch(next);
                let tag = seal_with(key, nonce, &[], &mut sealed)?;
                media.write(offset, &sealed)?;
                Ok((nonce, tag))
            }
        }
    }

    /// Turns a block as read from the medium into what was sealed; false if it is not that.
    #[must_use]
    pub(crate) fn open_block(&self, reference: &Ref, block: &mut Page) -> bool {
        match &self.0 {
            None => page_sum(block) == *reference.tag() || mutants::on(Mutant::ChecksumsIgnored),
            Some(key) => {
                let tag = ring::aead::Tag::from(*reference.tag());
                let nonce = Nonce::assume_unique_for_key(*reference.nonce());
                key.open_in_place_separate_tag(nonce, Aad::empty(), tag, block, 0..).is_ok()
            }
        }
    }

    /// Protects the end of `bytes` from `from` on, and authenticates what precedes it.
    pub(crate) fn seal_record(
        &self,
        nonce: NonceBytes,
        bytes: &mut [u8],
        from: usize,
    ) -> Result<Tag, SealError> {
        match &self.0 {
            None => Ok(crc_tag(bytes)),
            Some(key) => {
                let (aad, payload) = bytes.split_at_mut(from);
                seal_with(key, nonce, aad, payload)
            }
        }
    }

    /// The counterpart of [`Sealer::seal_record`]; false if the bytes are not what was sealed.
    #[must_use]
    pub(crate) fn open_record(&self, nonce: NonceBytes, bytes: &mut [u8], from: usize, tag: &Tag) -> bool {
        match &self.0 {
            None => crc_tag(bytes) == *tag || mutants::on(Mutant::ChecksumsIgnored),
            Some(key) => {
                let (aad, payload) = bytes.split_at_mut(from);
                let tag = ring::aead::Tag::from(*tag);
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place_separate_tag(nonce, Aad::from(&*aad), tag, payload, 0..).is_ok()
            }
        }
    }
}
