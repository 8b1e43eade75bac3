//! Who gets the key under which the node's secret is sealed: the vault and the disk before simulated chips, which
//! answer as a real one does.
#![cfg(feature = "virtual")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use attestation::Measurement;
use attestation::report::{GuestPolicy, TcbVersion};
use guest_os::keys::{KeyError, KeySource, Level, Simulated};
use guest_os::storage::{Origin, StorageError, Vault};
use guest_os::vault::{Identity, Key, REGION, VaultError};
use proptest::prelude::*;
use simulated_psp::chip::{Chip, IdBlock, LaunchContext};
use simulated_psp::guest::{Client, ClientError};
use simulated_psp::protocol::Status;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

const TCB: TcbVersion = TcbVersion { fmc: None, bootloader: 10, tee: 0, snp: 25, microcode: 84 };

/// A guest as it was launched on a chip, with everything that a derived key may depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Guest {
    chip: &'static str,
    tcb: TcbVersion,
    context: LaunchContext,
}

fn guest() -> Guest {
    let mut context = LaunchContext::new(Measurement([1; 48]), [2; 32]);
    context.id_block =
        Some(IdBlock { family_id: [3; 16], image_id: [4; 16], guest_svn: 5, id_key_digest: [6; 48] });
    Guest { chip: "first", tcb: TCB, context }
}

impl Guest {
    fn changed(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut other = self.clone();
        change(&mut other);
        other
    }

    fn block(&mut self) -> &mut IdBlock {
        self.context.id_block.as_mut().unwrap()
    }

    /// What it knows of itself and its way to its processor.
    fn start(&self, chips: &Path) -> (Identity, impl KeySource + use<>) {
        let chip = Chip::with_firmware(&chips.join(self.chip), self.tcb).unwrap();
        let psp = chip.launch(self.context.clone()).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            while let Ok(request) = host_guest::read_frame(&mut theirs) {
                host_guest::write_frame(&mut theirs, &psp.handle(&request)).unwrap();
            }
        });
        let level = Level {
            tcb_version: u64::from_le_bytes(self.tcb.encode()),
            guest_svn: self.context.id_block.as_ref().map_or(0, |block| block.guest_svn),
        };
        let us = Identity { measurement: self.context.measurement.0, chip_id: chip.chip_id(), level };
        (us, Simulated(Arc::new(Mutex::new(Client::new(ours)))))
    }

    fn secret(&self, chips: &Path, disk: &File) -> Result<(Key, Origin), StorageError> {
        let (us, keys) = self.start(chips);
        open(disk, us, keys)
    }

    /// As [`Guest::secret`], for a guest that lies about who it is where the vault would tell it to stop.
    fn secret_as(&self, other: &Self, chips: &Path, disk: &File) -> Result<(Key, Origin), StorageError> {
        let (us, _) = other.start(chips);
        let (_, keys) = self.start(chips);
        open(disk, us, keys)
    }
}

