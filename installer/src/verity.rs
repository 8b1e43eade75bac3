//! dm-verity hash trees (Linux Documentation/admin-guide/device-mapper/verity.rst; the superblock is cryptsetup's).
//!
//! The hash area is one superblock of 4096 bytes, then the levels of the tree from its root downwards. Hash type 1: a
//! digest is SHA-256 of the salt and then the block. The identifier in the superblock is the second half of the root hash,
//! so all of the hash area follows from the data and the salt.

use sha2::{Digest, Sha256};

/// Size in bytes of data blocks and hash blocks.
pub const BLOCK: usize = 4096;
/// Digests in one hash block.
const FAN_OUT: usize = BLOCK / 32;

/// A data image cannot have a tree.
#[derive(Debug, thiserror::Error)]
#[error(
    "an image of {0} bytes cannot be verified by blocks: it must be two or more whole blocks of {BLOCK} bytes"
)]
pub struct SizeError(usize);

/// A hash tree over one data image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// What is hashed before each block.
    pub salt: [u8; 32],
    /// Number of data blocks.
    pub blocks: u64,
    /// Digest of the tree's topmost block: stands for all of the data.
    pub root: [u8; 32],
    /// Content of the hash device: superblock and tree.
    pub hash_area: Vec<u8>,
}

impl Tree {
    /// The tree over `data`.
    pub fn new(data: &[u8], salt: [u8; 32]) -> Result<Self, SizeError> {
        let blocks = data.len() / BLOCK;
        if !data.len().is_multiple_of(BLOCK) || blocks < 2 {
            return Err(SizeError(data.len()));
        }
        let mut levels = vec![level(&salt, data)];
        while let Some(below) = levels.last().filter(|level| level.len() > BLOCK) {
            levels.push(level(&salt, below));
        }
        let root = levels.last().map_or([0; 32], |top| digest(&salt, top));
        let mut hash_area = superblock(&salt, &root[16..], blocks as u64);
        for level in levels.iter().rev() {
            hash_area.extend_from_slice(level);
        }
        Ok(Self { salt, blocks: blocks as u64, root, hash_area })
    }

    /// Root hash of this data with this hash area; `None` unless the one follows from the other and the salt in it.
    #[must_use]
    pub fn again(data: &[u8], hash_area: &[u8]) -> Option<[u8; 32]> {
        Self::salted_as(data, hash_area).filter(|tree| tree.hash_area == hash_area).map(|tree| tree.root)
    }

    /// The tree of this data with the salt of another; `None` where there is no salt, or no tree of such data.
    #[must_use]
    pub fn salted_as(data: &[u8], hash_area: &[u8]) -> Option<Self> {
        let salt = hash_area.get(88..120)?.try_into().ok()?;
        Self::new(data, salt).ok()
    }

    /// The target for the kernel's `dm-mod.create=`: these two devices become one that is verified. Damage found at any
    /// time stops the machine.
    pub fn table(&self, data: &str, hashes: &str) -> String {
        format!(
            "0 {sectors} verity 1 {data} {hashes} {BLOCK} {BLOCK} {blocks} 1 sha256 {root} {salt} 1 panic_on_corruption",
            sectors = self.blocks * (BLOCK as u64 / 512),
            blocks = self.blocks,
            root = hex::encode(self.root),
            salt = hex::encode(self.salt),
        )
    }
}

fn digest(salt: &[u8], block: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(block).finalize().into()
}

/// The digests of all blocks, filled with zeros to whole blocks.
fn level(salt: &[u8], below: &[u8]) -> Vec<u8> {
    let mut level: Vec<u8> = below.chunks(BLOCK).flat_map(|block| digest(salt, block)).collect();
    level.resize(level.len().next_multiple_of(FAN_OUT * 32), 0);
    level
}

/// The first block of the hash area; `host-os` holds the one on the disk against what the command line says.
fn superblock(salt: &[u8], uuid: &[u8], blocks: u64) -> Vec<u8> {
    let block_size = (BLOCK as u32).to_le_bytes();
    let mut out = b"verity\0\0".to_vec();
    out.extend(1_u32.to_le_bytes()); // version
    out.extend(1_u32.to_le_bytes()); // hash type
    out.extend(uuid);
    out.extend(b"sha256");
    out.resize(64, 0);
    out.extend(block_size);
    out.extend(block_size);
    out.extend(blocks.to_le_bytes());
    out.extend((salt.len() as u16).to_le_bytes());
    out.extend([0; 6]);
    out.extend(salt);
    out.resize(BLOCK, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::Guid;
    use std::process::Command;

    fn tree(blocks: usize) -> (Vec<u8>, Tree) {
        let data: Vec<u8> = (0..blocks * BLOCK).map(|i| (i / 7 + i / BLOCK) as u8).collect();
        let tree = Tree::new(&data, [0x5a; 32]).unwrap();
        (data, tree)
    }

    #[test]
    fn veritysetup_makes_the_same_tree() {
        let Some(veritysetup) = crate::tests::program("veritysetup") else { return };
        let dir = tempfile::tempdir().unwrap();
        // One level, exactly one level, two levels, two levels with a full block, three levels.
        for blocks in [2, 128, 129, 256, 16_385] {
            let (data, tree) = tree(blocks);
            let uuid = tree.root[16..].try_into().unwrap();
            let (image, hashes) = (dir.path().join("data"), dir.path().join("hashes"));
            std::fs::write(&image, &data).unwrap();
            let _ = std::fs::remove_file(&hashes);
            let output = Command::new(&veritysetup)
                .args(["format", "--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096"])
                .arg(format!("--salt={}", hex::encode(tree.salt)))
                .arg(format!("--uuid={}", Guid(uuid)))
                .args([&image, &hashes])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains(&hex::encode(tree.root)), "{blocks} blocks: {text}");
            assert!(std::fs::read(&hashes).unwrap() == tree.hash_area, "{blocks} blocks");
        }
    }

    #[test]
    fn every_block_and_the_salt_decide_the_root() {
        let (data, tree) = tree(130);
        for block in 0..130 {
            let mut changed = data.clone();
            changed[block * BLOCK + 99] ^= 1;
            assert_ne!(Tree::new(&changed, tree.salt).unwrap().root, tree.root);
        }
        assert_ne!(Tree::new(&data, [0; 32]).unwrap().root, tree.root);
        assert_eq!(Tree::again(&data, &tree.hash_area), Some(tree.root));
        for at in [0, 88, BLOCK, tree.hash_area.len() - 1] {
            let mut changed = tree.hash_area.clone();
            changed[at] ^= 1;
            assert_eq!(Tree::again(&data, &changed), None, "{at}");
        }
        assert_eq!(Tree::again(&data, &tree.hash_area[..100]), None);
        for broken in [0, 1, BLOCK, BLOCK * 2 - 1] {
            Tree::new(&data[..broken], tree.salt).unwrap_err();
        }
    }
}
