//! Manifests from images, and images held against manifests.

use super::{
    documents::{open, unsigned, write},
    keys::read,
};
use crate::output::{Failure, Reply};
use clap::Args;
use host_os::bundle;
use host_os::cli::ProfileArg;
use image_build::host::{pe, verity};
use release::{Digest, File, Guest, HostImages, Manifest};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Make the unsigned manifest of a release from its images
///
/// The directory is what `redoubt image build` made: the manifest in it says which files there are and what is measured
/// beside them. Sizes, hashes, launch measurements and the host's hashes are computed anew from the files.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Directory with the images
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Kind of node that the images must be for
    #[arg(long, value_enum)]
    profile: ProfileArg,
    /// Name of the release [default: as built]
    #[arg(long, value_name = "NAME")]
    version: Option<String>,
    /// Security epoch [default: as built]
    #[arg(long, value_name = "N")]
    security_epoch: Option<u64>,
    /// File that receives the manifest [default: manifest.json in the directory]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn mismatch(what: &str) -> Failure {
    Failure::new("images-differ", format!("{what}; build the images again, together"))
}

pub(crate) fn create(args: &Create) -> Result<Reply, Failure> {
    let path = args.images.join("manifest.json");
    let mut manifest = open::<Manifest>(&path)?.content().clone();
    let (expected, found) = (args.profile.profile(), manifest.profile);
    if expected != found {
        return Err(Failure::of("profile-mismatch", &release::ProfileMismatch { expected, found }));
    }
    if let Some(version) = &args.version {
        manifest.version.clone_from(version);
    }
    manifest.security_epoch = args.security_epoch.unwrap_or(manifest.security_epoch);
    // Signed for another epoch; `sign-id-blocks` names them again.
    manifest.guest.id_block = None;
    for file in files(&mut manifest) {
        *file = File::describe(file.path.clone(), &read(&args.images.join(&file.path))?);
    }
    manifest.guest.measurements = measure(&args.images, &manifest.guest)?;
    if let Some(host) = &mut manifest.host {
        (host.verity_root_hash, host.uki_authenticode) = host_hashes(&args.images, host)?;
    }
    let document = unsigned(manifest)?;
    let out = args.out.as_ref().unwrap_or(&path);
    write(out, &document.to_bytes())?;
    let content = document.content();
    let text = format!(
        "manifest of release {} ({} profile, security epoch {}) in {}; now have it signed",
        content.version,
        content.profile,
        content.security_epoch,
        out.display()
    );
    Ok(Reply::good(text, json!({ "file": out, "digest": document.digest(), "content": content })))
}

fn files(manifest: &mut Manifest) -> Vec<&mut File> {
    let guest = &mut manifest.guest.files;
    let mut files = vec![&mut guest.kernel, &mut guest.initrd, &mut guest.firmware];
    if let Some(host) = &mut manifest.host {
        files.extend([&mut host.uki, &mut host.root, &mut host.root_hash_tree]);
        files.extend(&mut host.installer);
    }
    files
}

/// The launch measurements of the files for the machines that the manifest lists.
fn measure(directory: &Path, guest: &Guest) -> Result<Vec<release::VcpuMeasurement>, Failure> {
    let read = |file: &File| read(&directory.join(&file.path));
    let (kernel, initrd, firmware) =
        (read(&guest.files.kernel)?, read(&guest.files.initrd)?, read(&guest.files.firmware)?);
    let machines: Vec<_> =
        guest.measurements.iter().map(|entry| (entry.vcpu_type.clone(), entry.vcpus)).collect();
    image_build::guest::measure(guest, [&kernel, &initrd, &firmware], &machines)
        .map_err(|error| Failure::new("measurement", format!("{error:#}")))
}

/// Root hash and Authenticode hash that follow from the host's files, which must belong together.
fn host_hashes(directory: &Path, host: &HostImages) -> Result<(Digest, Digest), Failure> {
    let read = |file: &File| read(&directory.join(&file.path));
    let (uki, root, hashes) = (read(&host.uki)?, read(&host.root)?, read(&host.root_hash_tree)?);
    // dm-verity's superblock: the salt begins at byte 88.
    let salt = hashes
        .get(88..120)
        .and_then(|salt| salt.try_into().ok())
        .ok_or_else(|| mismatch("the host's hash tree has no superblock"))?;
    let tree = verity::Tree::new(&root, salt).map_err(|error| mismatch(&error.to_string()))?;
    if tree.hash_area != hashes {
        return Err(mismatch("the host's hash tree is not that of the host's root"));
    }
    let root_hash = hex::encode(tree.root);
    let command_line = pe::section(&uki, ".cmdline").unwrap_or_default();
    if !String::from_utf8_lossy(command_line).contains(&root_hash) {
        return Err(mismatch("the unified kernel image boots another root than the host's"));
    }
    let authenticode = pe::authenticode_hash(&uki).map_err(|error| mismatch(&error.to_string()))?;
    Ok((Digest(tree.root), Digest(authenticode)))
}

/// Holds the host's files beside a manifest against it.
pub(crate) fn check_host(path: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let Some(host) = &manifest.host else { return Ok(()) };
    let directory = path.parent().unwrap_or(Path::new("."));
    for (name, file) in host.files() {
        file.check(name, &read(&directory.join(&file.path))?)
            .map_err(|error| Failure::from(bundle::ReleaseError::File(error)))?;
    }
    let (root_hash, authenticode) = host_hashes(directory, host)?;
    if root_hash != host.verity_root_hash {
        return Err(mismatch(&format!(
            "the host's root hash is {root_hash}, the manifest says {}",
            host.verity_root_hash
        )));
    }
    if authenticode != host.uki_authenticode {
        return Err(mismatch(&format!(
            "the unified kernel image has the Authenticode hash {authenticode}, the manifest says {}",
            host.uki_authenticode
        )));
    }
    Ok(())
}

/// Everything that a manifest says about the files beside it, before a key signs it.
pub(crate) fn check_images(path: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let guest = &manifest.guest;
    for name in release::FileName::ALL {
        let file = guest.files.get(name);
        file.check(name.as_str(), &read(&directory.join(&file.path))?)
            .map_err(|error| Failure::from(bundle::ReleaseError::File(error)))?;
    }
    for entry in measure(directory, guest)? {
        guest
            .check_measurement(&entry.vcpu_type, entry.vcpus, entry.measurement)
            .map_err(|error| Failure::from(bundle::ReleaseError::from(error)))?;
    }
    check_host(path, manifest)
}
