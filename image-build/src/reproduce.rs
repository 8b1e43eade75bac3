//! Holds a release against its sources: rebuilds it and compares, or recomputes hashes and measurements alone.

use crate::{
    compare::{self, Difference},
    guest::{self, input_names, names},
    recipe,
    workshop::Workshop,
};
use anyhow::{Context, Result};
use release::{Digest, Envelope, FileName, Manifest, ManifestError, VcpuMeasurement};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

/// The manifest of a release cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Not there.
    #[error("cannot read {path}: {source}; give the manifest of a release or the directory that holds it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a manifest.
    #[error("{path} is no release manifest: {source}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// Another release than this checkout makes.
    #[error(
        "the release was made from {what} {expected}, this checkout has {found}; check out the commit of the release \
         ({commit}) and try again"
    )]
    OtherSources {
        /// Commit or lock.
        what: &'static str,
        /// In the manifest.
        expected: String,
        /// Here.
        found: String,
        /// Commit in the manifest.
        commit: String,
    },
}

impl ReleaseError {
    /// A short fixed name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "release-unreadable",
            Self::Manifest { .. } => "manifest-refused",
            Self::OtherSources { .. } => "other-sources",
        }
    }
}

/// A release on a disk: its manifest and the folder in which its files lie. Signatures are not looked at: what is
/// rebuilt is compared with what the manifest says, whoever signed it.
pub struct Release {
    /// The manifest.
    pub manifest: Manifest,
    folder: PathBuf,
}

impl Release {
    /// Reads the manifest; `path` may be the folder that holds it.
    pub fn read(path: &Path) -> Result<Self, ReleaseError> {
        let path = if path.is_dir() { path.join(names::MANIFEST) } else { path.to_owned() };
        let bytes =
            std::fs::read(&path).map_err(|source| ReleaseError::Unreadable { path: path.clone(), source })?;
        let envelope = Envelope::from_bytes(&bytes)
            .map_err(|source| ReleaseError::Manifest { path: path.clone(), source })?;
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        Ok(Self { manifest: envelope.manifest().clone(), folder })
    }

    /// A file of the release, if it is there.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>, ReleaseError> {
        let path = self.folder.join(name);
        match std::fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ReleaseError::Unreadable { path, source }),
        }
    }

    /// Names and hashes of everything that the manifest binds: the three files of the guest, and what auditors need.
    fn bound(&self) -> Vec<(String, Option<Digest>)> {
        let files = FileName::ALL.map(|name| self.manifest.guest.files.get(name));
        let mut bound: Vec<_> = files.iter().map(|file| (file.path.clone(), Some(file.sha256))).collect();
        let config = self.manifest.inputs.get(input_names::KERNEL_CONFIG).and_then(|text| text.parse().ok());
        bound.push((names::KERNEL_CONFIG.to_owned(), config));
        bound.push((names::LOCK.to_owned(), Some(self.manifest.input_lock)));
        bound
    }
}

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
    /// Where diffoscope's reports are.
    pub reports: Vec<PathBuf>,
}

/// Recomputes hashes and launch measurements from the files beside the manifest, without building anything.
pub fn verify_only(release: &Release) -> Result<Verdict> {
    let mut artefacts = Vec::new();
    let mut contents = BTreeMap::new();
    for (name, expected) in release.bound() {
        let content = release.file(&name)?;
        let audit = name == names::KERNEL_CONFIG || name == names::LOCK;
        let note = match (&content, audit) {
            (None, true) => continue,
            (None, false) => Some("the file is not beside the manifest; download it".to_owned()),
            _ => None,
        };
        let found = content.as_deref().map(Digest::of);
        let text = |digest: Option<Digest>| digest.map_or_else(|| "none".to_owned(), |d| d.to_string());
        artefacts.push(Artefact {
            name: name.clone(),
            equal: found.is_some() && found == expected,
            release: text(expected),
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
    }
    let equal = manifest.is_empty() && artefacts.iter().all(|artefact| artefact.equal);
    Ok(Verdict { equal, artefacts, manifest, left_out: Vec::new(), reports: Vec::new() })
}

fn measurement_differences(release: &[VcpuMeasurement], found: &[VcpuMeasurement]) -> Vec<String> {
    let pairs = release.iter().zip(found).filter(|(a, b)| a != b);
    pairs
        .map(|(a, b)| {
            format!("measurement of {} x {}: {} -> {}", a.vcpu_type, a.vcpus, a.measurement, b.measurement)
        })
        .collect()
}

/// Options of [`reproduce`].
#[derive(Debug, Default)]
pub struct Options {
    /// Artefacts that are not built, by the names that the manifest gives them to the guest.
    pub without: Vec<FileName>,
    /// Folder for diffoscope's reports and for what was rebuilt, when something differs.
    pub keep: Option<PathBuf>,
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

/// Rebuilds in a workshop without finished outputs and compares every artefact.
pub fn reproduce(workshop: &Workshop, release: &Release, options: &Options) -> Result<Verdict> {
    let rebuilt = guest::contents_without(workshop, release.manifest.profile, &options.without)?;
    let mut verdict = Verdict {
        equal: true,
        artefacts: Vec::new(),
        manifest: Vec::new(),
        left_out: options.without.iter().map(ToString::to_string).collect(),
        reports: Vec::new(),
    };
    for (name, expected) in release.bound() {
        let Some(content) = rebuilt.files.get(name.as_str()) else { continue };
        let found = Digest::of(content);
        let equal = expected == Some(found);
        let (mut differences, mut note) = (Vec::new(), None);
        if !equal {
            match release.file(&name)? {
                Some(theirs) if expected == Some(Digest::of(&theirs)) => {
                    differences = compare::differences(&name, &theirs, content);
                    if let Some(keep) = &options.keep {
                        verdict.reports.extend(report(keep, &name, &theirs, content)?);
                    }
                }
                Some(_) => {
                    note = Some("the file beside the manifest is another one again; download it".to_owned())
                }
                None => note = Some("to see where, put the release's file beside its manifest".to_owned()),
            }
        }
        let release = expected.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
        verdict.artefacts.push(Artefact {
            name,
            equal,
            release,
            found: found.to_string(),
            differences,
            note,
        });
    }
    if let Some(mut manifest) = rebuilt.manifest.clone() {
        // Whose ID blocks count is the owners' word, no result of the build.
        manifest.guest.id_block = release.manifest.guest.id_block;
        json_differences("", &to_value(&release.manifest)?, &to_value(&manifest)?, &mut verdict.manifest);
    }
    verdict.equal = verdict.manifest.is_empty() && verdict.artefacts.iter().all(|artefact| artefact.equal);
    Ok(verdict)
}

fn to_value(manifest: &Manifest) -> Result<Value> {
    serde_json::to_value(manifest).context("the manifest cannot be written")
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
fn report(keep: &Path, name: &str, release: &[u8], rebuild: &[u8]) -> Result<Option<PathBuf>> {
    let place = |side: &str| keep.join(side).join(name);
    for (side, content) in [("release", release), ("rebuild", rebuild)] {
        let path = place(side);
        std::fs::create_dir_all(keep.join(side))?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let html = keep.join(format!("{name}.txt"));
    let ran = Command::new("diffoscope")
        .arg("--text")
        .arg(&html)
        .arg(place("release"))
        .arg(place("rebuild"))
        .output();
    // Not installed: both files are there to be compared by hand.
    Ok(ran.is_ok_and(|_| html.is_file()).then_some(html))
}

#[cfg(test)]
mod tests {
    use super::*;

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
