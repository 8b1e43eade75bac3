//! The machine's apt: which mirrors it has configured, and a private index of the locked release.
//!
//! The private index has its own lists and an empty package state, so resolving depends neither on the release of this
//! machine nor on what is installed. apt checks its signatures with the distribution's keyring.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Keys of the distribution, as its package `debian-archive-keyring` installs them.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// Not a Debian machine, for instance.
    #[error(
        "cannot run {program}: {source}; without apt, bring the inputs in a directory (--from) or name a snapshot archive (--snapshot)"
    )]
    Absent {
        /// The program.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It ran and failed.
    #[error("{what} failed: {message}")]
    Failed {
        /// What it was to do.
        what: String,
        /// The last line that it wrote.
        message: String,
    },
    /// No mirror of the distribution.
    #[error("apt knows no mirror of Debian; check its sources and run 'apt-get update'")]
    NoMirror,
    /// The keyring is missing.
    #[error("{0} is missing, so the index cannot be verified; install the package debian-archive-keyring")]
    NoKeyring(PathBuf),
    /// An answer that is not understood.
    #[error("apt's answer about {0} is incomplete; run 'apt-get update' and try again")]
    Answer(String),
    /// Files of the private index.
    #[error("cannot write the private index: {0}; check the space for temporary files")]
    Io(#[from] std::io::Error),
}

fn run(command: &mut Command, what: &str) -> Result<String, AptError> {
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| AptError::Absent { program: "apt", source })?;
    if !output.status.success() {
        return Err(AptError::Failed { what: what.to_owned(), message: last_line(&output.stderr) });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message").trim().to_owned()
}

/// A mirror in the machine's configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mirror {
    /// Of the archive with security updates.
    pub security: bool,
    /// Base address, without a slash at its end.
    pub base: String,
}

/// The mirrors of the distribution that apt has configured.
pub fn mirrors() -> Result<Vec<Mirror>, AptError> {
    let listed = run(
        Command::new("apt-get").args(["indextargets", "--format", "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)"]),
        "listing apt's mirrors",
    )?;
    let mut found: Vec<Mirror> = listed
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let (origin, label, base) = (fields.next()?, fields.next()?, fields.next()?);
            let base = base.trim_end_matches('/').to_owned();
            (origin == "Debian" && label != "Debian Backports")
                .then(|| Mirror { security: label == "Debian-Security", base })
        })
        .collect();
    found.sort();
    found.dedup();
    if found.is_empty() { Err(AptError::NoMirror) } else { Ok(found) }
}

/// Downloads one address to a file, through apt's own configuration (proxies, mirror lists).
pub fn download(url: &str, target: &Path) -> Result<(), AptError> {
    let mut helper = Command::new("/usr/lib/apt/apt-helper");
    run(helper.args(["-o", "APT::Sandbox::User=root", "download-file", url]).arg(target), url).map(|_| ())
}

/// A package of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Architecture, `source` for a file of a source package.
    pub arch: String,
    /// Path below the mirror's base address.
    pub pool: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// Verified indices of one release.
pub struct Index {
    dir: tempfile::TempDir,
}

impl Index {
    /// Fetches the indices of a release, its updates and its security updates.
    pub fn update(release: &str, mirrors: &[Mirror], keyring: &Path) -> Result<Self, AptError> {
        if !keyring.is_file() {
            return Err(AptError::NoKeyring(keyring.to_owned()));
        }
        let dir = tempfile::tempdir()?;
        let root = dir.path();
        for folder in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        std::fs::write(root.join("status"), "")?;
        let mut sources = String::new();
        for mirror in mirrors {
            let suites = if mirror.security {
                vec![format!("{release}-security")]
            } else {
                vec![release.to_owned(), format!("{release}-updates")]
            };
            for suite in suites {
                for kind in ["deb", "deb-src"] {
                    sources += &format!(
                        "{kind} [signed-by={} arch=amd64] {} {suite} main\n",
                        keyring.display(),
                        mirror.base
                    );
                }
            }
        }
        std::fs::write(root.join("sources.list"), sources)?;
        let path = |name: &str| root.join(name).display().to_string();
        std::fs::write(
            root.join("apt.conf"),
            format!(
                "Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"/dev/null\";\nDir::Etc::Preferences \"/dev/null\";\n\
                 Dir::Etc::PreferencesParts \"/dev/null\";\nDir::State \"{}\";\nDir::State::Lists \"{}\";\n\
                 Dir::State::Status \"{}\";\nDir::Cache \"{}\";\nAcquire::Languages \"none\";\nAPT::Architecture \"amd64\";\n\
                 APT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\nAPT::Install-Recommends \"false\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\nAcquire::AllowInsecureRepositories \"false\";\n",
                path("sources.list"),
                path(""),
                path("lists"),
                path("status"),
                path("cache"),
            ),
        )?;
        let index = Self { dir };
        index.apt("apt-get", &["-q", "--error-on=any", "update"], "fetching the signed index")?;
        Ok(index)
    }

