//! SMBIOS tables (DMTF DSP0134), as /sys/firmware/dmi/tables has them. The firmware wrote them: they may say
//! anything, and nothing here trusts a length or an index.

use crate::probe::{Dimm, MAX_ITEMS, clean};
use crate::seen::Seen;

/// Longest table that is read, in bytes: the 64-bit entry point could name 4 GiB, servers have some 16 KiB.
pub const MAX_TABLE: usize = 1 << 20;

/// What is taken from the tables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Smbios {
    /// Type 0: vendor of the firmware.
    pub firmware_vendor: Option<String>,
    /// Type 0: version of the firmware.
    pub firmware_version: Option<String>,
    /// Type 0: release date in seconds since 1970.
    pub firmware_date: Option<u64>,
    /// Type 1: manufacturer of the machine.
    pub system_vendor: Option<String>,
    /// Type 1: name of the machine.
    pub system_product: Option<String>,
    /// Type 4: sockets with a processor, and their present speed in MHz.
    pub processors: Vec<(String, u64)>,
    /// Type 16, of arrays for system memory: error correction, distinct.
    pub error_correction: Vec<String>,
    /// Type 17: slots, empty ones too.
    pub slots: u64,
    /// Type 17: modules that are fitted.
    pub dimms: Vec<Dimm>,
    /// Type 38, or type 42 for Redfish: there is a management controller.
    pub management_controller: bool,
}

/// Tables cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmbiosError {
    /// The table is longer than [`MAX_TABLE`].
    #[error("SMBIOS: {0} bytes of tables; at most {MAX_TABLE} are read")]
    TooLong(usize),
    /// A structure says it is shorter than its header, or longer than the rest of the table.
    #[error("SMBIOS: the structure at byte {0} has an impossible length")]
    Length(usize),
    /// A structure's texts do not end.
    #[error("SMBIOS: the texts of the structure at byte {0} do not end")]
    Texts(usize),
}

/// One structure: formatted area with header, and its texts.
struct Structure<'a> {
    kind: u8,
    area: &'a [u8],
    texts: &'a [u8],
}

impl Structure<'_> {
    /// Little-endian number of `size` bytes; `None` beyond the area, which older versions of a structure have
    /// shorter.
    fn number(&self, offset: usize, size: usize) -> Option<u64> {
        let bytes = self.area.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.area.get(offset).copied()
    }

    /// The text whose number is at the offset; texts count from 1, and 0 is none.
    fn text(&self, offset: usize) -> Option<String> {
        let index = usize::from(self.byte(offset)?).checked_sub(1)?;
        let text = clean(self.texts.split(|byte| *byte == 0).nth(index)?);
        (!text.is_empty()).then_some(text)
    }
}

/// Splits off the first structure (DSP0134, section 6.1).
fn split(table: &[u8], at: usize) -> Result<(Structure<'_>, usize), SmbiosError> {
    let rest = table.get(at..).unwrap_or_default();
    let [kind, length, ..] = *rest else { return Err(SmbiosError::Length(at)) };
    let length = usize::from(length);
    let (Some(area), Some(after)) = (rest.get(..length), rest.get(length..)) else {
        return Err(SmbiosError::Length(at));
    };
    if length < 4 {
        return Err(SmbiosError::Length(at));
    }
    // The texts end with an empty one; without texts there are still two zero bytes.
    let end = after.windows(2).position(|pair| pair == [0, 0]).ok_or(SmbiosError::Texts(at))?;
    let texts = after.get(..end).unwrap_or_default();
    Ok((Structure { kind, area, texts }, at + length + end + 2))
}

impl Smbios {
    /// Reads the structure table.
    pub fn parse(table: &[u8]) -> Result<Smbios, SmbiosError> {
        if table.len() > MAX_TABLE {
            return Err(SmbiosError::TooLong(table.len()));
        }
        let mut found = Smbios::default();
        let mut at = 0;
        while at < table.len() {
            let (structure, next) = split(table, at)?;
            // Type 127 ends the table; what follows is padding.
            if structure.kind == 127 {
                break;
            }
            found.take(&structure);
            at = next;
        }
        Ok(found)
    }

