//! Renews the lock from the distribution's signed index, and says what changed.

use crate::{
    apt::{self, AptError, Index, Package},
    cache::Cache,
    deb,
    fetch::{self, FetchError, Sources},
    lock::{self, Input, Lock, LockError},
    recipe::{self, RecipeError},
    step::Step,
    store::{self, Store, StoreError},
    toolchain::{self, ToolchainError},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

/// The lock could not be renewed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// apt.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A new input.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The toolchain.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// The lock in the repository.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The requests in the repository.
    #[error(transparent)]
    Request(#[from] RecipeError),
    /// The index holds something that cannot be locked.
    #[error("the index describes {0} with a hash that is none")]
    Hash(String),
    /// Reading or writing failed.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// One difference between two locks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Package, or the path of a file of the Rust toolchain.
    pub name: String,
    /// What it is for.
    pub group: String,
    /// Version before; absent for a new input.
    pub before: Option<String>,
    /// Version now; absent for one that is not needed any more.
    pub now: Option<String>,
    /// Whether the new version comes from the archive of security updates.
    pub security_archive: bool,
    /// Highest urgency of the changelog's new entries.
    pub urgency: Option<String>,
    /// Identifiers of the vulnerabilities that the changelog's new entries name.
    pub fixes: Vec<String>,
}

/// The differences between two locks, without what changelogs say.
#[must_use]
pub fn differences(before: &Lock, now: &Lock) -> Vec<Change> {
    type Versions<'a> = BTreeMap<(&'a str, &'a str), (&'a str, Vec<&'a Input>)>;
    fn versions(lock: &Lock) -> Versions<'_> {
        let mut found: Versions = BTreeMap::new();
        for input in &lock.inputs {
            let entry = found.entry((&input.group, &input.name)).or_insert((&input.version, Vec::new()));
            entry.1.push(input);
        }
        found
    }
    let (old, new) = (versions(before), versions(now));
    let mut names: Vec<_> = old.keys().chain(new.keys()).copied().collect();
    names.sort_unstable();
    names.dedup();
    let change =
        |name: &str, group: &str, before: Option<&str>, now: Option<&str>, security_archive| Change {
            name: name.to_owned(),
            group: group.to_owned(),
            before: before.map(str::to_owned),
            now: now.map(str::to_owned),
            security_archive,
            urgency: None,
            fixes: Vec::new(),
        };
    let mut changes: Vec<Change> = names
        .into_iter()
        .filter_map(|key| {
            let (old, new) = (old.get(&key), new.get(&key));
            // Where the mirror keeps a file is no change of it.
            let hashes =
                |(_, files): &(&str, Vec<&Input>)| files.iter().map(|f| f.sha256).collect::<Vec<_>>();
            let same = old.map(hashes) == new.map(hashes);
            let security =
                new.is_some_and(|(_, files)| files.iter().any(|f| f.pool.starts_with("pool/updates/")));
            (!same).then(|| change(key.1, key.0, old.map(|o| o.0), new.map(|n| n.0), security))
        })
        .collect();
    if before.rust != now.rust {
        changes.push(change("rust", "rust", Some(&before.rust.version), Some(&now.rust.version), false));
    }
    changes
}

/// Resolves the requests anew, fetches what is new, writes the lock, and says what changed.
pub fn update(
    repository: &Path,
    cache: &Cache,
    sources: &Sources,
    keyring: &Path,
) -> Result<Vec<Change>, UpdateError> {
    let folder = recipe::folder(repository);
    let requests = recipe::requests(repository)?;
    let step = Step::start("update-inputs", 0);
    step.say("fetching and verifying the index");
    let index = Index::update(&requests.release, &apt::mirrors()?, keyring)?;
    step.say("resolving");
    let mut packages: Vec<(&str, Package)> = Vec::new();
    for (group, root) in [
        (lock::BUILD_ROOT, &requests.build_root),
        (lock::AGENT_ROOT, &requests.agent_root),
        (lock::HOST_ROOT, &requests.host_root),
        (lock::IMAGE_TOOLS, &requests.image_tools),
    ] {
        packages.extend(index.resolve(&root.packages)?.into_iter().map(|package| (group, package)));
    }
    for (group, name) in &requests.packages {
        packages.push((group, index.newest(name)?));
    }
    for (group, name) in &requests.sources {
        for file in index.source(name)? {
            packages.push((group, file));
        }
    }
    step.done("resolved");

    let store = Store::at(cache.folder("store"))?;
    let mut inputs =
        packages.into_iter().map(|(group, p)| locked(group, p)).collect::<Result<Vec<_>, _>>()?;
    let wanted: Vec<&Input> = inputs.iter().collect();
    let step = Step::start("inputs", wanted.len() as u64);
    let files = fetch::all(&store, &wanted, sources, &step)?;
    step.done("in the store");
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| UpdateError::Io { path, source }
    };
    for (input, file) in inputs.iter_mut().zip(&files) {
        input.sha1 = store::sha1(&std::fs::read(file).map_err(io(file))?);
    }
    inputs.sort();

    let version = toolchain_version(repository)?;
    let rust = toolchain::describe(&toolchain::installed(&version)?, &version, &requests.rust)?;
    let now = Lock { release: requests.release, inputs, rust };
    let path = folder.join(lock::FILE);
    let mut changes = if path.exists() { differences(&Lock::read(&folder)?, &now) } else { Vec::new() };
    for change in &mut changes {
        let new = now
            .inputs
            .iter()
            .find(|i| i.name == change.name && i.group == change.group && i.arch != "source");
        if let (Some(input), Some(before)) = (new, change.before.clone())
            && let Some(file) = store.get(input)?
            && let Some(text) = changelog(&file, &change.name)
        {
            (change.urgency, change.fixes) = news(&text, &before);
        }
    }
    std::fs::write(&path, now.to_text()).map_err(io(&path))?;
    Ok(changes)
}

