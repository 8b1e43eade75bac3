//! Processors.

use super::{is_numbered, list, names, number, read, reason, text};
use crate::probe::{Cpu, clean};
use crate::seen::Seen;
use crate::smbios::Smbios;
use nix::sys::utsname::uname;
use std::collections::BTreeSet;
use std::path::Path;

const SYSFS: &str = "/sys/devices/system/cpu";

pub(super) fn probe(smbios: &Seen<Smbios>) -> Cpu {
    let cpuinfo = match read("/proc/cpuinfo") {
        Ok(text) => cpuinfo(&text),
        Err(error) => unknown(&reason("/proc/cpuinfo", &error)),
    };
    let nodes = names("/sys/devices/system/node", |name| is_numbered(name, "node"));
    Cpu {
        architecture: match uname() {
            Ok(names) => Seen::Known(clean(names.machine().to_string_lossy().as_bytes())),
            Err(error) => Seen::unknown(format!("uname: {error}")),
        },
        offline: text(format!("{SYSFS}/present")).and_then(|present| {
            text(format!("{SYSFS}/online")).map(|online| ranges(&present).saturating_sub(ranges(&online)))
        }),
        smt: number(format!("{SYSFS}/smt/active")).map(|active| active == 1),
        numa_nodes: nodes.and_then(|nodes| match nodes.len() as u64 {
            0 => Seen::unknown("the kernel was built without NUMA"),
            count => Seen::Known(count),
        }),
        speeds: smbios.clone().map(|tables| tables.processors),
        vulnerable: vulnerable(),
        iommu: names("/sys/class/iommu", |_| true).map(|units| !units.is_empty()),
        ..cpuinfo
    }
}

fn unknown(reason: &str) -> Cpu {
    Cpu {
        vendor: Seen::unknown(reason),
        family: Seen::unknown(reason),
        model: Seen::unknown(reason),
        stepping: Seen::unknown(reason),
        model_name: Seen::unknown(reason),
        identical: Seen::unknown(reason),
        microcode: Seen::unknown(reason),
        sockets: Seen::unknown(reason),
        cores: Seen::unknown(reason),
        threads: Seen::unknown(reason),
        flags: Seen::unknown(reason),
        ..Cpu::default()
    }
}

/// Reads /proc/cpuinfo.
fn cpuinfo(text: &str) -> Cpu {
    const MISSING: &str = "/proc/cpuinfo does not say";
    let fields = || {
        text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim()))
    };
    let all = |wanted: &'static str| fields().filter(move |(key, _)| *key == wanted).map(|(_, value)| value);
    let first = |wanted| all(wanted).next();
    let count = |count: usize| Seen::or((count > 0).then_some(count as u64), MISSING);
    let small = |wanted| Seen::or(first(wanted).and_then(|value| value.parse().ok()), MISSING);
    let distinct = |wanted| all(wanted).collect::<BTreeSet<_>>();
    let revisions: BTreeSet<u32> =
        all("microcode").filter_map(|text| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()).collect();
    // Each processor lists its package before its core.
    let mut cores = BTreeSet::new();
    let mut package = "";
    for (key, value) in fields() {
        match key {
            "physical id" => package = value,
            "core id" => _ = cores.insert((package, value)),
            _ => {}
        }
    }
    let kinds = ["vendor_id", "cpu family", "model", "stepping"].map(|key| distinct(key).len());
    Cpu {
        vendor: Seen::or(first("vendor_id").map(clean), MISSING),
        family: small("cpu family"),
        model: small("model"),
        stepping: small("stepping"),
        model_name: Seen::or(first("model name").map(clean), MISSING),
        identical: Seen::or((!kinds.contains(&0)).then_some(kinds == [1; 4]), MISSING),
        microcode: Seen::or(
            (!revisions.is_empty()).then(|| revisions.into_iter().take(64).collect()),
            MISSING,
        ),
        sockets: count(distinct("physical id").len()),
        cores: count(cores.len()),
        threads: count(all("processor").count()),
        flags: Seen::or(first("flags").map(|flags| list(flags.split_whitespace())), MISSING),
        ..Cpu::default()
    }
}

/// How many numbers a list such as `0-3,8` has.
fn ranges(text: &str) -> u64 {
    text.split(',')
        .filter_map(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to): (u64, u64) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
            to.checked_sub(from)?.checked_add(1)
        })
        .fold(0, u64::saturating_add)
}

fn vulnerable() -> Seen<Vec<String>> {
    let directory = format!("{SYSFS}/vulnerabilities");
    let files = names(&directory, |_| true);
    files.and_then(|names| {
        if names.is_empty() {
            return Seen::unknown("the kernel does not list the processor's flaws");
        }
        let open = |name: &&String| {
            read(Path::new(&directory).join(name)).is_ok_and(|text| text.starts_with("Vulnerable"))
        };
        Seen::Known(names.iter().filter(open).map(clean).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_cpuinfo() {
        let processor = |n, package, core, microcode| {
            format!(
                "processor\t: {n}\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nstepping\t: 1\n\
                 model name\t: AMD EPYC 9124\nmicrocode\t: {microcode}\nphysical id\t: {package}\n\
                 core id\t\t: {core}\nflags\t\t: fpu sse2 sev_snp\n\n"
            )
        };
        let two = "0xa101154";
        let text =
            [processor(0, 0, 0, two), processor(1, 0, 0, two), processor(2, 1, 0, "0xa101148")].concat();
        let cpu = cpuinfo(&text);
        assert_eq!((cpu.sockets, cpu.cores, cpu.threads), (Seen::Known(2), Seen::Known(2), Seen::Known(3)));
        assert_eq!((cpu.family, cpu.model, cpu.stepping), (Seen::Known(25), Seen::Known(17), Seen::Known(1)));
        assert_eq!(cpu.microcode, Seen::Known(vec![0x0a10_1148, 0x0a10_1154]));
        assert_eq!(cpu.identical, Seen::Known(true));
        assert_eq!(cpu.flags.get().unwrap(), &["fpu", "sse2", "sev_snp"]);
        let mixed = cpuinfo(
            &(processor(0, 0, 0, two) + &processor(1, 1, 0, two).replace("stepping\t: 1", "stepping\t: 2")),
        );
        assert_eq!(mixed.identical, Seen::Known(false));
        assert!(cpuinfo("").threads.get().is_err());
    }

    #[test]
    fn counts_ranges() {
        for (text, count) in [("0-3,8", 5), ("0", 1), ("", 0), ("5-2", 0), ("0-18446744073709551615", 0)] {
            assert_eq!(ranges(text), count, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "(?s)(processor|flags|model|microcode|0x|physical id|core id|:|\n|\t| |-|,|[0-9]|.){0,60}") {
            cpuinfo(&text);
            ranges(&text);
        }
    }
}
