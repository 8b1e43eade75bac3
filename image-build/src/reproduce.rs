//! Holds a release against its sources: rebuilds it and compares, or recomputes hashes and measurements alone.

use crate::{
    compare::{self, Difference},
    error::Result,
    files::{self, FileError},
    guest::{self, input_names, names},
    host::{self, pe, root, verity},
    images::{self, Scope},
    kernel,
    published::{Bound, Release, ReleaseError},
    recipe,
    trust::{self, Trust},
    workshop::Workshop,
};
use release::{Digest, FileName, HostImages, Manifest, Profile, VcpuMeasurement};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

/// What became of one artefact.
#[derive(Debug, Serialize)]
pub struct Artefact {
    /// Name of the file.
    pub name: String,
    /// Whether it is what the manifest says.
    pub equal: bool,
    /// SHA-256 by the manifest.
    pub release: String,
    /// SHA-256 found.
    pub found: String,
    /// Where they differ, if the release's file is at hand.
    pub differences: Vec<Difference>,
    /// Remark for people.
    pub note: Option<String>,
}

/// The verdict.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Whether everything that was looked at is equal.
    pub equal: bool,
    /// One for each artefact.
    pub artefacts: Vec<Artefact>,
    /// Places in the manifest that differ, as `place: release -> found`.
    pub manifest: Vec<String>,
    /// Artefacts that were left out on demand.
    pub left_out: Vec<String>,
    /// Whom the release's nodes trust, if that was given or taken from its installer: no result of a build.
    pub trust: Option<String>,
    /// Where diffoscope's reports are.
    pub reports: Vec<PathBuf>,
}

/// Recomputes hashes, launch measurements and the host's root hash from the files beside the manifest, without building
/// anything.
pub fn verify_only(release: &Release) -> Result<Verdict> {
    let mut artefacts = Vec::new();
    let mut contents = BTreeMap::new();
    for Bound { name, sha256, audit } in release.bound() {
        let content = release.file(&name)?;
        let note = match (&content, audit) {
            (None, true) => continue,
            (None, false) => Some("the file is not beside the manifest; download it".to_owned()),
            _ => None,
        };
        let found = content.as_deref().map(Digest::of);
        let text = |digest: Option<Digest>| digest.map_or_else(|| "none".to_owned(), |d| d.to_string());
        artefacts.push(Artefact {
            name: name.clone(),
            equal: found.is_some() && found == sha256,
            release: text(sha256),
            found: text(found),
            differences: Vec::new(),
            note,
        });
        contents.insert(name, content.unwrap_or_default());
    }
    let guest = &release.manifest.guest;
    let mut manifest = Vec::new();
    if artefacts.iter().all(|artefact| artefact.equal) {
        let file = |name| contents[&guest.files.get(name).path].as_slice();
        let files = [FileName::Kernel, FileName::Initrd, FileName::Firmware].map(file);
        let machines: Vec<(String, u32)> =
            guest.measurements.iter().map(|entry| (entry.vcpu_type.clone(), entry.vcpus)).collect();
        let found = guest::measure(guest, files, &machines)?;
        manifest = measurement_differences(&guest.measurements, &found);
        if let Some(host) = &release.manifest.host {
            let file = |file: &release::File| contents[&file.path].as_slice();
            manifest.extend(host_differences(
                host,
                file(&host.uki),
                file(&host.root),
                file(&host.root_hash_tree),
            ));
        }
    }
    let equal = manifest.is_empty() && artefacts.iter().all(|artefact| artefact.equal);
    Ok(Verdict { equal, artefacts, manifest, left_out: Vec::new(), trust: None, reports: Vec::new() })
}

