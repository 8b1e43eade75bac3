//! The locked inputs of one build: the lock, the store, and where missing files come from.

use crate::{
    cache::Cache,
    fetch::{self, FetchError, Sources},
    lock::{Input, Lock, LockError},
    recipe,
    store::{Store, StoreError},
};
use std::path::{Path, PathBuf};

/// Everything that a build takes from outside the repository.
pub struct Inputs {
    /// What is locked.
    pub lock: Lock,
    /// What has been fetched.
    pub store: Store,
    /// Where the rest comes from.
    pub sources: Sources,
}

/// The inputs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputsError {
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl Inputs {
    /// The inputs of a repository, with the store in this cache.
    pub fn open(repository: &Path, cache: &Cache, sources: Sources) -> Result<Self, InputsError> {
        let lock = Lock::read(&recipe::folder(repository))?;
        Ok(Self { lock, store: Store::at(cache.folder("store"))?, sources })
    }

    /// The one file of a group, in the store.
    pub fn file(&self, group: &str) -> Result<(&Input, PathBuf), InputsError> {
        let input = self.lock.group(group)?[0];
        Ok((input, fetch::input(&self.store, input, &self.sources)?))
    }

    /// All files of a group, in the store.
    pub fn files(&self, group: &str) -> Result<Vec<(&Input, PathBuf)>, InputsError> {
        let fetched = self.lock.group(group)?.into_iter();
        fetched.map(|input| Ok((input, fetch::input(&self.store, input, &self.sources)?))).collect()
    }
}