    fn apt(&self, program: &str, arguments: &[&str], what: &str) -> Result<String, AptError> {
        let mut command = Command::new(program);
        run(command.env("APT_CONFIG", self.dir.path().join("apt.conf")).args(arguments), what)
    }

    /// The newest versions of these packages and of everything that they depend on.
    pub fn resolve(&self, names: &[String]) -> Result<Vec<Package>, AptError> {
        let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends", "--print-uris"];
        arguments.extend(names.iter().map(String::as_str));
        let listed = self.apt("apt-get", &arguments, "resolving the build root")?;
        // 'ADDRESS' NAME_VERSION_ARCH.deb SIZE ...
        let exact: Vec<String> = listed
            .lines()
            .filter(|line| line.starts_with('\''))
            .filter_map(|line| {
                let mut parts = line.split(' ').nth(1)?.split('_');
                Some(format!("{}={}", parts.next()?, parts.next()?.replace("%3a", ":")))
            })
            .collect();
        let mut packages = self.describe(&exact)?;
        packages.dedup();
        if packages.len() == exact.len() { Ok(packages) } else { Err(AptError::Answer(names.join(" "))) }
    }

    /// The newest version of one package, without what it depends on.
    pub fn newest(&self, name: &str) -> Result<Package, AptError> {
        self.describe(&[name.to_owned()])?.into_iter().next().ok_or_else(|| AptError::Answer(name.to_owned()))
    }

    fn describe(&self, exact: &[String]) -> Result<Vec<Package>, AptError> {
        let mut arguments = vec!["show", "--no-all-versions"];
        arguments.extend(exact.iter().map(String::as_str));
        let shown = self.apt("apt-cache", &arguments, "describing packages")?;
        shown
            .split("\n\n")
            .filter(|stanza| !stanza.trim().is_empty())
            .map(|stanza| {
                let field = |name: &str| {
                    let value = stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
                    value
                        .map(str::to_owned)
                        .ok_or_else(|| AptError::Answer(format!("the {name} of a package")))
                };
                Ok(Package {
                    name: field("Package")?,
                    version: field("Version")?,
                    arch: field("Architecture")?,
                    pool: field("Filename")?,
                    size: field("Size")?.parse().map_err(|_| AptError::Answer("a size".into()))?,
                    sha256: field("SHA256")?,
                })
            })
            .collect()
    }

    /// The tarballs of the newest version of a source package.
    pub fn source(&self, name: &str) -> Result<Vec<Package>, AptError> {
        let shown =
            self.apt("apt-cache", &["showsrc", "--only-source", name], "describing a source package")?;
        // 'ADDRESS' FILE SIZE ... of the version that apt would take.
        let listed = self.apt(
            "apt-get",
            &["source", "-q", "--print-uris", "--only-source", name],
            "choosing a source",
        )?;
        let files: Vec<&str> =
            listed.lines().filter_map(|l| l.strip_prefix('\'')?.split(' ').nth(1)).collect();
        let incomplete = || AptError::Answer(format!("the source of {name}"));
        let stanza = shown
            .split("\n\n")
            .find(|stanza| !files.is_empty() && files.iter().all(|file| stanza.contains(file)))
            .ok_or_else(incomplete)?;
        let field = |name: &str| stanza.lines().find_map(|l| l.strip_prefix(name)).ok_or_else(incomplete);
        let (version, directory) = (field("Version: ")?, field("Directory: ")?);
        let hashes = stanza.lines().skip_while(|l| !l.starts_with("Checksums-Sha256:")).skip(1);
        hashes
            .take_while(|line| line.starts_with(' '))
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            // The description of the source package is not needed: its tarballs are locked one by one.
            .filter(|fields| {
                fields.last().is_some_and(|file| !file.ends_with(".dsc") && !file.ends_with(".asc"))
            })
            .map(|fields| match fields[..] {
                [sha256, size, file] => Ok(Package {
                    name: name.to_owned(),
                    version: version.to_owned(),
                    arch: "source".to_owned(),
                    pool: format!("{directory}/{file}"),
                    size: size.parse().map_err(|_| incomplete())?,
                    sha256: sha256.to_owned(),
                }),
                _ => Err(incomplete()),
            })
            .collect()
    }
}
