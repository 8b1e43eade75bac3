//! Recipes and pinned inputs: what an image is made of, as data.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

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
    /// QEMU's CPU model, whose signature is part of the measured VMSA.
    pub vcpu_type: String,
    /// SEV-SNP guest policy.
    pub policy: u64,
    /// Candidates for the firmware; the first that exists is taken into the release.
    pub firmware: Vec<PathBuf>,
}

/// Pinned inputs (`inputs.toml`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Inputs {
    /// The kernel's source.
    pub linux_source: DebianMember,
}

/// One file out of one Debian package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianMember {
    /// Package name.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Paths below a mirror's base address.
    pub pool: Vec<String>,
    /// Path of the file in the package.
    pub member: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
}

/// Folder of this crate with its data, below the repository's root.
pub fn folder(repository: &Path) -> PathBuf {
    repository.join("image-build")
}

/// Reads the recipe of a profile.
pub fn recipe(repository: &Path, profile: &str) -> Result<Recipe> {
    read(&folder(repository).join("recipes").join(format!("{profile}.toml")))
}

/// Reads the pinned inputs.
pub fn inputs(repository: &Path) -> Result<Inputs> {
    read(&folder(repository).join("inputs.toml"))
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))
}
