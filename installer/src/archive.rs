//! A release as one file: a tar archive (POSIX.1-1988 ustar) without anything that could differ between two builds. The
//! installer's medium carries one, and a guest slot is one; both are read by this program and never mounted, so that no
//! kernel has to make sense of a hostile file system.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

/// Most bytes of all files together. A release of today has a third of that.
pub const MAX_BYTES: u64 = 256 << 20;
/// Most files.
const MAX_FILES: usize = 64;
/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";

/// The files of a release, by their path in the manifest.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Bytes are no archive of a release.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not of the format, or the medium fails.
    #[error("the archive of the release cannot be read: {0}; write the medium again")]
    Unreadable(#[from] io::Error),
    /// More than a release has.
    #[error(
        "the archive has more than {MAX_FILES} files or {MAX_BYTES} bytes; this is no release, write the medium again"
    )]
    TooMuch,
    /// Not an ordinary file with a plain name.
    #[error("the archive has the entry {0:?}, which no release has; write the medium again")]
    Entry(String),
}

/// Packs files.
pub fn pack(files: &Files) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o444);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, name, content.as_slice())?;
    }
    archive.into_inner()
}

/// Reads an archive up to its end mark. What follows in the same partition does not matter.
pub fn unpack(from: impl Read) -> Result<Files, ArchiveError> {
    let mut archive = tar::Archive::new(from.take(MAX_BYTES + (1 << 20)));
    let mut files = Files::new();
    let mut bytes = 0_u64;
    for entry in archive.entries()? {
        let entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let plain = name.split('/').all(|part| {
            !part.starts_with('.') && !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic())
        });
        if !plain || entry.header().entry_type() != tar::EntryType::Regular || files.contains_key(&name) {
            return Err(ArchiveError::Entry(name.chars().take(80).collect()));
        }
        let size = entry.size();
        bytes = bytes.saturating_add(size);
        if bytes > MAX_BYTES || files.len() == MAX_FILES {
            return Err(ArchiveError::TooMuch);
        }
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        entry.take(size).read_to_end(&mut content)?;
        if content.len() as u64 != size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        files.insert(name, content);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files() -> Files {
        Files::from([(MANIFEST.into(), b"{}".to_vec()), ("host/root".into(), vec![7; 5000])])
    }

    #[test]
    fn what_is_packed_is_unpacked_whatever_follows() {
        let mut packed = pack(&files()).unwrap();
        assert_eq!(packed, pack(&files()).unwrap());
        packed.resize(packed.len() + 100_000, 0xff);
        assert_eq!(unpack(packed.as_slice()).unwrap(), files());
        assert_eq!(unpack(&[0_u8; 4096][..]).unwrap(), Files::new());
    }

    #[test]
    fn what_no_release_has_is_refused() {
        let one = |name: &str, kind, size: u64| {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.resize(4096, 0);
            unpack(bytes.as_slice())
        };
        one("a", tar::EntryType::Regular, 3).unwrap();
        for name in ["../a", "/a", "a/../b", ".hidden", "a//b", "a b"] {
            assert!(matches!(one(name, tar::EntryType::Regular, 3), Err(ArchiveError::Entry(_))), "{name}");
        }
        for kind in
            [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Directory, tar::EntryType::Char]
        {
            assert!(matches!(one("a", kind, 0), Err(ArchiveError::Entry(_))), "{kind:?}");
        }
        assert!(matches!(one("a", tar::EntryType::Regular, MAX_BYTES + 1), Err(ArchiveError::TooMuch)));
        assert!(matches!(one("a", tar::EntryType::Regular, 1 << 20), Err(ArchiveError::Unreadable(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0_usize..1500) {
            let mut packed = pack(&files()).unwrap();
            for (to, from) in packed.iter_mut().skip(at).zip(&bytes) {
                *to = *from;
            }
            let _ = unpack(packed.as_slice());
            let _ = unpack(bytes.as_slice());
        }
    }
}
