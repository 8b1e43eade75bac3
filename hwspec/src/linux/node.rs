//! What a node needs beside the machine: network links, kernel, the node's directory, QEMU.

use super::{MAX_READ, list, names, number, read, reason, text};
use crate::probe::{Directory, IMAGE_QEMU, Kernel, Nic, Qemu, clean};
use crate::seen::Seen;
use nix::sys::{
    statfs::{FsType, TMPFS_MAGIC, statfs},
    statvfs::statvfs,
    utsname::uname,
};
use serde_json::Value;
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
    // Where processors are emulated, a start of QEMU takes longer than all else that is done before the guest's.
    if let Some(known) = read(IMAGE_QEMU).ok().and_then(|text| serde_json::from_str(&text).ok()) {
        return known;
    }
    match ask_qemu() {
        Ok(text) => qemu_answers(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Qemu {
            version: Seen::Known("not installed".to_owned()),
            accelerators: Seen::Known(Vec::new()),
            devices: Seen::Known(Vec::new()),
            objects: Seen::Known(Vec::new()),
        },
        Err(error) => no_answer(&reason(QEMU, &error)),
    }
}

/// What a QEMU without a machine is asked (QEMU Machine Protocol), for [`qemu_answers`].
pub const QEMU_QUESTIONS: &str = r#"{"execute":"qmp_capabilities"}
{"execute":"qom-list-types","arguments":{"implements":"accel","abstract":false}}
{"execute":"qom-list-types","arguments":{"implements":"device","abstract":false}}
{"execute":"qom-list-types","arguments":{"implements":"user-creatable","abstract":false}}
{"execute":"quit"}
"#;

fn ask_qemu() -> io::Result<String> {
    let mut child = Command::new(QEMU)
        .args(["-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // Shorter than a pipe holds. A QEMU that ended already shows by what it does not answer.
        let _ = stdin.write_all(QEMU_QUESTIONS.as_bytes());
        let mut bytes = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_READ).read_to_end(&mut bytes)?;
        }
        child.wait()?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(String::new())
}

fn no_answer(reason: &str) -> Qemu {
    Qemu {
        version: Seen::unknown(reason),
        accelerators: Seen::unknown(reason),
        devices: Seen::unknown(reason),
        objects: Seen::unknown(reason),
    }
}

/// Reads a greeting and the answers to [`QEMU_QUESTIONS`]. What is not among them is unknown.
pub fn qemu_answers(text: &str) -> Qemu {
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let version = lines.iter().find_map(|line| {
        let version = line.pointer("/QMP/version/qemu")?;
        let part = |name: &str| version.get(name)?.as_u64();
        Some(format!("{}.{}.{}", part("major")?, part("minor")?, part("micro")?))
    });
    let mut lists = lines.iter().filter_map(|line| line.get("return")?.as_array());
    let mut next = || {
        let types = lists.next().map(|types| {
            let names = types.iter().filter_map(|found| found.get("name")?.as_str());
            list(names.map(|name| name.strip_suffix("-accel").unwrap_or(name)))
        });
        Seen::or(types, "QEMU did not answer")
    };
    let (accelerators, devices, objects) = (next(), next(), next());
    Qemu { version: Seen::or(version, "QEMU did not greet"), accelerators, devices, objects }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn reads_qemu() {
        let text = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}
{"return": {}}
{"return": [{"name": "tcg-accel", "parent": "accel"}, {"name": "kvm-accel", "parent": "accel"}]}
{"return": [{"name": "virtio-blk-pci", "parent": "virtio-blk-pci-base"}, {"name": "pci-bridge"}]}
{"return": [{"name": "rng-random"}, {"name": "sev-snp-guest"}]}
{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": false}}
"#;
        let found = qemu_answers(text);
        assert_eq!(found.version, Seen::Known("7.2.22".to_owned()));
        assert_eq!(found.accelerators.get().unwrap(), &["tcg", "kvm"]);
        assert_eq!(found.devices.get().unwrap(), &["virtio-blk-pci", "pci-bridge"]);
        assert_eq!(found.objects.get().unwrap(), &["rng-random", "sev-snp-guest"]);
        for other in ["", "bash: no such thing", r#"{"QMP": {}}"#, r#"{"return": {}}"#] {
            assert!(qemu_answers(other).version.get().is_err() && qemu_answers(other).devices.get().is_err());
        }
    }

    #[test]
    fn this_machines_qemu_answers() {
        let found = qemu();
        // A machine without QEMU may run the tests too.
        if found.version != Seen::Known("not installed".to_owned()) {
            assert!(found.version.get().unwrap().contains('.'));
            assert!(found.accelerators.get().unwrap().iter().any(|name| name == "tcg"), "{found:?}");
            assert!(found.devices.get().unwrap().iter().any(|name| name == "virtio-blk-pci"));
            assert!(found.objects.get().unwrap().iter().any(|name| name == "rng-random"));
        }
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
        fn parsers_never_panic(text in r#"(?s)(\{"return": \[|\{"name": "|\{"QMP": |"\}|\]|\}|,|\n| |.){0,60}"#) {
            qemu_answers(&text);
        }
    }
}
