//! The host's image: kernel, verified root, unified kernel image, disk.
//!
//! | module | holds |
//! |---|---|
//! | [`recipe`] | what the image is made of |
//! | [`tree`], [`sbom`], [`root`] | the root file system, and the list of all that is in it |
//! | [`verity`] | its hash tree |
//! | [`pe`], [`authenticode`] | the unified kernel image, its hash, and its signature |
//! | [`assembly`] | signatures and disk, out of a release's files; the crate `installer` has the rule for disks |
//! | [`secure_boot`] | the development key, and enrolling keys in a virtual machine |
//!
//! Building needs no key: it gives an unsigned image and its Authenticode hash. Who holds a key signs that image elsewhere
//! (`sbsign --detached`, for example), and the build with that signature attaches it. Only the virtual profile is signed
//! at once, with a key that is public.

pub mod assembly;
pub mod authenticode;
pub mod recipe;
pub mod root;
pub mod sbom;
pub mod secure_boot;
pub mod tree;

pub use installer::{fat, gpt, pe, verity};

use crate::{
    deb,
    error::Result,
    files::{self, FileError},
    images::Content,
    kernel, lock, programs,
    step::Step,
    workshop::Workshop,
};
use installer::{layout, parts::ReleaseError, plan::Refusal, run::RunError};
use recipe::Recipe;
use release::{
    Digest, File, FileError as WrongFile, HostImages, ManifestError, Measured, MeasuredSection, Profile,
};
use sha2::{Digest as _, Sha256};

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
    /// The whole disk.
    pub const DISK: &str = "host-disk.img";
    /// Firmware of a virtual machine that boots the disk.
    pub const FIRMWARE: &str = "uefi-code.fd";
    /// Its variables, with the development key enrolled.
    pub const VARIABLES: &str = "uefi-variables.fd";
}

