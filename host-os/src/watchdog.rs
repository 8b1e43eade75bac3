//! The machine's watchdog (linux/watchdog.h): unless it is fed in time, the hardware resets the machine.

use crate::sys;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Without food for so long, in seconds, the machine is reset. Long against a busy machine, short against an operator's
/// way to it.
pub const TIMEOUT_S: i32 = 60;
/// The device.
pub const DEVICE: &str = "/dev/watchdog";
/// WDIOF_CARDRESET: the last reset was the watchdog's.
const CARD_RESET: i32 = 0x20;

/// What the machine has, for the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WatchdogStatus {
    /// Seconds until it resets the machine; absent without a watchdog.
    pub timeout_s: Option<i32>,
    /// Whether the last reset was its doing, where the device can tell.
    pub reset_the_machine: bool,
    /// In words.
    pub text: String,
}

/// The open device. It stays armed when this is dropped: only a kernel that starts anew stops it.
#[derive(Debug)]
pub struct Watchdog(File);

impl Watchdog {
    /// Arms it, and says what there is.
    pub fn arm(device: &Path) -> (Option<Self>, WatchdogStatus) {
        let none = |text: String| (None, WatchdogStatus { timeout_s: None, reset_the_machine: false, text });
        let file = match OpenOptions::new().write(true).open(device) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return none(
                    "this machine has no hardware watchdog that the kernel knows; a machine that hangs has to be reset by hand"
                        .into(),
                );
            }
            Err(error) => return none(format!("the hardware watchdog cannot be used: {error}")),
        };
        let reset_the_machine = sys::watchdog_boot_status(&file).is_ok_and(|bits| bits & CARD_RESET != 0);
        // A device that keeps its own time still works.
        let timeout_s = sys::set_watchdog_timeout(&file, TIMEOUT_S).ok();
        let mut text = match timeout_s {
            Some(seconds) => format!("armed: the machine is reset when PID 1 is silent for {seconds} s"),
            None => "armed, with the device's own time".to_owned(),
        };
        if reset_the_machine {
            text.push_str("; it made the last reset");
        }
        (Some(Self(file)), WatchdogStatus { timeout_s, reset_the_machine, text })
    }

    /// Feeds it.
    pub fn feed(&self) -> io::Result<()> {
        // Any byte but 'V', which would ask to disarm it.
        (&self.0).write_all(b"\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_without_a_watchdog_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let (none, status) = Watchdog::arm(&dir.path().join("watchdog"));
        assert!(none.is_none() && status.text.contains("no hardware watchdog"), "{status:?}");
        // A file takes the food and knows no requests.
        std::fs::write(dir.path().join("file"), "").unwrap();
        let (some, status) = Watchdog::arm(&dir.path().join("file"));
        some.unwrap().feed().unwrap();
        assert_eq!((status.timeout_s, status.reset_the_machine), (None, false));
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"\n");
    }
}
