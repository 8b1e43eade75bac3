//! The one place of this crate with unsafe code: what a child process does between fork and exec, and requests to the kernel
//! that are ioctls.
#![allow(unsafe_code, reason = "Command::pre_exec and ioctl are unsafe and have no safe equivalent")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the kernel kill the child when the thread that spawns it ends.
///
/// This is why no QEMU outlives an agent that was itself killed: nobody would watch such a guest, its port and
/// its NVRAM would stay taken, and the next agent would meet them. The signal follows the *thread*, so the caller
/// must spawn from one that lives as long as the agent does: the main thread.
pub(crate) fn die_with_spawning_thread(command: &mut Command) {
    let parent = std::os::unix::process::parent_id;
    let agent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes two system calls,
    // prctl and getppid, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // The agent may have died before the line above; then nobody would send the signal.
            if parent() != agent {
                return Err(std::io::Error::from_raw_os_error(nix::libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// `struct blkpg_partition` (include/uapi/linux/blkpg.h).
#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct PartitionRequest {
    operation: i32,
    flags: i32,
    length: i32,
    data: *mut Partition,
}

/// Tells the kernel that a partition of a disk has another length now (BLKPG_RESIZE_PARTITION). Start and length are in
/// bytes. Other partitions may be in use.
pub(crate) fn resize_partition(disk: &File, number: i32, start: i64, length: i64) -> io::Result<()> {
    const BLKPG: nix::libc::c_ulong = 0x1269;
    const RESIZE: i32 = 3;
    let mut partition = Partition { start, length, number, names: [0; 128] };
    let mut request = PartitionRequest {
        operation: RESIZE,
        flags: 0,
        length: size_of::<Partition>() as i32,
        data: &raw mut partition,
    };
    // SAFETY: both structures have the layout that the kernel expects, and are alive until after the call; it only reads them.
    match unsafe { nix::libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

mod ioctl {
    // linux/watchdog.h: WDIOC_GETBOOTSTATUS, WDIOC_SETTIMEOUT.
    nix::ioctl_read!(get_boot_status, b'W', 2, i32);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, i32);
}

/// Why the machine started, as its watchdog has it (WDIOF_ bits).
pub(crate) fn watchdog_boot_status(device: &File) -> io::Result<i32> {
    let mut bits = 0;
    // SAFETY: the kernel writes one int to the address, which is that of a live variable.
    unsafe { ioctl::get_boot_status(device.as_raw_fd(), &raw mut bits) }?;
    Ok(bits)
}

/// Sets the watchdog's time; returns what the device made of it, in seconds.
pub(crate) fn set_watchdog_timeout(device: &File, seconds: i32) -> io::Result<i32> {
    let mut seconds = seconds;
    // SAFETY: the kernel reads and writes one int at the address, which is that of a live variable.
    unsafe { ioctl::set_timeout(device.as_raw_fd(), &raw mut seconds) }?;
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes_and_other_files_refuse() {
        assert_eq!((size_of::<Partition>(), size_of::<PartitionRequest>()), (152, 24));
        let other = File::open("/dev/null").unwrap();
        assert!(resize_partition(&other, 1, 0, 512).is_err());
    }
}