/// What the manifest says of the host beside hashes of files, held against the files.
fn host_differences(host: &HostImages, uki: &[u8], root: &[u8], hash_tree: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, release: String, computed: String| {
        if release != computed {
            found.push(format!("{what}: {release} -> {computed}"));
        }
    };
    let (root_hash, area) = verity::Tree::salted_as(root, hash_tree).map_or_else(
        || ("none".to_owned(), "none".to_owned()),
        |tree| (hex::encode(tree.root), Digest::of(&tree.hash_area).to_string()),
    );
    compare("root hash of the host's root", host.verity_root_hash.to_string(), root_hash.clone());
    compare("hash tree of the host's root", Digest::of(hash_tree).to_string(), area);
    let hash = pe::authenticode_hash(uki).map_or_else(|error| error.to_string(), hex::encode);
    compare("Authenticode hash of the unified kernel image", host.uki_authenticode.to_string(), hash);
    if let Some(measured) = &host.measured {
        // Whose certificates count, the installer says: it is compared whole.
        let release = release::Measured { certificates: Vec::new(), ..measured.clone() };
        let computed =
            host::measured(uki).map_or_else(|error| error.to_string(), |found| format!("{found:?}"));
        compare("what is measured of the unified kernel image", format!("{release:?}"), computed);
    }
    let command_line = pe::section(uki, ".cmdline").unwrap_or_default();
    if !String::from_utf8_lossy(command_line).contains(&root_hash) {
        found.push(format!(
            "command line in the unified kernel image: it does not name the root hash {root_hash}"
        ));
    }
    found
}

fn measurement_differences(release: &[VcpuMeasurement], found: &[VcpuMeasurement]) -> Vec<String> {
    let pairs = release.iter().zip(found).filter(|(a, b)| a != b);
    pairs
        .map(|(a, b)| {
            format!("measurement of {} x {}: {} -> {}", a.vcpu_type, a.vcpus, a.measurement, b.measurement)
        })
        .collect()
}

/// Takes the kernels of a release as they are, after holding them against its manifest, so that they need not be built.
pub fn take_kernels(workshop: &mut Workshop, release: &Release) -> Result<()> {
    let manifest = &release.manifest;
    let says = |key: &str| manifest.inputs.get(key).and_then(|text| text.parse().ok());
    let guest = &manifest.guest.files.kernel;
    let guest = release.checked(&guest.path, Some(guest.sha256))?;
    let config = release.checked(names::KERNEL_CONFIG, says(input_names::KERNEL_CONFIG))?;
    let mut kernels = vec![(kernel::GUEST, guest, config)];
    if let Some(host) = &manifest.host {
        let uki = release.checked(&host.uki.path, Some(host.uki.sha256))?;
        let linux = pe::section(&uki, ".linux").ok_or_else(|| ReleaseError::NoKernel {
            name: host.uki.path.clone(),
            why: "it has no section with a kernel".to_owned(),
        })?;
        let config = release.checked(host::names::KERNEL_CONFIG, says(input_names::HOST_KERNEL_CONFIG))?;
        kernels.push((kernel::HOST, linux.to_vec(), config));
    }
    for (name, image, config) in kernels {
        let folder = workshop.cache.folder("given").join(name);
        files::make_folder(&folder)?;
        let built = kernel::Built { image: folder.join("bzImage"), config: folder.join("config") };
        files::write(&built.image, image)?;
        files::write(&built.config, config)?;
        workshop.kernels.insert(name, built);
    }
    Ok(())
}

/// Takes whom production nodes trust as the release's installer has it, if the checkout does not say it: it is the cloud's
/// choice and no result of the build. The verdict names it, to be compared with what the cloud says.
pub fn take_trust(workshop: &mut Workshop, release: &Release) -> Result<()> {
    let installer = release.manifest.host.as_ref().and_then(|host| host.installer.as_ref());
    let known = workshop.trust.is_some() || recipe::folder(&workshop.repository).join(trust::FOLDER).is_dir();
    if let (Some(file), Profile::Production, false) = (installer, release.manifest.profile, known) {
        let uki = release.checked(&file.path, Some(file.sha256))?;
        workshop.trust = Some(Trust::of_installer(&uki)?);
    }
    Ok(())
}

/// That the checkout is what the release was made from; otherwise differences would mean nothing.
pub fn require_same_sources(release: &Release, repository: &Path) -> Result<(), ReleaseError> {
    let manifest = &release.manifest;
    let commit = manifest.source_commit.clone();
    let cargo_lock = manifest.inputs.get(input_names::CARGO_LOCK).cloned();
    let lock = std::fs::read(recipe::folder(repository).join(crate::lock::FILE)).unwrap_or_default();
    let cargo = std::fs::read(repository.join("Cargo.lock")).unwrap_or_default();
    for (what, expected, found) in [
        ("commit", commit.clone(), guest::commit(repository)),
        ("the locked inputs", manifest.input_lock.to_string(), Digest::of(&lock).to_string()),
        (
            "the Cargo.lock",
            cargo_lock.unwrap_or_else(|| "nothing".to_owned()),
            Digest::of(&cargo).to_string(),
        ),
    ] {
        if expected != found {
            return Err(ReleaseError::OtherSources { what, expected, found, commit });
        }
    }
    Ok(())
}

