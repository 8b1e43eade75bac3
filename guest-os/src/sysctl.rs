//! Kernel settings, as one table. The kernel is part of the image, so a setting that does not exist is an error.

use std::fs;
use std::path::Path;

/// Path below /proc/sys, value, reason.
pub const SETTINGS: &[(&str, &str, &str)] = &[
    ("kernel/dmesg_restrict", "1", "kernel messages hold addresses"),
    ("kernel/kptr_restrict", "2", "kernel addresses help an attacker only"),
    ("kernel/perf_event_paranoid", "2", "x86 forces perf in; the replica does not need it"),
    ("kernel/yama/ptrace_scope", "3", "nobody debugs anybody, for good"),
    ("kernel/io_uring_disabled", "2", "large attack surface, not used"),
    ("user/max_user_namespaces", "0", "they open code of the kernel that only root should reach"),
    ("vm/unprivileged_userfaultfd", "0", "helps to win races in the kernel"),
    ("vm/memfd_noexec", "1", "only files of the initrd are programs"),
    ("fs/suid_dumpable", "0", "memory of programs that dropped privileges is never dumped"),
    ("fs/protected_symlinks", "1", "usual hardening of shared directories"),
    ("fs/protected_hardlinks", "1", "usual hardening of shared directories"),
    ("net/ipv4/tcp_syncookies", "1", "a flood of connection attempts does not fill the queue"),
    ("net/ipv4/ip_forward", "0", "a node is no router"),
    ("net/ipv6/conf/all/forwarding", "0", "a node is no router"),
    ("net/ipv4/conf/all/rp_filter", "1", "drop spoofed sources"),
    ("net/ipv4/conf/all/accept_redirects", "0", "the neighbourhood does not choose routes"),
    ("net/ipv4/conf/default/accept_redirects", "0", "the neighbourhood does not choose routes"),
    ("net/ipv6/conf/all/accept_redirects", "0", "the neighbourhood does not choose routes"),
    ("net/ipv6/conf/default/accept_redirects", "0", "the neighbourhood does not choose routes"),
    ("net/ipv4/conf/all/send_redirects", "0", "a node is no router"),
    ("net/ipv4/conf/all/accept_source_route", "0", "the sender does not choose routes"),
    ("net/ipv4/conf/default/accept_source_route", "0", "the sender does not choose routes"),
];

/// A kernel setting could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "setting {setting} to {value} failed: {source}; the kernel lacks it, build the image with the kernel of its recipe"
)]
pub struct SysctlError {
    setting: String,
    value: String,
    source: std::io::Error,
}

/// Makes one setting.
pub fn set(setting: &str, value: &str) -> Result<(), SysctlError> {
    fs::write(Path::new("/proc/sys").join(setting), value).map_err(|source| SysctlError {
        setting: setting.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// Makes all settings of the table.
pub fn apply() -> Result<(), SysctlError> {
    SETTINGS.iter().try_for_each(|(setting, value, _)| set(setting, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_stands_once_and_has_a_reason() {
        for (index, (setting, value, reason)) in SETTINGS.iter().enumerate() {
            assert!(!value.is_empty() && reason.len() > 10, "{setting}");
            assert!(!setting.starts_with('/'), "{setting} would leave /proc/sys");
            assert!(SETTINGS[..index].iter().all(|(other, ..)| other != setting), "{setting} twice");
        }
    }
}
