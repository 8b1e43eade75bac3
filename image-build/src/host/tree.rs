//! What lies in the host's root file system: the files that the recipe names, the libraries that they need, and our
//! agent. Nothing else gets in, so there is no shell, no interpreter, no package manager, and no file with a setuid bit.

use crate::{
    deb::{self, DebError},
    files::{self, FileError, failed},
    lock::Input,
};
use object::{
    LittleEndian,
    elf::{DT_NEEDED, FileHeader64},
    read::elf::{Dyn, FileHeader, ProgramHeader},
};
use release::Digest;
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Where the packages' libraries are, and where the loader looks for them.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// The loader in its package, and where programs name it.
const LOADER: (&str, &str) = ("usr/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2");
/// Whom the agent trusts for releases.
pub const TRUSTED: &str = "etc/redoubt/root.json";
/// The agent, PID 1.
pub const AGENT: &str = "usr/bin/host-os";
/// Folders on which something is mounted, or that PID 1 fills.
const MOUNT_POINTS: &[&str] = &["dev", "guest", "proc", "run", "state", "sys", "tmp"];

/// The root cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file or folder could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A package could not be read.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// The recipe, or a program, names a file that is in no package.
    #[error(
        "no locked package of the host's root has the file {0}; correct recipes/host.toml or renew the lock"
    )]
    NoFile(String),
    /// A broken program.
    #[error("{path} of {package} is no sound ELF file: {source}; renew the lock")]
    Elf {
        /// The file.
        path: String,
        /// Whose it is.
        package: String,
        /// Why.
        source: object::Error,
    },
    /// A program for another C library.
    #[error("{path} of {package} asks for the loader {loader}, which the root does not have")]
    Loader {
        /// The file.
        path: String,
        /// Whose it is.
        package: String,
        /// What it asks for.
        loader: String,
    },
}

/// Where a file comes from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// A package of the distribution.
    Package(&'a Input),
    /// This repository.
    Ours,
}

/// One file of the root.
#[derive(Debug)]
pub struct File<'a> {
    /// Where it comes from.
    pub origin: Origin<'a>,
    /// SHA-256 of its content.
    pub sha256: Digest,
    /// Length in bytes.
    pub size: u64,
    /// Whether it may be executed.
    pub executable: bool,
}

/// The files of a root, by path without a leading slash.
pub type Files<'a> = BTreeMap<String, File<'a>>;

/// Lays out the root in `root`. `packages` are unpacked, one by one, below `work`; `named` are the paths that the recipe
/// asks for.
pub fn lay_out<'a>(
    packages: &[(&'a Input, PathBuf)],
    named: impl IntoIterator<Item = &'a str>,
    agent: &Path,
    work: &Path,
    root: &Path,
) -> Result<Files<'a>, TreeError> {
    let named: Vec<&str> = named.into_iter().collect();
    let mut found: BTreeMap<String, (&Input, PathBuf)> = BTreeMap::new();
    for (index, (package, file)) in packages.iter().enumerate() {
        let place = work.join(index.to_string());
        files::make_folder(&place)?;
        let wanted = |path: &Path| {
            path.starts_with(LIBRARIES)
                || path == Path::new(LOADER.0)
                || named.iter().any(|n| path == Path::new(n))
        };
        deb::unpack(file, &place, wanted)?;
        collect(&place, &place, &mut |path, source| {
            found.insert(path, (package, source));
        })?;
    }
    let mut laid_out = Files::new();
    for folder in MOUNT_POINTS {
        files::make_folder(&root.join(folder))?;
    }
    let mut waiting: Vec<(String, String)> =
        named.iter().chain([&AGENT]).map(|n| ((*n).to_owned(), (*n).to_owned())).collect();
    while let Some((path, from)) = waiting.pop() {
        if laid_out.contains_key(&path) {
            continue;
        }
        let (origin, package, source) = match found.get(&from) {
            _ if from == AGENT => (Origin::Ours, "this repository", agent),
            Some((package, source)) => (Origin::Package(package), package.name.as_str(), source.as_path()),
            None => return Err(TreeError::NoFile(from)),
        };
        let content = place(root, &path, source, origin, &mut laid_out)?;
        let linked = linked(&content).map_err(|source| TreeError::Elf {
            path,
            package: package.to_owned(),
            source,
        })?;
        for library in linked.libraries {
            let path = format!("{LIBRARIES}/{library}");
            // The loader is also a library, under one name only.
            if !LOADER.0.ends_with(&library) {
                waiting.push((path.clone(), path));
            }
        }
        match linked.interpreter.as_deref().map(|path| path.trim_start_matches('/')) {
            None => {}
            Some(path) if path == LOADER.1 => waiting.push((LOADER.1.to_owned(), LOADER.0.to_owned())),
            Some(other) => {
                let (package, loader) = (package.to_owned(), other.to_owned());
                return Err(TreeError::Loader { path: from, package, loader });
            }
        }
    }
    Ok(laid_out)
}

/// Writes a file of our own that is no program.
pub fn own(root: &Path, path: &str, content: &[u8]) -> Result<File<'static>, FileError> {
    let target = root.join(path);
    if let Some(parent) = target.parent() {
        files::make_folder(parent)?;
    }
    files::write(&target, content)?;
    let (sha256, size) = (Digest::of(content), content.len() as u64);
    Ok(File { origin: Origin::Ours, sha256, size, executable: false })
}

