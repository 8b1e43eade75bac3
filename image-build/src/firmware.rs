//! The guest's firmware.
//!
//! Production: OvmfPkg/AmdSev of the distribution's edk2 source, with the distribution's patches and one of ours, which
//! takes out the boot loader GRUB that AmdSev carries for encrypted disks. What remains boots the kernel that QEMU hands
//! over, if kernel, initrd and command line have the hashes in the measured table, and nothing else.
//!
//! Virtual: SeaBIOS as the distribution's package has it (AmdSev OVMF boots no kernel directly without SEV hardware).

use crate::{
    cache::Key,
    deb,
    error::{ImageError, Result},
    files,
    lock::{EDK2, SEABIOS},
    recipe::{self, Firmware},
    step::Step,
    workshop::Workshop,
};
use release::Digest;
use std::path::{Path, PathBuf};

/// SeaBIOS in its package.
const BIOS: &str = "usr/share/seabios/bios-256k.bin";
/// Lines that the build prints, for the progress bar only.
const EXPECTED_LINES: u64 = 4000;
/// Raised when the steps below change.
const METHOD: &str = "1";

/// Always at the same path, from a fresh tree: with another path the firmware differs, and `Conf` keeps absolute paths.
const SCRIPT: &str = r#"
set -eu
umask 022
tar --no-same-owner -xf /in/orig.tar.xz -C /src --strip-components=1
mkdir /out/debian
tar --no-same-owner -xf /in/debian.tar.xz -C /out/debian --strip-components=1
cd /src
while read -r name rest; do
    case "$name" in ''|'#'*) continue;; esac
    patch --quiet --batch --forward --fuzz=0 -p1 < "/out/debian/patches/$name"
done < /out/debian/patches/series
for ours in /firmware/*.patch; do
    patch --quiet --batch --forward --fuzz=0 --binary -p1 < "$ours"
done
export PYTHON_COMMAND=/usr/bin/python3 PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1
make -C BaseTools/Source/C -j"$JOBS"
export WORKSPACE=/src EDK_TOOLS_PATH=/src/BaseTools
set +u
. ./edksetup.sh
set -u
build -a X64 -t GCC5 -b RELEASE -n "$JOBS" -p OvmfPkg/AmdSev/AmdSevX64.dsc
cp Build/AmdSev/RELEASE_GCC5/FV/OVMF.fd /out/OVMF.fd
"#;

/// The firmware is not the one that the recipe pins.
#[derive(Debug, thiserror::Error)]
#[error(
    "the built firmware {path} has SHA-256 {found}, the recipe pins {expected}; if its inputs were changed on purpose, \
     compare both with 'redoubt image explain' and put the new hash into the recipe; otherwise this machine builds \
     differently, which is a defect to report"
)]
pub struct NotPinned {
    /// The file.
    pub path: PathBuf,
    /// By the recipe.
    pub expected: Digest,
    /// Found.
    pub found: Digest,
}

/// The firmware of a recipe, built or from the cache.
pub fn build(workshop: &Workshop, firmware: &Firmware) -> Result<PathBuf> {
    match firmware {
        Firmware::AmdSev { sha256 } => {
            let path = amd_sev(workshop)?;
            let found = Digest::of(&files::read(&path)?);
            if found != *sha256 {
                return Err(NotPinned { path, expected: *sha256, found }.into());
            }
            Ok(path)
        }
        Firmware::Seabios => seabios(workshop),
    }
}

/// SeaBIOS out of its package.
fn seabios(workshop: &Workshop) -> Result<PathBuf> {
    let package = workshop.inputs.lock.group(SEABIOS)?[0];
    let key = Key::default().with("package", package.sha256.as_bytes());
    let entry = workshop.cache.entry("seabios", key, |dir| {
        let (_, package) = workshop.inputs.file(SEABIOS)?;
        Ok::<_, ImageError>(files::write(&dir.join("bios.bin"), deb::content(&package, BIOS)?)?)
    })?;
    Ok(entry.join("bios.bin"))
}

/// AmdSev OVMF in the cache, if it was built there from these inputs.
pub fn cached(workshop: &Workshop) -> Result<Option<PathBuf>> {
    Ok(workshop.cache.find("firmware", key(workshop)?).map(|entry| entry.join("OVMF.fd")))
}

/// All inputs of AmdSev OVMF.
fn key(workshop: &Workshop) -> Result<Key> {
    let patches = patches(workshop);
    let mut key =
        Key::default().with("build-root", &workshop.root.key).with("script", SCRIPT).with("method", METHOD);
    for input in workshop.inputs.lock.group(EDK2)? {
        key = key.with(input.file_name(), input.sha256.as_bytes());
    }
    for patch in files::list(&patches)? {
        let name = patch.file_name().unwrap_or_default().to_string_lossy().into_owned();
        key = key.with(&name, files::read(&patch)?);
    }
    Ok(key)
}

fn patches(workshop: &Workshop) -> PathBuf {
    recipe::folder(&workshop.repository).join("firmware")
}

/// AmdSev OVMF, whatever its hash.
pub fn amd_sev(workshop: &Workshop) -> Result<PathBuf> {
    let step = Step::start("firmware", EXPECTED_LINES);
    let mut fresh = false;
    let entry = workshop.cache.entry("firmware", key(workshop)?, |dir| {
        fresh = true;
        make(workshop, dir, &step)
    })?;
    step.done(if fresh { "built" } else { "unchanged" });
    Ok(entry.join("OVMF.fd"))
}

fn make(workshop: &Workshop, dir: &Path, step: &Step) -> Result<()> {
    let (work, [source, input, out]) = files::work(dir, ["src", "in", "out"])?;
    for (locked, file) in workshop.inputs.files(EDK2)? {
        let name = if locked.file_name().contains(".orig.") { "orig.tar.xz" } else { "debian.tar.xz" };
        files::copy(&file, &input.join(name))?;
    }
    step.say("compiling OvmfPkg/AmdSev");
    let sandbox = workshop.sandbox();
    let jobs = sandbox.jobs().to_string();
    let sandbox = sandbox
        .read(&input, "/in")
        .read(patches(workshop), "/firmware")
        .write(&source, "/src")
        .write(&out, "/out");
    sandbox.set("JOBS", jobs).run_with("building the firmware", &["bash", "-c", SCRIPT], |_| step.tick())?;
    files::copy(&out.join("OVMF.fd"), &dir.join("OVMF.fd"))?;
    Ok(files::close(work)?)
}
