//! A writer for FAT32 file systems (Microsoft "FAT: General Overview of On-Disk Format", 1.03): short names, one fixed
//! time, no free choices, so the same files give the same bytes.

use std::collections::BTreeMap;

const SECTOR: usize = 512;
/// Sectors per cluster: 1, so that a file system of 33 MiB and more has the 65525 clusters that make it FAT32.
const CLUSTER: usize = SECTOR;
const RESERVED: usize = 32;
const FATS: usize = 2;
/// Clusters are numbered from here.
const FIRST_CLUSTER: u32 = 2;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
/// 2026-01-01, the day that all outputs carry: year since 1980, month, day.
const DATE: u16 = (2026 - 1980) << 9 | 1 << 5 | 1;
const DIRECTORY: u8 = 0x10;
const FILE: u8 = 0x20;
const LABEL: u8 = 0x08;

/// A file system cannot be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatError {
    /// The size does not suit the format.
    #[error("{0} bytes are no size for a FAT32 file system of ours: take whole MiB, from 34 to 2047")]
    Size(usize),
    /// The files are larger than the file system.
    #[error("the files do not fit into the file system; make its partition larger")]
    Full,
    /// The name is not a short name.
    #[error("'{0}' is no upper-case name of eight and three characters")]
    Name(String),
}

#[derive(Default)]
struct Folder<'a> {
    folders: BTreeMap<&'a str, Folder<'a>>,
    /// Content, and the first cluster if it is not free.
    files: BTreeMap<&'a str, (&'a [u8], Option<u32>)>,
}

/// A file system of this many bytes with these files, by their path (`EFI/BOOT/BOOTX64.EFI`); folders follow from them.
///
/// What has no place of its own lies one after the other, folders first. A file named in `places` begins at that cluster,
/// which must be free.
pub fn image(
    size: usize,
    label: &str,
    id: u32,
    files: &BTreeMap<&str, &[u8]>,
    places: &BTreeMap<&str, u32>,
) -> Result<Vec<u8>, FatError> {
    let Geometry { sectors, fat_sectors, data } = Geometry::of(size)?;
    let mut root = Folder::default();
    for (path, content) in files {
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = folders.split('/').filter(|part| !part.is_empty());
        let folder = folder.fold(&mut root, |at, part| at.folders.entry(part).or_default());
        folder.files.insert(name, (content, places.get(path).copied()));
    }
    let mut writer = Writer {
        fat: vec![0x0fff_fff8, END_OF_CHAIN],
        clusters: Vec::new(),
        next: FIRST_CLUSTER,
        limit: sectors - data,
    };
    // The root folder comes first: cluster 2.
    let label = short_name(label)?;
    writer.folder(&root, None, Some(label))?;

    let mut image = vec![0; size];
    let boot = boot_sector(sectors as u32, fat_sectors as u32, id, &label);
    let used = writer.fat.iter().filter(|entry| **entry != 0).count() - FIRST_CLUSTER as usize;
    for at in [0, 6] {
        image[at * SECTOR..][..SECTOR].copy_from_slice(&boot);
        let info = information((writer.limit - used) as u32, writer.next);
        image[(at + 1) * SECTOR..][..SECTOR].copy_from_slice(&info);
    }
    let fat: Vec<u8> = writer.fat.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    for copy in 0..FATS {
        image[(RESERVED + copy * fat_sectors) * SECTOR..][..fat.len()].copy_from_slice(&fat);
    }
    image[data * SECTOR..][..writer.clusters.len()].copy_from_slice(&writer.clusters);
    Ok(image)
}

/// Where the parts of a file system of this size are, in sectors.
struct Geometry {
    sectors: usize,
    /// Of one copy.
    fat_sectors: usize,
    /// First sector of cluster 2.
    data: usize,
}

impl Geometry {
    fn of(size: usize) -> Result<Self, FatError> {
        if !size.is_multiple_of(1 << 20) || !(34..2048).contains(&(size >> 20)) {
            return Err(FatError::Size(size));
        }
        let sectors = size / SECTOR;
        // Each cluster needs four bytes in each FAT; rounding up wastes less than a sector.
        let fat_sectors = ((sectors - RESERVED) * 4).div_ceil(SECTOR + FATS * 4);
        Ok(Self { sectors, fat_sectors, data: RESERVED + FATS * fat_sectors })
    }
}

