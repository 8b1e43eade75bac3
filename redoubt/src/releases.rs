//! `redoubt release`.

use crate::output::{Failure, Reply};
use clap::{Args, Subcommand, ValueEnum};
use host_os::bundle::{self, ReleaseFiles};
use host_os::cli::{ProfileArg, root_source};
use release::{ApprovedManifest, Profile};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Releases {
    /// Verify a manifest's signatures, the hashes of its files, its launch measurements and ID blocks
    Verify(Verify),
    SignIdBlocks(crate::id_block::SignIdBlocks),
}

/// Which manifest, and whose signatures count.
#[derive(Debug, Clone, Args)]
pub(crate) struct RootArgs {
    /// Root: the keys that may sign releases [default in builds for virtual nodes: the development root]
    #[arg(long, value_name = "FILE")]
    #[cfg_attr(not(feature = "virtual"), arg(required = true))]
    pub(crate) root: Option<PathBuf>,
    /// Kind of node that the release must be for
    #[arg(long, value_enum, default_value_t = ProfileArg::Virtual)]
    pub(crate) profile: ProfileArg,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The manifest, or the directory that holds it as manifest.json
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    #[command(flatten)]
    root: RootArgs,
    /// Verify the manifest alone, without its files
    #[arg(long)]
    manifest_only: bool,
}

/// The manifest in a release's directory, or the path itself.
pub(crate) fn manifest_path(path: &std::path::Path) -> PathBuf {
    if path.is_dir() { path.join("manifest.json") } else { path.to_owned() }
}

impl RootArgs {
    /// Verifies a manifest.
    pub(crate) fn approve(&self, path: &std::path::Path) -> Result<ApprovedManifest, Failure> {
        let profile = self.profile.profile();
        let root = root_source(self.root.clone()).load(profile)?;
        Ok(bundle::manifest(path, &root, profile)?)
    }

    /// The same options as words of a command line, for the agent.
    pub(crate) fn to_words(&self) -> Vec<std::ffi::OsString> {
        let mut words = Vec::new();
        if let Some(root) = &self.root {
            words.extend(["--root".into(), root.into()]);
        }
        if let Some(profile) = self.profile.to_possible_value() {
            words.extend(["--profile".into(), profile.get_name().into()]);
        }
        words
    }
}

/// What stands in a manifest, in one line.
pub(crate) fn describe(manifest: &ApprovedManifest) -> String {
    let content = manifest.manifest();
    format!(
        "release {} ({} profile, security epoch {}), signed by {} keys of the root",
        content.version,
        content.profile,
        content.security_epoch,
        manifest.signers().len()
    )
}

pub(crate) fn run(args: &Releases) -> Result<Reply, Failure> {
    match args {
        Releases::Verify(args) => verify(args),
        Releases::SignIdBlocks(args) => crate::id_block::run(args),
    }
}

fn verify(args: &Verify) -> Result<Reply, Failure> {
    let path = manifest_path(&args.manifest);
    let manifest = args.root.approve(&path)?;
    let mut text = describe(&manifest);
    let content = manifest.manifest();
    let measurements: Vec<_> = content
        .guest
        .measurements
        .iter()
        .map(|entry| json!({ "vcpu_type": entry.vcpu_type, "vcpus": entry.vcpus, "measurement": entry.measurement.to_string() }))
        .collect();
    let json = json!({
        "version": content.version,
        "profile": content.profile.to_string(),
        "security_epoch": content.security_epoch,
        "digest": manifest.digest().to_string(),
        "signers": manifest.signers().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "measurements": measurements,
        "files_checked": !args.manifest_only,
    });
    if !args.manifest_only {
        let supported = content.guest.supported();
        let signed = content.profile == Profile::Production && content.guest.id_block.is_some();
        ReleaseFiles::read(&path, manifest)?.check_all()?;
        text.push_str("\nkernel, initrd and firmware have the signed hashes");
        text.push_str(&format!(
            "\nthe launch measurements for vCPUs of type {supported} follow from these files"
        ));
        if signed {
            text.push_str("\neach has an ID block that is signed with the keys of the manifest");
        }
    }
    Ok(Reply::good(text, json))
}
