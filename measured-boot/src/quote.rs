//! A quote: what the TPM says its PCRs are, with somebody's nonce (TPMS_ATTEST; TPM 2.0 Library, Part 2, 10.12).

use crate::{
    Hash, PCRS, SHA256,
    key::{AttestationKey, KeyError},
    reader::{CutOff, Reader},
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// TPM_GENERATED_VALUE: begins everything that a TPM states, and nothing else that a restricted key signs.
const GENERATED: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
const QUOTE: u16 = 0x8018;
/// Longest statement that is looked at, in bytes.
const MAX: usize = 2048;

/// A quote is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Not a quote.
    #[error("the quote is none of a TPM ({0}); fetch the evidence again")]
    Form(&'static str),
    /// Somebody else's signature.
    #[error(transparent)]
    Signature(#[from] KeyError),
    /// Recorded earlier, or made for another connection.
    #[error(
        "the quote was made for {found}, asked was for {expected}: it is an old one, or of another connection; do not believe this host"
    )]
    Nonce {
        /// Qualifying data that was asked for, hexadecimal.
        expected: String,
        /// What the quote has, hexadecimal.
        found: String,
    },
    /// SHA-1, for example.
    #[error("the quote is of bank {0:#06x}, not of SHA-256; enable that bank in the firmware")]
    Bank(u16),
    /// Too few PCRs, or others.
    #[error("the quote is of PCRs {found:?}, asked was for {expected:?}; fetch the evidence again")]
    Selection {
        /// Asked for.
        expected: Vec<u8>,
        /// Found.
        found: Vec<u8>,
    },
    /// The listed values are not the quoted ones.
    #[error(
        "the values of the PCRs that came with the quote are not the quoted ones; do not believe this host"
    )]
    Values,
}

impl QuoteError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Form(_) => "quote-malformed",
            Self::Signature(_) => "quote-signature-wrong",
            Self::Nonce { .. } => "quote-nonce-differs",
            Self::Bank(_) => "quote-wrong-bank",
            Self::Selection { .. } => "quote-wrong-selection",
            Self::Values => "quote-values-differ",
        }
    }
}

/// What a quote says beside the PCRs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Milliseconds that this TPM ran since it was last cleared.
    pub clock_ms: u64,
    /// How often the TPM was reset: rises with each start of the machine.
    pub resets: u32,
    /// How often it was resumed since.
    pub restarts: u32,
    /// Version of the TPM's firmware, as its maker counts.
    pub firmware: u64,
}

/// Values of PCRs that a TPM vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// By PCR.
    pub pcrs: BTreeMap<u8, Hash>,
    /// When, by the TPM's own count.
    pub clock: Clock,
}

struct Statement<'a> {
    qualifying: &'a [u8],
    clock: Clock,
    banks: Vec<(u16, Vec<u8>)>,
    digest: &'a [u8],
}

fn parse(bytes: &[u8]) -> Result<Result<Statement<'_>, QuoteError>, CutOff> {
    let mut reader = Reader::new(bytes);
    if reader.be32()? != GENERATED {
        return Ok(Err(QuoteError::Form("no TPM generated it")));
    }
    if reader.be16()? != QUOTE {
        return Ok(Err(QuoteError::Form("it states something else than PCRs")));
    }
    let _signer = reader.sized()?;
    let qualifying = reader.sized()?;
    // TPMS_CLOCK_INFO and the firmware's version.
    let (clock_ms, resets, restarts) = (reader.be64()?, reader.be32()?, reader.be32()?);
    let _safe = reader.u8()?;
    let clock = Clock { clock_ms, resets, restarts, firmware: reader.be64()? };
    let count = reader.be32()?;
    if count > 16 {
        return Ok(Err(QuoteError::Form("it has more banks than any TPM")));
    }
    let mut banks = Vec::new();
    for _ in 0..count {
        let bank = reader.be16()?;
        let length = reader.u8()?;
        let bits = reader.take(length.into())?;
        let selected = |pcr: u8| bits[usize::from(pcr / 8)] & (1 << (pcr % 8)) != 0;
        let last = u8::try_from(bits.len() * 8).unwrap_or(u8::MAX);
        banks.push((bank, (0..last).filter(|pcr| selected(*pcr)).collect()));
    }
    let digest = reader.sized()?;
    if !reader.is_empty() {
        return Ok(Err(QuoteError::Form("something follows it")));
    }
    Ok(Ok(Statement { qualifying, clock, banks, digest }))
}

/// Verifies a quote (TPMS_ATTEST) with its TPMT_SIGNATURE: that this key signed it for this qualifying data, and that these
/// are the values of exactly these PCRs, in the SHA-256 bank.
pub fn verify(
    quote: &[u8],
    signature: &[u8],
    key: &AttestationKey,
    qualifying: &[u8],
    pcrs: &[u8],
    values: &BTreeMap<u8, Hash>,
) -> Result<Quoted, QuoteError> {
    if quote.len() > MAX {
        return Err(QuoteError::Form("it is too long"));
    }
    let statement = parse(quote).map_err(|_| QuoteError::Form("it is cut off"))??;
    // Before anything that it says is believed.
    key.verify(quote, signature)?;
    if statement.qualifying != qualifying {
        let (expected, found) = (hex::encode(qualifying), hex::encode(statement.qualifying));
        return Err(QuoteError::Nonce { expected, found });
    }
    let [(bank, found)] = &statement.banks[..] else {
        return Err(QuoteError::Form("it is not of one bank"));
    };
    if *bank != SHA256 {
        return Err(QuoteError::Bank(*bank));
    }
    if found != pcrs || pcrs.iter().any(|pcr| usize::from(*pcr) >= PCRS) {
        return Err(QuoteError::Selection { expected: pcrs.to_vec(), found: found.clone() });
    }
    let mut digest = Sha256::new();
    for pcr in pcrs {
        digest.update(values.get(pcr).ok_or(QuoteError::Values)?);
    }
    if statement.digest != digest.finalize().as_slice() || values.len() != pcrs.len() {
        return Err(QuoteError::Values);
    }
    Ok(Quoted { pcrs: values.clone(), clock: statement.clock })
}
