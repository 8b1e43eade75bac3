//! `redoubt image create-trust` and `sign`: the Secure Boot keys of a cloud.

use super::failure;
use crate::output::{Failure, Reply};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use image_build::{
    host::{assembly, authenticode::Signer},
    trust::Trust,
};
use serde_json::json;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Puts together whom the production nodes of a cloud trust: the root that releases are judged by, and the Secure Boot keys
/// that the installer enrols. 'redoubt image build --trust' takes the directory. It holds nothing secret.
#[derive(Debug, Args)]
pub(crate) struct CreateTrust {
    /// The root, signed ('redoubt release create-root' and 'sign')
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// Certificate (X.509) of the key that signs kernel images
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// Certificate of the key that owns the machines' Secure Boot settings (PK and KEK)
    #[arg(long, value_name = "FILE")]
    platform_certificate: PathBuf,
    /// That key: RSA, PKCS #8; needed only here
    #[arg(long, value_name = "FILE")]
    platform_key: PathBuf,
    /// Directory that is made
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn create_trust(args: &CreateTrust) -> Result<Reply, Failure> {
    let root = read(&args.root)?;
    let certificate = der(&args.certificate)?;
    let (key, platform) = (der(&args.platform_key)?, der(&args.platform_certificate)?);
    let trust = Trust::create(&root, &certificate, Signer { key: &key, certificate: &platform });
    let trust = trust.map_err(failure)?;
    trust.write(&args.out).map_err(failure)?;
    let text = format!("{}: {}", args.out.display(), trust.summary());
    Ok(Reply::good(text, json!({ "folder": args.out, "trust": trust.summary() })))
}

/// Signs host.efi and installer.efi of a release for Secure Boot, each into a file with the ending .p7s. The same key and
/// image always give the same signature. 'redoubt image assemble' puts disk and installer together with them.
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// Directory with the release
    #[arg(value_name = "DIR")]
    release: PathBuf,
    /// Key: RSA, PKCS #8
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Its certificate (X.509), which the release's installer enrols
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
}

pub(super) fn sign(args: &Sign) -> Result<Reply, Failure> {
    let (key, certificate) = (der(&args.key)?, der(&args.certificate)?);
    let signer = Signer { key: &key, certificate: &certificate };
    let written = assembly::sign_with(&args.release, signer).map_err(failure)?;
    let names: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
    Ok(Reply::good(names.join("\n"), json!({ "signatures": names })))
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    std::fs::read(path).map(Zeroizing::new).map_err(|error| {
        Failure::usage("file-unreadable", format!("cannot read {}: {error}; check the path", path.display()))
    })
}

/// A file in DER, or in PEM with one object in it (RFC 7468).
fn der(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let content = read(path)?;
    let Some(text) = std::str::from_utf8(&content).ok().filter(|text| text.contains("-----BEGIN ")) else {
        return Ok(content);
    };
    let inside = text.lines().skip_while(|line| !line.starts_with("-----BEGIN ")).skip(1);
    let base64: Zeroizing<String> =
        Zeroizing::new(inside.take_while(|line| !line.starts_with("-----")).map(str::trim).collect());
    BASE64_STANDARD.decode(base64.as_bytes()).map(Zeroizing::new).map_err(|error| {
        Failure::usage("file-unreadable", format!("{} is no PEM: {error}; give another file", path.display()))
    })
}
