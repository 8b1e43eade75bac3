//! Faults on memory that is not there yet, taken by a thread of this process: userfaultfd(2).
#![allow(unsafe_code, reason = "the kernel's interface for faults is ioctls")]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use heap::PAGE;

/// Only faults of this process's own code, which is what a process without privileges is allowed.
const USER_MODE_ONLY: libc::c_int = 1;
const API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
/// `struct uffd_msg`: the event in byte 0, the address of a fault in bytes 16 to 23.
const MESSAGE: usize = 32;

/// The descriptor. It is closed with its last user; faults on what is still registered then are errors.
pub(super) struct Faults(File);

impl Faults {
    /// Asks the kernel; an error if it has no such thing or does not give it to this process.
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: makes a descriptor, touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the descriptor was just made and nobody else has it.
        let faults = Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        faults.control(UFFDIO_API, &mut [API, 0, 0])?;
        Ok(faults)
    }

    fn control<const N: usize>(&self, request: libc::c_ulong, words: &mut [u64; N]) -> io::Result<()> {
        // SAFETY: each request's structure consists of as many words as its callers below pass, and addresses in
        // them are ranges of mappings that the caller owns, or a buffer that outlives the call.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, words.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// From now on, touching a page of this range that is not there waits for [`fill`](Self::fill).
    pub(super) fn register(&self, start: usize, length: usize) -> io::Result<()> {
        self.control(UFFDIO_REGISTER, &mut [start as u64, length as u64, MODE_MISSING, 0])
    }

    /// Ends that.
    pub(super) fn unregister(&self, start: usize, length: usize) -> io::Result<()> {
        self.control(UFFDIO_UNREGISTER, &mut [start as u64, length as u64])
    }

    /// Lets those that wait for these pages try again.
    pub(super) fn wake(&self, start: usize, length: usize) -> io::Result<()> {
        self.control(UFFDIO_WAKE, &mut [start as u64, length as u64])
    }

    /// Puts pages where none are, as a whole each, and wakes those that wait for them.
    pub(super) fn fill(&self, start: usize, pages: &[u8]) -> io::Result<()> {
        debug_assert!(pages.len().is_multiple_of(PAGE));
        let words = &mut [start as u64, pages.as_ptr() as u64, pages.len() as u64, 0, 0];
        self.control(UFFDIO_COPY, words)
    }

    /// Puts pages of zeros where none are.
    pub(super) fn fill_zero(&self, start: usize, length: usize) -> io::Result<()> {
        self.control(UFFDIO_ZEROPAGE, &mut [start as u64, length as u64, 0, 0])
    }

    /// Waits for faults; gives their addresses. Several, if several threads wait.
    pub(super) fn wait(&self, into: &mut Vec<usize>) -> io::Result<()> {
        let mut messages = [0; 16 * MESSAGE];
        let length = (&self.0).read(&mut messages)?;
        into.clear();
        for message in messages[..length].chunks_exact(MESSAGE) {
            if let (EVENT_PAGEFAULT, Some(address)) = (message[0], message[16..].first_chunk()) {
                into.push(u64::from_ne_bytes(*address) as usize);
            }
        }
        Ok(())
    }
}
