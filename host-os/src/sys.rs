//! The one place of this crate with unsafe code: what a child process does between fork and exec.
#![allow(unsafe_code, reason = "Command::pre_exec is unsafe and has no safe equivalent in std")]

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
