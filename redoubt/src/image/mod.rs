//! `redoubt image`: building releases from locked inputs, and holding a release against its sources.

mod host;
mod reproduce;

use crate::output::{Failure, Reply};
use clap::{Args, Subcommand};
use host_os::cli::ProfileArg;
use image_build::{
    cache::Cache,
    fetch::{self, Sources},
    firmware, guest,
    inputs::Inputs,
    lock, programs, recipe,
    sandbox::Surroundings,
    step::Step,
    store, update,
    workshop::{self, Workshop},
};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Build the guest release of a profile: kernel, initrd, firmware, manifest
    Build(Build),
    /// Build the image of the machine itself: kernel, verified root, unified kernel image, disk
    BuildHost(host::BuildHost),
    /// Build the firmware of the production profile alone: OvmfPkg/AmdSev
    Firmware(FirmwareArgs),
    /// Bring all locked inputs into the store, or write them into a directory
    Fetch(Fetch),
    /// Renew the lock from the distribution's signed index, and say what changed
    UpdateInputs(UpdateInputs),
    /// Rebuild a release and compare it, or recompute what its manifest says
    Reproduce(reproduce::Reproduce),
    /// Say what changed between two releases
    Explain(reproduce::Explain),
    /// Build the programs that guest-os's own tests boot
    #[command(hide = true)]
    TestPrograms(SourceArgs),
}

/// The checkout, and where inputs that the store lacks come from: directories, then mirrors, then the archive.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Root of the checkout
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."))]
    repository: PathBuf,
    /// Directory with inputs that were brought by hand; repeatable [default: REDOUBT_INPUTS]
    #[arg(long, value_name = "DIR")]
    from: Vec<PathBuf>,
    /// Base address of a snapshot archive, asked last [default: REDOUBT_SNAPSHOT]
    #[arg(long, value_name = "URL")]
    snapshot: Option<String>,
    /// Do not ask the mirrors that apt has configured
    #[arg(long)]
    no_mirrors: bool,
}

impl SourceArgs {
    fn sources(&self) -> Sources {
        let mut sources = Sources::from_environment();
        if !self.from.is_empty() {
            sources.directories.clone_from(&self.from);
        }
        if self.snapshot.is_some() {
            sources.snapshot.clone_from(&self.snapshot);
        }
        sources.no_mirrors = self.no_mirrors;
        sources
    }

