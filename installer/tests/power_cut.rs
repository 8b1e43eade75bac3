//! The power goes at every single write and flush of an installation. Whatever the disk kept then, either the old system
//! starts or the new one is complete, and running the installer again completes the new one.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Memory, Random, Sample, disk, operator};
use installer::{
    disk as found, esp, gpt,
    gpt::Table,
    layout::{self, Slot},
    parts::{Parts, root_hash_of},
    plan::{self, Purpose, Wanted},
    run::{self, Medium, Outcome, RunError},
};
use std::io::{self, Read, Seek, SeekFrom};

/// How often each cut is tried, with other sectors kept.
const TRIES: u64 = 4;

fn install(memory: &mut Memory, parts: &Parts, erase: bool, seed: u64) -> Result<Outcome, RunError> {
    let content = found::inspect(memory).unwrap();
    let operator = operator();
    // Whoever erased a disk and lost power erases it again.
    let wanted = Wanted {
        erase: erase || !matches!(content, found::Content::Node(_)),
        operator: &operator,
        hardware: "virtual",
        network: None,
    };
    let mut random = Random(seed);
    let plan = plan::plan(&disk(), &content, parts, &wanted, &mut || random.bytes()).unwrap();
    run::run(&plan, memory, &mut |_| ())
}

/// A partition for the FAT reader of another project.
struct Partition<'a> {
    memory: &'a mut Memory,
    start: u64,
    size: u64,
    at: u64,
}

impl Read for Partition<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let length = (self.size - self.at).min(bytes.len() as u64) as usize;
        self.memory.read(self.start + self.at, &mut bytes[..length])?;
        self.at += length as u64;
        Ok(length)
    }
}

impl io::Write for Partition<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Partition<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.saturating_add_signed(by),
            SeekFrom::End(by) => self.size.saturating_add_signed(by),
        };
        Ok(self.at)
    }
}

/// What firmware, kernel and PID 1 do: the table (either copy), the file that the firmware starts, the root that its
/// command line names, the guest in the same slot. Which of these releases starts, complete?
fn starts(memory: &mut Memory, releases: &[&Parts]) -> Option<usize> {
    let size = memory.size();
    let start = found::read(memory, 0, gpt::START).unwrap();
    let end = found::read(memory, size - gpt::END, gpt::END).unwrap();
    let table = Table::parse(size, &start, &end)?;
    let boot = table.find("esp")?.clone();
    let reader = Partition { memory, start: boot.start, size: boot.size, at: 0 };
    let options = fatfs::FsOptions::new().update_accessed_date(false);
    let system = fatfs::FileSystem::new(reader, options).ok()?;
    let mut uki = Vec::new();
    system.root_dir().open_file(esp::CURRENT).ok()?.read_to_end(&mut uki).ok()?;
    drop(system);
    let (root, verity) = layout::root_identifiers(&root_hash_of(&uki)?);
    let by_id = |id| table.partitions.iter().filter(move |partition| partition.id == id);
    assert!(by_id(root).count() <= 1, "which of the two would the kernel take?");
    let (root, verity) = (by_id(root).next()?, by_id(verity).next()?);
    let slot = Slot::of_label(&root.name)?;
    assert_eq!(Slot::of_label(&verity.name), Some(slot));
    let guest = table.find(&slot.guest())?;
    let mut holds = |partition: &gpt::Partition, bytes: &[u8]| {
        found::read(memory, partition.start, bytes.len() as u64).unwrap() == bytes
    };
    releases.iter().position(|parts| {
        uki == parts.uki
            && holds(root, &parts.root)
            && holds(verity, &parts.verity)
            && holds(guest, &parts.guest)
    })
}

/// Cuts an installation of `new` over `before` at every event.
fn cut_everywhere(before: &Memory, old: Option<&Parts>, new: &Parts, erase: bool) {
    let mut whole = before.clone();
    whole.events = 0;
    install(&mut whole, new, erase, 1).unwrap();
    assert_eq!(starts(&mut whole, &[new]), Some(0));
    let events = whole.events;
    assert!(events >= 10, "{events}");
    let releases: Vec<&Parts> = [new].into_iter().chain(old).collect();
    let mut seen = [0_u32; 3];
    for cut in 0..events {
        for attempt in 0..TRIES {
            let mut memory = before.clone();
            memory.left = Some(cut);
            install(&mut memory, new, erase, 1).unwrap_err();
            let mut random = Random(cut * TRIES + attempt);
            let mut memory = memory.after_power_cut(&mut random);
            let started = starts(&mut memory, &releases);
            seen[started.unwrap_or(2)] += 1;
            if old.is_some() {
                assert!(started.is_some(), "after the cut at {cut} of {events} nothing starts ({attempt})");
            }
            // The power goes a second time, somewhere.
            memory.left = Some(random.next() % events);
            let second = install(&mut memory, new, erase, 2);
            if second.is_err() {
                memory = memory.after_power_cut(&mut random);
                install(&mut memory, new, erase, 3).unwrap();
            }
            assert_eq!(starts(&mut memory, &releases), Some(0), "cut at {cut} of {events}, {attempt}");
        }
    }
    assert!(seen[0] > 0, "no cut came late: {seen:?}");
    assert!(seen[1] + seen[2] > 0, "no cut came early: {seen:?}");
}

fn node(parts: &Parts) -> Memory {
    let mut memory = Memory::new(disk().size);
    install(&mut memory, parts, true, 9).unwrap();
    memory
}

