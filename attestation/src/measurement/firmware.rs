//! What a firmware asks to be measured beside itself: the GUID table at its end and the SEV metadata.
//!
//! Source: edk2 `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm` and `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm`.

use super::{LaunchError, gctx::PAGE, kernel_hashes, kernel_hashes::guid, vmsa};

// Entries of the GUID table.
const TABLE: [u8; 16] = guid(0x96b582de, 0x1fb2, 0x45f7, 0xbaea_a366c55a082d);
const HASH_TABLE: [u8; 16] = guid(0x7255371f, 0x3a3b, 0x4b04, 0x927b_1da6efa8d454);
const RESET_BLOCK: [u8; 16] = guid(0x00f771de, 0x1a7e, 0x4fcb, 0x890e_68c77e2fb44e);
const SEV_METADATA: [u8; 16] = guid(0xdc886566, 0x984a, 0x4798, 0xa75e_5585a7bf67cc);

/// The GUID table ends this many bytes before the end of the firmware.
const TABLE_END: usize = 32;
/// Each entry is closed by its length (u16, of the whole entry) and its GUID.
const ENTRY_TRAILER: usize = 2 + 16;
/// Signature, length, version, number of sections, as u32.
const METADATA_HEADER: usize = 16;
/// Address, size, kind, as u32.
const SECTION: usize = 12;
/// Sections that are looked at; edk2 has seven.
const MAX_SECTIONS: u32 = 64;
/// Most memory that the sections may cover, in bytes: hashing it stays quick.
const MAX_COVERED: u64 = 256 << 20;
/// Largest firmware, in bytes.
const MAX_FIRMWARE: usize = 16 << 20;

/// What is measured beside the firmware's own pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareLayout {
    /// Pages, in the order in which they are measured.
    pub sections: Vec<Section>,
    /// Guest address of the table of kernel hashes.
    pub hash_table_gpa: u32,
    /// Where all vCPUs but the first start.
    pub reset_eip: u32,
}

/// A range of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Guest address.
    pub gpa: u32,
    /// In bytes.
    pub size: u32,
    /// What is there.
    pub kind: SectionKind,
}

/// Kinds of section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// Memory that is zero at launch.
    SecMem,
    /// The secrets page, which the PSP fills.
    Secrets,
    /// The CPUID page, which the PSP checks.
    Cpuid,
    /// Calling area of an SVSM, zero at launch.
    SvsmCaa,
    /// The page with the kernel hashes.
    KernelHashes,
}

impl SectionKind {
    /// From the number in the metadata.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::SecMem),
            2 => Some(Self::Secrets),
            3 => Some(Self::Cpuid),
            4 => Some(Self::SvsmCaa),
            0x10 => Some(Self::KernelHashes),
            _ => None,
        }
    }
}

fn broken(table: &'static str, what: impl Into<String>) -> LaunchError {
    LaunchError::FirmwareTable { table, what: what.into() }
}

/// A u32 at an offset, little endian.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|word| u32::from_le_bytes(*word))
}

impl FirmwareLayout {
    /// Reads it from a firmware. `None` for a firmware without the GUID table, which no PSP could launch.
    pub fn parse(firmware: &[u8]) -> Result<Option<Self>, LaunchError> {
        if firmware.is_empty() || firmware.len() > MAX_FIRMWARE || !firmware.len().is_multiple_of(PAGE) {
            return Err(LaunchError::FirmwareSize(firmware.len()));
        }
        let Some(entries) = guid_table(firmware)? else { return Ok(None) };
        let entry = |guid| entries.iter().find(|(found, _)| *found == guid).map(|(_, data)| *data);
        let number = |guid, table| {
            entry(guid)
                .map(|data| word(data, 0).ok_or_else(|| broken(table, "its entry has less than 4 bytes")))
                .transpose()
        };
        let metadata = number(SEV_METADATA, "SEV metadata")?
            .ok_or_else(|| broken("GUID table", "it has no entry for SEV metadata"))?;
        let layout = Self {
            sections: sections(firmware, metadata)?,
            hash_table_gpa: number(HASH_TABLE, "hash table entry")?
                .filter(|gpa| *gpa != 0)
                .ok_or(LaunchError::NoKernelHashes("no place for the table of kernel hashes"))?,
            reset_eip: number(RESET_BLOCK, "reset block")?
                .ok_or_else(|| broken("GUID table", "it has no entry for the SEV-ES reset block"))?,
        };
        layout.check()?;
        Ok(Some(layout))
    }

    /// The fixed layout for firmware of a simulation.
    pub(super) fn of_simulation() -> Self {
        Self {
            sections: vec![Section { gpa: 0x81_0000, size: PAGE as u32, kind: SectionKind::KernelHashes }],
            hash_table_gpa: 0x81_0c00,
            reset_eip: vmsa::RESET_VECTOR,
        }
    }