/// The stub in its package.
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// The host's image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The root file system.
    #[error(transparent)]
    Tree(#[from] tree::TreeError),
    /// Its QEMU.
    #[error("the QEMU of the host's root does not say what it can do: {0:?}; renew the lock")]
    Qemu(Box<hwspec::probe::Qemu>),
    /// Its hash tree.
    #[error(transparent)]
    Verity(#[from] verity::SizeError),
    /// The unified kernel image.
    #[error(transparent)]
    Image(#[from] pe::PeError),
    /// Signing it.
    #[error(transparent)]
    Sign(#[from] authenticode::SignError),
    /// A signature that is for something else.
    #[error("the signature is not one of this unified kernel image; sign host.efi and try again")]
    Signature,
    /// A signature that machines would not accept.
    #[error(
        "the installer of this release enrols another certificate than the one given, so that machines would start nothing \
         of it; give the key and certificate whose certificate.der the release was built with"
    )]
    OtherCertificate,
    /// The manifest of the release.
    #[error("the manifest is not one of a release: {0}; build the release again")]
    Manifest(ManifestError),
    /// The release is one for guests only.
    #[error("the release has no images of a host; build it without --guest-only")]
    NoHost,
    /// A file of the release was changed.
    #[error(transparent)]
    File(WrongFile),
    /// The release lacks something that a disk needs.
    #[error(transparent)]
    Parts(ReleaseError),
    /// What a disk gets does not fit.
    #[error(transparent)]
    Plan(Refusal),
    /// The disk's file fails.
    #[error(transparent)]
    Disk(#[from] RunError),
    /// Enrolling the development key.
    #[error(transparent)]
    Enroll(#[from] secure_boot::StoreError),
    /// Writing the disk.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// What a host consists of.
pub struct Parts {
    /// Unified kernel image (unsigned), root, hash tree, list of the root's files, the kernel's configuration.
    pub files: Content,
    /// The host's half of a manifest.
    pub images: HostImages,
}

/// Builds the host of a profile; `trusted` is the root that its releases are judged by.
pub fn build(workshop: &Workshop, profile: Profile, trusted: Option<&[u8]>) -> Result<Parts> {
    let recipe = Recipe::read(&workshop.repository)?;
    let host = recipe.host(profile);
    let kernel = kernel::build(workshop, kernel::HOST, &recipe.kernel)?;
    let agent = programs::host_os(workshop, &host.features)?;
    let root = root::build(workshop, &recipe.files, &agent, trusted)?;

    let step = Step::start("host image", 0);
    let image = files::read(&root.image)?;
    let version = env!("CARGO_PKG_VERSION");
    let release =
        format!("ID=redoubt\nNAME=Redoubt\nPRETTY_NAME=\"Redoubt HostOS {version}\"\nVERSION_ID={version}\n");
    let (stub, linux) = (stub(workshop)?, files::read(&kernel.image)?);
    let salt = root_salt(&[&stub, release.as_bytes(), host.command_line.as_bytes(), &linux]);
    let tree = verity::Tree::new(&image, salt).map_err(HostError::from)?;
    let (data, hashes) = layout::root_identifiers(&tree.root);
    let command_line = format!(
        "{} init=/{} root=/dev/dm-0 rootfstype=erofs ro dm-mod.create=\"root,,0,ro,{}\"",
        host.command_line,
        tree::AGENT,
        tree.table(&format!("PARTUUID={data}"), &format!("PARTUUID={hashes}")),
    );
    let sections =
        [(".osrel", release.as_bytes()), (".cmdline", command_line.as_bytes()), (".linux", linux.as_slice())];
    let uki = pe::unified_kernel_image(&stub, &sections).map_err(HostError::from)?;
    let images = HostImages {
        uki: File::describe(names::UKI, &uki),
        uki_authenticode: Digest(pe::authenticode_hash(&uki).map_err(HostError::from)?),
        root: File::describe(names::ROOT, &image),
        root_hash_tree: File::describe(names::VERITY, &tree.hash_area),
        verity_root_hash: Digest(tree.root),
        installer: None,
        measured: Some(measured(&uki)?),
    };
    let files = Content::from([
        (names::UKI, uki),
        (names::ROOT, image),
        (names::VERITY, tree.hash_area),
        (names::SBOM, files::read(&root.sbom)?),
        (names::KERNEL_CONFIG, files::read(&kernel.config)?),
    ]);
    step.done("made");
    Ok(Parts { files, images })
}

/// What firmware and stub measure of a unified kernel image. Whose certificates count, the release's installer says.
pub fn measured(uki: &[u8]) -> Result<Measured, HostError> {
    let kernel = pe::section(uki, ".linux").unwrap_or_default();
    let sections = pe::sections(uki)?;
    let sections =
        measured_boot::expected::measured(sections.iter().map(|(name, content)| (name.as_str(), *content)));
    let section = |section: measured_boot::expected::Section| MeasuredSection {
        name: section.name,
        sha256: Digest(section.sha256),
    };
    Ok(Measured {
        kernel_authenticode: Digest(pe::authenticode_hash(kernel)?),
        sections: sections.into_iter().map(section).collect(),
        certificates: Vec::new(),
    })
}

/// What is hashed before each block of the root: it follows from everything else in the kernel image. The root hash names the slot
/// that a kernel image starts, so another kernel has to come with another root hash, also if the root stays the same.
fn root_salt(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(layout::identifier("host root salt").0);
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// systemd's stub, which makes an executable of UEFI out of a kernel.
pub fn stub(workshop: &Workshop) -> Result<Vec<u8>> {
    let (_, package) = workshop.inputs.file(lock::UEFI_STUB)?;
    Ok(deb::content(&package, STUB)?)
}

#[cfg(test)]
mod tests {
    use super::root_salt;
    use std::path::PathBuf;

    #[test]
    fn whatever_changes_in_the_kernel_image_changes_the_salt() {
        let all = [&b"stub"[..], b"osrel", b"line", b"linux"];
        assert_eq!(root_salt(&all), root_salt(&all));
        for index in 0..all.len() {
            let mut other = all;
            other[index] = b"other";
            assert_ne!(root_salt(&other), root_salt(&all));
        }
        assert_ne!(root_salt(&[b"stubo", b"srel", b"line", b"linux"]), root_salt(&all));
    }

    /// A program that a test compares with. `cargo xtask test` installs them all; alone, a test may lack it.
    pub(crate) fn program(name: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .map(|folder: PathBuf| folder.join(name))
            .find(|file| file.is_file());
        assert!(found.is_some() || std::env::var_os("CI").is_none(), "CI must have {name}");
        if found.is_none() {
            use std::io::Write as _;
            // Not captured, as what is printed would be.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no program {name} to compare with");
        }
        found
    }
}
