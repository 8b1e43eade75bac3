//! The host's root file system: laid out from locked packages and our agent, packed as erofs in the root of image tools.

use super::{disk::identifier, sbom, tree};
use crate::{
    cache::{Key, sha256_file},
    lock::{HOST_ROOT, IMAGE_TOOLS},
    root,
    sandbox::{SOURCE_DATE_EPOCH, Sandbox},
    step::Step,
    workshop::Workshop,
};
use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Raised when the steps below change.
const METHOD: &str = "1";
/// Compression, in clusters of 64 KiB.
const COMPRESSION: &[&str] = &["-zlz4hc,12", "-C65536"];

/// The packed root and the list of its files.
pub struct Root {
    /// The erofs image: whole blocks of 4096 bytes.
    pub image: PathBuf,
    /// CycloneDX list.
    pub sbom: PathBuf,
}

/// Builds the root with these files and this agent, or takes it from the cache.
pub fn build(workshop: &Workshop, files: &BTreeMap<String, String>, agent: &Path) -> Result<Root> {
    let tools = root::of_group(&workshop.cache, &workshop.inputs, IMAGE_TOOLS)?;
    let mut key = Key::default()
        .with("method", METHOD)
        .with("tools", &tools.key)
        .with("compression", COMPRESSION.concat())
        .with("agent", sha256_file(agent)?);
    for package in workshop.inputs.lock.group(HOST_ROOT)? {
        key = key.with(&package.name, package.sha256.as_bytes());
    }
    for path in files.keys() {
        key = key.with("file", path);
    }
    let entry = workshop.cache.entry("host-root", key, |dir| {
        let step = Step::start("host root", 0);
        let work = tempfile::tempdir_in(dir)?;
        let [unpacked, tree, out] = ["unpacked", "tree", "out"].map(|name| work.path().join(name));
        for folder in [&unpacked, &tree, &out] {
            std::fs::create_dir(folder)?;
        }
        step.say("unpacking packages");
        let packages = workshop.inputs.files(HOST_ROOT)?;
        let files = tree::lay_out(&packages, files.keys().map(String::as_str), agent, &unpacked, &tree)?;
        let list = sbom::cyclonedx(env!("CARGO_PKG_VERSION"), &files);
        std::fs::write(dir.join("sbom.json"), serde_json::to_string_pretty(&list)? + "\n")?;
        step.say("packing");
        std::fs::copy(pack(workshop, &tree, &out, "host root")?, dir.join("root.erofs"))?;
        step.done("packed");
        work.close().context("cannot remove the root's intermediate files")
    })?;
    Ok(Root { image: entry.join("root.erofs"), sbom: entry.join("sbom.json") })
}

/// Packs a folder into a file system below `out`; `name` decides its identifier.
pub(super) fn pack(workshop: &Workshop, tree: &Path, out: &Path, name: &str) -> Result<PathBuf> {
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

/// Modes that depend on nothing but whether a file may be executed.
fn set_modes(folder: &Path) -> Result<()> {
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755))?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            set_modes(&entry.path())?;
        } else {
            let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            std::fs::set_permissions(
                entry.path(),
                PermissionsExt::from_mode(if executable { 0o555 } else { 0o444 }),
            )?;
        }
    }
    Ok(())
}
