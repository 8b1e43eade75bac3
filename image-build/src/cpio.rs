//! A writer for the `newc` cpio archives that Linux unpacks as its initrd
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Everything that could differ between two builds is fixed: order, inode numbers, owner, times.

/// One entry of an archive.
pub struct Entry<'a> {
    /// Path without a leading slash.
    pub path: &'a str,
    /// What it is.
    pub kind: Kind<'a>,
}

/// Kinds of entries.
pub enum Kind<'a> {
    /// A directory, mode 0755.
    Directory,
    /// An executable, mode 0555.
    Executable(&'a [u8]),
    /// Any other file, mode 0444.
    File(&'a [u8]),
    /// A character device, mode 0600.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// A number does not fit into the format's 32 bits.
#[derive(Debug, thiserror::Error)]
#[error("a file for the initrd has 4 GiB or more, which its format cannot hold")]
pub struct TooLarge;

impl From<std::num::TryFromIntError> for TooLarge {
    fn from(_: std::num::TryFromIntError) -> Self {
        Self
    }
}

/// Writes the entries, sorted by path, and the trailer. Sizes above 4 GiB do not fit the format: such a
/// file is refused.
pub fn archive(entries: &mut [Entry]) -> Result<Vec<u8>, TooLarge> {
    entries.sort_by_key(|entry| entry.path.to_owned());
    let mut out = Vec::new();
    for (inode, entry) in entries.iter().enumerate() {
        let (mode, data, device): (u32, &[u8], (u32, u32)) = match entry.kind {
            Kind::Directory => (0o040_755, &[], (0, 0)),
            Kind::Executable(data) => (0o100_555, data, (0, 0)),
            Kind::File(data) => (0o100_444, data, (0, 0)),
            Kind::CharacterDevice { major, minor } => (0o020_600, &[], (major, minor)),
        };
        write(&mut out, u32::try_from(inode)? + 1, entry.path, mode, data, device)?;
    }
    write(&mut out, 0, "TRAILER!!!", 0, &[], (0, 0))?;
    Ok(out)
}

fn write(
    out: &mut Vec<u8>,
    inode: u32,
    name: &str,
    mode: u32,
    data: &[u8],
    rdev: (u32, u32),
) -> Result<(), TooLarge> {
    let links = if mode & 0o040_000 != 0 { 2 } else { 1 };
    let size = u32::try_from(data.len())?;
    let name_size = u32::try_from(name.len() + 1)?;
    // magic, then ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    out.extend_from_slice(b"070701");
    for field in [inode, mode, 0, 0, links, 0, size, 0, 0, rdev.0, rdev.1, name_size, 0] {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn sample() -> Vec<u8> {
        archive(&mut [
            Entry { path: "init", kind: Kind::Executable(b"program") },
            Entry { path: "dev", kind: Kind::Directory },
            Entry { path: "dev/console", kind: Kind::CharacterDevice { major: 5, minor: 1 } },
        ])
        .unwrap()
    }

    #[test]
    fn gnu_cpio_reads_what_we_write() {
        let Ok(mut cpio) = std::process::Command::new("cpio")
            .args(["-t", "-v", "--quiet", "-n"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        else {
            // Past what captures the output of tests.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no cpio program to compare with");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let listing = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = listing.lines().collect();
        assert_eq!(lines.len(), 3, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with("dev"), "{listing}");
        assert!(lines[1].starts_with("crw-------") && lines[1].contains("5,   1"), "{listing}");
        assert!(lines[2].starts_with("-r-xr-xr-x") && lines[2].contains(" 7 "), "{listing}");
    }

    #[test]
    fn the_order_of_the_entries_does_not_matter() {
        let shuffled = archive(&mut [
            Entry { path: "dev/console", kind: Kind::CharacterDevice { major: 5, minor: 1 } },
            Entry { path: "init", kind: Kind::Executable(b"program") },
            Entry { path: "dev", kind: Kind::Directory },
        ])
        .unwrap();
        assert_eq!(shuffled, sample());
    }
}
