//! Taking a probe of this machine: procfs, sysfs, a few system calls, and QEMU's own words.
//!
//! Nothing here fails: what cannot be found out stays unknown.

use super::{Cpu, Directory, MAX_ITEMS, MAX_TEXT, Memory, Probe, Qemu, printable};
use nix::sys::{
    statfs::{FsType, TMPFS_MAGIC, statfs},
    statvfs::statvfs,
    utsname::uname,
};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

/// More than /proc/cpuinfo has on 512 threads, and than QEMU's list of devices; nothing longer is read.
const MAX_READ: u64 = 4 << 20;
/// Name in `PATH` of the QEMU that runs guests.
const QEMU: &str = "qemu-system-x86_64";
/// `statfs` type of ramfs (include/uapi/linux/magic.h).
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Probes this machine. `directory` is where the node keeps its state; if it does not exist yet, its nearest
/// existing parent is judged. Makes (and removes) a small file there and runs QEMU three times for its version
/// and lists.
pub fn this_machine(directory: &Path) -> Probe {
    let names = uname().ok();
    let text = |text: &std::ffi::OsStr| clean(&text.to_string_lossy());
    Probe {
        cpu: Cpu {
            architecture: names.as_ref().map(|names| text(names.machine())),
            ..cpuinfo(&read("/proc/cpuinfo").unwrap_or_default())
        },
        memory: meminfo(&read("/proc/meminfo").unwrap_or_default()),
        directory: probe_directory(directory),
        qemu: probe_qemu(),
        kvm_device: Some(OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()),
        nvdimm_bytes: sizes("/sys/bus/nd/devices", "size", |name| name.starts_with("namespace"))
            .map(|sizes| sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size))),
        // Block sizes in sysfs count sectors of 512 bytes, whatever the drive's own are.
        nvme_bytes: sizes("/sys/block", "size", is_nvme_drive)
            .map(|sectors| sectors.iter().map(|count| count.saturating_mul(512)).collect()),
        nic_mbps: sizes("/sys/class/net", "speed", |name| {
            // Only physical interfaces have a device behind them.
            Path::new("/sys/class/net").join(name).join("device").exists()
        }),
        tpm: probe_tpm(),
        secure_boot: probe_secure_boot(),
        snp_enabled: or_absent(read("/sys/module/kvm_amd/parameters/sev_snp"), "N")
            .map(|on| on.trim() == "Y"),
        kernel_release: names.as_ref().map(|names| text(names.release())),
        clock_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs()),
    }
}

fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_READ).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A file that does not exist says as much as one with `absent` in it; other errors say nothing.
fn or_absent(read: io::Result<String>, absent: &str) -> Option<String> {
    match read {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(absent.to_owned()),
        Err(_) => None,
    }
}

/// Makes a text fit for [`Probe::from_json`].
fn clean(text: &str) -> String {
    text.trim().bytes().take(MAX_TEXT).map(|b| if printable(b) { char::from(b) } else { '?' }).collect()
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    words.take(MAX_ITEMS).map(clean).collect()
}

/// The numbers in `DIR/NAME/FILE` for each accepted name, in order of the names; empty if there is no DIR.
fn sizes(directory: &str, file: &str, accept: impl Fn(&str) -> bool) -> Option<Vec<u64>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Vec::new()),
        Err(_) => return None,
    };
    let names: BTreeSet<_> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| accept(name))
        .take(MAX_ITEMS)
        .collect();
    // A link that is down has speed -1 or none at all; it is left out.
    let number = |name| read(Path::new(directory).join(name).join(file)).ok()?.trim().parse().ok();
    Some(names.iter().filter_map(number).collect())
}

/// `nvme0n1`, but not the hidden `nvme0c0n1` of a multipath controller.
fn is_nvme_drive(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix("nvme")
        .and_then(|rest| rest.split_once('n'))
        .is_some_and(|(controller, namespace)| digits(controller) && digits(namespace))
}

fn cpuinfo(text: &str) -> Cpu {
    let fields = || {
        text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim()))
    };
    let first = |wanted: &str| fields().find(|(key, _)| *key == wanted).map(|(_, value)| value);
    let count = |wanted: &str| fields().filter(|(key, _)| *key == wanted).count() as u64;
    let packages: BTreeSet<_> = fields().filter(|(key, _)| *key == "physical id").map(|(_, id)| id).collect();
    let known = |count: u64| (count > 0).then_some(count);
    Cpu {
        architecture: None,
        vendor: first("vendor_id").map(clean),
        family: first("cpu family").and_then(|family| family.parse().ok()),
        model: first("model").and_then(|model| model.parse().ok()),
        model_name: first("model name").map(clean),
        sockets: known(packages.len() as u64),
        threads: known(count("processor")),
        flags: first("flags").map(|flags| list(flags.split_whitespace())),
    }
}

fn meminfo(text: &str) -> Memory {
    let bytes = |wanted: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'))?;
        // The kernel writes "kB" and means 1024 bytes.
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Memory { total_bytes: bytes("MemTotal"), available_bytes: bytes("MemAvailable") }
}

fn probe_directory(directory: &Path) -> Directory {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let Some(existing) = absolute.ancestors().find(|path| path.is_dir()) else {
        return Directory::default();
    };
    Directory {
        free_bytes: statvfs(existing)
            .ok()
            .map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size())),
        persistent: statfs(existing)
            .ok()
            .map(|stat| stat.filesystem_type() != TMPFS_MAGIC && stat.filesystem_type() != RAMFS_MAGIC),
        nvram_file: Some(make_nvram_file(existing).is_ok()),
    }
}

