//! Inherited file descriptors: the one thing here that the compiler cannot check.
#![allow(unsafe_code, reason = "a number from the configuration becomes an owned descriptor")]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// Takes over a descriptor that was inherited. Call it once for each number, before this process opens
/// anything that stays open; [`crate::config`] makes sure that the numbers differ and are above 2.
pub(crate) fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD touches no memory, and fails with EBADF if the number is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open (checked above), was inherited, and nothing else in this process uses it: it
    // is taken once, at the start, and standard input, output and error are excluded.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
