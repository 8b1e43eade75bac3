//! The cache of expensive outputs, by the hash of their inputs, outside the checkout.
//!
//! An entry appears whole or not at all: it is made in a directory beside its place and renamed.

use crate::{
    error::Result,
    files::{self, FileError, failed},
};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Accumulates the inputs of one output.
#[derive(Default, Clone)]
pub struct Key(Sha256);

impl Key {
    /// Adds one named input. Name and value are length-prefixed, so that no two lists collide.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), value.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The key as lower-case hexadecimal.
    #[must_use]
    pub fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}

/// The environment names no place for the cache.
#[derive(Debug, thiserror::Error)]
#[error("no place for the cache: set HOME, XDG_CACHE_HOME or REDOUBT_CACHE")]
pub struct NoPlace;

/// A directory of finished outputs.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$REDOUBT_CACHE`, else `$XDG_CACHE_HOME/redoubt`, else `~/.cache/redoubt`.
    pub fn open() -> Result<Self> {
        let root = match (std::env::var_os("REDOUBT_CACHE"), std::env::var_os("XDG_CACHE_HOME")) {
            (Some(root), _) => PathBuf::from(root),
            (None, Some(base)) => PathBuf::from(base).join("redoubt"),
            (None, None) => {
                let home = std::env::var_os("HOME").ok_or(NoPlace)?;
                PathBuf::from(home).join(".cache/redoubt")
            }
        };
        Ok(Self::at(root)?)
    }

    /// A cache in a directory of the caller's choice, made as needed.
    pub fn at(root: PathBuf) -> Result<Self, FileError> {
        files::make_folder(&root)?;
        Ok(Self { root })
    }

    /// A folder in the cache that is no entry.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn place(&self, kind: &str, key: Key) -> PathBuf {
        self.root.join(format!("{kind}-{}", &key.finish()[..32]))
    }

    /// The directory of the entry `kind` with these inputs, if it is there.
    #[must_use]
    pub fn find(&self, kind: &str, key: Key) -> Option<PathBuf> {
        Some(self.place(kind, key)).filter(|place| place.is_dir())
    }

    /// The directory of the entry `kind` with these inputs, made by `make` (given an empty directory) if
    /// it is not there yet.
    pub fn entry<E: From<FileError>>(
        &self,
        kind: &str,
        key: Key,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let place = self.place(kind, key);
        if place.is_dir() {
            return Ok(place);
        }
        let draft = tempfile::Builder::new()
            .prefix(&format!(".{kind}-"))
            .tempdir_in(&self.root)
            .map_err(failed("write into the cache", &self.root))?;
        make(draft.path())?;
        let draft = draft.keep();
        match std::fs::rename(&draft, &place) {
            Ok(()) => {}
            // Somebody else made the same entry meanwhile: same inputs, so theirs is as good.
            Err(_) if place.is_dir() => std::fs::remove_dir_all(&draft).map_err(failed("remove", &draft))?,
            Err(error) => return Err(failed("move to its place in the cache", &draft)(error).into()),
        }
        Ok(place)
    }
}

/// SHA-256 of a file, as lower-case hexadecimal.
pub fn sha256_file(path: &Path) -> Result<String, FileError> {
    let (digest, _) = crate::store::hash_file(path).map_err(failed("read", path))?;
    Ok(digest.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_made_once_and_a_failed_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let key = || Key::default().with("a", "1");
        let broken =
            |_: &Path| Err(FileError { doing: "x", path: "y".into(), source: std::io::Error::other("z") });
        assert!(cache.entry("x", key(), broken).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("cache")).unwrap().count(), 0);
        let first = cache.entry("x", key(), |d| files::write(&d.join("f"), "content")).unwrap();
        let again = cache.entry("x", key(), broken).unwrap();
        assert_eq!(first, again);
        assert_eq!(std::fs::read(again.join("f")).unwrap(), b"content");
    }

    #[test]
    fn inputs_do_not_run_into_each_other() {
        let one = Key::default().with("ab", "c").finish();
        let two = Key::default().with("a", "bc").finish();
        assert_ne!(one, two);
    }
}
