//! Our programs, compiled in the build root: the guest's two and the installer, static; the host's agent.

use crate::{
    error::Result,
    files::{self, failed},
    lock::AGENT_ROOT,
    recipe::Recipe,
    root::{self, BuildRoot},
    sandbox::Sandbox,
    step::Step,
    toolchain, vendor,
    workshop::Workshop,
};
use std::path::PathBuf;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";

/// Paths of the built programs.
pub struct Programs {
    /// PID 1.
    pub guest_os: PathBuf,
    /// The replica.
    pub replica: PathBuf,
}

/// Builds both, statically linked (crt-static, so that the initrd needs no library).
pub fn build(workshop: &Workshop, recipe: &Recipe) -> Result<Programs> {
    let features = recipe.guest.features.join(",");
    compile(workshop, "guest-os", &["--bin", "guest-os", "--features", &features])?;
    let folder = compile(workshop, "replica", &["--bin", "replica"])?;
    Ok(Programs { guest_os: folder.join("guest-os"), replica: folder.join("replica") })
}

/// Builds what guest-os's own tests boot: PID 1 and a stand-in for the replica. Returns their folder.
pub fn build_for_tests(workshop: &Workshop, recipe: &Recipe) -> Result<PathBuf> {
    let features = recipe.guest.features.join(",");
    compile(
        workshop,
        "guest-os",
        &["--bin", "guest-os", "--example", "stand_in_replica", "--features", &features],
    )
}

/// Builds the host's agent; returns its path. It is linked dynamically, because libtss2 is: the host's root has a C library
/// for QEMU anyway.
pub fn host_os(workshop: &Workshop, features: &[String]) -> Result<PathBuf> {
    let root = root::of_group(&workshop.cache, &workshop.inputs, AGENT_ROOT)?;
    // Beside that of the others, which are compiled at the same time.
    let place = Place { root: &root, target: workshop.cargo_target.with_extension("agent"), linking: "" };
    let features = features.join(",");
    let parts = ["--bin", "host-os", "--no-default-features", "--features", &features];
    Ok(compile_in(&place, workshop, "host-os", &parts)?.join("host-os"))
}

/// Builds the installer, statically linked; returns its path.
pub fn installer(workshop: &Workshop) -> Result<PathBuf> {
    let parts = ["--bin", "installer", "--features", "program"];
    Ok(compile(workshop, "installer", &parts)?.join("installer"))
}

/// Where a program is compiled, and how it is linked.
struct Place<'a> {
    root: &'a BuildRoot,
    target: PathBuf,
    linking: &'a str,
}

/// Compiles parts of one package, statically linked; returns the folder with the programs.
fn compile(workshop: &Workshop, package: &str, parts: &[&str]) -> Result<PathBuf> {
    let target = workshop.cargo_target.clone();
    let place = Place { root: &workshop.root, target, linking: "-C target-feature=+crt-static" };
    compile_in(&place, workshop, package, parts)
}

fn compile_in(place: &Place<'_>, workshop: &Workshop, package: &str, parts: &[&str]) -> Result<PathBuf> {
    let rust = toolchain::open(&workshop.cache, &workshop.inputs)?;
    let crates = vendor::open(&workshop.cache, &workshop.repository, &workshop.inputs.sources)?;
    let target = &place.target;
    // cargo sees a change of sources by their times and of rustc by its version. It does not see another C compiler or
    // library, nor another checkout with older files at the same place in the sandbox.
    let stamp = target.join("made-from");
    let made_from = format!("{} {}", place.root.key, workshop.repository.display());
    if std::fs::read_to_string(&stamp).ok().as_deref() != Some(&made_from) {
        if target.exists() {
            std::fs::remove_dir_all(target).map_err(failed("empty", target))?;
        }
        files::make_folder(target)?;
        files::write(&stamp, &made_from)?;
    }
    let step = Step::start(package, 0);
    step.say("compiling");
    let sandbox = Sandbox::new(place.root, &workshop.surroundings);
    let jobs = sandbox.jobs().to_string();
    let sandbox = sandbox
        .real_clock()
        .read(&workshop.repository, "/build")
        .read(rust, "/rust")
        .read(crates, "/vendor")
        .write(target, "/target")
        .directory("/build")
        .set("CARGO_HOME", "/tmp/cargo")
        .set("CARGO_TARGET_DIR", "/target")
        .set("CARGO_INCREMENTAL", "0")
        .set("CARGO_BUILD_JOBS", jobs)
        .set("RUSTFLAGS", place.linking);
    let mut arguments = vec!["cargo", "build", "--locked", "--offline", "--quiet"];
    arguments.extend(["--config", "source.crates-io.replace-with='vendored'"]);
    arguments.extend(["--config", "source.vendored.directory='/vendor'"]);
    arguments.extend(["--profile", PROFILE, "--target", TARGET, "--package", package]);
    arguments.extend(parts);
    sandbox.run(&format!("compiling {package}"), &arguments)?;
    step.done("up to date");
    Ok(target.join(TARGET).join(PROFILE))
}
