//! The kernel: locked source, `tinyconfig` plus option lists, every requested symbol checked, no modules; built in the
//! build root.

use crate::{
    cache::Key,
    deb,
    error::{ImageError, Result},
    files,
    lock::LINUX_SOURCE,
    recipe::{self, Kernel},
    sandbox::Sandbox,
    step::Step,
    workshop::Workshop,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Lines that make prints for the kernels of guest and host, for the progress bar only.
const EXPECTED_LINES: (u64, u64) = (2350, 4200);
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

/// Symbols that kconfig resolved to another value than asked for.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel's configuration does not give what the option lists ask for: {}; correct the lists in \
     image-build/kernel or accept the difference, with its reason, in the recipe",
    .0.join(", ")
)]
pub struct OptionsError(pub Vec<String>);

/// A built kernel and what it was made of.
#[derive(Debug, Clone)]
pub struct Built {
    /// The bootable image.
    pub image: PathBuf,
    /// The resolved configuration.
    pub config: PathBuf,
}

/// Name of the guest's kernel.
pub const GUEST: &str = "guest";
/// Name of the host's kernel.
pub const HOST: &str = "host";

/// Builds a kernel, or takes it from the cache; `name` is [`GUEST`] or [`HOST`].
pub fn build(workshop: &Workshop, name: &'static str, kernel: &Kernel) -> Result<Built> {
    if let Some(given) = workshop.kernels.get(name) {
        return Ok(given.clone());
    }
    let mut lists = String::new();
    for fragment in &kernel.fragments {
        let path = recipe::folder(&workshop.repository).join("kernel").join(fragment);
        lists += &files::text(&path)?;
    }
    let source = workshop.inputs.lock.group(LINUX_SOURCE)?[0];
    let key = Key::default()
        .with("source", source.sha256.as_bytes())
        .with("options", &lists)
        .with("accepted", format!("{:?}", kernel.accepted_differences))
        .with("build-root", &workshop.root.key)
        .with("method", METHOD);
    let lines = if name == HOST { EXPECTED_LINES.1 } else { EXPECTED_LINES.0 };
    let step = Step::start(&format!("kernel of the {name}"), lines);
    let mut fresh = false;
    let entry = workshop.cache.entry("kernel", key, |dir| {
        fresh = true;
        step.say("taking the source from the store");
        let (_, package) = workshop.inputs.file(LINUX_SOURCE)?;
        // The tarball, and all that compilers write, lie in a folder that goes away whole.
        let (work, [input, source, objects]) = files::work(dir, ["in", "src", "obj"])?;
        let tarball = input.join("linux.tar.xz");
        deb::member(&package, TARBALL, |from| std::io::copy(from, &mut std::fs::File::create(&tarball)?))?;
        let sandbox = workshop.sandbox().read(&input, "/in").write(&source, "/src").write(&objects, "/out");
        let accepted = &kernel.accepted_differences;
        make(fixed(sandbox).directory("/src"), &objects, dir, &lists, accepted, &step)?;
        Ok::<_, ImageError>(files::close(work)?)
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
    files::write(&objects.join("lists"), lists)?;
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
    let resolved = files::text(&objects.join(".config"))?;
    let differences = differences(lists, &resolved);
    let unexpected: Vec<String> = differences.into_keys().filter(|s| !accepted.contains_key(s)).collect();
    if !unexpected.is_empty() {
        return Err(OptionsError(unexpected).into());
    }

    step.say("compiling");
    sandbox.run_with("compiling the kernel", &["make", &jobs, "O=/out", "bzImage"], |_| step.tick())?;
    files::copy(&objects.join("arch/x86/boot/bzImage"), &out.join("bzImage"))?;
    Ok(files::write(&out.join("config"), resolved)?)
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
