//! GUID partition tables (UEFI specification 2.10, chapter 5).

use std::fmt;

/// Size of a logical block in bytes.
pub const SECTOR: u64 = 512;
/// Partitions begin at multiples of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
/// Sectors of one copy of the entries.
const ENTRY_SECTORS: u64 = (ENTRIES * ENTRY) as u64 / SECTOR;
/// Length in bytes of what [`table`] puts at the start of a disk.
pub const START: u64 = (ENTRY_SECTORS + 2) * SECTOR;
/// Length in bytes of what [`table`] puts at its end.
pub const END: u64 = (ENTRY_SECTORS + 1) * SECTOR;

/// A GUID, in the order in which it is written as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// From its digits, without dashes.
    #[must_use]
    pub const fn new(digits: u128) -> Self {
        Self(digits.to_be_bytes())
    }

    /// From the form in which it is stored.
    #[must_use]
    pub const fn from_stored(mut bytes: [u8; 16]) -> Self {
        (bytes[0], bytes[1], bytes[2], bytes[3]) = (bytes[3], bytes[2], bytes[1], bytes[0]);
        (bytes[4], bytes[5], bytes[6], bytes[7]) = (bytes[5], bytes[4], bytes[7], bytes[6]);
        Self(bytes)
    }

    /// As stored: the first three groups little-endian (UEFI specification, appendix A).
    #[must_use]
    pub fn stored(self) -> [u8; 16] {
        let mut bytes = self.0;
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = hex::encode(self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One partition of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// What it is for, by the Discoverable Partitions Specification.
    pub kind: Guid,
    /// Its own identifier.
    pub id: Guid,
    /// Label: at most 36 characters.
    pub name: String,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
}

/// A table cannot be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "partition '{0}' does not fit: outside the disk, not on whole MiB, over another one, or its name is too long"
)]
pub struct LayoutError(String);

impl LayoutError {
    /// About the partition or disk of this name.
    pub(crate) fn new(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// Start (protective MBR, header, entries) and end (entries, header) of a disk with these partitions.
pub fn table(disk: Guid, size: u64, partitions: &[Partition]) -> Result<(Vec<u8>, Vec<u8>), LayoutError> {
    let sectors = size / SECTOR;
    let (first, last) = (ENTRY_SECTORS + 2, sectors.saturating_sub(ENTRY_SECTORS + 2));
    let mut entries = Vec::with_capacity(ENTRIES * ENTRY);
    let mut free = ALIGNMENT;
    for partition in partitions {
        let Partition { kind, id, name, start, size } = partition;
        let end = start.saturating_add(*size);
        let aligned = start.is_multiple_of(ALIGNMENT) && size.is_multiple_of(ALIGNMENT) && *size > 0;
        if !aligned || *start < free || end / SECTOR > last + 1 || name.encode_utf16().count() > 36 {
            return Err(LayoutError(name.clone()));
        }
        free = end;
        let next = entries.len() + ENTRY;
        entries.extend(kind.stored());
        entries.extend(id.stored());
        entries.extend((start / SECTOR).to_le_bytes());
        entries.extend((end / SECTOR - 1).to_le_bytes());
        entries.extend(0_u64.to_le_bytes()); // attributes
        entries.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
        entries.resize(next, 0);
    }
    if partitions.len() > ENTRIES {
        return Err(LayoutError(partitions[ENTRIES].name.clone()));
    }
    entries.resize(ENTRIES * ENTRY, 0);
    let header = |own: u64, other: u64, entries_at: u64| {
        let mut header = b"EFI PART".to_vec();
        header.extend(0x0001_0000_u32.to_le_bytes()); // revision
        header.extend(92_u32.to_le_bytes()); // size of this header
        header.extend([0; 8]); // its checksum, then reserved
        for number in [own, other, first, last] {
            header.extend(number.to_le_bytes());
        }
        header.extend(disk.stored());
        header.extend(entries_at.to_le_bytes());
        header.extend((ENTRIES as u32).to_le_bytes());
        header.extend((ENTRY as u32).to_le_bytes());
        header.extend(crc32fast::hash(&entries).to_le_bytes());
        let checksum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        header.resize(SECTOR as usize, 0);
        header
    };
    let mut start = protective_mbr(sectors);
    start.extend(header(1, sectors - 1, 2));
    start.extend(&entries);
    let mut end = entries.clone();
    end.extend(header(sectors - 1, 1, sectors - 1 - ENTRY_SECTORS));
    Ok((start, end))
}

/// A table as read from a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The disk's identifier.
    pub disk: Guid,
    /// Its partitions, in the order of the entries.
    pub partitions: Vec<Partition>,
}

impl Table {
    /// From the first [`START`] bytes of a disk of this size, or else from its last [`END`] bytes, as firmware and kernel
    /// do; `None` if neither is sound. Only tables of the form that [`table`] writes are sound here.
    #[must_use]
    pub fn parse(size: u64, start: &[u8], end: &[u8]) -> Option<Self> {
        let sectors = size / SECTOR;
        let (sector, entries) = (SECTOR as usize, ENTRIES * ENTRY);
        let first = || Self::copy(1, sectors, start.get(sector..2 * sector)?, start.get(2 * sector..)?);
        let second = || Self::copy(sectors - 1, sectors, end.get(entries..entries + sector)?, end);
        first().or_else(second)
    }

