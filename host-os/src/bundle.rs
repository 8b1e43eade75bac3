//! From files on a disk to a release that may be launched: signatures, profile, hashes, measurement, in this order.
//!
//! Each file is read once, into memory that nobody can write any more. That copy is what is hashed, what is
//! measured and what QEMU opens, so changing the file afterwards changes nothing.

use attestation::measurement::{self, LaunchError, Measurement};
use release::{
    ApprovedManifest, FileError, FileName, ManifestError, Profile, ProfileMismatch, Root, RootError,
};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Why a release is not launched.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}; check the path given, or fetch or build the release again")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root file cannot be used.
    #[error("the root {path} cannot be used")]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RootError,
    },
    /// The manifest is not approved by the root.
    #[error("the manifest {path} is refused")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// The release is for other nodes.
    #[error("the manifest {path} is refused")]
    Profile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ProfileMismatch,
    },
    /// A file is not the one that was signed for.
    #[error("a file of the release is refused")]
    File(#[from] FileError),
    /// No memory for the private copy.
    #[error("cannot keep a private copy of the {name}: {source}; check that enough memory is free")]
    Copy {
        /// Which file.
        name: FileName,
        /// Why.
        source: io::Error,
    },
    /// The release was not made for that number of processors.
    #[error(
        "the release has no measurement for {vcpus} vCPUs, only for {known:?}; choose one of these with --vcpus"
    )]
    NoMeasurement {
        /// The number asked for.
        vcpus: u32,
        /// The numbers in the manifest.
        known: Vec<u32>,
    },
    /// The files cannot be launched as a confidential guest.
    #[error("the launch measurement cannot be computed")]
    Launch(#[from] LaunchError),
    /// What would be launched is not what the manifest promises to verifiers.
    #[error(
        "the launch measurement for {vcpus} vCPUs is {computed}, the manifest says {expected}; \
         the manifest was made from other inputs: build the release again"
    )]
    Measurement {
        /// The number of processors.
        vcpus: u32,
        /// Recomputed over the very bytes that would be launched, hexadecimal.
        computed: String,
        /// By the manifest, hexadecimal.
        expected: String,
    },
}

impl ReleaseError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "release-unreadable",
            Self::Root { .. } => "root-refused",
            Self::Manifest { source, .. } => match source {
                ManifestError::TooLong { .. } => "manifest-too-long",
                ManifestError::NotJson(_) => "manifest-not-json",
                ManifestError::NotCanonical { .. } => "manifest-not-canonical",
                ManifestError::Malformed(_) => "manifest-malformed",
                ManifestError::WrongType { .. } => "manifest-wrong-type",
                ManifestError::UnsupportedSpecVersion { .. } => "manifest-unsupported-version",
                ManifestError::Invalid(_) => "manifest-invalid",
                ManifestError::UnknownKey { .. } => "manifest-unknown-key",
                ManifestError::BadSignature { .. } => "manifest-bad-signature",
                ManifestError::DuplicateSignature { .. } => "manifest-duplicate-signature",
                ManifestError::ThresholdNotMet { .. } => "manifest-threshold-not-met",
            },
            Self::Profile { .. } => "profile-mismatch",
            Self::File(FileError::WrongSize { .. }) => "file-wrong-size",
            Self::File(FileError::WrongHash { .. }) => "file-wrong-hash",
            Self::Copy { .. } => "no-private-copy",
            Self::NoMeasurement { .. } => "vcpus-not-in-release",
            Self::Launch(_) => "launch-not-measurable",
            Self::Measurement { .. } => "measurement-differs",
        }
    }
}

/// Where the release keys come from.
#[derive(Debug, Clone)]
pub enum RootSource {
    /// A root file.
    File(PathBuf),
    /// The development root, whose private keys are public.
    #[cfg(feature = "virtual")]
    Development,
}

impl RootSource {
    /// Reads the root.
    pub fn load(&self) -> Result<Root, ReleaseError> {
        match self {
            Self::File(path) => {
                let bytes = read(path)?;
                Root::from_bytes(&bytes).map_err(|source| ReleaseError::Root { path: path.clone(), source })
            }
            #[cfg(feature = "virtual")]
            Self::Development => release::development::root()
                .map_err(|source| ReleaseError::Root { path: "(the development root)".into(), source }),
        }
    }
}

/// Reads and verifies a manifest.
pub fn manifest(path: &Path, root: &Root, profile: Profile) -> Result<ApprovedManifest, ReleaseError> {
    let bytes = read(path)?;
    let refused = |source| ReleaseError::Manifest { path: path.to_owned(), source };
    let manifest = release::verify(&bytes, root).map_err(refused)?;
    let other = |source| ReleaseError::Profile { path: path.to_owned(), source };
    manifest.require_profile(profile).map_err(other)
}

/// The files of a release as they were read, each with the hash that was signed for.
#[derive(Debug)]
pub struct ReleaseFiles {
    manifest: ApprovedManifest,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    firmware: Vec<u8>,
}

