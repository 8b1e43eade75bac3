//! `redoubt heap`: reading a heap's medium, or an image of it, without changing it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use heap::{Heap, ImageMedia, Key, Media, Merkle, OpenOptions, Owner, PAGE, Recovery, Snapshot, SpaceId};
use ring::hkdf::{HKDF_SHA256, Salt};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::output::{Failure, Progress, Reply};

const EXIT: &str = "Exit codes:
  0  sound, as far as this can be seen from the medium
  1  something is damaged, lost, missing or not what was asked for; it is named
  2  the command line was wrong, or a file that it names cannot be read";

#[derive(Debug, Subcommand)]
pub(crate) enum HeapCommand {
    /// Say what a medium holds: head, log, spaces, room
    #[command(after_help = EXIT)]
    Inspect(Inspect),
    /// Read everything and name what is damaged, and what it belongs to
    #[command(after_help = EXIT)]
    Verify(Verify),
    /// Copy what can be read into files, and say what is lost
    #[command(after_help = EXIT)]
    Export(Export),
}

#[derive(Debug, Args)]
pub(crate) struct Source {
    /// The medium, or an image of it
    #[arg(value_name = "FILE")]
    medium: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct KeyArgs {
    /// File with the 32-byte secret of the node that wrote it
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// File with the heap's own 32-byte key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The heap was made without a key
    #[arg(long)]
    plain: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    source: Source,
    /// Refuse a medium that ends before this commit: an older image
    #[arg(long, value_name = "EPOCH")]
    at_least: Option<u64>,
    /// Refuse any medium but the one of this name, in hexadecimal
    #[arg(long, value_name = "NAME")]
    media: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    source: Source,
    /// New directory for the files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(command: &HeapCommand) -> Result<Reply, Failure> {
    match command {
        HeapCommand::Inspect(args) => inspect(args),
        HeapCommand::Verify(args) => verify(args),
        HeapCommand::Export(args) => export(args),
    }
}

/// The tool looks for a heap's key among so many that a node's secret gives.
const KEYS: u64 = 1000;

impl Source {
    fn key(&self) -> Result<Option<Key>, Failure> {
        if let Some(path) = &self.key.key_file {
            return Ok(Some(Key::new(*read_key(path)?)));
        }
        if let Some(path) = &self.key.secret_file {
            return node_key(&*read_key(path)?, &medium(&self.medium)?).map(Some);
        }
        Ok(self.key.plain.then(Key::plain))
    }

