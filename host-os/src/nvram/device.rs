//! NVDIMMs as the kernel has them (Linux, Documentation/driver-api/nvdimm/nvdimm.rst): found, and made directly usable.
//!
//! A module without anything on it is a "raw" namespace. Mapping it directly needs a namespace of mode devdax, which is made here
//! by what `ndctl create-namespace --mode=devdax` writes to sysfs. A module that holds anything else is left alone.

use super::NvramError;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes at the beginning of a module that have to be zero before it is taken: partition tables, file systems and the kernel's own
/// descriptions lie in them.
const LOOKED_AT: usize = 1 << 20;

/// An NVDIMM that can be mapped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nvdimm {
    /// The device.
    pub device: PathBuf,
    /// The folder that describes it, and the name by which its number leads there; QEMU looks for its size.
    pub described: Vec<PathBuf>,
    /// Identifier that is written on it.
    pub uuid: String,
    /// Bytes that can be mapped.
    pub bytes: u64,
}

/// Where the kernel shows its devices; elsewhere in tests.
#[derive(Debug, Clone)]
pub struct System {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl System {
    /// Of the running kernel.
    pub fn this() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into() }
    }

    fn nd(&self, name: &str) -> PathBuf {
        self.sys.join("bus/nd/devices").join(name)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NvramError {
    let path = path.to_owned();
    move |source| NvramError::Io { action, path, source }
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn names(folder: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// The NVDIMMs that can be mapped. Other memory that the kernel offers in the same way (HBM, CXL) has no identifier.
pub fn scan(system: &System) -> Vec<Nvdimm> {
    let one = |name: &String| {
        let link = system.sys.join("bus/dax/devices").join(name);
        let folder = link.canonicalize().ok()?;
        let uuid =
            folder.ancestors().find_map(|above| text(above.join("uuid"))).filter(|uuid| is_uuid(uuid))?;
        let bytes = text(folder.join("size"))?.parse().ok()?;
        let number = system.sys.join("dev/char").join(text(folder.join("dev"))?);
        Some(Nvdimm { device: system.dev.join(name), described: vec![folder, number], uuid, bytes })
    };
    names(system.sys.join("bus/dax/devices")).iter().filter_map(one).collect()
}

/// Makes modules that have nothing on them usable, and returns all that are.
pub fn prepare(system: &System) -> Result<Vec<Nvdimm>, NvramError> {
    for namespace in names(system.sys.join("bus/nd/devices")) {
        if !namespace.starts_with("namespace") || !is_free(system, &namespace) {
            continue;
        }
        match is_blank(system, &namespace) {
            Ok(true) => make(system, &namespace)?,
            Ok(false) => tracing::warn!(
                namespace,
                "an NVDIMM holds something else and is not used; to use it, erase it with `ndctl destroy-namespace`"
            ),
            Err(error) => tracing::warn!(namespace, %error, "an NVDIMM cannot be read and is not used"),
        }
    }
    Ok(scan(system))
}

/// A raw namespace that nothing has claimed.
fn is_free(system: &System, namespace: &str) -> bool {
    let attribute = |name: &str| text(system.nd(namespace).join(name)).unwrap_or_default();
    attribute("mode") == "raw"
        && attribute("holder").is_empty()
        && attribute("size").parse::<u64>().is_ok_and(|size| size >= super::LEAST)
}

/// Nothing is written where descriptions are.
fn is_blank(system: &System, namespace: &str) -> io::Result<bool> {
    let disks = names(system.nd(namespace).join("block"));
    let Some(disk) = disks.first() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the kernel has no block device for it"));
    };
    let mut beginning = vec![0xff; LOOKED_AT];
    File::open(system.dev.join(disk))?.read_exact(&mut beginning)?;
    Ok(beginning.iter().all(|byte| *byte == 0))
}

/// Makes a devdax namespace of a raw one: its description in RAM, so that all but the first megabytes can be mapped.
fn make(system: &System, namespace: &str) -> Result<(), NvramError> {
    let drivers = system.sys.join("bus/nd/drivers");
    let folder = system.nd(namespace);
    let folder = folder.canonicalize().map_err(failed("find", &folder))?;
    let region = folder.parent().unwrap_or(&folder);
    let seed = text(region.join("dax_seed")).filter(|seed| seed.starts_with("dax")).ok_or_else(|| {
        let none = io::Error::new(io::ErrorKind::NotFound, "the kernel has no driver for devdax");
        failed("use", region)(none)
    })?;
    let write = |path: PathBuf, value: &str| fs::write(&path, value).map_err(failed("write to", &path));
    // It was taken as a block device.
    if folder.join("driver").exists() {
        write(drivers.join("nd_pmem/unbind"), namespace)?;
    }
    let device = system.nd(&seed);
    write(device.join("mode"), "ram")?;
    write(device.join("uuid"), &uuid().map_err(failed("name", &device))?)?;
    write(device.join("namespace"), namespace)?;
    write(drivers.join("dax_pmem/bind"), &seed)?;
    tracing::info!(namespace, device = seed, "an NVDIMM is made usable");
    Ok(())
}

/// A random identifier (RFC 9562, version 4).
fn uuid() -> io::Result<String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let digits = hex::encode(id);
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    Ok(parts.join("-"))
}

/// Overwrites the first `bytes` of a device that can only be mapped.
pub(super) fn blank(device: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(device)?;
    crate::sys::zero_mapped(&file, bytes)
}

/// The same, and whether only zeros come back.
pub(crate) fn erase(device: &Path, bytes: u64) -> io::Result<bool> {
    let file = File::options().read(true).write(true).open(device)?;
    crate::sys::zero_mapped(&file, bytes)?;
    crate::sys::is_zero_mapped(&file, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A kernel's tree with one raw module on which `content` is.
    fn system(dir: &Path, content: &[u8]) -> System {
        let region = dir.join("sys/devices/ndbus0/region0");
        let namespace = region.join("namespace0.0");
        let system = System { sys: dir.join("sys"), dev: dir.join("dev") };
        for folder in [
            namespace.join("block/pmem0"),
            region.join("dax0.0"),
            dir.join("sys/bus/nd/devices"),
            dir.join("sys/bus/dax/devices"),
            dir.join("sys/bus/nd/drivers/nd_pmem"),
            dir.join("sys/bus/nd/drivers/dax_pmem"),
            dir.join("dev"),
        ] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(namespace.join("mode"), "raw\n").unwrap();
        fs::write(namespace.join("holder"), "\n").unwrap();
        fs::write(namespace.join("size"), format!("{}\n", 1 << 30)).unwrap();
        fs::write(namespace.join("driver"), "").unwrap();
        fs::write(region.join("dax_seed"), "dax0.0\n").unwrap();
        symlink(&namespace, system.nd("namespace0.0")).unwrap();
        symlink(region.join("dax0.0"), system.nd("dax0.0")).unwrap();
        fs::write(dir.join("dev/pmem0"), content).unwrap();
        system
    }

    #[test]
    fn a_blank_module_is_made_usable_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let system = system(dir.path(), &vec![0; 2 << 20]);
        assert_eq!(prepare(&system).unwrap(), []);
        let read = |path: &str| fs::read_to_string(dir.path().join("sys").join(path)).unwrap();
        assert_eq!(read("bus/nd/drivers/nd_pmem/unbind"), "namespace0.0");
        assert_eq!(read("bus/nd/drivers/dax_pmem/bind"), "dax0.0");
        assert_eq!(read("bus/nd/devices/dax0.0/namespace"), "namespace0.0");
        assert!(is_uuid(&read("bus/nd/devices/dax0.0/uuid")));

        for (at, whose) in [(1080, "a file system"), (4096, "a label of ndctl"), ((1 << 20) - 1, "something")]
        {
            let dir = tempfile::tempdir().unwrap();
            let mut content = vec![0; 2 << 20];
            content[at] = 1;
            let system = self::system(dir.path(), &content);
            assert_eq!(prepare(&system).unwrap(), [], "{whose}");
            assert!(!dir.path().join("sys/bus/nd/drivers/dax_pmem/bind").exists(), "{whose} is lost");
        }
    }

    #[test]
    fn what_is_claimed_or_too_small_is_left_alone_and_a_kernel_without_driver_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let system = system(dir.path(), &vec![0; 2 << 20]);
        for (name, value) in [("mode", "devdax"), ("holder", "dax0.0"), ("size", "1024"), ("size", "x")] {
            let path = system.nd("namespace0.0").join(name);
            let before = fs::read(&path).unwrap();
            fs::write(&path, value).unwrap();
            assert!(!is_free(&system, "namespace0.0"), "{name} = {value}");
            fs::write(&path, before).unwrap();
        }
        fs::write(dir.path().join("sys/devices/ndbus0/region0/dax_seed"), "\n").unwrap();
        assert_eq!(prepare(&system).unwrap_err().code(), "nvdimm-unusable");
        assert_eq!(scan(&System { sys: "/no such".into(), dev: "/no such".into() }), []);
    }

    #[test]
    fn a_module_is_known_by_its_identifier() {
        let dir = tempfile::tempdir().unwrap();
        let system = system(dir.path(), &[]);
        fs::write(system.nd("namespace0.0").join("mode"), "devdax\n").unwrap();
        let (above, below) = (dir.path().join("sys/devices/ndbus0/region0/dax0.0"), "dax0.0");
        fs::create_dir(above.join(below)).unwrap();
        let folder = above.join(below).canonicalize().unwrap();
        fs::write(folder.join("size"), "536870912\n").unwrap();
        fs::write(folder.join("dev"), "252:0\n").unwrap();
        symlink(&folder, dir.path().join("sys/bus/dax/devices/dax0.0")).unwrap();
        assert_eq!(scan(&system), [], "memory without an identifier is no NVDIMM");
        let id = uuid().unwrap();
        fs::write(above.join("uuid"), format!("{id}\n")).unwrap();
        let found = prepare(&system).unwrap();
        assert_eq!((found[0].uuid.as_str(), found[0].bytes), (id.as_str(), 1 << 29));
        assert_eq!(found[0].described, [folder, system.sys.join("dev/char/252:0")]);
        assert_eq!(found[0].device, system.dev.join("dax0.0"));
    }

    #[test]
    fn what_is_not_erased_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![0; 1 << 20]).unwrap();
        let device = File::options().read(true).write(true).open(file.path()).unwrap();
        assert!(crate::sys::is_zero_mapped(&device, 1 << 20).unwrap());
        std::os::unix::fs::FileExt::write_at(&device, &[1], (1 << 20) - 1).unwrap();
        assert!(!crate::sys::is_zero_mapped(&device, 1 << 20).unwrap());
        assert!(erase(file.path(), 1 << 20).unwrap());
    }

    #[test]
    fn what_is_mapped_is_erased() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![7; 3 << 20]).unwrap();
        blank(file.path(), 2 << 20).unwrap();
        let content = fs::read(file.path()).unwrap();
        assert!(
            content[..2 << 20].iter().all(|byte| *byte == 0)
                && content[2 << 20..].iter().all(|byte| *byte == 7)
        );
    }
}
