//! Reading and writing files, with errors that name them.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A file or folder could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {source}")]
pub struct FileError {
    /// What was to be done with it.
    pub doing: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// Makes the error of an operation on a path, for `map_err`.
pub(crate) fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError { doing, path: path.to_owned(), source }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(failed("read", path))
}

pub(crate) fn text(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(failed("read", path))
}

pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), FileError> {
    std::fs::write(path, content).map_err(failed("write", path))
}

/// Copies a file, its mode too.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    std::fs::copy(from, to).map(drop).map_err(failed("copy", from))
}

/// Makes a folder with those above it.
pub(crate) fn make_folder(path: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(path).map_err(failed("make the folder", path))
}

/// A folder below `folder` for intermediate files, with these folders in it; it goes away with the value.
pub(crate) fn work<const N: usize>(
    folder: &Path,
    names: [&str; N],
) -> Result<(tempfile::TempDir, [PathBuf; N]), FileError> {
    let work = tempfile::tempdir_in(folder).map_err(failed("make a folder in", folder))?;
    let folders = names.map(|name| work.path().join(name));
    for folder in &folders {
        make_folder(folder)?;
    }
    Ok((work, folders))
}

/// Removes a folder of intermediate files.
pub(crate) fn close(work: tempfile::TempDir) -> Result<(), FileError> {
    let path = work.path().to_owned();
    work.close().map_err(failed("remove", &path))
}

/// The entries of a folder, sorted by name: what is made of them must not depend on the file system's order.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = std::fs::read_dir(folder).map_err(failed("read", folder))?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()
        .map_err(failed("read", folder))?;
    paths.sort();
    Ok(paths)
}

/// Keeps the file, and its time, when its content is right already; otherwise replaces it whole.
pub(crate) fn write_if_changed(path: &Path, content: &[u8]) -> Result<(), FileError> {
    if std::fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let draft = path.with_extension("draft");
    write(&draft, content)?;
    std::fs::rename(&draft, path).map_err(failed("replace", path))
}
