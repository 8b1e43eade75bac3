//! `redoubt image reproduce` and `explain`.

use super::{SourceArgs, failure};
use crate::output::{Failure, Reply};
use clap::Args;
use image_build::{
    explain::{self, Entry, Explanation},
    published::{Release, ReleaseError},
    reproduce::{self, Verdict},
    sandbox::Surroundings,
    trust::Trust,
    workshop::Workshop,
};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes:\n  0  everything that was looked at is equal\n  1  something differs, or the \
                        comparison failed; the output says what\n  2  the command line was wrong"
)]
pub(crate) struct Reproduce {
    /// The release's manifest, or the directory that holds it and its files
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    #[command(flatten)]
    sources: SourceArgs,
    /// Build nothing: recompute hashes and launch measurements from the files beside the manifest
    #[arg(long)]
    verify_only: bool,
    /// Take the kernels as the release has them instead of building them, and rebuild everything else
    #[arg(long, conflicts_with = "verify_only")]
    without_kernels: bool,
    /// Build with another user, host name, umask, time zone, locale, clock and number of jobs inside the build root
    #[arg(long, conflicts_with = "verify_only")]
    vary: bool,
    /// Compare although commit or locked inputs are not those of the release
    #[arg(long, conflicts_with = "verify_only")]
    any_sources: bool,
    /// Whom production nodes trust [default: image-build/production in the checkout, else as the release's installer has it]
    #[arg(long, value_name = "DIR", conflicts_with = "verify_only")]
    trust: Option<PathBuf>,
    /// Keep unequal files and diffoscope's reports here
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

fn release_failure(error: ReleaseError) -> Failure {
    Failure::new(error.code(), error.to_string())
}

pub(super) fn run(args: &Reproduce) -> Result<Reply, Failure> {
    let release = Release::read(&args.manifest).map_err(release_failure)?;
    if args.verify_only {
        let verdict = reproduce::verify_only(&release).map_err(failure)?;
        return Ok(reply(&verdict, "the files have the hashes and launch measurements of the manifest"));
    }
    if !args.any_sources {
        reproduce::require_same_sources(&release, &args.sources.repository).map_err(release_failure)?;
    }
    let surroundings = if args.vary { Surroundings::varied() } else { Surroundings::usual() };
    let folder = image_build::workshop::scratch().map_err(failure)?;
    let mut workshop =
        Workshop::fresh(&args.sources.repository, args.sources.sources(), folder.path(), surroundings)
            .map_err(failure)?;
    if args.without_kernels {
        reproduce::take_kernels(&mut workshop, &release).map_err(failure)?;
    }
    workshop.trust = args.trust.as_deref().map(Trust::read).transpose().map_err(failure)?;
    reproduce::take_trust(&mut workshop, &release).map_err(failure)?;
    let verdict = reproduce::reproduce(&workshop, &release, args.keep.as_deref()).map_err(failure)?;
    Ok(reply(&verdict, "the rebuilt release is equal, bit for bit"))
}

fn reply(verdict: &Verdict, praise: &str) -> Reply {
    let mut text = String::new();
    for artefact in &verdict.artefacts {
        let state = if artefact.equal { "equal" } else { "DIFFERENT" };
        text += &format!("{:<18} {state:<10} sha256 {}\n", artefact.name, artefact.found);
        if !artefact.equal {
            text += &format!("  the manifest says sha256 {}\n", artefact.release);
        }
        for difference in &artefact.differences {
            text += &format!("  {difference}\n");
        }
        if let Some(note) = &artefact.note {
            text += &format!("  {note}\n");
        }
    }
    for difference in &verdict.manifest {
        text += &format!("manifest           DIFFERENT  {difference}\n");
    }
    for report in &verdict.reports {
        text += &format!("diffoscope's report: {}\n", report.display());
    }
    if !verdict.left_out.is_empty() {
        text += &format!("not rebuilt: {}\n", verdict.left_out.join(", "));
    }
    if let Some(trust) = &verdict.trust {
        text += &format!("its nodes trust, as the cloud must confirm: {trust}\n");
    }
    text += match (verdict.equal, verdict.left_out.is_empty()) {
        (true, true) => praise,
        (true, false) => "what was rebuilt is equal, bit for bit",
        (false, _) => "NOT equal",
    };
    Reply { text, json: json!(verdict), good: verdict.equal }
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Manifest or directory of the earlier release
    #[arg(value_name = "A")]
    before: PathBuf,
    /// Manifest or directory of the later release
    #[arg(value_name = "B")]
    now: PathBuf,
}

pub(super) fn explain(args: &Explain) -> Result<Reply, Failure> {
    let (before, now) = (Release::read(&args.before), Release::read(&args.now));
    let found = explain::explain(&before.map_err(release_failure)?, &now.map_err(release_failure)?)
        .map_err(release_failure)?;
    Ok(Reply::good(explanation(&found).trim_end(), json!(found)))
}

fn explanation(found: &Explanation) -> String {
    if found.same {
        return "the two releases are the same".to_owned();
    }
    let mut text = String::new();
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text += &format!("{title}\n");
            for line in lines {
                text += &format!("  {line}\n");
            }
        }
    };
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".to_owned());
    let inputs = found.inputs.iter();
    section(
        "packages and other locked inputs",
        inputs.map(|c| format!("{:<28} {} -> {}", c.name, version(&c.before), version(&c.now))).collect(),
    );
    let options = found.kernel_options.iter();
    section(
        "options of the guest's kernel",
        options.map(|(name, (a, b))| format!("{name}: {a} -> {b}")).collect(),
    );
    let options = found.host_kernel_options.iter();
    section(
        "options of the host's kernel",
        options.map(|(name, (a, b))| format!("{name}: {a} -> {b}")).collect(),
    );
    let entry = |entry: &Option<Entry>| match entry {
        Some(entry) => format!("{} B {}", entry.size, &entry.sha256[..16]),
        None => "-".to_owned(),
    };
    for (title, files) in
        [("files in the initrd", &found.initrd), ("files in the host's root", &found.host_root)]
    {
        let line = |(name, (a, b)): (&String, &(Option<Entry>, Option<Entry>))| {
            format!("{name}: {} -> {}", entry(a), entry(b))
        };
        section(title, files.iter().map(line).collect());
    }
    if let Some((a, b)) = &found.host_command_line {
        section("command line of the host's kernel", vec![format!("- {a}"), format!("+ {b}")]);
    }
    let sizes = found.sizes.iter();
    section("sizes in bytes", sizes.map(|(n, (a, b))| format!("{n}: {a} -> {b}")).collect());
    section("manifest, with the inputs of the measurement", found.manifest.clone());
    section("not compared, because a release lacks it", found.missing.clone());
    text
}
