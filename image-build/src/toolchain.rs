//! The Rust toolchain: the locked files out of the one that rustup installed, or out of a bundle, each checked.

use crate::{
    cache::{Cache, Key},
    files::FileError,
    inputs::Inputs,
    lock::{Rust, RustFile},
    recipe::RustRequest,
    step::Step,
    store,
};
use release::Digest;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The toolchain cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ToolchainError {
    /// The cache.
    #[error(transparent)]
    File(#[from] FileError),
    /// rustc does not run.
    #[error("cannot find Rust {version}: {why}; install it with 'rustup toolchain install {version}'")]
    Absent {
        /// Version in the lock.
        version: String,
        /// What rustup said.
        why: String,
    },
    /// A file of the lock is not there.
    #[error(
        "the Rust toolchain has no file {path}; reinstall it with 'rustup toolchain install {version} --force'"
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// Version in the lock.
        version: String,
    },
    /// A file was changed.
    #[error(
        "{path} of the Rust toolchain has SHA-256 {found}, the lock says {expected}: it was changed or is another build; \
         nothing was compiled with it. Reinstall it with 'rustup toolchain install {version} --force'"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// By the lock.
        expected: Digest,
        /// Found.
        found: Digest,
        /// Version in the lock.
        version: String,
    },
    /// Reading or writing failed.
    #[error("cannot copy {path} of the Rust toolchain: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Folder of the toolchain of this version that rustup installed.
pub fn installed(version: &str) -> Result<PathBuf, ToolchainError> {
    let absent = |why: String| ToolchainError::Absent { version: version.to_owned(), why };
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .env("RUSTUP_TOOLCHAIN", version)
        .output()
        .map_err(|error| absent(error.to_string()))?;
    if !output.status.success() {
        return Err(absent(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Folder of the toolchain in a bundle of inputs.
pub const BUNDLED: &str = "rust";

/// The locked files in a folder of the cache, each checked while it is copied. What else lies in the installed
/// toolchain is not there, so no compiler sees it.
pub fn open(cache: &Cache, inputs: &Inputs) -> Result<PathBuf, ToolchainError> {
    let rust = &inputs.lock.rust;
    let mut key = Key::default();
    for file in &rust.files {
        key = key.with(&file.path, file.sha256.as_bytes());
    }
    cache.entry("rust", key, |dir| {
        let step = Step::start("Rust toolchain", rust.files.len() as u64);
        let bundled = inputs.sources.directories.iter().map(|folder| folder.join(BUNDLED));
        let from = bundled.filter(|folder| folder.is_dir()).map(Ok).next();
        copy(&from.unwrap_or_else(|| installed(&rust.version))?, rust, dir, &step)?;
        step.done("checked");
        Ok(())
    })
}

/// Copies the locked files, and checks them.
pub fn copy(from: &Path, rust: &Rust, to: &Path, step: &Step) -> Result<(), ToolchainError> {
    for file in &rust.files {
        let (source, target) = (from.join(&file.path), to.join(&file.path));
        if !source.is_file() {
            return Err(ToolchainError::Missing { path: source, version: rust.version.clone() });
        }
        let io = |source| ToolchainError::Io { path: target.clone(), source };
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        std::fs::copy(&source, &target).map_err(io)?;
        // The copy is what is checked, because it is what runs.
        let (found, _) = store::hash_file(&target).map_err(io)?;
        if found != file.sha256 {
            let (expected, version) = (file.sha256, rust.version.clone());
            return Err(ToolchainError::Changed { path: source, expected, found, version });
        }
        step.tick();
    }
    Ok(())
}

/// The files of an installed toolchain that belong into the lock, by the lists that its installer left.
pub fn describe(folder: &Path, version: &str, request: &RustRequest) -> Result<Rust, ToolchainError> {
    let mut files = Vec::new();
    for component in &request.components {
        let list = folder.join(format!("lib/rustlib/manifest-{component}-x86_64-unknown-linux-gnu"));
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| ToolchainError::Io { path, source }
        };
        let text = std::fs::read_to_string(&list).map_err(io(&list))?;
        for path in text.lines().filter_map(|line| line.strip_prefix("file:")) {
            if request.skip.iter().any(|skip| path.starts_with(skip.as_str())) {
                continue;
            }
            let (sha256, _) = store::hash_file(&folder.join(path)).map_err(io(&folder.join(path)))?;
            files.push(RustFile { path: path.to_owned(), sha256 });
        }
    }
    files.sort();
    Ok(Rust { version: version.to_owned(), files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tampered_or_missing_file_is_named_and_unlisted_files_stay_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("bin")).unwrap();
        std::fs::write(from.join("bin/rustc"), b"rustc").unwrap();
        std::fs::write(from.join("bin/more"), b"more").unwrap();
        let rust = Rust {
            version: "1.95.0".into(),
            files: vec![RustFile { path: "bin/rustc".into(), sha256: Digest::of(b"rustc") }],
        };
        let step = Step::start("test", 0);
        copy(&from, &rust, &to, &step).unwrap();
        assert!(to.join("bin/rustc").is_file() && !to.join("bin/more").exists());

        std::fs::write(from.join("bin/rustc"), b"rustC").unwrap();
        let refused = copy(&from, &rust, &to, &step).unwrap_err();
        assert!(matches!(&refused, ToolchainError::Changed { .. }));
        assert!(refused.to_string().contains("bin/rustc"), "{refused}");
        std::fs::remove_file(from.join("bin/rustc")).unwrap();
        assert!(matches!(copy(&from, &rust, &to, &step), Err(ToolchainError::Missing { .. })));
    }
}
