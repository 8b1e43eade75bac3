//! Where two files differ: not only at which byte, but in which part of what they contain.
//!
//! A file is taken apart as long as it is of a known format (zstd, cpio, unified kernel image, kernel image, ELF,
//! firmware volumes), parts are
//! matched by name, and only unequal ones are looked into. What comes from elsewhere may be made to confuse: every
//! length is checked, and depth, number of parts and unpacked size are bounded.

mod firmware;
mod formats;

use serde::Serialize;
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// Layers within layers.
const MAX_DEPTH: usize = 12;
/// Differences that one comparison lists.
const MAX_DIFFERENCES: usize = 100;
/// Bytes that one layer may unpack to.
pub(crate) const MAX_UNPACKED: usize = 512 << 20;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// From the outermost file to the innermost part.
    pub place: Vec<String>,
    /// What differs there.
    pub what: What,
}

/// What differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The bytes from `first` to `last`, counted from the beginning of the part; `count` of them are unequal.
    Bytes {
        /// Offset of the first unequal byte.
        first: usize,
        /// Offset of the last one; of a longer part, its last byte.
        last: usize,
        /// How many are unequal.
        count: usize,
        /// Length of the part in the release and in the rebuild.
        lengths: (usize, usize),
    },
    /// The part is only in the release.
    OnlyInRelease,
    /// The part is only in the rebuild.
    OnlyInRebuild,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place.join(" > "))?;
        match &self.what {
            What::Bytes { first, last, count, lengths: (a, b) } => {
                write!(f, "{count} bytes differ, from byte {first:#x} to {last:#x}")?;
                if a == b { Ok(()) } else { write!(f, " (length {a} in the release, {b} in the rebuild)") }
            }
            What::OnlyInRelease => f.write_str("only in the release"),
            What::OnlyInRebuild => f.write_str("only in the rebuild"),
        }
    }
}

/// A named part of a file.
pub(crate) struct Part<'a> {
    name: String,
    content: Cow<'a, [u8]>,
    kind: Kind,
}

/// How a part is to be taken apart further.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// By its first bytes.
    Detect,
    /// As the sections of a firmware file.
    Sections,
}

impl<'a> Part<'a> {
    fn new(name: impl Into<String>, content: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { name: name.into(), content: content.into(), kind: Kind::Detect }
    }
}

/// The parts of a file of a known format; `None` for any other, and for a broken one.
fn open(content: &[u8], kind: Kind) -> Option<Vec<Part<'_>>> {
    match kind {
        Kind::Sections => firmware::sections(content),
        Kind::Detect => formats::zstd(content)
            .or_else(|| formats::cpio(content))
            .or_else(|| formats::elf(content))
            .or_else(|| formats::pe(content))
            .or_else(|| formats::kernel(content))
            .or_else(|| firmware::volume(content))
            .or_else(|| firmware::device(content)),
    }
}

/// Where the file `name` of a release differs from the rebuilt one. Empty only for equal files.
#[must_use]
pub fn differences(name: &str, release: &[u8], rebuild: &[u8]) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(vec![name.to_owned()], release, rebuild, Kind::Detect, &mut found);
    found
}

/// Where two file systems differ, given their unpacked files; the packed ones are compared if no file differs.
#[must_use]
pub fn trees(
    name: &str,
    release: &[(String, Vec<u8>)],
    rebuild: &[(String, Vec<u8>)],
    packed_release: &[u8],
    packed_rebuild: &[u8],
) -> Vec<Difference> {
    let parts =
        |files: &[(String, Vec<u8>)]| -> BTreeMap<String, Vec<u8>> { files.iter().cloned().collect() };
    let (a, b) = (parts(release), parts(rebuild));
    let mut found = Vec::new();
    for path in a.keys().chain(b.keys().filter(|path| !a.contains_key(*path))) {
        let place = vec![name.to_owned(), path.clone()];
        match (a.get(path), b.get(path)) {
            (Some(a), Some(b)) => compare(place, a, b, Kind::Detect, &mut found),
            (Some(_), None) => found.push(Difference { place, what: What::OnlyInRelease }),
            _ => found.push(Difference { place, what: What::OnlyInRebuild }),
        }
    }
    if found.is_empty() {
        compare(vec![name.to_owned()], packed_release, packed_rebuild, Kind::Detect, &mut found);
    }
    found
}

/// Names and contents of the files in a packed initrd; none if it is no such file.
#[must_use]
pub fn files(initrd: &[u8]) -> Vec<(String, Vec<u8>)> {
    let unpacked = formats::zstd(initrd).and_then(|parts| parts.into_iter().next());
    let archive = unpacked.map_or_else(|| initrd.to_vec(), |part| part.content.into_owned());
    let parts = formats::cpio(&archive).unwrap_or_default().into_iter();
    parts
        .filter(|part| !part.name.ends_with(" (header)"))
        .map(|part| (part.name, part.content.into_owned()))
        .collect()
}

/// Places of all parts in a file, outermost first.
#[must_use]
pub fn inventory(name: &str, content: &[u8]) -> Vec<Vec<String>> {
    fn walk(place: Vec<String>, content: &[u8], kind: Kind, found: &mut Vec<Vec<String>>) {
        let parts = if place.len() < MAX_DEPTH { open(content, kind) } else { None };
        found.push(place.clone());
        for part in parts.into_iter().flatten() {
            walk(place.iter().cloned().chain([part.name]).collect(), &part.content, part.kind, found);
        }
    }
    let mut found = Vec::new();
    walk(vec![name.to_owned()], content, Kind::Detect, &mut found);
    found
}