    fn needed(&self) -> Result<Key, Failure> {
        let missing =
            || Failure::usage("no-key", "give --secret-file, --key-file, or --plain if it has no key");
        self.key()?.ok_or_else(missing)
    }
}

/// The highest of a node's keys that the medium names, or its first one.
fn node_key(secret: &[u8; 32], media: &dyn Media) -> Result<Key, Failure> {
    let copies = heap::inspect(media, None).map_err(|error| Failure::of("medium-failed", &error))?;
    let named: Vec<_> = copies.iter().filter_map(|copy| copy.says.as_ref()).map(|says| says.key).collect();
    for number in (1..KEYS).rev() {
        let key = Key::new(*heap_key(secret, number)?);
        if named.contains(&key.id()) {
            return Ok(key);
        }
    }
    Ok(Key::new(*heap_key(secret, 0)?))
}

fn read_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, Failure> {
    let wrong = |why: String| {
        Failure::usage("bad-key-file", format!("{} must hold 32 bytes and no more: {why}", path.display()))
    };
    let mut key = Zeroizing::new([0; 32]);
    let mut file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    file.read_exact(key.as_mut_slice()).map_err(|error| wrong(error.to_string()))?;
    match file.read(&mut [0]) {
        Ok(0) => Ok(key),
        _ => Err(wrong("it is longer".to_owned())),
    }
}

/// A key of a node's heap by its number, as the replica derives it from the node's secret.
fn heap_key(secret: &[u8; 32], number: u64) -> Result<Zeroizing<[u8; 32]>, Failure> {
    let which = if number == 0 { String::new() } else { format!(" {number}") };
    let mut key = Zeroizing::new([0; 32]);
    Salt::new(HKDF_SHA256, b"redoubt-replica-keys-1")
        .extract(secret)
        .expand(&[b"heap", which.as_bytes()], HKDF_SHA256)
        .and_then(|output| output.fill(key.as_mut_slice()))
        .map_err(|_| {
            Failure::new("no-key", "the heap's key cannot be derived; the cryptographic library is broken")
        })?;
    Ok(key)
}

fn medium(path: &Path) -> Result<ImageMedia, Failure> {
    ImageMedia::open(path).map_err(|error| Failure::usage("cannot-read", host_os::attest::chain(&error)))
}

fn open(source: &Source, key: &Key, options: &OpenOptions) -> Result<(Heap, Recovery), Failure> {
    let media = medium(&source.medium)?;
    Heap::open(Box::new(media), key, options).map_err(|error| Failure::of(error.code(), &error))
}

fn inspect(args: &Inspect) -> Result<Reply, Failure> {
    let source = &args.source;
    let key = source.key()?;
    let media = medium(&source.medium)?;
    let copies = heap::inspect(&media, key.as_ref()).map_err(|error| Failure::of("medium-failed", &error))?;
    let mut text = format!("{}: {} bytes", source.medium.display(), media.len());
    let mut heads = Vec::new();
    for copy in copies {
        text += &format!("\nsuperblock at {}: {}", copy.offset, copy.state);
        let mut head = json!({"offset": copy.offset, "state": copy.state.to_string()});
        if let Some(says) = copy.says {
            text += &format!(
                "\n  version {}, medium {}, key {}, {} bytes, log {} bytes, superblock {}, checkpoint at commit {}",
                says.version, says.media, says.key, says.length, says.ring, says.generation, says.epoch
            );
            head["says"] = json!({"version": says.version, "media": says.media.to_string(),
                "key": says.key.to_string(), "length": says.length, "log_capacity": says.ring,
                "generation": says.generation, "epoch": says.epoch});
        }
        heads.push(head);
    }
    let mut reply = json!({"length": media.len(), "superblocks": heads});
    drop(media);
    let Some(key) = key else {
        text += "\nwithout a key nothing of this is checked; give one to see what the heap holds";
        return Ok(Reply::good(text, reply));
    };
    let (heap, recovery) = match open(source, &key, &OpenOptions::default()) {
        Ok(opened) => opened,
        Err(failure) => {
            text += &format!("\nit cannot be opened: {} ({})", failure.message, failure.code);
            reply["error"] = json!({"code": failure.code, "message": failure.message});
            return Ok(Reply { text, json: reply, good: false });
        }
    };
    let status = heap.status();
    let snapshot = heap.snapshot();
    let failed = |error| Failure::of("index-damaged", &error);
    let (spaces, keys) = (snapshot.spaces().map_err(failed)?, snapshot.meta_keys().map_err(failed)?);
    text += &format!(
        "\nlast commit {}, {} read from the log{}\nroom {} bytes, used {}, waiting {}\n{} values of metadata",
        recovery.epoch,
        recovery.replayed,
        if recovery.torn_tail { ", a torn one discarded" } else { "" },
        status.capacity,
        status.used,
        status.waiting,
        keys.len()
    );
    for (space, pages) in &spaces {
        text += &format!("\nspace {}: {pages} pages", space.0);
    }
    text += "\nwhether the medium as a whole is an older image cannot be seen from it: verify --at-least";
    reply["heap"] = json!({"epoch": recovery.epoch, "replayed": recovery.replayed, "torn_tail": recovery.torn_tail,
        "superblock_repaired": recovery.superblock_repaired, "sealed": status.sealed,
        "capacity": status.capacity, "used": status.used, "waiting": status.waiting, "log_used": status.log_used,
        "metadata": keys.len(),
        "spaces": spaces.iter().map(|(space, pages)| json!({"number": space.0, "pages": pages})).collect::<Vec<_>>()});
    Ok(Reply::good(text, reply))
}

fn verify(args: &Verify) -> Result<Reply, Failure> {
    let key = args.source.needed()?;
    let media = args.media.as_deref().map(|name| {
        let bytes = hex::decode(name).ok().and_then(|bytes| bytes.try_into().ok());
        let wrong =
            || Failure::usage("bad-name", format!("{name:?} is no name of a medium: 32 hexadecimal digits"));
        bytes.map(heap::MediaId).ok_or_else(wrong)
    });
    let options =
        OpenOptions { at_least: args.at_least, media: media.transpose()?, ..OpenOptions::default() };
    let mut progress = Progress::new();
    progress.step("reading the log");
    let (heap, recovery) = open(&args.source, &key, &options)?;
    progress.step("reading every page");
    let audit = heap.audit().map_err(|error| Failure::of("index-damaged", &error))?;
    progress.finish();
    let owner = |owner: &Owner| match owner {
        Owner::Space(space) => format!("space {}", space.0),
        Owner::Meta(key) => format!("metadata {}", hex::encode(key)),
        Owner::Index => "the index".to_owned(),
    };
    let good = audit.damaged.is_empty() && audit.lost.is_empty();
    let mut text = format!("commit {}: {} pages and index nodes are sound", recovery.epoch, audit.sound);
    for (offset, of) in &audit.damaged {
        text += &format!("\ndamaged: the page at byte {offset}, of {}; what it held is lost", owner(of));
    }
    if !audit.lost.is_empty() {
        text += &format!("\n{} pages of room are neither used nor free", audit.lost.len());
    }
    if !good {
        text += "\nthe rest can be read: redoubt heap export";
    }
    let anchored = if recovery.anchored {
        "it is no older image"
    } else {
        "whether it is an older image was not checked (--at-least)"
    };
    text += &format!("\n{anchored}");
    let damaged: Vec<Value> =
        audit.damaged.iter().map(|(offset, of)| json!({"offset": offset, "of": owner(of)})).collect();
    let json = json!({"epoch": recovery.epoch, "torn_tail": recovery.torn_tail, "anchored": recovery.anchored,
        "superblock_repaired": recovery.superblock_repaired, "sound": audit.sound, "damaged": damaged,
        "unaccounted": audit.lost.len()});
    Ok(Reply { text, json, good })
}

fn export(args: &Export) -> Result<Reply, Failure> {
    let key = args.source.needed()?;
    let failed =
        |error: io::Error| Failure::usage("cannot-write", format!("{}: {error}", args.out.display()));
    let options = OpenOptions { salvage: true, ..OpenOptions::default() };
    let mut progress = Progress::new();
    progress.step("reading the log");
    let (heap, recovery) = open(&args.source, &key, &options)?;
    let snapshot = heap.snapshot();
    fs::create_dir(&args.out).map_err(failed)?;
    fs::create_dir(args.out.join("metadata")).map_err(failed)?;
    let mut lost = Vec::new();
    if let Some(acknowledged) = recovery.lost {
        lost.push(format!("commits {} to {acknowledged}", recovery.epoch + 1));
    }
    let mut spaces = Vec::new();
    let numbers = snapshot.spaces().map_err(|error| Failure::of("index-damaged", &error))?;
    for (space, pages) in numbers {
        progress.step(&format!("space {}", space.0));
        let name = format!("space-{}", space.0);
        let gone = export_space(&snapshot, space, pages, &args.out.join(&name)).map_err(failed)?;
        lost.extend(ranges(&gone).iter().map(|range| format!("space {}: pages {range}", space.0)));
        spaces.push(json!({"number": space.0, "pages": pages, "file": name, "lost": ranges(&gone)}));
    }
    progress.step("metadata");
    let mut metadata = Vec::new();
    let keys = snapshot.meta_keys().map_err(|error| Failure::of("index-damaged", &error))?;
    for (number, key) in keys.iter().enumerate() {
        let name = format!("metadata/{number:06}");
        let value = snapshot.meta(key);
        if let Ok(Some(value)) = &value {
            fs::write(args.out.join(&name), value).map_err(failed)?;
        } else {
            lost.push(format!("metadata {}", hex::encode(key)));
        }
        metadata.push(json!({"key": hex::encode(key), "file": value.is_ok().then_some(name)}));
    }
    let mut reply = json!({"epoch": recovery.epoch, "torn_tail": recovery.torn_tail, "lost": lost, "spaces": spaces,
        "metadata": metadata, "root": null});
    if lost.is_empty() {
        progress.step("Merkle root");
        let root = Merkle::new().update(&snapshot).map_err(|error| Failure::of("page-damaged", &error))?;
        reply["root"] = json!(hex::encode(root));
    }
    fs::write(args.out.join("manifest.json"), format!("{reply:#}\n")).map_err(failed)?;
    progress.finish();
    let mut text = format!(
        "commit {}: {} spaces and {} values of metadata are in {}",
        recovery.epoch,
        spaces.len(),
        metadata.len(),
        args.out.display()
    );
    lost.iter().for_each(|what| text += &format!("\nlost: {what}"));
    let good = lost.is_empty();
    Ok(Reply { text, json: reply, good })
}

/// Writes a space into a sparse file; the pages that could not be read.
fn export_space(snapshot: &Snapshot, space: SpaceId, pages: u64, path: &Path) -> io::Result<Vec<u64>> {
    let file = File::create_new(path)?;
    file.set_len(pages * PAGE as u64)?;
    let mut lost = Vec::new();
    let mut block = [0; PAGE];
    let mut copy = |page: u64| match snapshot.read_page(space, page, &mut block) {
        Ok(()) if block == [0; PAGE] => Ok(()),
        Ok(()) => file.write_all_at(&block, page * PAGE as u64),
        Err(_) => {
            lost.push(page);
            Ok(())
        }
    };
    match snapshot.present_pages(space, 0, usize::MAX) {
        Ok(present) => present.into_iter().try_for_each(&mut copy)?,
        // A part of the index is gone: each page says for itself whether it can be found.
        Err(_) => (0..pages).try_for_each(&mut copy)?,
    }
    Ok(lost)
}

/// Numbers as ranges for people: "3", "7-9".
fn ranges(numbers: &[u64]) -> Vec<String> {
    let runs = numbers.chunk_by(|one, other| one + 1 == *other);
    let range = |run: &[u64]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    runs.map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use heap::{Batch, FileMedia};

    const SECRET: [u8; 32] = [7; 32];

    struct Made {
        directory: tempfile::TempDir,
        source: Source,
    }

    /// A heap with two spaces and a value, closed without a checkpoint or with one.
    fn made(checkpoint: bool) -> Made {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nvram");
        let secret = directory.path().join("secret");
        fs::write(&secret, SECRET).unwrap();
        let key = Key::new(*heap_key(&SECRET, 0).unwrap());
        let media = Box::new(FileMedia::open_or_create(&path, 2 << 20).unwrap());
        let options = OpenOptions { create: true, ..OpenOptions::default() };
        let (mut heap, _) = Heap::open(media, &key, &options).unwrap();
        for number in 0..5 {
            let page = [number as u8 + 1; PAGE];
            let mut batch = Batch::new();
            batch.put_page(SpaceId(1), number, &page).put_page(SpaceId(2), 1000 + number, &page);
            batch.put_meta(b"name", vec![number as u8; 5000]);
            heap.commit(&batch).unwrap();
        }
        if checkpoint {
            heap.checkpoint().unwrap();
        }
        drop(heap);
        let key = KeyArgs { secret_file: Some(secret), key_file: None, plain: false };
        Made { source: Source { medium: path, key }, directory }
    }

    impl Made {
        fn verify(&self, at_least: Option<u64>) -> Result<Reply, Failure> {
            let key =
                KeyArgs { secret_file: self.source.key.secret_file.clone(), key_file: None, plain: false };
            let source = Source { medium: self.source.medium.clone(), key };
            verify(&Verify { source, at_least, media: None })
        }

        fn export(self) -> (Result<Reply, Failure>, tempfile::TempDir) {
            let out = self.directory.path().join("out");
            (export(&Export { source: self.source, out }), self.directory)
        }

        fn damage(&self, offset: u64) {
            let file = File::options().write(true).open(&self.source.medium).unwrap();
            file.write_all_at(&[0xa5; 16], offset).unwrap();
        }
    }

    #[test]
    fn a_sound_medium_is_read_and_not_changed() {
        let made = made(true);
        let before = fs::read(&made.source.medium).unwrap();
        let reply = made.verify(Some(5)).unwrap();
        assert!(reply.good && reply.json["damaged"].as_array().unwrap().is_empty(), "{reply:?}");
        let without = Source {
            medium: made.source.medium.clone(),
            key: KeyArgs { secret_file: None, key_file: None, plain: false },
        };
        let seen = inspect(&Inspect { source: without }).unwrap();
        assert_eq!(seen.json["superblocks"][0]["state"], "unchecked");
        let path = made.source.medium.clone();
        let (reply, directory) = made.export();
        let reply = reply.unwrap();
        assert!(reply.good && reply.json["root"].is_string(), "{reply:?}");
        let space = fs::read(directory.path().join("out/space-2")).unwrap();
        assert_eq!((space.len(), space[1003 * PAGE], space[0]), (1005 * PAGE, 4, 0));
        assert_eq!(fs::read(directory.path().join("out/metadata/000000")).unwrap(), [4; 5000]);
        assert!(fs::read(path).unwrap() == before, "nothing was written to the medium");
    }

    #[test]
    fn what_is_wrong_has_a_name() {
        let code = |result: Result<Reply, Failure>| result.unwrap_err().code;
        assert_eq!(code(made(true).verify(Some(100))), "rolled-back");
        let cut = made(true);
        File::options().write(true).open(&cut.source.medium).unwrap().set_len(1 << 20).unwrap();
        assert_eq!(code(cut.verify(None)), "medium-truncated");
        let other = made(true);
        fs::write(other.source.key.secret_file.as_ref().unwrap(), [8; 32]).unwrap();
        assert_eq!(code(other.verify(None)), "other-key");
        let head = made(true);
        head.damage(100);
        head.damage(4196);
        assert_eq!(code(head.verify(None)), "superblocks-damaged");
        let log = made(false);
        log.damage(16384 + 20);
        assert_eq!(code(log.verify(None)), "log-damaged");
        let (reply, _directory) = log.export();
        let reply = reply.unwrap();
        assert!(!reply.good && reply.text.contains("lost: commits 1 to 5"), "{reply:?}");
        let file = made(true);
        fs::write(&file.source.medium, vec![3; 1 << 20]).unwrap();
        assert_eq!(code(file.verify(None)), "not-a-heap");
    }

    #[test]
    fn a_heap_under_a_later_key_of_the_node_is_read() {
        let made = made(false);
        let key = made.source.needed().unwrap();
        let media = Box::new(FileMedia::open(&made.source.medium).unwrap());
        let (mut heap, _) = Heap::open(media, &key, &OpenOptions::default()).unwrap();
        heap.rekey(&Key::new(*heap_key(&SECRET, 3).unwrap())).unwrap();
        drop(heap);
        assert!(made.verify(None).unwrap().good);
    }

    #[test]
    fn a_damaged_page_is_named_and_the_rest_is_exported() {
        let made = made(true);
        // Slots begin behind the log; the first holds the first page of space 1.
        made.damage(16384 + (64 << 10) + 100);
        let reply = made.verify(None).unwrap();
        assert!(!reply.good && reply.json["damaged"][0]["of"] == "space 1", "{reply:?}");
        let (reply, directory) = made.export();
        let reply = reply.unwrap();
        assert_eq!(reply.json["lost"], json!(["space 1: pages 0"]));
        let space = fs::read(directory.path().join("out/space-1")).unwrap();
        assert_eq!((space[0], space[PAGE]), (0, 2));
    }

    #[test]
    fn the_key_is_the_replicas() {
        // The same value stands in the replica's test of its keys.
        let name = |number| Key::new(*heap_key(&[1; 32], number).unwrap()).id().to_string();
        assert_eq!(name(0), "782ceac38f8347fe67d3c2987bdf209e");
        assert_eq!(name(1), "16b2ee60eaa00fd7d0ccaa7760d73877");
        assert_eq!(ranges(&[1, 3, 4, 5, 9]), ["1", "3-5", "9"]);
    }
}
