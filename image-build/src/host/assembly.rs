//! What is put together out of a release's files, after signing: the disk of a host. It needs no key and compiles nothing,
//! so whoever has a release and its signatures gets the published disk.

use super::{
    HostError,
    authenticode::{self, Signer},
    names, pe, secure_boot,
};
use crate::{
    deb,
    error::Result,
    files::{self, failed},
    guest, installer, lock,
    step::Step,
    trust::Trust,
    workshop::Workshop,
};
use ::installer::{
    archive::{self, Files},
    layout,
    parts::{self, Parts},
    plan,
    run::{self, Medium},
};
use release::{Envelope, Profile};
use serde::Serialize;
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Firmware with Secure Boot, and its empty variable store, in their package.
const FIRMWARE: (&str, &str) = ("usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "usr/share/OVMF/OVMF_VARS_4M.fd");

/// What was put together.
#[derive(Debug, Serialize)]
pub struct Assembled {
    /// The disk.
    pub disk: PathBuf,
    /// Whether the disk's unified kernel image is signed.
    pub signed: bool,
    /// The installer's medium, unless the release has no installer.
    pub installer: Option<PathBuf>,
}

/// Puts a detached signature of each unified kernel image beside it: for the host's the given one, or for the virtual
/// profile that of the development key. One that is there stays if it is for this image.
pub fn sign(folder: &Path, profile: Profile, given: Option<&[u8]>) -> Result<()> {
    sign_image(folder, names::UKI, profile, given)?;
    if folder.join(installer::UKI).is_file() {
        sign_image(folder, installer::UKI, profile, None)?;
    }
    Ok(())
}

fn sign_image(folder: &Path, name: &str, profile: Profile, given: Option<&[u8]>) -> Result<()> {
    let place = folder.join(format!("{name}{}", parts::SIGNATURE));
    let uki = files::read(&folder.join(name))?;
    if let Some(signature) = given {
        check(&uki, signature)?;
        return Ok(files::write_if_changed(&place, signature)?);
    }
    if let Some(signature) = sign_for_development(&uki, profile)? {
        return Ok(files::write_if_changed(&place, &signature)?);
    }
    if std::fs::read(&place).is_ok_and(|signature| check(&uki, &signature).is_err()) {
        std::fs::remove_file(&place).map_err(files::failed("remove", &place))?;
    }
    Ok(())
}

/// Signs each unified kernel image of the release in `folder`, beside it. Whom machines trust stands in the installer, and must
/// be the signer. Returns the paths of the signatures.
pub fn sign_with(folder: &Path, signer: Signer<'_>) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for name in [names::UKI, installer::UKI].into_iter().filter(|name| folder.join(name).is_file()) {
        let uki = files::read(&folder.join(name))?;
        if name == installer::UKI && Trust::of_installer(&uki)?.certificate != signer.certificate {
            return Err(HostError::OtherCertificate.into());
        }
        let place = folder.join(format!("{name}{}", parts::SIGNATURE));
        files::write_if_changed(&place, &authenticode::sign(&uki, signer).map_err(HostError::from)?)?;
        written.push(place);
    }
    if written.is_empty() {
        return Err(HostError::NoHost.into());
    }
    Ok(written)
}

/// That a signature speaks of this image; whether its key counts is the firmware's to say.
fn check(uki: &[u8], signature: &[u8]) -> Result<(), HostError> {
    let hash = pe::authenticode_hash(uki)?;
    if signature.windows(hash.len()).any(|window| window == hash) {
        Ok(())
    } else {
        Err(HostError::Signature)
    }
}