    fn take(&mut self, structure: &Structure<'_>) {
        match structure.kind {
            0 => {
                self.firmware_vendor = structure.text(0x04);
                self.firmware_version = structure.text(0x05);
                self.firmware_date = structure.text(0x08).as_deref().and_then(date);
            }
            1 => {
                self.system_vendor = structure.text(0x04);
                self.system_product = structure.text(0x05);
            }
            4 => self.take_processor(structure),
            16 => self.take_array(structure),
            17 => self.take_dimm(structure),
            // Type 42 with interface 40h is a network host interface, which Redfish uses (DSP0270).
            38 => self.management_controller = true,
            42 if structure.byte(0x04) == Some(0x40) => self.management_controller = true,
            _ => {}
        }
    }

    fn take_processor(&mut self, structure: &Structure<'_>) {
        // Bit 6 of the status: the socket is populated.
        if structure.byte(0x18).is_some_and(|status| status & 0x40 != 0) && self.processors.len() < MAX_ITEMS
        {
            let name = structure.text(0x04).unwrap_or_else(|| format!("CPU{}", self.processors.len()));
            self.processors.push((name, structure.number(0x16, 2).unwrap_or(0)));
        }
    }

    fn take_array(&mut self, structure: &Structure<'_>) {
        // Use 3 is system memory; others are video, flash, cache.
        if structure.byte(0x05) != Some(3) {
            return;
        }
        let correction = match structure.byte(0x06) {
            Some(3) => "none",
            Some(4) => "parity",
            Some(5) => "single-bit",
            Some(6) => "multi-bit",
            Some(7) => "crc",
            _ => "not stated",
        };
        if !self.error_correction.iter().any(|known| known == correction) {
            self.error_correction.push(correction.to_owned());
        }
    }

    fn take_dimm(&mut self, structure: &Structure<'_>) {
        self.slots += 1;
        let bytes = match structure.number(0x0c, 2) {
            // Empty, or not known.
            None | Some(0 | 0xffff) => return,
            // Too large for the field: in MiB in the extended one.
            Some(0x7fff) => (structure.number(0x1c, 4).unwrap_or(0) & 0x7fff_ffff) << 20,
            // Bit 15: in KiB instead of MiB.
            Some(size) if size & 0x8000 != 0 => (size & 0x7fff) << 10,
            Some(size) => size << 20,
        };
        if self.dimms.len() >= MAX_ITEMS {
            return;
        }
        let known =
            |value: Option<u64>, what| Seen::or(value.filter(|value| !matches!(value, 0 | 0xffff)), what);
        // From version 3.2 on: volatile, non-volatile and other sizes tell an NVDIMM from a DIMM.
        let non_volatile = structure.number(0x34, 8).filter(|size| *size != u64::MAX);
        let widths = (structure.number(0x08, 2), structure.number(0x0a, 2));
        self.dimms.push(Dimm {
            locator: structure.text(0x10).unwrap_or_else(|| format!("slot {}", self.slots)),
            bank: structure.text(0x11).unwrap_or_default(),
            bytes,
            kind: match structure.byte(0x12) {
                Some(0x18) => "DDR3".into(),
                Some(0x1a) => "DDR4".into(),
                Some(0x22) => "DDR5".into(),
                other => format!("type {}", other.unwrap_or(0)),
            },
            mts: known(structure.number(0x20, 2), "SMBIOS does not state the module's configured speed"),
            ranks: known(
                structure.byte(0x1b).map(|attributes| u64::from(attributes & 0x0f)),
                "SMBIOS does not state the module's ranks",
            ),
            check_bits: match widths {
                (Some(total @ 1..=0xfffe), Some(data @ 1..=0xfffe)) => {
                    Seen::Known(total.saturating_sub(data))
                }
                _ => Seen::unknown("SMBIOS does not state the module's width"),
            },
            persistent: non_volatile.is_some_and(|size| size > 0),
        });
    }
}

