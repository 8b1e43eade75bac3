//! UEFI firmware (PI specification 1.8, volume 3): volumes, files, sections, and the LZMA-packed volumes in them.

use super::{Kind, MAX_UNPACKED, Part, formats::le};
use std::io::Read;

/// LZMA_CUSTOM_DECOMPRESS_GUID of edk2, as stored.
const LZMA: [u8; 16] =
    [0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf];
/// `_FVH` in a volume's header.
const SIGNATURE_AT: usize = 40;
const HEADER: usize = 56;
const FILE_HEADER: usize = 24;
const PAD_FILE: usize = 0xf0;
const SECTION_GUIDED: usize = 0x02;
const SECTION_NAME: usize = 0x15;
const SECTION_VOLUME: usize = 0x17;

fn is_volume(bytes: &[u8]) -> bool {
    bytes.get(SIGNATURE_AT..SIGNATURE_AT + 4) == Some(b"_FVH")
}

fn guid(bytes: &[u8]) -> String {
    // The first three fields are little endian.
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let text: String =
        order.iter().filter_map(|at| bytes.get(*at)).map(|byte| format!("{byte:02x}")).collect();
    let piece = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    [piece(0, 8), piece(8, 12), piece(12, 16), piece(16, 20), piece(20, 32)].join("-")
}

/// A whole flash image: its volumes and what lies between them.
pub(super) fn device(bytes: &[u8]) -> Option<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    let (mut at, mut gap) = (0, 0);
    while at + HEADER <= bytes.len() {
        let here = &bytes[at..];
        let length = if is_volume(here) { le(here, 32, 8)? } else { 0 };
        if length >= HEADER && length <= here.len() {
            if gap < at {
                parts.push(Part::new(format!("outside volumes at {gap:#x}"), &bytes[gap..at]));
            }
            parts.push(Part::new(format!("volume at {at:#x}"), &here[..length]));
            at += length;
            gap = at;
        } else {
            // Volumes begin at multiples of 16 at least.
            at += 16;
        }
    }
    if gap == 0 {
        return None;
    }
    parts.push(Part::new(format!("outside volumes at {gap:#x}"), &bytes[gap..]));
    Some(parts)
}

/// One volume: its header and its files.
pub(super) fn volume(bytes: &[u8]) -> Option<Vec<Part<'_>>> {
    // A flash image that begins with a volume is longer than that volume.
    if !is_volume(bytes) || le(bytes, 32, 8)? != bytes.len() {
        return None;
    }
    let header = le(bytes, 48, 2)?;
    let extended = le(bytes, 52, 2)?;
    let mut at = if extended == 0 { header } else { extended.checked_add(le(bytes, extended + 16, 4)?)? };
    let mut parts = vec![Part::new("volume header", bytes.get(..header)?)];
    loop {
        at = at.next_multiple_of(8);
        let Some(file) = bytes.get(at..).filter(|rest| rest.len() > FILE_HEADER) else { break };
        // Large files carry their size behind the ordinary header.
        let large = le(file, 19, 1)? & 1 != 0;
        let (size, start) =
            if large { (le(file, 24, 8)?, FILE_HEADER + 8) } else { (le(file, 20, 3)?, FILE_HEADER) };
        let Some(body) = file.get(start..size) else { break };
        let kind = le(file, 18, 1)?;
        let name = match kind {
            PAD_FILE => format!("padding at {at:#x}"),
            _ => format!("file {}{}", guid(file), title(body)),
        };
        let kind = if sections(body).is_some() { Kind::Sections } else { Kind::Detect };
        parts.push(Part::new(name.clone() + " (header)", &file[..start]));
        parts.push(Part { kind, ..Part::new(name, body) });
        at += size;
    }
    Some(parts)
}

/// The name for people in a file's sections, with a blank before it; empty if there is none.
fn title(body: &[u8]) -> String {
    let found = raw_sections(body).unwrap_or_default().into_iter().find(|(kind, _)| *kind == SECTION_NAME);
    let Some((_, text)) = found else { return String::new() };
    let units: Vec<u16> = text.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    format!(" {}", String::from_utf16_lossy(&units).trim_end_matches('\0'))
}

