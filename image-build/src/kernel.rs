//! The kernel: locked source, `tinyconfig` plus option lists, every requested symbol checked, no modules; built in the
//! build root.

use crate::{
    cache::Key,
    deb,
    lock::LINUX_SOURCE,
    recipe::{self, Kernel},
    sandbox::Sandbox,
    step::Step,
    workshop::Workshop,
};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Lines that make prints for the guest kernel, for the progress bar only.
const EXPECTED_LINES: u64 = 2350;
/// The source in its package.
const TARBALL: &str = "usr/src/linux-source-6.12.tar.xz";
/// Raised when the steps below change.
const METHOD: &str = "3";

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
    /// The resolved configuration.
    pub config: PathBuf,
}

/// Builds a kernel, or takes it from the cache.
pub fn build(workshop: &Workshop, kernel: &Kernel) -> Result<Built> {
    let mut lists = String::new();
    for fragment in &kernel.fragments {
        let path = recipe::folder(&workshop.repository).join("kernel").join(fragment);
        lists +=
            &std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    let source = workshop.inputs.lock.group(LINUX_SOURCE)?[0];
    let key = Key::default()
        .with("source", source.sha256.as_bytes())
        .with("options", &lists)
        .with("accepted", format!("{:?}", kernel.accepted_differences))
        .with("build-root", &workshop.root.key)
        .with("method", METHOD);
    let step = Step::start("kernel", EXPECTED_LINES);
    let mut fresh = false;
    let entry = workshop.cache.entry("kernel", key, |dir| {
        fresh = true;
        step.say("taking the source from the store");
        let (_, package) = workshop.inputs.file(LINUX_SOURCE)?;
        // The tarball, and all that compilers write, lie in a folder that goes away whole.
        let work = tempfile::tempdir_in(dir)?;
        let [input, source, objects] = ["in", "src", "obj"].map(|name| work.path().join(name));
        for folder in [&input, &source, &objects] {
            std::fs::create_dir(folder)?;
        }
        let tarball = input.join("linux.tar.xz");
        deb::member(&package, TARBALL, |from| std::io::copy(from, &mut std::fs::File::create(&tarball)?))?;
        let sandbox = workshop.sandbox().read(&input, "/in").write(&source, "/src").write(&objects, "/out");
        let accepted = &kernel.accepted_differences;
        make(fixed(sandbox).directory("/src"), &objects, dir, &lists, accepted, &step)?;
        work.close().context("cannot remove the kernel's intermediate files")
    })?;
    step.done(if fresh { "built" } else { "unchanged" });
    Ok(Built { config: entry.join("config"), image: entry.join("bzImage") })
}

fn make(
    sandbox: Sandbox<'_>,
    objects: &Path,
    out: &Path,
    lists: &str,
    accepted: &BTreeMap<String, String>,
    step: &Step,
) -> Result<()> {
    std::fs::write(objects.join("lists"), lists)?;
    let jobs = format!("-j{}", sandbox.jobs());

    step.say("unpacking the source");
    let mut unpack: Vec<String> =
        ["tar", "--no-same-owner", "-xf", "/in/linux.tar.xz", "--strip-components=1"]
            .map(str::to_owned)
            .into();
    unpack.extend(UNUSED.iter().map(|path| format!("--exclude=*/{path}")));
    sandbox.run("unpacking the kernel's source", &unpack)?;

    step.say("resolving the configuration");
    let configure = "make -s O=/out tinyconfig && cd /out \
                     && /src/scripts/kconfig/merge_config.sh -m -O /out .config lists && make -s -C /src O=/out olddefconfig";
    sandbox.run("configuring the kernel", &["sh", "-c", configure])?;
    let resolved = std::fs::read_to_string(objects.join(".config"))?;
    let differences = differences(lists, &resolved);
    let unexpected: Vec<&String> = differences.keys().filter(|s| !accepted.contains_key(*s)).collect();
    if !unexpected.is_empty() {
        bail!("the kernel's configuration does not give what the option lists ask for: {unexpected:?}");
    }

    step.say("compiling");
    sandbox.run_with("compiling the kernel", &["make", &jobs, "O=/out", "bzImage"], |_| step.tick())?;
    std::fs::copy(objects.join("arch/x86/boot/bzImage"), out.join("bzImage"))?;
    Ok(std::fs::write(out.join("config"), resolved)?)
}

/// What the image would otherwise take from its surroundings.
fn fixed(sandbox: Sandbox<'_>) -> Sandbox<'_> {
    sandbox
        .set("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 2026")
        .set("KBUILD_BUILD_USER", "build")
        .set("KBUILD_BUILD_HOST", "image")
        .set("KBUILD_BUILD_VERSION", "1")
}

/// Symbols whose resolved value is not the requested one, with (requested, resolved). Of a symbol that is
/// requested twice the later line counts, as in merge_config.sh.
fn differences(requested: &str, resolved: &str) -> BTreeMap<String, (String, String)> {
    let resolved = symbols(resolved);
    symbols(requested)
        .into_iter()
        .filter_map(|(name, wanted)| {
            let found = resolved.get(&name).cloned().unwrap_or_else(|| "n".to_owned());
            (found != wanted).then_some((name, (wanted, found)))
        })
        .collect()
}

/// The symbols of a kernel configuration, without `CONFIG_`, with their values; `n` for those that are not set.
#[must_use]
pub fn symbols(config: &str) -> BTreeMap<String, String> {
    config.lines().filter_map(symbol).collect()
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