/// Rebuilds in a workshop without finished outputs and compares every artefact. `keep` is a folder for unequal files and
/// diffoscope's reports on them.
pub fn reproduce(workshop: &Workshop, release: &Release, keep: Option<&Path>) -> Result<Verdict> {
    let scope = if release.manifest.host.is_some() { Scope::Whole } else { Scope::Guest };
    let rebuilt = images::release(workshop, release.manifest.profile, scope)?;
    compare(workshop, release, &rebuilt, keep)
}

/// Compares a release with what was rebuilt.
fn compare(
    workshop: &Workshop,
    release: &Release,
    rebuilt: &images::Release,
    keep: Option<&Path>,
) -> Result<Verdict> {
    let mut verdict = Verdict {
        equal: true,
        artefacts: Vec::new(),
        manifest: Vec::new(),
        left_out: workshop.kernels.keys().map(|name| format!("kernel of the {name}")).collect(),
        trust: workshop.trust.as_ref().map(Trust::summary),
        reports: Vec::new(),
    };
    for Bound { name, sha256, .. } in release.bound() {
        let content = rebuilt.files.get(name.as_str());
        let found = content.map(|content| Digest::of(content));
        let equal = found.is_some() && sha256 == found;
        let (mut differences, mut note) = (Vec::new(), None);
        if let Some(content) = content.filter(|_| !equal) {
            match release.file(&name)? {
                Some(theirs) if sha256 == Some(Digest::of(&theirs)) => {
                    differences = differences_of(workshop, &name, &theirs, content)?;
                    if let Some(keep) = keep {
                        verdict.reports.extend(report(keep, &name, &theirs, content)?);
                    }
                }
                Some(_) => {
                    note = Some("the file beside the manifest is another one again; download it".to_owned());
                }
                None => note = Some("to see where, put the release's file beside its manifest".to_owned()),
            }
        } else if !equal {
            note = Some("this checkout makes no such file".to_owned());
        }
        let text = |digest: Option<Digest>| digest.map_or_else(|| "none".to_owned(), |d| d.to_string());
        verdict.artefacts.push(Artefact {
            name,
            equal,
            release: text(sha256),
            found: text(found),
            differences,
            note,
        });
    }
    let mut manifest = rebuilt.manifest.clone();
    // Whose ID blocks count is the owners' word, no result of the build.
    manifest.guest.id_block = release.manifest.guest.id_block;
    json_differences("", &to_value(&release.manifest), &to_value(&manifest), &mut verdict.manifest);
    verdict.equal = verdict.manifest.is_empty() && verdict.artefacts.iter().all(|artefact| artefact.equal);
    Ok(verdict)
}

/// Where two files differ. The host's root is unpacked by the tools that packed it.
fn differences_of(
    workshop: &Workshop,
    name: &str,
    release: &[u8],
    rebuild: &[u8],
) -> Result<Vec<Difference>> {
    if name == host::names::ROOT {
        let contents = [release, rebuild].map(|image| root::unpack(workshop, image));
        // A root that cannot be unpacked is compared as it is.
        if let [Ok(a), Ok(b)] = contents {
            return Ok(compare::trees(name, &a, &b, release, rebuild));
        }
    }
    Ok(compare::differences(name, release, rebuild))
}

fn to_value(manifest: &Manifest) -> Value {
    serde_json::to_value(manifest).unwrap_or_default()
}

/// Leaves that differ, with their place.
pub(crate) fn json_differences(place: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let mut keys: Vec<&String> = x.keys().chain(y.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let of =
                    |object: &serde_json::Map<String, Value>| object.get(key).cloned().unwrap_or(Value::Null);
                json_differences(&format!("{place}/{key}"), &of(x), &of(y), found);
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            for (index, (x, y)) in x.iter().zip(y).enumerate() {
                json_differences(&format!("{place}/{index}"), x, y, found);
            }
        }
        _ if a != b => found.push(format!("{place}: {a} -> {b}")),
        _ => {}
    }
}

