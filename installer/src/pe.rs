//! Unified kernel images: sections added to systemd's stub, the Authenticode hash of the result, and the place of its
//! signature (Microsoft "PE Format"; UAPI Unified Kernel Image specification; "Windows Authenticode Portable Executable
//! Signature Format").
//!
//! Only files whose content is headers and sections, one after the other, are handled: what the stub is and what this
//! module makes of it.

use sha2::{Digest, Sha256};

/// Initialised data, readable.
const DATA: u32 = 0x4000_0040;
/// Code, readable: what ukify marks the kernel as.
const CODE: u32 = 0x4000_0020;
/// Size of a section's entry in the table.
const SECTION: usize = 40;

/// A file is not an executable that this module handles.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// Not a PE32+ file.
    #[error("this is no UEFI executable for 64-bit machines ({0}); take it from the locked package again")]
    Format(&'static str),
    /// No free place.
    #[error("the stub's headers have no place for section {0}; it cannot carry a kernel image")]
    Headers(String),
    /// Already signed.
    #[error("the image is signed already; signatures are attached to unsigned images only")]
    Signed,
    /// Longer than the format allows.
    #[error("the image is longer than 4 GiB")]
    Size,
}

/// Where the parts of the headers are.
struct Layout {
    /// Number of sections, in the COFF header.
    sections_at: usize,
    sections: usize,
    /// The optional header.
    optional: usize,
    /// The section table.
    table: usize,
}

fn number(pe: &[u8], at: usize) -> Result<usize, PeError> {
    let bytes = pe.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(|bytes| u32::from_le_bytes(bytes) as usize).ok_or(PeError::Format("it is cut off"))
}

fn short(pe: &[u8], at: usize) -> Result<usize, PeError> {
    let bytes = pe.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    bytes.map(|bytes| u16::from_le_bytes(bytes) as usize).ok_or(PeError::Format("it is cut off"))
}

fn put(pe: &mut [u8], at: usize, value: usize) -> Result<(), PeError> {
    let value = u32::try_from(value).map_err(|_| PeError::Size)?;
    pe[at..at + 4].copy_from_slice(&value.to_le_bytes());
    Ok(())
}

impl Layout {
    fn of(pe: &[u8]) -> Result<Self, PeError> {
        if !pe.starts_with(b"MZ") {
            return Err(PeError::Format("no DOS header"));
        }
        let coff = number(pe, 0x3c)?;
        if pe.get(coff..coff + 4) != Some(b"PE\0\0") || short(pe, coff + 4)? != 0x8664 {
            return Err(PeError::Format("no header for x86-64"));
        }
        let optional = coff + 24;
        if short(pe, optional)? != 0x20b || number(pe, optional + 108)? < 5 {
            return Err(PeError::Format("no PE32+ header with five directories"));
        }
        let table = optional + short(pe, coff + 20)?;
        let sections = short(pe, coff + 6)?;
        if pe.len() < table + sections * SECTION || table < optional + 152 {
            return Err(PeError::Format("its section table is cut off"));
        }
        Ok(Self { sections_at: coff + 6, sections, optional, table })
    }

    fn section_alignment(&self, pe: &[u8]) -> Result<usize, PeError> {
        number(pe, self.optional + 32)
    }

    fn file_alignment(&self, pe: &[u8]) -> Result<usize, PeError> {
        number(pe, self.optional + 36)
    }

    fn size_of_image(&self) -> usize {
        self.optional + 56
    }

    fn size_of_headers(&self, pe: &[u8]) -> Result<usize, PeError> {
        number(pe, self.optional + 60)
    }

    fn checksum(&self) -> usize {
        self.optional + 64
    }

    /// Directory 4: where the signature is.
    fn certificates(&self) -> usize {
        self.optional + 112 + 4 * 8
    }
}

