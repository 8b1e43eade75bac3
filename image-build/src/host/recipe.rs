//! What the host's image is made of, as data (`recipes/host.toml`).

use crate::recipe::{self, Kernel, RecipeError};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

/// The recipe of every profile's host.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The host's kernel.
    pub kernel: Kernel,
    /// Files of locked packages in the root, with the reason for each; the libraries that they need follow.
    pub files: BTreeMap<String, String>,
    /// What differs.
    pub profiles: Profiles,
}

/// One entry for each profile.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profiles {
    /// Machines with SEV-SNP.
    pub production: Host,
    /// Virtual machines.
    pub r#virtual: Host,
}

/// The host of one profile.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Beginning of the kernel's command line; where the root is, and its root hash, follow.
    pub command_line: String,
    /// Cargo features of the crate `host-os`.
    pub features: Vec<String>,
}

impl Recipe {
    /// Reads the recipe of a repository.
    pub fn read(repository: &Path) -> Result<Self, RecipeError> {
        recipe::read(&recipe::folder(repository).join("recipes/host.toml"))
    }

    /// The host of this profile.
    #[must_use]
    pub fn host(&self, profile: release::Profile) -> &Host {
        match profile {
            release::Profile::Production => &self.profiles.production,
            release::Profile::Virtual => &self.profiles.r#virtual,
        }
    }
}
