//! What the kernel left behind when it crashed: records that the firmware kept (pstore), moved to the state partition so
//! that the firmware's small store is free for the next.

use crate::console::printable;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// Most files that are kept; the oldest go.
const KEPT: usize = 32;
/// Most bytes of one record.
const LENGTH: u64 = 64 << 10;
/// Most lines that the status shows of a crash.
const LINES: usize = 8;

/// One crash that an earlier run of this machine left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Crash {
    /// File below `crashes` of the state partition.
    pub file: String,
    /// Whether it is of the run just before this one.
    pub new: bool,
    /// Why, in the kernel's words: the lines that begin a panic or an oops.
    pub why: Vec<String>,
}

/// Moves records of the firmware to `kept`, and tells of all that are there, the newest last. A record is only deleted
/// from the firmware's store after it is safe on the disk.
pub fn collect(store: &Path, kept: &Path) -> io::Result<Vec<Crash>> {
    fs::create_dir_all(kept)?;
    let mut new = Vec::new();
    let mut names = match fs::read_dir(store) {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    names.sort();
    let mut number = number_of(&list(kept)?);
    for name in names.into_iter().take(KEPT) {
        let mut record = Vec::new();
        File::open(store.join(&name))?.take(LENGTH).read_to_end(&mut record)?;
        number += 1;
        let safe: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
        let file = format!("{number:06}-{safe}");
        let mut copy = File::create(kept.join(&file))?;
        copy.write_all(&record)?;
        copy.sync_all()?;
        File::open(kept)?.sync_all()?;
        fs::remove_file(store.join(&name))?;
        new.push(file);
    }
    let mut files = list(kept)?;
    while files.len() > KEPT {
        fs::remove_file(kept.join(files.remove(0)))?;
    }
    let crash = |file: String| {
        let mut record = Vec::new();
        File::open(kept.join(&file))?.take(LENGTH).read_to_end(&mut record)?;
        Ok(Crash { new: new.contains(&file), why: why(&String::from_utf8_lossy(&record)), file })
    };
    files.into_iter().map(crash).collect()
}

fn list(kept: &Path) -> io::Result<Vec<String>> {
    let mut files: Vec<_> =
        fs::read_dir(kept)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    files.sort();
    Ok(files)
}

fn number_of(files: &[String]) -> u32 {
    files.iter().filter_map(|file| file.split('-').next()?.parse::<u32>().ok()).max().unwrap_or(0)
}

/// The lines of a kernel's log that say why it stopped. The firmware kept them, so they may be anything.
fn why(log: &str) -> Vec<String> {
    const SIGNS: [&str; 6] = [
        "Kernel panic",
        "BUG:",
        "Oops:",
        "general protection fault",
        "device-mapper: verity",
        "Hardware Error",
    ];
    let lines = log.lines().filter(|line| SIGNS.iter().any(|sign| line.contains(sign)));
    lines.take(LINES).map(|line| printable(line, 200)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PANIC: &str = "Panic#1 Part1\n<4>[    4.1] random: crng init done\n\
        <0>[    5.5] Kernel panic - not syncing: dm-verity device corrupted\n<4>[    5.6] CPU: 0 PID: 1\n";

    #[test]
    fn records_move_to_the_disk_once_and_their_number_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (store, kept) = (dir.path().join("pstore"), dir.path().join("crashes"));
        assert_eq!(collect(&store, &kept).unwrap(), []);
        fs::create_dir(&store).unwrap();
        fs::write(store.join("dmesg-erst-7500"), PANIC).unwrap();
        let found = collect(&store, &kept).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].new && found[0].why[0].ends_with("dm-verity device corrupted"), "{found:?}");
        assert_eq!(fs::read_dir(&store).unwrap().count(), 0, "still in the firmware's store");
        // The next start still knows it, as an old one.
        let again = collect(&store, &kept).unwrap();
        assert_eq!((again.len(), again[0].new, &again[0].why), (1, false, &found[0].why));
        for round in 0..2 {
            for number in 0..KEPT {
                fs::write(store.join(format!("dmesg-efi-{number}")), format!("BUG: {round}")).unwrap();
            }
            collect(&store, &kept).unwrap();
        }
        let full = collect(&store, &kept).unwrap();
        assert_eq!(full.len(), KEPT);
        assert!(full.iter().all(|crash| crash.why == ["BUG: 1"]), "not the newest");
    }

    #[test]
    fn a_record_that_cannot_be_kept_stays_with_the_firmware() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("pstore");
        fs::create_dir(&store).unwrap();
        fs::write(store.join("dmesg-efi-1"), PANIC).unwrap();
        // The state is no folder.
        fs::write(dir.path().join("crashes"), "").unwrap();
        assert!(collect(&store, &dir.path().join("crashes")).is_err());
        assert!(store.join("dmesg-efi-1").exists());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_short_and_printable(log in "(Kernel panic|BUG:|\\PC|\n|\x1b|\u{202e}){0,200}") {
            let shown = why(&log);
            prop_assert!(shown.len() <= LINES);
            let fit = |line: &String| line.chars().count() <= 200 && !line.contains(['\x1b', '\u{202e}']);
            prop_assert!(shown.iter().all(fit));
        }
    }
}