fn compare(place: Vec<String>, release: &[u8], rebuild: &[u8], kind: Kind, found: &mut Vec<Difference>) {
    if release == rebuild || found.len() >= MAX_DIFFERENCES {
        return;
    }
    let before = found.len();
    if place.len() < MAX_DEPTH
        && let (Some(a), Some(b)) = (open(release, kind), open(rebuild, kind))
    {
        let inside = |name: &str| place.iter().cloned().chain([name.to_owned()]).collect::<Vec<_>>();
        for part in &a {
            match b.iter().find(|other| other.name == part.name) {
                Some(other) => compare(inside(&part.name), &part.content, &other.content, part.kind, found),
                None => found.push(Difference { place: inside(&part.name), what: What::OnlyInRelease }),
            }
        }
        for part in b.iter().filter(|part| !a.iter().any(|other| other.name == part.name)) {
            found.push(Difference { place: inside(&part.name), what: What::OnlyInRebuild });
        }
    }
    // Not taken apart, or all parts are equal and the difference lies between them.
    if found.len() == before {
        found.push(Difference { place, what: bytes(release, rebuild) });
    }
}

fn bytes(release: &[u8], rebuild: &[u8]) -> What {
    let shorter = release.len().min(rebuild.len());
    let longer = release.len().max(rebuild.len());
    let unequal = || release.iter().zip(rebuild).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at);
    let first = unequal().next().unwrap_or(shorter);
    let last = if longer > shorter { longer - 1 } else { unequal().next_back().unwrap_or(first) };
    let count = unequal().count() + longer - shorter;
    What::Bytes { first, last, count, lengths: (release.len(), rebuild.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::{self, Entry};

    fn initrd(replica: &[u8]) -> Vec<u8> {
        let archive = cpio::archive(&mut [
            Entry { path: "init", kind: cpio::Kind::Executable(b"guest") },
            Entry { path: "replica", kind: cpio::Kind::Executable(replica) },
        ])
        .unwrap();
        zstd::bulk::compress(&archive, 3).unwrap()
    }

    #[test]
    fn a_planted_byte_in_an_initrd_is_found_in_its_file() {
        let found = differences("initrd.zst", &initrd(b"abcdef"), &initrd(b"abXdef"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].place, ["initrd.zst", "zstd content", "/replica"]);
        assert_eq!(found[0].what, What::Bytes { first: 2, last: 2, count: 1, lengths: (6, 6) });
        assert_eq!(
            found[0].to_string(),
            "initrd.zst > zstd content > /replica: 1 bytes differ, from byte 0x2 to 0x2"
        );
    }

    #[test]
    fn a_planted_byte_in_a_unified_kernel_image_is_found_in_its_section() {
        use crate::host::pe;
        let image = |line: &[u8]| {
            let sections = [(".cmdline", line), (".linux", &b"kernel"[..])];
            pe::unified_kernel_image(&pe::samples::stub(), &sections).unwrap()
        };
        let found = differences("host.efi", &image(b"quiet"), &image(b"quieT"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].place, ["host.efi", "section .cmdline"]);
        assert_eq!(found[0].what, What::Bytes { first: 4, last: 4, count: 1, lengths: (5, 5) });
        // Between the parts, where sections are filled up.
        let mut filled = image(b"quiet");
        let end = filled.len() - 1;
        filled[end] ^= 1;
        assert_eq!(differences("host.efi", &image(b"quiet"), &filled)[0].place, ["host.efi"]);
    }

    #[test]
    fn files_of_two_roots_are_matched_by_path() {
        let files = |list: &[(&str, &[u8])]| -> Vec<(String, Vec<u8>)> {
            list.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())).collect()
        };
        let (a, b) = (files(&[("/x", b"abc"), ("/y", b"1")]), files(&[("/x", b"aXc"), ("/z", b"1")]));
        let found: Vec<String> = trees("root", &a, &b, b"p", b"q").iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "root > /x: 1 bytes differ, from byte 0x1 to 0x1",
                "root > /y: only in the release",
                "root > /z: only in the rebuild"
            ]
        );
        assert_eq!(trees("root", &a, &a, b"p", b"q")[0].place, ["root"]);
        assert!(trees("root", &a, &a, b"p", b"p").is_empty());
    }

    #[test]
    fn a_file_that_is_only_on_one_side_and_a_changed_mode_are_found() {
        let a = cpio::archive(&mut [Entry { path: "dev", kind: cpio::Kind::Directory }]).unwrap();
        let b = cpio::archive(&mut [
            Entry { path: "dev", kind: cpio::Kind::Executable(b"") },
            Entry { path: "more", kind: cpio::Kind::Directory },
        ])
        .unwrap();
        let found: Vec<String> = differences("x", &a, &b).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|d| d.starts_with("x > /dev (header): ")), "{found:?}");
        assert!(found.iter().any(|d| d == "x > /more: only in the rebuild"), "{found:?}");
    }

    #[test]
    fn equal_files_have_no_difference_and_others_have_one() {
        assert!(differences("x", b"same", b"same").is_empty());
        let found = differences("x", b"same", b"samest");
        assert_eq!(found[0].what, What::Bytes { first: 4, last: 5, count: 2, lengths: (4, 6) });
        // Packed differently, same content: still a difference, and it is the packing.
        let (a, b) =
            (zstd::bulk::compress(b"content", 1).unwrap(), zstd::bulk::compress(b"content", 19).unwrap());
        if a != b {
            assert_eq!(differences("x", &a, &b)[0].place, ["x"]);
        }
    }

    #[test]
    fn cut_and_flipped_files_are_never_taken_for_equal() {
        let whole = initrd(b"abcdef");
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x55;
            assert!(!differences("x", &whole, &flipped).is_empty());
            assert!(!differences("x", &whole[..at], &whole).is_empty());
        }
    }
}
