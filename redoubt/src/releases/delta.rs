//! `redoubt release delta`: differences to an earlier release, so that nodes fetch few bytes.

use super::manifest_path;
use crate::output::{Failure, Reply};
use clap::Args;
use host_os::upgrade::delta;
use release::{FileName, Manifest, Signed};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Make the differences by which nodes with an earlier release fetch a later one
///
/// They go beside the later release's files, under names made of the two files' hashes. They are not signed: a node holds what
/// comes out against the manifest, and fetches the whole file where it is not that.
#[derive(Debug, Args)]
pub(crate) struct Delta {
    /// Manifest of the release that nodes run, its files beside it
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// Manifest of the release that they are to fetch, its files beside it
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// Directory that receives the differences [default: that of the later release]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn delta(args: &Delta) -> Result<Reply, Failure> {
    let (old_path, new_path) = (manifest_path(&args.old), manifest_path(&args.new));
    let (old, new) = (manifest(&old_path)?, manifest(&new_path)?);
    let out = args.out.clone().unwrap_or_else(|| beside(&new_path, ""));
    let (mut text, mut list) = (Vec::new(), Vec::new());
    for name in [FileName::Kernel, FileName::Initrd, FileName::Firmware] {
        let (from, to) = (old.guest.files.get(name), new.guest.files.get(name));
        if from.sha256 == to.sha256 {
            text.push(format!("{}: unchanged", to.path));
            continue;
        }
        let (before, after) = (read(&beside(&old_path, &from.path))?, read(&beside(&new_path, &to.path))?);
        let made = delta::make(&before, &after, |old, new| {
            let mut patch = Vec::new();
            bidiff::simple_diff(old, new, &mut patch).map(|()| patch)
        });
        let Some(bytes) = made.map_err(|error: std::io::Error| Failure::of("delta-not-made", &error))? else {
            text.push(format!("{}: packed in another way, so that it is fetched whole", to.path));
            continue;
        };
        let path = out.join(delta::name(from, to));
        std::fs::write(&path, &bytes).map_err(|error| {
            let message =
                format!("cannot write {}: {error}; check its owner, mode and the free space", path.display());
            Failure::new("delta-not-written", message)
        })?;
        let percent = bytes.len() as f64 * 100.0 / to.size as f64;
        text.push(format!("{}: {} bytes, {percent:.1} % of {}", to.path, bytes.len(), path.display()));
        list.push(json!({ "file": to.path, "size": to.size, "delta": path, "delta_size": bytes.len() }));
    }
    Ok(Reply::good(text.join("\n"), json!({ "deltas": list })))
}

/// Nothing rests on these manifests: a node believes what its own root approves.
fn manifest(path: &Path) -> Result<Manifest, Failure> {
    let envelope = Signed::<Manifest>::from_bytes(&read(path)?);
    envelope
        .map(|envelope| envelope.content().clone())
        .map_err(|error| Failure::of("manifest-unreadable", &error))
}

fn beside(manifest: &Path, name: &str) -> PathBuf {
    manifest.with_file_name(name)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::usage("release-unreadable", format!("cannot read {}: {error}", path.display()))
    })
}
