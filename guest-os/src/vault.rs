//! The vault: the node's secret, sealed, in the first 64 KiB of the guest's disk. No I/O here.
//!
//! Two slots hold the same content. Layout of a slot (integers little-endian; the rest of its 4096 bytes is zero):
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | magic `RDBVAULT` |
//! | 8..12 | format version, 4 |
//! | 12..16 | guest SVN that the key was derived with |
//! | 16..24 | sequence number; the higher valid slot counts |
//! | 24..32 | TCB version that the key was derived with |
//! | 32..80 | measurement of the guest that sealed it |
//! | 80..112 | SHA-256 of the chip id of the machine that sealed it |
//! | 112..144 | salt of the key derivation |
//! | 144..156 | nonce |
//! | 156..326 | AES-256-GCM of the content (154 bytes) and tag (16 bytes); bytes 0..156 are associated data |
//!
//! Content: content version (u32, 4), what it was given for (u32: 0 to be the node, 1 for recovery), secret (32 bytes), creation
//! time (u64, seconds since 1970), what the node has seen ([`release::Seen`]): root version, blessing version, security epoch,
//! time (u64 each), blessing, release (each one byte 0 or 1, then 32 bytes), and a commit of the heap (u64). What is handed over
//! to another release is the content too.
//!
//! HOST_DATA takes no part: a change of the guest's configuration must not lose the secret.
//! The key is HKDF-SHA256(salt, derived key of the PSP, label); the label names this use and the kind of PSP, and any
//! further use of the derived key has to have another one. The PSP mixes policy, ids of the ID block, measurement, guest
//! SVN and TCB version into the derived key, so another guest or another machine cannot open the vault.
//!
//! What the host can do: destroy it, or put back an older one (same secret) or zeros (a new secret is made, and
//! everything sealed under the old one cannot be read). What it cannot do is read it or make one that opens, unless
//! it broke a TCB version at or below the committed one: measurement and TCB version stand in clear for the words of
//! an error only, the key decides.

use crate::keys::Level;
use release::{Digest, Purpose, Seen};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::{digest, hkdf};
use zeroize::Zeroizing;

/// Length of the vault on the disk, in bytes.
pub const REGION: usize = 64 * 1024;
/// Length of a slot, in bytes.
pub const SLOT: usize = 4096;
/// Where the two slots start.
pub const SLOT_OFFSETS: [usize; 2] = [0, REGION / 2];

const MAGIC: &[u8; 8] = b"RDBVAULT";
const VERSION: u32 = 4;
const HEADER: usize = 156;
/// Length of the content, in bytes.
pub const CONTENT: usize = 154;
const SEALED: usize = CONTENT + 16;

/// A key of 32 bytes that is wiped when dropped.
pub type Key = Zeroizing<[u8; 32]>;

/// Who opens or seals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Measurement of this guest.
    pub measurement: [u8; 48],
    /// Chip id of this machine.
    pub chip_id: [u8; 64],
    /// Committed TCB version of this machine and SVN of this guest: what a new vault is sealed with.
    pub level: Level,
}

/// What the vault holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// The node's secret.
    pub secret: Key,
    /// When it was made, in seconds since 1970 by the clock of then.
    pub created: u64,
    /// What the node has seen of roots and blessings.
    pub seen: Seen,
    /// A commit that the heap is known to have reached: NVRAM that ends before it is an older image.
    pub heap_epoch: u64,
    /// What the secret may be used for: a guest that has it for recovery never becomes the node, whatever its host says.
    pub purpose: Purpose,
}

impl Content {
    /// The bytes that are sealed, or handed over.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let Content { secret, created, seen, heap_epoch, purpose } = self;
        let mut bytes = Zeroizing::new(Vec::with_capacity(SEALED));
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((*purpose as u32).to_le_bytes());
        bytes.extend(**secret);
        for number in [*created, seen.root_version, seen.blessing_version, seen.security_epoch, seen.time] {
            bytes.extend(number.to_le_bytes());
        }
        for digest in [seen.blessing, seen.release] {
            bytes.push(u8::from(digest.is_some()));
            bytes.extend(digest.map_or([0; 32], |digest| digest.0));
        }
        bytes.extend(heap_epoch.to_le_bytes());
        bytes
    }

    /// Reads what [`Content::to_bytes`] wrote. Fails with the version that was found, or none where the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Content, Option<u32>> {
        let field = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let digest = |at: usize| {
            let digest = bytes.get(at + 1..at + 33)?.try_into().ok()?;
            Some((*bytes.get(at)? == 1).then_some(Digest(digest)))
        };
        let version = bytes.first_chunk().map(|version| u32::from_le_bytes(*version)).ok_or(None)?;
        if version != VERSION {
            return Err(Some(version));
        }
        let read = || {
            let secret = Zeroizing::new(bytes.get(8..40)?.try_into().ok()?);
            let seen = Seen {
                root_version: field(48)?,
                blessing_version: field(56)?,
                security_epoch: field(64)?,
                time: field(72)?,
                blessing: digest(80)?,
                release: digest(113)?,
            };
            let purpose = match bytes.get(4..8)? {
                [0, 0, 0, 0] => Purpose::Node,
                [1, 0, 0, 0] => Purpose::Recovery,
                _ => return None,
            };
            Some(Content { secret, created: field(40)?, seen, heap_epoch: field(146)?, purpose })
        };
        if bytes.len() == CONTENT { read().ok_or(None) } else { Err(None) }
    }
}

