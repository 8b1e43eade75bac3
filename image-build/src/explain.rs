//! What changed between two releases: packages, kernel options, files, sizes, inputs of the measurement.

use crate::{
    compare,
    guest::names,
    host::{self, pe},
    kernel,
    lock::Lock,
    published::{Release, ReleaseError},
    reproduce::json_differences,
    update::{self, Change},
};
use release::{Digest, FileName};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The differences between two releases.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// Whether the manifests say the same.
    pub same: bool,
    /// Places in the manifests that differ, as `place: before -> now`: version, command line, measurements...
    pub manifest: Vec<String>,
    /// Sizes in bytes of the artefacts that changed theirs, before and now; 0 for one that is not there.
    pub sizes: Changes<u64>,
    /// Locked inputs.
    pub inputs: Vec<Change>,
    /// Options of the guest's kernel with their values before and now; `n` for off.
    pub kernel_options: Changes<String>,
    /// Options of the host's kernel.
    pub host_kernel_options: Changes<String>,
    /// Files in the initrd with size and SHA-256 before and now; none for a file that is not there.
    pub initrd: Changes<Option<Entry>>,
    /// Files in the host's root, likewise.
    pub host_root: Changes<Option<Entry>>,
    /// Command line of the host's kernel before and now, if it changed.
    pub host_command_line: Option<(String, String)>,
    /// What could not be compared, because a release lacks the file.
    pub missing: Vec<String>,
}

/// What changed, by name: before and now.
pub type Changes<V> = BTreeMap<String, (V, V)>;

/// A file in an initrd, or in the host's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Bytes.
    pub size: u64,
    /// SHA-256.
    pub sha256: String,
}

/// Compares two releases.
pub fn explain(before: &Release, now: &Release) -> Result<Explanation, ReleaseError> {
    let mut manifest = Vec::new();
    let value = |release: &Release| serde_json::to_value(&release.manifest).unwrap_or_default();
    json_differences("", &value(before), &value(now), &mut manifest);
    let size = |release: &Release| -> BTreeMap<String, u64> {
        release.manifest.files().map(|(name, file)| (name.to_owned(), file.size)).collect()
    };
    let mut found = Explanation {
        same: manifest.is_empty(),
        manifest,
        sizes: changed(&size(before), &size(now), 0),
        inputs: Vec::new(),
        kernel_options: BTreeMap::new(),
        host_kernel_options: BTreeMap::new(),
        initrd: BTreeMap::new(),
        host_root: BTreeMap::new(),
        host_command_line: None,
        missing: Vec::new(),
    };
    let initrd = |release: &Release| release.manifest.guest.files.get(FileName::Initrd).path.clone();
    let both = |a: &str, b: &str, missing: &mut Vec<String>| -> Result<Option<[Vec<u8>; 2]>, ReleaseError> {
        let (Some(before), Some(now)) = (before.file(a)?, now.file(b)?) else {
            missing.push(a.to_owned());
            return Ok(None);
        };
        Ok(Some([before, now]))
    };
    if let Some([a, b]) = both(names::LOCK, names::LOCK, &mut found.missing)? {
        let lock = |bytes: &[u8]| Lock::parse(&String::from_utf8_lossy(bytes)).ok();
        match (lock(&a), lock(&b)) {
            (Some(a), Some(b)) => found.inputs = update::differences(&a, &b),
            _ => found.missing.push(format!("a readable {}", names::LOCK)),
        }
    }
    let symbols = |bytes: &[u8]| kernel::symbols(&String::from_utf8_lossy(bytes));
    if let Some([a, b]) = both(names::KERNEL_CONFIG, names::KERNEL_CONFIG, &mut found.missing)? {
        found.kernel_options = changed(&symbols(&a), &symbols(&b), "n".to_owned());
    }
    let optional = |map: BTreeMap<String, Entry>| map.into_iter().map(|(k, v)| (k, Some(v))).collect();
    if let Some([a, b]) = both(&initrd(before), &initrd(now), &mut found.missing)? {
        found.initrd = changed(&optional(entries(&a)), &optional(entries(&b)), None);
    }
    let (Some(host_before), Some(host_now)) = (&before.manifest.host, &now.manifest.host) else {
        return Ok(found);
    };
    let (config, sbom) = (host::names::KERNEL_CONFIG, host::names::SBOM);
    if let Some([a, b]) = both(config, config, &mut found.missing)? {
        found.host_kernel_options = changed(&symbols(&a), &symbols(&b), "n".to_owned());
    }
    if let Some([a, b]) = both(sbom, sbom, &mut found.missing)? {
        found.host_root = changed(&optional(listed(&a)), &optional(listed(&b)), None);
    }
    if let Some([a, b]) = both(&host_before.uki.path, &host_now.uki.path, &mut found.missing)? {
        let line = |uki: &[u8]| {
            String::from_utf8_lossy(pe::section(uki, ".cmdline").unwrap_or_default()).into_owned()
        };
        found.host_command_line = Some((line(&a), line(&b))).filter(|(a, b)| a != b);
    }
    Ok(found)
}

/// Keys whose values differ; `absent` stands for the value of a key that is not there.
fn changed<V: Clone + PartialEq>(
    before: &BTreeMap<String, V>,
    now: &BTreeMap<String, V>,
    absent: V,
) -> BTreeMap<String, (V, V)> {
    let keys = before.keys().chain(now.keys());
    keys.filter_map(|key| {
        let value = |map: &BTreeMap<String, V>| map.get(key).unwrap_or(&absent).clone();
        let (a, b) = (value(before), value(now));
        (a != b).then(|| (key.clone(), (a, b)))
    })
    .collect()
}

fn entries(initrd: &[u8]) -> BTreeMap<String, Entry> {
    compare::files(initrd)
        .into_iter()
        .map(|(name, content)| {
            (name, Entry { size: content.len() as u64, sha256: Digest::of(&content).to_string() })
        })
        .collect()
}

/// The files that a CycloneDX list of a host's root names.
fn listed(list: &[u8]) -> BTreeMap<String, Entry> {
    let list: Value = serde_json::from_slice(list).unwrap_or_default();
    let parts = |value: &Value| value["components"].as_array().cloned().unwrap_or_default();
    let file = |file: &Value| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let size = file["properties"][0]["value"].as_str()?.parse().ok()?;
        Some((text(&file["name"])?, Entry { size, sha256: text(&file["hashes"][0]["content"])? }))
    };
    parts(&list).iter().flat_map(parts).filter_map(|value| file(&value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_of_the_hosts_root_come_from_its_list() {
        let list = |content: &str| {
            let file = json!({ "name": "/usr/bin/x", "hashes": [{ "content": content }], "properties": [{ "value": "3" }] });
            listed(json!({ "components": [{ "name": "x", "components": [file] }] }).to_string().as_bytes())
        };
        let found = changed(&list("aa"), &list("bb"), Entry { size: 0, sha256: String::new() });
        let entry = |sha256: &str| Entry { size: 3, sha256: sha256.to_owned() };
        assert_eq!(found, BTreeMap::from([("/usr/bin/x".to_owned(), (entry("aa"), entry("bb")))]));
        assert!(listed(b"no list").is_empty());
    }

    #[test]
    fn changed_keys_are_listed_with_both_values() {
        let map =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let found = changed(&map(&[("A", "y"), ("B", "y")]), &map(&[("A", "y"), ("C", "y")]), "n".to_owned());
        assert_eq!(
            found,
            BTreeMap::from([
                ("B".to_owned(), ("y".to_owned(), "n".to_owned())),
                ("C".to_owned(), ("n".to_owned(), "y".to_owned())),
            ])
        );
    }
}