/// Calls `each` with all files and links to files below `folder`: path below `top`, and the file itself.
fn collect(top: &Path, folder: &Path, each: &mut impl FnMut(String, PathBuf)) -> Result<(), FileError> {
    for path in files::list(folder)? {
        if path.is_dir() && !path.is_symlink() {
            collect(top, &path, each)?;
        } else if let (Ok(source), Ok(below)) = (path.canonicalize(), path.strip_prefix(top)) {
            // Links that lead into another package have no target here; what they name is found there.
            if source.is_file() && source.starts_with(top) {
                each(below.to_string_lossy().into_owned(), source);
            }
        }
    }
    Ok(())
}

/// Copies one file into the root, with a mode that depends on its content only.
fn place<'a>(
    root: &Path,
    path: &str,
    source: &Path,
    origin: Origin<'a>,
    laid_out: &mut Files<'a>,
) -> Result<Vec<u8>, FileError> {
    let content = files::read(source)?;
    let target = root.join(path);
    if let Some(folder) = target.parent() {
        files::make_folder(folder)?;
    }
    files::write(&target, &content)?;
    // Programs, and the loader, which the kernel executes for them. Libraries are only mapped.
    let executable = path.starts_with("usr/bin/") || path.starts_with("usr/sbin/") || path == LOADER.1;
    let mode = PermissionsExt::from_mode(if executable { 0o555 } else { 0o444 });
    std::fs::set_permissions(&target, mode).map_err(failed("set the mode of", &target))?;
    let file = File { origin, sha256: Digest::of(&content), size: content.len() as u64, executable };
    laid_out.insert(path.to_owned(), file);
    Ok(content)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Linked {
    libraries: Vec<String>,
    interpreter: Option<String>,
}

/// What a file is linked to: nothing unless it is ELF.
fn linked(content: &[u8]) -> object::Result<Linked> {
    if !content.starts_with(b"\x7fELF") {
        return Ok(Linked::default());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let header = FileHeader64::<LittleEndian>::parse(content)?;
    let mut linked = Linked::default();
    for segment in header.program_headers(LittleEndian, content)? {
        if let Some(path) = segment.interpreter(LittleEndian, content)? {
            linked.interpreter = Some(text(path));
        }
    }
    let sections = header.sections(LittleEndian, content)?;
    if let Some((entries, strings)) = sections.dynamic(LittleEndian, content)? {
        let strings = sections.strings(LittleEndian, content, strings)?;
        for entry in entries.iter().filter(|e| e.tag(LittleEndian) == DT_NEEDED) {
            linked.libraries.push(text(entry.string(LittleEndian, strings)?));
        }
    }
    Ok(linked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{deb::tests::package, lock::tests::input};

    #[test]
    fn what_this_test_is_linked_to_is_what_ldd_says() {
        let path = std::env::current_exe().unwrap();
        let found = linked(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(found.interpreter.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert!(found.libraries.contains(&"libc.so.6".to_owned()), "{found:?}");
        let ldd = std::process::Command::new("ldd").arg(&path).output().unwrap();
        let text = String::from_utf8(ldd.stdout).unwrap();
        for library in &found.libraries {
            assert!(text.contains(library), "{library}: {text}");
        }
        assert_eq!(linked(b"#!/bin/sh").unwrap(), Linked::default());
        linked(b"\x7fELF").unwrap_err();
    }

    #[test]
    fn only_named_files_and_their_libraries_come_in_without_their_setuid_bits() {
        let dir = tempfile::tempdir().unwrap();
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let libraries = linked(&program).unwrap().libraries;
        let paths: Vec<String> = libraries.iter().map(|name| format!("{LIBRARIES}/{name}")).collect();
        let mut content: Vec<(&str, &[u8])> =
            paths.iter().map(|path| (path.as_str(), &b"library"[..])).collect();
        content.extend([
            ("usr/bin/qemu", program.as_slice()),
            ("bin/sh", b"shell"),
            ("usr/lib/x86_64-linux-gnu/unneeded.so", b"library"),
            (LOADER.0, b"loader"),
        ]);
        let deb = dir.path().join("x.deb");
        std::fs::write(&deb, package(&content)).unwrap();
        let input = input("x", b"");
        let packages = [(&input, deb)];
        let lay = |named: &'static str| {
            let [work, root] = [tempfile::tempdir_in(&dir).unwrap(), tempfile::tempdir_in(&dir).unwrap()];
            let agent = std::env::current_exe().unwrap();
            let files = lay_out(&packages, [named], &agent, work.path(), root.path());
            files.map(|files| (files.into_keys().collect::<Vec<_>>(), root))
        };
        let (files, root) = lay("usr/bin/qemu").unwrap();
        let mut expected: Vec<String> =
            paths.iter().filter(|path| !path.contains("ld-linux")).cloned().collect();
        expected.extend([LOADER.1.to_owned(), AGENT.to_owned(), "usr/bin/qemu".to_owned()]);
        expected.sort();
        assert_eq!(files, expected);
        let mode =
            |path: &str| std::fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("usr/bin/qemu"), 0o555);
        assert_eq!(mode(&format!("{LIBRARIES}/libc.so.6")), 0o444);
        let error = lay("usr/bin/absent").unwrap_err().to_string();
        assert!(error.contains("usr/bin/absent"), "{error}");
    }
}
