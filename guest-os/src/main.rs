//! PID 1 of the confidential guest, and the launcher that becomes its replica.
//!
//! Exit codes of the launcher: 64 wrong arguments, 70 the replica could not be confined. PID 1 does not exit.

use guest_os::console::{chain, install_panic_hook, restart, say};
use guest_os::{boot, sandbox};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [sandbox::LAUNCH, port] if std::process::id() != 1 => {
            let Ok(port) = port.parse() else { return ExitCode::from(64) };
            // Only returns when it failed.
            let Err(error) = sandbox::become_replica(port);
            say(chain(&error));
            ExitCode::from(70)
        }
        // The kernel gives PID 1 what it does not understand of its command line.
        _ if std::process::id() == 1 => {
            install_panic_hook();
            let Err(error) = boot::run();
            restart(&format!("the guest cannot start: {}", chain(&error)))
        }
        _ => {
            say("this program is PID 1 of a guest image; it does nothing elsewhere");
            ExitCode::from(64)
        }
    }
}
