//! `image-build`: builds the images of a profile.

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// Builds Redoubt's images from pinned inputs.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 built, 1 a step failed, 2 usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the guest release: kernel, initrd, firmware, manifest
    Build {
        /// Profile, the name of a recipe in image-build/recipes
        #[arg(long, default_value = "virtual")]
        profile: String,
        /// Directory that receives the release
        #[arg(long)]
        out: PathBuf,
        /// Root of the checkout
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."))]
        repository: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Build the programs that guest-os's own tests boot; prints their folder
    TestPrograms {
        /// Root of the checkout
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."))]
        repository: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let (profile, out, repository, json) = match cli.command {
        Command::Build { profile, out, repository, json } => (profile, out, repository, json),
        Command::TestPrograms { repository } => {
            let repository = repository.canonicalize()?;
            let recipe = image_build::recipe::recipe(&repository, "virtual")?;
            println!("{}", image_build::programs::build_for_tests(&repository, &recipe)?.display());
            return Ok(());
        }
    };
    let summary = image_build::guest::build(&repository.canonicalize()?, &profile, &out)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
        return Ok(());
    }
    println!("{} (signed by {} development keys)", summary.manifest.display(), summary.signatures);
    for (name, size) in &summary.sizes {
        println!("  {name:<14}{:>8.2} MB", *size as f64 / 1e6);
    }
    for (vcpus, measurement) in &summary.measurements {
        println!("  measurement with {vcpus} vCPU: {measurement}");
    }
    Ok(())
}