/// The stub with these sections after its own, in this order. The kernel (`.linux`) comes last.
pub fn unified_kernel_image(stub: &[u8], sections: &[(&str, &[u8])]) -> Result<Vec<u8>, PeError> {
    let layout = Layout::of(stub)?;
    let mut pe = stub.to_vec();
    let (alignment, file_alignment) = (layout.section_alignment(stub)?, layout.file_alignment(stub)?);
    if !alignment.is_power_of_two() || !file_alignment.is_power_of_two() {
        return Err(PeError::Format("its alignments are no powers of two"));
    }
    let mut address = 0;
    for index in 0..layout.sections {
        let at = layout.table + index * SECTION;
        address = address.max(number(&pe, at + 12)? + number(&pe, at + 8)?);
    }
    for (index, (name, content)) in sections.iter().enumerate() {
        let at = layout.table + (layout.sections + index) * SECTION;
        let used = pe.get(at..at + SECTION).is_none_or(|place| place.iter().any(|byte| *byte != 0));
        if at + SECTION > layout.size_of_headers(&pe)? || used || name.len() > 8 {
            return Err(PeError::Headers((*name).to_owned()));
        }
        address = address.next_multiple_of(alignment);
        pe.resize(pe.len().next_multiple_of(file_alignment), 0);
        let place = pe.len();
        let flags = if *name == ".linux" { CODE } else { DATA };
        pe[at..at + name.len()].copy_from_slice(name.as_bytes());
        put(&mut pe, at + 8, content.len())?;
        put(&mut pe, at + 12, address)?;
        put(&mut pe, at + 16, content.len().next_multiple_of(file_alignment))?;
        put(&mut pe, at + 20, place)?;
        put(&mut pe, at + 36, flags as usize)?;
        pe.extend_from_slice(content);
        pe.resize(pe.len().next_multiple_of(file_alignment), 0);
        address += content.len();
    }
    let count = u16::try_from(layout.sections + sections.len()).map_err(|_| PeError::Size)?;
    pe[layout.sections_at..layout.sections_at + 2].copy_from_slice(&count.to_le_bytes());
    put(&mut pe, layout.size_of_image(), address.next_multiple_of(alignment))?;
    // Not needed by UEFI, and another one with each signature.
    put(&mut pe, layout.checksum(), 0)?;
    // Signatures begin at multiples of eight bytes, and fill bytes would count in the hash.
    pe.resize(pe.len().next_multiple_of(8), 0);
    Ok(pe)
}

/// Content of the section with this name, which must be in the file whole.
#[must_use]
pub fn section<'a>(pe: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let layout = Layout::of(pe).ok()?;
    let mut wanted = [0; 8];
    wanted.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    (0..layout.sections).map(|index| layout.table + index * SECTION).find_map(|at| {
        let length = number(pe, at + 8).ok()?.min(number(pe, at + 16).ok()?);
        let from = number(pe, at + 20).ok()?;
        (pe[at..at + 8] == wanted).then(|| pe.get(from..from + length)).flatten()
    })
}

/// The Authenticode hash (SHA-256) of an unsigned image: what its signature signs.
pub fn authenticode_hash(pe: &[u8]) -> Result<[u8; 32], PeError> {
    let layout = Layout::of(pe)?;
    let (checksum, certificates) = (layout.checksum(), layout.certificates());
    if number(pe, certificates + 4)? != 0 {
        return Err(PeError::Signed);
    }
    let mut hash = Sha256::new();
    for range in [0..checksum, checksum + 4..certificates, certificates + 8..pe.len()] {
        hash.update(&pe[range]);
    }
    Ok(hash.finalize().into())
}

/// Names and contents of the sections of an image, in the order of its table.
pub fn sections(pe: &[u8]) -> Result<Vec<(String, &[u8])>, PeError> {
    let layout = Layout::of(pe)?;
    (0..layout.sections)
        .map(|index| {
            let at = layout.table + index * SECTION;
            let name = pe[at..at + 8].split(|byte| *byte == 0).next().unwrap_or_default();
            // In the file a section is filled up to a multiple of the alignment.
            let length = number(pe, at + 8)?.min(number(pe, at + 16)?);
            let start = number(pe, at + 20)?;
            let content = start.checked_add(length).and_then(|end| pe.get(start..end));
            let content = content.ok_or(PeError::Format("a section is cut off"))?;
            Ok((String::from_utf8_lossy(name).into_owned(), content))
        })
        .collect()
}

/// The image with a detached signature (PKCS #7, DER) attached.
pub fn attach(pe: &[u8], signature: &[u8]) -> Result<Vec<u8>, PeError> {
    let layout = Layout::of(pe)?;
    if number(pe, layout.certificates() + 4)? != 0 {
        return Err(PeError::Signed);
    }
    if !pe.len().is_multiple_of(8) {
        return Err(PeError::Format("its length is no multiple of eight"));
    }
    let mut signed = pe.to_vec();
    let length = (8 + signature.len()).next_multiple_of(8);
    put(&mut signed, layout.certificates(), pe.len())?;
    put(&mut signed, layout.certificates() + 4, length)?;
    // WIN_CERTIFICATE: length, revision 2.0, type PKCS signed data.
    signed.extend(u32::try_from(length).map_err(|_| PeError::Size)?.to_le_bytes());
    signed.extend([0x00, 0x02, 0x02, 0x00]);
    signed.extend(signature);
    signed.resize(pe.len() + length, 0);
    Ok(signed)
}