impl std::fmt::Debug for Content {
    // The secret is not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Content { secret: _, created, seen, heap_epoch, purpose } = self;
        f.debug_struct("Content")
            .field("created", created)
            .field("seen", seen)
            .field("heap_epoch", heap_epoch)
            .field("purpose", purpose)
            .finish_non_exhaustive()
    }
}

/// What was found on the disk.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing but zeros: a new disk.
    Blank,
    /// A vault.
    Opened {
        /// Its content.
        content: Content,
        /// Its sequence number.
        sequence: u64,
        /// Which slot held it.
        slot: usize,
        /// Both slots must be written again: the other one is damaged or older, or the level is not the present one any
        /// more.
        outdated: bool,
    },
}

/// Why the vault cannot be opened. It is never overwritten because of one of these.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError<E: std::error::Error + 'static> {
    /// Another guest or another machine sealed it.
    #[error(
        "vault sealed to another guest or machine ({difference}); start the guest release and machine that made \
         it, or wipe the guest's disk to begin anew, which loses the state of this node"
    )]
    SealedToAnother {
        /// What differs.
        difference: &'static str,
    },
    /// Sealed by this guest on this machine as it says, but it does not open.
    #[error(
        "the vault is damaged or was tampered with; restore the guest's disk, or wipe it to begin anew, which \
         loses the state of this node"
    )]
    Damaged,
    /// Sealed by a release with another format.
    #[error(
        "the vault has format version {0}, this guest knows {VERSION}; start the guest release that made it"
    )]
    Version(u32),
    /// The derived key cannot be had.
    #[error("the key of the vault could not be derived")]
    Key(#[source] E),
    /// The cryptography failed, which cannot happen with keys and nonces of fixed length.
    #[error("sealing the vault failed; this is a bug, please report it")]
    Seal,
}

struct Header {
    sequence: u64,
    level: Level,
    measurement: [u8; 48],
    chip: [u8; 32],
    salt: [u8; 32],
    nonce: [u8; 12],
}

