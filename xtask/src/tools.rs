//! Running other programs, and where this checkout keeps what it builds.

use anyhow::{Context, Result, bail};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Root of the checkout.
pub(crate) fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// A program that this checkout built.
pub(crate) fn binary(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

/// Whether a program is on the PATH.
pub(crate) fn on_path(name: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|d| d.join(name).is_file())
}

/// Where the release of a profile is put.
pub(crate) fn release_dir(profile: &str) -> PathBuf {
    target().join("release-images").join(profile)
}

/// A command that starts in the root of the checkout.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(repository());
    command
}

/// Runs a command, its output shown; an error when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command and takes its standard output; its standard error is shown.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        bail!("{} failed ({}): {}", shown(command), output.status, String::from_utf8_lossy(&output.stdout));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no text", shown(command)))
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Names and times of the steps of one command, for the summary at its end.
#[derive(Default)]
pub(crate) struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    /// Runs one step and keeps its time.
    pub(crate) fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("\n== {name}");
        let started = Instant::now();
        let result = work().with_context(|| name.to_owned())?;
        self.0.push((name, started.elapsed()));
        Ok(result)
    }

    /// The times as lines.
    pub(crate) fn table(&self) -> String {
        let mut lines: Vec<String> =
            self.0.iter().map(|(name, time)| format!("  {name:<28}{:>8.1} s", time.as_secs_f64())).collect();
        let total: Duration = self.0.iter().map(|(_, time)| *time).sum();
        lines.push(format!("  {:<28}{:>8.1} s", "total", total.as_secs_f64()));
        lines.join("\n")
    }

    /// The times as JSON, in seconds.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::Map::from_iter(
            self.0.iter().map(|(name, time)| ((*name).to_owned(), time.as_secs_f64().into())),
        )
        .into()
    }
}

/// Builds the programs that run on the developer's machine.
pub(crate) fn build_tools() -> Result<()> {
    run(command("cargo").args(["build", "--locked", "-p", "host-os", "-p", "redoubt"]))
}

/// Builds the same and the guest's program as production has them, in a place of their own; returns their directory.
pub(crate) fn build_production() -> Result<PathBuf> {
    let place = target().join("production");
    let programs = ["-p", "redoubt", "-p", "host-os", "-p", "guest-os"];
    let build = ["build", "--locked", "--no-default-features", "--target-dir"];
    run(command("cargo").args(build).arg(&place).args(programs))?;
    Ok(place.join("debug"))
}

/// Builds the guest of the virtual profile, all that a node in QEMU needs; returns its directory.
pub(crate) fn build_release() -> Result<PathBuf> {
    let out = release_dir("virtual-guest");
    run(command(binary("redoubt")).args(["image", "build", "--guest-only", "--out"]).arg(&out))?;
    Ok(out)
}

/// Builds the whole release of a profile, the host's disk too; returns its directory.
pub(crate) fn build_images(profile: &str) -> Result<PathBuf> {
    let out = release_dir(profile);
    run(command(binary("redoubt")).args(["image", "build", "--profile", profile, "--out"]).arg(&out))?;
    Ok(out)
}

/// Installs the locked npm packages of the tests, if they are not there already.
pub(crate) fn npm_packages() -> Result<()> {
    let folder = repository().join("tests/js");
    let lock = std::fs::read(folder.join("package-lock.json")).context("tests/js/package-lock.json")?;
    // npm ci always removes and installs everything; a copy of the lock tells when that is needless.
    let stamp = folder.join("node_modules/.installed-lock");
    if std::fs::read(&stamp).is_ok_and(|installed| installed == lock) {
        eprintln!("npm packages: unchanged");
        return Ok(());
    }
    run(command("npm").current_dir(&folder).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]))?;
    std::fs::write(&stamp, lock).context("cannot note the installed npm packages")
}

/// Makes a Python environment with the locked packages of the tests, if it is not there already; returns its
/// interpreter.
pub(crate) fn python_packages() -> Result<PathBuf> {
    let requirements = repository().join("tests/python/requirements.txt");
    let lock = std::fs::read(&requirements).context("tests/python/requirements.txt")?;
    let folder = target().join("python");
    let (interpreter, stamp) = (folder.join("bin/python3"), folder.join(".installed-lock"));
    if std::fs::read(&stamp).is_ok_and(|installed| installed == lock) {
        eprintln!("Python packages: unchanged");
        return Ok(interpreter);
    }
    run(command("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    // Wheels only, each with its hash: nothing that a package brings is run to install it.
    run(command(&interpreter)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--require-hashes", "--only-binary", ":all:", "--requirement"])
        .arg(&requirements))?;
    std::fs::write(&stamp, lock).context("cannot note the installed Python packages")?;
    Ok(interpreter)
}