/// Puts the disk together out of the release in `folder`: guest, host, manifest with the signatures that it has, signature
/// of the unified kernel image if there is one.
pub fn assemble(workshop: &Workshop, folder: &Path) -> Result<Assembled> {
    let step = Step::start("disk", 0);
    let envelope = Envelope::from_bytes(&files::read(&folder.join(guest::names::MANIFEST))?)
        .map_err(HostError::Manifest)?;
    let (parts, signed) = parts(&envelope, folder)?;
    let disk = folder.join(names::DISK);
    write(&disk, &parts)?;
    if parts.profile == Profile::Virtual {
        let (_, firmware) = workshop.inputs.file(lock::UEFI)?;
        files::write_if_changed(&folder.join(names::FIRMWARE), &deb::content(&firmware, FIRMWARE.0)?)?;
        let empty = deb::content(&firmware, FIRMWARE.1)?;
        let variables = secure_boot::enroll(&empty, secure_boot::CERTIFICATE).map_err(HostError::from)?;
        files::write_if_changed(&folder.join(names::VARIABLES), &variables)?;
    }
    let installer = installer::assemble(envelope.manifest(), folder)?;
    step.done("put together");
    Ok(Assembled { disk, signed, installer })
}

/// What is written to a disk, and whether its kernel image is signed. Every file is held against the manifest, whoever
/// signed that: the machine itself asks for its signatures.
fn parts(envelope: &Envelope, folder: &Path) -> Result<(Parts, bool)> {
    let manifest = envelope.manifest();
    let host = manifest.host.as_ref().ok_or(HostError::NoHost)?;
    let mut present = Files::new();
    let (required, optional) = parts::carried(manifest);
    for path in required.iter().chain(optional.iter().filter(|path| folder.join(path).is_file())) {
        present.insert(path.clone(), files::read(&folder.join(path))?);
    }
    let take = |name, file: &release::File| -> Result<Vec<u8>, HostError> {
        let content = present.get(&file.path).cloned().unwrap_or_default();
        file.check(name, &content).map_err(HostError::File)?;
        Ok(content)
    };
    let mut uki = take("unified kernel image", &host.uki)?;
    let signature = present.get(names::SIGNATURE);
    if let Some(signature) = signature {
        check(&uki, signature)?;
        uki = pe::attach(&uki, signature).map_err(HostError::from)?;
    }
    let guest = parts::guest_files(manifest, &present).map_err(HostError::Parts)?;
    let parts = Parts {
        version: manifest.version.clone(),
        security_epoch: manifest.security_epoch,
        profile: manifest.profile,
        digest: envelope.digest(),
        uki,
        root: take("host's root", &host.root)?,
        verity: take("host's hash tree", &host.root_hash_tree)?,
        root_hash: host.verity_root_hash.0,
        guest: archive::pack(&guest).map_err(failed("pack the guest for", &folder.join(names::DISK)))?,
    };
    Ok((parts, signature.is_some()))
}

/// Writes a disk of the smallest size into a file, which is sparse: what no partition holds takes no space.
fn write(path: &Path, parts: &Parts) -> Result<(), HostError> {
    let draft = path.with_extension("draft");
    let size = layout::smallest();
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&draft);
    let file = file.map_err(failed("make", &draft))?;
    file.set_len(size).map_err(failed("make", &draft))?;
    let plan = plan::fresh(size, parts, &[], &mut layout::identifier).map_err(HostError::Plan)?;
    run::run(&plan, &mut Image { file, size }, &mut |_| {})?;
    Ok(std::fs::rename(&draft, path).map_err(failed("replace", path))?)
}

/// A disk in a file.
struct Image {
    file: File,
    size: u64,
}

impl Medium for Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&mut self, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    // A file that is built again if power fails needs no care.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The virtual profile is signed at once, with the public development key.
#[cfg(feature = "virtual")]
fn sign_for_development(uki: &[u8], profile: Profile) -> Result<Option<Vec<u8>>, HostError> {
    let signer = Signer { key: secure_boot::KEY, certificate: secure_boot::CERTIFICATE };
    let sign = || authenticode::sign(uki, signer);
    Ok((profile == Profile::Virtual).then(sign).transpose()?)
}

/// A program without the development key signs nothing.
#[cfg(not(feature = "virtual"))]
fn sign_for_development(_: &[u8], _: Profile) -> Result<Option<Vec<u8>>, HostError> {
    Ok(None)
}