impl ReleaseFiles {
    /// Reads the files beside the manifest at `path` and checks them.
    pub fn read(path: &Path, manifest: ApprovedManifest) -> Result<Self, ReleaseError> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let checked = |name| {
            let entry = manifest.manifest().guest.files.get(name);
            let path = directory.join(&entry.path);
            let unreadable = |source| ReleaseError::Unreadable { path: path.clone(), source };
            let file = File::open(&path).map_err(unreadable)?;
            // Seen before anything is read, so that a wrong file cannot cost more memory than the right one.
            let found = file.metadata().map_err(unreadable)?.len();
            if found != entry.size {
                let (path, expected) = (entry.path.clone(), entry.size);
                return Err(FileError::WrongSize { name, path, expected, found }.into());
            }
            let bytes = read_at_most(file, entry.size).map_err(unreadable)?;
            manifest.check_file(name, &bytes)?;
            Ok::<_, ReleaseError>(bytes)
        };
        Ok(Self {
            kernel: checked(FileName::Kernel)?,
            initrd: checked(FileName::Initrd)?,
            firmware: checked(FileName::Firmware)?,
            manifest,
        })
    }

    /// The approved manifest.
    pub fn manifest(&self) -> &ApprovedManifest {
        &self.manifest
    }

    /// Recomputes the launch measurement and compares it with the manifest's.
    pub fn measurement(&self, vcpus: u32) -> Result<Measurement, ReleaseError> {
        let guest = &self.manifest.manifest().guest;
        let Some(expected) = guest.measurement_for(vcpus) else {
            let known = guest.measurements.iter().map(|entry| entry.vcpus).collect();
            return Err(ReleaseError::NoMeasurement { vcpus, known });
        };
        let computed = measurement::Launch {
            firmware: &self.firmware,
            kernel: &self.kernel,
            initrd: &self.initrd,
            command_line: &guest.command_line,
            vcpus,
            vcpu_type: guest.vcpu_type.parse()?,
            guest_features: guest.guest_features,
        }
        .measurement()?;
        if computed.0 != expected.0 {
            let [computed, expected] = [computed.0, expected.0].map(hex::encode);
            return Err(ReleaseError::Measurement { vcpus, computed, expected });
        }
        Ok(computed)
    }

    /// Measures and makes the copies that QEMU opens.
    pub fn seal(self, vcpus: u32) -> Result<CheckedRelease, ReleaseError> {
        let measurement = self.measurement(vcpus)?;
        let copy = |name, bytes: &[u8]| {
            PrivateCopy::of(name, bytes).map_err(|source| ReleaseError::Copy { name, source })
        };
        Ok(CheckedRelease {
            kernel: copy(FileName::Kernel, &self.kernel)?,
            initrd: copy(FileName::Initrd, &self.initrd)?,
            firmware: copy(FileName::Firmware, &self.firmware)?,
            manifest: self.manifest,
            vcpus,
            measurement,
        })
    }
}

/// A release whose every byte was checked, ready to be launched with a fixed number of processors.
#[derive(Debug)]
pub struct CheckedRelease {
    manifest: ApprovedManifest,
    kernel: PrivateCopy,
    initrd: PrivateCopy,
    firmware: PrivateCopy,
    vcpus: u32,
    measurement: Measurement,
}

impl CheckedRelease {
    /// The approved manifest.
    pub fn manifest(&self) -> &ApprovedManifest {
        &self.manifest
    }

    /// The number of processors that was measured.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// The measurement of the private copies.
    pub fn measurement(&self) -> &Measurement {
        &self.measurement
    }

    /// The private copy of a file.
    pub fn file(&self, name: FileName) -> &PrivateCopy {
        match name {
            FileName::Kernel => &self.kernel,
            FileName::Initrd => &self.initrd,
            FileName::Firmware => &self.firmware,
        }
    }
}

/// Bytes in memory, sealed against every change, that a child process can open by a path.
#[derive(Debug)]
pub struct PrivateCopy(File);

impl PrivateCopy {
    fn of(name: FileName, bytes: &[u8]) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, SealFlag, fcntl};
        use nix::sys::memfd::{MFdFlags, memfd_create};
        // Without close-on-exec: QEMU inherits the descriptor and opens the path below.
        let mut file = File::from(memfd_create(name.to_string().as_str(), MFdFlags::MFD_ALLOW_SEALING)?);
        file.write_all(bytes)?;
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self(file))
    }

    /// The path under which a child process of this one finds the copy.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Reads a document; one that is too long is cut after its limit, which its parser then notices.
fn read(path: &Path) -> Result<Vec<u8>, ReleaseError> {
    let unreadable = |source| ReleaseError::Unreadable { path: path.to_owned(), source };
    read_at_most(File::open(path).map_err(unreadable)?, release::MAX_DOCUMENT as u64).map_err(unreadable)
}

/// Reads `limit` bytes and one more, by which a longer file shows.
fn read_at_most(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_copy_cannot_be_changed() {
        let copy = PrivateCopy::of(FileName::Kernel, b"kernel").unwrap();
        assert_eq!(std::fs::read(copy.path()).unwrap(), b"kernel");
        let mut writer = File::options().write(true).open(copy.path()).unwrap();
        assert_eq!(writer.write(b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(writer.set_len(0).is_err());
        assert!(writer.set_len(100).is_err());
        assert_eq!(std::fs::read(copy.path()).unwrap(), b"kernel");
    }
}
