//! The installer: a unified kernel image with the host's kernel and the program `installer` as its only initrd, and the
//! medium that holds it together with a release.
//!
//! The kernel image is part of the build and in the manifest. The medium is put together after signing, out of the files of
//! a release: it holds the signed manifest, so its own hash cannot be in there.

use crate::{
    cpio::{self, Entry, Kind},
    error::Result,
    files::{self, failed},
    host::{self, HostError, pe, recipe::Recipe},
    kernel, programs,
    step::Step,
    trust::Trust,
    workshop::Workshop,
};
use ::installer::{
    archive::{self, Files},
    linux::Device,
    medium::Medium,
    parts::{self, SIGNATURE},
    run,
};
use release::{Manifest, Profile};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// Unsigned unified kernel image of the installer.
pub const UKI: &str = "installer.efi";
/// The medium.
pub const IMAGE: &str = "installer.img";
/// Level of the initrd's compression.
const ZSTD_LEVEL: i32 = 19;

/// Lines go to the serial port; the screen is drawn on the first terminal.
fn command_line(profile: Profile) -> &'static str {
    match profile {
        Profile::Production => "console=ttyS0,115200 panic=5 quiet redoubt.profile=production",
        Profile::Virtual => "console=ttyS0 no_timer_check panic=5 quiet loglevel=4 redoubt.profile=virtual",
    }
}

/// Builds the installer's unified kernel image, unsigned.
pub fn uki(workshop: &Workshop, profile: Profile, trust: &Trust) -> Result<Vec<u8>> {
    let kernel = kernel::build(workshop, kernel::HOST, &Recipe::read(&workshop.repository)?.kernel)?;
    let program = files::read(&programs::installer(workshop)?)?;
    let step = Step::start("installer", 0);
    let trusted = trust.files();
    let mut entries = vec![
        // The kernel opens it for PID 1 before anything is mounted.
        Entry { path: "dev/console", kind: Kind::CharacterDevice { major: 5, minor: 1 } },
        // Without a console, the standard streams of PID 1 end here.
        Entry { path: "dev/null", kind: Kind::CharacterDevice { major: 1, minor: 3 } },
        Entry { path: "init", kind: Kind::Executable(&program) },
    ];
    for path in ["dev", "esp", "etc", "etc/redoubt", "etc/redoubt/secure-boot", "proc", "run", "sys", "tmp"] {
        entries.push(Entry { path, kind: Kind::Directory });
    }
    entries.extend(trusted.iter().map(|(path, content)| Entry { path, kind: Kind::File(content) }));
    let initrd = zstd::bulk::compress(&cpio::archive(&mut entries)?, ZSTD_LEVEL)
        .map_err(failed("compress", Path::new("the installer's initrd")))?;
    let version = env!("CARGO_PKG_VERSION");
    let release = format!(
        "ID=redoubt-installer\nNAME=Redoubt\nPRETTY_NAME=\"Redoubt installer {version}\"\nVERSION_ID={version}\n"
    );
    let sections = [
        (".osrel", release.as_bytes()),
        (".cmdline", command_line(profile).as_bytes()),
        (".initrd", &initrd),
        (".linux", &files::read(&kernel.image)?),
    ];
    let uki = pe::unified_kernel_image(&host::stub(workshop)?, &sections).map_err(HostError::from)?;
    step.done("made");
    Ok(uki)
}

/// Puts the medium together out of the release in `folder`, whose kernel images may be signed; none if the release has no
/// installer.
pub fn assemble(manifest: &Manifest, folder: &Path) -> Result<Option<PathBuf>> {
    let Some(file) = manifest.host.as_ref().and_then(|host| host.installer.as_ref()) else { return Ok(None) };
    let mut uki = files::read(&folder.join(&file.path))?;
    file.check("installer", &uki).map_err(HostError::File)?;
    if let Ok(signature) = std::fs::read(folder.join(format!("{}{SIGNATURE}", file.path))) {
        uki = pe::attach(&uki, &signature).map_err(HostError::from)?;
    }
    let release = pack(manifest, folder)?;
    let medium = Medium { uki, config: None, release };
    let (image, size) = (folder.join(IMAGE), medium.smallest());
    let draft = image.with_extension("draft");
    File::create(&draft).and_then(|file| file.set_len(size)).map_err(failed("make", &draft))?;
    let mut device = Device::open(&draft).map_err(failed("open", &draft))?;
    run::run(&medium.plan(size).map_err(HostError::Plan)?, &mut device, &mut |_| ())
        .map_err(HostError::from)?;
    std::fs::rename(&draft, &image).map_err(failed("replace", &image))?;
    Ok(Some(image))
}

/// The files of a release that a medium carries, as an archive.
fn pack(manifest: &Manifest, folder: &Path) -> Result<Vec<u8>> {
    let (required, optional) = parts::carried(manifest);
    let mut carried = Files::new();
    for path in required.into_iter().chain(optional.into_iter().filter(|path| folder.join(path).is_file())) {
        let content = files::read(&folder.join(&path))?;
        carried.insert(path, content);
    }
    Ok(archive::pack(&carried).map_err(failed("pack", folder))?)
}
