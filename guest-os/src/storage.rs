//! The guest's disk: reads and writes the vault.

use crate::clock::{self, ClockError};
use crate::keys::{KeyError, KeySource};
use crate::vault::{self, Content, Found, Identity, Key, REGION, SLOT_OFFSETS, VaultError};
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

/// Opens the vault on the disk, or makes one when the disk is empty, and returns the node's secret.
pub fn secret(disk: &File, us: &Identity, keys: &mut dyn KeySource) -> Result<(Key, Origin), StorageError> {
    let label = keys.label();
    let mut region = Box::new([0; REGION]);
    disk.read_exact_at(&mut *region, 0).map_err(|source| StorageError::Disk { step: "reading", source })?;
    match vault::open(&region, us, label, |level| keys.derive(level))? {
        Found::Blank => {
            let content = Content { secret: Zeroizing::new(clock::random()?), created: clock::now() };
            write(disk, &content, 1, SLOT_OFFSETS, us, keys)?;
            Ok((content.secret, Origin::Created))
        }
        Found::Opened { content, outdated: false, .. } => Ok((content.secret, Origin::Opened)),
        Found::Opened { content, sequence, slot, outdated: true } => {
            // The good slot is written last, when the other one is safe.
            let order = [SLOT_OFFSETS[1 - slot], SLOT_OFFSETS[slot]];
            write(disk, &content, sequence.saturating_add(1), order, us, keys)?;
            Ok((content.secret, Origin::Renewed))
        }
    }
}

/// Writes both slots, one after the other. What is used of a slot fits one sector, so a power cut leaves it old or new.
fn write(
    disk: &File,
    content: &Content,
    sequence: u64,
    order: [usize; 2],
    us: &Identity,
    keys: &mut dyn KeySource,
) -> Result<(), StorageError> {
    let label = keys.label();
    for offset in order {
        let slot = vault::seal(content, sequence, us, label, &clock::random()?, |level| keys.derive(level))?;
        disk.write_all_at(&slot, offset as u64)
            .and_then(|()| disk.sync_data())
            .map_err(|source| StorageError::Disk { step: "writing", source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Level;

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
        let (secret, origin) = super::secret(&disk, &us(), &mut Fixed(1)).unwrap();
        assert_eq!(origin, Origin::Created);
        let before = bytes(&disk);
        assert_eq!(super::secret(&disk, &us(), &mut Fixed(1)).unwrap(), (secret, Origin::Opened));
        assert_eq!(bytes(&disk), before);
    }

    #[test]
    fn two_disks_get_two_secrets() {
        let secret = || super::secret(&disk(), &us(), &mut Fixed(1)).unwrap().0;
        assert_ne!(secret(), secret());
    }

    #[test]
    fn a_lost_slot_and_a_new_tcb_version_are_repaired_once() {
        let disk = disk();
        let (secret, _) = super::secret(&disk, &us(), &mut Fixed(1)).unwrap();
        for lost in SLOT_OFFSETS {
            disk.write_all_at(&[0xff; 100], lost as u64).unwrap();
            assert_eq!(
                super::secret(&disk, &us(), &mut Fixed(1)).unwrap(),
                (secret.clone(), Origin::Renewed)
            );
            assert_eq!(super::secret(&disk, &us(), &mut Fixed(1)).unwrap(), (secret.clone(), Origin::Opened));
        }
        let updated = Identity { level: Level { tcb_version: 5, guest_svn: 0 }, ..us() };
        assert_eq!(super::secret(&disk, &updated, &mut Fixed(1)).unwrap(), (secret.clone(), Origin::Renewed));
        assert_eq!(super::secret(&disk, &updated, &mut Fixed(1)).unwrap(), (secret, Origin::Opened));
    }

    #[test]
    fn a_vault_that_does_not_open_is_left_alone() {
        let disk = disk();
        super::secret(&disk, &us(), &mut Fixed(1)).unwrap();
        let before = bytes(&disk);
        let other = Identity { measurement: [9; 48], ..us() };
        let error = super::secret(&disk, &other, &mut Fixed(2)).unwrap_err();
        assert!(error.to_string().starts_with("vault sealed to another guest or machine"), "{error}");
        assert!(super::secret(&disk, &us(), &mut Fixed(2)).is_err());
        assert_eq!(bytes(&disk), before);
    }

    #[test]
    fn a_disk_that_is_too_small_is_an_error() {
        let small = tempfile::tempfile().unwrap();
        small.set_len(4096).unwrap();
        assert!(matches!(
            super::secret(&small, &us(), &mut Fixed(1)),
            Err(StorageError::Disk { step: "reading", .. })
        ));
    }
}
