//! What a release consists of: typed, and with the rules that its content must obey.

use crate::{Digest, Measurement, canonical::CanonicalError, digest::LaunchId};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Longest kernel command line in bytes: `COMMAND_LINE_SIZE` of Linux on x86 is 2048 with its final zero.
const MAX_COMMAND_LINE: usize = 2047;

/// Which kind of node a release is for. The two differ in declared inputs, hence in their measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Machines with SEV-SNP.
    Production,
    /// Virtual nodes with a simulated PSP.
    Virtual,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Production => "production",
            Profile::Virtual => "virtual",
        })
    }
}

/// The signed part of a release manifest. On the wire it also has `_type` and `spec_version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name of the release, for people: 1 to 64 of `0-9 A-Z a-z . + - _`.
    pub version: String,
    /// Rises when a release closes a hole that must not come back; nodes refuse lower than they have seen.
    pub security_epoch: u64,
    /// Kind of node.
    pub profile: Profile,
    /// Commit of the sources, hexadecimal; with `-modified` behind it when files differed from it.
    pub source_commit: String,
    /// SHA-256 of the lock of all inputs of the build.
    pub input_lock: Digest,
    /// The confidential guest.
    pub guest: Guest,
    /// The machine's own system; none in a release that brings a guest only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostImages>,
    /// What else the build was made from: name to SHA-256 or version, for auditors.
    pub inputs: BTreeMap<String, String>,
}

/// The guest: every input of its launch measurement, and the measurements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// The files that QEMU is given.
    pub files: Files,
    /// Kernel command line, exactly as launched: at most 2047 bytes.
    pub command_line: String,
    /// QEMU's name of the vCPU model that a node uses unless told otherwise, for instance `EPYC-v4`.
    pub vcpu_type: String,
    /// SNP guest policy (AMD 56860, table "Guest Policy"). It is enforced by the report, not measured.
    pub policy: u64,
    /// `SEV_FEATURES` of the VMSA (AMD 24593, table B-4); measured.
    pub guest_features: u64,
    /// Who signs ID blocks for this release, if anybody. The signatures are detached ([`crate::IdBlockSignatures`]):
    /// who rebuilds a release has no keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_block: Option<IdBlock>,
    /// Launch measurement for each supported vCPU model and count, ascending by model, then by count.
    // An absent list is read as an empty one, so that both are refused by the same name.
    #[serde(default)]
    pub measurements: Vec<VcpuMeasurement>,
}

impl Guest {
    /// The measurement of a guest with this many vCPUs of a model, if the release supports that.
    pub fn measurement_for(&self, vcpu_type: &str, vcpus: u32) -> Option<Measurement> {
        let mut entries = self.measurements.iter();
        entries
            .find(|entry| entry.vcpu_type == vcpu_type && entry.vcpus == vcpus)
            .map(|entry| entry.measurement)
    }
}

/// What the ID blocks of a release say beside launch digest and policy (AMD 56860, table "ID Block Structure"). Their
/// GUEST_SVN is the manifest's security epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdBlock {
    /// FAMILY_ID.
    pub family_id: LaunchId,
    /// IMAGE_ID: the same for all releases that may read each other's sealed data.
    pub image_id: LaunchId,
    /// ID_KEY_DIGEST as reports state it: SHA-384 of the ID key in the firmware's form.
    pub id_key_digest: Measurement,
    /// AUTHOR_KEY_DIGEST, if an author key certifies the ID key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_key_digest: Option<Measurement>,
}

/// Files of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// Linux kernel (bzImage).
    pub kernel: File,
    /// Initial RAM file system: the whole userland.
    pub initrd: File,
    /// UEFI or BIOS image.
    pub firmware: File,
}

/// Names of the [`Files`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileName {
    /// [`Files::kernel`].
    Kernel,
    /// [`Files::initrd`].
    Initrd,
    /// [`Files::firmware`].
    Firmware,
}

impl FileName {
    /// Every name.
    pub const ALL: [FileName; 3] = [FileName::Kernel, FileName::Initrd, FileName::Firmware];

