//! Lines on the console, which the host keeps. Nothing secret is ever written here.

use nix::sys::reboot::{RebootMode, reboot};
use nix::time::{ClockId, clock_gettime};
use std::fmt;
use std::io::Write;
use std::time::Duration;

/// Time to let the serial port drain and to keep a failing guest from restarting in a hot loop.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Writes one line with the time since boot. A console that does not work is no reason to stop.
pub fn say(message: impl fmt::Display) {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    // One write, so that lines of several threads do not mix.
    let line = format!("[{:5}.{:03}] guest-os: {message}\n", time.as_secs(), time.subsec_millis());
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The error with everything below it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        // Some errors print what is below them already.
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        below = error.source();
    }
    text
}

/// A panic in any thread of PID 1 leaves its message on the console and restarts the machine. (Without this the
/// kernel would panic because its init died, and the reason would drown.)
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        restart(&format!("PANIC, this is a bug, please report it: {panic}"));
    }));
}

/// Restarts the machine after a last line.
pub fn restart(reason: &str) -> ! {
    say(format_args!("{reason}"));
    say("restarting the machine");
    end(RebootMode::RB_AUTOBOOT)
}

/// Powers the machine off after a last line. File systems are in memory; the vault is written through.
pub fn power_off() -> ! {
    say("powering off");
    end(RebootMode::RB_POWER_OFF)
}

fn end(mode: RebootMode) -> ! {
    nix::unistd::sync();
    if mode == RebootMode::RB_AUTOBOOT {
        std::thread::sleep(LAST_WORDS);
    }
    // Fails only without the privilege; then ending PID 1 makes the kernel panic and, with panic=, reboot.
    let _ = reboot(mode);
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("outer")]
        Hides(#[source] std::io::Error),
        #[error("outer: {0}")]
        Shows(#[source] std::io::Error),
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let cause = || std::io::Error::other("inner");
        assert_eq!(chain(&Sample::Hides(cause())), "outer: inner");
        assert_eq!(chain(&Sample::Shows(cause())), "outer: inner");
    }
}
