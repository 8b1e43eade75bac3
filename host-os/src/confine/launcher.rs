//! The launcher: this program started again, to give up what the plan says and become QEMU.
//!
//! With [`Level::Full`] there are two processes. The outer one makes the namespaces and waits, because whoever enters a
//! namespace of process numbers has to be born in it; the inner one is that child. The outer one kills QEMU when it is told
//! to end (SIGTERM), and ends only after QEMU is gone, so that nobody starts the next one too early.

use super::{Allowed, Landlock, Level, Network, Plan, QEMU_ID, Right, cgroup};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, chown, pivot_root, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits,
};
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// First argument that makes this program the launcher: then the plan as JSON, QEMU, its arguments.
pub const OUTER: &str = "confined-qemu";
const INNER: &str = "confined-qemu-inside";
/// The program itself.
pub const PROGRAM: &str = "/proc/self/exe";
/// Exit code of a launcher that could not confine QEMU.
pub const FAILED: u8 = 126;
/// The newest Landlock that is used.
const LANDLOCK: ABI = ABI::V6;

/// QEMU could not be confined, so it was not started.
#[derive(Debug, thiserror::Error)]
#[error("QEMU is not started, because confining it failed at {step}: {source}")]
struct ConfineError {
    step: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn at<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    step: impl Into<String>,
) -> impl FnOnce(E) -> ConfineError {
    let step = step.into();
    move |source| ConfineError { step, source: source.into() }
}

/// To be called first in `main`: becomes the launcher if this process is one. Returns only if it is not, or fails.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let inside = match words.next()?.to_str()? {
        OUTER => false,
        INNER => true,
        _ => return None,
    };
    let words: Vec<_> = words.collect();
    let Err(error) = match inside {
        false => outer(&words),
        true => inner(&words),
    };
    eprintln!("{error}");
    Some(ExitCode::from(FAILED))
}

fn parse(words: &[OsString]) -> Result<(Plan, &OsStr, &[OsString]), ConfineError> {
    let [plan, qemu, arguments @ ..] = words else {
        return Err(at("its command line")("it is for the agent, not for people"));
    };
    let plan = serde_json::from_slice(plan.as_encoded_bytes()).map_err(at("its plan"))?;
    Ok((plan, qemu, arguments))
}

fn outer(words: &[OsString]) -> Result<Infallible, ConfineError> {
    let (plan, qemu, arguments) = parse(words)?;
    if let Some(group) = &plan.cgroup {
        cgroup::enter(group).map_err(at("the control group"))?;
    }
    if plan.level != Level::Full {
        return become_qemu(&plan, qemu, arguments);
    }
    let mut new = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWPID;
    if plan.network == Network::Device {
        new |= CloneFlags::CLONE_NEWNET;
    }
    unshare(new).map_err(at("the namespaces"))?;
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM]);
    signals.thread_block().map_err(at("signals"))?;
    // The inner one sees the pipe end when this process does.
    let (alive, held) = io::pipe().map_err(at("a pipe"))?;
    let child = Command::new(PROGRAM).arg(INNER).args(words).stdin(Stdio::from(alive)).spawn();
    let child = Pid::from_raw(child.map_err(at("starting the inner launcher"))?.id().cast_signed());
    let end = loop {
        // Signals that came before are kept until now.
        if signals.wait() == Ok(Signal::SIGTERM) {
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(nix::Error::EINTR) => {}
            end => break end,
        }
    };
    drop(held);
    match end {
        Ok(WaitStatus::Exited(_, code)) => std::process::exit(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            // Ends as QEMU did, so that the agent can tell.
            let _ = SigSet::all().thread_unblock();
            let _ = kill(Pid::this(), signal);
            std::process::exit(128 + signal as i32)
        }
        other => Err(at("waiting for QEMU")(format!("{other:?}"))),
    }
}

fn inner(words: &[OsString]) -> Result<Infallible, ConfineError> {
    let (plan, qemu, arguments) = parse(words)?;
    own_root(&plan.files)?;
    become_qemu(&plan, qemu, arguments)
}