    /// The name for people.
    pub fn as_str(self) -> &'static str {
        match self {
            FileName::Kernel => "kernel",
            FileName::Initrd => "initrd",
            FileName::Firmware => "firmware",
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Files {
    /// The entry of that name.
    pub fn get(&self, name: FileName) -> &File {
        match name {
            FileName::Kernel => &self.kernel,
            FileName::Initrd => &self.initrd,
            FileName::Firmware => &self.firmware,
        }
    }
}

/// The host: what its firmware starts, and the root that this verifies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostImages {
    /// Unified kernel image, unsigned: its signature for Secure Boot is a file of its own.
    pub uki: File,
    /// Authenticode hash (SHA-256) of the unified kernel image: what Secure Boot keys sign.
    pub uki_authenticode: Digest,
    /// Root file system.
    pub root: File,
    /// dm-verity's hash area of the root, superblock included.
    pub root_hash_tree: File,
    /// Root hash of that tree; the command line in the unified kernel image has it too.
    pub verity_root_hash: Digest,
    /// The installer without the release that it carries: that one holds this manifest, so its hash cannot stand here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installer: Option<File>,
    /// What a TPM measures of a machine that was started from these images; a release without cannot be held against a
    /// host's quote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// What firmware and systemd's stub measure of a host: PCR 4 is `uki_authenticode` and then at most `kernel_authenticode`, PCR
/// 7 has no other certificates than these, PCR 11 follows from the sections.
///
/// Canonical form: `sections` stand in the order in which the stub measures them, each name once; `certificates` ascend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Authenticode hash (SHA-256) of the kernel in the unified kernel image, which a stub may have the firmware load.
    pub kernel_authenticode: Digest,
    /// The measured sections of the unified kernel image.
    pub sections: Vec<MeasuredSection>,
    /// SHA-256 of the certificates (X.509, DER) that the installer of this release enrols for Secure Boot.
    pub certificates: Vec<Digest>,
}

/// A section of the unified kernel image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredSection {
    /// Its name, such as `.cmdline`.
    pub name: String,
    /// SHA-256 of its content.
    pub sha256: Digest,
}

impl Measured {
    /// Whether it has the canonical form and no blanks.
    fn is_sound(&self) -> bool {
        let names: BTreeSet<&str> = self.sections.iter().map(|section| section.name.as_str()).collect();
        let hashes = self.sections.iter().map(|section| &section.sha256).chain(&self.certificates);
        names.len() == self.sections.len()
            && !names.is_empty()
            && names.iter().all(|name| name.starts_with('.') && name.len() <= 8 && is_name(name))
            && hashes.chain([&self.kernel_authenticode]).all(|hash| *hash != Digest([0; 32]))
            && self.certificates.is_sorted_by(|a, b| a.0 < b.0)
    }
}

impl HostImages {
    /// Each file with its name for people.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &File)> {
        let installer = self.installer.iter().map(|file| ("installer", file));
        [
            ("unified kernel image", &self.uki),
            ("host's root", &self.root),
            ("host's hash tree", &self.root_hash_tree),
        ]
        .into_iter()
        .chain(installer)
    }
}

/// One file of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where it lies, relative to the manifest's directory: components of `0-9 A-Z a-z . + - _` that do not
    /// begin with a dot, joined by `/`, at most 255 bytes.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub sha256: Digest,
}

impl File {
    /// The entry for a file with this content.
    pub fn describe(path: impl Into<String>, content: &[u8]) -> File {
        File { path: path.into(), size: content.len() as u64, sha256: Digest::of(content) }
    }

    /// Checks size and hash of a file's content; `name` is for people.
    pub fn check(&self, name: &'static str, content: &[u8]) -> Result<(), FileError> {
        let path = self.path.clone();
        let found = content.len() as u64;
        if found != self.size {
            return Err(FileError::WrongSize { name, path, expected: self.size, found });
        }
        let found = Digest::of(content);
        if found != self.sha256 {
            return Err(FileError::WrongHash { name, path, expected: self.sha256, found });
        }
        Ok(())
    }
}

/// Launch measurement for one vCPU model and count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuMeasurement {
    /// QEMU's name of the model; it determines the VMSA's processor signature.
    pub vcpu_type: String,
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// The measurement that a guest with that many vCPUs must report.
    pub measurement: Measurement,
}

