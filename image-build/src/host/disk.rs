//! The disk of a host, by the UAPI Discoverable Partitions Specification: boot partition, two slots of the host (root and
//! hash tree), two slots of the guest, configuration, state.
//!
//! A root's partition and its hash tree's have the two halves of the root hash as their identifiers, as the specification
//! says; so a signed command line finds exactly the slot that it was made for. All other identifiers of a built image are
//! fixed; installing gives the disk, the configuration and the state their own.

use super::{
    fat,
    gpt::{self, ALIGNMENT, Guid, Partition},
};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt, path::Path};

const MIB: u64 = 1 << 20;
const ESP: Guid = Guid::new(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
const ROOT_X86_64: Guid = Guid::new(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709);
const ROOT_X86_64_VERITY: Guid = Guid::new(0x2c7357ed_ebd2_46d9_aec1_23d437ec2bf5);
/// "Generic Linux data": nothing mounts it by itself.
const LINUX: Guid = Guid::new(0x0fc63daf_8483_4772_8e79_3d69d8477de4);
/// "Variable data".
const VAR: Guid = Guid::new(0x4d21b016_b534_45c2_a9fb_5c16e091fd2d);

/// Where firmware without a boot entry looks (UEFI specification, 3.5.1.1).
const FALLBACK: &str = "EFI/BOOT/BOOTX64.EFI";

/// What a partition holds when the image is built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Esp,
    Root,
    Verity,
    Guest,
    Empty,
}

/// The table: label, type, size in MiB, content. The state is last, so that it can grow to the end of a larger disk.
const LAYOUT: &[(&str, Guid, u64, Part)] = &[
    ("esp", ESP, 128, Part::Esp),
    ("host-a", ROOT_X86_64, 96, Part::Root),
    ("host-a-verity", ROOT_X86_64_VERITY, 4, Part::Verity),
    ("host-b", ROOT_X86_64, 96, Part::Empty),
    ("host-b-verity", ROOT_X86_64_VERITY, 4, Part::Empty),
    ("guest-a", LINUX, 64, Part::Guest),
    ("guest-b", LINUX, 64, Part::Empty),
    ("config", LINUX, 16, Part::Empty),
    ("state", VAR, 64, Part::Empty),
];

/// What a built disk holds.
pub struct Content<'a> {
    /// The unified kernel image, signed or not.
    pub uki: &'a [u8],
    /// The host's root.
    pub root: &'a [u8],
    /// Its hash area.
    pub verity: &'a [u8],
    /// Its root hash.
    pub root_hash: [u8; 32],
    /// File system with a guest release; the slot stays empty without one.
    pub guest: Option<&'a [u8]>,
}

/// An identifier that is the same in every build.
#[must_use]
pub fn identifier(name: &str) -> Guid {
    let digest = Sha256::new().chain_update("redoubt host image\0").chain_update(name).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    // RFC 9562: version 8 (custom), variant 10.
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

/// Start in bytes of the partition with this label.
#[must_use]
pub fn start_of(label: &str) -> Option<u64> {
    layout(&[0; 32]).0.into_iter().find(|partition| partition.name == label).map(|partition| partition.start)
}

fn layout(root_hash: &[u8; 32]) -> (Vec<Partition>, u64) {
    let (root, verity) = root_identifiers(root_hash);
    let mut start = ALIGNMENT;
    let partitions = LAYOUT
        .iter()
        .map(|&(name, kind, mib, part)| {
            let id = match part {
                Part::Root => root,
                Part::Verity => verity,
                _ => identifier(name),
            };
            let partition = Partition { kind, id, name: name.to_owned(), start, size: mib * MIB };
            start += mib * MIB;
            partition
        })
        .collect();
    // The second copy of the table needs a place behind the last partition.
    (partitions, start + ALIGNMENT)
}

/// Writes the disk to a file, which is sparse: what no partition holds takes no space.
pub fn write(path: &Path, content: &Content) -> Result<()> {
    let (partitions, size) = layout(&content.root_hash);
    let (start, end) = gpt::table(identifier("disk"), size, &partitions)?;
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(size)?;
    let put = |bytes: &[u8], at: u64| -> Result<()> {
        for (index, chunk) in bytes.chunks(MIB as usize).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                let place = at + index as u64 * MIB;
                file.write_all_at(chunk, place)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    };
    put(&start, 0)?;
    put(&end, size - end.len() as u64)?;
    for (partition, (.., part)) in partitions.iter().zip(LAYOUT) {
        let esp;
        let bytes = match part {
            Part::Esp => {
                let files = BTreeMap::from([(FALLBACK, content.uki)]);
                esp = fat::image(partition.size as usize, "REDOUBT", 0x5245_444f, &files)?;
                esp.as_slice()
            }
            Part::Root => content.root,
            Part::Verity => content.verity,
            Part::Guest => content.guest.unwrap_or(&[]),
            Part::Empty => &[],
        };
        if bytes.len() as u64 > partition.size {
            bail!(
                "{} bytes do not fit into the partition {} of {}",
                bytes.len(),
                partition.name,
                partition.size
            );
        }
        put(bytes, partition.start)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_holds_each_part_at_its_place_and_the_same_bytes_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let (root, verity, guest) = (vec![1; 8192], vec![2; 4096], vec![3; 4096]);
        let content =
            Content { uki: b"MZ", root: &root, verity: &verity, root_hash: [0xab; 32], guest: Some(&guest) };
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        write(&one, &content).unwrap();
        write(&two, &content).unwrap();
        let disk = std::fs::read(&one).unwrap();
        assert!(disk == std::fs::read(&two).unwrap());
        let at = |label| start_of(label).unwrap() as usize;
        assert!(disk[at("host-a")..].starts_with(&root));
        assert!(disk[at("host-a-verity")..].starts_with(&verity));
        assert!(disk[at("guest-a")..].starts_with(&guest));
        assert_eq!(disk[at("host-b")..at("host-b") + 8192], vec![0; 8192]);
        // The entry of host-a: its type, then the first half of the root hash.
        let entry = [ROOT_X86_64.stored(), [0xab; 16]].concat();
        assert_eq!(disk[1024 + 128..][..32], entry);

        let large = vec![0; 65 << 20];
        let error = write(&one, &Content { guest: Some(&large), ..content }).unwrap_err().to_string();
        assert!(error.contains("guest-a"), "{error}");
    }
}
