//! Formats of the kernel and the initrd.

use super::{MAX_UNPACKED, Part};
use std::io::Read;

/// Entries or sections that are looked at.
const MAX_PARTS: usize = 100_000;

pub(super) fn le(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    let number = field.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    usize::try_from(number).ok()
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(length)?)
}

/// One zstd frame, and what follows it (the kernel's payload carries its length there).
pub(super) fn zstd(bytes: &[u8]) -> Option<Vec<Part<'_>>> {
    if !bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return None;
    }
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).ok()?.single_frame();
    let mut content = Vec::new();
    (&mut decoder).take(MAX_UNPACKED as u64).read_to_end(&mut content).ok()?;
    let rest = decoder.finish();
    Some(vec![Part::new("zstd content", content), Part::new("behind the zstd frame", rest)])
}

/// A `newc` archive: for each entry its content and its header.
pub(super) fn cpio(bytes: &[u8]) -> Option<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    let mut at = 0usize;
    while parts.len() < MAX_PARTS {
        let header = slice(bytes, at, 110)?;
        if !header.starts_with(b"070701") {
            return None;
        }
        let field = |index: usize| {
            let text = std::str::from_utf8(&header[6 + 8 * index..14 + 8 * index]).ok()?;
            usize::from_str_radix(text, 16).ok()
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let name = slice(bytes, at + 110, name_size)?;
        let name = String::from_utf8_lossy(name.strip_suffix(b"\0")?);
        let start = (at + 110 + name_size).next_multiple_of(4);
        let content = slice(bytes, start, size)?;
        if name == "TRAILER!!!" {
            return Some(parts);
        }
        // The inode number follows from the order of the entries: it is no difference of this one.
        parts.push(Part::new(format!("/{name} (header)"), &header[14..]));
        parts.push(Part::new(format!("/{name}"), content));
        at = (start + size).next_multiple_of(4);
    }
    None
}

/// A unified kernel image by its headers and sections. (A kernel is an executable of UEFI too, but has no `.linux`.)
pub(super) fn pe(bytes: &[u8]) -> Option<Vec<Part<'_>>> {
    let sections = crate::host::pe::sections(bytes).ok()?;
    if !sections.iter().any(|(name, _)| name == ".linux") {
        return None;
    }
    let start = |content: &[u8]| content.as_ptr() as usize - bytes.as_ptr() as usize;
    let first = sections.iter().map(|(_, content)| start(content)).min()?;
    let mut parts = vec![Part::new("headers", bytes.get(..first)?)];
    parts.extend(sections.into_iter().map(|(name, content)| Part::new(format!("section {name}"), content)));
    Some(parts)
}

/// A Linux image for x86 (Documentation/arch/x86/boot.rst): the setup code, the decompressor, the packed kernel.
pub(super) fn kernel(bytes: &[u8]) -> Option<Vec<Part<'_>>> {
    if slice(bytes, 0x202, 4)? != b"HdrS" {
        return None;
    }
    let code = (le(bytes, 0x1f1, 1)? + 1) * 512;
    let payload = code.checked_add(le(bytes, 0x248, 4)?)?;
    let end = payload.checked_add(le(bytes, 0x24c, 4)?)?;
    Some(vec![
        Part::new("setup code", bytes.get(..code)?),
        Part::new("decompressor, before the packed kernel", bytes.get(code..payload)?),
        Part::new("packed kernel", bytes.get(payload..end)?),
        Part::new("decompressor, behind the packed kernel", bytes.get(end..)?),
    ])
}

/// A 64-bit little-endian ELF file, by its sections.
pub(super) fn elf(bytes: &[u8]) -> Option<Vec<Part<'_>>> {
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry) = (le(bytes, 40, 8)?, le(bytes, 58, 2)?);
    let (count, names) = (le(bytes, 60, 2)?, le(bytes, 62, 2)?);
    let header = |index: usize| slice(bytes, table.checked_add(index.checked_mul(entry)?)?, 64);
    let content = |header: &[u8]| {
        // SHT_NOBITS takes no room in the file.
        let length = if le(header, 4, 4)? == 8 { 0 } else { le(header, 32, 8)? };
        Some((le(header, 24, 8)?, length))
    };
    let (at, length) = content(header(names)?)?;
    let strings = slice(bytes, at, length)?;
    let mut parts = vec![Part::new("ELF header", slice(bytes, 0, 64)?)];
    for index in 1..count {
        let header = header(index)?;
        let name = strings.get(le(header, 0, 4)?..)?.split(|byte| *byte == 0).next()?;
        let name = format!("section {index} {}", String::from_utf8_lossy(name));
        let (at, length) = content(header)?;
        parts.push(Part::new(name.clone() + " (header)", header));
        parts.push(Part::new(name, slice(bytes, at, length)?));
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::super::differences;

    #[test]
    fn a_planted_byte_in_a_program_is_found_in_its_section() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let mut planted = whole.clone();
        // The test's own text, in whatever section the compiler put it.
        let text = b"a text to be found in a section of this very program";
        let at = whole.windows(text.len()).position(|w| w == text).unwrap();
        planted[at] ^= 1;
        let found = differences("program", &whole, &planted);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].to_string().starts_with("program > section "), "{}", found[0]);
        assert!(found[0].to_string().contains(".rodata: 1 bytes differ"), "{}", found[0]);
    }
}
