//! Why an installation ends.

use crate::{
    archive::ArchiveError, config::ConfigError, parts::ReleaseError, plan::Refusal, run::RunError,
    uefi::SecureBootRefusal,
};
use std::io;

/// An installation ends without a system.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstallError {
    #[error("mounting on {0} failed: {1}; start the machine by UEFI, from the medium as it was written")]
    Mount(&'static str, io::Error),
    #[error("cannot read {0}: {1}; the device fails, or the medium was changed: write it again")]
    Read(String, io::Error),
    #[error("the kernel's command line names no profile; start the medium as it was written")]
    CommandLine,
    #[error("the medium with the release is not there; put it in, or write it again")]
    NoMedium,
    #[error("{0}; name another hardware specification")]
    Spec(String),
    #[error("this machine does not meet the hardware specification {0}; the lines above say what to do")]
    Hardware(String),
    #[error("a TPM 2.0 is required, found: {0}; switch it on in the firmware's menu")]
    NoTpm(String),
    #[error("UEFI variable {0}: {1}; reset the firmware's variables")]
    Variable(String, io::Error),
    #[error("the release root on the medium is not usable: {0}; write the medium again")]
    Root(String),
    #[error("no random numbers: {0}; use another machine")]
    Random(String),
    #[error("no disk was chosen; start again")]
    Cancelled,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    SecureBoot(#[from] SecureBootRefusal),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Release(#[from] ReleaseError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Run(#[from] RunError),
}

impl InstallError {
    /// A short fixed name, for scripts and tests.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Mount(..) => "not-mounted",
            Self::Read(..) => "not-readable",
            Self::CommandLine => "command-line",
            Self::NoMedium => "medium-not-found",
            Self::Spec(_) => "hardware-unknown",
            Self::Hardware(_) => "hardware-not-met",
            Self::NoTpm(_) => "tpm-missing",
            Self::Variable(..) => "uefi-variable",
            Self::Root(_) => "root-refused",
            Self::Random(_) => "no-randomness",
            Self::Cancelled => "cancelled",
            Self::Config(error) => error.code(),
            Self::SecureBoot(error) => error.code(),
            Self::Archive(_) => "release-unreadable",
            Self::Release(error) => error.code(),
            Self::Refused(error) => error.code(),
            Self::Run(error) => error.code(),
        }
    }
}
