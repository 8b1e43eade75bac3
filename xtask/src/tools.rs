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

/// The workspace's features that the production profile switches on.
pub(crate) const PRODUCTION: &str = "host-os/tpm";

/// Builds the programs that run on the developer's machine.
pub(crate) fn build_tools() -> Result<()> {
    run(command("cargo").args(["build", "--locked", "-p", "host-os", "-p", "redoubt"]))
}

/// Builds the same and the guest's program as production has them, without anything virtual; returns the directory with
/// copies of them. [`build_tools`] or [`build_workspace`] must follow, since these overwrite what the others built.
pub(crate) fn build_production() -> Result<PathBuf> {
    let programs = ["redoubt", "host-os", "guest-os"];
    let mut cargo = command("cargo");
    cargo.args(["build", "--locked", "--no-default-features", "--features", PRODUCTION]);
    run(cargo.args(programs.iter().flat_map(|name| ["-p", name])))?;
    let place = target().join("production");
    std::fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    for name in programs {
        std::fs::copy(binary(name), place.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    Ok(place)
}

/// Builds all that `cargo test --workspace` runs, and the programs that run on the developer's machine, with the same features of
/// all crates: so each is compiled once.
pub(crate) fn build_workspace(features: &str) -> Result<()> {
    let targets = ["--lib", "--bins", "--tests", "--examples"];
    run(command("cargo").args(["build", "--locked", "--workspace", "--features", features]).args(targets))
}

/// Builds the guest of the virtual profile, all that a node in QEMU needs; returns its directory.
pub(crate) fn build_release() -> Result<PathBuf> {
    let out = release_dir("virtual-guest");
    run(command(binary("redoubt")).args(["image", "build", "--guest-only", "--out"]).arg(&out))?;
    Ok(out)
}

/// Builds the whole release of a profile, the host's disk too; returns its directory. A production release gets keys that are
/// made for it on the spot, and is signed with them.
pub(crate) fn build_images(profile: &str) -> Result<PathBuf> {
    let (out, redoubt) = (release_dir(profile), binary("redoubt"));
    let mut build = command(&redoubt);
    build.args(["image", "build", "--profile", profile, "--out"]).arg(&out);
    if profile != "production" {
        run(&mut build)?;
        return Ok(out);
    }
    let cloud = production_keys()?;
    run(build.arg("--trust").arg(cloud.join("trust")))?;
    for holder in ["alice", "bob"] {
        run(command(&redoubt)
            .args(["release", "sign"])
            .arg(&out)
            .arg("--key")
            .arg(cloud.join(holder).with_extension("pem")))?;
    }
    run(command(&redoubt)
        .args(["image", "sign"])
        .arg(&out)
        .arg("--key")
        .arg(cloud.join("secure-boot.key"))
        .arg("--certificate")
        .arg(cloud.join("secure-boot.crt")))?;
    run(command(&redoubt).args(["image", "assemble"]).arg(&out))?;
    Ok(out)
}

/// The keys of a cloud for tests of production releases, made once: see `image-build/ceremony.sh`.
pub(crate) fn production_keys() -> Result<PathBuf> {
    let cloud = target().join("production-keys");
    if !cloud.join("trust/certificate.der").is_file() {
        // What a ceremony that was cut off left is no use.
        let _ = std::fs::remove_dir_all(&cloud);
        run(command(repository().join("image-build/ceremony.sh"))
            .arg(&cloud)
            .env("REDOUBT", binary("redoubt")))?;
    }
    Ok(cloud)
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
