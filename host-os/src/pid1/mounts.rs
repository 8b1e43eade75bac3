//! File systems of the host.

use nix::mount::{MsFlags, mount};
use std::io;

/// One file system: its type, where, options, and whether it may be absent.
struct Mount {
    kind: &'static str,
    target: &'static str,
    options: &'static str,
    /// A machine without it is still a host.
    optional: bool,
}

const fn required(kind: &'static str, target: &'static str, options: &'static str) -> Mount {
    Mount { kind, target, options, optional: false }
}

const fn optional(kind: &'static str, target: &'static str) -> Mount {
    Mount { kind, target, options: "", optional: true }
}

/// What is mounted, in order.
const MOUNTS: &[Mount] = &[
    required("devtmpfs", "/dev", "mode=0755"),
    required("proc", "/proc", "hidepid=2"),
    required("sysfs", "/sys", ""),
    required("tmpfs", "/run", "mode=0755"),
    required("tmpfs", "/tmp", "mode=1777,size=64m"),
    // The guest's release, taken out of its slot.
    required("tmpfs", "/guest", "mode=0755,size=256m"),
    required("cgroup2", "/sys/fs/cgroup", ""),
    // Only where the firmware is UEFI, and only with a store for records of crashes.
    optional("efivarfs", "/sys/firmware/efi/efivars"),
    optional("pstore", "/sys/fs/pstore"),
    // The event log of the measured boot.
    optional("securityfs", "/sys/kernel/security"),
];

/// A file system could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("mounting {kind} on {target} failed: {source}; the kernel lacks it, build the image anew")]
pub(super) struct MountError {
    kind: &'static str,
    target: &'static str,
    source: io::Error,
}

/// Mounts the table.
pub(super) fn mount_all() -> Result<(), MountError> {
    for entry in MOUNTS {
        // The only programs are in the verified root.
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        match mount(Some(entry.kind), entry.target, Some(entry.kind), flags, Some(entry.options)) {
            Err(errno) if !entry.optional => {
                return Err(MountError { kind: entry.kind, target: entry.target, source: errno.into() });
            }
            _ => {}
        }
    }
    Ok(())
}
