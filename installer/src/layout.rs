//! The one rule for a host's disk, by the UAPI Discoverable Partitions Specification: boot partition, two slots of the host
//! (root and hash tree), two slots of the guest, configuration, state.
//!
//! A root's partition and its hash tree's have the two halves of the root hash as their identifiers, as the specification
//! says; so a signed command line finds exactly the slot that it was made for. All other identifiers of a built image are
//! fixed ([`identifier`]); installing, or else the first boot, gives each disk its own.

use crate::gpt::{self, ALIGNMENT, Guid, LayoutError, Partition, Table};
use sha2::{Digest, Sha256};
use std::fmt;

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;
/// Boot partitions.
pub const ESP: Guid = Guid::new(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
const ROOT_X86_64: Guid = Guid::new(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709);
const ROOT_X86_64_VERITY: Guid = Guid::new(0x2c7357ed_ebd2_46d9_aec1_23d437ec2bf5);
/// "Generic Linux data": nothing mounts it by itself.
pub const LINUX: Guid = Guid::new(0x0fc63daf_8483_4772_8e79_3d69d8477de4);
/// "Variable data".
const VAR: Guid = Guid::new(0x4d21b016_b534_45c2_a9fb_5c16e091fd2d);

/// Labels of the partitions that no slot has.
pub mod labels {
    /// Boot partition.
    pub const ESP: &str = "esp";
    /// Configuration: [`crate::record`].
    pub const CONFIG: &str = "config";
    /// State: a file system that the host makes.
    pub const STATE: &str = "state";
    /// On the installer's own medium: the release that it installs.
    pub const RELEASE: &str = "redoubt-release";
}

/// The table: label, type, size in MiB. The state is last, so that it grows to the end of a larger disk.
const LAYOUT: &[(&str, Guid, u64)] = &[
    (labels::ESP, ESP, 128),
    ("host-a", ROOT_X86_64, 96),
    ("host-a-verity", ROOT_X86_64_VERITY, 4),
    ("host-b", ROOT_X86_64, 96),
    ("host-b-verity", ROOT_X86_64_VERITY, 4),
    ("guest-a", LINUX, 64),
    ("guest-b", LINUX, 64),
    (labels::CONFIG, LINUX, 16),
    (labels::STATE, VAR, 64),
];

/// One of the two places for a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// `host-a`, `guest-a`.
    A,
    /// `host-b`, `guest-b`.
    B,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Slot::A => "a",
            Slot::B => "b",
        })
    }
}

impl Slot {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }

    /// Label of its root.
    #[must_use]
    pub fn root(self) -> String {
        format!("host-{self}")
    }

    /// Label of its hash tree.
    #[must_use]
    pub fn verity(self) -> String {
        format!("host-{self}-verity")
    }

    /// Label of its guest.
    #[must_use]
    pub fn guest(self) -> String {
        format!("guest-{self}")
    }

    /// The slot whose root or hash tree has this label.
    #[must_use]
    pub fn of_label(label: &str) -> Option<Self> {
        [Slot::A, Slot::B].into_iter().find(|slot| label == slot.root() || label == slot.verity())
    }
}

/// An identifier that is the same in every build.
#[must_use]
pub fn identifier(name: &str) -> Guid {
    let digest = Sha256::new().chain_update("redoubt host image\0").chain_update(name).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    custom(id)
}

/// An identifier of these bytes (RFC 9562: version 8, custom; variant 10), fixed or random.
#[must_use]
pub fn custom(mut id: [u8; 16]) -> Guid {
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    Guid(id)
}

/// Identifiers of the partitions with a root of this root hash and with its hash tree.
#[must_use]
pub fn root_identifiers(root_hash: &[u8; 32]) -> (Guid, Guid) {
    let mut halves = [Guid([0; 16]); 2];
    for (half, bytes) in halves.iter_mut().zip(root_hash.chunks(16)) {
        half.0.copy_from_slice(bytes);
    }
    (halves[0], halves[1])
}

/// Size in bytes of the smallest disk: that of a built image.
#[must_use]
pub fn smallest() -> u64 {
    // The second copy of the table needs a place behind the last partition.
    LAYOUT.iter().map(|(.., mib)| mib * MIB).sum::<u64>() + 2 * ALIGNMENT
}

/// The table of a disk of this size, with a root of this hash in slot A. `id` gives an identifier for each label, and for
/// the disk, which is called `disk`.
#[must_use]
pub fn table(size: u64, root_hash: &[u8; 32], id: &mut dyn FnMut(&str) -> Guid) -> Table {
    let mut start = ALIGNMENT;
    let mut partitions: Vec<Partition> = LAYOUT
        .iter()
        .map(|&(name, kind, mib)| {
            let partition = Partition { kind, id: id(name), name: name.to_owned(), start, size: mib * MIB };
            start += partition.size;
            partition
        })
        .collect();
    grow(&mut partitions, size);
    let mut table = Table { disk: id("disk"), partitions };
    set_root(&mut table, Slot::A, root_hash);
    table
}

