//! The content-addressed store of fetched inputs: a file under the name of its SHA-256, checked when it comes in and
//! again whenever it is used.

use crate::lock::Input;
use release::Digest;
use sha2::{Digest as _, Sha256};
use std::{
    io,
    path::{Path, PathBuf},
};

/// A directory of inputs.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A file is not what the lock says, or could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Shorter or longer than locked.
    #[error("{what} has {found} bytes, the lock says {expected}: cut off or another file")]
    Size {
        /// Package and version, or path.
        what: String,
        /// Bytes by the lock.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// Another content than locked.
    #[error("{what} has SHA-256 {found}, the lock says {expected}: changed or another file")]
    Hash {
        /// Package and version, or path.
        what: String,
        /// By the lock.
        expected: Digest,
        /// Found.
        found: Digest,
    },
    /// A file in the store went bad.
    #[error(
        "the stored input {path} is damaged ({why}); nothing was built from it: remove it and run 'redoubt image fetch'"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: Box<StoreError>,
    },
    /// Reading or writing failed.
    #[error("cannot use {path}: {source}; check space and permissions of the cache")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// SHA-256 and length of a file.
pub fn hash_file(path: &Path) -> io::Result<(Digest, u64)> {
    let mut hash = Sha256::new();
    let size = io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
    Ok((Digest(hash.finalize().into()), size))
}

/// SHA-1 of a content, hexadecimal: the snapshot archive's name for it, never a check.
pub fn sha1(content: &[u8]) -> String {
    hex::encode(sha1::Sha1::digest(content))
}

fn check(input: &Input, path: &Path) -> Result<(), StoreError> {
    let (found, size) = hash_file(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    let what = || format!("{} {}", input.name, input.version);
    if size != input.size {
        return Err(StoreError::Size { what: what(), expected: input.size, found: size });
    }
    if found != input.sha256 {
        return Err(StoreError::Hash { what: what(), expected: input.sha256, found });
    }
    Ok(())
}

impl Store {
    /// The store in a directory, made as needed.
    pub fn at(root: PathBuf) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&root).map_err(|source| StoreError::Io { path: root.clone(), source })?;
        Ok(Self { root })
    }

    fn place(&self, input: &Input) -> PathBuf {
        self.root.join(input.sha256.to_string())
    }

    /// The file of an input, if it is in the store; its content is checked first.
    pub fn get(&self, input: &Input) -> Result<Option<PathBuf>, StoreError> {
        let place = self.place(input);
        if !place.exists() {
            return Ok(None);
        }
        match check(input, &place) {
            Ok(()) => Ok(Some(place)),
            Err(why) => Err(StoreError::Damaged { path: place, why: Box::new(why) }),
        }
    }

    /// A new place for a download of this input, in the store's file system.
    pub(crate) fn draft(&self) -> Result<tempfile::TempDir, StoreError> {
        tempfile::Builder::new()
            .prefix(".draft-")
            .tempdir_in(&self.root)
            .map_err(|source| StoreError::Io { path: self.root.clone(), source })
    }

    /// Takes a file into the store, by moving it, if it is the input; otherwise leaves it and says what it is.
    pub fn take(&self, input: &Input, file: &Path) -> Result<PathBuf, StoreError> {
        check(input, file)?;
        let place = self.place(input);
        std::fs::rename(file, &place).map_err(|source| StoreError::Io { path: place.clone(), source })?;
        Ok(place)
    }

    /// Takes an input from a file that stays where it is.
    pub(crate) fn copy(&self, input: &Input, file: &Path) -> Result<PathBuf, StoreError> {
        let draft = self.draft()?;
        let target = draft.path().join("file");
        std::fs::copy(file, &target).map_err(|source| StoreError::Io { path: file.to_owned(), source })?;
        self.take(input, &target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::tests::input;

    #[test]
    fn only_the_locked_content_comes_in_and_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("store")).unwrap();
        let wanted = input("a", b"content");
        assert!(store.get(&wanted).unwrap().is_none());
        let file = dir.path().join("file");
        std::fs::write(&file, b"cont").unwrap();
        assert!(matches!(store.take(&wanted, &file), Err(StoreError::Size { expected: 7, found: 4, .. })));
        std::fs::write(&file, b"CONTENT").unwrap();
        assert!(matches!(store.take(&wanted, &file), Err(StoreError::Hash { .. })));
        assert!(store.get(&wanted).unwrap().is_none());
        std::fs::write(&file, b"content").unwrap();
        let place = store.take(&wanted, &file).unwrap();
        assert_eq!(store.get(&wanted).unwrap(), Some(place.clone()));

        std::fs::write(&place, b"CONTENT").unwrap();
        let damaged = store.get(&wanted).unwrap_err();
        assert!(matches!(&damaged, StoreError::Damaged { .. }));
        assert!(damaged.to_string().contains("redoubt image fetch"), "{damaged}");
    }
}
