//! Access to memory that others can change at any time.
#![allow(unsafe_code, reason = "mapping a device and storing to it past the cache have no safe form")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use nix::libc;
#[cfg(not(miri))]
use nix::sys::mman::mmap;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, munmap};

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
        #[cfg(not(miri))]
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mmap(None, size, access, flags, file, 0) }?;
        // Miri maps no files; memory that is new is as good to it.
        #[cfg(miri)]
        // SAFETY: as above.
        let start = unsafe { nix::sys::mman::mmap_anonymous(None, size, access, MapFlags::MAP_PRIVATE) }?;
        #[cfg(miri)]
        let _ = (file, flags);
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
        // SAFETY: the bytes lie within the mapping (asserted above) and are aligned to 64, since the mapping is page
        // aligned and the offset is a multiple of 64.
        unsafe { stream::lines(self.start.add(offset), bytes) };
    }

    /// Streams a page into the mapping, fetches the next meanwhile, and gives the page's checksum.
    ///
    /// # Panics
    /// If the range is not within the mapping, or not on whole cache lines.
    pub(super) fn write_page_summed(&self, offset: usize, page: &Page, next: &Page) -> PageSum {
        assert!(
            offset.checked_add(PAGE).is_some_and(|end| end <= self.length) && offset.is_multiple_of(LINE),
            "a page within the mapping, on whole cache lines"
        );
        // SAFETY: the page lies within the mapping (asserted above) and is aligned to 64, as in `write`.
        unsafe { stream::page_summed(self.start.add(offset), page, next) }
    }

    /// Orders and drains all earlier stores.
    pub(super) fn fence(&self) {
        // Also keeps the compiler from moving stores across.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::checksum::page_sum;

    const LENGTH: usize = 3 * PAGE;

    fn mapping() -> Mapping {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH as u64).unwrap();
        Mapping::new(&file, LENGTH).unwrap()
    }

    fn bytes<const N: usize>(seed: usize) -> [u8; N] {
        std::array::from_fn(|at| (at * 31 + at / 251 + seed) as u8)
    }

    #[test]
    fn what_was_written_is_read_at_any_place_and_length() {
        let mapping = mapping();
        let mut model = vec![0; LENGTH];
        let mut write = |offset: usize, bytes: &[u8]| {
            mapping.write(offset, bytes);
            model[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        write(0, &bytes::<LINE>(1));
        write(PAGE - LINE, &bytes::<{ 3 * LINE }>(2));
        write(LENGTH - LINE, &bytes::<LINE>(3));
        write(LENGTH, &[]);
        mapping.fence();
        for (offset, length) in
            [(0, LENGTH), (0, 1), (3, 2), (5, 11), (PAGE - 1, 130), (LENGTH - 9, 9), (LENGTH, 0)]
        {
            let mut found = vec![0xff; length];
            mapping.read(offset, &mut found);
            assert_eq!(found, model[offset..offset + length], "{length} bytes at {offset}");
        }
    }

    #[test]
    fn pages_are_written_with_their_sum() {
        let mapping = mapping();
        let (one, other) = (bytes::<PAGE>(4), bytes::<PAGE>(5));
        mapping.write(0, &one);
        assert_eq!(mapping.write_page_summed(LENGTH - PAGE, &other, &other), page_sum(&other));
        for (offset, page) in [(0, one), (PAGE, [0; PAGE]), (LENGTH - PAGE, other)] {
            let mut found = [0xff; PAGE];
            mapping.read(offset, &mut found);
            assert_eq!(found, page);
        }
    }

    #[test]
    fn nothing_outside_or_between_lines_is_touched() {
        let mapping = mapping();
        let (line, page) = (bytes::<LINE>(6), bytes::<PAGE>(7));
        let refused = |run: &dyn Fn()| assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        refused(&|| mapping.read(LENGTH - 3, &mut [0; 4]));
        refused(&|| mapping.read(usize::MAX, &mut [0; 4]));
        for offset in [LENGTH, LENGTH - 8, 8, usize::MAX - 63] {
            refused(&|| mapping.write(offset, &line));
        }
        refused(&|| mapping.write(0, &line[..8]));
        for offset in [LENGTH - LINE, 8, usize::MAX - 63] {
            refused(&|| mapping.write(offset, &page));
            refused(&|| assert_eq!(mapping.write_page_summed(offset, &page, &page), [0; 16]));
        }
        let mut found = [0xff; LENGTH];
        mapping.read(0, &mut found);
        assert_eq!(found, [0; LENGTH]);
    }
}
