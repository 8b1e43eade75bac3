//! A stand-in for the AMD Secure Processor in the virtual profile. Never linked by production binaries.
//!
//! | feature | side | holds |
//! |---|---|---|
//! | (none) | both | [`protocol`]: what travels over the virtio-serial port |
//! | `chip` | host | private keys: a chip identity for each node, reports and derived keys |
//! | `root` | verifier | the development root as trust anchors |
//! | `guest` | guest | client of the port, and the file system that looks like configfs-tsm |
//!
//! What it signs proves nothing: the development keys are public. Its evidence is marked as simulated in five
//! places that a verifier sees: the kind of the evidence, the root, the names in the certificates, the chip id, and
//! the domain of REPORT_DATA.

pub mod protocol;

#[cfg(feature = "chip")]
pub mod chip;
#[cfg(any(feature = "chip", feature = "root"))]
mod development;
#[cfg(feature = "guest")]
pub mod guest;
#[cfg(feature = "root")]
pub mod root;
