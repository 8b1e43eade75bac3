//! From files on a disk to a release that may be launched: signatures, profile, hashes, measurement, in this order.
//!
//! Each file is read once, into memory that nobody can write any more. That copy is what is hashed, what is
//! measured and what QEMU opens, so changing the file afterwards changes nothing.

mod admission;

use crate::launch::{Identity, Measured, QEMU_GUEST_FEATURES};
use attestation::measurement::id_block::{Expected, IdAuth, IdBlock, IdBlockError, PublicKey, Signature};
use attestation::measurement::{Firmware, KernelHashes, LaunchError, Measurement, VcpuType};
use attestation::policy;
use attestation::report::GuestPolicy;
use release::{
    ApprovedManifest, FileError, FileName, Guest, ID_BLOCK_FILE, IdBlockSignatures, IdBlockSignaturesError,
    Manifest, ManifestError, MeasurementError, Profile, ProfileMismatch, Refusal, Root, RootError,
    RootUpdateError, Roots, SeenError,
};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

pub use admission::{LaunchedAs, SEEN_FILE, admissible, admit, stands};

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
    /// A root that the node has followed.
    #[error("the root {path} does not follow the one before")]
    NextRoot {
        /// The file, or the address that it came from.
        path: PathBuf,
        /// Why.
        source: Box<RootUpdateError>,
    },
    /// Anybody can sign with the development root's keys.
    #[error(
        "a {0} release is not judged by the development root, whose private keys are public; give the release's own \
         with --root"
    )]
    DevelopmentRoot(Profile),
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
    /// It is not blessed, or older than what this node has seen.
    #[error("the release of {path} is refused")]
    Refused {
        /// The manifest.
        path: PathBuf,
        /// Why.
        source: Box<Refusal>,
    },
    /// Nobody says that it may run now.
    #[error("there is no blessing {0}; fetch the present one of the release's owners")]
    NoBlessing(PathBuf),
    /// What this node has seen cannot be read.
    #[error(transparent)]
    Seen(#[from] SeenError),
    /// What this node has seen is not what its TPM counted.
    #[error(transparent)]
    Anchor(#[from] crate::tpm::anchor::AnchorError),
    /// What this node has seen cannot be kept.
    #[error("cannot write {path}: {source}; check its owner, mode and the free space")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
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
    /// The files cannot be launched as a confidential guest.
    #[error("the launch measurement cannot be computed")]
    Launch(#[from] LaunchError),
    /// What would be launched is not what the manifest promises to verifiers.
    #[error(transparent)]
    Measurement(Box<MeasurementError>),
    /// QEMU would launch something else than was measured.
    #[error(
        "the release is measured with the guest features {0:#x}, but QEMU launches with {QEMU_GUEST_FEATURES:#x}; \
         use a release made for that"
    )]
    GuestFeatures(u64),
    /// The signatures of the ID blocks cannot be read.
    #[error(transparent)]
    IdBlockSignatures(#[from] IdBlockSignaturesError),
    /// Nobody signed an ID block for this launch.
    #[error(
        "{ID_BLOCK_FILE} has no signature for {vcpus} vCPUs of type {vcpu_type}; fetch the release again, \
         or have the holder of the ID key sign for that"
    )]
    NoIdBlock {
        /// The model.
        vcpu_type: String,
        /// The number of vCPUs.
        vcpus: u32,
    },
    /// The ID block or its signatures are not those of this release.
    #[error("the ID block for {vcpus} vCPUs of type {vcpu_type} is refused")]
    IdBlock {
        /// The model.
        vcpu_type: String,
        /// The number of vCPUs.
        vcpus: u32,
        /// Why.
        source: Box<IdBlockError>,
    },
}

impl From<MeasurementError> for ReleaseError {
    fn from(error: MeasurementError) -> Self {
        Self::Measurement(Box::new(error))
    }
}

