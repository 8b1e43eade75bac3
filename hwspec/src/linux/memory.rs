//! Main memory and NVDIMMs.

use super::{is_numbered, names, number, read, reason, text};
use crate::probe::{Memory, Nvdimm};
use crate::seen::Seen;
use crate::smbios::Smbios;
use std::collections::BTreeSet;
use std::path::Path;

const ND: &str = "/sys/bus/nd/devices";

pub(super) fn probe(smbios: &Seen<Smbios>) -> Memory {
    let (total_bytes, available_bytes) = match read("/proc/meminfo") {
        Ok(text) => (meminfo(&text, "MemTotal"), meminfo(&text, "MemAvailable")),
        Err(error) => {
            let reason = reason("/proc/meminfo", &error);
            (Seen::unknown(&reason), Seen::unknown(&reason))
        }
    };
    // Tables without modules say nothing: virtual machines have such.
    let modules = smbios.clone().and_then(|tables| match tables.slots {
        0 => Seen::unknown("SMBIOS lists no memory modules"),
        _ => Seen::Known(tables),
    });
    Memory {
        total_bytes,
        available_bytes,
        end_address: match read("/proc/iomem") {
            Ok(text) => end_address(&text),
            Err(error) => Seen::Unknown(reason("/proc/iomem", &error)),
        },
        error_correction: modules.clone().map(|tables| tables.error_correction),
        slots: modules.clone().map(|tables| tables.slots),
        dimms: modules.map(|tables| tables.dimms),
        corrected_errors: edac("ce_count"),
        uncorrected_errors: edac("ue_count"),
    }
}

fn meminfo(text: &str, wanted: &str) -> Seen<u64> {
    let bytes = || {
        let line = text.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'))?;
        // The kernel writes "kB" and means 1024 bytes.
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Seen::or(bytes(), "/proc/meminfo does not say")
}

/// One past the last byte of `System RAM` in /proc/iomem, where others than root see zeros.
fn end_address(text: &str) -> Seen<u64> {
    let last = |line: &str| {
        let (range, name) = line.split_once(" : ")?;
        let (_, last) = range.split_once('-')?;
        (name == "System RAM").then(|| u64::from_str_radix(last, 16).ok())?
    };
    match text.lines().filter_map(last).max() {
        Some(last @ 1..) => Seen::Known(last.saturating_add(1)),
        _ => Seen::unknown("/proc/iomem shows addresses to root only"),
    }
}

fn edac(counter: &str) -> Seen<u64> {
    let directory = "/sys/devices/system/edac/mc";
    names(directory, |name| is_numbered(name, "mc")).and_then(|controllers| {
        if controllers.is_empty() {
            return Seen::unknown("the kernel watches no memory controller (EDAC: modprobe amd64_edac)");
        }
        sum(controllers.iter().map(|name| number(Path::new(directory).join(name).join(counter))))
    })
}

fn sum(mut numbers: impl Iterator<Item = Seen<u64>>) -> Seen<u64> {
    numbers
        .try_fold(0, |sum: u64, number| match number {
            Seen::Known(number) => Ok(sum.saturating_add(number)),
            Seen::Unknown(reason) => Err(reason),
        })
        .map_or_else(Seen::Unknown, Seen::Known)
}

pub(super) fn nvdimm() -> Nvdimm {
    let path = |name: &String, file: &str| Path::new(ND).join(name).join(file);
    let regions = names(ND, |name| is_numbered(name, "region"));
    Nvdimm {
        bytes: names(ND, |name| name.starts_with("namespace"))
            .and_then(|namespaces| sum(namespaces.iter().map(|name| number(path(name, "size"))))),
        badblocks: regions.clone().and_then(|regions| {
            sum(regions.iter().map(|name| match read(path(name, "badblocks")) {
                Ok(text) => Seen::Known(badblocks(&text)),
                Err(error) => Seen::Unknown(reason(path(name, "badblocks"), &error)),
            }))
        }),
        persistence: regions.and_then(|regions| {
            let domains: Vec<_> =
                regions.iter().map(|name| domain(&path(name, "persistence_domain"))).collect();
            distinct(domains, |domain| vec![domain])
        }),
        flags: names(ND, |name| is_numbered(name, "nmem")).and_then(|modules| {
            // Those without ACPI (virtio-pmem) have no flags.
            let with = modules.iter().filter(|name| path(name, "nfit").exists());
            let flags: Vec<_> = with.map(|name| text(path(name, "nfit/flags"))).collect();
            distinct(flags, |flags| flags.split_whitespace().map(str::to_owned).collect())
        }),
    }
}

/// The kernel leaves the file out when the firmware states nothing.
fn domain(path: &Path) -> Seen<String> {
    if path.exists() { text(path) } else { Seen::Known("not stated".to_owned()) }
}

fn distinct(texts: Vec<Seen<String>>, split: impl Fn(String) -> Vec<String>) -> Seen<Vec<String>> {
    let mut all = BTreeSet::new();
    for text in texts {
        match text {
            Seen::Known(text) => all.extend(split(text)),
            Seen::Unknown(reason) => return Seen::Unknown(reason),
        }
    }
    Seen::Known(all.into_iter().collect())
}

/// Lines of first sector and number of sectors.
fn badblocks(text: &str) -> u64 {
    let count = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    text.lines().filter_map(count).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_procfs() {
        let text = "MemTotal:       24684092 kB\nMemFree:   1 kB\nMemAvailable:   24211316 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Seen::Known(24_684_092 * 1024));
        assert_eq!(meminfo(text, "MemAvailable"), Seen::Known(24_211_316 * 1024));
        assert!(meminfo("MemTotal: x kB", "MemTotal").get().is_err());
        assert!(meminfo("MemTotal: 18446744073709551615 kB", "MemTotal").get().is_err());
        let text = "00001000-0009fbff : System RAM\n100000000-807fffffff : System RAM\n  8000000000-8000ffffff : Kernel code\n8100000000-81ffffffff : Persistent Memory\n";
        assert_eq!(end_address(text), Seen::Known(0x80_8000_0000));
        assert!(end_address("00000000-00000000 : System RAM\n").get().is_err());
        assert_eq!(badblocks("8 2\n100 1\nx y\n"), 3);
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "(?s)(MemTotal:|System RAM| : |-|kB|\n| |[0-9a-f]|.){0,60}") {
            let _ = (meminfo(&text, "MemTotal"), end_address(&text), badblocks(&text));
        }
    }
}