/// Executables for tests.
#[cfg(any(test, feature = "samples"))]
pub mod samples {
    fn word(pe: &mut [u8], at: usize, value: u32) {
        pe[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// A stub with one section and place for two more.
    pub fn stub() -> Vec<u8> {
        let mut pe = vec![0; 0x400];
        pe[..2].copy_from_slice(b"MZ");
        pe[0x3c] = 0x80;
        pe[0x80..0x84].copy_from_slice(b"PE\0\0");
        pe[0x84..0x86].copy_from_slice(&0x8664_u16.to_le_bytes());
        pe[0x86] = 1;
        pe[0x94] = 240;
        let optional = 0x98;
        pe[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
        for (at, value) in [(32, 0x1000), (36, 0x200), (56, 0x2000), (60, 0x200), (108, 16)] {
            word(&mut pe, optional + at, value);
        }
        let table = optional + 240;
        for (at, value) in [(8, 0x123), (12, 0x1000), (16, 0x200), (20, 0x200)] {
            word(&mut pe, table + at, value);
        }
        pe[table..table + 5].copy_from_slice(b".text");
        pe
    }
}

#[cfg(test)]
mod tests {
    use super::{samples::stub, *};
    use proptest::prelude::*;

    #[test]
    fn sections_follow_the_stubs_own() {
        let kernel = vec![0xaa; 0x1001];
        let image = unified_kernel_image(&stub(), &[(".cmdline", b"quiet"), (".linux", &kernel)]).unwrap();
        let file = object::read::pe::PeFile64::parse(image.as_slice()).unwrap();
        use object::{Object, ObjectSection};
        let sections: Vec<_> = file
            .sections()
            .map(|s| (s.name().unwrap().to_owned(), s.address(), s.size(), s.file_range().unwrap()))
            .collect();
        assert_eq!(sections[1], (".cmdline".into(), 0x2000, 5, (0x400, 5)));
        assert_eq!(sections[2], (".linux".into(), 0x3000, 0x1001, (0x600, 0x1001)));
        assert_eq!(file.nt_headers().optional_header.size_of_image.get(object::LittleEndian), 0x5000);
        assert_eq!(section(&image, ".cmdline"), Some(&b"quiet"[..]));
        assert_eq!(section(&image, ".linux"), Some(kernel.as_slice()));
        assert_eq!(section(&image, ".initrd"), None);
        let full = unified_kernel_image(&image, &[(".more", b"x")]);
        assert_eq!(full.unwrap_err(), PeError::Headers(".more".into()));
    }

    #[test]
    fn the_hash_covers_all_but_the_signature() {
        let image = unified_kernel_image(&stub(), &[(".cmdline", b"quiet")]).unwrap();
        let hash = authenticode_hash(&image).unwrap();
        let layout = Layout::of(&image).unwrap();
        for at in 0..image.len() {
            let mut changed = image.clone();
            changed[at] ^= 1;
            let excluded = (layout.checksum()..layout.checksum() + 4).contains(&at)
                || (layout.certificates()..layout.certificates() + 8).contains(&at);
            // Some headers' bytes make it unreadable instead.
            assert_eq!(
                authenticode_hash(&changed).is_ok_and(|found| found == hash),
                excluded && at < layout.certificates() + 4,
                "{at}"
            );
        }
        let signed = attach(&image, b"signature").unwrap();
        assert!(signed.ends_with(b"signature\0\0\0\0\0\0\0"));
        assert_eq!(authenticode_hash(&signed), Err(PeError::Signed));
        assert_eq!(attach(&signed, b"signature"), Err(PeError::Signed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), keep in 0..0x200_usize) {
            let stub = stub();
            let keep = keep.min(bytes.len());
            bytes[..keep].copy_from_slice(&stub[..keep]);
            let _ = authenticode_hash(&bytes);
            let _ = section(&bytes, ".text");
            let _ = attach(&bytes, b"x");
            let _ = unified_kernel_image(&bytes, &[(".linux", b"x")]);
        }
    }
}