    fn copy(own: u64, sectors: u64, header: &[u8], entries: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let entries = entries.get(..ENTRIES * ENTRY)?;
        let mut summed = header.get(..92)?.to_vec();
        summed[16..20].fill(0);
        let sound = header.starts_with(b"EFI PART")
            && word(12)? == 92
            && word(16)? == crc32fast::hash(&summed)
            && long(header, 24)? == own
            && (word(80)?, word(84)?) == (ENTRIES as u32, ENTRY as u32)
            && word(88)? == crc32fast::hash(entries);
        if !sound {
            return None;
        }
        let used = entries.chunks_exact(ENTRY).filter(|entry| entry[..16] != [0; 16]);
        let partitions = used.map(|entry| Self::entry(entry, sectors)).collect::<Option<_>>()?;
        Some(Self { disk: Guid::from_stored(header[56..72].try_into().ok()?), partitions })
    }

    fn entry(entry: &[u8], sectors: u64) -> Option<Partition> {
        let id = |at: usize| Some(Guid::from_stored(entry[at..at + 16].try_into().ok()?));
        let (first, last) = (long(entry, 32)?, long(entry, 40)?);
        if first > last || last >= sectors {
            return None;
        }
        let name: Vec<u16> = entry[56..]
            .chunks_exact(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
            .take_while(|unit| *unit != 0)
            .collect();
        Some(Partition {
            kind: id(0)?,
            id: id(16)?,
            name: String::from_utf16_lossy(&name),
            start: first * SECTOR,
            size: (last - first + 1) * SECTOR,
        })
    }

    /// The partition with this label.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.name == name)
    }
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// One entry of type 0xEE over the whole disk.
fn protective_mbr(sectors: u64) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR as usize];
    let length = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    mbr[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    mbr[454..458].copy_from_slice(&1_u32.to_le_bytes());
    mbr[458..462].copy_from_slice(&length.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Seek, SeekFrom, Write},
        process::Command,
    };

    const ESP: Guid = Guid::new(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);

    fn partition(name: &str, start: u64, size: u64) -> Partition {
        Partition { kind: ESP, id: Guid([7; 16]), name: name.into(), start: start << 20, size: size << 20 }
    }

    #[test]
    fn a_guid_is_stored_as_the_specification_says() {
        assert_eq!(ESP.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(hex::encode(ESP.stored()), "28732ac11ff8d211ba4b00a0c93ec93b");
    }

    #[test]
    fn what_is_written_is_read_and_either_copy_serves() {
        let (size, partitions) = (64 << 20, vec![partition("one", 1, 8), partition("zwei", 16, 47)]);
        let (start, end) = table(Guid([9; 16]), size, &partitions).unwrap();
        assert_eq!((start.len() as u64, end.len() as u64), (START, END));
        let expected = Some(Table { disk: Guid([9; 16]), partitions });
        assert_eq!(Table::parse(size, &start, &end), expected);
        assert_eq!(Table::parse(size, &start, &[]), expected);
        assert_eq!(Table::parse(size, &[], &end), expected);
        // The first sector is no part of the table; any change behind it makes a copy unsound.
        for at in (512..604).chain(1024..1500) {
            let mut changed = start.clone();
            changed[at] ^= 1;
            assert_eq!(Table::parse(size, &changed, &[]), None, "byte {at}");
        }
        assert_eq!(Table::parse(size + 512, &[], &end), None, "the disk has grown");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..1500), at in 0_usize..20_000, size: u64,
        ) {
            let (mut start, mut end) = table(Guid([9; 16]), 64 << 20, &[partition("one", 1, 8)]).unwrap();
            for disk in [&mut start, &mut end] {
                for (to, from) in disk.iter_mut().skip(at).zip(&bytes) {
                    *to = *from;
                }
            }
            let _ = Table::parse(size, &start, &end);
            let _ = Table::parse(64 << 20, &start, &end);
            let _ = Table::parse(64 << 20, &bytes, &bytes);
        }
    }

    #[test]
    fn sfdisk_reads_the_table_without_complaint() {
        let Some(sfdisk) = crate::tests::program("sfdisk") else { return };
        let size = 64 << 20;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let (start, end) =
            table(Guid([9; 16]), size, &[partition("one", 1, 8), partition("two", 16, 47)]).unwrap();
        file.as_file().set_len(size).unwrap();
        file.write_all(&start).unwrap();
        file.seek(SeekFrom::End(-(end.len() as i64))).unwrap();
        file.write_all(&end).unwrap();
        let run = |arguments: &[&str]| {
            let output = Command::new(&sfdisk).args(arguments).arg(file.path()).output().unwrap();
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        let (verdict, errors) = run(&["--verify"]);
        assert!(verdict.contains("No errors detected") && errors.is_empty(), "{verdict}{errors}");
        let (dump, errors) = run(&["--dump"]);
        assert!(errors.is_empty(), "{errors}");
        assert!(dump.contains("label-id: 09090909-0909-0909-0909-090909090909"), "{dump}");
        assert!(dump.contains("start=       32768, size=       96256, type=C12A7328"), "{dump}");
        assert!(dump.contains("name=\"two\""), "{dump}");
    }

    #[test]
    fn partitions_that_do_not_fit_are_named() {
        let refused = |partitions: &[Partition]| table(ESP, 64 << 20, partitions).unwrap_err().0;
        assert_eq!(refused(&[partition("start", 0, 8)]), "start");
        assert_eq!(refused(&[partition("end", 1, 63)]), "end");
        assert_eq!(refused(&[partition("a", 1, 8), partition("over", 8, 8)]), "over");
        assert_eq!(refused(&[partition("empty", 1, 0)]), "empty");
        assert_eq!(refused(&[partition(&"x".repeat(37), 1, 1)]), "x".repeat(37));
    }
}
