//! The host's image: kernel, verified root, unified kernel image, disk.
//!
//! | module | holds |
//! |---|---|
//! | [`recipe`] | what the image is made of |
//! | [`tree`], [`sbom`], [`root`] | the root file system, and the list of all that is in it |
//! | [`verity`] | its hash tree |
//! | [`pe`], [`authenticode`] | the unified kernel image, its hash, and its signature |
//! | [`fat`], [`gpt`], [`disk`] | boot partition, partition table, disk |
//! | [`secure_boot`] | the development key, and enrolling keys in a virtual machine |
//!
//! Building needs no key: it gives an unsigned image and its Authenticode hash. Who holds a key signs that image elsewhere
//! (`sbsign --detached`, for example), and the build with that signature attaches it. Only the virtual profile is signed
//! at once, with a key that is public.

pub mod authenticode;
pub mod disk;
pub mod fat;
pub mod gpt;
pub mod pe;
pub mod recipe;
pub mod root;
pub mod sbom;
pub mod secure_boot;
pub mod tree;
pub mod verity;

use crate::{cache::sha256_file, deb, guest, kernel, lock, programs, step::Step, workshop::Workshop};
use anyhow::{Context, Result};
use recipe::Recipe;
use release::{Digest, Envelope, File, Profile};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Names of the files of a host's image.
pub mod names {
    /// Unsigned unified kernel image.
    pub const UKI: &str = "host.efi";
    /// Its detached signature.
    pub const SIGNATURE: &str = "host.efi.p7s";
    /// Root file system.
    pub const ROOT: &str = "host-root.erofs";
    /// Hash area of the root.
    pub const VERITY: &str = "host-root.verity";
    /// CycloneDX list of the root's files.
    pub const SBOM: &str = "host.cdx.json";
    /// The kernel's resolved configuration, for auditors.
    pub const KERNEL_CONFIG: &str = "host-kernel.config";
    /// What was built: [`super::Description`].
    pub const DESCRIPTION: &str = "host.json";
    /// The whole disk.
    pub const DISK: &str = "host-disk.img";
    /// Firmware of a virtual machine that boots the disk.
    pub const FIRMWARE: &str = "uefi-code.fd";
    /// Its variables, with the development key enrolled.
    pub const VARIABLES: &str = "uefi-variables.fd";
}

/// The stub in its package.
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// Firmware with Secure Boot, and its empty variable store, in their package.
const FIRMWARE: (&str, &str) = ("usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "usr/share/OVMF/OVMF_VARS_4M.fd");

/// What a host's image consists of: the host's part of a release.
#[derive(Debug, Serialize)]
pub struct Description {
    /// Kind of node.
    pub profile: Profile,
    /// Size and SHA-256 of each file that does not depend on a signature.
    pub files: BTreeMap<&'static str, File>,
    /// Root hash of the root's hash tree, hexadecimal: in the command line of the unified kernel image.
    pub root_hash: String,
    /// Authenticode hash (SHA-256) of the unsigned unified kernel image, hexadecimal: what Secure Boot keys sign.
    pub uki_authenticode: String,
    /// The kernel's command line.
    pub command_line: String,
    /// SHA-256 of the kernel's resolved configuration, hexadecimal.
    pub kernel_config: String,
    /// SHA-256 of the lock of all inputs.
    pub inputs_lock: Digest,
}

/// What was built.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// What it consists of.
    #[serde(flatten)]
    pub description: Description,
    /// The disk.
    pub disk: PathBuf,
    /// Whether the disk's unified kernel image is signed.
    pub signed: bool,
}