impl ReleaseError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "release-unreadable",
            Self::Root { .. } => "root-refused",
            Self::NextRoot { source, .. } => source.code(),
            Self::DevelopmentRoot(_) => "root-for-development",
            Self::Manifest { source, .. } => source.code(),
            Self::Profile { .. } => "profile-mismatch",
            Self::Refused { source, .. } => source.code(),
            Self::NoBlessing(_) => "blessing-missing",
            Self::Seen(error) => error.code(),
            Self::Anchor(error) => error.code(),
            Self::Unwritable { .. } => "seen-unwritable",
            Self::File(FileError::WrongSize { .. }) => "file-wrong-size",
            Self::File(FileError::WrongHash { .. }) => "file-wrong-hash",
            Self::Copy { .. } => "no-private-copy",
            Self::Launch(error) => error.code(),
            Self::Measurement(error) => match **error {
                MeasurementError::NotListed { .. } => "vcpus-not-in-release",
                MeasurementError::Differs { .. } => "measurement-differs",
            },
            Self::GuestFeatures(_) => "guest-features-not-launched",
            Self::IdBlockSignatures(_) => "id-block-unreadable",
            Self::NoIdBlock { .. } => "id-block-missing",
            Self::IdBlock { source, .. } => source.code(),
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
    /// Reads the root from which trust in releases of this profile starts.
    #[cfg_attr(not(feature = "virtual"), expect(unused_variables, reason = "there is no development root"))]
    pub fn load(&self, profile: Profile) -> Result<Root, ReleaseError> {
        match self {
            Self::File(path) => {
                let bytes = read(path)?;
                Root::from_bytes(&bytes).map_err(|source| ReleaseError::Root { path: path.clone(), source })
            }
            #[cfg(feature = "virtual")]
            Self::Development if profile != Profile::Virtual => Err(ReleaseError::DevelopmentRoot(profile)),
            #[cfg(feature = "virtual")]
            Self::Development => release::development::root()
                .map_err(|source| ReleaseError::Root { path: "(the development root)".into(), source }),
        }
    }
}

/// Reads and verifies a manifest.
pub fn manifest(path: &Path, roots: &Roots, profile: Profile) -> Result<ApprovedManifest, ReleaseError> {
    let bytes = read(path)?;
    let refused = |source| ReleaseError::Manifest { path: path.to_owned(), source };
    let manifest = roots.verify(&bytes).map_err(refused)?;
    let other = |source| ReleaseError::Profile { path: path.to_owned(), source };
    manifest.require_profile(profile).map_err(other)
}

/// The files of a release as they were read, each with the hash that was signed for.
#[derive(Debug)]
pub struct ReleaseFiles {
    manifest: ApprovedManifest,
    directory: PathBuf,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    firmware: Vec<u8>,
    /// What is in the firmware.
    firmware_content: Firmware,
    /// Only of a release for real processors, when its manifest names who signs.
    id_blocks: Option<IdBlockSignatures>,
}