    fn workshop(&self) -> Result<Workshop, Failure> {
        Workshop::open(&self.repository, self.sources()).map_err(failure)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    #[command(flatten)]
    sources: SourceArgs,
    /// What kind of node the release is for
    #[arg(long, value_enum, default_value_t = ProfileArg::Virtual)]
    profile: ProfileArg,
    /// Directory that receives the release [default: target/release-images/PROFILE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct FirmwareArgs {
    #[command(flatten)]
    sources: SourceArgs,
    /// Build it a second time in varied surroundings and compare
    #[arg(long)]
    twice: bool,
    /// Accept another hash than the recipe pins, to find out the new one
    #[arg(long)]
    unpinned: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    #[command(flatten)]
    sources: SourceArgs,
    /// Also copy every input into this directory, which `--from` takes on another machine
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateInputs {
    #[command(flatten)]
    sources: SourceArgs,
    /// Keys that sign the distribution's index
    #[arg(long, value_name = "FILE", default_value = image_build::apt::KEYRING)]
    keyring: PathBuf,
}

/// A failure with a code by its cause.
pub(crate) fn failure(error: anyhow::Error) -> Failure {
    use image_build::{
        deb::DebError, fetch::FetchError, firmware::NotPinned, inputs::InputsError, lock::LockError,
        sandbox::SandboxError, store::StoreError, toolchain::ToolchainError,
    };
    fn code(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
        let of_inputs = |error: &InputsError| match error {
            InputsError::Lock(_) => "lock",
            InputsError::Store(_) => "store",
            InputsError::Fetch(_) => "input-unavailable",
        };
        cause.downcast_ref().map(of_inputs).or_else(|| {
            match cause.downcast_ref() {
                Some(SandboxError::Namespaces { .. }) => return Some("namespaces-refused"),
                Some(_) => return Some("build-step-failed"),
                None => {}
            }
            match cause.downcast_ref() {
                Some(LockError::Missing(_)) => return Some("lock-entry-missing"),
                Some(_) => return Some("lock"),
                None => {}
            }
            if cause.is::<FetchError>() {
                return Some("input-unavailable");
            }
            if cause.is::<StoreError>() || cause.is::<DebError>() {
                return Some("store");
            }
            if cause.is::<ToolchainError>() {
                return Some("toolchain");
            }
            cause.is::<NotPinned>().then_some("firmware-not-pinned")
        })
    }
    let code = error.chain().find_map(code).unwrap_or("image");
    Failure::new(code, format!("{error:#}"))
}

pub(crate) fn run(args: &Image) -> Result<Reply, Failure> {
    match args {
        Image::Build(args) => build(args),
        Image::BuildHost(args) => host::build(args),
        Image::Firmware(args) => firmware(args).map_err(failure),
        Image::Fetch(args) => fetch(args).map_err(failure),
        Image::UpdateInputs(args) => update_inputs(args).map_err(failure),
        Image::Reproduce(args) => reproduce::run(args),
        Image::Explain(args) => reproduce::explain(args),
        Image::TestPrograms(args) => {
            let workshop = args.workshop()?;
            let recipe = recipe::recipe(&workshop.repository, release::Profile::Virtual).map_err(failure)?;
            let folder = programs::build_for_tests(&workshop, &recipe).map_err(failure)?;
            Ok(Reply::good(folder.display().to_string(), json!({ "folder": folder })))
        }
    }
}

fn build(args: &Build) -> Result<Reply, Failure> {
    let workshop = args.sources.workshop()?;
    let profile = args.profile.profile();
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| workshop.repository.join("target/release-images").join(profile.to_string()));
    let summary = guest::build(&workshop, profile, &out).map_err(failure)?;
    let signed = match summary.signatures {
        0 => "not signed: release keys sign it elsewhere".to_owned(),
        count => format!("signed by {count} development keys"),
    };
    let mut text = format!("{} ({signed})", summary.manifest.display());
    for (name, size) in &summary.sizes {
        text += &format!("\n  {name:<14}{:>8.2} MB  sha256 {}", *size as f64 / 1e6, summary.sha256[name]);
    }
    for entry in &summary.measurements {
        text += &format!("\n  {} x {:<3} {}", entry.vcpu_type, entry.vcpus, entry.measurement);
    }
    Ok(Reply::good(text, json!(summary)))
}

fn firmware(args: &FirmwareArgs) -> anyhow::Result<Reply> {
    let sources = &args.sources;
    let workshop = Workshop::open(&sources.repository, sources.sources())?;
    let recipe = recipe::recipe(&workshop.repository, release::Profile::Production)?;
    let build = |workshop: &Workshop| {
        if args.unpinned { firmware::amd_sev(workshop) } else { firmware::build(workshop, &recipe.firmware) }
    };
    let path = build(&workshop)?;
    let (sha256, size) = store::hash_file(&path)?;
    if args.twice {
        let folder = workshop::scratch()?;
        let anew =
            Workshop::fresh(&sources.repository, sources.sources(), folder.path(), Surroundings::varied())?;
        let (again, _) = store::hash_file(&build(&anew)?)?;
        anyhow::ensure!(
            again == sha256,
            "a second build gave sha256 {again}, the first {sha256}: not reproducible"
        );
    }
    let text = format!("{}\n  {:.2} MB  sha256 {sha256}", path.display(), size as f64 / 1e6);
    Ok(Reply::good(text, json!({ "path": path, "size": size, "sha256": sha256, "built_twice": args.twice })))
}

fn fetch(args: &Fetch) -> anyhow::Result<Reply> {
    let inputs = Inputs::open(&args.sources.repository, &Cache::open()?, args.sources.sources())?;
    let all: Vec<&lock::Input> = inputs.lock.inputs.iter().collect();
    let step = Step::start("inputs", all.len() as u64);
    let files = fetch::all(&inputs.store, &all, &inputs.sources, &step)?;
    step.done("in the store");
    let bytes: u64 = all.iter().map(|input| input.size).sum();
    let mut text = format!("{} inputs, {:.1} MB, all with the locked hashes", all.len(), bytes as f64 / 1e6);
    if let Some(bundle) = &args.bundle {
        copy_all(bundle, &all, &files)?;
        text += &format!("; copied to {}", bundle.display());
    }
    Ok(Reply::good(text, json!({ "inputs": all.len(), "bytes": bytes, "bundle": args.bundle })))
}

fn copy_all(bundle: &Path, inputs: &[&lock::Input], files: &[PathBuf]) -> anyhow::Result<()> {
    use anyhow::Context;
    std::fs::create_dir_all(bundle).with_context(|| format!("cannot make {}", bundle.display()))?;
    for (input, file) in inputs.iter().zip(files) {
        let target = bundle.join(input.file_name());
        std::fs::copy(file, &target).with_context(|| format!("cannot write {}", target.display()))?;
    }
    Ok(())
}

fn update_inputs(args: &UpdateInputs) -> anyhow::Result<Reply> {
    let sources = args.sources.sources();
    let changes = update::update(&args.sources.repository, &Cache::open()?, &sources, &args.keyring)?;
    let mut text = format!("{} changed inputs", changes.len());
    for change in &changes {
        let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".to_owned());
        text += &format!("\n  {:<28} {} -> {}", change.name, version(&change.before), version(&change.now));
        if change.security_archive {
            text += "  [security archive]";
        }
        if let Some(urgency) = &change.urgency {
            text += &format!("  urgency {urgency}");
        }
        if !change.fixes.is_empty() {
            text += &format!("  fixes {}", change.fixes.join(", "));
        }
    }
    Ok(Reply::good(text, json!({ "changes": changes })))
}