#[test]
fn an_empty_disk() {
    cut_everywhere(&Memory::new(disk().size), None, &Sample::new("1.0", 1, 1).parts(), false);
}

#[test]
fn a_disk_with_something_else() {
    let mut memory = Memory::new(disk().size);
    let foreign = vec![0x5a; 3 << 20];
    memory.write(0, &foreign).unwrap();
    memory.write(disk().size - foreign.len() as u64, &foreign).unwrap();
    memory.flush().unwrap();
    cut_everywhere(&memory, None, &Sample::new("1.0", 1, 1).parts(), true);
}

#[test]
fn a_new_host_and_guest() {
    let (old, new) = (Sample::new("1.0", 1, 1).parts(), Sample::new("1.1", 2, 2).parts());
    cut_everywhere(&node(&old), Some(&old), &new, false);
}

#[test]
fn a_third_release_over_the_first() {
    let [one, two, three] = [("1.0", 1), ("1.1", 2), ("1.2", 3)].map(|(v, n)| Sample::new(v, n, n).parts());
    let mut memory = node(&one);
    install(&mut memory, &two, false, 5).unwrap();
    cut_everywhere(&memory, Some(&two), &three, false);
}

#[test]
fn a_new_guest_only() {
    let (old, new) = (Sample::new("1.0", 1, 1).parts(), Sample::new("1.1", 1, 2).parts());
    cut_everywhere(&node(&old), Some(&old), &new, false);
    let mut memory = node(&old);
    install(&mut memory, &new, false, 5).unwrap();
    cut_everywhere(&memory, Some(&new), &Sample::new("1.2", 1, 3).parts(), false);
}

#[test]
fn the_same_release_again_writes_nothing_or_repairs() {
    let parts = Sample::new("1.0", 1, 1).parts();
    let mut memory = node(&parts);
    let outcome = install(&mut memory, &parts, false, 5).unwrap();
    assert_eq!(outcome.written, 0);
    memory.flip(layout::start_of("host-a").unwrap() + 77);
    assert_eq!(starts(&mut memory, &[&parts]), None);
    assert!(install(&mut memory, &parts, false, 5).unwrap().written > 0);
    assert_eq!(starts(&mut memory, &[&parts]), Some(0));
}

#[test]
fn a_disk_that_does_not_keep_what_is_written_is_named() {
    /// Drops one bit of every write.
    struct Forgetful(Memory);
    impl Medium for Forgetful {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
            self.0.read(at, bytes)
        }
        fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
            let mut bytes = bytes.to_vec();
            bytes[0] ^= 1;
            self.0.write(at, &bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }
    let parts = Sample::new("1.0", 1, 1).parts();
    let mut random = Random(1);
    let (operator, disk) = (operator(), disk());
    let wanted = Wanted { erase: false, operator: &operator, hardware: "virtual", network: None };
    let plan = plan::plan(&disk, &found::Content::Empty, &parts, &wanted, &mut || random.bytes()).unwrap();
    assert_eq!(plan.purpose, Purpose::New);
    let error = run::run(&plan, &mut Forgetful(Memory::new(disk.size)), &mut |_| ()).unwrap_err();
    assert_eq!(error.code(), "disk-forgets");
}

fn installed(memory: &mut Memory) -> Box<found::Installed> {
    let node = match found::inspect(memory).unwrap() {
        found::Content::Node(node) => Some(node),
        _ => None,
    };
    node.unwrap()
}

/// The node brings a release itself: beside the running one, then it is started always.
fn bring(memory: &mut Memory, parts: &Parts, switch: bool) -> Result<(), RunError> {
    let node = installed(memory);
    if node.root_hash == parts.root_hash {
        return Ok(());
    }
    let plan = installer::beside::beside(memory.size(), &node, parts).unwrap();
    run::run(&plan, memory, &mut |_| ())?;
    if switch {
        let node = installed(memory);
        let plan = installer::beside::switch(&node, node.slot.other()).unwrap();
        run::run(&plan, memory, &mut |_| ())?;
    }
    Ok(())
}

#[test]
fn a_release_that_the_node_brings_itself() {
    let [one, two, three] = [("1.0", 1), ("1.1", 2), ("1.2", 3)].map(|(v, n)| Sample::new(v, n, n).parts());
    let mut before = node(&one);
    bring(&mut before, &two, true).unwrap();
    assert_eq!(starts(&mut before, &[&two]), Some(0));
    // Until somebody says so, what runs is started.
    let mut staged = before.clone();
    bring(&mut staged, &three, false).unwrap();
    assert_eq!(starts(&mut staged, &[&two]), Some(0));
    let mut whole = before.clone();
    whole.events = 0;
    bring(&mut whole, &three, true).unwrap();
    assert_eq!(starts(&mut whole, &[&three]), Some(0));
    for cut in 0..whole.events {
        for attempt in 0..TRIES {
            let mut memory = before.clone();
            memory.left = Some(cut);
            bring(&mut memory, &three, true).unwrap_err();
            let mut memory = memory.after_power_cut(&mut Random(cut * TRIES + attempt));
            assert!(starts(&mut memory, &[&two, &three]).is_some(), "cut at {cut}, {attempt}");
            bring(&mut memory, &three, true).unwrap();
            assert_eq!(starts(&mut memory, &[&three]), Some(0), "cut at {cut}, {attempt}");
        }
    }
    // Nothing is switched to that is not there.
    let mut alone = node(&one);
    assert!(installer::beside::switch(&installed(&mut alone), Slot::B).is_err());
}
