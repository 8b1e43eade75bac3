//! Taking a probe of this machine: procfs, sysfs, device nodes, a few system calls, and QEMU's own words.
//!
//! Nothing here fails: what cannot be found out stays unknown, with the reason.

mod clock;
mod cpu;
mod firmware;
mod memory;
mod node;
mod sev;
mod storage;
mod sys;

pub use node::{QEMU_QUESTIONS, qemu_answers};

use crate::probe::{MAX_ITEMS, Probe, clean};
use crate::seen::Seen;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// More than /proc/cpuinfo has on 512 threads, and than QEMU's list of devices; nothing longer is read.
const MAX_READ: u64 = 4 << 20;

/// Probes this machine. `directory` is where the node keeps its state; if it does not exist yet, its nearest
/// existing parent is judged. Makes (and removes) a small file there and asks QEMU for its version
/// and lists. Registers, SMBIOS, drive health and the Secure Processor need root.
pub fn this_machine(directory: &Path) -> Probe {
    let smbios = firmware::smbios();
    Probe {
        cpu: cpu::probe(&smbios),
        sev: sev::probe(),
        memory: memory::probe(&smbios),
        nvdimm: memory::nvdimm(),
        nvme: storage::nvme(),
        pci: storage::pci(),
        nics: node::nics(),
        tpm: firmware::tpm(),
        firmware: firmware::probe(&smbios),
        bmc: firmware::bmc(&smbios),
        kernel: node::kernel(),
        clock: clock::probe(),
        directory: node::directory(directory),
        qemu: node::qemu(),
    }
}

/// Share of its life that the most worn NVMe drive of this machine has used, in percent; `None` if no drive tells.
pub fn nvme_wear() -> Option<u8> {
    let drives = storage::nvme();
    let worn = drives.get().ok()?.iter().filter_map(|drive| Some(drive.smart.get().ok()?.used));
    worn.max()
}

fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_READ).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Why something could not be read, in words.
fn reason(path: impl AsRef<Path>, error: &io::Error) -> String {
    let path = path.as_ref().display();
    clean(match error.kind() {
        io::ErrorKind::NotFound => format!("{path} is not there"),
        io::ErrorKind::PermissionDenied => format!("{path}: permission denied; probe as root"),
        _ => format!("{path}: {error}"),
    })
}

/// A file's text, trimmed and printable.
fn text(path: impl AsRef<Path>) -> Seen<String> {
    match read(&path) {
        Ok(text) => Seen::Known(clean(text)),
        Err(error) => Seen::Unknown(reason(path, &error)),
    }
}

/// A file's number.
fn number(path: impl AsRef<Path>) -> Seen<u64> {
    text(&path).and_then(|text| match text.parse() {
        Ok(number) => Seen::Known(number),
        Err(_) => Seen::Unknown(clean(format!("{}: {text:?} is no number", path.as_ref().display()))),
    })
}

/// A file that does not exist says as much as one with `absent` in it; other errors say nothing.
fn text_or_absent(path: &str, absent: &str) -> Seen<String> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Known(absent.to_owned()),
        _ => text(path),
    }
}

/// Names in a directory, sorted; none if there is no such directory.
fn names(directory: &str, accept: impl Fn(&str) -> bool) -> Seen<BTreeSet<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => Seen::Known(
            entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| accept(name))
                .take(MAX_ITEMS)
                .collect(),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Known(BTreeSet::new()),
        Err(error) => Seen::Unknown(reason(directory, &error)),
    }
}

/// `prefix` and then digits.
fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    words.take(MAX_ITEMS).map(clean).collect()
}
