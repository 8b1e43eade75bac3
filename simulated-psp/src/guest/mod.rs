//! Guest side: client of the port, and a file system that looks like configfs-tsm.
//!
//! On hardware the guest reads its attestation reports from Linux' configfs-tsm
//! (`/sys/kernel/config/tsm/report`, Documentation/ABI/testing/configfs-tsm). In the virtual profile [`mount`]
//! puts a FUSE file system with the same files over that directory, so the guest has one way to a report.
//!
//! Why FUSE and not a trait: it costs one kernel option of the virtual profile and about 300 lines here, and in
//! exchange every line of the guest that asks for a report runs on a laptop exactly as it runs on hardware.
//! Derived keys have no such files in Linux (they are an ioctl); for them the guest asks [`Client`] itself.

mod client;
mod file_system;
mod tsm;

pub use client::{Client, ClientError};
pub use file_system::{Mounted, mount};
