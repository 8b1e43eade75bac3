//! The root against what the signed command line says of it.
//!
//! The kernel takes all parameters of the hash tree from the command line and never reads the superblock before the tree;
//! other tools would believe it. So it is compared here: all of it follows from the command line.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Size in bytes of data blocks and hash blocks.
const BLOCK: usize = 4096;
/// The verified device, and what it is made of.
const ROOT: &str = "/dev/dm-0";
const PARTS: &str = "/sys/block/dm-0/slaves";

/// The root is not what the command line says, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerityError {
    /// Wrong superblock.
    #[error(
        "the superblock of the root's hash tree on {device} was changed: byte {at} is {found:#04x} and must be {expected:#04x}. \
         The disk fails or was tampered with; flash the host anew"
    )]
    Superblock { device: String, at: usize, expected: u8, found: u8 },
    /// No such partition.
    #[error("the root has no partition with a hash tree below it ({0}); the kernel did not set up dm-verity")]
    NoTree(String),
    /// An error of the disk. Damaged blocks never get here: the kernel stops at the first.
    #[error("cannot read {path} at block {block}: {source}; the disk fails, replace it")]
    Read { path: String, block: u64, source: io::Error },
    /// Shorter or longer than signed.
    #[error("the root has {found} blocks, signed are {expected}")]
    Length { expected: u64, found: u64 },
}

/// What the command line says of the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    /// Root hash, hexadecimal.
    pub(super) root_hash: String,
    blocks: u64,
    superblock: Vec<u8>,
}

impl Expected {
    /// From the table of the device (Linux Documentation/admin-guide/device-mapper/verity.rst).
    pub(super) fn parse(table: &str) -> Option<Self> {
        let fields: Vec<&str> = table.split(' ').collect();
        let [
            "0",
            sectors,
            "verity",
            "1",
            _,
            _,
            "4096",
            "4096",
            blocks,
            "1",
            "sha256",
            root_hash,
            salt,
            "1",
            "panic_on_corruption",
        ] = fields[..]
        else {
            return None;
        };
        let blocks: u64 = blocks.parse().ok()?;
        if sectors.parse().ok() != blocks.checked_mul(8) {
            return None;
        }
        let (root, salt) = (hex::decode(root_hash).ok()?, hex::decode(salt).ok()?);
        if root.len() != 32 || salt.len() != 32 {
            return None;
        }
        // The superblock of cryptsetup; its identifier is the second half of the root hash.
        let mut superblock = b"verity\0\0\x01\0\0\0\x01\0\0\0".to_vec();
        superblock.extend(&root[16..]);
        superblock.extend(b"sha256");
        superblock.resize(64, 0);
        superblock.extend((BLOCK as u32).to_le_bytes());
        superblock.extend((BLOCK as u32).to_le_bytes());
        superblock.extend(blocks.to_le_bytes());
        superblock.extend(32_u16.to_le_bytes());
        superblock.resize(88, 0);
        superblock.extend(salt);
        superblock.resize(BLOCK, 0);
        Some(Self { root_hash: root_hash.to_owned(), blocks, superblock })
    }

    /// Holds the first block of the hash area against what it must be.
    fn compare(&self, device: &str, found: &[u8]) -> Result<(), VerityError> {
        match self.superblock.iter().zip(found).position(|(expected, found)| expected != found) {
            None => Ok(()),
            Some(at) => Err(VerityError::Superblock {
                device: device.to_owned(),
                at,
                expected: self.superblock[at],
                found: found[at],
            }),
        }
    }
}

fn failed(path: &str, block: u64) -> impl FnOnce(io::Error) -> VerityError {
    let path = path.to_owned();
    move |source| VerityError::Read { path, block, source }
}

/// Compares the superblock of the hash tree.
pub(super) fn check_superblock(expected: &Expected) -> Result<(), VerityError> {
    let device = hash_partition().map_err(|error| VerityError::NoTree(error.to_string()))?;
    let name = device.display().to_string();
    let mut superblock = [0; BLOCK];
    File::open(&device).and_then(|mut file| file.read_exact(&mut superblock)).map_err(failed(&name, 0))?;
    expected.compare(&name, &superblock)
}

/// Reads every block of the root; returns how many there are.
pub(super) fn read_all(expected: &Expected) -> Result<u64, VerityError> {
    let mut root = File::open(ROOT).map_err(failed(ROOT, 0))?;
    let mut buffer = vec![0; 256 * BLOCK];
    let mut bytes = 0;
    loop {
        match root.read(&mut buffer).map_err(failed(ROOT, bytes / BLOCK as u64))? {
            0 => break,
            read => bytes += read as u64,
        }
    }
    let found = bytes / BLOCK as u64;
    if found != expected.blocks {
        return Err(VerityError::Length { expected: expected.blocks, found });
    }
    Ok(found)
}

/// Of the two partitions below the root, the one whose label says that it holds the hash tree.
fn hash_partition() -> io::Result<PathBuf> {
    let found = parts()?.into_iter().find(|(_, label)| label.ends_with("-verity"));
    let absent = || io::Error::new(io::ErrorKind::NotFound, format!("no partition in {PARTS}"));
    found.map(|(name, _)| Path::new("/dev").join(name)).ok_or_else(absent)
}

/// The partitions below the root: the kernel's name and the label.
pub(crate) fn parts() -> io::Result<Vec<(String, String)>> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(PARTS)? {
        let entry = entry?;
        if let Some(label) = label(&entry.path()) {
            parts.push((entry.file_name().to_string_lossy().into_owned(), label));
        }
    }
    Ok(parts)
}

/// Label of a partition, by its folder in sysfs.
fn label(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join("uevent")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("PARTNAME=")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        let (root, salt) = ("ab".repeat(32), "cd".repeat(32));
        let table = format!("0 80 verity 1 a b 4096 4096 10 1 sha256 {root} {salt} 1 panic_on_corruption");
        Expected::parse(&table).unwrap()
    }

    /// Made by `veritysetup format --salt=cdcd... --uuid=abababab-...` (cryptsetup 2.6.1) over ten blocks.
    #[test]
    fn the_superblock_is_cryptsetups() {
        let head = "7665726974790000 01000000 01000000 abababababababababababababababab \
                    7368613235360000000000000000000000000000000000000000000000000000 \
                    00100000 00100000 0a00000000000000 2000 000000000000";
        let mut superblock = hex::decode(head.replace(' ', "")).unwrap();
        superblock.extend([0xcd; 32]);
        superblock.resize(BLOCK, 0);
        assert_eq!(expected().superblock, superblock);
    }

    #[test]
    fn every_flipped_bit_of_the_superblock_is_found() {
        let expected = expected();
        expected.compare("/dev/vda3", &expected.superblock).unwrap();
        for bit in 0..BLOCK * 8 {
            let mut changed = expected.superblock.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let error = expected.compare("/dev/vda3", &changed).unwrap_err();
            assert!(matches!(&error, VerityError::Superblock { at, .. } if *at == bit / 8), "{error}");
        }
    }
}
