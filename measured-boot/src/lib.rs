//! What a TPM 2.0 says of how a host was started, and what is expected. No I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`log`] | the event log of firmware and stub (TCG PC Client Platform Firmware Profile, 10), and its replay to PCRs |
//! | [`quote`] | a signed statement of PCRs (TPM 2.0 Library, Part 2, 10.12) |
//! | [`key`] | public keys in a TPM (Part 2, 12.2), their names, and their signatures |
//! | [`credential`] | a challenge that only the TPM with a certain endorsement key answers (Part 1, 24) |
//! | [`expected`] | what firmware and systemd's stub measure of a release, and comparing it with a log |
//! | [`evidence`] | what a host hands out, and the verdict on it |
//!
//! Everything from a host is hostile input: lengths are bounded before anything is kept, and nothing panics.

pub mod credential;
pub mod evidence;
pub mod expected;
pub mod key;
pub mod log;
pub mod quote;
mod reader;
#[cfg(feature = "samples")]
pub mod samples;

use sha2::{Digest, Sha256};

/// A SHA-256 digest, or the value of a PCR of that bank.
pub type Hash = [u8; 32];

/// TPM_ALG_SHA256 (TPM 2.0 Library, Part 2, 6.3).
pub const SHA256: u16 = 0x000b;

/// Number of PCRs that a PC has.
pub const PCRS: usize = 24;

/// The PCRs that a host quotes: what firmware, boot loader and Secure Boot measure (0 to 7), and what systemd's stub
/// measures (11: the parts of the image; 12: command lines and credentials from outside of it; 13: system extensions).
pub const QUOTED: [u8; 11] = [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13];

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// The value of a PCR after an event (TPM 2.0 Library, Part 1, 17.2).
pub fn extend(pcr: &Hash, event: &Hash) -> Hash {
    Sha256::new().chain_update(pcr).chain_update(event).finalize().into()
}