fn make_nvram_file(directory: &Path) -> io::Result<()> {
    let mut file = tempfile::tempfile_in(directory)?;
    file.set_len(1 << 20)?;
    file.write_all(&[0xa5; 4096])?;
    file.sync_data()
}

fn probe_qemu() -> Qemu {
    let ask = |arguments: &[&str]| -> io::Result<String> {
        let mut child = Command::new(QEMU)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut bytes = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_READ).read_to_end(&mut bytes)?;
        }
        child.wait()?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match ask(&["--version"]) {
        Ok(text) => Qemu {
            version: qemu_version(&text),
            accelerators: ask(&["-accel", "help"]).ok().map(|text| qemu_accelerators(&text)),
            devices: ask(&["-device", "help"]).ok().map(|text| qemu_devices(&text)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Qemu {
            version: Some("not installed".to_owned()),
            accelerators: Some(Vec::new()),
            devices: Some(Vec::new()),
        },
        Err(_) => Qemu::default(),
    }
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)` has version 7.2.22.
fn qemu_version(text: &str) -> Option<String> {
    let version = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    version.split_whitespace().next().map(clean)
}

/// A heading, then one name on each line.
fn qemu_accelerators(text: &str) -> Vec<String> {
    list(text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty()))
}

/// Lines such as `name "virtio-blk-pci", bus PCI, alias "virtio-blk"`.
fn qemu_devices(text: &str) -> Vec<String> {
    list(text.lines().filter_map(|line| Some(line.strip_prefix("name \"")?.split_once('"')?.0)))
}

fn probe_tpm() -> Option<String> {
    let major = or_absent(read("/sys/class/tpm/tpm0/tpm_version_major"), "0")?;
    match major.trim() {
        "2" => Some("2.0".to_owned()),
        "1" => Some("1.2".to_owned()),
        "0" => Some("none".to_owned()),
        _ => None,
    }
}

fn probe_secure_boot() -> Option<bool> {
    if !Path::new("/sys/firmware/efi").exists() {
        return Some(false);
    }
    // Four bytes of attributes, then the variable: 1 if on (UEFI specification, "Globally Defined Variables").
    let path = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    match fs::read(path) {
        Ok(bytes) => bytes.get(4).map(|on| *on == 1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_cpuinfo() {
        let processor = |n, package| {
            format!(
                "processor\t: {n}\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n\
                 model name\t: AMD EPYC 9124\nphysical id\t: {package}\nflags\t\t: fpu sse2 sev_snp\n\n"
            )
        };
        let cpu = cpuinfo(&[processor(0, 0), processor(1, 0), processor(2, 1), processor(3, 1)].concat());
        assert_eq!((cpu.sockets, cpu.threads), (Some(2), Some(4)));
        assert_eq!((cpu.family, cpu.model), (Some(25), Some(17)));
        assert_eq!(cpu.vendor.as_deref(), Some("AuthenticAMD"));
        assert_eq!(cpu.model_name.as_deref(), Some("AMD EPYC 9124"));
        assert_eq!(cpu.flags.unwrap(), ["fpu", "sse2", "sev_snp"]);
        assert_eq!(cpuinfo(""), Cpu::default());
    }

    #[test]
    fn reads_meminfo() {
        let memory = meminfo("MemTotal:       24684092 kB\nMemFree:   1 kB\nMemAvailable:   24211316 kB\n");
        assert_eq!(memory.total_bytes, Some(24_684_092 * 1024));
        assert_eq!(memory.available_bytes, Some(24_211_316 * 1024));
        assert_eq!(meminfo("MemTotal: x kB\nMemAvailable: 18446744073709551615 kB"), Memory::default());
    }

    #[test]
    fn reads_qemu() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003-2022\n";
        assert_eq!(qemu_version(text).as_deref(), Some("7.2.22"));
        assert_eq!(qemu_version("bash: no such thing"), None);
        let text = "Accelerators supported in QEMU binary:\ntcg\nkvm\n";
        assert_eq!(qemu_accelerators(text), ["tcg", "kvm"]);
        let text = "Storage devices:\nname \"virtio-blk-pci\", bus PCI, alias \"virtio-blk\"\n\nname \"pci-bridge\", bus PCI\n";
        assert_eq!(qemu_devices(text), ["virtio-blk-pci", "pci-bridge"]);
    }

    #[test]
    fn knows_nvme_drives() {
        assert!(is_nvme_drive("nvme0n1") && is_nvme_drive("nvme12n2"));
        for other in ["nvme0c0n1", "nvme0", "nvmen1", "sda", "nvme0n1p1"] {
            assert!(!is_nvme_drive(other), "{other}");
        }
    }

    #[test]
    fn directories() {
        let directory = tempfile::tempdir().unwrap();
        let missing = probe_directory(&directory.path().join("not/yet"));
        assert!(missing.free_bytes.unwrap() > 0);
        assert_eq!(missing.nvram_file, Some(true));
        assert!(!directory.path().join("not").exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the probe left something behind");
        if statfs("/dev/shm").is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC) {
            assert_eq!(probe_directory(Path::new("/dev/shm")).persistent, Some(false));
        }
        // Nothing can be made in procfs, even by root.
        assert_eq!(probe_directory(Path::new("/proc")).nvram_file, Some(false));
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "(?s)(processor|flags|model|MemTotal|name \"|QEMU emulator version |:|\n|\t| |kB|\"|.){0,60}") {
            cpuinfo(&text);
            meminfo(&text);
            qemu_version(&text);
            qemu_accelerators(&text);
            qemu_devices(&text);
            is_nvme_drive(&text);
        }
    }
}
