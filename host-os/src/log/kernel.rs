//! What the kernel says goes into the log too: errors of drives, memory and links. Only on a host of its own.

use super::entry::KERNEL;
use super::{Entry, Log, Reader};
use std::io::{self, Read};
use std::path::Path;

/// The kernel's messages, one record for each read (Documentation/ABI/testing/dev-kmsg).
const DEVICE: &str = "/dev/kmsg";
/// Most that one record has, in bytes.
const RECORD: usize = 8192;
/// Field with the number that the kernel gave it.
const SEQUENCE: &str = "sequence";

/// One record.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    level: &'static str,
    sequence: u64,
    words: String,
}

/// `priority,sequence,microseconds,flags;words`.
fn parse(record: &[u8]) -> Option<Said> {
    let text = String::from_utf8_lossy(record);
    let (head, words) = text.split_once(';')?;
    let mut head = head.split(',').map(|number| number.parse::<u64>().ok());
    let level = match head.next()?? & 7 {
        0..=3 => "ERROR",
        4 => "WARN",
        5..=6 => "INFO",
        _ => "DEBUG",
    };
    // What follows the first line are properties of a device.
    Some(Said { level, sequence: head.next()??, words: words.lines().next()?.to_owned() })
}

/// Copies for ever, in a thread of its own, what an earlier agent of this start of the machine has not copied.
pub(crate) fn follow(log: &Log, path: &Path) {
    // On a file system in memory: it is there if there was an earlier one.
    let note = Path::new("/run/kernel-log");
    let before = note.exists().then(|| last_sequence(path)).flatten();
    let _ = std::fs::write(note, "");
    let log = log.clone();
    let spawned = std::thread::Builder::new().name("kernel-log".into()).spawn(move || copy(&log, before));
    if let Err(error) = spawned {
        tracing::warn!(%error, "the kernel's messages are not in the log");
    }
}

fn last_sequence(path: &Path) -> Option<u64> {
    let entries = Reader::open(path).ok()?.read().ok()?;
    entries.iter().rev().find(|entry| entry.target == KERNEL)?.fields.get(SEQUENCE)?.as_u64()
}

fn copy(log: &Log, before: Option<u64>) {
    let mut record = vec![0; RECORD];
    let ended = std::fs::File::open(DEVICE).and_then(|mut device| {
        loop {
            match device.read(&mut record) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    let said = parse(&record[..length]);
                    let Some(said) = said.filter(|said| before.is_none_or(|before| said.sequence > before))
                    else {
                        continue;
                    };
                    let mut entry = Entry::now(said.level, KERNEL);
                    entry.message = said.words;
                    entry.fields.insert(SEQUENCE.into(), said.sequence.into());
                    log.add(&entry, matches!(said.level, "ERROR" | "WARN"));
                }
                // Some were overwritten before they were read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    });
    tracing::warn!(?ended, "the kernel's messages are no longer in the log");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_have_a_level_and_words() {
        let record = b"3,1234,5678,-;nvme0: I/O error; sector 7\n SUBSYSTEM=pci\n";
        let words = "nvme0: I/O error; sector 7".into();
        assert_eq!(parse(record), Some(Said { level: "ERROR", sequence: 1234, words }));
        assert_eq!(parse(b"14,1,2,-;host-os: x").unwrap().level, "INFO");
        assert_eq!(parse(b"4,1,2,-;a").unwrap().level, "WARN");
        assert_eq!((parse(b"x;y"), parse(b"4,1"), parse(b"4;a")), (None, None, None));
    }

    /// A real kernel's, where this may be read; an agent that starts again copies nothing twice.
    #[test]
    fn the_kernels_messages_are_copied_once() {
        if std::fs::File::open(DEVICE).and_then(|mut device| device.read(&mut [0; RECORD])).is_err() {
            return crate::network::namespace::skip("the kernel's messages cannot be read; run as root");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = Log::open(&path).unwrap();
        let copying = log.clone();
        std::thread::spawn(move || copy(&copying, None));
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while last_sequence(&path).is_none() {
            assert!(std::time::Instant::now() < end, "nothing was copied");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let other = dir.path().join("other");
        let again = Log::open(&other).unwrap();
        std::thread::spawn(move || copy(&again, Some(u64::MAX)));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(last_sequence(&other), None);
    }

    proptest! {
        #[test]
        fn no_record_makes_it_panic(record: Vec<u8>) {
            let _ = parse(&record);
        }
    }
}
