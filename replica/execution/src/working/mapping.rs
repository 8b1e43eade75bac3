//! Address space for a program's memory, which wasmtime and the engine both use.
#![allow(unsafe_code, reason = "memory that compiled code writes to is reached through pointers")]

use std::cell::RefCell;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use heap::{PAGE, Page};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

/// Address space kept for each memory, above the largest memory, so that a growing memory never moves.
pub(crate) const RESERVATION: usize = 8 << 30;
/// Address space behind that stays unmapped; compiled code relies on it instead of checking some addresses.
pub(crate) const GUARD: usize = 32 << 20;

/// Private anonymous memory, zero at first, at an address that does not change.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    /// Bytes that may be touched.
    length: AtomicUsize,
}

// SAFETY: the mapping is not tied to the thread that made it. It is used by one thread at a time (the instance
// that it belongs to is), except that the loader's thread puts pages where none are yet, by a system call.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Takes address space; nothing of it may be touched yet.
    pub(crate) fn reserve() -> io::Result<Arc<Self>> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping wherever the kernel likes takes nothing from anybody.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), RESERVATION + GUARD, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Arc::new(Self { base, length: AtomicUsize::new(0) }))
    }

    /// Address of the first byte.
    pub(crate) fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Bytes that may be touched; a multiple of the page size.
    pub(crate) fn length(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// Pages that may be touched.
    pub(crate) fn pages(&self) -> u64 {
        (self.length() / PAGE) as u64
    }

    /// Makes the mapping as long as this; new bytes are zero, dropped ones are gone.
    pub(crate) fn set_length(&self, length: usize) -> io::Result<()> {
        let old = self.length();
        if length > RESERVATION || !length.is_multiple_of(PAGE) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let (start, bytes) = (old.min(length), old.abs_diff(length));
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `start` lies within the mapping, whose end `start + bytes` does not pass.
        let target = unsafe { self.base.as_ptr().add(start) }.cast();
        let protection = if length > old { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
        // SAFETY: the range is this mapping's own, and nothing refers to the bytes that are dropped.
        let failed = unsafe {
            (length < old && libc::madvise(target, bytes, libc::MADV_DONTNEED) != 0)
                || libc::mprotect(target, bytes, protection) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        self.length.store(length, Ordering::Relaxed);
        Ok(())
    }

    fn pointer(&self, page: u64) -> *mut Page {
        assert!(page < self.pages(), "page {page} is inside the mapping");
        // SAFETY: inside the mapping, by the assertion.
        unsafe { self.base.as_ptr().add(page as usize * PAGE) }.cast()
    }

    /// A page. The caller sees to it that no code of the program runs while it is borrowed.
    ///
    /// # Panics
    /// If the page is behind the end.
    pub(crate) fn page(&self, page: u64) -> &Page {
        // SAFETY: a page of the mapping is initialised memory, aligned for bytes; see the type for exclusiveness.
        unsafe { &*self.pointer(page) }
    }

    /// Sets a page, or its first bytes.
    ///
    /// # Panics
    /// If the page is behind the end.
    pub(crate) fn write(&self, page: u64, bytes: &[u8]) {
        let length = bytes.len().min(PAGE);
        // SAFETY: `length` bytes at a page's start are inside the mapping, and `bytes` lies outside.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer(page).cast(), length) };
    }

    /// One byte.
    ///
    /// # Panics
    /// If it is behind the end.
    pub(crate) fn byte(&self, at: u64) -> u8 {
        self.page(at / PAGE as u64)[at as usize % PAGE]
    }

    /// Sets bytes to a value.
    ///
    /// # Panics
    /// If they end behind the mapping's end.
    pub(crate) fn set_bytes(&self, at: u64, count: u64, value: u8) {
        assert!(at.checked_add(count).is_some_and(|end| end <= self.length() as u64), "inside the mapping");
        // SAFETY: inside the mapping, by the assertion.
        unsafe { self.base.as_ptr().add(at as usize).write_bytes(value, count as usize) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and whoever refers to it holds an `Arc` of it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), RESERVATION + GUARD) };
    }
}

thread_local! {
    /// The memories of the instance that this thread is about to make.
    static NEXT: RefCell<Vec<Arc<Mapping>>> = const { RefCell::new(Vec::new()) };
}

/// Makes an instance (`make` does) whose memories are these, in order of their indices.
pub(crate) fn with_memories<T>(memories: Vec<Arc<Mapping>>, make: impl FnOnce() -> T) -> T {
    NEXT.set(memories);
    let made = make();
    NEXT.take();
    made
}

/// Hands the mappings of [`with_memories`] to wasmtime.
pub(crate) struct Creator;

// SAFETY: a mapping is zero where the engine did not fill it on purpose, reserves what is asked for and a guard
// behind it, and never moves.
unsafe impl MemoryCreator for Creator {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        _: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        if reserved.is_some_and(|reserved| reserved > RESERVATION) || guard > GUARD {
            return Err("more address space is asked for than reserved".to_owned());
        }
        let mapping = NEXT.with_borrow_mut(|next| (!next.is_empty()).then(|| next.remove(0)));
        let mapping = mapping.ok_or("a memory is made that the module was not prepared for")?;
        // It is longer where a new instance goes on with the memory of an earlier one.
        let length = mapping.length().max(minimum);
        mapping.set_length(length).map_err(|error| format!("no memory for the program: {error}"))?;
        Ok(Box::new(Linear(mapping)))
    }
}

struct Linear(Arc<Mapping>);

// SAFETY: see `Creator`.
unsafe impl LinearMemory for Linear {
    fn byte_size(&self) -> usize {
        self.0.length()
    }

    fn byte_capacity(&self) -> usize {
        RESERVATION
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        Ok(self.0.set_length(new_size)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.0.base.as_ptr()
    }
}
