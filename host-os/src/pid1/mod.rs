//! PID 1 of the host: mounts, says whether the root is the one that was signed, starts the agent and keeps it running.
//!
//! The kernel verifies each block of the root that is read, against the root hash in the signed command line, and stops the
//! machine at the first block that is wrong. Once the guest was started, every other block is read too, so that damage shows
//! soon and not on the day when the block is needed.

mod command_line;
mod keeper;
mod loopback;
mod mounts;
mod storage;
pub(crate) mod verity;
mod watch;

use crate::{
    boot_facts::{self, BootFacts, RootStatus},
    crashes,
    watchdog::{self, Watchdog},
};
use command_line::CommandLine;
use nix::{
    sys::reboot::{RebootMode, reboot},
    time::{ClockId, clock_gettime},
};
use std::{
    fmt,
    fs::File,
    io::{self, Read, Write},
    path::Path,
    time::{Duration, Instant},
};

/// The manifest of the guest's release.
const MANIFEST: &str = "/guest/manifest.json";
/// What the node keeps.
const NODE: &str = "/state/node";
/// Where records of crashes are kept.
const CRASHES: &str = "/state/crashes";
/// Time to let the console drain.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The host cannot start.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    #[error(transparent)]
    CommandLine(#[from] command_line::CommandLineError),
    #[error(transparent)]
    Verity(#[from] verity::VerityError),
    #[error(transparent)]
    Storage(#[from] storage::StorageError),
    #[error("cannot read {path}: {source}; the kernel lacks it or the disk fails")]
    Read { path: String, source: io::Error },
    #[error("the loopback interface does not come up: {0}; the agent serves on it")]
    Loopback(#[source] io::Error),
}

/// Writes one line with the time since boot. A console that does not work is no reason to stop.
fn say(message: impl fmt::Display) {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    // One write, so that lines of several processes do not mix.
    let line = format!("[{:5}.{:03}] host-os: {message}\n", time.as_secs(), time.subsec_millis());
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Runs as PID 1. A host that cannot start says why, and restarts.
pub fn run() -> ! {
    // Without this the kernel would panic because its init died, and the reason would drown.
    std::panic::set_hook(Box::new(|panic| {
        restart(&format!("PANIC, this is a bug, please report it: {panic}"));
    }));
    match boot() {
        Ok(machine) => watch::watch(machine),
        Err(error) => restart(&error.to_string()),
    }
}

fn restart(reason: &str) -> ! {
    say(format_args!("the host cannot start: {reason}"));
    say("restarting the machine");
    nix::unistd::sync();
    std::thread::sleep(LAST_WORDS);
    // Fails only without the privilege; then the end of PID 1 makes the kernel panic and, with panic=, restart.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    std::process::exit(1)
}

/// A machine that is ready for its agent.
struct Started {
    line: CommandLine,
    agent: io::Result<watch::Agent>,
    watchdog: Option<Watchdog>,
    facts: BootFacts,
}

fn boot() -> Result<Started, BootError> {
    mounts::mount_all()?;
    let line = CommandLine::parse(&read("/proc/cmdline")?)?;
    let mut disk = storage::Disk::of_root()?;
    // It takes the longest, and the agent's program is loaded meanwhile.
    let guest = disk.unpack_guest();
    let agent = watch::Agent::load(&line);
    let (device, watchdog) = Watchdog::arm(Path::new(watchdog::DEVICE));
    say(format_args!("watchdog: {}", watchdog.text));
    // Each of the steps below has the watchdog's whole time.
    let feed = || device.as_ref().map_or(Ok(()), Watchdog::feed).unwrap_or_default();
    say(format_args!("host of profile {}, {}", line.profile, read("/proc/version")?.trim_end()));
    say(format_args!("Secure Boot: {}", secure_boot()));
    verity::check_superblock(&line.verity)?;
    say(format_args!("root hash {}", line.verity.root_hash));
    loopback::switch_on().map_err(BootError::Loopback)?;
    say(format_args!("started from slot {} of {}", disk.slot, disk.name));
    disk.personalise()?;
    if disk.has_ended()? {
        say(
            "this node was decommissioned and its keys are erased; to use the machine again, install it anew",
        );
        watch::finish(crate::power::Action::PowerOff);
    }
    let protection = disk.secrets(&line.profile)?;
    say(&protection.text);
    disk.mount_state()?;
    feed();
    match disk.configuration()? {
        Some(node) => say(format_args!("identity of this node: {node}")),
        None => {
            say("this node was not installed and has no configuration: install it to give it an operator")
        }
    }
    match guest.join() {
        Ok(Ok(files)) => say(format_args!("guest slot {}: {files} files, {MANIFEST}", disk.slot)),
        Ok(Err(error)) => say(format_args!("guest slot {}: {error}", disk.slot)),
        // It was said, and the machine restarts.
        Err(_) => {}
    }
    let crashes = crashes::collect(Path::new("/sys/fs/pstore"), Path::new(CRASHES)).unwrap_or_else(|error| {
        say(format_args!("records of crashes cannot be kept: {error}"));
        Vec::new()
    });
    for crash in crashes.iter().filter(|crash| crash.new) {
        say(format_args!("the last run ended in a crash: {} ({})", crash.why.join("; "), crash.file));
    }
    let root = RootStatus::default();
    let facts = BootFacts { watchdog, crashes, protection: Some(protection), root };
    tell_agent(&facts);
    Ok(Started { line, agent, watchdog: device, facts })
}

fn tell_agent(facts: &BootFacts) {
    if let Err(error) = boot_facts::write(facts) {
        say(format_args!("the agent does not know how this machine started: {error}"));
    }
}

/// Reads what of the root was not read yet.
fn read_root(expected: &verity::Expected, mut facts: BootFacts) {
    let started = Instant::now();
    let (state, text) = match verity::read_all(expected) {
        Ok(blocks) => {
            ("verified", format!("root verified: {blocks} blocks, {:.1} s", started.elapsed().as_secs_f64()))
        }
        // What runs goes on: a block that cannot be read does no harm but to who needs it.
        Err(error) => ("unreadable", error.to_string()),
    };
    say(&text);
    facts.root = RootStatus { state: state.into(), text };
    tell_agent(&facts);
}

fn read(path: &str) -> Result<String, BootError> {
    std::fs::read_to_string(path).map_err(|source| BootError::Read { path: path.to_owned(), source })
}

/// What the firmware says: four bytes of attributes, then the value (UEFI specification, 3.3).
fn secure_boot() -> &'static str {
    let mut value = Vec::new();
    let path = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    match File::open(path).and_then(|file| file.take(16).read_to_end(&mut value)) {
        Ok(5) if value[4] == 1 => "on",
        Ok(5) => "OFF: this machine starts whatever is on its disk; switch it on in the firmware",
        _ => "unknown: the firmware does not say",
    }
}