/// `MM/DD/YYYY` in seconds since 1970.
fn date(text: &str) -> Option<u64> {
    let mut parts = text.split('/').map(|part| part.parse::<u64>().ok());
    let (month, day, year) = (parts.next()??, parts.next()??, parts.next()??);
    // Earlier versions have years of two digits; no such firmware boots a processor of this century.
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    Some(crate::calendar::days(year, month, day) * 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A structure with its texts.
    fn structure(kind: u8, fields: &[(usize, &[u8])], length: u8, texts: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(length)];
        (bytes[0], bytes[1]) = (kind, length);
        for (offset, field) in fields {
            bytes[*offset..offset + field.len()].copy_from_slice(field);
        }
        for text in texts {
            bytes.extend(text.as_bytes());
            bytes.push(0);
        }
        bytes.extend(if texts.is_empty() { &[0, 0][..] } else { &[0] });
        bytes
    }

    fn dimm(size: u16, extended: u32) -> Vec<u8> {
        let fields: [(usize, &[u8]); 9] = [
            (0x08, &72u16.to_le_bytes()),
            (0x0a, &64u16.to_le_bytes()),
            (0x0c, &size.to_le_bytes()),
            (0x10, &[1]),
            (0x11, &[2]),
            (0x12, &[0x1a]),
            (0x1b, &[2]),
            (0x1c, &extended.to_le_bytes()),
            (0x20, &3200u16.to_le_bytes()),
        ];
        structure(17, &fields, 0x54, &["P1-DIMMA1", "P0 CHANNEL A"])
    }

    #[test]
    fn reads_what_the_specification_says() {
        let table = [
            structure(0, &[(4, &[1]), (5, &[2]), (8, &[3])], 0x18, &["AMI", "2.7", "10/28/2024"]),
            structure(1, &[(4, &[1]), (5, &[2])], 0x1b, &["Supermicro", "AS -1124US-TNRP"]),
            structure(4, &[(4, &[1]), (0x16, &[0xb8, 0x0b]), (0x18, &[0x41])], 0x30, &["CPU1"]),
            structure(4, &[(4, &[1]), (0x18, &[0x00])], 0x30, &["CPU2"]),
            structure(16, &[(5, &[3]), (6, &[6])], 0x17, &[]),
            structure(16, &[(5, &[4]), (6, &[3])], 0x17, &[]),
            dimm(0x7fff, 32 << 10),
            dimm(16 << 10, 0),
            dimm(0, 0),
            structure(38, &[], 0x12, &[]),
            structure(127, &[], 4, &[]),
            vec![17, 1, 1],
        ];
        let found = Smbios::parse(&table.concat()).unwrap();
        assert_eq!(found.firmware_version.as_deref(), Some("2.7"));
        assert_eq!(found.firmware_date, Some(1_730_073_600)); // date -u -d 2024-10-28 +%s
        assert_eq!(found.system_product.as_deref(), Some("AS -1124US-TNRP"));
        assert_eq!(found.processors, [("CPU1".to_owned(), 3000)]);
        assert_eq!(found.error_correction, ["multi-bit"]);
        assert!(found.management_controller);
        assert_eq!((found.slots, found.dimms.len()), (3, 2));
        let Dimm { locator, bank, bytes, kind, mts, ranks, check_bits, persistent } = &found.dimms[0];
        assert_eq!((locator.as_str(), bank.as_str(), kind.as_str()), ("P1-DIMMA1", "P0 CHANNEL A", "DDR4"));
        assert_eq!((*bytes, *persistent), (32 << 30, false));
        assert_eq!((mts, ranks, check_bits), (&Seen::Known(3200), &Seen::Known(2), &Seen::Known(8)));
        assert_eq!(found.dimms[1].bytes, 16 << 30);
    }

    #[test]
    fn defects_are_named() {
        assert_eq!(Smbios::parse(&[]), Ok(Smbios::default()));
        assert_eq!(Smbios::parse(&[17]), Err(SmbiosError::Length(0)));
        assert_eq!(Smbios::parse(&[17, 3, 0, 0, 0, 0]), Err(SmbiosError::Length(0)));
        assert_eq!(Smbios::parse(&[17, 9, 0, 0, 0, 0]), Err(SmbiosError::Length(0)));
        assert_eq!(Smbios::parse(&[17, 4, 0, 0, b'a', 0]), Err(SmbiosError::Texts(0)));
        assert_eq!(Smbios::parse(&vec![0; MAX_TABLE + 1]), Err(SmbiosError::TooLong(MAX_TABLE + 1)));
        for wrong in ["", "13/01/2024", "10/28/24", "10-28-2024", "10/28", "a/b/c", "10/28/20245"] {
            assert_eq!(date(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(noise in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Smbios::parse(&noise);
        }

        /// A structure of a type that is read, with any length and content, leaves texts printable.
        #[test]
        fn structures_never_panic(
            kind in prop::sample::select(vec![0u8, 1, 4, 16, 17, 38, 42]),
            area in prop::collection::vec(any::<u8>(), 2..253),
            texts in prop::collection::vec(1u8.., 0..20),
        ) {
            let header = [kind, area.len() as u8 + 2];
            let table = [&header[..], &area, &texts, &[0, 0]].concat();
            let found = Smbios::parse(&table).unwrap();
            for dimm in found.dimms {
                prop_assert!(dimm.locator.bytes().all(|byte| matches!(byte, 0x20..=0x7e)));
            }
        }
    }
}
