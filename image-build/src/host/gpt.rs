//! GUID partition tables (UEFI specification 2.10, chapter 5), with fixed identifiers.

use std::fmt;

/// Size of a logical block in bytes.
pub const SECTOR: u64 = 512;
/// Partitions begin at multiples of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
/// Sectors of one copy of the entries.
const ENTRY_SECTORS: u64 = (ENTRIES * ENTRY) as u64 / SECTOR;

/// A GUID, in the order in which it is written as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// From its digits, without dashes.
    #[must_use]
    pub const fn new(digits: u128) -> Self {
        Self(digits.to_be_bytes())
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
    fn sfdisk_reads_the_table_without_complaint() {
        let Some(sfdisk) = crate::host::tests::program("sfdisk") else { return };
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
