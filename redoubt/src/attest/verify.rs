//! `redoubt attest verify`: recorded evidence against a release.

use super::fetch::Record;
use super::{expectations, proof, refused, words};
use crate::output::{Failure, Reply};
use crate::releases::{RootArgs, manifest_path};
use clap::Args;
use host_os::attest::{AttestError, unix_time, verify};
use host_os::config::ConfigText;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Records of `redoubt attest fetch`
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The release's manifest, or the directory that holds it as manifest.json
    #[arg(long, value_name = "MANIFEST")]
    manifest: PathBuf,
    #[command(flatten)]
    root: RootArgs,
    /// Text of the guest's configuration, whose hash HOST_DATA must be [default: a virtual node's]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &Verify) -> Result<Reply, Failure> {
    let path = manifest_path(&args.manifest);
    let manifest = args.root.approve(&path)?;
    let mut expected = expectations(&manifest, args.root.profile.profile())?;
    if let Some(path) = &args.config {
        expected.policy.host_data = attestation::policy::Demand::only([config_hash(path)?]);
    }
    let mut texts = Vec::new();
    let mut results = Vec::new();
    for path in &args.files {
        let bad = |reason: String| {
            Failure::new("record-refused", format!("{} is no record of evidence: {reason}", path.display()))
        };
        let bytes = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        let age = unix_time().saturating_sub(record.fetched_unix_s);
        let fetched = record.fetched().map_err(bad)?;
        let verified =
            verify(&fetched, &expected, unix_time()).map_err(AttestError::Refused).map_err(refused)?;
        let words = words(&manifest, &verified, &fetched);
        texts.push(format!("{} (recorded {age} s ago):\n  {}", path.display(), words.join("\n  ")));
        results.push(json!({ "file": path, "verified": words, "proof": proof(&verified) }));
    }
    Ok(Reply::good(texts.join("\n"), Value::Array(results)))
}

fn config_hash(path: &std::path::Path) -> Result<[u8; 32], Failure> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::new("config-unreadable", format!("{}: {error}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(&error))?;
    Ok(ConfigText::from_text(text).host_data())
}
