//! What ours is measured against: copying and sealing without a heap.
#![allow(unsafe_code, reason = "plain copies to a shared mapping, which the reference is, have no safe form")]

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;

use heap::{PAGE, Page};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::Failure;

/// Shared memory that pages are copied to, one behind the other, around and around.
pub(crate) struct Destination {
    start: NonNull<u8>,
    length: usize,
    next: usize,
}

impl Destination {
    /// Makes it, and writes all of it once.
    pub(crate) fn new(path: &Path, length: usize) -> Result<Self, Failure> {
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(length as u64)?;
        let size = NonZeroUsize::new(length).ok_or("no length")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file.as_fd(), 0) }?.cast::<u8>();
        // SAFETY: the mapping has this length and is ours alone.
        unsafe { start.write_bytes(1, length) };
        Ok(Self { start, length, next: 0 })
    }

    /// Copies a page to the next place.
    #[inline]
    pub(crate) fn copy(&mut self, page: &Page) {
        // SAFETY: the page at `next` lies within the mapping, which nothing else refers to.
        unsafe { self.start.add(self.next).copy_from_nonoverlapping(NonNull::from(page).cast(), PAGE) };
        self.next = (self.next + PAGE) % self.length;
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

/// Sealing as the library offers it.
pub(crate) struct Aead {
    key: LessSafeKey,
    buffer: Box<Page>,
    count: u64,
}

impl Aead {
    pub(crate) fn new() -> Result<Self, Failure> {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| "no key")?;
        Ok(Self { key: LessSafeKey::new(key), buffer: Box::new([3; PAGE]), count: 0 })
    }

    /// Seals a page that lies in the cache.
    #[inline]
    pub(crate) fn seal(&mut self) -> Result<(), Failure> {
        self.count += 1;
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.count.to_le_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut self.buffer[..]);
        let _ = std::hint::black_box(sealed.map_err(|_| "not sealed")?);
        Ok(())
    }
}
