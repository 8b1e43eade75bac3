//! What a node needs beside the machine: network links, kernel, the node's directory, QEMU.

use super::{MAX_READ, list, names, number, reason, text};
use crate::probe::{Directory, Kernel, Nic, Qemu, clean};
use crate::seen::Seen;
use nix::sys::{
    statfs::{FsType, TMPFS_MAGIC, statfs},
    statvfs::statvfs,
    utsname::uname,
};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Name in `PATH` of the QEMU that runs guests.
const QEMU: &str = "qemu-system-x86_64";
/// `statfs` type of ramfs (include/uapi/linux/magic.h).
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

pub(super) fn nics() -> Seen<Vec<Nic>> {
    let directory = Path::new("/sys/class/net");
    // Only physical ports have a device behind them.
    names("/sys/class/net", |name| directory.join(name).join("device").exists()).map(|names| {
        let nic = |name: &String| {
            let up = text(directory.join(name).join("operstate")).map(|state| state == "up");
            Nic {
                name: clean(name),
                mbps: match up {
                    Seen::Known(false) => Seen::Known(0),
                    // A driver that does not know it says -1, which is no number of ours.
                    _ => number(directory.join(name).join("speed")),
                },
                up,
            }
        };
        names.iter().map(nic).collect()
    })
}

pub(super) fn kernel() -> Kernel {
    let watchdogs = names("/sys/class/watchdog", |_| true);
    Kernel {
        release: match uname() {
            Ok(names) => Seen::Known(clean(names.release().to_string_lossy().as_bytes())),
            Err(error) => Seen::unknown(format!("uname: {error}")),
        },
        kvm_device: Seen::Known(OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()),
        watchdogs: watchdogs.map(|names| {
            let identity = |name: &String| text(format!("/sys/class/watchdog/{name}/identity"));
            let known =
                names.iter().map(|name| identity(name).get().map_or(name.clone(), |text| text.to_owned()));
            // The kernel's own timer does not survive the kernel.
            known.filter(|identity| identity != "Software Watchdog").collect()
        }),
    }
}

pub(super) fn directory(directory: &Path) -> Directory {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let Some(existing) = absolute.ancestors().find(|path| path.is_dir()) else {
        return Directory::default();
    };
    let failed = |error: nix::Error| reason(existing, &error.into());
    Directory {
        free_bytes: statvfs(existing)
            .map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size()))
            .map_or_else(|error| Seen::Unknown(failed(error)), Seen::Known),
        persistent: statfs(existing)
            .map(|stat| stat.filesystem_type() != TMPFS_MAGIC && stat.filesystem_type() != RAMFS_MAGIC)
            .map_or_else(|error| Seen::Unknown(failed(error)), Seen::Known),
        nvram_file: Seen::Known(make_nvram_file(existing).is_ok()),
    }
}

fn make_nvram_file(directory: &Path) -> io::Result<()> {
    let mut file = tempfile::tempfile_in(directory)?;
    file.set_len(1 << 20)?;
    file.write_all(&[0xa5; 4096])?;
    file.sync_data()
}

pub(super) fn qemu() -> Qemu {
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
    let lists = |arguments: &[&str], parse: fn(&str) -> Vec<String>| match ask(arguments) {
        Ok(text) => Seen::Known(parse(&text)),
        Err(error) => Seen::Unknown(reason(QEMU, &error)),
    };
    match ask(&["--version"]) {
        Ok(text) => Qemu {
            version: Seen::or(qemu_version(&text), "QEMU did not print its version"),
            accelerators: lists(&["-accel", "help"], qemu_accelerators),
            devices: lists(&["-device", "help"], qemu_devices),
            objects: lists(&["-object", "help"], qemu_accelerators),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Qemu {
            version: Seen::Known("not installed".to_owned()),
            accelerators: Seen::Known(Vec::new()),
            devices: Seen::Known(Vec::new()),
            objects: Seen::Known(Vec::new()),
        },
        Err(error) => {
            let reason = reason(QEMU, &error);
            Qemu {
                version: Seen::unknown(&reason),
                accelerators: Seen::unknown(&reason),
                devices: Seen::unknown(&reason),
                objects: Seen::unknown(&reason),
            }
        }
    }
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)` has version 7.2.22.
fn qemu_version(text: &str) -> Option<String> {
    let version = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    version.split_whitespace().next().map(clean)
}

/// A heading, then one name on each line; so are object types.
fn qemu_accelerators(text: &str) -> Vec<String> {
    list(text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty()))
}

/// Lines such as `name "virtio-blk-pci", bus PCI, alias "virtio-blk"`.
fn qemu_devices(text: &str) -> Vec<String> {
    list(text.lines().filter_map(|line| Some(line.strip_prefix("name \"")?.split_once('"')?.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn reads_qemu() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003-2022\n";
        assert_eq!(qemu_version(text).as_deref(), Some("7.2.22"));
        assert_eq!(qemu_version("bash: no such thing"), None);
        let text = "Accelerators supported in QEMU binary:\ntcg\nkvm\n";
        assert_eq!(qemu_accelerators(text), ["tcg", "kvm"]);
        let text = "List of user creatable objects:\n  rng-random\n  sev-snp-guest\n";
        assert_eq!(qemu_accelerators(text), ["rng-random", "sev-snp-guest"]);
        let text = "Storage devices:\nname \"virtio-blk-pci\", bus PCI, alias \"virtio-blk\"\n\nname \"pci-bridge\", bus PCI\n";
        assert_eq!(qemu_devices(text), ["virtio-blk-pci", "pci-bridge"]);
    }

    #[test]
    fn directories() {
        let made = tempfile::tempdir().unwrap();
        let missing = directory(&made.path().join("not/yet"));
        assert!(*missing.free_bytes.get().unwrap() > 0);
        assert_eq!(missing.nvram_file, Seen::Known(true));
        assert!(!made.path().join("not").exists());
        assert_eq!(fs::read_dir(made.path()).unwrap().count(), 0, "the probe left something behind");
        if statfs("/dev/shm").is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC) {
            assert_eq!(directory(Path::new("/dev/shm")).persistent, Seen::Known(false));
        }
        // Nothing can be made in procfs, even by root.
        assert_eq!(directory(Path::new("/proc")).nvram_file, Seen::Known(false));
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "(?s)(name \"|QEMU emulator version |\n| |\"|.){0,60}") {
            qemu_version(&text);
            qemu_accelerators(&text);
            qemu_devices(&text);
        }
    }
}
