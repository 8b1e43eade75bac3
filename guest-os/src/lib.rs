//! PID 1 of the confidential guest.
//!
//! The way through a boot, in the order of [`boot::run`]: file systems ([`mounts`]), kernel settings ([`sysctl`]),
//! clock and entropy ([`clock`]), the link to the host ([`host`]), the own attestation report ([`tsm`]), the
//! configuration whose hash stands in it, the network ([`network`]), the node's secret from the vault ([`storage`],
//! [`vault`], [`keys`]), the NVRAM ([`devices`]), the evidence socket ([`evidence`]), and then the replica
//! ([`replica`], confined by [`sandbox`]) for as long as [`supervisor`] says.
//!
//! Everything from the host is hostile: frames, devices, disk content, time. There is no shell and no other program
//! than this one and the replica.

pub mod boot;
pub mod clock;
pub mod command_line;
pub mod console;
pub mod devices;
pub mod evidence;
pub mod hand_over;
pub mod health;
pub mod host;
pub mod keys;
pub mod mounts;
pub mod netlink;
pub mod network;
pub mod replica;
pub mod sandbox;
pub mod storage;
pub mod supervisor;
pub mod syscalls;
pub mod sysctl;
pub mod tsm;
pub mod vault;

mod sys;

use host_guest::{FrameError, ToGuest};
use nix::sys::signal::Signal;

/// What wakes PID 1.
#[derive(Debug)]
pub enum Event {
    /// A signal to PID 1; SIGCHLD says that something can be reaped.
    Signal(Signal),
    /// A message from the host.
    Host(ToGuest),
    /// The host broke the protocol, or the port failed.
    HostFailed(FrameError),
    /// A sign of life of the replica that was started as number `start`.
    Replica {
        /// Number of the start.
        start: u32,
        /// Which sign.
        sign: replica::Sign,
    },
}