/// A file system with the allowed paths in it, and nothing else, becomes the root of this process.
fn own_root(files: &[Allowed]) -> Result<(), ConfineError> {
    const NONE: Option<&str> = None;
    // Else what is mounted here would be mounted everywhere.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).map_err(at("private mounts"))?;
    // Held open, because the new root may cover them.
    let mut sources = Vec::new();
    for Allowed { path, right, optional } in files {
        let open = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path);
        match open {
            Err(_) if *optional => {}
            open => sources.push((path, right, open.map_err(at(path.display().to_string()))?)),
        }
    }
    let root = Path::new("/tmp");
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), root, Some("tmpfs"), plain, Some("mode=0755,size=1m")).map_err(at("a root"))?;
    for (path, right, open) in sources {
        let step = || format!("{} in its root", path.display());
        let found = open.metadata().map_err(at(step()))?;
        let target = root.join(path.strip_prefix("/").unwrap_or(path));
        let parent = target.parent().unwrap_or(root);
        fs::create_dir_all(parent).map_err(at(step()))?;
        if path == Path::new("/proc") {
            fs::create_dir(&target).map_err(at(step()))?;
            // Its own processes only, and nothing that is no process.
            let options = Some("hidepid=2,subset=pid");
            mount(Some("proc"), &target, Some("proc"), plain | MsFlags::MS_NODEV, options)
                .map_err(at(step()))?;
            continue;
        }
        if *right == Right::Device {
            device(&found, &target).map_err(at(step()))?;
            continue;
        }
        if found.is_symlink() {
            let to = fs::read_link(path).map_err(at(step()))?;
            std::os::unix::fs::symlink(to, &target).map_err(at(step()))?;
            continue;
        }
        match found.is_dir() {
            true => fs::create_dir_all(&target).map_err(at(step()))?,
            false => drop(File::create(&target).map_err(at(step()))?),
        }
        let source = format!("/proc/self/fd/{}", open.as_raw_fd());
        mount(Some(source.as_str()), &target, NONE, MsFlags::MS_BIND, NONE).map_err(at(step()))?;
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        match right {
            Right::Write => {
                flags |= MsFlags::MS_NOEXEC;
                // Opened by QEMU under its own user.
                let (user, group) = (Uid::from_raw(QEMU_ID), Gid::from_raw(QEMU_ID));
                chown(&target, Some(user), Some(group)).map_err(at(step()))?;
            }
            Right::Read => flags |= MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC,
            Right::Program | Right::Device => flags |= MsFlags::MS_RDONLY,
        }
        mount(NONE, &target, NONE, flags, NONE).map_err(at(step()))?;
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | plain;
    mount(NONE, root, NONE, read_only, NONE).map_err(at("a root that stays as it is"))?;
    std::env::set_current_dir(root).map_err(at("its root"))?;
    // The old root lands on top of the new one (pivot_root(2), "pivot_root(".", ".")"), and goes.
    pivot_root(".", ".").map_err(at("changing the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("leaving the old root"))?;
    std::env::set_current_dir("/").map_err(at("its root"))
}

/// A node of its own for a device, so that the machine's keeps its owner.
fn device(found: &fs::Metadata, target: &Path) -> nix::Result<()> {
    let kind = SFlag::from_bits_truncate(found.mode()) & SFlag::S_IFMT;
    mknod(target, kind, Mode::S_IRUSR | Mode::S_IWUSR, found.rdev())?;
    chown(target, Some(Uid::from_raw(QEMU_ID)), Some(Gid::from_raw(QEMU_ID)))
}

fn become_qemu(plan: &Plan, qemu: &OsStr, arguments: &[OsString]) -> Result<Infallible, ConfineError> {
    SigSet::all().thread_unblock().map_err(at("signals"))?;
    let full = plan.level == Level::Full;
    if plan.level != Level::Off {
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(at("resource limits"))?;
        if full {
            // Counted for its own user only.
            setrlimit(Resource::RLIMIT_NPROC, plan.processes, plan.processes)
                .map_err(at("resource limits"))?;
        }
        let status = restrict(&plan.files, plan.network).map_err(at("Landlock"))?;
        if full && status != RulesetStatus::FullyEnforced {
            return Err(at("Landlock")("the kernel enforces it only in part"));
        }
        give_up_privileges(full)?;
    }
    // A change of user forgets it, so that it comes last.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(at("dying with the agent"))?;
    if full && orphaned() {
        return Err(at("dying with the agent")("it has already ended"));
    }
    let mut command = Command::new(qemu);
    command.args(arguments);
    if plan.level != Level::Off {
        command.env_clear();
    }
    Err(at(format!("starting {}", Path::new(qemu).display()))(command.exec()))
}

/// Whether the outer launcher has gone: nobody else holds the other end of standard input.
fn orphaned() -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let stdin = io::stdin();
    let mut polled = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    !matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0))
}