impl ReleaseFiles {
    /// Reads the files beside the manifest at `path` and checks them.
    pub fn read(path: &Path, manifest: ApprovedManifest) -> Result<Self, ReleaseError> {
        let directory = path.parent().unwrap_or(Path::new(".")).to_owned();
        let checked = |name| {
            let entry = manifest.manifest().guest.files.get(name);
            let path = directory.join(&entry.path);
            let unreadable = |source| ReleaseError::Unreadable { path: path.clone(), source };
            let file = File::open(&path).map_err(unreadable)?;
            // Seen before anything is read, so that a wrong file cannot cost more memory than the right one.
            let found = file.metadata().map_err(unreadable)?.len();
            if found != entry.size {
                let (path, expected) = (entry.path.clone(), entry.size);
                return Err(FileError::WrongSize { name: name.as_str(), path, expected, found }.into());
            }
            let bytes = read_at_most(file, entry.size).map_err(unreadable)?;
            manifest.check_file(name, &bytes)?;
            Ok::<_, ReleaseError>(bytes)
        };
        // Hashing is most of the work, and the two are about as large.
        let (kernel, initrd) = std::thread::scope(|scope| {
            let initrd = scope.spawn(|| checked(FileName::Initrd));
            (checked(FileName::Kernel), initrd.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        let (kernel, initrd, firmware) = (kernel?, initrd?, checked(FileName::Firmware)?);
        let firmware_content = Firmware::measure(&firmware)?;
        let mut id_blocks = None;
        if manifest.manifest().profile == Profile::Production {
            firmware_content.require_sev_metadata()?;
            if manifest.manifest().guest.id_block.is_some() {
                id_blocks = Some(IdBlockSignatures::from_bytes(&read(&directory.join(ID_BLOCK_FILE))?)?);
            }
        }
        Ok(Self { manifest, directory, kernel, initrd, firmware, firmware_content, id_blocks })
    }

    /// The approved manifest.
    pub fn manifest(&self) -> &ApprovedManifest {
        &self.manifest
    }

    /// What is in the firmware.
    pub fn firmware(&self) -> &Firmware {
        &self.firmware_content
    }

    fn guest(&self) -> &Guest {
        &self.manifest.manifest().guest
    }

    /// What is measured of a launch with the release's own files, after comparing it with the manifest; the default
    /// model if none is given.
    pub fn measured(
        &self,
        vcpu_type: Option<&str>,
        vcpus: u32,
    ) -> Result<(Measured, Measurement), ReleaseError> {
        let vcpu_type = vcpu_type.unwrap_or(&self.guest().vcpu_type);
        let guest = self.guest();
        let path = |name| self.directory.join(&guest.files.get(name).path);
        let measured = Measured {
            firmware: path(FileName::Firmware),
            firmware_content: self.firmware_content.clone(),
            kernel: path(FileName::Kernel),
            // `read` has found the files to have these.
            kernel_sha256: guest.files.kernel.sha256.0,
            initrd: path(FileName::Initrd),
            initrd_sha256: guest.files.initrd.sha256.0,
            command_line: guest.command_line.clone(),
            vcpus,
            vcpu_type: vcpu_type.parse()?,
            guest_features: guest.guest_features,
        };
        let measurement = measured.measurement()?;
        guest.check_measurement(vcpu_type, vcpus, release::Measurement(measurement.0))?;
        Ok((measured, measurement))
    }

    /// Recomputes every measurement of the manifest, and checks every ID block. The files were hashed once, when they
    /// were read.
    pub fn check_all(&self) -> Result<(), ReleaseError> {
        let guest = self.guest();
        let (kernel, initrd) = (guest.files.kernel.sha256.0, guest.files.initrd.sha256.0);
        let hashes = KernelHashes::of_files(kernel, initrd, &guest.command_line)?;
        let pages = self.firmware_content.pages(Some(&hashes))?;
        for entries in guest.measurements.chunk_by(|a, b| a.vcpu_type == b.vcpu_type) {
            let model: VcpuType = entries[0].vcpu_type.parse()?;
            let mut digests = pages.vcpus(model, guest.guest_features)?.zip(1..);
            // Ascending, so each count is still to come.
            for entry in entries {
                let (digest, _) = digests
                    .find(|(_, vcpus)| *vcpus == entry.vcpus)
                    .ok_or(LaunchError::VcpuCount(entry.vcpus))?;
                guest.check_measurement(&entry.vcpu_type, entry.vcpus, release::Measurement(digest.0))?;
                self.identity(&entry.vcpu_type, entry.vcpus, digest)?;
            }
        }
        Ok(())
    }

    /// The ID block of one launch with its signatures, checked; `None` for a release without.
    pub fn identity(
        &self,
        vcpu_type: &str,
        vcpus: u32,
        measurement: Measurement,
    ) -> Result<Option<Identity>, ReleaseError> {
        let Some(signatures) = &self.id_blocks else { return Ok(None) };
        let Some(expected) = expected_identity(self.manifest.manifest(), measurement) else {
            return Ok(None);
        };
        let signature = signatures
            .signature_for(vcpu_type, vcpus)
            .ok_or_else(|| ReleaseError::NoIdBlock { vcpu_type: vcpu_type.to_owned(), vcpus })?;
        let refused = |source| ReleaseError::IdBlock {
            vcpu_type: vcpu_type.to_owned(),
            vcpus,
            source: Box::new(source),
        };
        let key = |which, key: &release::P384Key| PublicKey::from_point(which, &key.0).map_err(refused);
        let author = match &signatures.author {
            Some(author) => Some((key("author key", &author.key)?, Signature(author.signature.0))),
            None => None,
        };
        let id_key = key("ID key", &signatures.id_key)?;
        let auth = IdAuth { id_key, block_signature: Signature(signature.0), author };
        expected.check(&expected.block, &auth).map_err(refused)?;
        Ok(Some(Identity { block: expected.block, auth }))
    }

    /// Measures and makes the copies that QEMU opens.
    pub fn seal(self, vcpu_type: Option<&str>, vcpus: u32) -> Result<CheckedRelease, ReleaseError> {
        let copy = |name, bytes: &[u8]| {
            PrivateCopy::of(name, bytes).map_err(|source| ReleaseError::Copy { name, source })
        };
        let (measured, measurement) = self.measured(vcpu_type, vcpus)?;
        let production = self.manifest.manifest().profile == Profile::Production;
        if production && measured.guest_features != QEMU_GUEST_FEATURES {
            return Err(ReleaseError::GuestFeatures(measured.guest_features));
        }
        let identity = self.identity(measured.vcpu_type.name(), vcpus, measurement)?;
        let files = [
            copy(FileName::Kernel, &self.kernel)?,
            copy(FileName::Initrd, &self.initrd)?,
            copy(FileName::Firmware, &self.firmware)?,
        ];
        let [kernel, initrd, firmware] = files.each_ref().map(PrivateCopy::path);
        let measured = Measured { firmware, kernel, initrd, ..measured };
        Ok(CheckedRelease { manifest: self.manifest, files, measured, measurement, identity })
    }
}

/// What the ID block of a launch of this release must be; `None` for a release without.
pub fn expected_identity(manifest: &Manifest, measurement: Measurement) -> Option<Expected> {
    let id_block = manifest.guest.id_block.as_ref()?;
    Some(Expected {
        block: IdBlock {
            measurement,
            family_id: id_block.family_id.0,
            image_id: id_block.image_id.0,
            guest_svn: guest_svn(manifest),
            policy: GuestPolicy(manifest.guest.policy),
        },
        id_key: Measurement(id_block.id_key_digest.0),
        author_key: id_block.author_key_digest.map(|digest| Measurement(digest.0)),
    })
}

/// A release whose every byte was checked, ready to be launched with a fixed number of processors.
#[derive(Debug)]
pub struct CheckedRelease {
    manifest: ApprovedManifest,
    /// Kernel, initrd, firmware; held as long as `measured` names them.
    files: [PrivateCopy; 3],
    measured: Measured,
    measurement: Measurement,
    identity: Option<Identity>,
}

impl CheckedRelease {
    /// The approved manifest.
    pub fn manifest(&self) -> &ApprovedManifest {
        &self.manifest
    }

    /// What is launched, by the paths of private copies.
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// The measurement of the private copies.
    pub fn measurement(&self) -> &Measurement {
        &self.measurement
    }

    /// The ID block of this launch, checked, if the release has one.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The private copy of a file.
    pub fn file(&self, name: FileName) -> &PrivateCopy {
        let [kernel, initrd, firmware] = &self.files;
        match name {
            FileName::Kernel => kernel,
            FileName::Initrd => initrd,
            FileName::Firmware => firmware,
        }
    }
}

/// What a verifier demands of the ID block in reports of this release.
pub fn id_block_policy(manifest: &Manifest) -> policy::IdBlock {
    // The simulated processor is given none.
    let (Profile::Production, Some(id_block)) = (manifest.profile, &manifest.guest.id_block) else {
        return policy::IdBlock::Absent;
    };
    policy::IdBlock::Signed(Box::new(policy::SignedIdBlock {
        id_keys: [policy::Hex(id_block.id_key_digest.0)].into(),
        author_keys: id_block.author_key_digest.map(|digest| policy::Demand::only([digest.0])),
        family_id: policy::Demand::only([id_block.family_id.0]),
        image_id: policy::Demand::only([id_block.image_id.0]),
        minimum_guest_svn: guest_svn(manifest),
    }))
}

/// A valid manifest with an ID block has an epoch of 32 bits.
fn guest_svn(manifest: &Manifest) -> u32 {
    u32::try_from(manifest.security_epoch).unwrap_or(u32::MAX)
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
