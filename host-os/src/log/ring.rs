//! A file of fixed size with the last records in it, as bytes. No I/O.
//!
//! Records follow each other and begin anew at the start of the file when its end is reached. Each has a number, one higher than
//! the one before, and a checksum, so that a reader needs nothing else: what a power cut tore, or what was overwritten in part,
//! is no record. Nothing is ever moved, and no place in the file is written more often than the others.

use sha2::{Digest, Sha256};

/// Begins a record. Its last byte is in no text in UTF-8, so that no text looks like a record.
const MAGIC: [u8; 4] = [b'L', b'O', b'G', 0xff];
/// Magic, length of the text, number, checksum.
const HEADER: usize = 4 + 4 + 8 + 8;
/// Records begin at multiples of this.
const ALIGN: usize = 8;
/// Longest text of one record, in bytes.
pub const MAX_TEXT: usize = 16 << 10;
/// Most bytes that one record takes in the file.
pub const MAX_RECORD: usize = (HEADER + MAX_TEXT).next_multiple_of(ALIGN);

/// A record that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// Where in the file it begins.
    pub at: usize,
    /// Where the one after it begins, if there is room for it.
    pub end: usize,
    /// Its number.
    pub number: u64,
    /// Its text.
    pub text: &'a [u8],
}

fn checksum(length: [u8; 4], number: [u8; 8], text: &[u8]) -> [u8; 8] {
    let digest = Sha256::new().chain_update(length).chain_update(number).chain_update(text).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    first
}

/// The bytes of a record; the text is cut off at [`MAX_TEXT`].
pub fn encode(number: u64, text: &[u8]) -> Vec<u8> {
    let text = &text[..text.len().min(MAX_TEXT)];
    let (length, number) = ((text.len() as u32).to_le_bytes(), number.to_le_bytes());
    let mut record = Vec::with_capacity(HEADER + text.len() + ALIGN);
    record.extend(MAGIC);
    record.extend(length);
    record.extend(number);
    record.extend(checksum(length, number, text));
    record.extend(text);
    record.resize(record.len().next_multiple_of(ALIGN), 0);
    record
}

/// The record that begins at `at`, if one does.
pub fn decode(file: &[u8], at: usize) -> Option<Found<'_>> {
    let record = file.get(at..)?;
    let header = record.get(..HEADER)?.strip_prefix(&MAGIC)?;
    let length: [u8; 4] = header[..4].try_into().ok()?;
    let number: [u8; 8] = header[4..12].try_into().ok()?;
    let size = usize::try_from(u32::from_le_bytes(length)).ok().filter(|size| *size <= MAX_TEXT)?;
    let text = record.get(HEADER..HEADER + size)?;
    let sound = checksum(length, number, text) == header[12..20];
    let end = at + (HEADER + size).next_multiple_of(ALIGN);
    sound.then(|| Found { at, end, number: u64::from_le_bytes(number), text })
}

/// All records, the oldest first.
pub fn scan(file: &[u8]) -> Vec<Found<'_>> {
    let (mut at, mut found) = (0, Vec::new());
    while at < file.len() {
        match decode(file, at) {
            Some(record) => {
                at = record.end;
                found.push(record);
            }
            None => at += ALIGN,
        }
    }
    found.sort_by_key(|record| record.number);
    found
}

/// Where the next record goes, in a file of `size` bytes, if `end` is where the last one ended.
pub fn place(end: usize, record: usize, size: usize) -> usize {
    if end + record <= size { end } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 8192;
    const SECTOR: usize = 512;

    /// A disk that keeps what was flushed, and of the rest what it likes, sector by sector.
    struct Disk {
        now: Vec<u8>,
        kept: Vec<u8>,
    }

    impl Disk {
        fn cut(&self, kept: &[bool]) -> Vec<u8> {
            let mut after = self.kept.clone();
            for (sector, keep) in kept.iter().enumerate().filter(|(_, keep)| **keep) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                assert!(keep);
                after[range.clone()].copy_from_slice(&self.now[range]);
            }
            after
        }
    }

    proptest! {
        /// After a power cut at any time everything that was flushed is there, but for what later records went over; and
        /// nothing is there that was never written.
        #[test]
        fn flushed_records_survive_a_power_cut(
            texts in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..700), any::<bool>()), 1..60),
            kept in proptest::collection::vec(any::<bool>(), SIZE / SECTOR),
        ) {
            let mut disk = Disk { now: vec![0; SIZE], kept: vec![0; SIZE] };
            let (mut end, mut places, mut flushed) = (0, Vec::new(), 0);
            for (number, (text, flush)) in texts.iter().enumerate() {
                let record = encode(number as u64, text);
                let at = place(end, record.len(), SIZE);
                disk.now[at..at + record.len()].copy_from_slice(&record);
                end = at + record.len();
                places.push(at..end);
                if *flush {
                    disk.kept.clone_from(&disk.now);
                    flushed = number + 1;
                }
            }
            let after = disk.cut(&kept);
            let found = scan(&after);
            for record in &found {
                let number = usize::try_from(record.number).unwrap();
                prop_assert_eq!(record.text, texts[number].0.as_slice());
                prop_assert_eq!(places[number].start, record.at);
            }
            for number in 0..flushed {
                let whole = places[number + 1..].iter().all(|later| later.end <= places[number].start || places[number].end <= later.start);
                prop_assert_eq!(
                    whole, found.iter().any(|record| record.number == number as u64) && whole, "record {}", number
                );
            }
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000), at in 0..2000_usize) {
            let _ = (scan(&bytes), decode(&bytes, at));
            for start in (0..bytes.len().saturating_sub(4)).step_by(64) {
                bytes[start..start + 4].copy_from_slice(&MAGIC);
            }
            prop_assert!(scan(&bytes).is_empty());
        }
    }

    #[test]
    fn a_record_is_found_only_as_it_was_written() {
        let record = encode(7, b"text");
        assert_eq!(scan(&record), [Found { at: 0, end: 32, number: 7, text: b"text" }]);
        for bit in 0..(HEADER + 4) * 8 {
            let mut other = record.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(scan(&other).is_empty(), "bit {bit}");
        }
        assert_eq!(encode(1, &vec![b'x'; MAX_TEXT + 1]).len(), MAX_RECORD);
    }
}
