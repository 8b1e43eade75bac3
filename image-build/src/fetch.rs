//! Brings pinned inputs onto this machine, by hash: from a local directory, through the machine's own
//! package manager, or from the mirrors that it has configured.

use crate::{
    cache::{Cache, Key, sha256_file},
    recipe::DebianMember,
    step::Step,
};
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Directory with inputs that were brought by hand (for machines without a network).
const INPUTS_DIR: &str = "REDOUBT_INPUTS";

/// The file of `input` in the cache, fetched if it is not there.
pub fn debian_member(cache: &Cache, input: &DebianMember, step: &Step) -> Result<PathBuf> {
    let key = Key::default().with("sha256", &input.sha256);
    let entry = cache.entry("input", key, |dir| {
        let target = dir.join("file");
        if let Some(brought) = std::env::var_os(INPUTS_DIR) {
            let name = Path::new(&input.member).file_name().context("an input without a file name")?;
            let brought = PathBuf::from(brought).join(name);
            if brought.is_file() {
                std::fs::copy(&brought, &target)
                    .with_context(|| format!("cannot copy {}", brought.display()))?;
                return check(input, &target);
            }
        }
        step.say(&format!("downloading {} {}", input.package, input.version));
        let package = download(input, dir)?;
        step.say(&format!("unpacking {}", input.package));
        extract(&package, &input.member, &target)?;
        std::fs::remove_file(&package)?;
        check(input, &target)
    })?;
    Ok(entry.join("file"))
}

fn check(input: &DebianMember, file: &Path) -> Result<()> {
    let size = std::fs::metadata(file)?.len();
    let sha256 = sha256_file(file)?;
    if size != input.size || sha256 != input.sha256 {
        bail!(
            "{} of {} {} is not the pinned file: expected {} bytes with SHA-256 {}, found {size} bytes with \
             {sha256}; nothing was built from it",
            input.member,
            input.package,
            input.version,
            input.size,
            input.sha256
        );
    }
    Ok(())
}

fn download(input: &DebianMember, dir: &Path) -> Result<PathBuf> {
    let by_name = Command::new("apt-get")
        .current_dir(dir)
        .args(["-q", "download", &format!("{}={}", input.package, input.version)])
        .stdin(Stdio::null())
        .output()
        .context("cannot run apt-get; image-build takes its inputs from Debian packages")?;
    if by_name.status.success()
        && let Some(found) = deb_in(dir)?
    {
        return Ok(found);
    }
    let mut tried = vec![format!("apt-get download: {}", last_line(&by_name.stderr))];
    // This machine's release has another version: the pinned one may still lie in its mirrors' pools.
    for base in mirrors()? {
        for pool in &input.pool {
            let url = format!("{}/{pool}", base.trim_end_matches('/'));
            let target = dir.join("package.deb");
            let fetched = Command::new("/usr/lib/apt/apt-helper")
                .arg("download-file")
                .arg(&url)
                .arg(&target)
                .stdin(Stdio::null())
                .output()
                .context("cannot run apt-helper")?;
            if fetched.status.success() && target.is_file() {
                return Ok(target);
            }
            tried.push(format!("{url}: {}", last_line(&fetched.stderr)));
        }
    }
    bail!(
        "{} {} could not be fetched; run 'apt-get update' and try again, or put {} into a directory and name it \
         in {INPUTS_DIR}. Tried:\n  {}",
        input.package,
        input.version,
        input.member,
        tried.join("\n  ")
    )
}

fn deb_in(dir: &Path) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Base addresses of the mirrors in this machine's configuration.
fn mirrors() -> Result<Vec<String>> {
    let listed = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .output()
        .context("cannot run apt-get indextargets")?;
    let mut bases: Vec<String> = String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect();
    bases.sort();
    bases.dedup();
    Ok(bases)
}

fn extract(package: &Path, member: &str, target: &Path) -> Result<()> {
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stream = unpack.stdout.take().context("dpkg-deb has no output")?;
    let file = std::fs::File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
    let taken = Command::new("tar")
        .args(["--extract", "--to-stdout", "--file", "-", member])
        .stdin(stream)
        .stdout(file)
        .stderr(Stdio::piped())
        .output()
        .context("cannot run tar")?;
    unpack.wait()?;
    if !taken.status.success() {
        bail!("{} has no file {member}: {}", package.display(), last_line(&taken.stderr));
    }
    Ok(())
}

fn last_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_under_the_pinned_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tar.xz");
        std::fs::write(&file, b"other").unwrap();
        let input = DebianMember {
            package: "x".into(),
            version: "1".into(),
            pool: vec![],
            member: "./x.tar.xz".into(),
            size: 5,
            sha256: "00".repeat(32),
        };
        let refused = check(&input, &file).unwrap_err().to_string();
        assert!(refused.contains("is not the pinned file"), "{refused}");
    }
}
