//! `redoubt image`: building releases from locked inputs, and holding a release against its sources.

mod build;
mod reproduce;
mod sign;

use crate::output::{Failure, Reply};
use clap::{Args, Subcommand};
use image_build::{
    cache::Cache,
    error::ImageError,
    fetch::{self, Sources},
    files::FileError,
    firmware,
    inputs::Inputs,
    lock, programs, recipe,
    sandbox::Surroundings,
    step::Step,
    store, toolchain, update, vendor,
    workshop::Workshop,
};
use release::{Digest, Profile};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Build everything that a node needs: guest, host, disk, and the manifest that binds them
    Build(build::Build),
    /// Put a directory together that says whom production nodes trust
    CreateTrust(sign::CreateTrust),
    /// Sign the unified kernel images of a release for Secure Boot
    Sign(sign::Sign),
    /// Put disk and installer together out of a release's files, after signing
    Assemble(build::Assemble),
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
pub(crate) struct FirmwareArgs {
    #[command(flatten)]
    sources: SourceArgs,
    /// Build with another user, host name, umask, time zone, locale, clock and number of jobs than those of the build
    /// that the recipe's hash is from
    #[arg(long)]
    vary: bool,
    /// Accept another hash than the recipe pins, to find out the new one
    #[arg(long)]
    unpinned: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    #[command(flatten)]
    sources: SourceArgs,
    /// Also copy every input into this directory, crates and Rust toolchain too: all that a build on another machine needs, which
    /// takes it with `--from`
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
pub(crate) fn failure(error: impl Into<ImageError>) -> Failure {
    let error = error.into();
    Failure::new(error.code(), error.to_string())
}

pub(crate) fn run(args: &Image) -> Result<Reply, Failure> {
    match args {
        Image::Build(args) => build::build(args),
        Image::CreateTrust(args) => sign::create_trust(args),
        Image::Sign(args) => sign::sign(args),
        Image::Assemble(args) => build::assemble(args),
        Image::Firmware(args) => firmware(args),
        Image::Fetch(args) => fetch(args).map_err(failure),
        Image::UpdateInputs(args) => update_inputs(args).map_err(failure),
        Image::Reproduce(args) => reproduce::run(args),
        Image::Explain(args) => reproduce::explain(args),
        Image::TestPrograms(args) => {
            let workshop = args.workshop()?;
            let recipe = recipe::recipe(&workshop.repository, Profile::Virtual).map_err(failure)?;
            let folder = programs::build_for_tests(&workshop, &recipe).map_err(failure)?;
            Ok(Reply::good(folder.display().to_string(), json!({ "folder": folder })))
        }
    }
}

fn firmware(args: &FirmwareArgs) -> Result<Reply, Failure> {
    let mut workshop = args.sources.workshop()?;
    if args.vary {
        workshop.surroundings = Surroundings::varied();
    }
    let (path, sha256, size) = build_firmware(&workshop, args.unpinned).map_err(failure)?;
    let text = format!("{}\n  {:.2} MB  sha256 {sha256}", path.display(), size as f64 / 1e6);
    Ok(Reply::good(text, json!({ "path": path, "size": size, "sha256": sha256 })))
}

fn build_firmware(workshop: &Workshop, unpinned: bool) -> Result<(PathBuf, Digest, u64), ImageError> {
    let recipe = recipe::recipe(&workshop.repository, Profile::Production)?;
    let path =
        if unpinned { firmware::amd_sev(workshop)? } else { firmware::build(workshop, &recipe.firmware)? };
    let hashed = store::hash_file(&path);
    let (sha256, size) = hashed.map_err(|source| FileError { doing: "read", path: path.clone(), source })?;
    Ok((path, sha256, size))
}

fn fetch(args: &Fetch) -> Result<Reply, ImageError> {
    let (cache, repository) = (Cache::open()?, &args.sources.repository);
    let inputs = Inputs::open(repository, &cache, args.sources.sources())?;
    let all: Vec<&lock::Input> = inputs.lock.inputs.iter().collect();
    let step = Step::start("inputs", all.len() as u64);
    let files = fetch::all(&inputs.store, &all, &inputs.sources, &step)?;
    step.done("in the store");
    let rust = toolchain::open(&cache, &inputs)?;
    let crates = vendor::crates(repository)?;
    let archives = vendor::fetch(&crates, repository, &inputs.sources)?;
    let bytes: u64 = all.iter().map(|input| input.size).sum();
    let mut text = format!(
        "{} packages and tarballs ({:.1} MB), {} files of the Rust toolchain, {} crates: all with the locked hashes",
        all.len(),
        bytes as f64 / 1e6,
        inputs.lock.rust.files.len(),
        crates.len()
    );
    if let Some(bundle) = &args.bundle {
        let names = all.iter().map(|input| input.file_name().to_owned());
        copy_all(bundle, names.zip(&files))?;
        copy_all(bundle, crates.iter().map(vendor::Crate::file_name).zip(&archives))?;
        let step = Step::start("Rust toolchain", inputs.lock.rust.files.len() as u64);
        toolchain::copy(&rust, &inputs.lock.rust, &bundle.join(toolchain::BUNDLED), &step)?;
        step.done("copied");
        text += &format!("; copied to {}", bundle.display());
    }
    Ok(Reply::good(
        text,
        json!({ "inputs": all.len(), "bytes": bytes, "crates": crates.len(), "bundle": args.bundle }),
    ))
}

fn copy_all<'a>(bundle: &Path, files: impl Iterator<Item = (String, &'a PathBuf)>) -> Result<(), FileError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| FileError { doing: "write", path, source }
    };
    std::fs::create_dir_all(bundle).map_err(failed(bundle))?;
    for (name, file) in files {
        let target = bundle.join(name);
        std::fs::copy(file, &target).map_err(failed(&target))?;
    }
    Ok(())
}

fn update_inputs(args: &UpdateInputs) -> Result<Reply, ImageError> {
    let sources = args.sources.sources();
    let changes = update::update(&args.sources.repository, &Cache::open()?, &sources, &args.keyring)?;
    // A package may serve several roots.
    let mut lines: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for change in &changes {
        let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".to_owned());
        let mut line = format!("{:<28} {} -> {}", change.name, version(&change.before), version(&change.now));
        if change.security_archive {
            line += "  [security archive]";
        }
        if let Some(urgency) = &change.urgency {
            line += &format!("  urgency {urgency}");
        }
        if !change.fixes.is_empty() {
            line += &format!("  fixes {}", change.fixes.join(", "));
        }
        lines.entry(line).or_default().push(&change.group);
    }
    let mut text = format!("{} changed inputs", lines.len());
    for (line, groups) in &lines {
        text += &format!("\n  {line}  ({})", groups.join(", "));
    }
    Ok(Reply::good(text, json!({ "changes": changes })))
}
