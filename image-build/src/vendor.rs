//! The crates of Cargo.lock, unpacked into one folder before the build: inside the sandbox there is no network.
//!
//! Each comes as the archive that the registry published, from a directory that was given or from where cargo keeps its
//! downloads, and its SHA-256 is held against Cargo.lock here. Cargo takes the folder as a directory source.

use crate::{
    cache::{Cache, Key, sha256_file},
    fetch::Sources,
    files::{self, FileError, failed},
    step::Step,
};
use release::Digest;
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Raised when the steps below change.
const METHOD: &str = "2";

/// The crates could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum VendorError {
    /// A file or folder could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Cargo.lock is something else.
    #[error("{path} cannot be read: {source}; take it from the repository again")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: toml::de::Error,
    },
    /// A crate that is not from the registry, so that nothing says what it must be.
    #[error(
        "the crate {0} has no checksum in Cargo.lock; only crates of the registry can be built reproducibly"
    )]
    NoChecksum(String),
    /// cargo does not run.
    #[error("cannot run cargo: {0}; install the Rust toolchain of rust-toolchain.toml")]
    Start(std::io::Error),
    /// cargo did not get them.
    #[error(
        "the crate {name} is neither in the directories of --from nor among cargo's downloads, and cargo does not get it; \
         with a network try 'cargo fetch --locked', without one give a bundle ('redoubt image fetch --bundle') with --from:\n\
         {message}"
    )]
    Failed {
        /// Name and version.
        name: String,
        /// What cargo said.
        message: String,
    },
    /// An archive is another one.
    #[error(
        "{path} has SHA-256 {found}, Cargo.lock says {expected}: changed or cut off; remove it and try again"
    )]
    Changed {
        /// The archive.
        path: PathBuf,
        /// By Cargo.lock.
        expected: Digest,
        /// Found.
        found: Digest,
    },
}

/// A crate of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crate {
    /// Name and version, as its folder is called.
    pub name: String,
    /// Of its archive.
    pub sha256: Digest,
}

impl Crate {
    /// Name of its archive.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.crate", self.name)
    }
}

/// The registry's crates in a Cargo.lock.
pub fn crates(repository: &Path) -> Result<Vec<Crate>, VendorError> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        source: Option<String>,
        checksum: Option<String>,
    }
    let path = repository.join("Cargo.lock");
    let lock: Lock =
        toml::from_str(&files::text(&path)?).map_err(|source| VendorError::Lock { path, source })?;
    // Those of the workspace have no source.
    let registry = lock.package.into_iter().filter(|package| package.source.is_some());
    registry
        .map(|Package { name, version, checksum, .. }| {
            let name = format!("{name}-{version}");
            let sha256 = checksum.and_then(|text| text.parse().ok());
            Ok(Crate { sha256: sha256.ok_or_else(|| VendorError::NoChecksum(name.clone()))?, name })
        })
        .collect()
}

/// The archives of these crates, each checked, in their order.
pub fn fetch(crates: &[Crate], repository: &Path, sources: &Sources) -> Result<Vec<PathBuf>, VendorError> {
    let mut folders = sources.directories.clone();
    folders.extend(downloads());
    let mut asked = false;
    let mut found = Vec::new();
    for wanted in crates {
        let find = |folders: &[PathBuf]| {
            folders.iter().map(|folder| folder.join(wanted.file_name())).find(|path| path.is_file())
        };
        let mut message = String::new();
        if find(&folders).is_none() && !asked {
            asked = true;
            message = ask_cargo(repository)?;
            folders.extend(downloads());
        }
        let failed = || VendorError::Failed { name: wanted.name.clone(), message };
        found.push(check(wanted, find(&folders).ok_or_else(failed)?)?);
    }
    Ok(found)
}

fn check(wanted: &Crate, path: PathBuf) -> Result<PathBuf, VendorError> {
    let (found, _) = crate::store::hash_file(&path).map_err(failed("read", &path))?;
    if found == wanted.sha256 {
        return Ok(path);
    }
    Err(VendorError::Changed { path, expected: wanted.sha256, found })
}

/// Where cargo keeps what it downloaded: one folder for each address of the registry.
fn downloads() -> Vec<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home);
    cargo.and_then(|cargo| files::list(&cargo.join("registry/cache")).ok()).unwrap_or_default()
}

