//! The host's secret: random bytes, made at the first start, that only this TPM gives out, and only to a host that was
//! started as a release of this node is.
//!
//! The record on the configuration partition has one entry for each release that may open it: the values of the PCRs
//! [`SEALED_TO`] that the release leads to, and the secret sealed to them. Before a restart into another release an entry is
//! added for what its signed manifest says ([`Sealed::with`]), so an upgrade does not lock the node out; once the new
//! release runs, the others are dropped ([`Sealed::only`]).
//!
//! | PCR | why it is sealed to |
//! |---|---|
//! | 7 | Secure Boot is on, with the same keys |
//! | 11 | the kernel image, and by its command line the root |
//! | 12 | no credential or command line from outside of the signed image |

use super::{Tpm, TpmError};
use measured_boot::Hash;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The PCRs.
pub const SEALED_TO: [u8; 3] = [7, 11, 12];
/// Most entries: the release that runs, the one before, the one that comes.
const MAX: usize = 4;

/// The secret cannot be had. A node never goes on without it in silence: what it protects would be made anew in the clear.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// Not a record of this form.
    #[error("the record of the host's sealed secret is damaged: {0}; install the host anew")]
    Record(String),
    /// No entry is for this start.
    #[error(
        "the host's secret is sealed to another start of this machine: {0}. Undo what was changed (Secure Boot, its keys, the image), or install the host anew"
    )]
    OtherStart(String),
    /// No entry opens.
    #[error(
        "the host's secret was sealed by another TPM, or this TPM was cleared: nobody can open it any more; install the host anew"
    )]
    OtherTpm,
    /// Encrypted with another secret, or changed.
    #[error("what the host's secret protects ({0}) was changed, or is another host's; install the host anew")]
    Protected(&'static str),
    /// The operating system has none.
    #[error("no random numbers; restart the machine")]
    Random,
}

impl SealError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Tpm(TpmError::Absent | TpmError::NotBuilt) => "tpm-missing",
            Self::Tpm(_) => "tpm-failed",
            Self::Record(_) => "sealed-record-damaged",
            Self::OtherStart(_) => "sealed-to-other-start",
            Self::OtherTpm => "sealed-by-other-tpm",
            Self::Protected(_) => "protected-changed",
            Self::Random => "no-random-numbers",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(with = "pcrs")]
    pcrs: BTreeMap<u8, Hash>,
    #[serde(with = "hex::serde")]
    sealed: Vec<u8>,
}

mod pcrs {
    use super::{BTreeMap, Hash};
    use measured_boot::evidence::Hex;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<u8, Hash>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        map.iter().map(|(pcr, value)| (*pcr, Hex(*value))).collect::<BTreeMap<_, _>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u8, Hash>, D::Error> {
        let map = BTreeMap::<u8, Hex>::deserialize(deserializer)?;
        Ok(map.into_iter().map(|(pcr, value)| (pcr, value.0)).collect())
    }
}

/// The sealed secret, as a record holds it: JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    version: u32,
    entries: Vec<Entry>,
}

/// The secret, and what the counter stood at when it was made: the two belong together, so nobody can pass off another start
/// of the count.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    key: [u8; 32],
    /// The counter's value then.
    pub counter: u64,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("counter", &self.counter).finish_non_exhaustive()
    }
}

impl Secret {
    /// A fresh one, for a host that has none.
    pub fn new(tpm: &mut dyn Tpm) -> Result<Self, SealError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|_| SealError::Random)?;
        Ok(Self { key, counter: tpm.counter()? })
    }

    fn to_bytes(&self) -> Vec<u8> {
        [&self.key[..], &self.counter.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (key, counter) = bytes.split_first_chunk::<32>()?;
        Some(Self { key: *key, counter: u64::from_be_bytes(counter.try_into().ok()?) })
    }

    /// A key for one purpose.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let mut key = [0; 32];
        let info = [b"redoubt host ", purpose.as_bytes()];
        let secret = Salt::new(HKDF_SHA256, &[]).extract(&self.key);
        // One block of output is never too long.
        let _ = secret.expand(&info, HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
        key
    }

    fn cipher(&self, purpose: &str) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.derive(purpose)).ok().map(LessSafeKey::new)
    }

    /// Encrypts and authenticates a document for one purpose.
    pub fn protect(&self, purpose: &'static str, content: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut content = content.to_vec();
        let cipher = self.cipher(purpose).ok_or(SealError::Protected(purpose))?;
        cipher
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut content)
            .map_err(|_| SealError::Protected(purpose))?;
        Ok([&nonce[..], &content].concat())
    }

    /// Opens what [`Secret::protect`] made.
    pub fn open(&self, purpose: &'static str, protected: &[u8]) -> Result<Vec<u8>, SealError> {
        let wrong = || SealError::Protected(purpose);
        let (nonce, content) = protected.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        let mut content = content.to_vec();
        let cipher = self.cipher(purpose).ok_or_else(wrong)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = cipher.open_in_place(nonce, Aad::empty(), &mut content).map_err(|_| wrong())?;
        Ok(opened.to_vec())
    }
}

