//! The machine's TPM: its keys, quotes of how the host was started, secrets that only this start of this machine gets, and
//! a counter that nobody sets back.
//!
//! | module | holds |
//! |---|---|
//! | this one | the seam, [`Tpm`], so that everything else can be tested without one |
//! | `tss` | a TPM, by libtss2 (crate `tss-esapi`) |
//! | [`attest`] | what a verifier gets |
//! | [`serve`] | the way to it, for anybody |
//! | [`client`] | a verifier's side of that way |
//! | [`sealing`] | the host's secret: made once, sealed to the ways in which the machine may be started |
//! | [`records`] | that secret on the configuration partition, and the node's key that it encrypts |
//! | [`anchor`] | the counter behind `seen.json` |

pub mod anchor;
pub mod attest;
pub mod client;
pub mod records;
pub mod sealing;
pub mod serve;
#[cfg(test)]
#[cfg(feature = "tpm")]
mod tests;
#[cfg(feature = "tpm")]
pub mod tss;

use measured_boot::Hash;
use std::collections::BTreeMap;

/// The kernel's TPM, with its resource manager.
pub const DEVICE: &str = "/dev/tpmrm0";

/// The TPM did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TpmError {
    /// No TPM.
    #[error("this machine has no TPM 2.0 ({DEVICE}); switch it on in the firmware")]
    Absent,
    /// A build for machines without.
    #[error("this build of the host agent does not speak to TPMs; use the one of a host's image")]
    NotBuilt,
    /// The TPM refuses, or does not answer.
    #[error("the TPM does not {what}: {why}; restart the machine, and replace the TPM if it stays so")]
    Failed {
        /// What was asked, as a verb with its object.
        what: &'static str,
        /// The TPM's or the library's reason.
        why: String,
    },
    /// PCRs differ from those that the secret was sealed to.
    #[error("the machine was not started the way that the secret is sealed to")]
    OtherStart,
    /// The seed of the storage hierarchy is another one.
    #[error("the secret was sealed by another TPM, or this TPM was cleared since")]
    OtherTpm,
    /// Bytes that no TPM made.
    #[error("the sealed secret is damaged")]
    Damaged,
}

/// What a quote consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// TPMS_ATTEST.
    pub statement: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

/// The TPM's public keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKeys {
    /// TPMT_PUBLIC of the endorsement key.
    pub endorsement: Vec<u8>,
    /// Its certificate, if the TPM has one.
    pub certificate: Option<Vec<u8>>,
    /// TPMT_PUBLIC of the attestation key.
    pub attestation: Vec<u8>,
}

/// A TPM 2.0.
pub trait Tpm: Send {
    /// The endorsement key and the attestation key; they are made once and stay in the TPM.
    fn keys(&mut self) -> Result<PublicKeys, TpmError>;
    /// Opens a secret that was made for both keys (TPM2_ActivateCredential).
    fn activate(&mut self, credential: &[u8], seed: &[u8]) -> Result<[u8; 32], TpmError>;
    /// Signs the PCRs [`measured_boot::QUOTED`] with 32 bytes of the verifier's.
    fn quote(&mut self, qualifying: &Hash) -> Result<Quote, TpmError>;
    /// Values of PCRs, SHA-256 bank.
    fn pcrs(&mut self, which: &[u8]) -> Result<BTreeMap<u8, Hash>, TpmError>;
    /// Encrypts a secret so that this TPM opens it while its PCRs have these values.
    fn seal(&mut self, secret: &[u8], pcrs: &BTreeMap<u8, Hash>) -> Result<Vec<u8>, TpmError>;
    /// Opens it. `pcrs` says which PCRs it was sealed to.
    fn unseal(&mut self, sealed: &[u8], pcrs: &[u8]) -> Result<Vec<u8>, TpmError>;
    /// The counter, made if there is none. It never falls, also when it is deleted and made again.
    fn counter(&mut self) -> Result<u64, TpmError>;
    /// Raises the counter by one.
    fn increment(&mut self) -> Result<(), TpmError>;
}

/// The machine's TPM.
pub fn open() -> Result<Box<dyn Tpm>, TpmError> {
    if !std::path::Path::new(DEVICE).exists() {
        return Err(TpmError::Absent);
    }
    #[cfg(feature = "tpm")]
    return Ok(Box::new(tss::LibTss::device()?));
    #[cfg(not(feature = "tpm"))]
    Err(TpmError::NotBuilt)
}

/// TPM2_PolicyPCR's digest for values that need not be the present ones (TPM 2.0 Library, Part 3, 23.7).
pub fn policy(pcrs: &BTreeMap<u8, Hash>) -> Hash {
    const POLICY_PCR: u32 = 0x0000_017f;
    let mut selection = [0_u8; 3];
    for pcr in pcrs.keys() {
        if let Some(byte) = selection.get_mut(usize::from(pcr / 8)) {
            *byte |= 1 << (pcr % 8);
        }
    }
    let mut input = vec![0; 32];
    input.extend(POLICY_PCR.to_be_bytes());
    // TPML_PCR_SELECTION with one bank.
    input.extend(1_u32.to_be_bytes());
    input.extend(measured_boot::SHA256.to_be_bytes());
    input.push(3);
    input.extend(selection);
    let values: Vec<u8> = pcrs.values().flatten().copied().collect();
    input.extend(measured_boot::sha256(&values));
    measured_boot::sha256(&input)
}
