//! Brings locked inputs into the store, from the first source that has them: local directories, the mirrors that the
//! machine's apt has configured, the snapshot archive. Where a file comes from does not matter: its hash decides.

use crate::{
    apt::{self, AptError, Mirror},
    lock::Input,
    step::Step,
    store::{Store, StoreError},
};
use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Downloads at the same time.
const WORKERS: usize = 4;

/// Where inputs may come from, in this order.
#[derive(Debug, Default)]
pub struct Sources {
    /// Directories with inputs that were brought by hand, under the names that mirrors give them or their SHA-256.
    pub directories: Vec<PathBuf>,
    /// Do not ask the mirrors.
    pub no_mirrors: bool,
    /// Base address of a snapshot archive, which keeps every version that the distribution ever published.
    pub snapshot: Option<String>,
    mirrors: OnceLock<Result<Vec<Mirror>, String>>,
}

impl Sources {
    /// From the environment: `REDOUBT_INPUTS` (directories, separated by colons) and `REDOUBT_SNAPSHOT`.
    #[must_use]
    pub fn from_environment() -> Self {
        let directories = std::env::var_os("REDOUBT_INPUTS");
        Self {
            directories: directories.map(|d| std::env::split_paths(&d).collect()).unwrap_or_default(),
            snapshot: std::env::var("REDOUBT_SNAPSHOT").ok().filter(|s| !s.is_empty()),
            ..Self::default()
        }
    }

    /// These directories and nothing else.
    #[must_use]
    pub fn only(directories: Vec<PathBuf>) -> Self {
        Self { directories, no_mirrors: true, ..Self::default() }
    }

    fn mirrors(&self) -> Result<&[Mirror], String> {
        let found = self.mirrors.get_or_init(|| apt::mirrors().map_err(|error| error.to_string()));
        found.as_deref().map_err(Clone::clone)
    }
}

/// One source did not give the input.
#[derive(Debug)]
pub struct Attempt {
    /// Which source.
    pub from: String,
    /// Why not.
    pub why: AttemptError,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.from, self.why)
    }
}

/// Why a source did not give an input.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The directory has no such file.
    #[error("not there")]
    NotThere,
    /// It gave something else.
    #[error(transparent)]
    Wrong(StoreError),
    /// No address is known.
    #[error("{0}")]
    NotConfigured(String),
    /// It did not answer, or not with the file.
    #[error("{0}")]
    Unreachable(String),
}

