//! The host's root file system: laid out from locked packages and our agent, packed as erofs in the root of image tools.

use super::{HostError, sbom, tree};
use crate::{
    cache::{Key, sha256_file},
    error::{ImageError, Result},
    files::{self, FileError, failed},
    lock::{HOST_ROOT, IMAGE_TOOLS},
    root,
    sandbox::{SOURCE_DATE_EPOCH, Sandbox},
    step::Step,
    workshop::Workshop,
};
use hwspec::Seen;
use hwspec::probe::{IMAGE_QEMU, QEMU_QUESTIONS, qemu_answers};
use installer::layout::identifier;
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Raised when the steps below change.
const METHOD: &str = "3";
/// Compression, in clusters of 64 KiB.
const COMPRESSION: &[&str] = &["-zlz4hc,12", "-C65536"];

/// The packed root and the list of its files.
pub struct Root {
    /// The erofs image: whole blocks of 4096 bytes.
    pub image: PathBuf,
    /// CycloneDX list.
    pub sbom: PathBuf,
}

/// Builds the root with these files, this agent and the root of trust for releases, or takes it from the cache.
pub fn build(
    workshop: &Workshop,
    named: &BTreeMap<String, String>,
    agent: &Path,
    trusted: Option<&[u8]>,
) -> Result<Root> {
    let tools = root::of_group(&workshop.cache, &workshop.inputs, IMAGE_TOOLS)?;
    let mut key = Key::default()
        .with("method", METHOD)
        .with("tools", &tools.key)
        .with("compression", COMPRESSION.concat())
        .with("agent", sha256_file(agent)?);
    for package in workshop.inputs.lock.group(HOST_ROOT)? {
        key = key.with(&package.name, package.sha256.as_bytes());
    }
    if let Some(trusted) = trusted {
        key = key.with("trusted", trusted);
    }
    for path in named.keys() {
        key = key.with("file", path);
    }
    let entry = workshop.cache.entry("host-root", key, |dir| {
        let step = Step::start("host root", 0);
        let (work, [unpacked, tree, out]) = files::work(dir, ["unpacked", "tree", "out"])?;
        step.say("unpacking packages");
        let packages = workshop.inputs.files(HOST_ROOT)?;
        let files = tree::lay_out(&packages, named.keys().map(String::as_str), agent, &unpacked, &tree);
        let mut files = files.map_err(HostError::from)?;
        if let Some(trusted) = trusted {
            files.insert(tree::TRUSTED.to_owned(), tree::own(&tree, tree::TRUSTED, trusted)?);
        }
        step.say("asking QEMU what it can do");
        let answers = ask_qemu(workshop, &tree, &out)?;
        let place = IMAGE_QEMU.trim_start_matches('/');
        files.insert(place.to_owned(), tree::own(&tree, place, &answers)?);
        let list = sbom::cyclonedx(env!("CARGO_PKG_VERSION"), &files);
        files::write(&dir.join("sbom.json"), format!("{list:#}\n"))?;
        step.say("packing");
        files::copy(&pack(workshop, &tree, &out, "host root")?, &dir.join("root.erofs"))?;
        step.done("packed");
        Ok::<_, ImageError>(files::close(work)?)
    })?;
    Ok(Root { image: entry.join("root.erofs"), sbom: entry.join("sbom.json") })
}

