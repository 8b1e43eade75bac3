//! Recipes and requests: what an image is made of, as data.

use crate::files::{self, FileError};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Not there.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a recipe.
    #[error("{path} is no valid recipe: {source}; take the file from the repository again")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        source: toml::de::Error,
    },
}

/// What one profile's guest is made of (`recipes/PROFILE.toml`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Profile that the manifest names.
    pub profile: release::Profile,
    /// Security epoch of the release: only ever rises.
    pub security_epoch: u64,
    /// The guest kernel.
    pub kernel: Kernel,
    /// The guest's firmware.
    pub firmware: Firmware,
    /// How the guest is launched.
    pub guest: Guest,
}

/// Configuration of a kernel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Option lists in `kernel/`, merged in this order over `tinyconfig`.
    pub fragments: Vec<String>,
    /// Symbols (without `CONFIG_`) that may differ from what the lists ask for, with the reason.
    pub accepted_differences: BTreeMap<String, String>,
}

/// Firmware of a guest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Firmware {
    /// OvmfPkg/AmdSev, built from the distribution's source.
    AmdSev {
        /// SHA-256 of the built firmware: the build fails when it gives another.
        sha256: release::Digest,
    },
    /// SeaBIOS out of the distribution's package.
    Seabios,
}

impl Firmware {
    /// Its name in a release.
    #[must_use]
    pub const fn file_name(&self) -> &'static str {
        match self {
            Self::AmdSev { .. } => crate::guest::names::FIRMWARE,
            Self::Seabios => crate::guest::names::BIOS,
        }
    }
}

/// Launch of a guest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Kernel command line, measured.
    pub command_line: String,
    /// Cargo features of the crate `guest-os`.
    pub features: Vec<String>,
    /// vCPU counts for which the manifest lists a measurement.
    pub vcpus: Vec<u32>,
    /// QEMU's CPU models, likewise, since a model's signature is part of the measured VMSA. The first is the one that
    /// nodes use unless told otherwise.
    pub vcpu_types: Vec<String>,
    /// SEV-SNP guest policy.
    pub policy: u64,
}

impl Guest {
    /// Every vCPU model with every count.
    #[must_use]
    pub fn machines(&self) -> Vec<(String, u32)> {
        self.vcpu_types
            .iter()
            .flat_map(|name| self.vcpus.iter().map(|&count| (name.clone(), count)))
            .collect()
    }
}

/// What `update-inputs` asks the distribution for (`inputs.toml`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Requests {
    /// Debian release.
    pub release: String,
    /// Packages of the build root.
    pub build_root: RootRequest,
    /// Packages of the root in which the host's agent is compiled.
    pub agent_root: RootRequest,
    /// Packages out of which the host's root is made.
    pub host_root: RootRequest,
    /// Packages with the tools that pack images.
    pub image_tools: RootRequest,
    /// Group to package.
    pub packages: BTreeMap<String, String>,
    /// Group to source package.
    pub sources: BTreeMap<String, String>,
    /// The Rust toolchain.
    pub rust: RustRequest,
}

/// Packages of a root.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootRequest {
    /// Their names; what they depend on follows.
    pub packages: Vec<String>,
}

/// Parts of the Rust toolchain.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RustRequest {
    /// Components, as rustup names them.
    pub components: Vec<String>,
    /// Beginnings of paths that are left out.
    pub skip: Vec<String>,
}

/// Folder of this crate with its data, below the repository's root.
#[must_use]
pub fn folder(repository: &Path) -> PathBuf {
    repository.join("image-build")
}

/// Reads the recipe of a profile.
pub fn recipe(repository: &Path, profile: release::Profile) -> Result<Recipe, RecipeError> {
    read(&folder(repository).join("recipes").join(format!("{profile}.toml")))
}

/// Reads what `update-inputs` asks for.
pub fn requests(repository: &Path) -> Result<Requests, RecipeError> {
    read(&folder(repository).join("inputs.toml"))
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, RecipeError> {
    toml::from_str(&files::text(path)?)
        .map_err(|source| RecipeError::Invalid { path: path.to_owned(), source })
}
