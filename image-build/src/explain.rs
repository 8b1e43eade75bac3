//! What changed between two releases: packages, kernel options, files, sizes, inputs of the measurement.

use crate::{
    compare,
    guest::names,
    kernel,
    lock::Lock,
    reproduce::{Release, ReleaseError, json_differences},
    update::{self, Change},
};
use release::{Digest, FileName};
use serde::Serialize;
use std::collections::BTreeMap;

/// The differences between two releases.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// Whether the manifests say the same.
    pub same: bool,
    /// Places in the manifests that differ, as `place: before -> now`: version, command line, measurements...
    pub manifest: Vec<String>,
    /// Sizes of the artefacts, in bytes, before and now.
    pub sizes: BTreeMap<String, (u64, u64)>,
    /// Locked inputs.
    pub inputs: Vec<Change>,
    /// Kernel options with their values before and now; `n` for off.
    pub kernel_options: BTreeMap<String, (String, String)>,
    /// Files in the initrd with size and SHA-256 before and now; none for a file that is not there.
    pub initrd: BTreeMap<String, (Option<Entry>, Option<Entry>)>,
    /// What could not be compared, because a release lacks the file.
    pub missing: Vec<String>,
}

/// A file in an initrd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Bytes.
    pub size: usize,
    /// SHA-256.
    pub sha256: String,
}

/// Compares two releases.
pub fn explain(before: &Release, now: &Release) -> Result<Explanation, ReleaseError> {
    let mut manifest = Vec::new();
    let value = |release: &Release| serde_json::to_value(&release.manifest).unwrap_or_default();
    json_differences("", &value(before), &value(now), &mut manifest);
    let size = |release: &Release, name| release.manifest.guest.files.get(name).size;
    let mut found = Explanation {
        same: manifest.is_empty(),
        manifest,
        sizes: FileName::ALL.iter().map(|n| (n.to_string(), (size(before, *n), size(now, *n)))).collect(),
        inputs: Vec::new(),
        kernel_options: BTreeMap::new(),
        initrd: BTreeMap::new(),
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
    if let Some([a, b]) = both(names::KERNEL_CONFIG, names::KERNEL_CONFIG, &mut found.missing)? {
        let symbols = |bytes: &[u8]| kernel::symbols(&String::from_utf8_lossy(bytes));
        found.kernel_options = changed(&symbols(&a), &symbols(&b), "n".to_owned());
    }
    if let Some([a, b]) = both(&initrd(before), &initrd(now), &mut found.missing)? {
        let (a, b) = (entries(&a), entries(&b));
        let optional = |map: BTreeMap<String, Entry>| map.into_iter().map(|(k, v)| (k, Some(v))).collect();
        found.initrd = changed(&optional(a), &optional(b), None);
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
            (name, Entry { size: content.len(), sha256: Digest::of(&content).to_string() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
