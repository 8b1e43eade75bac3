//! The host's secret on the configuration partition, and what it protects there: the node's own key.
//!
//! The installer writes that key as it is, since it does not know what the host will measure. The first start of the host
//! makes the secret, seals it, and encrypts the key in place: both copies of its record are overwritten. What a drive keeps
//! of overwritten blocks is outside of anybody's reach but its maker's (docs/THREATS.md).

use super::{
    Tpm, TpmError,
    attest::expected,
    sealing::{SEALED_TO, SealError, Sealed, Secret},
};
use installer::{
    config::Identity,
    linux::Device,
    record::{self, Kind},
    run::Medium,
};
use measured_boot::{Hash, expected::pcr11};
use release::HostImages;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

/// Where PID 1 leaves the node's own key for the agent, in memory.
pub const IDENTITY: &str = "/run/identity.json";
const PURPOSE: &str = "identity";

/// The records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The disk.
    #[error("cannot {action} {path}: {source}; the disk fails, replace it")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The partition.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The secret.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Too long; a bug.
    #[error(transparent)]
    TooLong(#[from] record::TooLong),
    /// No TPM where one must be.
    #[error("nodes of the production profile keep their secrets by the TPM: {0}")]
    Required(#[source] TpmError),
    /// Protected once, and the secret is gone.
    #[error(
        "the node's own key is encrypted and there is no sealed secret that would open it: the record was removed; install the host anew"
    )]
    Removed,
    /// What next to seal to.
    #[error(
        "the release does not say what is measured of its host; build it with a present 'redoubt image build'"
    )]
    Unmeasured,
}

impl RecordsError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::TooLong(_) => "records-unusable",
            Self::Seal(error) => error.code(),
            Self::Required(_) => "tpm-missing",
            Self::Removed => "sealed-record-removed",
            Self::Unmeasured => "manifest-without-measurements",
        }
    }
}

/// What keeps the host's secrets.
#[derive(Debug)]
pub enum Protection {
    /// The TPM.
    Sealed(Secret),
    /// Nothing, and why.
    Clear(String),
}

/// Shown in the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProtectionStatus {
    /// Whether the host's secrets are sealed to the TPM, and its state is encrypted.
    pub sealed: bool,
    /// In words.
    pub text: String,
}

impl Protection {
    /// For the status.
    pub fn status(&self) -> ProtectionStatus {
        match self {
            Self::Sealed(_) => ProtectionStatus {
                sealed: true,
                text: "the node's key and the state are encrypted, by a secret that is sealed to the TPM"
                    .to_owned(),
            },
            Self::Clear(why) => ProtectionStatus {
                sealed: false,
                text: format!("the node's key and the state are NOT encrypted: {why}"),
            },
        }
    }
}

/// The encrypted key, as its record holds it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Protected {
    #[serde(with = "hex::serde")]
    protected: Vec<u8>,
}

/// The configuration partition's records.
pub struct Records {
    path: PathBuf,
    device: Device,
    area: Vec<u8>,
}

