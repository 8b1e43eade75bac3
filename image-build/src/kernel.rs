//! The kernel: pinned source, `tinyconfig` plus option lists, every requested symbol checked, no modules.

use crate::{
    cache::{Cache, Key, sha256_file},
    fetch,
    recipe::{self, Inputs, Recipe},
    step::Step,
};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// 2026-01-01 00:00:00 UTC: the time that the outputs carry.
pub const SOURCE_DATE_EPOCH: &str = "1767225600";
/// Lines that make prints for the guest kernel, for the progress bar only.
const EXPECTED_LINES: u64 = 2350;

/// Many of the source's files are never read for an x86 kernel without graphics; unpacking and deleting them
/// would take longer than resolving the configuration. (All of `arch/*/crypto` is read by Kconfig.)
const UNUSED: &[&str] = &[
    "Documentation/devicetree",
    "arch/arm/boot",
    "arch/arm/mach-*",
    "arch/arm64/boot",
    "arch/powerpc/boot",
    "arch/mips/include",
    "drivers/gpu/drm/amd/include",
    "tools/testing/selftests",
];

/// A built kernel and what it was made of.
pub struct Built {
    /// The bootable image.
    pub image: PathBuf,
    /// SHA-256 of the resolved configuration, hexadecimal.
    pub config_sha256: String,
    /// First line of the compiler's version.
    pub compiler: String,
}

/// Builds the kernel of a recipe, or takes it from the cache.
pub fn build(repository: &Path, cache: &Cache, recipe: &Recipe, inputs: &Inputs) -> Result<Built> {
    let mut lists = String::new();
    for fragment in &recipe.kernel.fragments {
        let path = recipe::folder(repository).join("kernel").join(fragment);
        lists +=
            &std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    let compiler = version_of("gcc")?;
    let key = Key::default()
        .with("source", &inputs.linux_source.sha256)
        .with("options", &lists)
        .with("accepted", format!("{:?}", recipe.kernel.accepted_differences))
        .with("compiler", &compiler)
        .with("linker", version_of("ld")?)
        // The steps below are an input too: raise this when they change.
        .with("method", "2");
    let step = Step::start("kernel", EXPECTED_LINES);
    let mut fresh = false;
    let entry = cache.entry("kernel", key, |dir| {
        fresh = true;
        let source = fetch::debian_member(cache, &inputs.linux_source, &step)?;
        make(dir, &source, &lists, &recipe.kernel.accepted_differences, &step)
    })?;
    step.done(if fresh { "built" } else { "unchanged" });
    Ok(Built { config_sha256: sha256_file(&entry.join("config"))?, image: entry.join("bzImage"), compiler })
}

fn make(
    dir: &Path,
    tarball: &Path,
    lists: &str,
    accepted: &BTreeMap<String, String>,
    step: &Step,
) -> Result<()> {
    let (source, objects) = (dir.join("src"), dir.join("obj"));
    std::fs::create_dir(&source)?;
    std::fs::create_dir(&objects)?;
    step.say("unpacking the source");
    let unused = UNUSED.iter().map(|path| format!("--exclude=*/{path}"));
    run(Command::new("tar")
        .arg("xf")
        .arg(tarball)
        .arg("-C")
        .arg(&source)
        .arg("--strip-components=1")
        .args(unused))?;

    step.say("resolving the configuration");
    std::fs::write(objects.join("lists"), lists)?;
    run(kbuild(&source, &objects).arg("tinyconfig"))?;
    run(Command::new(source.join("scripts/kconfig/merge_config.sh"))
        .current_dir(&objects)
        .args(["-m", "-O"])
        .arg(&objects)
        .args([".config", "lists"]))?;
    run(kbuild(&source, &objects).arg("olddefconfig"))?;
    let resolved = std::fs::read_to_string(objects.join(".config"))?;
    let differences = differences(lists, &resolved);
    let unexpected: Vec<&String> = differences.keys().filter(|s| !accepted.contains_key(*s)).collect();
    if !unexpected.is_empty() {
        bail!("the kernel's configuration does not give what the option lists ask for: {unexpected:?}");
    }

    step.say("compiling");
    let mut child = kbuild(&source, &objects)
        .arg(format!("-j{}", std::thread::available_parallelism()?))
        // Paths would otherwise reach the image through __FILE__ and the like.
        .arg(format!("KCFLAGS=-ffile-prefix-map={0}=/src -fmacro-prefix-map={0}=/src", source.display()))
        .arg(format!("KAFLAGS=-ffile-prefix-map={}=/src", source.display()))
        .arg("bzImage")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(dir.join("errors"))?)
        .spawn()
        .context("cannot run make")?;
    for line in BufReader::new(child.stdout.take().context("make has no output")?).lines() {
        line?;
        step.tick();
    }
    if !child.wait()?.success() {
        let errors = std::fs::read_to_string(dir.join("errors")).unwrap_or_default();
        let tail: Vec<&str> = errors.lines().rev().take(15).collect();
        bail!("the kernel did not compile:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    std::fs::copy(objects.join("arch/x86/boot/bzImage"), dir.join("bzImage"))?;
    std::fs::write(dir.join("config"), resolved)?;
    std::fs::remove_dir_all(source)?;
    std::fs::remove_dir_all(objects)?;
    std::fs::remove_file(dir.join("errors"))?;
    Ok(())
}

/// `make` in `objects` with everything fixed that the image would otherwise take from this machine.
fn kbuild(source: &Path, objects: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(source)
        .arg(format!("O={}", objects.display()))
        .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 2026")
        .env("KBUILD_BUILD_USER", "build")
        .env("KBUILD_BUILD_HOST", "image")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env_remove("MAKEFLAGS")
        .env_remove("CFLAGS");
    make
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn version_of(program: &str) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot run {program}; it builds the kernel"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// Symbols whose resolved value is not the requested one, with (requested, resolved). Of a symbol that is
/// requested twice the later line counts, as in merge_config.sh.
fn differences(requested: &str, resolved: &str) -> BTreeMap<String, (String, String)> {
    let resolved: BTreeMap<String, String> = resolved.lines().filter_map(symbol).collect();
    let requested: BTreeMap<String, String> = requested.lines().filter_map(symbol).collect();
    requested
        .into_iter()
        .filter_map(|(name, wanted)| {
            let found = resolved.get(&name).cloned().unwrap_or_else(|| "n".to_owned());
            (found != wanted).then_some((name, (wanted, found)))
        })
        .collect()
}

fn symbol(line: &str) -> Option<(String, String)> {
    if let Some(off) = line.strip_prefix("# CONFIG_") {
        return Some((off.strip_suffix(" is not set")?.to_owned(), "n".to_owned()));
    }
    let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
    Some((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_that_kconfig_dropped_or_changed_is_found() {
        let requested =
            "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=\"x\"\nCONFIG_E=n\nCONFIG_E=y\n";
        let resolved = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_D=\"x\"\nCONFIG_E=y\n";
        let found: Vec<String> = differences(requested, resolved).into_keys().collect();
        assert_eq!(found, ["B", "C"]);
    }

    #[test]
    fn a_symbol_that_is_absent_counts_as_off() {
        assert!(differences("CONFIG_A=n\n", "").is_empty());
        assert_eq!(differences("CONFIG_A=y\n", "").len(), 1);
    }
}
