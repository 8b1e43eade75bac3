//! The guest's two static programs.

use crate::{recipe::Recipe, step::Step};
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";

/// Paths of the built programs.
pub struct Programs {
    /// PID 1.
    pub guest_os: PathBuf,
    /// The replica.
    pub replica: PathBuf,
}

/// Builds both, statically linked (crt-static, so that the initrd needs no library), with the paths of
/// this machine mapped away.
pub fn build(repository: &Path, recipe: &Recipe) -> Result<Programs> {
    let step = Step::start("guest programs", 0);
    step.say("compiling guest-os and replica");
    let features = recipe.guest.features.join(",");
    let folder = compile(repository, "guest-os", &["--bin", "guest-os", "--features", &features])?;
    compile(repository, "replica", &["--bin", "replica"])?;
    step.done("up to date");
    Ok(Programs { guest_os: folder.join("guest-os"), replica: folder.join("replica") })
}

/// Builds what guest-os's own tests boot: PID 1 and a stand-in for the replica. Returns their folder.
pub fn build_for_tests(repository: &Path, recipe: &Recipe) -> Result<PathBuf> {
    let features = recipe.guest.features.join(",");
    compile(
        repository,
        "guest-os",
        &["--bin", "guest-os", "--example", "stand_in_replica", "--features", &features],
    )
}

/// Compiles parts of one package for the guest; returns the folder with the programs.
fn compile(repository: &Path, package: &str, parts: &[&str]) -> Result<PathBuf> {
    let target_dir =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    let cargo_home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
            .join(".cargo"),
    };
    let map = |from: &Path, to: &str| format!("{}={to}", from.display());
    let maps = [map(repository, "/build"), map(&cargo_home, "/cargo")];
    let rustflags =
        maps.iter().fold("-C target-feature=+crt-static".to_owned(), |f, m| f + " --remap-path-prefix=" + m);
    let cflags = maps.iter().map(|m| format!("-ffile-prefix-map={m}")).collect::<Vec<_>>().join(" ");
    let status = Command::new("cargo")
        .current_dir(repository)
        .args([
            "build",
            "--locked",
            "--quiet",
            "--profile",
            PROFILE,
            "--target",
            TARGET,
            "--package",
            package,
        ])
        .args(parts)
        .env("RUSTFLAGS", &rustflags)
        .env("CFLAGS", &cflags)
        .env("SOURCE_DATE_EPOCH", crate::kernel::SOURCE_DATE_EPOCH)
        .env("CARGO_TARGET_DIR", &target_dir)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("{package} did not compile for the guest; the compiler's messages are above");
    }
    Ok(target_dir.join(TARGET).join(PROFILE))
}
