//! What is in the images as built, by other programs than those that made them.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test says where it failed")]

mod skip;

use image_build::{guest, host};
use release::Digest;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// All that can be executed; docs/REPRODUCING.md says why each is there.
const OF_THE_GUEST: [&str; 2] = ["init", "replica"];
const OF_THE_HOST: [&str; 4] =
    ["/lib64/ld-linux-x86-64.so.2", "/usr/bin/host-os", "/usr/bin/qemu-system-x86_64", "/usr/sbin/mke2fs"];

fn images() -> Option<PathBuf> {
    let folder = std::env::var_os("REDOUBT_HOST_IMAGE").map(PathBuf::from);
    if folder.is_none() {
        skip::skip("REDOUBT_HOST_IMAGE names no built image of the host; run 'cargo xtask test'");
    }
    folder
}

/// Files and links below a folder, by their path from there.
fn below(folder: &Path, place: &str, found: &mut BTreeMap<String, PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{place}/{}", path.file_name().unwrap().to_str().unwrap());
        let metadata = path.symlink_metadata().unwrap();
        assert_eq!(
            metadata.permissions().mode() & 0o7022,
            if metadata.is_symlink() { 0o022 } else { 0 },
            "{name}"
        );
        if metadata.is_dir() {
            below(&path, &name, found);
        } else {
            found.insert(name, path);
        }
    }
}

#[test]
fn the_list_of_the_hosts_root_names_all_files_and_four_can_be_executed() {
    let Some(images) = images() else { return };
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let extracted = Command::new("fsck.erofs")
        .arg(format!("--extract={}", tree.display()))
        .arg("--preserve-perms")
        .arg(images.join(host::names::ROOT))
        .output()
        .unwrap();
    assert!(extracted.status.success(), "{extracted:?}");
    let mut files = BTreeMap::new();
    below(&tree, "", &mut files);
    let list: Value =
        serde_json::from_slice(&std::fs::read(images.join(host::names::SBOM)).unwrap()).unwrap();
    let mut listed = BTreeMap::new();
    for package in list["components"].as_array().unwrap() {
        assert!(package["version"].is_string(), "{package}");
        assert!(package["name"] == "host-os" || package["hashes"][0]["content"].is_string(), "{package}");
        for file in package["components"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            listed.insert(text(&file["name"]), text(&file["hashes"][0]["content"]));
        }
    }
    let hash = |path: &PathBuf| Digest::of(&std::fs::read(path).unwrap()).to_string();
    let found: BTreeMap<String, String> =
        files.iter().map(|(name, path)| (name.clone(), hash(path))).collect();
    assert_eq!(found, listed);
    let executable = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o111 != 0;
    let programs: Vec<&str> =
        files.iter().filter(|(_, path)| executable(path)).map(|(name, _)| name.as_str()).collect();
    assert_eq!(programs, OF_THE_HOST);
}

#[test]
fn two_files_of_the_guest_can_be_executed() {
    let Some(images) = images() else { return };
    let packed = std::fs::read(images.join(guest::names::INITRD)).unwrap();
    let archive = zstd::decode_all(packed.as_slice()).unwrap();
    let cpio = Command::new("cpio")
        .args(["--list", "--verbose", "--quiet", "--numeric-uid-gid"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut cpio = cpio.unwrap();
    let mut input = cpio.stdin.take().unwrap();
    let written = std::thread::spawn(move || input.write_all(&archive));
    let listing = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
    written.join().unwrap().unwrap();
    let files = listing.lines().filter(|line| !line.starts_with('d'));
    let programs: Vec<&str> = files
        .filter(|line| line.split(' ').next().unwrap().contains(['x', 's']))
        .map(|line| line.rsplit(' ').next().unwrap())
        .collect();
    assert_eq!(programs, OF_THE_GUEST, "{listing}");
}

#[test]
fn what_can_be_executed_is_justified() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/REPRODUCING.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let row = |machine: &str, path: &str| format!("| {machine} | `{path}` | ");
    let mut rows: Vec<String> = OF_THE_HOST.iter().map(|path| row("host", path)).collect();
    rows.extend(OF_THE_GUEST.iter().map(|name| row("guest", &format!("/{name}"))));
    for row in &rows {
        assert!(docs.contains(row), "{row}");
    }
    let described =
        docs.lines().filter(|line| line.starts_with("| guest | `/") || line.starts_with("| host | `/"));
    assert_eq!(described.count(), rows.len());
}