/// Builds the host's image of a profile into `out`.
///
/// `guest` is the manifest of a release that the disk's guest slot gets. `signature` is a detached signature of the
/// unified kernel image; without one, the image of the virtual profile is signed with the development key.
pub fn build(
    workshop: &Workshop,
    profile: Profile,
    guest: Option<&Path>,
    signature: Option<Vec<u8>>,
    out: &Path,
) -> Result<Summary> {
    let recipe = Recipe::read(&workshop.repository)?;
    let host = recipe.host(profile);
    let kernel = kernel::build(workshop, &recipe.kernel)?;
    let agent = programs::host_os(workshop, &host.features)?;
    let root = root::build(workshop, &recipe.files, &agent)?;

    let step = Step::start("host image", 0);
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let image = read(&root.image)?;
    let salt = Sha256::digest(disk::identifier("host root salt").0).into();
    let tree = verity::Tree::new(&image, salt)?;
    let (data, hashes) = disk::root_identifiers(&tree.root);
    let command_line = format!(
        "{} init=/{} root=/dev/dm-0 rootfstype=erofs ro dm-mod.create=\"root,,0,ro,{}\"",
        host.command_line,
        tree::AGENT,
        tree.table(&format!("PARTUUID={data}"), &format!("PARTUUID={hashes}")),
    );
    let (_, stub) = workshop.inputs.file(lock::UEFI_STUB)?;
    let version = env!("CARGO_PKG_VERSION");
    let release =
        format!("ID=redoubt\nNAME=Redoubt\nPRETTY_NAME=\"Redoubt HostOS {version}\"\nVERSION_ID={version}\n");
    let uki = pe::unified_kernel_image(
        &member(&stub, STUB)?,
        &[
            (".osrel", release.as_bytes()),
            (".cmdline", command_line.as_bytes()),
            (".linux", &read(&kernel.image)?),
        ],
    )?;

    let files: BTreeMap<&str, Vec<u8>> = BTreeMap::from([
        (names::UKI, uki),
        (names::ROOT, image),
        (names::VERITY, tree.hash_area),
        (names::SBOM, read(&root.sbom)?),
        (names::KERNEL_CONFIG, read(&kernel.config)?),
    ]);
    let description = Description {
        profile,
        root_hash: hex::encode(tree.root),
        uki_authenticode: hex::encode(pe::authenticode_hash(&files[names::UKI])?),
        command_line,
        kernel_config: sha256_file(&kernel.config)?,
        inputs_lock: workshop.inputs.lock.digest(),
        files: files.iter().map(|(name, content)| (*name, File::describe(*name, content))).collect(),
    };
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let write = |name: &str, content: &[u8]| guest::write_if_changed(&out.join(name), content);
    for (name, content) in &files {
        write(name, content)?;
    }
    write(names::DESCRIPTION, (serde_json::to_string_pretty(&description)? + "\n").as_bytes())?;

    let signature = match signature {
        Some(signature) => Some(signature),
        None => sign_for_development(&files[names::UKI], profile)?,
    };
    let mut boot = files[names::UKI].clone();
    if let Some(signature) = &signature {
        write(names::SIGNATURE, signature)?;
        boot = pe::attach(&boot, signature)?;
    }
    let guest = guest.map(|manifest| guest_slot(workshop, manifest)).transpose()?;
    let content = disk::Content {
        uki: &boot,
        root: &files[names::ROOT],
        verity: &files[names::VERITY],
        root_hash: tree.root,
        guest: guest.as_deref(),
    };
    let disk = out.join(names::DISK);
    disk::write(&disk, &content)?;
    if profile == Profile::Virtual {
        let (_, firmware) = workshop.inputs.file(lock::UEFI)?;
        write(names::FIRMWARE, &member(&firmware, FIRMWARE.0)?)?;
        let variables = secure_boot::enroll(&member(&firmware, FIRMWARE.1)?, secure_boot::CERTIFICATE)?;
        write(names::VARIABLES, &variables)?;
    }
    step.done("made");
    Ok(Summary { description, disk, signed: signature.is_some() })
}

/// The content of a guest slot: a file system with one release, its manifest and the files that the manifest names. It
/// needs no hash tree: the agent holds every file against the signed manifest.
fn guest_slot(workshop: &Workshop, manifest: &Path) -> Result<Vec<u8>> {
    let work = tempfile::tempdir()?;
    let [tree, out] = ["tree", "out"].map(|name| work.path().join(name));
    for folder in [&tree, &out] {
        std::fs::create_dir(folder)?;
    }
    let folder = manifest.parent().context("the guest's manifest lies in no folder")?;
    let content = std::fs::read(manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let envelope = Envelope::from_bytes(&content)?;
    std::fs::write(tree.join(guest::names::MANIFEST), &content)?;
    let files = &envelope.manifest().guest.files;
    for File { path, .. } in [&files.kernel, &files.initrd, &files.firmware] {
        let source = folder.join(path);
        std::fs::copy(&source, tree.join(path))
            .with_context(|| format!("cannot copy {}", source.display()))?;
    }
    let packed = root::pack(workshop, &tree, &out, "guest slot")?;
    std::fs::read(&packed).with_context(|| format!("cannot read {}", packed.display()))
}

fn member(package: &Path, path: &str) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    deb::member(package, path, |from| from.read_to_end(&mut content))?;
    Ok(content)
}

/// The virtual profile is signed at once, with the public development key.
#[cfg(feature = "virtual")]
fn sign_for_development(uki: &[u8], profile: Profile) -> Result<Option<Vec<u8>>> {
    let sign = || authenticode::sign(uki, secure_boot::KEY, secure_boot::CERTIFICATE);
    Ok((profile == Profile::Virtual).then(sign).transpose()?)
}

/// A program without the development key signs nothing.
#[cfg(not(feature = "virtual"))]
fn sign_for_development(_: &[u8], _: Profile) -> Result<Option<Vec<u8>>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    /// A program that a test compares with. `cargo xtask test` installs them all; alone, a test may lack it.
    pub(crate) fn program(name: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .map(|folder: PathBuf| folder.join(name))
            .find(|file| file.is_file());
        if found.is_none() {
            println!("SKIPPED: no program {name} to compare with");
        }
        found
    }
}