/// A file is not the one that the manifest names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Truncated, extended or another file.
    #[error(
        "the {name} ({path}) has {found} bytes, the manifest says {expected}; fetch or build the release again"
    )]
    WrongSize {
        /// Which file.
        name: &'static str,
        /// Its path in the manifest.
        path: String,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// Same length, other content.
    #[error(
        "the {name} ({path}) has SHA-256 {found}, the manifest says {expected}; it was changed: fetch or build the release again"
    )]
    WrongHash {
        /// Which file.
        name: &'static str,
        /// Its path in the manifest.
        path: String,
        /// SHA-256 by the manifest.
        expected: Digest,
        /// SHA-256 found.
        found: Digest,
    },
}

/// What would be launched is not what the manifest promises to verifiers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasurementError {
    /// The release was not made for that launch.
    #[error(
        "the release has no measurement for {vcpus} vCPUs of type {vcpu_type}, only for {known}; choose one of these"
    )]
    NotListed {
        /// The model asked for.
        vcpu_type: String,
        /// The number asked for.
        vcpus: u32,
        /// What the manifest lists.
        known: String,
    },
    /// The files give another measurement.
    #[error(
        "the launch measurement for {vcpus} vCPUs of type {vcpu_type} is {computed}, the manifest says {expected}; \
         the manifest was made from other inputs: build the release again"
    )]
    Differs {
        /// The model.
        vcpu_type: String,
        /// The number of vCPUs.
        vcpus: u32,
        /// Recomputed over the very bytes that would be launched.
        computed: Measurement,
        /// By the manifest.
        expected: Measurement,
    },
}

impl Guest {
    /// Compares a recomputed measurement with the one that is listed.
    pub fn check_measurement(
        &self,
        vcpu_type: &str,
        vcpus: u32,
        computed: Measurement,
    ) -> Result<(), MeasurementError> {
        match self.measurement_for(vcpu_type, vcpus) {
            Some(expected) if expected == computed => Ok(()),
            Some(expected) => {
                Err(MeasurementError::Differs { vcpu_type: vcpu_type.to_owned(), vcpus, computed, expected })
            }
            None => Err(MeasurementError::NotListed {
                vcpu_type: vcpu_type.to_owned(),
                vcpus,
                known: self.supported(),
            }),
        }
    }

    /// The listed vCPU counts of each model, for people.
    pub fn supported(&self) -> String {
        let models: Vec<String> = self
            .measurements
            .chunk_by(|a, b| a.vcpu_type == b.vcpu_type)
            .map(|entries| {
                let counts: Vec<_> = entries.iter().map(|entry| entry.vcpus.to_string()).collect();
                format!("{} ({})", entries[0].vcpu_type, counts.join(", "))
            })
            .collect();
        models.join(" and ")
    }
}

