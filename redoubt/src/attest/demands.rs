//! What evidence must say: a policy, or a release's manifest.

use super::expectations;
use super::source::{Roots, read};
use crate::output::Failure;
use crate::releases::{RootArgs, manifest_path};
use attestation::Policy;
use attestation::policy::Demand;
use clap::Args;
use host_os::attest::Expectations;
use host_os::cli::ProfileArg;
use host_os::config::ConfigText;
use release::ApprovedManifest;
use std::path::PathBuf;

/// What evidence must say.
#[derive(Debug, Args)]
pub(crate) struct Demands {
    /// Policy in TOML: every demand on the report; what it does not name is decided strictly
    #[arg(long, value_name = "FILE", required_unless_present = "manifest", conflicts_with = "manifest")]
    policy: Option<PathBuf>,
    /// The release's manifest, or the directory that holds it as manifest.json: a strict policy for its guest
    #[arg(long, value_name = "MANIFEST")]
    manifest: Option<PathBuf>,
    /// Root: the keys that may sign releases [default in builds for virtual nodes: the development root]
    #[arg(long, value_name = "FILE", requires = "manifest")]
    root: Option<PathBuf>,
    /// Text of the guest's configuration, whose hash HOST_DATA must be [default: a virtual node's]
    #[arg(long, value_name = "FILE", requires = "manifest")]
    config: Option<PathBuf>,
}

/// What is demanded, with the manifest from which it follows.
pub(crate) struct Demanded {
    pub(crate) expected: Expectations,
    pub(crate) manifest: Option<ApprovedManifest>,
}

impl Demands {
    /// Reads policy or manifest. A manifest is of a virtual node unless the profile says otherwise, and a policy of a
    /// production node.
    pub(crate) fn load(&self, roots: &Roots) -> Result<Demanded, Failure> {
        if let Some(path) = &self.policy {
            let unusable = |error: &dyn std::error::Error| {
                let message = format!("{}: {}", path.display(), host_os::attest::chain(error));
                Failure::usage("policy-unusable", message)
            };
            let text = String::from_utf8(read(path)?).map_err(|error| unusable(&error))?;
            let policy = Policy::from_toml(&text).map_err(|error| unusable(&error))?;
            let anchors = roots.anchors(roots.profile().unwrap_or(release::Profile::Production))?;
            return Ok(Demanded { expected: Expectations { policy, anchors }, manifest: None });
        }
        let path = manifest_path(self.manifest.as_deref().unwrap_or_else(|| std::path::Path::new("")));
        if cfg!(not(feature = "virtual")) && self.root.is_none() {
            let message = "this build knows no keys that may sign releases; give --root";
            return Err(Failure::usage("no-root", message));
        }
        let profile = roots.profile.unwrap_or(ProfileArg::Virtual);
        let manifest = RootArgs { root: self.root.clone(), profile }.approve(&path)?;
        let mut expected = expectations(&manifest, roots.anchors(profile.profile())?)?;
        if let Some(path) = &self.config {
            let text = String::from_utf8(read(path)?).map_err(|error| {
                Failure::usage("config-unreadable", format!("{}: {error}", path.display()))
            })?;
            expected.policy.host_data = Demand::only([ConfigText::from_text(text).host_data()]);
        }
        Ok(Demanded { expected, manifest: Some(manifest) })
    }
}
