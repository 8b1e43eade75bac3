//! The crates of Cargo.lock, unpacked into one folder before the build: inside the sandbox there is no network.

use crate::{
    cache::{Cache, Key, sha256_file},
    files::FileError,
    step::Step,
};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The crates could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum VendorError {
    /// A file or folder could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// cargo does not run.
    #[error("cannot run cargo: {0}; install the Rust toolchain of rust-toolchain.toml")]
    Start(std::io::Error),
    /// cargo did not get them.
    #[error(
        "the crates of Cargo.lock could not be brought here; with a network, try 'cargo fetch --locked':\n{0}"
    )]
    Failed(String),
}

/// The crates of the repository's Cargo.lock; cargo checks each against the hash there.
pub fn open(cache: &Cache, repository: &Path) -> Result<PathBuf, VendorError> {
    let key = Key::default().with("cargo-lock", sha256_file(&repository.join("Cargo.lock"))?);
    cache.entry("vendor", key, |dir| {
        let step = Step::start("crates", 0);
        step.say("unpacking the crates of Cargo.lock");
        let output = Command::new("cargo")
            .current_dir(repository)
            .args(["vendor", "--locked", "--quiet", "--versioned-dirs"])
            .arg(dir)
            .stdin(Stdio::null())
            .output()
            .map_err(VendorError::Start)?;
        if !output.status.success() {
            return Err(VendorError::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        step.done("unpacked");
        Ok(())
    })
}
