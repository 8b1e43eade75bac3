//! The guest's disk: reads and writes the vault.

use crate::clock::{self, ClockError};
use crate::keys::{KeyError, KeySource};
use crate::vault::{self, Content, Found, Identity, REGION, SLOT_OFFSETS, VaultError};
use release::Purpose;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use zeroize::Zeroizing;

/// Serial number by which the guest knows its disk.
pub const DISK_SERIAL: &str = "redoubt-disk";

/// The secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The disk failed.
    #[error(
        "{step} the vault on the guest's disk failed: {source}; check the disk that the host gives to the guest"
    )]
    Disk {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The vault does not open.
    #[error(transparent)]
    Vault(#[from] VaultError<KeyError>),
    /// A host that starts a recovery release as the node, or the other way round.
    #[error(
        "the vault on the guest's disk was given to {given}, and this guest was started as {asked}; start it for what its \
         release is blessed for"
    )]
    Purpose {
        /// By whoever handed the secret over.
        given: Purpose,
        /// By the guest's configuration.
        asked: Purpose,
    },
    /// There is nothing to recover with.
    #[error(
        "the recovery guest's disk holds no vault; the key is given to it at an upgrade: restore the node's directory, or \
         install the node anew, which loses what it stored"
    )]
    Nothing,
    /// The disk lies.
    #[error(
        "what was written into the vault reads back differently; check the disk that the host gives to the guest"
    )]
    ReadBack,
    /// No randomness for a new vault.
    #[error(transparent)]
    Random(#[from] ClockError),
}

/// How the secret came about, for the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Read.
    Opened,
    /// Read, and written again because a copy was damaged or old or the TCB version or guest SVN changed.
    Renewed,
    /// The disk was empty: made.
    Created,
}

/// The vault on the guest's disk, open.
pub struct Vault {
    disk: File,
    us: Identity,
    keys: Box<dyn KeySource>,
    content: Content,
    sequence: u64,
}

impl Vault {
    /// Opens the vault on the disk for a purpose, or makes one when the disk of a node is empty.
    pub fn open(
        disk: File,
        us: Identity,
        mut keys: Box<dyn KeySource>,
        asked: Purpose,
    ) -> Result<(Vault, Origin), StorageError> {
        let label = keys.label();
        let mut region = Box::new([0; REGION]);
        disk.read_exact_at(&mut *region, 0)
            .map_err(|source| StorageError::Disk { step: "reading", source })?;
        let found = vault::open(&region, &us, label, |level| keys.derive(level))?;
        let (content, sequence, origin, order) = match found {
            Found::Blank if asked == Purpose::Recovery => return Err(StorageError::Nothing),
            Found::Opened { content, .. } if content.purpose != asked => {
                return Err(StorageError::Purpose { given: content.purpose, asked });
            }
            Found::Blank => {
                let seen = release::Seen::default();
                let secret = Zeroizing::new(clock::random()?);
                let content = Content { secret, created: clock::now(), seen, heap_epoch: 0, purpose: asked };
                (content, 0, Origin::Created, SLOT_OFFSETS)
            }
            // The good slot is written last, when the other one is safe.
            Found::Opened { content, sequence, slot, outdated } => {
                let origin = if outdated { Origin::Renewed } else { Origin::Opened };
                (content, sequence, origin, [SLOT_OFFSETS[1 - slot], SLOT_OFFSETS[slot]])
            }
        };
        let mut vault = Vault { disk, us, keys, content, sequence };
        if origin != Origin::Opened {
            vault.write(order)?;
        }
        Ok((vault, origin))
    }

    /// Puts what another guest handed over into the vault on a disk, whatever was there, and reads it back.
    pub fn fill(
        disk: File,
        us: Identity,
        keys: Box<dyn KeySource>,
        content: Content,
    ) -> Result<(), StorageError> {
        let kept = disk.try_clone().map_err(|source| StorageError::Disk { step: "opening", source })?;
        let mut vault = Vault { disk, us, keys, content, sequence: 0 };
        vault.write(SLOT_OFFSETS)?;
        let Vault { us, keys, content, .. } = vault;
        let (read, _) = Vault::open(kept, us, keys, content.purpose)?;
        if read.content == content { Ok(()) } else { Err(StorageError::ReadBack) }
    }

    /// What it holds.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Keeps what the node has seen now. Does nothing if that is not new.
    pub fn remember(&mut self, seen: release::Seen) -> Result<(), StorageError> {
        if seen == self.content.seen {
            return Ok(());
        }
        self.content.seen = seen;
        self.write(SLOT_OFFSETS)
    }

    /// Keeps that the heap has reached a commit. Does nothing if that is not new.
    pub fn anchor(&mut self, heap_epoch: u64) -> Result<(), StorageError> {
        if heap_epoch <= self.content.heap_epoch {
            return Ok(());
        }
        self.content.heap_epoch = heap_epoch;
        self.write(SLOT_OFFSETS)
    }

