//! `redoubt image build` and `assemble`.

use super::{SourceArgs, failure};
use crate::output::{Failure, Reply};
use clap::Args;
use host_os::cli::ProfileArg;
use image_build::{
    host::assembly::{self, Assembled},
    images::{self, Scope},
    trust::Trust,
};
use release::Profile;
use serde_json::json;
use std::path::PathBuf;

/// Builds everything that a node needs: the guest's kernel, initrd and firmware; the host's unified kernel image and
/// verified root; the manifest that binds them; and the disk.
///
/// Building needs no key. A release of the production profile comes out unsigned: sign manifest.json ('redoubt release
/// sign'), host.efi and installer.efi ('redoubt image sign', or 'sbsign --detached') elsewhere, then put disk and installer
/// together with 'redoubt image assemble'. The virtual profile is signed at once, with keys that are public.
#[derive(Debug, Args)]
pub(crate) struct Build {
    #[command(flatten)]
    sources: SourceArgs,
    /// What kind of node the release is for
    #[arg(long, value_enum, default_value_t = ProfileArg::Virtual)]
    profile: ProfileArg,
    /// Only the guest's files and their manifest: what `redoubt up` runs on a machine with a system of its own
    #[arg(long, conflicts_with = "signature")]
    guest_only: bool,
    /// Whom production nodes trust: a directory that 'redoubt image create-trust' made [default: image-build/production in the
    /// checkout]
    #[arg(long, value_name = "DIR", conflicts_with = "guest_only")]
    trust: Option<PathBuf>,
    /// Detached signature (PKCS #7, DER) of host.efi [default for virtual: made with the public development key]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Directory that receives the release [default: target/release-images/PROFILE, with --guest-only PROFILE-guest]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn build(args: &Build) -> Result<Reply, Failure> {
    let profile = args.profile.profile();
    let signature = args.signature.as_ref().map(read).transpose()?;
    if args.trust.is_some() && profile == Profile::Virtual {
        return Err(Failure::usage(
            "trust",
            "virtual nodes trust the public development keys; leave --trust out",
        ));
    }
    let mut workshop = args.sources.workshop()?;
    workshop.trust = args.trust.as_deref().map(Trust::read).transpose().map_err(failure)?;
    let (scope, suffix) = if args.guest_only { (Scope::Guest, "-guest") } else { (Scope::Whole, "") };
    let out = args.out.clone().unwrap_or_else(|| {
        workshop.repository.join("target/release-images").join(format!("{profile}{suffix}"))
    });
    let summary = images::build(&workshop, profile, scope, signature.as_deref(), &out).map_err(failure)?;
    let signed = match summary.signatures {
        0 => "not signed: sign it with 'redoubt release sign'".to_owned(),
        count => format!("signed by {count} keys"),
    };
    let mut text = format!("{} ({signed})", summary.manifest.display());
    for (name, file) in &summary.files {
        text += &format!("\n  {name:<20}{:>8.2} MB  sha256 {}", file.size as f64 / 1e6, file.sha256);
    }
    for entry in &summary.measurements {
        text += &format!("\n  {} x {:<3} {}", entry.vcpu_type, entry.vcpus, entry.measurement);
    }
    if let Some(host) = &summary.host {
        text += &format!("\n{}", assembled(host));
    }
    Ok(Reply::good(text, json!(summary)))
}

/// Puts the disk together out of a release's files: the manifest with the signatures that it has by now, and the signature
/// of the unified kernel image. Compiles nothing.
#[derive(Debug, Args)]
pub(crate) struct Assemble {
    #[command(flatten)]
    sources: SourceArgs,
    /// Directory with the release
    #[arg(value_name = "DIR")]
    release: PathBuf,
    /// Detached signature (PKCS #7, DER) of host.efi [default: host.efi.p7s in the directory, if it is there]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

pub(super) fn assemble(args: &Assemble) -> Result<Reply, Failure> {
    let workshop = args.sources.workshop()?;
    if let Some(signature) = &args.signature {
        assembly::sign(&args.release, release::Profile::Production, Some(&read(signature)?))
            .map_err(failure)?;
    }
    let host = assembly::assemble(&workshop, &args.release).map_err(failure)?;
    Ok(Reply::good(assembled(&host), json!(host)))
}

fn assembled(host: &Assembled) -> String {
    let signed = if host.signed {
        "signed"
    } else {
        "not signed: 'redoubt image sign', then 'redoubt image assemble'"
    };
    let installer = host.installer.as_ref().map(|path| format!("\n{}", path.display())).unwrap_or_default();
    format!("{} ({signed}){installer}", host.disk.display())
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::new("signature", format!("cannot read {}: {error}", path.display())))
}
