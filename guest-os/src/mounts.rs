//! File systems, as one table.

use nix::mount::{MsFlags, mount};
use std::fs;

/// One file system to mount.
#[derive(Debug, Clone, Copy)]
pub struct Mount {
    /// Type, also shown as its source.
    pub kind: &'static str,
    /// Where; made when it does not exist.
    pub target: &'static str,
    /// Options of the type.
    pub options: &'static str,
    /// Flags beside nosuid and noexec, which all have: the only programs are in the initrd.
    pub flags: MsFlags,
}

/// What is mounted, in order.
pub const MOUNTS: &[Mount] = &[
    Mount { kind: "devtmpfs", target: "/dev", options: "mode=0755", flags: MsFlags::empty() },
    // hidepid: the replica sees its own processes only.
    Mount { kind: "proc", target: "/proc", options: "hidepid=2", flags: MsFlags::MS_NODEV },
    Mount { kind: "sysfs", target: "/sys", options: "", flags: MsFlags::MS_NODEV },
    // Attestation reports.
    Mount { kind: "configfs", target: "/sys/kernel/config", options: "", flags: MsFlags::MS_NODEV },
    // The replica's configuration and the evidence socket; nothing there grows.
    Mount { kind: "tmpfs", target: "/run", options: "mode=0755,size=4m", flags: MsFlags::MS_NODEV },
];

/// A file system could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error(
    "mounting {kind} on {target} failed: {source}; the kernel lacks it or the image is damaged, build the image anew"
)]
pub struct MountError {
    kind: &'static str,
    target: &'static str,
    source: std::io::Error,
}

/// Mounts the table and then makes the root file system, an unpacked initrd, read-only.
pub fn mount_all() -> Result<(), MountError> {
    for entry in MOUNTS {
        let failed = |source| MountError { kind: entry.kind, target: entry.target, source };
        if !fs::exists(entry.target).map_err(failed)? {
            fs::create_dir(entry.target).map_err(failed)?;
        }
        let flags = entry.flags | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some(entry.kind), entry.target, Some(entry.kind), flags, Some(entry.options))
            .map_err(|errno| failed(errno.into()))?;
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(|errno| MountError {
        kind: "the initrd, read-only,",
        target: "/",
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_what_is_mounted_in_them() {
        for (index, entry) in MOUNTS.iter().enumerate() {
            for earlier in &MOUNTS[..index] {
                assert!(
                    !earlier.target.starts_with(&format!("{}/", entry.target)),
                    "{entry:?} hides {earlier:?}"
                );
                assert_ne!(earlier.target, entry.target);
            }
        }
    }
}
