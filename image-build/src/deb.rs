//! Reading Debian binary packages: an `ar` archive with a compressed tarball in it (deb(5)).

use std::{
    fs::File,
    io::{self, Read, Take},
    path::{Component, Path, PathBuf},
};

/// A package cannot be read or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// Reading or writing failed.
    #[error("cannot unpack {path}: {source}")]
    Io {
        /// The package, or the file that was to be written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a package.
    #[error("{path} is no Debian package: {what}")]
    Format {
        /// The package.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A file is not in the package.
    #[error("{path} holds no file {member}")]
    NoMember {
        /// The package.
        path: PathBuf,
        /// The file.
        member: String,
    },
}

type Data = tar::Archive<Box<dyn Read>>;

/// The tarball with the package's files.
fn data(path: &Path) -> Result<Data, DebError> {
    let io = |source| DebError::Io { path: path.to_owned(), source };
    let wrong = |what| DebError::Format { path: path.to_owned(), what };
    let mut file = File::open(path).map_err(io)?;
    let mut magic = [0; 8];
    file.read_exact(&mut magic).map_err(io)?;
    if &magic != b"!<arch>\n" {
        return Err(wrong("it does not begin as an ar archive"));
    }
    loop {
        // name[16] date[12] uid[6] gid[6] mode[8] size[10] end[2]
        let mut header = [0; 60];
        file.read_exact(&mut header).map_err(|_| wrong("it has no data.tar"))?;
        let text = |range: std::ops::Range<usize>| {
            std::str::from_utf8(&header[range]).map_or("", str::trim).trim_end_matches('/').to_owned()
        };
        let size: u64 = text(48..58).parse().map_err(|_| wrong("a member has no size"))?;
        let name = text(0..16);
        if let Some(packing) = name.strip_prefix("data.tar") {
            let reader = unpacked(packing, file.take(size)).map_err(io)?;
            return Ok(tar::Archive::new(
                reader.ok_or_else(|| wrong("its data.tar is packed in an unknown way"))?,
            ));
        }
        io::copy(&mut (&mut file).take(size + size % 2), &mut io::sink()).map_err(io)?;
    }
}

fn unpacked(packing: &str, file: Take<File>) -> io::Result<Option<Box<dyn Read>>> {
    Ok(Some(match packing {
        ".xz" => Box::new(liblzma::read::XzDecoder::new(file)),
        ".zst" => Box::new(zstd::Decoder::new(file)?),
        ".gz" => Box::new(flate2::read::GzDecoder::new(file)),
        "" => Box::new(file),
        _ => return Ok(None),
    }))
}

/// The path of an entry below the root, with the four top folders of old where they are now (`bin` in `usr/bin`...);
/// `None` for the root itself and for anything that leaves it.
fn place(path: &Path) -> Option<PathBuf> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part),
            _ => return None,
        }
    }
    let first = parts.first()?.to_str()?;
    let merged = parts.len() > 1 && matches!(first, "bin" | "sbin" | "lib" | "lib64");
    let usr = merged.then_some(std::ffi::OsStr::new("usr"));
    Some(usr.into_iter().chain(parts).collect())
}

/// Unpacks the files that `keep` wants, by their path below the root. Owners and setuid bits are left out: all files
/// belong to whoever unpacks. No script of the package runs.
pub fn unpack(package: &Path, root: &Path, keep: impl Fn(&Path) -> bool) -> Result<(), DebError> {
    let mut data = data(package)?;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| DebError::Io { path, source }
    };
    for entry in data.entries().map_err(io(package))? {
        let mut entry = entry.map_err(io(package))?;
        let Some(path) = place(&entry.path().map_err(io(package))?) else { continue };
        if !keep(&path) {
            continue;
        }
        let target = root.join(&path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(io(parent))?;
        }
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            std::fs::create_dir_all(&target).map_err(io(&target))?;
        } else if kind.is_hard_link() {
            let link = entry.link_name().map_err(io(package))?;
            let original = link.and_then(|link| place(&link)).ok_or_else(|| DebError::Format {
                path: package.to_owned(),
                what: "a hard link leads nowhere",
            })?;
            std::fs::hard_link(root.join(original), &target).map_err(io(&target))?;
        } else {
            entry.set_preserve_mtime(true);
            entry.set_mask(0o6000);
            entry.unpack(&target).map_err(io(&target))?;
        }
    }
    Ok(())
}

/// Reads one file of a package, by its path without a leading slash.
pub fn member<T>(
    package: &Path,
    member: &str,
    read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> Result<T, DebError> {
    let mut data = data(package)?;
    let io = |source| DebError::Io { path: package.to_owned(), source };
    for entry in data.entries().map_err(io)? {
        let mut entry = entry.map_err(io)?;
        if place(&entry.path().map_err(io)?).as_deref() == Some(Path::new(member)) {
            return read(&mut entry).map_err(io);
        }
    }
    Err(DebError::NoMember { path: package.to_owned(), member: member.to_owned() })
}

/// The whole content of one file of a package.
pub fn content(package: &Path, member: &str) -> Result<Vec<u8>, DebError> {
    let mut content = Vec::new();
    self::member(package, member, |from| from.read_to_end(&mut content))?;
    Ok(content)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A package with these files.
    pub(crate) fn package(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o4755);
            // Written raw: the builder would refuse the paths of an attacker.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            tar.append(&header, *content).unwrap();
        }
        let data = zstd::bulk::compress(&tar.into_inner().unwrap(), 1).unwrap();
        let mut out = b"!<arch>\n".to_vec();
        for (name, content) in
            [("debian-binary", &b"2.0\n"[..]), ("control.tar", b"odd"), ("data.tar.zst", &data)]
        {
            out.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", content.len()).bytes(),
            );
            out.extend(content);
            out.resize(out.len().next_multiple_of(2), b'\n');
        }
        out
    }

    #[test]
    fn files_land_below_the_root_without_setuid_and_nothing_lands_outside() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (deb, root) = (dir.path().join("x.deb"), dir.path().join("root"));
        std::fs::write(&deb, package(&[("./bin/a", b"A"), ("usr/doc/b", b"B"), ("../outside", b"C")]))
            .unwrap();
        unpack(&deb, &root, |path| !path.starts_with("usr/doc")).unwrap();
        assert_eq!(std::fs::read(root.join("usr/bin/a")).unwrap(), b"A");
        let mode = std::fs::metadata(root.join("usr/bin/a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert!(!root.join("usr/doc").exists());
        assert!(!dir.path().join("outside").exists());
        let read = |r: &mut dyn Read| {
            let mut text = String::new();
            r.read_to_string(&mut text).map(|_| text)
        };
        assert_eq!(member(&deb, "usr/doc/b", read).unwrap(), "B");
        assert!(matches!(member(&deb, "usr/doc/c", read), Err(DebError::NoMember { .. })));
    }

    #[test]
    fn broken_packages_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let deb = dir.path().join("x.deb");
        let whole = package(&[("a", b"A")]);
        for broken in [&b""[..], b"!<arch>\n", b"other magic", &whole[..100], &whole[..whole.len() - 20]] {
            std::fs::write(&deb, broken).unwrap();
            unpack(&deb, &dir.path().join("root"), |_| true).unwrap_err();
        }
    }
}
