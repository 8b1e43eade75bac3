//! Access to memory that others can change at any time.
#![allow(unsafe_code, reason = "mapping a device and storing to it past the cache have no safe form")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

use super::{LINE, stream};
use crate::batch::{PAGE, Page};
use crate::checksum::PageSum;

const WORD: usize = size_of::<u64>();

/// A shared, writable mapping of the beginning of a file. No reference into it ever exists: all access is by
/// volatile loads and by stores through the raw pointer, since the other side may write concurrently.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to the thread that made it.
unsafe impl Send for Mapping {}

// SAFETY: loads are volatile and stores go through the raw pointer; threads never share a reference into the
// mapping, and bytes that change while they are read are what every reader of shared memory must expect.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(file: &File, length: usize) -> io::Result<Self> {
        Self::with(file, length, MapFlags::MAP_SHARED)
    }

    /// The same with MAP_SYNC, which the kernel refuses where stores alone are not durable.
    pub(super) fn new_sync(file: &File, length: usize) -> io::Result<Self> {
        Self::with(file, length, MapFlags::MAP_SHARED_VALIDATE | MapFlags::MAP_SYNC)
    }

    fn with(file: &File, length: usize, flags: MapFlags) -> io::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mmap(None, size, access, flags, file, 0) }?;
        Ok(Self { start: start.cast(), length })
    }

    /// Has the kernel map all of it now, and not page by page when it is first written.
    pub(super) fn prefault(&self) -> io::Result<()> {
        let advice = MmapAdvise::MADV_POPULATE_WRITE;
        // SAFETY: the range is exactly the mapping; its content stays as it is.
        Ok(unsafe { madvise(self.start.cast(), self.length, advice) }?)
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Copies bytes out, fetching each word of the mapping once.
    ///
    /// # Panics
    /// If the range is not within the mapping.
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(
            offset.checked_add(into.len()).is_some_and(|end| end <= self.length),
            "read within the mapping"
        );
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let skip = at % WORD;
            let count = (WORD - skip).min(rest.len());
            // SAFETY: the aligned word at `at - skip` lies within the mapping, whose start is page aligned and
            // whose length is a multiple of the word: `at` is below the end by the assertion above.
            let word = unsafe { self.start.add(at - skip).cast::<u64>().read_volatile() };
            let (head, tail) = rest.split_at_mut(count);
            head.copy_from_slice(&word.to_ne_bytes()[skip..skip + count]);
            rest = tail;
            at += count;
        }
    }

    /// Streams whole cache lines into the mapping, past the cache where the processor can.
    ///
    /// # Panics
    /// If the range is not within the mapping, or not on whole cache lines.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.length),
            "write within the mapping"
        );
        assert!(offset.is_multiple_of(LINE) && bytes.len().is_multiple_of(LINE), "write whole cache lines");
        for (index, line) in bytes.as_chunks::<LINE>().0.iter().enumerate() {
            // SAFETY: the line lies within the mapping (asserted above) and is aligned to 64 bytes, since the
            // mapping is page aligned and the offset is a multiple of 64.
            unsafe { stream::line(self.start.add(offset + index * LINE), line) };
        }
    }

    /// Streams a page into the mapping and fetches the next meanwhile.
    ///
    /// # Panics
    /// If the range is not within the mapping, or not on whole cache lines.
    pub(super) fn write_page(&self, offset: usize, page: &Page, next: &Page) {
        // SAFETY: checked there.
        unsafe { stream::page(self.place(offset), page, next) }
    }

    /// The same, and gives the page's checksum.
    ///
    /// # Panics
    /// If the range is not within the mapping, or not on whole cache lines.
    pub(super) fn write_page_summed(&self, offset: usize, page: &Page, next: &Page) -> PageSum {
        // SAFETY: checked there.
        unsafe { stream::page_summed(self.place(offset), page, next) }
    }

    /// The address of a page: within the mapping, and aligned to 64.
    fn place(&self, offset: usize) -> NonNull<u8> {
        assert!(
            offset.checked_add(PAGE).is_some_and(|end| end <= self.length) && offset.is_multiple_of(LINE),
            "a page within the mapping, on whole cache lines"
        );
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.start.add(offset) }
    }

    /// Orders and drains all earlier stores.
    pub(super) fn fence(&self) {
        // Also keeps the compiler from moving stores across.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `sfence` is part of SSE, which every x86-64 processor has; it only orders stores.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length, and nothing refers to it any more. An error cannot be acted on.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

/// Whether a file's pages are persistent memory itself, by statx(2).
pub(super) fn is_dax(file: &File) -> io::Result<bool> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an open descriptor, an empty path that says so, and room for the answer, which may be all zeros.
    let found = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        if libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, 0, found.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        found.assume_init()
    };
    Ok(found.stx_attributes & libc::STATX_ATTR_DAX as u64 != 0)
}