    /// Writes both slots, one after the other. What is used of a slot fits one sector, so a power cut leaves it old or new.
    fn write(&mut self, order: [usize; 2]) -> Result<(), StorageError> {
        self.sequence = self.sequence.saturating_add(1);
        let label = self.keys.label();
        for offset in order {
            let fresh = clock::random()?;
            let derive = |level| self.keys.derive(level);
            let slot = vault::seal(&self.content, self.sequence, &self.us, label, &fresh, derive)?;
            self.disk
                .write_all_at(&slot, offset as u64)
                .and_then(|()| self.disk.sync_data())
                .map_err(|source| StorageError::Disk { step: "writing", source })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Level;
    use crate::vault::Key;

    fn secret(disk: &File, us: &Identity, keys: Fixed) -> Result<(Key, Origin), StorageError> {
        let (vault, origin) =
            Vault::open(disk.try_clone().unwrap(), us.clone(), Box::new(keys), Purpose::Node)?;
        Ok((vault.content.secret, origin))
    }

    struct Fixed(u8);

    impl KeySource for Fixed {
        fn label(&self) -> &'static str {
            "test"
        }
        fn derive(&mut self, level: Level) -> Result<Key, KeyError> {
            Ok(Zeroizing::new([self.0 ^ level.tcb_version as u8; 32]))
        }
    }

    fn us() -> Identity {
        Identity { measurement: [1; 48], chip_id: [2; 64], level: Level { tcb_version: 4, guest_svn: 0 } }
    }

    fn disk() -> File {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(1 << 20).unwrap();
        disk
    }

    fn bytes(disk: &File) -> Vec<u8> {
        let mut bytes = vec![0; REGION];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn an_empty_disk_gets_a_secret_that_stays() {
        let disk = disk();
        let (first, origin) = secret(&disk, &us(), Fixed(1)).unwrap();
        assert_eq!(origin, Origin::Created);
        let before = bytes(&disk);
        assert_eq!(secret(&disk, &us(), Fixed(1)).unwrap(), (first, Origin::Opened));
        assert_eq!(bytes(&disk), before);
    }

    #[test]
    fn two_disks_get_two_secrets() {
        let new = || secret(&disk(), &us(), Fixed(1)).unwrap().0;
        assert_ne!(new(), new());
    }

    #[test]
    fn a_lost_slot_and_a_new_tcb_version_are_repaired_once() {
        let disk = disk();
        let (first, _) = secret(&disk, &us(), Fixed(1)).unwrap();
        for lost in SLOT_OFFSETS {
            disk.write_all_at(&[0xff; 100], lost as u64).unwrap();
            assert_eq!(secret(&disk, &us(), Fixed(1)).unwrap(), (first.clone(), Origin::Renewed));
            assert_eq!(secret(&disk, &us(), Fixed(1)).unwrap(), (first.clone(), Origin::Opened));
        }
        let updated = Identity { level: Level { tcb_version: 5, guest_svn: 0 }, ..us() };
        assert_eq!(secret(&disk, &updated, Fixed(1)).unwrap(), (first.clone(), Origin::Renewed));
        assert_eq!(secret(&disk, &updated, Fixed(1)).unwrap(), (first, Origin::Opened));
    }

    #[test]
    fn a_vault_that_does_not_open_is_left_alone() {
        let disk = disk();
        secret(&disk, &us(), Fixed(1)).unwrap();
        let before = bytes(&disk);
        let other = Identity { measurement: [9; 48], ..us() };
        let error = secret(&disk, &other, Fixed(2)).unwrap_err();
        assert!(error.to_string().starts_with("vault sealed to another guest or machine"), "{error}");
        assert!(secret(&disk, &us(), Fixed(2)).is_err());
        assert_eq!(bytes(&disk), before);
    }

    #[test]
    fn what_was_seen_and_what_was_handed_over_stays() {
        let disk = disk();
        let open =
            |us: Identity| Vault::open(disk.try_clone().unwrap(), us, Box::new(Fixed(1)), Purpose::Node);
        let (mut vault, _) = open(us()).unwrap();
        let seen = release::Seen { blessing_version: 9, ..release::Seen::default() };
        vault.remember(seen).unwrap();
        let content = vault.content.clone();
        assert_eq!(open(us()).unwrap().0.content, content);
        // By another release, into a vault where something lay.
        let other = Identity { measurement: [9; 48], ..us() };
        let another =
            || Vault::open(disk.try_clone().unwrap(), other.clone(), Box::new(Fixed(2)), Purpose::Node);
        assert!(another().is_err());
        Vault::fill(disk.try_clone().unwrap(), other.clone(), Box::new(Fixed(2)), content.clone()).unwrap();
        let (vault, origin) = another().unwrap();
        assert_eq!((vault.content, origin), (content, Origin::Opened));
    }

    /// A host that starts the recovery release as the node gets no node, nor a new one from a blank disk.
    #[test]
    fn what_was_given_for_recovery_is_for_nothing_else() {
        let open = |disk: &File, asked| {
            Vault::open(disk.try_clone().unwrap(), us(), Box::new(Fixed(1)), asked).map(|(vault, _)| vault)
        };
        let blank = disk();
        assert!(matches!(open(&blank, Purpose::Recovery).err(), Some(StorageError::Nothing)));
        assert!(bytes(&blank).iter().all(|byte| *byte == 0), "something was written");
        let node = open(&blank, Purpose::Node).unwrap();
        let refused = open(&blank, Purpose::Recovery).err();
        assert!(matches!(refused, Some(StorageError::Purpose { given: Purpose::Node, .. })), "{refused:?}");

        let rescue = disk();
        let content = Content { purpose: Purpose::Recovery, ..node.content.clone() };
        Vault::fill(rescue.try_clone().unwrap(), us(), Box::new(Fixed(1)), content.clone()).unwrap();
        let before = bytes(&rescue);
        let refused = open(&rescue, Purpose::Node).err();
        assert!(
            matches!(refused, Some(StorageError::Purpose { given: Purpose::Recovery, .. })),
            "{refused:?}"
        );
        assert_eq!(bytes(&rescue), before);
        assert_eq!(open(&rescue, Purpose::Recovery).unwrap().content, content);
    }

    #[test]
    fn a_disk_that_is_too_small_is_an_error() {
        let small = tempfile::tempfile().unwrap();
        small.set_len(4096).unwrap();
        assert!(matches!(secret(&small, &us(), Fixed(1)), Err(StorageError::Disk { step: "reading", .. })));
    }
}
