//! `redoubt release`: making, signing, verifying and blessing releases. Files in, files out; nothing uses the network.

mod bless;
mod create;
mod delta;
mod documents;
mod keys;
mod roots;
mod times;

use crate::output::{Failure, Reply};
use clap::{Args, Subcommand, ValueEnum};
use host_os::bundle::{self, ReleaseFiles};
use host_os::cli::{ProfileArg, root_source};
use host_os::upgrade::Store;
use release::{ApprovedManifest, Profile, Purpose, Root, Seen};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum Releases {
    /// Verify a manifest's signatures, the hashes of its files, its launch measurements and ID blocks
    Verify(Verify),
    SignIdBlocks(crate::id_block::SignIdBlocks),
    Create(create::Create),
    Delta(delta::Delta),
    Sign(documents::Sign),
    Merge(documents::Merge),
    Inspect(documents::Inspect),
    Bless(bless::Bless),
    Revoke(bless::Revoke),
    CreateRoot(roots::CreateRoot),
    RotateRoot(roots::RotateRoot),
    Keygen(keys::Keygen),
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
    /// Roots that followed the first, in order
    #[arg(long, value_name = "FILE", num_args = 1..)]
    next_root: Vec<PathBuf>,
    /// Also ask whether this blessing lets the release run now
    #[arg(long, value_name = "FILE")]
    blessing: Option<PathBuf>,
    /// Verify the manifest alone, without its files
    #[arg(long)]
    manifest_only: bool,
}

/// The manifest in a release's directory, or the path itself.
pub(crate) fn manifest_path(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("manifest.json") } else { path.to_owned() }
}

impl RootArgs {
    fn load(&self) -> Result<Root, Failure> {
        Ok(root_source(self.root.clone()).load(self.profile.profile())?)
    }

    /// Verifies a manifest.
    pub(crate) fn approve(&self, path: &Path) -> Result<ApprovedManifest, Failure> {
        Ok(bundle::manifest(path, &self.load()?.into(), self.profile.profile())?)
    }

    /// Verifies the manifest of the release that a node runs, or starts with next, by the roots that the node has followed.
    pub(crate) fn approve_of_node(
        &self,
        store: &Store,
        installed: &Path,
        running: bool,
    ) -> Result<ApprovedManifest, Failure> {
        let profile = self.profile.profile();
        let roots = store.roots(&root_source(self.root.clone()), profile)?;
        Ok(bundle::manifest(&store.runs(installed, running)?, &roots, profile)?)
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
        Releases::Create(args) => create::create(args),
        Releases::Delta(args) => delta::delta(args),
        Releases::Sign(args) => documents::sign(args),
        Releases::Merge(args) => documents::merge(args),
        Releases::Inspect(args) => documents::inspect(args),
        Releases::Bless(args) => bless::bless(args),
        Releases::Revoke(args) => bless::revoke(args),
        Releases::CreateRoot(args) => roots::create(args),
        Releases::RotateRoot(args) => roots::rotate(args),
        Releases::Keygen(args) => keys::keygen(args),
    }
}

fn verify(args: &Verify) -> Result<Reply, Failure> {
    let path = manifest_path(&args.manifest);
    let mut root = args.root.load()?;
    for next in &args.next_root {
        root = root.update(&keys::read(next)?).map_err(|error| Failure::of(error.code(), &error))?;
    }
    // Whoever asks by this root does not mean keys that it left out.
    let manifest = bundle::manifest(&path, &root.clone().into(), args.root.profile.profile())?;
    let purpose = args.blessing.as_deref().map(|path| blessed(path, &root, &manifest)).transpose()?;
    let mut text = describe(&manifest);
    let content = manifest.manifest().clone();
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
        "root_version": root.version(),
        "blessed_as": purpose,
    });
    if let Some(purpose) = purpose {
        text.push_str(&format!("\nblessed now, as {}", serde_json::json!(purpose)));
    }
    if !args.manifest_only {
        let supported = content.guest.supported();
        let signed = content.profile == Profile::Production && content.guest.id_block.is_some();
        create::check_host(&path, &content)?;
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

/// What a blessing lets the release do now.
fn blessed(path: &Path, root: &Root, manifest: &ApprovedManifest) -> Result<Purpose, Failure> {
    let statement = keys::read(path)?;
    release::blessing::accept(root, root, &statement, &Seen::default(), times::now())
        .and_then(|standing| {
            // One that is not named is refused for that.
            let purpose = standing.purpose(manifest.digest()).unwrap_or_default();
            standing.may_have_keys(manifest, purpose).map(|()| purpose)
        })
        .map_err(|error| Failure::of(error.code(), &error))
}