/// What QEMU answers to the questions of the hardware check, as it runs from the files in `tree`: no start of a host has to wait for
/// that then. `out` takes what goes in and out.
fn ask_qemu(workshop: &Workshop, tree: &Path, out: &Path) -> Result<Vec<u8>> {
    files::write(&out.join("questions"), QEMU_QUESTIONS)?;
    let tools = root::of_group(&workshop.cache, &workshop.inputs, IMAGE_TOOLS)?;
    let sandbox =
        Sandbox::new(&tools, &workshop.surroundings).real_clock().read(tree, "/src").write(out, "/out");
    let libraries = "/src/usr/lib/x86_64-linux-gnu";
    let mut qemu = vec!["/src/lib64/ld-linux-x86-64.so.2", "--library-path", libraries];
    qemu.extend(["/src/usr/bin/qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]);
    qemu.extend(["-chardev", "file,id=line,path=/out/answers,input-path=/out/questions"]);
    qemu.extend(["-mon", "chardev=line,mode=control"]);
    sandbox.run("asking QEMU what it can do", &qemu)?;
    let answers = files::read(&out.join("answers"))?;
    let mut found = qemu_answers(&String::from_utf8_lossy(&answers));
    let lists = [&mut found.accelerators, &mut found.devices, &mut found.objects];
    let complete = lists.into_iter().all(|list| match list {
        Seen::Known(names) => {
            names.sort();
            !names.is_empty()
        }
        Seen::Unknown(_) => false,
    });
    if !complete {
        return Err(HostError::Qemu(Box::new(found)).into());
    }
    Ok(serde_json::json!(found).to_string().into_bytes())
}

/// Packs a folder into a file system below `out`; `name` decides its identifier.
fn pack(workshop: &Workshop, tree: &Path, out: &Path, name: &str) -> Result<PathBuf> {
    // The umask of whoever builds decided them so far.
    set_modes(tree)?;
    let tools = root::of_group(&workshop.cache, &workshop.inputs, IMAGE_TOOLS)?;
    let uuid = identifier(name).to_string();
    let mut pack =
        vec!["mkfs.erofs", "--quiet", "-T", SOURCE_DATE_EPOCH, "--all-time", "--all-root", "-U", &uuid];
    pack.extend(COMPRESSION);
    pack.extend(["/out/packed.erofs", "/src"]);
    let sandbox = Sandbox::new(&tools, &workshop.surroundings).read(tree, "/src").write(out, "/out");
    sandbox.run(&format!("packing the {name}"), &pack)?;
    Ok(out.join("packed.erofs"))
}

/// The files in a packed root, by path, with `(link)` behind the name of a link.
pub fn unpack(workshop: &Workshop, image: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let (work, [source, out]) = files::work(&workshop.cache.folder("."), ["in", "out"])?;
    files::write(&source.join("root.erofs"), image)?;
    let tools = root::of_group(&workshop.cache, &workshop.inputs, IMAGE_TOOLS)?;
    let sandbox = Sandbox::new(&tools, &workshop.surroundings).read(&source, "/src").write(&out, "/out");
    let unpack = ["fsck.erofs", "--extract=/out/tree", "--no-preserve", "/src/root.erofs"];
    sandbox.run("unpacking a root", &unpack)?;
    let mut found = Vec::new();
    collect(&out.join("tree"), "", &mut found)?;
    files::close(work)?;
    Ok(found)
}

fn collect(folder: &Path, place: &str, found: &mut Vec<(String, Vec<u8>)>) -> Result<(), FileError> {
    for path in files::list(folder)? {
        let name = format!("{place}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_symlink() {
            let target = std::fs::read_link(&path).map_err(failed("read", &path))?;
            found.push((name + " (link)", target.to_string_lossy().into_owned().into_bytes()));
        } else if path.is_dir() {
            collect(&path, &name, found)?;
        } else {
            found.push((name, files::read(&path)?));
        }
    }
    Ok(())
}

/// Modes that depend on nothing but whether a file may be executed.
fn set_modes(folder: &Path) -> Result<(), FileError> {
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode))
            .map_err(failed("set the mode of", path))
    };
    set(folder, 0o755)?;
    for path in files::list(folder)? {
        let metadata = path.symlink_metadata().map_err(failed("look at", &path))?;
        if metadata.is_dir() {
            set_modes(&path)?;
        } else {
            set(&path, if metadata.permissions().mode() & 0o100 != 0 { 0o555 } else { 0o444 })?;
        }
    }
    Ok(())
}