/// Looks at the vault's region of the disk. `derive` gives the PSP's derived key for a level; `label` says
/// which kind of key source that is, so that a simulated key never opens what a real one sealed.
pub fn open<E: std::error::Error>(
    region: &[u8; REGION],
    us: &Identity,
    label: &str,
    mut derive: impl FnMut(Level) -> Result<Key, E>,
) -> Result<Found, VaultError<E>> {
    if region.iter().all(|&byte| byte == 0) {
        return Ok(Found::Blank);
    }
    let mut opened = Vec::new();
    let mut first_error = None;
    for (slot, offset) in SLOT_OFFSETS.into_iter().enumerate() {
        match open_slot(&region[offset..offset + SLOT], us, label, &mut derive) {
            Ok((content, header)) => opened.push((slot, content, header)),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    let Some(sequence) = opened.iter().map(|(.., header)| header.sequence).max() else {
        return Err(first_error.unwrap_or(VaultError::Damaged));
    };
    let current = |header: &Header| header.sequence == sequence && header.level == us.level;
    let outdated = opened.len() < SLOT_OFFSETS.len() || !opened.iter().all(|(.., header)| current(header));
    opened
        .into_iter()
        .find(|(.., header)| header.sequence == sequence)
        .map(|(slot, content, _)| Found::Opened { content, sequence, slot, outdated })
        .ok_or(VaultError::Damaged)
}

fn open_slot<E: std::error::Error>(
    slot: &[u8],
    us: &Identity,
    label: &str,
    derive: &mut impl FnMut(Level) -> Result<Key, E>,
) -> Result<(Content, Header), VaultError<E>> {
    let header = decode(slot)?;
    // What stands in clear only chooses the words of the error; a lie there cannot open anything.
    let failed = if header.chip != chip_hash(us) {
        VaultError::SealedToAnother { difference: "another machine" }
    } else if header.measurement != us.measurement {
        VaultError::SealedToAnother { difference: "another guest release" }
    } else {
        VaultError::Damaged
    };
    let key = match derive(header.level) {
        Ok(key) => sealing_key(&key, &header.salt, label).ok_or(VaultError::Seal)?,
        // The PSP refuses a level above the present one, which another machine or guest may well have.
        Err(_) if !matches!(failed, VaultError::Damaged) => return Err(failed),
        Err(error) => return Err(VaultError::Key(error)),
    };
    let (clear, sealed) = slot.split_at(HEADER);
    let mut sealed = Zeroizing::new(sealed[..SEALED].to_vec());
    let nonce = Nonce::assume_unique_for_key(header.nonce);
    let Ok(content) = key.open_in_place(nonce, Aad::from(clear), &mut sealed) else { return Err(failed) };
    let content = Content::from_bytes(content)
        .map_err(|version| version.map_or(VaultError::Damaged, VaultError::Version))?;
    Ok((content, header))
}

fn decode<E: std::error::Error>(slot: &[u8]) -> Result<Header, VaultError<E>> {
    fn field<const N: usize>(slot: &[u8], at: usize) -> Option<[u8; N]> {
        slot.get(at..at + N)?.try_into().ok()
    }
    if slot.get(..8) != Some(MAGIC) {
        return Err(VaultError::Damaged);
    }
    let read = || {
        let version = u32::from_le_bytes(field(slot, 8)?);
        let header = Header {
            sequence: u64::from_le_bytes(field(slot, 16)?),
            level: Level {
                tcb_version: u64::from_le_bytes(field(slot, 24)?),
                guest_svn: u32::from_le_bytes(field(slot, 12)?),
            },
            measurement: field(slot, 32)?,
            chip: field(slot, 80)?,
            salt: field(slot, 112)?,
            nonce: field(slot, 144)?,
        };
        Some((version, header))
    };
    match read() {
        Some((VERSION, header)) => Ok(header),
        Some((version, _)) => Err(VaultError::Version(version)),
        None => Err(VaultError::Damaged),
    }
}

/// Makes one slot. `fresh` is random and never used twice: salt and nonce.
pub fn seal<E: std::error::Error>(
    content: &Content,
    sequence: u64,
    us: &Identity,
    label: &str,
    fresh: &[u8; 44],
    derive: impl FnOnce(Level) -> Result<Key, E>,
) -> Result<Vec<u8>, VaultError<E>> {
    let (salt, nonce) = fresh.split_at(32);
    let mut slot = Vec::with_capacity(SLOT);
    slot.extend(MAGIC);
    slot.extend(VERSION.to_le_bytes());
    slot.extend(us.level.guest_svn.to_le_bytes());
    slot.extend(sequence.to_le_bytes());
    slot.extend(us.level.tcb_version.to_le_bytes());
    slot.extend(us.measurement);
    slot.extend(chip_hash(us));
    slot.extend(salt);
    slot.extend(nonce);

    let mut sealed = content.to_bytes();
    let key = derive(us.level).map_err(VaultError::Key)?;
    let key = sealing_key(&key, salt, label).ok_or(VaultError::Seal)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| VaultError::Seal)?;
    key.seal_in_place_append_tag(nonce, Aad::from(&slot), &mut *sealed).map_err(|_| VaultError::Seal)?;
    slot.extend(&*sealed);
    slot.resize(SLOT, 0);
    Ok(slot)
}

fn chip_hash(us: &Identity) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, &us.chip_id).as_ref());
    hash
}