impl Sealed {
    /// Reads a record.
    pub fn parse(bytes: &[u8]) -> Result<Self, SealError> {
        let read: Self =
            serde_json::from_slice(bytes).map_err(|error| SealError::Record(error.to_string()))?;
        if read.version != 1 || read.entries.is_empty() || read.entries.len() > MAX {
            return Err(SealError::Record(format!(
                "version {}, {} entries",
                read.version,
                read.entries.len()
            )));
        }
        Ok(read)
    }

    /// The record's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers and hexadecimal digits always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Seals a secret to the way in which the machine was started now.
    pub fn new(tpm: &mut dyn Tpm, secret: &Secret) -> Result<Self, SealError> {
        let pcrs = tpm.pcrs(&SEALED_TO)?;
        Self { version: 1, entries: Vec::new() }.with(tpm, secret, pcrs)
    }

    /// With an entry for these values too; the oldest is dropped if there are too many.
    pub fn with(
        mut self,
        tpm: &mut dyn Tpm,
        secret: &Secret,
        pcrs: BTreeMap<u8, Hash>,
    ) -> Result<Self, SealError> {
        self.entries.retain(|entry| entry.pcrs != pcrs);
        if self.entries.len() == MAX {
            self.entries.remove(0);
        }
        let sealed = tpm.seal(&secret.to_bytes(), &pcrs)?;
        self.entries.push(Entry { pcrs, sealed });
        Ok(self)
    }

    /// With the entry for the present start alone: older releases lose the secret.
    pub fn only(mut self, tpm: &mut dyn Tpm) -> Result<Self, SealError> {
        let pcrs = tpm.pcrs(&SEALED_TO)?;
        self.entries.retain(|entry| entry.pcrs == pcrs);
        if self.entries.is_empty() {
            Err(SealError::OtherStart("no entry is for it".to_owned()))
        } else {
            Ok(self)
        }
    }

    /// Opens the secret, if an entry is for the present start.
    pub fn open(&self, tpm: &mut dyn Tpm) -> Result<Secret, SealError> {
        let now = tpm.pcrs(&SEALED_TO)?;
        let Some(entry) = self.entries.iter().rev().find(|entry| entry.pcrs == now) else {
            return Err(SealError::OtherStart(self.explain(&now)));
        };
        match tpm.unseal(&entry.sealed, &SEALED_TO) {
            Ok(secret) => Secret::from_bytes(&secret)
                .ok_or_else(|| SealError::Record("the secret has another length".into())),
            Err(TpmError::OtherTpm) => Err(SealError::OtherTpm),
            Err(TpmError::OtherStart) => Err(SealError::OtherStart(self.explain(&now))),
            Err(error) => Err(error.into()),
        }
    }

    /// Which PCRs differ from the latest entry.
    fn explain(&self, now: &BTreeMap<u8, Hash>) -> String {
        let latest = self.entries.last().map(|entry| &entry.pcrs);
        let differ = now.iter().filter(|(pcr, value)| latest.and_then(|pcrs| pcrs.get(pcr)) != Some(value));
        let what = |pcr: u8| match pcr {
            7 => "PCR 7 (Secure Boot and its keys)",
            11 => "PCR 11 (the kernel image)",
            _ => "PCR 12 (inputs from outside of the image)",
        };
        let differ: Vec<&str> = differ.map(|(pcr, _)| what(*pcr)).collect();
        format!("{} differ", differ.join(", "))
    }
}
