//! The commands as a person or a script sees them: exit codes, JSON, and what is left behind. With a simulated QEMU.
#![cfg(feature = "virtual")]

#[cfg(test)]
mod hardware;
#[cfg(test)]
#[path = "../../../host-os/tests/agent/made_up.rs"]
mod made_up;
#[cfg(test)]
mod node;