impl Records {
    /// Reads them.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        let failed = |action| move |source| RecordsError::Io { action, path: path.to_owned(), source };
        let mut device = Device::open(path).map_err(failed("open"))?;
        let mut area = vec![0; record::AREA];
        device.read(0, &mut area).map_err(failed("read"))?;
        Ok(Self { path: path.to_owned(), device, area })
    }

    fn get(&self, kind: Kind) -> Option<&[u8]> {
        record::read(&self.area, kind).map(|(_, content)| content)
    }

    fn put(&mut self, kind: Kind, content: &[u8]) -> Result<(), RecordsError> {
        let (at, bytes) = record::write(&self.area, kind, content)?;
        let written = self.device.write(at as u64, &bytes).and_then(|()| self.device.flush());
        written.map_err(|source| RecordsError::Io { action: "write", path: self.path.clone(), source })?;
        self.area[at..at + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn sealed(&self) -> Result<Option<Sealed>, RecordsError> {
        Ok(self.get(Kind::Sealed).map(Sealed::parse).transpose()?)
    }

    /// The host's secret, made if this host is new; its state is new if no file system was ever complete on it. Never goes
    /// on without a secret that was there once.
    pub fn protection(
        &mut self,
        tpm: Result<Box<dyn Tpm>, TpmError>,
        production: bool,
    ) -> Result<Protection, RecordsError> {
        if let Some(sealed) = self.sealed()? {
            let mut tpm = tpm.map_err(SealError::from)?;
            return Ok(Protection::Sealed(sealed.open(tpm.as_mut())?));
        }
        if self
            .get(Kind::Identity)
            .is_some_and(|content| serde_json::from_slice::<Protected>(content).is_ok())
        {
            return Err(RecordsError::Removed);
        }
        match tpm {
            Err(error) if production => Err(RecordsError::Required(error)),
            Err(error) => Ok(Protection::Clear(error.to_string())),
            Ok(_) if self.get(Kind::State).is_some() => Ok(Protection::Clear(
                "this node was set up without a TPM; install it anew to have them encrypted".into(),
            )),
            Ok(mut tpm) => {
                let secret = Secret::new(tpm.as_mut())?;
                let sealed = Sealed::new(tpm.as_mut(), &secret)?;
                self.put(Kind::Sealed, &sealed.to_bytes())?;
                Ok(Protection::Sealed(secret))
            }
        }
    }

    /// The node's own key, which is encrypted from now on if there is a secret; `None` if the node was not installed.
    pub fn identity(&mut self, protection: &Protection) -> Result<Option<Vec<u8>>, RecordsError> {
        let Some(found) = self.get(Kind::Identity).map(<[u8]>::to_vec) else { return Ok(None) };
        match (protection, serde_json::from_slice::<Protected>(&found)) {
            (Protection::Sealed(secret), Ok(Protected { protected })) => {
                Ok(Some(secret.open(PURPOSE, &protected)?))
            }
            (Protection::Clear(_), Ok(_)) => Err(RecordsError::Removed),
            (Protection::Clear(_), Err(_)) => Ok(Some(found)),
            (Protection::Sealed(secret), Err(_)) => {
                if serde_json::from_slice::<Identity>(&found).is_err() {
                    return Err(SealError::Protected(PURPOSE).into());
                }
                let protected = Protected { protected: secret.protect(PURPOSE, &found)? };
                let protected = serde_json::to_vec(&protected).unwrap_or_default();
                // Twice, as copies take turns: the key must not stay in the other one. The second overwrites at least as much.
                self.put(Kind::Identity, &protected)?;
                self.put(Kind::Identity, &protected)?;
                Ok(Some(found))
            }
        }
    }

    /// Before a restart into this release: its host may open the secret too. `pcrs` are the present values of
    /// [`SEALED_TO`]; Secure Boot stays as it is.
    pub fn allow(&mut self, tpm: &mut dyn Tpm, next: &HostImages) -> Result<(), RecordsError> {
        let Some(sealed) = self.sealed()? else { return Ok(()) };
        let next = expected(next).ok_or(RecordsError::Unmeasured)?;
        let secret = sealed.open(tpm)?;
        let mut pcrs: BTreeMap<u8, Hash> = tpm.pcrs(&SEALED_TO).map_err(SealError::from)?;
        pcrs.insert(11, pcr11(&next.sections));
        let sealed = sealed.with(tpm, &secret, pcrs)?;
        self.put(Kind::Sealed, &sealed.to_bytes())
    }

    /// Once a release is kept: no other one opens the secret any more. Twice, so that no copy of the old record stays.
    pub fn settle(&mut self, tpm: &mut dyn Tpm) -> Result<(), RecordsError> {
        let Some(sealed) = self.sealed()? else { return Ok(()) };
        let sealed = sealed.only(tpm)?.to_bytes();
        self.put(Kind::Sealed, &sealed)?;
        self.put(Kind::Sealed, &sealed)
    }
}
