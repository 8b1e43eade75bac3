//! Finding devices in sysfs. Every function takes the directory where sysfs is mounted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A device that the guest needs is missing or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It is not there.
    #[error("no {what} found; start the guest with {fix}")]
    Missing {
        /// What was looked for.
        what: String,
        /// What the host must provide.
        fix: String,
    },
    /// It cannot be used.
    #[error("using {what} at {path} failed: {source}; check how the host provides it")]
    Unusable {
        /// What was looked for.
        what: &'static str,
        /// Where it was found.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Entries of a directory of sysfs in a fixed order; none when it does not exist (the driver has no device).
fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Whether a file of sysfs holds this text.
fn holds(file: &Path, text: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|content| content.trim_end() == text)
}

/// Name below /dev of the first entry of `class` whose `attribute` holds `value`.
fn named(sys: &Path, class: &str, attribute: &str, value: &str) -> Option<PathBuf> {
    let path = entries(&sys.join(class)).into_iter().find(|path| holds(&path.join(attribute), value))?;
    Some(Path::new("/dev").join(path.file_name()?))
}

fn open(what: &'static str, path: PathBuf) -> Result<File, DeviceError> {
    OpenOptions::new().read(true).write(true).open(&path).map_err(|source| DeviceError::Unusable {
        what,
        path,
        source,
    })
}

/// Opens the virtio-serial port with this name.
pub fn open_port(sys: &Path, name: &str) -> Result<File, DeviceError> {
    let path = named(sys, "class/virtio-ports", "name", name).ok_or_else(|| DeviceError::Missing {
        what: format!("virtio-serial port {name:?}"),
        fix: format!("-device virtserialport,name={name}"),
    })?;
    open("the virtio-serial port", path)
}

/// Opens the virtio disk with this serial number.
pub fn open_disk(sys: &Path, serial: &str) -> Result<File, DeviceError> {
    let path = named(sys, "block", "serial", serial).ok_or_else(|| DeviceError::Missing {
        what: format!("virtio disk with serial {serial:?}"),
        fix: format!("-device virtio-blk-pci,serial={serial}"),
    })?;
    open("the virtio disk", path)
}

/// The shared-memory BAR that is the guest's NVRAM: BAR 2 of an ivshmem device (1af4:1110).
#[derive(Debug)]
pub struct Nvram {
    /// The BAR, for mmap(2).
    pub bar: File,
    /// Its size in bytes.
    pub size: u64,
    /// Whether a mapping is write-combining; without, each store goes out on its own.
    pub write_combining: bool,
}

/// Enables the device and opens its BAR.
pub fn open_nvram(sys: &Path) -> Result<Nvram, DeviceError> {
    let device = entries(&sys.join("bus/pci/devices"))
        .into_iter()
        .find(|path| holds(&path.join("vendor"), "0x1af4") && holds(&path.join("device"), "0x1110"))
        .ok_or_else(|| DeviceError::Missing {
            what: "NVRAM (PCI device 1af4:1110)".into(),
            fix: "-object memory-backend-file,share=on,... -device ivshmem-plain,memdev=...".into(),
        })?;
    let what = "the NVRAM";
    let enable = device.join("enable");
    fs::write(&enable, "1").map_err(|source| DeviceError::Unusable { what, path: enable, source })?;
    let combining = device.join("resource2_wc");
    let write_combining = combining.exists();
    let path = if write_combining { combining } else { device.join("resource2") };
    let bar = open(what, path.clone())?;
    match bar.metadata() {
        Ok(metadata) => Ok(Nvram { bar, size: metadata.len(), write_combining }),
        Err(source) => Err(DeviceError::Unusable { what, path, source }),
    }
}

/// Index and name of the first Ethernet interface.
pub fn first_interface(sys: &Path) -> Result<(u32, String), DeviceError> {
    const ARPHRD_ETHER: &str = "1";
    entries(&sys.join("class/net"))
        .into_iter()
        .filter(|path| holds(&path.join("type"), ARPHRD_ETHER))
        .find_map(|path| {
            let index = fs::read_to_string(path.join("ifindex")).ok()?.trim_end().parse().ok()?;
            Some((index, path.file_name()?.to_str()?.to_owned()))
        })
        .ok_or_else(|| DeviceError::Missing {
            what: "Ethernet interface".into(),
            fix: "-device virtio-net-pci".into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        directory
    }

    #[test]
    fn ports_and_disks_are_found_by_their_names_not_their_order() {
        let sys = sysfs(&[
            ("class/virtio-ports/vport1p1/name", "redoubt.psp\n"),
            ("class/virtio-ports/vport1p2/name", "redoubt.host\n"),
            ("block/loop0/size", "0\n"),
            ("block/vda/serial", "other"),
            ("block/vdb/serial", "redoubt-disk\n"),
        ]);
        let port = named(sys.path(), "class/virtio-ports", "name", "redoubt.host");
        assert_eq!(port.unwrap(), Path::new("/dev/vport1p2"));
        assert_eq!(named(sys.path(), "block", "serial", "redoubt-disk").unwrap(), Path::new("/dev/vdb"));
        assert!(matches!(open_port(sys.path(), "redoubt"), Err(DeviceError::Missing { .. })));
    }

    #[test]
    fn nvram_is_enabled_and_the_write_combining_bar_is_preferred() {
        let device = "bus/pci/devices/0000:00:04.0";
        let files: Vec<(String, &str)> = [
            ("vendor", "0x1af4\n"),
            ("device", "0x1110\n"),
            ("enable", "0\n"),
            ("resource2", "0123456789"),
            ("resource2_wc", "0123456789"),
        ]
        .into_iter()
        .map(|(file, content)| (format!("{device}/{file}"), content))
        .collect();
        let mut files: Vec<(&str, &str)> =
            files.iter().map(|(path, content)| (path.as_str(), *content)).collect();
        files.push(("bus/pci/devices/0000:00:03.0/vendor", "0x1af4\n"));
        let sys = sysfs(&files);
        let nvram = open_nvram(sys.path()).unwrap();
        assert_eq!((nvram.size, nvram.write_combining), (10, true));
        assert_eq!(fs::read_to_string(sys.path().join(device).join("enable")).unwrap(), "1");

        fs::remove_file(sys.path().join(device).join("resource2_wc")).unwrap();
        assert!(!open_nvram(sys.path()).unwrap().write_combining);
        fs::remove_file(sys.path().join(device).join("resource2")).unwrap();
        assert!(matches!(open_nvram(sys.path()), Err(DeviceError::Unusable { .. })));
        assert!(matches!(open_nvram(Path::new("/nonexistent")), Err(DeviceError::Missing { .. })));
    }

    #[test]
    fn loopback_and_tunnels_are_no_ethernet_interfaces() {
        let sys = sysfs(&[
            ("class/net/lo/type", "772\n"),
            ("class/net/lo/ifindex", "1\n"),
            ("class/net/aaa/type", "776\n"),
            ("class/net/aaa/ifindex", "3\n"),
            ("class/net/eth0/type", "1\n"),
            ("class/net/eth0/ifindex", "2\n"),
        ]);
        assert_eq!(first_interface(sys.path()).unwrap(), (2, "eth0".into()));
    }
}