/// Lets the last partition end where a disk of this size leaves place for the second copy of the table.
fn grow(partitions: &mut [Partition], size: u64) {
    let end = (size.saturating_sub(gpt::END)) / ALIGNMENT * ALIGNMENT;
    if let Some(last) = partitions.last_mut() {
        last.size = last.size.max(end.saturating_sub(last.start));
    }
}

/// Gives a slot the identifiers of a root.
pub fn set_root(table: &mut Table, slot: Slot, root_hash: &[u8; 32]) {
    let (root, verity) = root_identifiers(root_hash);
    for (name, id) in [(slot.root(), root), (slot.verity(), verity)] {
        if let Some(partition) = table.partitions.iter_mut().find(|partition| partition.name == name) {
            partition.id = id;
        }
    }
}

/// Whether the partitions are those of this rule: labels and types in order, and each slot large enough.
#[must_use]
pub fn is_ours(table: &Table) -> bool {
    let same = |(partition, &(name, kind, mib)): (&Partition, &(&str, Guid, u64))| {
        // The guests' labels change places when only the guest is replaced.
        let named =
            partition.name == name || name.starts_with("guest-") && partition.name.starts_with("guest-");
        named && partition.kind == kind && partition.size >= mib * MIB
    };
    table.partitions.len() == LAYOUT.len()
        && table.partitions.iter().zip(LAYOUT).all(same)
        && LAYOUT.iter().all(|(name, ..)| table.find(name).is_some())
}

/// The table of a disk that was written as it was built, with identifiers of its own and the state up to the disk's end;
/// `None` if it has its own already.
#[must_use]
pub fn personalise(table: &Table, size: u64, id: &mut dyn FnMut(&str) -> Guid) -> Option<Table> {
    let mut own = table.clone();
    for partition in &mut own.partitions {
        if partition.id == identifier(&partition.name) {
            partition.id = id(&partition.name);
        }
    }
    if own.disk == identifier("disk") {
        own.disk = id("disk");
    }
    grow(&mut own.partitions, size);
    (own != *table).then_some(own)
}

/// Start in bytes of the partition with this label on a disk of any size.
#[must_use]
pub fn start_of(label: &str) -> Option<u64> {
    table(smallest(), &[0; 32], &mut identifier).find(label).map(|partition| partition.start)
}

/// Both copies of a table for a disk of this size; see [`gpt::table`].
pub fn encode(table: &Table, size: u64) -> Result<(Vec<u8>, Vec<u8>), LayoutError> {
    gpt::table(table.disk, size, &table.partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_disk_has_fixed_identifiers_and_its_first_boot_gives_it_its_own() {
        let built = table(smallest(), &[0xab; 32], &mut identifier);
        assert!(is_ours(&built));
        assert_eq!(built, table(smallest(), &[0xab; 32], &mut identifier));
        encode(&built, smallest()).unwrap();

        let mut count = 0;
        let mut next = |_: &str| {
            count += 1;
            custom([count; 16])
        };
        let size = smallest() + 5 * MIB + 512;
        let own = personalise(&built, size, &mut next).unwrap();
        assert!(is_ours(&own));
        encode(&own, size).unwrap();
        assert_eq!(own.find("state").unwrap().size, 69 * MIB);
        assert_ne!(own.disk, built.disk);
        for (own, built) in own.partitions.iter().zip(&built.partitions) {
            let root = ["host-a", "host-a-verity"].contains(&built.name.as_str());
            assert_eq!(own.id == built.id, root, "{}", built.name);
        }
        assert_eq!(personalise(&own, size, &mut next), None);
    }

    #[test]
    fn another_table_is_not_ours() {
        let ours = table(smallest(), &[1; 32], &mut identifier);
        let changes: [fn(&mut Table); 4] = [
            |table| drop(table.partitions.pop()),
            |table| table.partitions[1].name = "root".into(),
            |table| table.partitions[0].kind = LINUX,
            |table| table.partitions[5].size = MIB,
        ];
        for change in changes {
            let mut changed = ours.clone();
            change(&mut changed);
            assert!(!is_ours(&changed));
        }
        let mut swapped = ours.clone();
        (swapped.partitions[5].name, swapped.partitions[6].name) = ("guest-b".into(), "guest-a".into());
        assert!(is_ours(&swapped));
        swapped.partitions[5].name = "guest-a".into();
        assert!(!is_ours(&swapped));
    }
}