fn locked(group: &str, package: Package) -> Result<Input, UpdateError> {
    let sha256 = package.sha256.parse().map_err(|_| UpdateError::Hash(package.name.clone()))?;
    let Package { name, version, arch, pool, size, .. } = package;
    Ok(Input { group: group.to_owned(), name, version, arch, pool, size, sha256, sha1: String::new() })
}

/// The version that `rust-toolchain.toml` names.
fn toolchain_version(repository: &Path) -> Result<String, UpdateError> {
    #[derive(serde::Deserialize)]
    struct File {
        toolchain: Toolchain,
    }
    #[derive(serde::Deserialize)]
    struct Toolchain {
        channel: String,
    }
    let file: File = recipe::read(&repository.join("rust-toolchain.toml"))?;
    Ok(file.toolchain.channel)
}

/// The changelog in a package; many share another package's and have none of their own.
fn changelog(package: &Path, name: &str) -> Option<String> {
    let name = format!("usr/share/doc/{name}/changelog.Debian.gz");
    deb::member(package, &name, |packed| {
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text)?;
        Ok(text)
    })
    .ok()
}

/// Urgency and fixed vulnerabilities in the entries of a changelog that are newer than a version (deb-changelog(5)).
fn news(changelog: &str, before: &str) -> (Option<String>, Vec<String>) {
    const URGENCIES: [&str; 5] = ["low", "medium", "high", "critical", "emergency"];
    // A rebuild without a change of the source has a suffix that the source's changelog lacks.
    let before =
        before.rsplit_once("+b").filter(|(_, n)| n.parse::<u32>().is_ok()).map_or(before, |(v, _)| v);
    let mut urgency = None;
    let mut fixes: Vec<String> = Vec::new();
    for line in changelog.lines() {
        if !line.starts_with(' ') && !line.is_empty() {
            if line.contains(&format!("({before})")) {
                break;
            }
            let found = line.split("urgency=").nth(1).map(|rest| rest.trim().to_lowercase());
            urgency = urgency.max(URGENCIES.iter().position(|u| found.as_deref() == Some(*u)));
        }
        let mut rest = line;
        while let Some(at) = rest.find("CVE-") {
            rest = &rest[at..];
            let end = rest[4..].find(|c: char| !c.is_ascii_digit() && c != '-').map_or(rest.len(), |e| e + 4);
            fixes.push(rest[..end].trim_end_matches('-').to_owned());
            rest = &rest[end..];
        }
    }
    fixes.sort();
    fixes.dedup();
    (urgency.map(|index| URGENCIES[index].to_owned()), fixes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Rust, tests::input};

    fn lock(inputs: Vec<Input>) -> Lock {
        Lock { release: "trixie".into(), inputs, rust: Rust { version: "1".into(), files: vec![] } }
    }

    #[test]
    fn changed_new_and_dropped_inputs_are_listed() {
        let (a, b, mut a2) = (input("a", b"a"), input("b", b"b"), input("a", b"a2"));
        a2.version = "1.0-2".into();
        a2.pool = "pool/updates/main/a/a_1.0-2_all.deb".into();
        let changes = differences(&lock(vec![a.clone(), b]), &lock(vec![a2, input("c", b"c")]));
        let found: Vec<_> = changes
            .iter()
            .map(|c| (c.name.as_str(), c.before.as_deref(), c.now.as_deref(), c.security_archive))
            .collect();
        let expected = [
            ("a", Some("1.0-1"), Some("1.0-2"), true),
            ("b", Some("1.0-1"), None, false),
            ("c", None, Some("1.0-1"), false),
        ];
        assert_eq!(found, expected);
        let moved = Input { pool: "pool/main/a/b_1.0-1_all.deb".into(), ..a.clone() };
        assert!(differences(&lock(vec![a]), &lock(vec![moved])).is_empty());
    }

    #[test]
    fn news_are_what_stands_above_the_version_before() {
        let text = "a (1.0-3) trixie-security; urgency=high\n\n  * Fix CVE-2026-1234, CVE-2026-99.\n\n -- X\n\n\
                    a (1.0-2) unstable; urgency=medium\n\n  * CVE-2026-1234 again\n\n\
                    a (1.0-1) unstable; urgency=emergency\n\n  * CVE-2020-1\n";
        let (urgency, fixes) = news(text, "1.0-1+b2");
        assert_eq!(urgency.as_deref(), Some("high"));
        assert_eq!(fixes, ["CVE-2026-1234", "CVE-2026-99"]);
    }
}
