//! The one place of this crate with unsafe code: what a child process does between fork and exec, and requests to the kernel
//! that are ioctls.
#![allow(unsafe_code, reason = "Command::pre_exec and ioctl are unsafe and have no safe equivalent")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
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

/// `struct ifreq` with flags (linux/if.h).
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes an open `/dev/net/tun` the other end of a tap device (TUNSETIFF), and makes the device if there is none. Frames have
/// the header of virtio before them.
pub(crate) fn attach_tap(tun: &File, name: &str) -> io::Result<()> {
    const SET_INTERFACE: nix::libc::c_ulong = 0x4004_54ca;
    // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
    let mut request = InterfaceFlags { name: [0; 16], flags: 0x2 | 0x1000 | 0x4000, rest: [0; 22] };
    // The last byte stays zero.
    let place = request.name.get_mut(..name.len()).filter(|place| place.len() < 16);
    place.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
    // SAFETY: the structure has the layout and size that the kernel expects, and is alive until after the call.
    match unsafe { nix::libc::ioctl(tun.as_raw_fd(), SET_INTERFACE as _, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a tap device stay when nobody has it open (TUNSETPERSIST).
pub(crate) fn keep_tap(tap: &File) -> io::Result<()> {
    const SET_PERSIST: nix::libc::c_ulong = 0x4004_54cb;
    // SAFETY: the argument is a number; the kernel follows no pointer.
    match unsafe { nix::libc::ioctl(tap.as_raw_fd(), SET_PERSIST as _, 1) } {
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

/// `struct dm_ioctl` with one `struct dm_target_spec` and its parameters (include/uapi/linux/dm-ioctl.h).
#[repr(C)]
struct MapRequest {
    version: [u32; 3],
    size: u32,
    start: u32,
    targets: u32,
    open: i32,
    flags: u32,
    event: u32,
    padding: u32,
    device: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
    target: Target,
}

#[repr(C)]
struct Target {
    first: u64,
    length: u64,
    status: i32,
    next: u32,
    kind: [u8; 16],
    parameters: [u8; 512],
}

/// Bytes of `struct dm_ioctl` alone.
const MAP_HEADER: usize = 312;

/// Commands of device-mapper: DM_DEV_CREATE, DM_DEV_REMOVE, DM_DEV_SUSPEND (which also resumes), DM_TABLE_LOAD.
#[derive(Clone, Copy)]
enum MapCommand {
    Create = 3,
    Remove = 4,
    Resume = 6,
    Load = 9,
}

fn map_call(control: &File, command: MapCommand, request: &mut MapRequest) -> io::Result<()> {
    // _IOWR(DM_IOCTL, command, struct dm_ioctl).
    let number =
        (3 << 30) | ((MAP_HEADER as nix::libc::c_ulong) << 16) | (0xfd << 8) | command as nix::libc::c_ulong;
    // SAFETY: the structure has the layout that the kernel expects and says its own size in `size`, within which the kernel
    // reads and writes; it is alive until after the call.
    match unsafe { nix::libc::ioctl(control.as_raw_fd(), number as _, &raw mut *request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps a block device by device-mapper's target of this kind, of so many sectors of 512 bytes; the path of the result.
pub(crate) fn map_device(name: &str, kind: &str, sectors: u64, parameters: &str) -> io::Result<PathBuf> {
    /// DM_SECURE_DATA_FLAG: the kernel wipes its copies, which hold a key.
    const SECURE: u32 = 1 << 15;
    fn text<const N: usize>(text: &str) -> io::Result<[u8; N]> {
        let mut out = [0; N];
        // The last byte stays zero.
        let place = out.get_mut(..text.len()).filter(|_| text.len() < N);
        place.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(text.as_bytes());
        Ok(out)
    }
    let control = File::options().read(true).write(true).open("/dev/mapper/control")?;
    let mut request = MapRequest {
        version: [4, 0, 0],
        size: size_of::<MapRequest>() as u32,
        start: MAP_HEADER as u32,
        targets: 0,
        open: 0,
        flags: SECURE,
        event: 0,
        padding: 0,
        device: 0,
        name: text(name)?,
        uuid: [0; 129],
        data: [0; 7],
        target: Target {
            first: 0,
            length: sectors,
            status: 0,
            next: size_of::<Target>() as u32,
            kind: text(kind)?,
            parameters: text(parameters)?,
        },
    };
    map_call(&control, MapCommand::Create, &mut request)?;
    let device = request.device;
    let mut step = |command, targets| {
        // The kernel has written over these.
        (request.size, request.start) = (size_of::<MapRequest>() as u32, MAP_HEADER as u32);
        (request.targets, request.flags, request.event, request.device) = (targets, SECURE, 0, 0);
        map_call(&control, command, &mut request)
    };
    if let Err(error) = step(MapCommand::Load, 1).and_then(|()| step(MapCommand::Resume, 0)) {
        let _ = step(MapCommand::Remove, 0);
        return Err(error);
    }
    // huge_encode_dev: the minor number's upper bits are above the major number's.
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    Ok(PathBuf::from(format!("/dev/dm-{minor}")))
}

/// Sets the clock, by so many seconds.
pub(crate) fn step_clock(seconds: f64) -> io::Result<()> {
    use nix::sys::time::TimeSpec;
    use nix::time::{ClockId, clock_gettime, clock_settime};
    let now = std::time::Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?).as_secs_f64();
    let then = std::time::Duration::try_from_secs_f64(now + seconds).map_err(io::Error::other)?;
    Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(then))?)
}

/// Moves the clock slowly, by so many seconds, and lets the kernel keep the machine's own clock (RTC) by it.
pub(crate) fn slew_clock(seconds: f64) -> io::Result<()> {
    use nix::libc::{ADJ_OFFSET_SINGLESHOT, ADJ_STATUS, STA_PLL, adjtimex, timex};
    // SAFETY: a structure of integers, for which zeros are a value.
    let (mut shift, mut status): (timex, timex) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    shift.modes = ADJ_OFFSET_SINGLESHOT;
    shift.offset = (seconds * 1e6) as i64;
    status.modes = ADJ_STATUS;
    // Without STA_UNSYNC.
    status.status = STA_PLL;
    for request in [&mut shift, &mut status] {
        // SAFETY: the kernel reads and writes one `timex` at the address, which is that of a live variable.
        if unsafe { adjtimex(request) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Does something with each part of the first `bytes` of a file or device, mapped: a devdax device knows no other way. The
/// pointer is valid for reading and writing of so many bytes, until `each` returns.
fn mapped(file: &File, bytes: u64, mut each: impl FnMut(*mut u8, usize)) -> io::Result<()> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    /// Mapped at a time; a multiple of every size of page.
    const PART: u64 = 1 << 30;
    for at in (0..bytes).step_by(PART as usize) {
        let length = PART.min(bytes - at) as usize;
        let size = std::num::NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses; nobody else has a pointer into it.
        let mapped = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file, at.cast_signed()) }?;
        each(mapped.as_ptr().cast(), length);
        // SAFETY: it was mapped above, with this length, and is not used afterwards.
        unsafe { munmap(mapped, length) }?;
    }
    Ok(())
}

/// Overwrites the first `bytes` of a file or device with zeros.
pub(crate) fn zero_mapped(file: &File, bytes: u64) -> io::Result<()> {
    mapped(file, bytes, |start, length| {
        // SAFETY: `start` is valid for `length` bytes, and writable. Each line is pushed out of the caches, because a device has
        // no fsync; all x86-64 processors have `clflush`.
        unsafe {
            std::ptr::write_bytes(start, 0, length);
            for line in (0..length).step_by(64) {
                std::arch::x86_64::_mm_clflush(start.add(line));
            }
            std::arch::x86_64::_mm_mfence();
        }
    })
}

/// Whether the first `bytes` of a file or device are zeros. After [`zero_mapped`] no cache holds them any more.
pub(crate) fn is_zero_mapped(file: &File, bytes: u64) -> io::Result<bool> {
    let mut zero = true;
    mapped(file, bytes, |start, length| {
        // SAFETY: `start` is valid for `length` bytes, and nothing of this process writes there meanwhile.
        zero &= unsafe { std::slice::from_raw_parts(start, length) }.iter().all(|byte| *byte == 0);
    })?;
    Ok(zero)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes_and_other_files_refuse() {
        assert_eq!((size_of::<Partition>(), size_of::<PartitionRequest>()), (152, 24));
        assert_eq!(size_of::<InterfaceFlags>(), 40);
        assert_eq!(std::mem::offset_of!(MapRequest, target), MAP_HEADER);
        assert_eq!(std::mem::offset_of!(Target, parameters), 40);
        let other = File::open("/dev/null").unwrap();
        assert!(resize_partition(&other, 1, 0, 512).is_err());
    }
}