/// The content of a manifest breaks a rule. Such a manifest can be neither signed nor accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// A guest without measurement could never be attested.
    #[error("the manifest lists no launch measurement; add one for each supported vCPU type and count")]
    NoMeasurements,
    /// Ascending order makes the list canonical and each count unique.
    #[error(
        "the measurements are not in strictly ascending order at {vcpus} vCPUs of type {vcpu_type}; \
         sort them by type and count, each once"
    )]
    MeasurementOrder {
        /// The model of the entry that does not follow its predecessor.
        vcpu_type: String,
        /// Its count.
        vcpus: u32,
    },
    /// A placeholder instead of a measurement.
    #[error(
        "the measurement for {vcpus} vCPUs is all zeros or for no vCPU; compute it from the release's files"
    )]
    BlankMeasurement {
        /// The count that it is listed for.
        vcpus: u32,
    },
    /// The model that nodes use could not be attested.
    #[error("the manifest lists no launch measurement for its own vCPU type {0}; add one")]
    DefaultVcpuType(String),
    /// GUEST_SVN has 32 bits.
    #[error("the security epoch {0} does not fit into the ID block's guest SVN; use at most 4294967295")]
    GuestSvn(u64),
    /// A file is missing in all but name.
    #[error("the {0} is empty; build it before the manifest")]
    EmptyFile(&'static str),
    /// An absolute path, one that leaves the directory, or one with unusual characters.
    #[error("the path of the {0} is not a plain relative path; use 0-9 A-Z a-z . + - _ and /")]
    Path(&'static str),
    /// Two artefacts in one file: one of them is missing.
    #[error("the {0} has the path of another file; give each file its own")]
    SamePath(&'static str),
    /// A placeholder instead of a root hash.
    #[error("the host's root hash or Authenticode hash is all zeros; compute it from the host's images")]
    BlankHostHash,
    /// Sections or certificates that a verifier could misread.
    #[error(
        "what is measured of the host is not in the canonical form, or has blanks; compute it from the host's images"
    )]
    Measured,
    /// Empty, too long, or with characters that have no place there.
    #[error("the {0} is empty, too long or has unusual characters; use up to 64 of 0-9 A-Z a-z . + - _")]
    Name(&'static str),
    /// Longer than the kernel takes.
    #[error("the kernel command line has {0} bytes; Linux takes at most {MAX_COMMAND_LINE}")]
    CommandLineTooLong(usize),
    /// A text or number outside of the canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

impl Manifest {
    /// Every file that the release consists of, with its name for people.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &File)> {
        let guest = FileName::ALL.into_iter().map(|name| (name.as_str(), self.guest.files.get(name)));
        guest.chain(self.host.iter().flat_map(HostImages::files))
    }

    pub(crate) fn check(&self) -> Result<(), InvalidManifest> {
        if !is_name(&self.version) {
            return Err(InvalidManifest::Name("version"));
        }
        if !is_name(&self.source_commit) {
            return Err(InvalidManifest::Name("source commit"));
        }
        let guest = &self.guest;
        if !is_name(&guest.vcpu_type) {
            return Err(InvalidManifest::Name("vCPU type"));
        }
        let mut paths = BTreeSet::new();
        for (name, file) in self.files() {
            if file.size == 0 {
                return Err(InvalidManifest::EmptyFile(name));
            }
            if !is_relative_path(&file.path) {
                return Err(InvalidManifest::Path(name));
            }
            if !paths.insert(&file.path) {
                return Err(InvalidManifest::SamePath(name));
            }
        }
        let blank =
            |host: &HostImages| [host.verity_root_hash, host.uki_authenticode].contains(&Digest([0; 32]));
        if self.host.as_ref().is_some_and(blank) {
            return Err(InvalidManifest::BlankHostHash);
        }
        let measured = self.host.as_ref().and_then(|host| host.measured.as_ref());
        if measured.is_some_and(|measured| !measured.is_sound()) {
            return Err(InvalidManifest::Measured);
        }
        if guest.command_line.len() > MAX_COMMAND_LINE {
            return Err(InvalidManifest::CommandLineTooLong(guest.command_line.len()));
        }
        if guest.measurements.is_empty() {
            return Err(InvalidManifest::NoMeasurements);
        }
        let mut previous = ("", 0);
        for VcpuMeasurement { vcpu_type, vcpus, measurement } in &guest.measurements {
            let vcpus = *vcpus;
            if !is_name(vcpu_type) {
                return Err(InvalidManifest::Name("vCPU type"));
            }
            if vcpus == 0 || measurement.0 == [0; 48] {
                return Err(InvalidManifest::BlankMeasurement { vcpus });
            }
            if (vcpu_type.as_str(), vcpus) <= previous {
                return Err(InvalidManifest::MeasurementOrder { vcpu_type: vcpu_type.clone(), vcpus });
            }
            previous = (vcpu_type, vcpus);
        }
        if guest.measurements.iter().all(|entry| entry.vcpu_type != guest.vcpu_type) {
            return Err(InvalidManifest::DefaultVcpuType(guest.vcpu_type.clone()));
        }
        if guest.id_block.is_some() && u32::try_from(self.security_epoch).is_err() {
            return Err(InvalidManifest::GuestSvn(self.security_epoch));
        }
        Ok(())
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'_'))
}

fn is_relative_path(path: &str) -> bool {
    path.len() <= 255 && path.split('/').all(|part| is_name(part) && !part.starts_with('.'))
}
