//! Releases and disks of tests.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests; not every test needs all")]

use installer::{
    archive::{Files, MANIFEST},
    config::Operator,
    disk::Disk,
    layout::{self, MIB},
    parts::Parts,
    pe,
    run::Medium,
};
use release::{Digest, Envelope, File, Manifest, Profile, SigningKey, development};
use std::{collections::BTreeMap, io};

const GOLDEN: &[u8] = include_bytes!("../../../release/tests/golden/manifest.json");

/// What a test release is made of.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) version: &'static str,
    pub(crate) epoch: u64,
    pub(crate) profile: Profile,
    /// Decides the host's images.
    pub(crate) host: u8,
    /// Decides the guest's.
    pub(crate) guest: u8,
}

impl Sample {
    pub(crate) fn new(version: &'static str, host: u8, guest: u8) -> Self {
        Self { version, epoch: 1, profile: Profile::Virtual, host, guest }
    }

    pub(crate) fn root_hash(&self) -> [u8; 32] {
        // Halves that differ: they are identifiers of two partitions.
        let mut hash = [self.host; 32];
        hash[31] ^= 0xff;
        hash
    }

    /// The files and the manifest that describes them.
    pub(crate) fn files(&self) -> (Files, Manifest) {
        let mut manifest = Envelope::from_bytes(GOLDEN).unwrap().manifest().clone();
        manifest.version = self.version.to_owned();
        manifest.security_epoch = self.epoch;
        manifest.profile = self.profile;
        let line = format!(
            "quiet dm-mod.create=\"... sha256 {} {} 1\"",
            hex::encode(self.root_hash()),
            "00".repeat(32)
        );
        let uki = pe::unified_kernel_image(
            &pe::samples::stub(),
            &[(".cmdline", line.as_bytes()), (".linux", &vec![self.host; 20_000])],
        )
        .unwrap();
        let mut files = Files::new();
        let mut describe = |path: &str, content: Vec<u8>| {
            let file = File::describe(path, &content);
            files.insert(path.to_owned(), content);
            file
        };
        manifest.guest.files.kernel = describe("vmlinuz", vec![self.guest; 3000]);
        manifest.guest.files.initrd = describe("initrd.zst", vec![self.guest; 7000]);
        manifest.guest.files.firmware = describe("firmware.bin", vec![self.guest; 500]);
        let host = manifest.host.as_mut().unwrap();
        host.uki_authenticode = Digest(pe::authenticode_hash(&uki).unwrap());
        host.uki = describe("host.efi", uki);
        // More than one chunk, so that a cut can fall between two.
        host.root = describe("host-root.erofs", vec![self.host; (MIB + 9000) as usize]);
        host.root_hash_tree = describe("host-root.verity", vec![self.host; 5000]);
        host.verity_root_hash = Digest(self.root_hash());
        files.insert("host.efi.p7s".into(), b"signature".to_vec());
        (files, manifest)
    }

    /// The files with a manifest signed by these keys.
    pub(crate) fn signed_by(&self, keys: &[SigningKey]) -> Files {
        let (mut files, manifest) = self.files();
        let mut envelope = Envelope::new(manifest).unwrap();
        for key in keys {
            release::sign(&mut envelope, key).unwrap();
        }
        files.insert(MANIFEST.into(), envelope.to_bytes());
        files
    }

    pub(crate) fn parts(&self) -> Parts {
        let files = self.signed_by(&development::signing_keys().unwrap()[..2]);
        Parts::of(files, &development::root().unwrap(), self.profile).unwrap()
    }
}

pub(crate) fn operator() -> Operator {
    Operator::typed(&"ab".repeat(32)).checked().unwrap()
}

pub(crate) fn disk() -> Disk {
    Disk {
        name: "nvme0n1".into(),
        model: "Test".into(),
        serial: "S1".into(),
        size: layout::smallest() + 3 * MIB,
        block: 512,
        removable: false,
        used_by: None,
        is_medium: false,
    }
}

/// Random numbers that are the same in each run.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes());
        }
        bytes
    }
}

const PAGE: usize = 1 << 16;
type Pages = BTreeMap<u64, Box<[u8]>>;

/// A disk in memory that can lose power: what was written since the last flush is kept sector by sector, or not.
#[derive(Clone)]
pub(crate) struct Memory {
    size: u64,
    now: Pages,
    durable: Pages,
    pending: Vec<(u64, Vec<u8>)>,
    /// Writes and flushes until the power goes; none for never.
    pub(crate) left: Option<u64>,
    /// Writes and flushes so far.
    pub(crate) events: u64,
}

fn put(pages: &mut Pages, at: u64, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let (page, offset) = ((at + done as u64) / PAGE as u64, ((at + done as u64) % PAGE as u64) as usize);
        let length = (PAGE - offset).min(bytes.len() - done);
        let page = pages.entry(page).or_insert_with(|| vec![0; PAGE].into());
        page[offset..offset + length].copy_from_slice(&bytes[done..done + length]);
        done += length;
    }
}

fn get(pages: &Pages, at: u64, bytes: &mut [u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let (page, offset) = ((at + done as u64) / PAGE as u64, ((at + done as u64) % PAGE as u64) as usize);
        let length = (PAGE - offset).min(bytes.len() - done);
        match pages.get(&page) {
            Some(page) => bytes[done..done + length].copy_from_slice(&page[offset..offset + length]),
            None => bytes[done..done + length].fill(0),
        }
        done += length;
    }
}

impl Memory {
    pub(crate) fn new(size: u64) -> Self {
        let (now, durable, pending) = (Pages::new(), Pages::new(), Vec::new());
        Self { size, now, durable, pending, left: None, events: 0 }
    }

    fn event(&mut self) -> io::Result<()> {
        self.events += 1;
        match &mut self.left {
            Some(0) => Err(io::Error::other("power cut")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The disk when power comes back: of each sector written since the last flush the old or the new content.
    pub(crate) fn after_power_cut(&self, random: &mut Random) -> Self {
        let mut pages = self.durable.clone();
        // None, all, or some of it.
        let how = random.next() % 4;
        for (at, bytes) in &self.pending {
            for (index, sector) in bytes.chunks(512).enumerate() {
                if how == 1 || how > 1 && random.next().is_multiple_of(2) {
                    put(&mut pages, at + 512 * index as u64, sector);
                }
            }
        }
        let (now, durable) = (pages.clone(), pages);
        Self { size: self.size, now, durable, pending: Vec::new(), left: None, events: 0 }
    }

    /// Flips one bit, for damage.
    pub(crate) fn flip(&mut self, at: u64) {
        let mut byte = [0];
        get(&self.now, at, &mut byte);
        byte[0] ^= 1;
        put(&mut self.now, at, &byte);
        put(&mut self.durable, at, &byte);
    }
}

impl Medium for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        assert!(at + bytes.len() as u64 <= self.size, "read outside the disk");
        get(&self.now, at, bytes);
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(at + bytes.len() as u64 <= self.size, "write outside the disk");
        self.pending.push((at, bytes.to_vec()));
        self.event()?;
        put(&mut self.now, at, bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.event()?;
        for (at, bytes) in std::mem::take(&mut self.pending) {
            put(&mut self.durable, at, &bytes);
        }
        Ok(())
    }
}
