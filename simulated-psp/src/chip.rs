//! Host side: the simulated chip of one node and the simulated PSP of one launched guest.
//!
//! The chip plays a Genoa with current firmware: its reports have version 5 and the real layout, and the certificate of
//! its key carries AMD's extensions, so that a verifier walks through the code that real reports take.

mod certificate;
mod der;
mod psp;
mod store;
#[cfg(test)]
mod tests;

pub use psp::{IdBlock, LaunchContext, Psp};

use attestation::report::TcbVersion;
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use std::{io, path::Path, path::PathBuf, sync::Arc};
use store::Stored;

/// Start of every CHIP_ID of a simulation, in ASCII.
pub const CHIP_ID_PREFIX: &[u8] = b"SIMULATED";

/// What a real Genoa reported in 2025.
const TCB: TcbVersion = TcbVersion { fmc: None, bootloader: 10, tee: 0, snp: 27, microcode: 86 };

/// Why there is no simulated chip.
#[derive(Debug, thiserror::Error)]
pub enum ChipError {
    /// Reading or writing the chip's file.
    #[error("cannot {action} the simulated chip at {}: {source}; check the folder and its free space", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not one that this program wrote.
    #[error(
        "the simulated chip at {} is damaged ({what}); remove the file to get a new chip, which cannot derive the old one's keys",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In words.
        what: String,
    },
    /// An operation with a key or with random numbers failed.
    #[error(
        "the simulated chip cannot {0}; this machine gives no random numbers or the development keys are broken"
    )]
    Crypto(&'static str),
}

/// The simulated chip of one node.
#[derive(Debug, Clone)]
pub struct Chip(Arc<Identity>);

/// What makes one chip differ from another.
pub(crate) struct Identity {
    /// Root of the derived keys and of the chip id.
    secret: hmac::Key,
    /// Signs reports.
    key: EcdsaKeyPair,
    chip_id: [u8; 64],
    /// TCB of its firmware, committed.
    tcb: TcbVersion,
    /// ARK, ASK and VCEK as an extended guest request gives them.
    certificate_table: Vec<u8>,
    random: SystemRandom,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Chip {
    /// Opens the chip whose file is in this folder, or makes both. The same folder gives the same chip.
    pub fn open_or_create(folder: &Path) -> Result<Self, ChipError> {
        Self::with_firmware(folder, TCB)
    }

    /// The same with other firmware on it, as after an update; its endorsement key is certified for that one.
    pub fn with_firmware(folder: &Path, tcb: TcbVersion) -> Result<Self, ChipError> {
        let stored = Stored::open_or_create(folder)?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &stored.key, &random)
            .map_err(|error| ChipError::Damaged { path: Stored::path(folder), what: error.to_string() })?;
        let secret = hmac::Key::new(hmac::HMAC_SHA512, stored.secret.as_ref());
        let mut chip_id = [0; 64];
        chip_id.copy_from_slice(hmac::sign(&secret, b"redoubt simulated chip id").as_ref());
        chip_id[..CHIP_ID_PREFIX.len()].copy_from_slice(CHIP_ID_PREFIX);
        // Issued anew at each start rather than stored: it follows the development root and the TCB of this program.
        let vcek = certificate::issue(key.public_key().as_ref(), &chip_id, tcb, &random)?;
        let certificate_table = attestation::certificate_table::encode(&attestation::Certificates {
            ark: crate::development::ARK.to_vec(),
            ask: crate::development::ASK.to_vec(),
            vek: vcek,
        });
        Ok(Self(Arc::new(Identity { secret, key, chip_id, tcb, certificate_table, random })))
    }

    /// CHIP_ID of its reports.
    #[must_use]
    pub fn chip_id(&self) -> [u8; 64] {
        self.0.chip_id
    }

    /// The certificates that endorse its reports, as an extended guest request gives them.
    #[must_use]
    pub fn certificate_table(&self) -> &[u8] {
        &self.0.certificate_table
    }

    /// Begins the life of one guest, as SNP_LAUNCH_FINISH does.
    pub fn launch(&self, context: LaunchContext) -> Result<Psp, ChipError> {
        Psp::new(Arc::clone(&self.0), context)
    }
}
