//! The build root: locked packages, unpacked, and nothing else. No script of a package runs; the few things that
//! scripts would have set up are set up here.

use crate::{
    cache::{Cache, Key},
    deb,
    error::{ImageError, Result},
    fetch,
    files::{self, FileError, failed},
    inputs::Inputs,
    lock,
    step::Step,
};
use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// Folders that no compiler reads.
const LEFT_OUT: &[&str] =
    &["usr/share/doc", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man"];
/// What maintainer scripts (update-alternatives, base-files) would have linked.
const LINKS: &[(&str, &str)] = &[
    ("gcc", "usr/bin/cc"),
    ("g++", "usr/bin/c++"),
    ("mawk", "usr/bin/awk"),
    ("usr/bin", "bin"),
    ("usr/sbin", "sbin"),
    ("usr/lib", "lib"),
    ("usr/lib64", "lib64"),
];
/// Where a sandbox mounts things.
pub(crate) const MOUNT_POINTS: &[&str] =
    &["build", "dev", "firmware", "in", "out", "proc", "rust", "src", "target", "tmp", "vendor"];
/// Raised when the steps below change.
const METHOD: &str = "1";

/// An unpacked build root.
#[derive(Debug, Clone)]
pub struct BuildRoot {
    /// Its folder.
    pub path: PathBuf,
    /// Hash of all that is in it: part of the key of whatever is built in it.
    pub key: String,
}

/// The build root of the lock, unpacked if it is not in the cache.
pub fn open(cache: &Cache, inputs: &Inputs) -> Result<BuildRoot> {
    of_group(cache, inputs, lock::BUILD_ROOT)
}

/// The root that the packages of a group make, unpacked if it is not in the cache.
pub fn of_group(cache: &Cache, inputs: &Inputs, group: &str) -> Result<BuildRoot> {
    let packages = inputs.lock.group(group)?;
    let mut key = Key::default().with("method", METHOD);
    for package in &packages {
        key = key.with(&package.name, package.sha256.as_bytes());
    }
    let name = key.clone().finish();
    let path = cache.entry(group, key, |dir| {
        let step = Step::start(&format!("inputs of the {group}"), packages.len() as u64);
        let files = fetch::all(&inputs.store, &packages, &inputs.sources, &step)?;
        step.done("in the store");
        let step = Step::start(group, files.len() as u64);
        for file in &files {
            deb::unpack(file, dir, |path| !LEFT_OUT.iter().any(|left_out| path.starts_with(left_out)))?;
            step.tick();
        }
        set_up(dir)?;
        step.done("unpacked");
        Ok::<_, ImageError>(())
    })?;
    Ok(BuildRoot { path, key: name })
}

fn set_up(root: &Path) -> Result<(), FileError> {
    for (target, link) in LINKS {
        let link = root.join(link);
        if link.symlink_metadata().is_err() {
            symlink(target, &link).map_err(failed("make the link", &link))?;
        }
    }
    for folder in MOUNT_POINTS {
        files::make_folder(&root.join(folder))?;
    }
    files::write(&root.join("etc/passwd"), "build:x:1000:1000::/tmp:/bin/sh\n")?;
    files::write(&root.join("etc/group"), "build:x:1000:\n")?;
    files::write(&root.join("etc/hosts"), "127.0.0.1 localhost\n")
}
