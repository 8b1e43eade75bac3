//! `redoubt attest explain`: what was launched, when a measurement is not the expected one.

use super::measure::{firmware, number};
use crate::output::{Failure, Reply};
use crate::releases::{RootArgs, manifest_path};
use attestation::Report;
use attestation::measurement::explain::{Candidate, Search, explain};
use clap::Args;
use host_os::bundle::ReleaseFiles;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A report (1184 bytes), or a record of `redoubt attest fetch`
    #[arg(value_name = "REPORT")]
    report: PathBuf,
    /// The release that is expected, then others that may have been launched, such as those of other slots or older
    /// ones; the manifest or the directory that holds it, with a name of your own before it if you like: NAME=MANIFEST
    #[arg(long, value_name = "MANIFEST", required = true)]
    release: Vec<String>,
    #[command(flatten)]
    root: RootArgs,
    /// The number of vCPUs that is expected [default: any that the release has a measurement for]
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Try vCPU counts up to this
    #[arg(long, value_name = "N", default_value_t = Search::default().max_vcpus)]
    max_vcpus: u32,
    /// Try this firmware too; may be repeated
    #[arg(long, value_name = "FILE")]
    firmware: Vec<PathBuf>,
    /// Try this kernel command line too; may be repeated
    #[arg(long, value_name = "TEXT")]
    append: Vec<String>,
    /// Try this word at the ends of each command line too; may be repeated
    #[arg(long, value_name = "WORD")]
    word: Vec<String>,
    /// Try these guest features too, such as 0x1; may be repeated
    #[arg(long, value_name = "BITS", value_parser = number)]
    guest_features: Vec<u64>,
    /// Compute at most so many launch digests
    #[arg(long, value_name = "N", default_value_t = Search::default().limit)]
    limit: u64,
}

pub(super) fn run(args: &Explain) -> Result<Reply, Failure> {
    let report = report(&args.report)?;
    let candidates = args.release.iter().map(|text| candidate(args, text)).collect::<Result<Vec<_>, _>>()?;
    let mut search = Search { max_vcpus: args.max_vcpus, limit: args.limit, ..Search::default() };
    search.command_lines.extend(args.append.iter().cloned());
    search.words.extend(args.word.iter().cloned());
    search.guest_features.extend(&args.guest_features);
    for path in &args.firmware {
        search.firmware.push((path.display().to_string(), firmware(path)?));
    }
    let explanation =
        explain(&report, &candidates, &search).map_err(|error| Failure::of(error.code(), &error))?;
    let json =
        serde_json::to_value(&explanation).map_err(|error| Failure::of("explanation-unwritable", &error))?;
    Ok(Reply { text: explanation.to_string().trim_end().to_owned(), json, good: explanation.found.is_some() })
}

/// The report alone counts here: whether it is authentic is for `inspect` and `verify` to say.
fn report(path: &std::path::Path) -> Result<Report, Failure> {
    let refused = |reason: &dyn std::fmt::Display| {
        let message = format!(
            "{} is neither a report nor a record of `redoubt attest fetch`: {reason}",
            path.display()
        );
        Failure::new("report-unreadable", message)
    };
    let bytes = std::fs::read(path).map_err(|error| refused(&error))?;
    if bytes.first() != Some(&b'{') {
        return Report::parse(&bytes).map_err(|error| refused(&error));
    }
    let record: Value = serde_json::from_slice(&bytes).map_err(|error| refused(&error))?;
    let evidence: attestation::Evidence =
        serde_json::from_value(record["evidence"].clone()).map_err(|error| refused(&error))?;
    Report::parse(&evidence.report).map_err(|error| refused(&error))
}

/// A release with its files. `NAME=MANIFEST` gives it a name, unless a file of that whole name exists.
fn candidate(args: &Explain, text: &str) -> Result<Candidate, Failure> {
    let (label, path) = match text.split_once('=') {
        Some((label, path)) if !std::path::Path::new(text).exists() => (Some(label), path),
        _ => (None, text),
    };
    let path = manifest_path(path.as_ref());
    let manifest = args.root.approve(&path)?;
    let files = ReleaseFiles::read(&path, manifest)?;
    let content = files.manifest().manifest();
    let guest = &content.guest;
    let mut vcpus: Vec<u32> = match args.vcpus {
        Some(expected) => vec![expected],
        None => guest.measurements.iter().map(|entry| entry.vcpus).collect(),
    };
    vcpus.sort_unstable();
    vcpus.dedup();
    let mut vcpu_types = Vec::new();
    for entries in guest.measurements.chunk_by(|a, b| a.vcpu_type == b.vcpu_type) {
        let model = entries[0].vcpu_type.parse();
        vcpu_types.push(
            model
                .map_err(|error: attestation::measurement::LaunchError| Failure::of(error.code(), &error))?,
        );
    }
    let digest = files.manifest().digest().to_string();
    let release = format!("release {} ({}, {}…)", content.version, content.profile, &digest[..8]);
    Ok(Candidate {
        name: label.map_or(release.clone(), |label| format!("{label}: {release}")),
        firmware: files.firmware().clone(),
        kernel: guest.files.kernel.sha256.0,
        initrd: guest.files.initrd.sha256.0,
        command_line: guest.command_line.clone(),
        vcpus,
        vcpu_types,
        guest_features: guest.guest_features,
    })
}