/// Type and content of each section.
fn raw_sections(bytes: &[u8]) -> Option<Vec<(usize, &[u8])>> {
    let mut found = Vec::new();
    let mut at = 0usize;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let kind = le(rest, 3, 1)?;
        let (size, start) = match le(rest, 0, 3)? {
            0xff_ffff => (le(rest, 4, 8)?, 8),
            size => (size, 4),
        };
        if size < start || !(1..=0x1c).contains(&kind) {
            return None;
        }
        found.push((kind, rest.get(start..size)?));
        at = (at + size).next_multiple_of(4);
    }
    Some(found)
}

/// The sections of a file, packed ones unpacked.
pub(super) fn sections(bytes: &[u8]) -> Option<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    for (index, (kind, content)) in raw_sections(bytes)?.into_iter().enumerate() {
        let part = match kind {
            SECTION_GUIDED => {
                // Offset from the section's beginning, which has a header of four bytes.
                let data = content.get(le(content, 16, 2)?.checked_sub(4)?..)?;
                match content.starts_with(&LZMA).then(|| lzma(data)).flatten() {
                    Some(unpacked) => Part {
                        kind: Kind::Sections,
                        ..Part::new(format!("section {index} (LZMA)"), unpacked)
                    },
                    None => Part::new(format!("section {index} (GUID-defined)"), content),
                }
            }
            SECTION_VOLUME => Part::new(format!("section {index} (volume)"), content),
            kind => Part::new(format!("section {index} (type {kind:#x})"), content),
        };
        parts.push(part);
    }
    Some(parts)
}

fn lzma(bytes: &[u8]) -> Option<Vec<u8>> {
    let stream = liblzma::stream::Stream::new_lzma_decoder(1 << 30).ok()?;
    let mut content = Vec::new();
    let decoder = liblzma::bufread::XzDecoder::new_stream(bytes, stream);
    decoder.take(MAX_UNPACKED as u64).read_to_end(&mut content).ok()?;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::super::differences;
    use super::*;

    fn section(kind: u8, content: &[u8]) -> Vec<u8> {
        let mut out = ((content.len() + 4) as u32).to_le_bytes()[..3].to_vec();
        out.push(kind);
        out.extend(content);
        out
    }

    fn padded(mut bytes: Vec<u8>, to: usize) -> Vec<u8> {
        bytes.resize(bytes.len().next_multiple_of(to), 0);
        bytes
    }

    /// A volume with one file.
    fn make_volume(body: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 32];
        let length = (72 + FILE_HEADER + body.len()).next_multiple_of(8);
        out.extend((length as u64).to_le_bytes());
        out.extend(b"_FVH");
        out.resize(48, 0);
        out.extend(72u16.to_le_bytes());
        out.resize(72, 0);
        out.extend([7; 16]);
        out.extend([0, 0, 7, 0]);
        out.extend(&((FILE_HEADER + body.len()) as u32).to_le_bytes()[..3]);
        out.push(0xf8);
        out.extend(body);
        out.resize(length, 0xff);
        out
    }

    /// A flash image with a packed volume, in which a program says `text`.
    fn image(text: &[u8]) -> Vec<u8> {
        let name: Vec<u8> = "Demo\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let program = [padded(section(0x10, text), 4), section(0x15, &name)].concat();
        let inner = section(0x17, &make_volume(&program));
        let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
        let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
        let mut packed = Vec::new();
        liblzma::bufread::XzEncoder::new_stream(&inner[..], stream).read_to_end(&mut packed).unwrap();
        let guided = [&LZMA[..], &24u16.to_le_bytes(), &1u16.to_le_bytes(), &packed].concat();
        [vec![0xff; 64], make_volume(&section(0x02, &guided)), vec![0xff; 64]].concat()
    }

    #[test]
    fn a_planted_byte_is_found_in_its_module_through_packing_and_volumes() {
        let found = differences("firmware.fd", &image(b"hello, world"), &image(b"hellO, world"));
        let place: Vec<&str> = found[0].place.iter().map(String::as_str).collect();
        let guid = "07070707-0707-0707-0707-070707070707";
        assert_eq!(
            place,
            [
                "firmware.fd",
                "volume at 0x40",
                &format!("file {guid}"),
                "section 0 (LZMA)",
                "section 0 (volume)",
                &format!("file {guid} Demo"),
                "section 0 (type 0x10)",
            ]
        );
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn any_bytes_can_be_looked_at() {
        let whole = image(b"hello, world");
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0xff;
            assert!(!differences("x", &whole, &flipped).is_empty(), "at {at}");
        }
    }
}
