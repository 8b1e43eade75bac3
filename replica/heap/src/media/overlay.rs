//! A medium that stays as it is: what is written is kept in RAM.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::{LINE, Media, MediaError, MediaKind, file, range};

/// An image of a medium in a file, opened for reading only, so that it can be examined and recovered without being
/// changed. What recovery writes is in RAM and gone afterwards.
#[derive(Debug)]
pub struct ImageMedia {
    file: File,
    length: u64,
    written: Mutex<HashMap<u64, [u8; LINE]>>,
}

impl ImageMedia {
    /// Opens an image, which no heap may have open for writing.
    pub fn open(path: &Path) -> Result<Self, MediaError> {
        let failed =
            |action: &str, source| MediaError::new(format!("{action} {}", path.display()), 0, 0, source);
        let file = File::open(path).map_err(|source| failed("open", source))?;
        let lock = file.try_lock_shared();
        lock.map_err(|error| failed("share (is a heap using it?)", error.into()))?;
        let length = file::size(&file).map_err(|source| failed("measure", source))?;
        Ok(Self { file, length: length / LINE as u64 * LINE as u64, written: Mutex::default() })
    }
}

impl Media for ImageMedia {
    fn len(&self) -> u64 {
        self.length
    }

    fn kind(&self) -> MediaKind {
        MediaKind::File
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let result = self.file.read_exact_at(into, offset);
        result.map_err(|source| MediaError::new("read the image", offset, into.len(), source))?;
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_empty() {
            return Ok(());
        }
        let end = offset + into.len() as u64;
        let first = offset / LINE as u64 * LINE as u64;
        for at in (first..end).step_by(LINE) {
            if let Some(line) = written.get(&at) {
                let (from, to) = (at.max(offset), (at + LINE as u64).min(end));
                let source = &line[(from - at) as usize..(to - at) as usize];
                into[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MediaError> {
        range("write the image", usize::try_from(self.length).unwrap_or(usize::MAX), offset, bytes.len())?;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, line) in (offset..).step_by(LINE).zip(bytes.as_chunks::<LINE>().0) {
            written.insert(at, *line);
        }
        Ok(())
    }

    fn fence(&self) -> Result<(), MediaError> {
        Ok(())
    }
}
