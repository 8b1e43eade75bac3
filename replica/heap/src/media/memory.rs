//! A medium in private memory, for tests and trials.

use std::sync::{Arc, PoisonError};

use crate::sync::Mutex;

use super::{Media, MediaError, MediaKind, range};

/// Bytes in memory. Clones share them, so that a heap can be opened again within one process.
#[derive(Debug, Clone)]
pub struct MemMedia {
    bytes: Arc<Mutex<Vec<u8>>>,
    length: usize,
}

impl MemMedia {
    /// A blank medium of `length` bytes.
    pub fn new(length: usize) -> Self {
        Self::from_bytes(vec![0; length])
    }

    /// A medium with the given content.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { length: bytes.len(), bytes: Arc::new(Mutex::new(bytes)) }
    }

    /// Runs `with` on the content.
    pub fn with_bytes<T>(&self, with: impl FnOnce(&mut [u8]) -> T) -> T {
        // A panic elsewhere leaves plain bytes behind, which are as good as any.
        with(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Media for MemMedia {
    fn len(&self) -> u64 {
        self.length as u64
    }

    fn kind(&self) -> MediaKind {
        MediaKind::Memory
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let range = range("read memory", self.length, offset, into.len())?;
        self.with_bytes(|bytes| into.copy_from_slice(&bytes[range]));
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), MediaError> {
        let range = range("write memory", self.length, offset, from.len())?;
        self.with_bytes(|bytes| bytes[range].copy_from_slice(from));
        Ok(())
    }

    fn fence(&self) -> Result<(), MediaError> {
        Ok(())
    }
}
