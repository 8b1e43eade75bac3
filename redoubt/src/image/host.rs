//! `redoubt image build-host`: the image of the machine itself.

use super::{SourceArgs, failure};
use crate::output::{Failure, Reply};
use clap::Args;
use host_os::cli::ProfileArg;
use image_build::host;
use serde_json::json;
use std::path::PathBuf;

/// Builds what boots on the machine itself: kernel, verified root, unified kernel image, disk.
///
/// Building needs no key. The image of the production profile comes out unsigned; sign host.efi elsewhere (sbsign
/// --detached) and build again with --signature: everything else comes from the cache, and the disk boots under Secure Boot.
#[derive(Debug, Args)]
pub(crate) struct BuildHost {
    #[command(flatten)]
    sources: SourceArgs,
    /// What kind of node the image is for
    #[arg(long, value_enum, default_value_t = ProfileArg::Virtual)]
    profile: ProfileArg,
    /// Manifest of a guest release that the disk's guest slot gets; its files lie beside it
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// Detached signature (PKCS #7, DER) of host.efi [default for virtual: made with the public development key]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Directory that receives the image [default: target/host-images/PROFILE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn build(args: &BuildHost) -> Result<Reply, Failure> {
    let profile = args.profile.profile();
    let read = |path: &PathBuf| {
        std::fs::read(path)
            .map_err(|error| Failure::new("signature", format!("cannot read {}: {error}", path.display())))
    };
    let signature = args.signature.as_ref().map(read).transpose()?;
    let workshop = args.sources.workshop()?;
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| workshop.repository.join("target/host-images").join(profile.to_string()));
    let summary = host::build(&workshop, profile, args.guest.as_deref(), signature, &out).map_err(failure)?;
    let signed =
        if summary.signed { "signed" } else { "not signed: sign host.efi, then build with --signature" };
    let mut text = format!("{} ({signed})", summary.disk.display());
    for (name, file) in &summary.description.files {
        text += &format!("\n  {name:<20}{:>8.2} MB  sha256 {}", file.size as f64 / 1e6, file.sha256);
    }
    text += &format!("\n  root hash          {}", summary.description.root_hash);
    text += &format!("\n  Authenticode hash  {}", summary.description.uki_authenticode);
    Ok(Reply::good(text, json!(summary)))
}
