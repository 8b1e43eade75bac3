//! Locked inputs (`inputs.lock`): everything from outside the repository, by content.

use release::Digest;
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// Name of the lock, below the crate's folder.
pub const FILE: &str = "inputs.lock";
/// Group of the packages that are unpacked into the build root.
pub const BUILD_ROOT: &str = "build-root";
/// Group of the packages that are unpacked into the root in which the host's agent is compiled.
pub const AGENT_ROOT: &str = "agent-root";
/// Group of the packages out of which the host's root is made.
pub const HOST_ROOT: &str = "host-root";
/// Group of the packages that are unpacked into the root of tools that pack images.
pub const IMAGE_TOOLS: &str = "image-tools";
/// Group of the stub of unified kernel images.
pub const UEFI_STUB: &str = "uefi-stub";
/// Group of the firmware of virtual machines that boot the host.
pub const UEFI: &str = "uefi";
/// Group of the kernel's source.
pub const LINUX_SOURCE: &str = "linux-source";
/// Group of the virtual profile's firmware.
pub const SEABIOS: &str = "seabios";
/// Group of the production profile's firmware source.
pub const EDK2: &str = "edk2";

/// The whole lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Debian release that the packages are from.
    pub release: String,
    /// Files of the distribution, sorted by group, name and pool path.
    #[serde(rename = "input")]
    pub inputs: Vec<Input>,
    /// The Rust toolchain.
    pub rust: Rust,
}

/// One file of the distribution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// What it is for: [`BUILD_ROOT`], [`LINUX_SOURCE`], ...
    pub group: String,
    /// Binary or source package.
    pub name: String,
    /// Exact version.
    pub version: String,
    /// `amd64`, `all` or `source`.
    pub arch: String,
    /// Path below a mirror's base address.
    pub pool: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the content: what makes it the locked file.
    pub sha256: Digest,
    /// SHA-1 of the content, hexadecimal: only the key under which the snapshot archive finds it.
    pub sha1: String,
}

impl Input {
    /// Name of the file, as mirrors have it.
    pub fn file_name(&self) -> &str {
        self.pool.rsplit('/').next().unwrap_or(&self.pool)
    }
}

/// The Rust toolchain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rust {
    /// Version, as in `rust-toolchain.toml`.
    pub version: String,
    /// Files below the toolchain's folder, sorted by path.
    #[serde(rename = "file")]
    pub files: Vec<RustFile>,
}

/// One file of the toolchain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RustFile {
    /// Path below the toolchain's folder.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: Digest,
}

/// The lock cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Not there.
    #[error("cannot read the locked inputs {path}: {source}; run this in a checkout of the repository")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a lock.
    #[error(
        "{path} is no valid lock: {reason}; take the file from the repository again, or renew it with 'redoubt image update-inputs'"
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Something needed is not in it.
    #[error(
        "the lock has no input '{0}', which the build needs; add it to inputs.toml and run 'redoubt image update-inputs'"
    )]
    Missing(String),
}