/// Offset in bytes of a cluster in a file system of this size.
pub fn offset(size: usize, cluster: u32) -> Result<usize, FatError> {
    let geometry = Geometry::of(size)?;
    Ok(geometry.data * SECTOR + (cluster - FIRST_CLUSTER) as usize * CLUSTER)
}

struct Writer {
    fat: Vec<u32>,
    /// Content from cluster 2 on.
    clusters: Vec<u8>,
    /// First cluster of what has no place of its own.
    next: u32,
    limit: usize,
}

impl Writer {
    /// Reserves a chain for this many bytes, at least one cluster; returns its first cluster.
    fn chain(&mut self, bytes: usize, place: Option<u32>) -> Result<u32, FatError> {
        let first = place.unwrap_or(self.next);
        let (from, count) = (first as usize, bytes.div_ceil(CLUSTER).max(1));
        let end = from + count;
        if first < FIRST_CLUSTER || end > self.limit + FIRST_CLUSTER as usize {
            return Err(FatError::Full);
        }
        if self.fat.len() < end {
            self.fat.resize(end, 0);
            self.clusters.resize((end - FIRST_CLUSTER as usize) * CLUSTER, 0);
        }
        if self.fat[from..end].iter().any(|entry| *entry != 0) {
            return Err(FatError::Full);
        }
        for (entry, next) in self.fat[from..end].iter_mut().zip(first + 1..) {
            *entry = next;
        }
        self.fat[end - 1] = END_OF_CHAIN;
        if place.is_none() {
            self.next = end as u32;
        }
        Ok(first)
    }

    fn put(&mut self, first: u32, content: &[u8]) {
        let at = (first as usize - 2) * CLUSTER;
        self.clusters[at..at + content.len()].copy_from_slice(content);
    }

    /// Writes a folder and all below it; returns its first cluster. `parent` is absent for the root, which has a label
    /// instead.
    fn folder(
        &mut self,
        folder: &Folder,
        parent: Option<u32>,
        label: Option<[u8; 11]>,
    ) -> Result<u32, FatError> {
        let entries = folder.folders.len() + folder.files.len() + if label.is_some() { 1 } else { 2 };
        let first = self.chain(entries * 32, None)?;
        let mut content = Vec::with_capacity(entries * 32);
        match label {
            Some(label) => content.extend(entry(&label, LABEL, 0, 0)),
            None => {
                content.extend(entry(b".          ", DIRECTORY, first, 0));
                // The root is called cluster 0 here.
                content.extend(entry(b"..         ", DIRECTORY, parent.unwrap_or(0), 0));
            }
        }
        let own = if label.is_some() { 0 } else { first };
        for (name, below) in &folder.folders {
            let name = short_name(name)?;
            let cluster = self.folder(below, Some(own), None)?;
            content.extend(entry(&name, DIRECTORY, cluster, 0));
        }
        for (name, (file, place)) in &folder.files {
            let name = short_name(name)?;
            // An empty file has no cluster.
            let mut cluster = 0;
            if !file.is_empty() {
                cluster = self.chain(file.len(), *place)?;
                self.put(cluster, file);
            }
            content.extend(entry(&name, FILE, cluster, file.len() as u32));
        }
        self.put(first, &content);
        Ok(first)
    }
}

/// A name as stored: eight characters and three, filled with spaces.
fn short_name(name: &str) -> Result<[u8; 11], FatError> {
    let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
    let plain = |text: &str| {
        text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
    };
    if stem.is_empty() || stem.len() > 8 || extension.len() > 3 || !plain(stem) || !plain(extension) {
        return Err(FatError::Name(name.to_owned()));
    }
    let mut stored = [b' '; 11];
    stored[..stem.len()].copy_from_slice(stem.as_bytes());
    stored[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
    Ok(stored)
}

fn entry(name: &[u8; 11], attributes: u8, cluster: u32, size: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE.to_le_bytes()); // created, accessed, written
    }
    entry[20..22].copy_from_slice(&((cluster >> 16) as u16).to_le_bytes());
    entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    entry[28..].copy_from_slice(&size.to_le_bytes());
    entry
}