    /// That every section is whole pages and that the hash table lies in the one page that is meant for it.
    pub(super) fn check(&self) -> Result<(), LaunchError> {
        let mut covered = 0;
        for section in &self.sections {
            let Section { gpa, size, kind } = *section;
            let whole =
                size != 0 && (gpa as usize).is_multiple_of(PAGE) && (size as usize).is_multiple_of(PAGE);
            let one_page =
                matches!(kind, SectionKind::Secrets | SectionKind::Cpuid | SectionKind::KernelHashes);
            covered += u64::from(size);
            if !whole || (one_page && size as usize != PAGE) || covered > MAX_COVERED {
                return Err(broken(
                    "SEV metadata",
                    format!("{size} bytes at {gpa:#x} cannot be measured as {kind:?}"),
                ));
            }
        }
        let mut hash_pages = self.sections.iter().filter(|section| section.kind == SectionKind::KernelHashes);
        let page = hash_pages.next().ok_or(LaunchError::NoKernelHashes("no page for kernel hashes"))?;
        let offset = self.hash_table_gpa.checked_sub(page.gpa).map(|offset| offset as usize);
        if hash_pages.next().is_some() || offset.is_none_or(|offset| offset + kernel_hashes::PADDED > PAGE) {
            return Err(broken(
                "SEV metadata",
                "the table of kernel hashes does not lie in the one page for it",
            ));
        }
        Ok(())
    }
}

/// GUID and data of an entry.
type Entry<'a> = ([u8; 16], &'a [u8]);

/// Entries of the GUID table, which is read from its end; `None` when there is no table.
fn guid_table(firmware: &[u8]) -> Result<Option<Vec<Entry<'_>>>, LaunchError> {
    let Some((rest, TABLE, length)) = take_trailer(&firmware[..firmware.len() - TABLE_END]) else {
        return Ok(None);
    };
    let wrong = || broken("GUID table", "an entry is longer than the table");
    let length =
        length.checked_sub(ENTRY_TRAILER).filter(|length| *length <= rest.len()).ok_or_else(wrong)?;
    let mut table = &rest[rest.len() - length..];
    let mut entries: Vec<Entry<'_>> = Vec::new();
    while !table.is_empty() {
        let (rest, guid, length) = take_trailer(table).ok_or_else(wrong)?;
        let length =
            length.checked_sub(ENTRY_TRAILER).filter(|length| *length <= rest.len()).ok_or_else(wrong)?;
        let (rest, data) = rest.split_at(rest.len() - length);
        if entries.iter().any(|(found, _)| *found == guid) {
            return Err(broken("GUID table", "an entry stands twice"));
        }
        entries.push((guid, data));
        table = rest;
    }
    Ok(Some(entries))
}

/// Splits off the trailer of the last entry: its GUID and the length of the whole entry.
fn take_trailer(table: &[u8]) -> Option<(&[u8], [u8; 16], usize)> {
    let (rest, guid) = table.split_last_chunk::<16>()?;
    let (rest, length) = rest.split_last_chunk::<2>()?;
    Some((rest, *guid, usize::from(u16::from_le_bytes(*length))))
}

/// Sections of the SEV metadata, which begins `from_end` bytes before the end of the firmware.
fn sections(firmware: &[u8], from_end: u32) -> Result<Vec<Section>, LaunchError> {
    const NAME: &str = "SEV metadata";
    let start = firmware.len().checked_sub(from_end as usize);
    let metadata = start.and_then(|start| firmware.get(start..)).unwrap_or_default();
    let header = [0, 4, 8, 12].map(|at| word(metadata, at));
    let [Some(signature), Some(length), Some(version), Some(count)] = header else {
        return Err(broken(NAME, "it lies outside the firmware"));
    };
    if signature.to_le_bytes() != *b"ASEV" || version != 1 {
        return Err(broken(NAME, "its signature or version is not known"));
    }
    let expected = METADATA_HEADER + SECTION * count.min(MAX_SECTIONS) as usize;
    if count > MAX_SECTIONS || length as usize != expected || metadata.len() < expected {
        return Err(broken(NAME, format!("{count} sections do not fit its length of {length} bytes")));
    }
    metadata[METADATA_HEADER..expected]
        .chunks_exact(SECTION)
        .map(|section| {
            let [Some(gpa), Some(size), Some(number)] = [0, 4, 8].map(|at| word(section, at)) else {
                return Err(broken(NAME, "a section is cut"));
            };
            let kind = SectionKind::from_number(number)
                .ok_or_else(|| broken(NAME, format!("sections of kind {number} are not known")))?;
            Ok(Section { gpa, size, kind })
        })
        .collect()
}