impl Lock {
    /// Reads the lock in a crate's folder.
    pub fn read(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| LockError::Unreadable { path: path.clone(), source })?;
        Self::parse(&text).map_err(|reason| LockError::Invalid { path, reason })
    }

    /// Reads a lock from its text; it must stand in the one form that [`Lock::to_text`] writes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lock: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for input in &lock.inputs {
            let plain = |text: &str, more: &str| {
                !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
            };
            let texts = [&input.group, &input.name, &input.version, &input.arch, &input.sha1];
            let hidden = input.pool.split('/').any(|part| part.is_empty() || part.starts_with('.'));
            if !texts.iter().all(|text| plain(text, "+-.:~")) || !plain(&input.pool, "+-.:~_/") || hidden {
                return Err(format!("the input '{}' has a field with unusual characters", input.name));
            }
        }
        for file in &lock.rust.files {
            if file.path.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
                return Err(format!("the toolchain's file '{}' is no plain relative path", file.path));
            }
        }
        if lock.to_text() != text {
            return Err("it is not in the form that update-inputs writes (edited by hand?)".to_owned());
        }
        Ok(lock)
    }

    /// The text of the lock: one line for each file, so that a renewal shows as few changed lines.
    pub fn to_text(&self) -> String {
        let mut inputs = self.inputs.clone();
        inputs.sort();
        let mut files = self.rust.files.clone();
        files.sort();
        let mut text = format!(
            "# Written by 'redoubt image update-inputs' from inputs.toml. Do not edit.\nrelease = {:?}\ninput = [\n",
            self.release
        );
        // Writing into a String cannot fail.
        for i in &inputs {
            let _ = writeln!(
                text,
                "    {{ group = {:?}, name = {:?}, version = {:?}, arch = {:?}, pool = {:?}, size = {}, sha256 = \"{}\", sha1 = {:?} }},",
                i.group, i.name, i.version, i.arch, i.pool, i.size, i.sha256, i.sha1
            );
        }
        let _ = writeln!(text, "]\n\n[rust]\nversion = {:?}\nfile = [", self.rust.version);
        for f in &files {
            let _ = writeln!(text, "    {{ path = {:?}, sha256 = \"{}\" }},", f.path, f.sha256);
        }
        text + "]\n"
    }

    /// The files of a group; at least one.
    pub fn group(&self, name: &str) -> Result<Vec<&Input>, LockError> {
        let found: Vec<&Input> = self.inputs.iter().filter(|input| input.group == name).collect();
        if found.is_empty() { Err(LockError::Missing(name.to_owned())) } else { Ok(found) }
    }

    /// SHA-256 of the lock's text.
    pub fn digest(&self) -> Digest {
        Digest::of(self.to_text().as_bytes())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An input with this content.
    pub(crate) fn input(name: &str, content: &[u8]) -> Input {
        Input {
            group: "test".into(),
            name: name.into(),
            version: "1.0-1".into(),
            arch: "all".into(),
            pool: format!("pool/main/x/{name}_1.0-1_all.deb"),
            size: content.len() as u64,
            sha256: Digest::of(content),
            sha1: crate::store::sha1(content),
        }
    }

    fn lock() -> Lock {
        Lock {
            release: "trixie".into(),
            inputs: vec![input("a", b"a"), input("b", b"b")],
            rust: Rust {
                version: "1.95.0".into(),
                files: vec![RustFile { path: "bin/rustc".into(), sha256: Digest::of(b"rustc") }],
            },
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let text = lock().to_text();
        assert_eq!(Lock::parse(&text), Ok(lock()));
        assert!(Lock::parse(&text.replace("1.0-1", "1.0-1 ")).unwrap_err().contains("unusual"));
        assert!(Lock::parse(&text.replace("pool/main/x/a", "pool/../x/a")).is_err());
        assert!(Lock::parse(&text.replace("bin/rustc", "../rustc")).unwrap_err().contains("relative"));
        assert!(Lock::parse(&(text.clone() + "# more\n")).unwrap_err().contains("by hand"));
        assert!(Lock::parse(&text.replace("group", "grupp")).is_err());
    }

    #[test]
    fn a_missing_entry_is_named() {
        let error = lock().group("edk2").unwrap_err();
        assert!(matches!(&error, LockError::Missing(name) if name == "edk2"));
        assert_eq!(lock().group("test").unwrap().len(), 2);
    }

    #[test]
    fn the_lock_of_this_repository_holds_what_the_recipes_need() {
        let lock = Lock::read(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        for group in
            [BUILD_ROOT, AGENT_ROOT, HOST_ROOT, IMAGE_TOOLS, LINUX_SOURCE, SEABIOS, EDK2, UEFI_STUB, UEFI]
        {
            lock.group(group).unwrap();
        }
        let toolchain = include_str!("../../rust-toolchain.toml");
        assert!(toolchain.contains(&format!("channel = \"{}\"", lock.rust.version)));
    }
}