fn sealing_key(derived: &Key, salt: &[u8], label: &str) -> Option<LessSafeKey> {
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&**derived);
    let info = [b"redoubt vault 3 ", label.as_bytes()];
    Some(LessSafeKey::new(UnboundKey::from(extracted.expand(&info, &AES_256_GCM).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn us() -> Identity {
        Identity { measurement: [1; 48], chip_id: [2; 64], level: Level { tcb_version: 7, guest_svn: 0 } }
    }

    fn content() -> Content {
        let seen =
            Seen { root_version: 3, security_epoch: 5, release: Some(Digest([7; 32])), ..Seen::default() };
        let secret = Zeroizing::new([9; 32]);
        Content { secret, created: 1_800_000_000, seen, heap_epoch: 7, purpose: Purpose::Recovery }
    }

    /// A PSP: its key depends on who asks and on the level.
    fn psp(who: &Identity) -> impl Fn(Level) -> Result<Key, Infallible> {
        let base = who.measurement[0] ^ who.chip_id[0].rotate_left(4);
        move |level| {
            let mut key = [base ^ (level.tcb_version as u8).rotate_left(2); 32];
            key[0] = level.guest_svn as u8;
            Ok(Zeroizing::new(key))
        }
    }

    fn sealed(sequence: u64, who: &Identity) -> Vec<u8> {
        seal(&content(), sequence, who, "test", &[3; 44], psp(who)).unwrap()
    }

    fn region(slots: [&[u8]; 2]) -> Box<[u8; REGION]> {
        let mut region = Box::new([0; REGION]);
        for (slot, offset) in slots.into_iter().zip(SLOT_OFFSETS) {
            region[offset..offset + slot.len()].copy_from_slice(slot);
        }
        region
    }

    fn open_as(who: &Identity, region: &[u8; REGION]) -> Result<Found, VaultError<Infallible>> {
        open(region, who, "test", psp(who))
    }

    #[test]
    fn what_was_sealed_opens_and_zeros_are_blank() {
        let slot = sealed(1, &us());
        assert_eq!(slot.len(), SLOT);
        let expected = Found::Opened { content: content(), sequence: 1, slot: 0, outdated: false };
        assert_eq!(open_as(&us(), &region([&slot, &slot])), Ok(expected));
        assert_eq!(open_as(&us(), &region([&[], &[]])), Ok(Found::Blank));
    }

    #[test]
    fn what_it_was_given_for_is_kept_and_nothing_else_is_read() {
        let bytes = content().to_bytes();
        assert_eq!(Content::from_bytes(&bytes), Ok(content()));
        let node = Content { purpose: Purpose::Node, ..content() };
        assert_eq!(Content::from_bytes(&node.to_bytes()), Ok(node));
        for at in 4..8 {
            let mut other = bytes.to_vec();
            other[at] = 2;
            assert_eq!(Content::from_bytes(&other), Err(None));
        }
    }

    #[test]
    fn the_secret_is_not_in_clear() {
        assert!(!sealed(1, &us()).windows(8).any(|window| window == [9; 8]));
    }

    #[test]
    fn one_good_slot_is_enough_and_asks_for_repair() {
        let (old, new) = (sealed(1, &us()), sealed(2, &us()));
        for (slots, sequence, slot) in [
            ([&old[..], &[]], 1, 0),
            ([&[], &old[..]], 1, 1),
            ([&old[..], &new[..]], 2, 1),
            ([&new[..], &old[..]], 2, 0),
            ([&new[..], b"garbage"], 2, 0),
        ] {
            let expected = Found::Opened { content: content(), sequence, slot, outdated: true };
            assert_eq!(open_as(&us(), &region(slots)), Ok(expected));
        }
    }

    #[test]
    fn an_older_level_opens_and_asks_to_be_sealed_anew() {
        let slot = sealed(1, &us());
        for level in [Level { tcb_version: 8, guest_svn: 0 }, Level { tcb_version: 7, guest_svn: 1 }] {
            let found = open_as(&Identity { level, ..us() }, &region([&slot, &slot])).unwrap();
            assert!(matches!(found, Found::Opened { outdated: true, sequence: 1, .. }));
        }
    }

    #[test]
    fn another_guest_or_machine_is_told_so() {
        let slot = sealed(1, &us());
        let region = region([&slot, &slot]);
        let guest = Identity { measurement: [5; 48], ..us() };
        let machine = Identity { chip_id: [5; 64], ..us() };
        let difference = |who| match open_as(who, &region) {
            Err(VaultError::SealedToAnother { difference }) => difference,
            other => panic!("{other:?}"),
        };
        assert_eq!(difference(&guest), "another guest release");
        assert_eq!(difference(&machine), "another machine");
    }

    #[test]
    fn a_refused_key_is_reported_unless_the_vault_is_anothers() {
        let slot = sealed(1, &us());
        let region = region([&slot, &slot]);
        let refuse = |_: Level| Err(std::io::Error::other("refused"));
        assert!(matches!(open(&region, &us(), "test", refuse), Err(VaultError::Key(_))));
        let machine = Identity { chip_id: [5; 64], ..us() };
        assert!(matches!(open(&region, &machine, "test", refuse), Err(VaultError::SealedToAnother { .. })));
    }

    #[test]
    fn another_kind_of_key_source_opens_nothing() {
        let slot = sealed(1, &us());
        let found = open(&region([&slot, &slot]), &us(), "other", psp(&us()));
        assert_eq!(found, Err(VaultError::Damaged));
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut slot = sealed(1, &us());
        slot[8] = 5;
        assert_eq!(open_as(&us(), &region([&slot, &[]])), Err(VaultError::Version(5)));
    }

    proptest! {
        /// No change of any byte that is used goes unnoticed, and none makes the parser fail otherwise.
        #[test]
        fn every_flipped_byte_is_noticed(at in 0..HEADER + SEALED, flip in 1..=255_u8) {
            let mut slot = sealed(1, &us());
            slot[at] ^= flip;
            prop_assert!(open_as(&us(), &region([&slot, &[]])).is_err());
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 1..400)) {
            let mut slot = bytes.clone();
            slot.splice(..MAGIC.len().min(slot.len()), *MAGIC);
            let found = open_as(&us(), &region([&bytes, &slot]));
            let opened = matches!(found, Ok(Found::Opened { .. }));
            prop_assert!(!opened);
        }
    }
}