/// Keeps both files of a difference, and diffoscope's report on them if that program is installed.
fn report(keep: &Path, name: &str, release: &[u8], rebuild: &[u8]) -> Result<Option<PathBuf>, FileError> {
    let place = |side: &str| keep.join(side).join(name);
    for (side, content) in [("release", release), ("rebuild", rebuild)] {
        let path = place(side);
        files::make_folder(&keep.join(side))?;
        files::write(&path, content)?;
    }
    let text = keep.join(format!("{name}.txt"));
    let ran = Command::new("diffoscope")
        .arg("--text")
        .arg(&text)
        .arg(place("release"))
        .arg(place("rebuild"))
        .output();
    // Not installed: both files are there to be compared by hand.
    Ok(ran.is_ok_and(|_| text.is_file()).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use release::Envelope;

    /// A small release in a folder: SeaBIOS stands for firmware without SEV metadata, any bytes do.
    fn release(folder: &Path, forge: impl Fn(&mut Manifest)) -> Release {
        let contents =
            [("vmlinuz", &b"kernel"[..]), ("initrd.zst", b"initrd"), ("firmware.bin", &[0x55; 4096])];
        for (name, content) in contents {
            std::fs::write(folder.join(name), content).unwrap();
        }
        let [kernel, initrd, firmware] =
            contents.map(|(name, content)| release::File::describe(name, content));
        let mut guest = release::Guest {
            files: release::Files { kernel, initrd, firmware },
            command_line: "quiet".into(),
            vcpu_type: "EPYC-v4".into(),
            policy: 0x30000,
            guest_features: 1,
            id_block: None,
            measurements: Vec::new(),
        };
        let machines = [("EPYC-v4".to_owned(), 1), ("EPYC-v4".to_owned(), 2)];
        guest.measurements = guest::measure(&guest, contents.map(|(_, content)| content), &machines).unwrap();
        let (version, profile) = ("1".to_owned(), release::Profile::Virtual);
        let mut manifest = Manifest {
            version,
            security_epoch: 1,
            profile,
            source_commit: "unknown".to_owned(),
            input_lock: Digest([0; 32]),
            guest,
            host: None,
            inputs: BTreeMap::new(),
        };
        forge(&mut manifest);
        std::fs::write(folder.join(names::MANIFEST), Envelope::new(manifest).unwrap().to_bytes()).unwrap();
        Release::read(folder).unwrap()
    }

    /// Gives the release in a folder a host with a small root.
    fn add_host(folder: &Path) -> HostImages {
        let root = [[1; 4096], [2; 4096]].concat();
        let tree = verity::Tree::new(&root, [3; 32]).unwrap();
        let line = format!("quiet dm-mod.create=\"{}\"", tree.table("a", "b"));
        let kernel = pe::samples::stub();
        let sections = [(".cmdline", line.as_bytes()), (".linux", &kernel)];
        let uki = pe::unified_kernel_image(&pe::samples::stub(), &sections).unwrap();
        let uki_authenticode = Digest(pe::authenticode_hash(&uki).unwrap());
        let measured = Some(host::measured(&uki).unwrap());
        let [uki, root, root_hash_tree] =
            [(host::names::UKI, uki), (host::names::ROOT, root), (host::names::VERITY, tree.hash_area)].map(
                |(name, content)| {
                    std::fs::write(folder.join(name), &content).unwrap();
                    release::File::describe(name, &content)
                },
            );
        let verity_root_hash = Digest(tree.root);
        HostImages {
            uki,
            uki_authenticode,
            root,
            root_hash_tree,
            verity_root_hash,
            installer: None,
            measured,
        }
    }

    #[test]
    fn the_hosts_root_hash_hash_tree_and_kernel_image_are_recomputed() {
        let folder = tempfile::tempdir().unwrap();
        let host = add_host(folder.path());
        let with = |change: &dyn Fn(&mut HostImages)| {
            let mut host = host.clone();
            change(&mut host);
            verify_only(&release(folder.path(), |manifest| manifest.host = Some(host.clone()))).unwrap()
        };
        let sound = with(&|_| {});
        assert!(sound.equal && sound.artefacts.len() == 6, "{sound:?}");
        for (what, change) in [
            (
                "root hash of the host's root",
                &(|host: &mut HostImages| host.verity_root_hash.0[0] ^= 1) as &dyn Fn(&mut HostImages),
            ),
            ("Authenticode hash", &|host| host.uki_authenticode.0[0] ^= 1),
            ("what is measured", &|host| host.measured.as_mut().unwrap().sections[0].sha256.0[0] ^= 1),
            ("what is measured", &|host| host.measured.as_mut().unwrap().kernel_authenticode.0[0] ^= 1),
        ] {
            let forged = with(change);
            assert!(!forged.equal && forged.manifest.len() == 1, "{forged:?}");
            assert!(forged.manifest[0].starts_with(what), "{forged:?}");
        }
        // Another root with a manifest that names it: neither hash tree nor command line are its own.
        let other = vec![3; 8192];
        std::fs::write(folder.path().join(host::names::ROOT), &other).unwrap();
        let forged = with(&|host| host.root = release::File::describe(host::names::ROOT, &other));
        assert_eq!(forged.manifest.len(), 3, "{forged:?}");
        assert!(forged.manifest[2].contains("does not name the root hash"), "{forged:?}");
        let changed = with(&|_| {});
        assert_eq!(changed.artefacts.iter().filter(|a| !a.equal).count(), 1, "{changed:?}");
    }

    #[test]
    fn an_authentic_download_is_verified_without_building() {
        let folder = tempfile::tempdir().unwrap();
        let verdict = verify_only(&release(folder.path(), |_| {})).unwrap();
        assert!(verdict.equal && verdict.artefacts.len() == 3, "{verdict:?}");
    }

    #[test]
    fn a_changed_cut_or_missing_file_and_a_forged_measurement_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let unequal = |verdict: &Verdict| -> Vec<String> {
            assert!(!verdict.equal);
            verdict.artefacts.iter().filter(|a| !a.equal).map(|a| a.name.clone()).collect()
        };
        let forged = verify_only(&release(folder.path(), |manifest| {
            manifest.guest.measurements[1].measurement.0[0] ^= 1;
        }))
        .unwrap();
        assert!(unequal(&forged).is_empty());
        assert!(forged.manifest[0].starts_with("measurement of EPYC-v4 x 2: "), "{forged:?}");
        let command_line = verify_only(&release(folder.path(), |m| m.guest.command_line += " x")).unwrap();
        assert_eq!(command_line.manifest.len(), 2, "{command_line:?}");

        let authentic = release(folder.path(), |_| {});
        std::fs::write(folder.path().join("vmlinuz"), b"kerneL").unwrap();
        std::fs::write(folder.path().join("initrd.zst"), b"init").unwrap();
        std::fs::remove_file(folder.path().join("firmware.bin")).unwrap();
        let verdict = verify_only(&authentic).unwrap();
        assert_eq!(unequal(&verdict), ["vmlinuz", "initrd.zst", "firmware.bin"]);
        assert!(verdict.artefacts[2].note.as_deref().is_some_and(|note| note.contains("download")));
    }

    #[test]
    fn a_checkout_of_other_sources_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let other = release(folder.path(), |manifest| {
            manifest.source_commit = "0".repeat(40);
        });
        let refused = require_same_sources(&other, folder.path()).unwrap_err();
        assert_eq!(refused.code(), "other-sources");
        assert!(refused.to_string().contains(&"0".repeat(40)), "{refused}");
    }

    #[test]
    fn leaves_of_a_manifest_that_differ_are_named() {
        let a = serde_json::json!({ "x": { "y": 1, "z": [1, 2] }, "same": true });
        let b = serde_json::json!({ "x": { "y": 2, "z": [1, 3] }, "same": true, "new": "n" });
        let mut found = Vec::new();
        json_differences("", &a, &b, &mut found);
        assert_eq!(found, ["/new: null -> \"n\"", "/x/y: 1 -> 2", "/x/z/1: 2 -> 3"]);
    }
}
