//! What the replica may do. PID 1 starts itself again as the launcher, which gives up everything step by step and
//! then becomes the replica. (A launcher of its own and not code between fork and exec: PID 1 has several threads, and
//! little is allowed there.)

use crate::syscalls;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits,
};
use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// User and group of the replica. They own nothing but what PID 1 gives them.
pub const REPLICA_ID: u32 = 1000;
/// The program, in the initrd.
pub const REPLICA: &str = "/replica";
/// Its configuration, written by PID 1.
pub const CONFIGURATION: &str = "/run/replica.toml";
/// First argument that makes this program the launcher.
pub const LAUNCH: &str = "launch-replica";

/// Landlock of Linux 6.12. The kernel is part of the image, so nothing less is accepted.
const LANDLOCK: ABI = ABI::V6;

/// Resource limits (soft and hard), with the reason.
const LIMITS: &[(Resource, u64, &str)] = &[
    (Resource::RLIMIT_CORE, 0, "a core file would hold secrets"),
    (Resource::RLIMIT_NOFILE, 65_536, "one for each connection"),
    (Resource::RLIMIT_NPROC, 1_024, "threads; no fork bombs"),
    (Resource::RLIMIT_MEMLOCK, 0, "nothing is locked"),
];

/// Files that the replica may use beside those it gets open, with the reason.
const FILES: &[(&str, Right, &str)] = &[
    (REPLICA, Right::Execute, "itself"),
    (CONFIGURATION, Right::Read, "its configuration"),
    ("/proc/self", Right::Read, "its own memory and thread statistics"),
    ("/proc/meminfo", Right::Read, "memory of the machine"),
    ("/sys/devices/system/cpu", Right::Read, "number of processors"),
];

#[derive(Debug, Clone, Copy)]
enum Right {
    Read,
    Execute,
}

/// The replica could not be confined, so it was not started.
#[derive(Debug, thiserror::Error)]
#[error("confining the replica failed at {step}: {source}; build the image with the kernel of its recipe")]
pub struct SandboxError {
    step: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn at<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    step: &'static str,
) -> impl FnOnce(E) -> SandboxError {
    move |source| SandboxError { step, source: source.into() }
}

/// Becomes the replica. It may listen on `port` and nowhere else, and cannot connect anywhere.
pub fn become_replica(port: u16) -> Result<Infallible, SandboxError> {
    // PID 1 blocks the signals that it reads, and a program inherits that: the replica would never hear SIGTERM.
    SigSet::all().thread_unblock().map_err(at("signals"))?;
    for (resource, limit, _) in LIMITS {
        setrlimit(*resource, *limit, *limit).map_err(at("resource limits"))?;
    }
    // Before the user changes: afterwards the right to do so is gone.
    restrict_files_and_ports(port)?;
    drop_privileges()?;
    let filter = syscalls::filter().map_err(at("the system call filter"))?;
    seccompiler::apply_filter(&filter).map_err(at("the system call filter"))?;
    let error = Command::new(REPLICA).args(["--config", CONFIGURATION]).env_clear().exec();
    Err(at("executing it")(error))
}

/// User, groups, capabilities in all sets, and no way back.
fn drop_privileges() -> Result<(), SandboxError> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            // Beyond the last capability of this kernel.
            Err(error) if error == rustix::io::Errno::INVAL => break,
            Err(error) => return Err(at("the capability bounding set")(io::Error::from(error))),
            Ok(_) => remove_capability_from_bounding_set(capability)
                .map_err(|error| at("the capability bounding set")(io::Error::from(error)))?,
        }
    }
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(locked).map_err(|error| at("securebits")(io::Error::from(error)))?;
    clear_ambient_capability_set().map_err(|error| at("ambient capabilities")(io::Error::from(error)))?;
    let (user, group) = (Uid::from_raw(REPLICA_ID), Gid::from_raw(REPLICA_ID));
    setgroups(&[]).map_err(at("groups"))?;
    setresgid(group, group, group).map_err(at("the group"))?;
    setresuid(user, user, user).map_err(at("the user"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|error| at("capabilities")(io::Error::from(error)))?;
    nix::sys::prctl::set_no_new_privs().map_err(at("no_new_privs"))
}

fn restrict_files_and_ports(port: u16) -> Result<(), SandboxError> {
    let restrict = || -> Result<RulesetStatus, Box<dyn std::error::Error + Send + Sync>> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?
            .add_rule(NetPort::new(port, AccessNet::BindTcp))?;
        for (path, right, _) in FILES {
            let target = PathFd::new(path)?;
            let mut access: BitFlags<AccessFs> = AccessFs::ReadFile.into();
            match right {
                Right::Execute => access |= AccessFs::Execute,
                Right::Read if std::fs::metadata(path)?.is_dir() => access |= AccessFs::ReadDir,
                Right::Read => {}
            }
            ruleset = ruleset.add_rule(PathBeneath::new(target, access))?;
        }
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match restrict().map_err(at("Landlock"))? {
        RulesetStatus::FullyEnforced => Ok(()),
        _ => Err(at("Landlock")("the kernel enforces it only in part")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_files_stand_once_with_a_reason() {
        for (index, (path, _, reason)) in FILES.iter().enumerate() {
            assert!(reason.len() >= 6 && FILES[..index].iter().all(|(other, ..)| other != path), "{path}");
        }
        for (index, (limit, _, reason)) in LIMITS.iter().enumerate() {
            assert!(
                reason.len() >= 6 && LIMITS[..index].iter().all(|(other, ..)| other != limit),
                "{limit:?}"
            );
        }
    }
}
