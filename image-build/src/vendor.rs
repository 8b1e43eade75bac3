//! The crates of Cargo.lock, unpacked into one folder before the build: inside the sandbox there is no network.

use crate::{
    cache::{Cache, Key, sha256_file},
    step::Step,
};
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The crates of the repository's Cargo.lock; cargo checks each against the hash there.
pub fn open(cache: &Cache, repository: &Path) -> Result<PathBuf> {
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
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!(
                "the crates of Cargo.lock could not be brought here; with a network, try 'cargo fetch --locked':\n{}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        step.done("unpacked");
        Ok(())
    })
}
