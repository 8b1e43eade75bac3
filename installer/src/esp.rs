//! The boot partition: one folder with the kernel image that the firmware starts and the one before it.
//!
//! Each of the two images has a place of its own. A new one is written over the one that is not started; then a single
//! sector, the folder, exchanges their names. A power cut leaves the one name or the other on the old image, never none.
//! The name that the firmware starts is the one that it also finds without a boot entry.

use crate::fat::{self, FatError};
use std::{collections::BTreeMap, io};

/// What the firmware starts (UEFI specification, 3.5.1.1).
pub const CURRENT: &str = "EFI/BOOT/BOOTX64.EFI";
/// The image before it.
pub const PREVIOUS: &str = "EFI/BOOT/PREVIOUS.EFI";
/// On the installer's medium: its configuration.
pub const CONFIG: &str = "REDOUBT.CFG";
/// Clusters of the three folders: they come first.
const ROOT_FOLDER: u32 = 2;
const BOOT_FOLDER: u32 = 4;
/// Clusters before the first image: folders and configuration. A multiple of what one sector of the FAT describes, so
/// that no sector describes two images.
const HEAD: u32 = 1024;
const SECTOR: usize = 512;

/// The content of a boot partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Esp {
    /// The two places, each with its image.
    pub images: [Option<Vec<u8>>; 2],
    /// The place of the image that is started.
    pub current: usize,
    /// The installer's configuration.
    pub config: Option<Vec<u8>>,
}

/// First clusters of the two places in a file system of this size.
fn places(size: usize) -> Result<[u32; 2], FatError> {
    let clusters = (size - fat::offset(size, ROOT_FOLDER)?) / SECTOR;
    let second = HEAD + (clusters as u32 - HEAD) / 2;
    Ok([HEAD, second.next_multiple_of((SECTOR / 4) as u32)])
}

/// Most bytes of an image that leaves its place to the other one, in a file system of this size.
pub fn room(size: usize) -> Result<usize, FatError> {
    let [first, second] = places(size)?;
    Ok((second - first) as usize * SECTOR)
}

impl Esp {
    /// One that starts this image.
    #[must_use]
    pub fn with(image: Vec<u8>) -> Self {
        Self { images: [Some(image), None], ..Self::default() }
    }

    /// The image that is started.
    #[must_use]
    pub fn current(&self) -> Option<&[u8]> {
        self.images[self.current].as_deref()
    }

    /// The image before it.
    #[must_use]
    pub fn previous(&self) -> Option<&[u8]> {
        self.images[1 - self.current].as_deref()
    }

    /// The same after another image was put into the place that is not started, and is now.
    #[must_use]
    pub fn replaced_by(&self, image: Vec<u8>) -> Self {
        let mut next = self.clone();
        next.current = 1 - self.current;
        next.images[next.current] = Some(image);
        next
    }

    /// The same after another image was put into the place that is not started, and the other still is.
    #[must_use]
    pub fn beside(&self, image: Vec<u8>) -> Self {
        let mut next = self.clone();
        next.images[1 - self.current] = Some(image);
        next
    }

    /// The same with the names exchanged: the image before it is started.
    #[must_use]
    pub fn exchanged(&self) -> Self {
        Self { current: 1 - self.current, ..self.clone() }
    }

    /// The file system, of this many bytes.
    pub fn to_bytes(&self, size: usize) -> Result<Vec<u8>, FatError> {
        let starts = places(size)?;
        let mut files = BTreeMap::new();
        let mut at = BTreeMap::new();
        for (index, image) in self.images.iter().enumerate() {
            if let Some(image) = image {
                let name = if index == self.current { CURRENT } else { PREVIOUS };
                files.insert(name, image.as_slice());
                at.insert(name, starts[index]);
            }
        }
        if let Some(config) = &self.config {
            files.insert(CONFIG, config.as_slice());
        }
        fat::image(size, "REDOUBT", 0x5245_444f, &files, &at)
    }

    /// Reads a file system of this size that [`Self::to_bytes`] made; `None` for any other. `read` gives bytes by offset and
    /// length.
    pub fn read(
        size: usize,
        read: &mut dyn FnMut(usize, usize) -> io::Result<Vec<u8>>,
    ) -> io::Result<Option<Self>> {
        let Ok(starts) = places(size) else { return Ok(None) };
        let mut esp = Self::default();
        for cluster in [BOOT_FOLDER, ROOT_FOLDER] {
            let Ok(at) = fat::offset(size, cluster) else { return Ok(None) };
            for (name, cluster, length) in entries(&read(at, SECTOR)?) {
                let at = fat::offset(size, cluster.max(ROOT_FOLDER)).unwrap_or(size);
                if at.checked_add(length as usize).is_none_or(|end| end > size) {
                    return Ok(None);
                }
                let content = read(at, length as usize)?;
                match (&name, starts.iter().position(|start| *start == cluster)) {
                    (b"REDOUBT CFG", _) => esp.config = Some(content),
                    (b"BOOTX64 EFI" | b"PREVIOUSEFI", Some(place)) => {
                        esp.images[place] = Some(content);
                        if &name == b"BOOTX64 EFI" {
                            esp.current = place;
                        }
                    }
                    _ => return Ok(None),
                }
            }
        }
        Ok(esp.images[esp.current].is_some().then_some(esp))
    }