fn boot_sector(sectors: u32, fat_sectors: u32, id: u32, label: &[u8; 11]) -> Vec<u8> {
    let mut boot = vec![0xeb, 0x58, 0x90];
    boot.extend(b"REDOUBT ");
    boot.extend((SECTOR as u16).to_le_bytes());
    boot.push((CLUSTER / SECTOR) as u8);
    boot.extend((RESERVED as u16).to_le_bytes());
    boot.push(FATS as u8);
    boot.extend([0; 4]); // entries of a FAT16 root, sectors in 16 bits
    boot.push(0xf8); // fixed disk
    boot.extend([0; 2]); // sectors of a FAT16
    boot.extend(63_u16.to_le_bytes()); // geometry, for whoever still asks
    boot.extend(255_u16.to_le_bytes());
    boot.extend(0_u32.to_le_bytes()); // hidden sectors
    boot.extend(sectors.to_le_bytes());
    boot.extend(fat_sectors.to_le_bytes());
    boot.extend([0; 4]); // both FATs alike; version 0.0
    boot.extend(2_u32.to_le_bytes()); // cluster of the root
    boot.extend(1_u16.to_le_bytes()); // sector of the information
    boot.extend(6_u16.to_le_bytes()); // sector of the copy
    boot.extend([0; 12]);
    boot.extend([0x80, 0, 0x29]);
    boot.extend(id.to_le_bytes());
    boot.extend(label);
    boot.extend(b"FAT32   ");
    boot.resize(SECTOR - 2, 0);
    boot.extend([0x55, 0xaa]);
    boot
}

fn information(free: u32, next: u32) -> Vec<u8> {
    let mut info = vec![0; SECTOR];
    info[..4].copy_from_slice(b"RRaA");
    info[484..488].copy_from_slice(b"rrAa");
    info[488..492].copy_from_slice(&free.to_le_bytes());
    info[492..496].copy_from_slice(&next.to_le_bytes());
    info[510..].copy_from_slice(&[0x55, 0xaa]);
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn fsck_finds_nothing_and_mtools_read_the_files() {
        let long: Vec<u8> = (0..100_001_u32).map(|i| (i / 3) as u8).collect();
        let files = BTreeMap::from([
            ("EFI/BOOT/BOOTX64.EFI", long.as_slice()),
            ("EFI/EMPTY", b""),
            ("A.TXT", b"text"),
        ]);
        let image = image(34 << 20, "ESP", 0x1234_5678, &files, &BTreeMap::from([("A.TXT", 1000)])).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("esp");
        std::fs::write(&path, &image).unwrap();
        if let Some(fsck) = crate::tests::program("fsck.fat") {
            let output = Command::new(fsck).args(["-n", "-v"]).arg(&path).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}");
            assert!(text.contains("32 bit entries"), "{text}");
        }
        let Some(mcopy) = crate::tests::program("mcopy") else { return };
        for (name, content) in &files {
            let target = dir.path().join("out");
            let _ = std::fs::remove_file(&target);
            let copied = Command::new(&mcopy)
                .args(["-n", "-i"])
                .arg(&path)
                .arg(format!("::/{name}"))
                .arg(&target)
                .status()
                .unwrap();
            assert!(copied.success());
            assert!(std::fs::read(&target).unwrap() == *content, "{name}");
        }
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let of = |size, name| image(size, "ESP", 1, &BTreeMap::from([(name, &b"x"[..])]), &BTreeMap::new());
        assert_eq!(of(33 << 20, "A").unwrap_err(), FatError::Size(33 << 20));
        assert_eq!(of((34 << 20) + 1, "A").unwrap_err(), FatError::Size((34 << 20) + 1));
        for name in ["a", "ABCDEFGHI", "A.TEXT", "EFI/.A", "A.B.C"] {
            assert!(matches!(of(34 << 20, name), Err(FatError::Name(_))), "{name}");
        }
        let large = vec![0; 34 << 20];
        assert_eq!(
            image(34 << 20, "ESP", 1, &BTreeMap::from([("A", large.as_slice())]), &BTreeMap::new())
                .unwrap_err(),
            FatError::Full
        );
        // Cluster 2 is the root folder's.
        let over =
            image(34 << 20, "ESP", 1, &BTreeMap::from([("A", &b"x"[..])]), &BTreeMap::from([("A", 2)]));
        assert_eq!(over.unwrap_err(), FatError::Full);
    }
}