type Anything = Box<dyn std::error::Error + Send + Sync>;

/// Files and ports, as far as the kernel offers it.
fn restrict(files: &[Allowed], network: Network) -> Result<RulesetStatus, Anything> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    if let Network::Port(port) = network {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    for Allowed { path, right, optional } in files {
        let target = match PathFd::new(path) {
            Err(_) if *optional => continue,
            target => target?,
        };
        let folder = fs::metadata(path)?.is_dir();
        let mut access: BitFlags<AccessFs> = AccessFs::ReadFile.into();
        if folder {
            access |= AccessFs::ReadDir;
        }
        match right {
            Right::Program => access |= AccessFs::Execute,
            Right::Read => {}
            Right::Write => access |= AccessFs::WriteFile | AccessFs::Truncate,
            Right::Device => access |= AccessFs::WriteFile | AccessFs::IoctlDev,
        }
        ruleset = ruleset.add_rule(PathBeneath::new(target, access))?;
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

/// What the kernel of this machine offers, found out by a thread that gives up everything and ends.
pub fn landlock() -> Landlock {
    let tried = std::thread::spawn(|| restrict(&[], Network::Device).ok()).join();
    match tried.ok().flatten() {
        Some(RulesetStatus::FullyEnforced) => Landlock::Full,
        Some(RulesetStatus::PartiallyEnforced) => Landlock::Part,
        _ => Landlock::Absent,
    }
}

/// Capabilities, the user, and what would give them back.
fn give_up_privileges(change_user: bool) -> Result<(), ConfineError> {
    let system = |step: &'static str| move |error| at(step)(io::Error::from(error));
    let root = Uid::effective().is_root();
    if root {
        for number in 0..64 {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            match capability_is_in_bounding_set(capability) {
                // Beyond the last capability of this kernel.
                Err(rustix::io::Errno::INVAL) => break,
                Ok(false) => {}
                _ => remove_capability_from_bounding_set(capability)
                    .map_err(system("the capability bounding set"))?,
            }
        }
        let locked = CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
        set_capabilities_secure_bits(locked).map_err(system("securebits"))?;
    }
    clear_ambient_capability_set().map_err(system("ambient capabilities"))?;
    if change_user {
        let (user, group) = (Uid::from_raw(QEMU_ID), Gid::from_raw(QEMU_ID));
        setgroups(&[]).map_err(at("groups"))?;
        setresgid(group, group, group).map_err(at("the group"))?;
        setresuid(user, user, user).map_err(at("the user"))?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(system("capabilities"))?;
    nix::sys::prctl::set_no_new_privs().map_err(at("no_new_privs"))
}

/// Becomes the launcher's command for `qemu` and its arguments.
pub fn command(plan: &Plan, qemu: &Path, arguments: Vec<OsString>) -> Result<Command, serde_json::Error> {
    let mut command = Command::new(PROGRAM);
    command.arg(OUTER).arg(serde_json::to_string(plan)?).arg(qemu).args(arguments);
    Ok(command)
}

/// How a QEMU of this plan is killed: what is told to whom.
pub fn kill_signal(plan: &Plan) -> Signal {
    match plan.level {
        // The outer launcher waits until QEMU is gone.
        Level::Full => Signal::SIGTERM,
        Level::Process | Level::Off => Signal::SIGKILL,
    }
}