    /// The writes, as offset and length in [`Self::to_bytes`], that lead from a content with another image in this place to
    /// this one: each group must be on the disk before the next one begins.
    pub fn steps(&self, size: usize, place: usize) -> Result<[Vec<(usize, usize)>; 3], FatError> {
        let image = self.images[place].as_ref().map_or(0, Vec::len);
        let data = (fat::offset(size, places(size)?[place])?, image);
        let folder = fat::offset(size, BOOT_FOLDER)?;
        let rest = folder + SECTOR;
        let head = fat::offset(size, HEAD)?;
        Ok([vec![data], vec![(0, folder), (rest, head - rest)], vec![(folder, SECTOR)]])
    }
}

/// Files of a folder of one cluster: stored name, first cluster, length.
fn entries(folder: &[u8]) -> Vec<([u8; 11], u32, u32)> {
    let half = |entry: &[u8], at: usize| u32::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
    let entries = folder.chunks_exact(32).take_while(|entry| entry[0] != 0);
    // 0x20: an ordinary file, neither folder nor label; 0xe5: removed.
    let files = entries.filter(|entry| entry[11] == 0x20 && entry[0] != 0xe5);
    files
        .map(|entry| {
            let mut name = [0; 11];
            name.copy_from_slice(&entry[..11]);
            (name, half(entry, 20) << 16 | half(entry, 26), half(entry, 30) << 16 | half(entry, 28))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Cursor, Read};

    const SIZE: usize = 34 << 20;

    /// What another implementation reads.
    fn read(image: &[u8], path: &str) -> Option<Vec<u8>> {
        let system = fatfs::FileSystem::new(Cursor::new(image.to_vec()), fatfs::FsOptions::new()).unwrap();
        let mut content = Vec::new();
        let result = system.root_dir().open_file(path).ok()?.read_to_end(&mut content);
        result.ok().map(|_| content)
    }

    fn parse(bytes: &[u8]) -> Option<Esp> {
        Esp::read(bytes.len(), &mut |at, length| Ok(bytes[at..at + length].to_vec())).unwrap()
    }

    #[test]
    fn each_image_keeps_its_place_when_the_other_is_replaced() {
        let first = Esp { config: Some(b"{}".to_vec()), ..Esp::with(vec![1; 70_001]) };
        let second = first.replaced_by(vec![2; 99_999]);
        let third = second.replaced_by(vec![3; 10]);
        for (esp, current, previous) in [
            (&first, vec![1; 70_001], None),
            (&second, vec![2; 99_999], Some(vec![1; 70_001])),
            (&third, vec![3; 10], Some(vec![2; 99_999])),
        ] {
            let bytes = esp.to_bytes(SIZE).unwrap();
            assert_eq!(read(&bytes, CURRENT), Some(current));
            assert_eq!(read(&bytes, PREVIOUS), previous);
            assert_eq!(read(&bytes, CONFIG), Some(b"{}".to_vec()));
            assert_eq!(parse(&bytes).as_ref(), Some(esp));
            if let Some(fsck) = crate::tests::program("fsck.fat") {
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), &bytes).unwrap();
                let output = std::process::Command::new(fsck).arg("-n").arg(file.path()).output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            }
        }
        let (before, after) = (first.to_bytes(SIZE).unwrap(), second.to_bytes(SIZE).unwrap());
        // What the steps leave out does not differ.
        let mut stepped = before;
        for (at, length) in second.steps(SIZE, second.current).unwrap().into_iter().flatten() {
            stepped[at..at + length].copy_from_slice(&after[at..at + length]);
        }
        assert!(stepped == after);
    }

    #[test]
    fn an_image_beside_the_started_one_changes_nothing_of_it_until_the_names_are_exchanged() {
        let first = Esp::with(vec![1; 70_001]).replaced_by(vec![2; 5]);
        let beside = first.beside(vec![3; 99_999]);
        let (before, after) = (first.to_bytes(SIZE).unwrap(), beside.to_bytes(SIZE).unwrap());
        let mut stepped = before;
        for (at, length) in beside.steps(SIZE, 1 - beside.current).unwrap().into_iter().flatten() {
            stepped[at..at + length].copy_from_slice(&after[at..at + length]);
            assert_eq!(read(&stepped, CURRENT), Some(vec![2; 5]));
        }
        assert!(stepped == after);
        assert_eq!(read(&stepped, PREVIOUS), Some(vec![3; 99_999]));
        let exchanged = beside.exchanged().to_bytes(SIZE).unwrap();
        assert_eq!(
            (read(&exchanged, CURRENT), read(&exchanged, PREVIOUS)),
            (Some(vec![3; 99_999]), Some(vec![2; 5]))
        );
        let sectors = after.chunks(SECTOR).zip(exchanged.chunks(SECTOR));
        assert_eq!(sectors.filter(|(one, other)| one != other).count(), 1, "one sector");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn no_bytes_make_it_panic(folder in proptest::collection::vec(any::<u8>(), 0..SECTOR * 3), size in 0_usize..4096) {
            let mut bytes = Esp::with(vec![1; 1000]).to_bytes(SIZE).unwrap();
            let at = fat::offset(SIZE, ROOT_FOLDER).unwrap();
            bytes[at..at + folder.len()].copy_from_slice(&folder);
            let _ = parse(&bytes);
            let _ = parse(&bytes[..size]);
        }
    }
}