/// Has cargo download what it lacks; what it says goes into the message if a crate is missing afterwards.
fn ask_cargo(repository: &Path) -> Result<String, VendorError> {
    let output = Command::new("cargo")
        .current_dir(repository)
        .args(["fetch", "--locked", "--quiet"])
        .stdin(Stdio::null())
        .output()
        .map_err(VendorError::Start)?;
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// The crates of the repository's Cargo.lock in one folder.
pub fn open(cache: &Cache, repository: &Path, sources: &Sources) -> Result<PathBuf, VendorError> {
    let lock = sha256_file(&repository.join("Cargo.lock"))?;
    let key = Key::default().with("cargo-lock", lock).with("method", METHOD);
    cache.entry("vendor", key, |dir| {
        let crates = crates(repository)?;
        let step = Step::start("crates", crates.len() as u64);
        step.say("unpacking the crates of Cargo.lock");
        for (unpacked, archive) in crates.iter().zip(fetch(&crates, repository, sources)?) {
            unpack(unpacked, &archive, dir)?;
            step.tick();
        }
        step.done("unpacked");
        Ok(())
    })
}

/// Unpacks one; all its files are below a folder of its name.
fn unpack(wanted: &Crate, archive: &Path, to: &Path) -> Result<(), VendorError> {
    let packed = std::fs::File::open(archive).map_err(failed("open", archive))?;
    let mut files = tar::Archive::new(flate2::read::GzDecoder::new(std::io::BufReader::new(packed)));
    files.set_preserve_mtime(false);
    files.unpack(to).map_err(failed("unpack", archive))?;
    // Cargo asks for the hashes of files too, but takes none: the archive as a whole was checked.
    let list = to.join(&wanted.name).join(".cargo-checksum.json");
    Ok(files::write(&list, format!("{{\"files\":{{}},\"package\":\"{}\"}}", wanted.sha256))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// An archive as a registry has it.
    fn archive(folder: &Path, name: &str) -> Crate {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{name}/src/lib.rs"), &b"//!"[..]).unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&tar.into_inner().unwrap()).unwrap();
        let packed = packed.finish().unwrap();
        let found = Crate { name: name.to_owned(), sha256: Digest::of(&packed) };
        std::fs::write(folder.join(found.file_name()), packed).unwrap();
        found
    }

    #[test]
    fn archives_are_checked_and_unpacked_with_the_word_that_cargo_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let one = archive(dir.path(), "one-1.0.0");
        let lock = format!(
            "version = 4\n[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"one\"\n\
             version = \"1.0.0\"\nsource = \"registry+https://example.org\"\nchecksum = \"{}\"\n",
            one.sha256
        );
        std::fs::write(dir.path().join("Cargo.lock"), &lock).unwrap();
        assert_eq!(crates(dir.path()).unwrap(), std::slice::from_ref(&one));
        let sources = Sources::only(vec![dir.path().to_owned()]);
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let vendored = open(&cache, dir.path(), &sources).unwrap();
        assert_eq!(std::fs::read(vendored.join("one-1.0.0/src/lib.rs")).unwrap(), b"//!");
        let list = std::fs::read_to_string(vendored.join("one-1.0.0/.cargo-checksum.json")).unwrap();
        assert!(list.contains(&one.sha256.to_string()), "{list}");

        let mut bytes = std::fs::read(dir.path().join(one.file_name())).unwrap();
        bytes[20] ^= 1;
        std::fs::write(dir.path().join(one.file_name()), bytes).unwrap();
        let refused = fetch(&[one], dir.path(), &sources).unwrap_err();
        assert!(matches!(refused, VendorError::Changed { .. }), "{refused}");

        let unlocked =
            lock.lines().filter(|line| !line.starts_with("checksum")).collect::<Vec<_>>().join("\n");
        std::fs::write(dir.path().join("Cargo.lock"), unlocked).unwrap();
        assert!(matches!(crates(dir.path()), Err(VendorError::NoChecksum(name)) if name == "one-1.0.0"));
    }

    #[test]
    fn every_crate_of_this_repository_has_a_checksum() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert!(crates(repository).unwrap().len() > 100);
    }
}