fn open(disk: &File, us: Identity, keys: impl KeySource + 'static) -> Result<(Key, Origin), StorageError> {
    let (vault, origin) = Vault::open(disk.try_clone().unwrap(), us, Box::new(keys), release::Purpose::Node)?;
    Ok((vault.content().secret.clone(), origin))
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

/// A disk with the secret of a guest.
struct World {
    chips: tempfile::TempDir,
    disk: File,
    secret: Key,
}

fn world() -> World {
    let chips = tempfile::tempdir().unwrap();
    let disk = disk();
    let (secret, origin) = guest().secret(chips.path(), &disk).unwrap();
    assert_eq!(origin, Origin::Created);
    World { chips, disk, secret }
}

type Change = fn(&mut Guest);

/// Everything that makes another guest of it.
const OTHERS: &[(&str, Change)] = &[
    ("another measurement", |g| g.context.measurement.0[0] ^= 1),
    ("another policy", |g| g.context.policy.0 ^= GuestPolicy::SINGLE_SOCKET),
    ("a debug policy", |g| g.context.policy.0 |= GuestPolicy::DEBUG),
    ("another chip", |g| g.chip = "second"),
    ("another image id", |g| g.block().image_id[0] ^= 1),
    ("another family id", |g| g.block().family_id[0] ^= 1),
    ("another signer of the ID block", |g| g.block().id_key_digest[0] ^= 1),
    ("no ID block", |g| g.context.id_block = None),
];

#[test]
fn nobody_else_gets_the_key_and_the_vault_stays() {
    let World { chips, disk, secret } = world();
    let before = bytes(&disk);
    for (what, change) in OTHERS {
        let other = guest().changed(change);
        assert!(other.secret(chips.path(), &disk).is_err(), "{what}");
        // Not even one that claims to be the right guest: the processor knows better.
        let error = other.secret_as(&guest(), chips.path(), &disk).unwrap_err();
        let named = match &error {
            StorageError::Vault(VaultError::Damaged) => true,
            StorageError::Vault(VaultError::Key(KeyError::Simulated(ClientError::Refused {
                status,
                ..
            }))) => {
                // Without an ID block there is no SVN to ask for.
                *what == "no ID block" && *status == Status::InvalidParameter
            }
            _ => false,
        };
        assert!(named, "{what}: {error:?}");
        assert!(bytes(&disk) == before, "{what} changed the vault");
    }
    assert_eq!(guest().secret(chips.path(), &disk).unwrap(), (secret, Origin::Opened));
}

#[test]
fn what_the_host_may_change_does_not_lose_the_secret() {
    let World { chips, disk, secret } = world();
    let other = guest().changed(|g| g.context.host_data = [9; 32]);
    assert_eq!(other.secret(chips.path(), &disk).unwrap(), (secret, Origin::Opened));
}

/// The level that was used stands beside what is sealed, so a newer one can still derive the older key; then the vault
/// is sealed anew, and the older level is refused by the processor.
#[test]
fn newer_firmware_and_svn_open_and_the_older_ones_are_then_refused() {
    let newer: [(&str, Change); 5] = [
        ("bootloader", |g| g.tcb.bootloader += 1),
        ("TEE", |g| g.tcb.tee += 1),
        ("SNP firmware", |g| g.tcb.snp += 1),
        ("microcode", |g| g.tcb.microcode += 1),
        ("guest SVN", |g| g.block().guest_svn += 1),
    ];
    for (what, change) in newer {
        let World { chips, disk, secret } = world();
        let updated = guest().changed(change);
        assert_eq!(updated.secret(chips.path(), &disk).unwrap(), (secret.clone(), Origin::Renewed), "{what}");
        assert_eq!(updated.secret(chips.path(), &disk).unwrap(), (secret, Origin::Opened), "{what}");
        let before = bytes(&disk);
        let error = guest().secret(chips.path(), &disk).unwrap_err();
        let refused = matches!(
            &error,
            StorageError::Vault(VaultError::Key(KeyError::Simulated(ClientError::Refused {
                status: Status::InvalidParameter,
                ..
            })))
        );
        assert!(refused, "{what}: {error:?}");
        assert!(bytes(&disk) == before, "{what}");
    }
}

/// A host that raises the level in the clear part of the vault gets a refusal, and one that lowers it another key.
#[test]
fn the_level_in_the_vault_cannot_be_changed() {
    const GUEST_SVN: u64 = 12;
    const MICROCODE: u64 = 24 + 7;
    for (at, up) in [(GUEST_SVN, 1), (GUEST_SVN, -1), (MICROCODE, 1), (MICROCODE, -1)] {
        let World { chips, disk, .. } = world();
        for slot in [0, REGION as u64 / 2] {
            let mut byte = [0];
            disk.read_exact_at(&mut byte, slot + at).unwrap();
            disk.write_all_at(&[byte[0].wrapping_add_signed(up)], slot + at).unwrap();
        }
        let error = guest().secret(chips.path(), &disk).unwrap_err();
        let refused = matches!(
            error,
            StorageError::Vault(VaultError::Key(KeyError::Simulated(ClientError::Refused { .. })))
        );
        let damaged = matches!(error, StorageError::Vault(VaultError::Damaged));
        assert!(if up > 0 { refused } else { damaged }, "{at} {up}: {error:?}");
    }
}

fn any_guest() -> impl Strategy<Value = Guest> {
    let bit = || 0..2_u8;
    let small = (bit(), bit(), bit(), bit(), bit(), bit(), bit());
    (small, 4..7_u32, 83..86_u8).prop_map(
        |((chip, measurement, policy, family, image, signer, host), svn, microcode)| {
            guest().changed(|g| {
                g.chip = if chip == 0 { "first" } else { "second" };
                g.context.measurement.0[0] = measurement;
                g.context.policy.0 |= u64::from(policy) * GuestPolicy::SINGLE_SOCKET;
                g.context.host_data[0] = host;
                *g.block() = IdBlock {
                    family_id: [family; 16],
                    image_id: [image; 16],
                    guest_svn: svn,
                    id_key_digest: [signer; 48],
                };
                g.tcb.microcode = microcode;
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// One opens what another one sealed if and only if they differ in nothing but what may differ: the host's data,
    /// and a level that is not lower.
    #[test]
    fn a_vault_opens_for_the_same_guest_at_no_lower_level(sealer in any_guest(), opener in any_guest()) {
        let chips = tempfile::tempdir().unwrap();
        let disk = disk();
        let (secret, _) = sealer.secret(chips.path(), &disk).unwrap();
        let (mut as_sealer, mut sealer) = (opener.clone(), sealer);
        as_sealer.tcb = sealer.tcb;
        as_sealer.block().guest_svn = sealer.block().guest_svn;
        as_sealer.context.host_data = sealer.context.host_data;
        let mut opener = opener;
        let not_lower =
            opener.tcb.microcode >= sealer.tcb.microcode && opener.block().guest_svn >= sealer.block().guest_svn;
        match opener.secret(chips.path(), &disk) {
            Ok((opened, _)) => {
                prop_assert!(as_sealer == sealer && not_lower);
                prop_assert_eq!(opened, secret);
            }
            Err(_) => prop_assert!(as_sealer != sealer || !not_lower),
        }
    }
}