/// An input could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No source has it.
    #[error(
        "{name} {version} could not be fetched; put {file} into a directory and name it with --from or REDOUBT_INPUTS, or renew the lock with 'redoubt image update-inputs'. Tried:\n  {}",
        list(tried)
    )]
    Unavailable {
        /// Package.
        name: String,
        /// Version.
        version: String,
        /// Name of the file.
        file: String,
        /// What each source said.
        tried: Vec<Attempt>,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn list(tried: &[Attempt]) -> String {
    tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

/// The file of an input in the store, fetched if it is not there yet.
pub fn input(store: &Store, input: &Input, sources: &Sources) -> Result<PathBuf, FetchError> {
    if let Some(there) = store.get(input)? {
        return Ok(there);
    }
    let mut tried = Vec::new();
    for directory in &sources.directories {
        let names = [input.file_name().to_owned(), input.sha256.to_string()];
        let found = names.iter().map(|name| directory.join(name)).find(|path| path.is_file());
        let why = match found.map(|path| store.copy(input, &path)) {
            Some(Ok(place)) => return Ok(place),
            Some(Err(error)) => AttemptError::Wrong(error),
            None => AttemptError::NotThere,
        };
        tried.push(Attempt { from: directory.display().to_string(), why });
    }
    for (from, download) in downloads(input, sources, &mut tried) {
        let draft = store.draft()?;
        let target = draft.path().join("file");
        let why = match download(&from, &target) {
            Err(error) => AttemptError::Unreachable(error),
            Ok(()) => match store.take(input, &target) {
                Ok(place) => return Ok(place),
                Err(error) => AttemptError::Wrong(error),
            },
        };
        tried.push(Attempt { from, why });
    }
    let (name, version, file) = (input.name.clone(), input.version.clone(), input.file_name().to_owned());
    Err(FetchError::Unavailable { name, version, file, tried })
}

type Download = fn(&str, &Path) -> Result<(), String>;

/// Addresses of an input with the program that fetches them; what cannot be asked goes to `tried`.
fn downloads(input: &Input, sources: &Sources, tried: &mut Vec<Attempt>) -> Vec<(String, Download)> {
    let mut found: Vec<(String, Download)> = Vec::new();
    let mut skip = |from: &str, why: String| {
        tried.push(Attempt { from: from.to_owned(), why: AttemptError::NotConfigured(why) });
    };
    if sources.no_mirrors {
        skip("mirrors", "not asked".to_owned());
    } else {
        match sources.mirrors() {
            Err(why) => skip("mirrors", why),
            Ok(mirrors) => {
                let security = input.pool.starts_with("pool/updates/");
                for mirror in mirrors.iter().filter(|mirror| mirror.security == security) {
                    found.push((format!("{}/{}", mirror.base, input.pool), from_mirror));
                }
            }
        }
    }
    match &sources.snapshot {
        None => skip("snapshot archive", "no address given (--snapshot or REDOUBT_SNAPSHOT)".to_owned()),
        Some(base) => {
            found.push((format!("{}/file/{}", base.trim_end_matches('/'), input.sha1), from_snapshot));
        }
    }
    found
}

fn from_mirror(url: &str, target: &Path) -> Result<(), String> {
    apt::download(url, target).map_err(|error| match error {
        AptError::Failed { message, .. } => message,
        other => other.to_string(),
    })
}

/// The snapshot archive is asked with curl, which machines without apt have too.
fn from_snapshot(url: &str, target: &Path) -> Result<(), String> {
    let output = Command::new("curl")
        .args(["--fail", "--silent", "--show-error", "--location", "--max-time", "1800", "--output"])
        .arg(target)
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run curl: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Fetches all of these, several at a time. The first failure ends it.
pub fn all(
    store: &Store,
    inputs: &[&Input],
    sources: &Sources,
    step: &Step,
) -> Result<Vec<PathBuf>, FetchError> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<PathBuf, FetchError>>>> =
        inputs.iter().map(|_| Mutex::default()).collect();
    let work = || {
        while let Some((wanted, slot)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            inputs.get(index).zip(results.get(index))
        } {
            let result = input(store, wanted, sources);
            let failed = result.is_err();
            if let Ok(mut slot) = slot.lock() {
                *slot = Some(result);
            }
            if failed {
                next.store(inputs.len(), Ordering::Relaxed);
            }
            step.tick();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    // After a failure, inputs behind it were not tried; those before it were.
    results.into_iter().filter_map(|slot| slot.into_inner().ok().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::tests::input as locked;

    fn only(directory: &Path) -> Sources {
        Sources::only(vec![directory.to_owned()])
    }

    #[test]
    fn a_local_file_is_taken_by_its_name_or_its_hash_if_its_content_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("store")).unwrap();
        let wanted = locked("a", b"content");
        let by_name = dir.path().join(wanted.file_name());
        std::fs::write(&by_name, b"conte").unwrap();
        let refused = input(&store, &wanted, &only(dir.path())).unwrap_err();
        let FetchError::Unavailable { tried, .. } = &refused else { panic!("{refused}") };
        assert!(matches!(tried[0].why, AttemptError::Wrong(StoreError::Size { .. })), "{refused}");
        assert!(matches!(tried[2].why, AttemptError::NotConfigured(_)), "{refused}");
        assert!(refused.to_string().contains("has 5 bytes, the lock says 7"), "{refused}");
        std::fs::write(&by_name, b"content").unwrap();
        input(&store, &wanted, &only(dir.path())).unwrap();

        let other = locked("b", b"other");
        std::fs::write(dir.path().join(other.sha256.to_string()), b"other").unwrap();
        input(&store, &other, &only(dir.path())).unwrap();
    }

    #[test]
    fn an_unreachable_snapshot_archive_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("store")).unwrap();
        // Nobody listens on the discard port of this machine.
        let sources = Sources { snapshot: Some("http://127.0.0.1:9/".into()), ..Sources::only(Vec::new()) };
        let refused = input(&store, &locked("a", b"content"), &sources).unwrap_err();
        let FetchError::Unavailable { tried, .. } = &refused else { panic!("{refused}") };
        assert!(matches!(tried[1].why, AttemptError::Unreachable(_)), "{refused}");
    }

    #[test]
    fn a_failure_among_many_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("store")).unwrap();
        let wanted: Vec<Input> = (0..20u8).map(|n| locked(&format!("p{n}"), &[n])).collect();
        for (n, input) in wanted.iter().enumerate().filter(|(n, _)| *n != 7) {
            std::fs::write(dir.path().join(input.file_name()), [n as u8]).unwrap();
        }
        let wanted: Vec<&Input> = wanted.iter().collect();
        let step = Step::start("test", 0);
        let refused = all(&store, &wanted, &only(dir.path()), &step).unwrap_err();
        assert!(refused.to_string().contains("p7 1.0-1"), "{refused}");
    }
}
