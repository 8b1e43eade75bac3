//! Searching what was launched when a launch digest is not the expected one.
//!
//! A digest tells nothing about its inputs, but a guest that is "wrong" is mostly made of known parts: the other
//! slot, another number of vCPUs, an older release, a command line with a word more. [`explain()`] computes the digest of
//! every combination of known parts, the likely ones first, until one is the digest of the report. Since no two
//! combinations share a digest, a match is the explanation, not one of several.

use super::{Firmware, KernelHashes, LaunchError, Measurement, VcpuType};
use crate::report::Report;
use serde::Serialize;
use std::{collections::HashSet, fmt};

/// SHA-256 of nothing: the initrd's hash without `-initrd`.
const NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
    0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// Words that turn a guest into a less safe or a more talkative one, tried as additions to each command line.
const WORDS: &[&str] = &[
    "console=ttyS0",
    "console=hvc0",
    "quiet",
    "debug",
    "loglevel=7",
    "ignore_loglevel",
    "earlyprintk=serial",
    "panic=5",
    "nokaslr",
    "mitigations=off",
    "no_timer_check",
    "nowatchdog",
    "random.trust_cpu=on",
    "single",
    "init=/bin/sh",
    "rdinit=/bin/sh",
    "redoubt.profile=virtual",
];

/// SEV_FEATURES that hypervisors set: SNP active alone, with debug-register swap, with restricted injection, both.
const GUEST_FEATURES: &[u64] = &[0x1, 0x21, 0x9, 0x29];

/// A release, or whatever else is known to be launched, with what it may be launched with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// How it is called in the explanation, for instance `release 1.2.3`.
    pub name: String,
    /// Its firmware.
    pub firmware: Firmware,
    /// SHA-256 of its kernel.
    pub kernel: [u8; 32],
    /// SHA-256 of its initrd.
    pub initrd: [u8; 32],
    /// Its command line, without the closing NUL.
    pub command_line: String,
    /// vCPU counts with which it is meant to be launched.
    pub vcpus: Vec<u32>,
    /// CPU models with which it is meant to be launched.
    pub vcpu_types: Vec<VcpuType>,
    /// SEV_FEATURES with which it is meant to be launched.
    pub guest_features: u64,
}

/// How far to search beyond the candidates themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Most vCPUs that are tried.
    pub max_vcpus: u32,
    /// SEV_FEATURES that are tried beside the candidates'.
    pub guest_features: Vec<u64>,
    /// Whole command lines that are tried beside the candidates'.
    pub command_lines: Vec<String>,
    /// Words that are tried as additions to the candidates' command lines.
    pub words: Vec<String>,
    /// Firmware that is tried beside the candidates', by name.
    pub firmware: Vec<(String, Firmware)>,
    /// Digests that are computed at most. A million takes about half a second.
    pub limit: u64,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            max_vcpus: 512,
            guest_features: GUEST_FEATURES.to_vec(),
            command_lines: Vec::new(),
            words: WORDS.iter().map(|&word| word.to_owned()).collect(),
            firmware: Vec::new(),
            limit: 20_000_000,
        }
    }
}

/// What the search found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The digest that was searched.
    pub measurement: Measurement,
    /// What produces it, if that was found.
    pub found: Option<Found>,
    /// What was tried.
    pub tried: Tried,
    /// What else the report says about the guest's origin.
    pub hints: Vec<String>,
}

/// What produces the digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Name of the candidate with the fewest differences.
    pub nearest: String,
    /// Whether that is the first candidate, the one that was expected.
    pub expected: bool,
    /// In what the launch differs from that candidate; empty when it is just that.
    pub differences: Vec<Difference>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// CPU models with that signature.
    pub vcpu_types: Vec<&'static str>,
    /// SEV_FEATURES.
    pub guest_features: u64,
    /// Command line; `None` when kernel hashes are off, so that it is not measured.
    pub command_line: Option<String>,
}

/// One input that is not the candidate's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which: `firmware`, `kernel`, `initrd`, `command-line`, `kernel-hashes`, `vcpus`, `vcpu-type`, `guest-features`.
    pub input: &'static str,
    /// The candidate's.
    pub expected: String,
    /// What was launched.
    pub found: String,
    /// In words.
    pub meaning: String,
}

/// What was tried, each input by its names or values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// Launch digests that were computed.
    pub digests: u64,
    /// Whether that was every combination of the inputs below.
    pub complete: bool,
    /// Firmware.
    pub firmware: Vec<String>,
    /// Kernels.
    pub kernels: Vec<String>,
    /// Initrds.
    pub initrds: Vec<String>,
    /// Command lines; beside these, launches with kernel hashes off.
    pub command_lines: Vec<String>,
    /// vCPU counts from 1 to this.
    pub max_vcpus: u32,
    /// CPU models, one for each signature.
    pub vcpu_types: Vec<&'static str>,
    /// SEV_FEATURES.
    pub guest_features: Vec<u64>,
}

/// Different values of one input, each with the names of what it comes from.
struct Choices<T>(Vec<(T, Vec<String>)>);

impl<T: PartialEq> Choices<T> {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, value: T, name: impl Into<String>) -> usize {
        let known = self.0.iter().position(|(known, _)| *known == value);
        let index = known.unwrap_or_else(|| {
            self.0.push((value, Vec::new()));
            self.0.len() - 1
        });
        self.0[index].1.push(name.into());
        index
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|(_, names)| names.join(", ")).collect()
    }
}

/// Indices of firmware, kernel, initrd and command line; without the last three, kernel hashes are off.
type Image = (usize, Option<(usize, usize, usize)>);

/// Every known part, and the combinations of parts in the order in which they are tried.
struct Plan {
    firmware: Choices<Firmware>,
    kernels: Choices<[u8; 32]>,
    initrds: Choices<[u8; 32]>,
    command_lines: Vec<String>,
    images: Vec<Image>,
    vcpu_types: Vec<VcpuType>,
    guest_features: Vec<u64>,
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, value: T) -> usize {
    list.iter().position(|known| *known == value).unwrap_or_else(|| {
        list.push(value);
        list.len() - 1
    })
}

/// The command line with each word left out, each word added at either end, and small changes of white space.
fn variants(line: &str, words: &[String]) -> Vec<String> {
    let own: Vec<&str> = line.split_whitespace().collect();
    let without = (0..own.len()).map(|left_out| {
        let kept = own.iter().enumerate().filter(|(index, _)| *index != left_out);
        kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
    });
    let with = words.iter().flat_map(|word| [format!("{line} {word}"), format!("{word} {line}")]);
    let spacing = [own.join(" "), format!("{line} "), format!(" {line}"), format!("{line}\n")];
    without.chain(with).chain(spacing).collect()
}

impl Plan {
    fn new(candidates: &[Candidate], search: &Search) -> Self {
        let mut plan = Self {
            firmware: Choices::new(),
            kernels: Choices::new(),
            initrds: Choices::new(),
            command_lines: Vec::new(),
            images: Vec::new(),
            vcpu_types: Vec::new(),
            guest_features: Vec::new(),
        };
        let own: Vec<(usize, usize, usize, usize)> = candidates
            .iter()
            .map(|candidate| {
                (
                    plan.firmware.add(candidate.firmware.clone(), &candidate.name),
                    plan.kernels.add(candidate.kernel, &candidate.name),
                    plan.initrds.add(candidate.initrd, &candidate.name),
                    push_new(&mut plan.command_lines, candidate.command_line.clone()),
                )
            })
            .collect();
        let mut images: Vec<Image> = own.iter().map(|&(f, k, i, c)| (f, Some((k, i, c)))).collect();
        // One change: the command line.
        for (candidate, &(f, k, i, _)) in candidates.iter().zip(&own) {
            for line in
                search.command_lines.iter().cloned().chain(variants(&candidate.command_line, &search.words))
            {
                images.push((f, Some((k, i, push_new(&mut plan.command_lines, line)))));
            }
        }
        for (name, firmware) in &search.firmware {
            plan.firmware.add(firmware.clone(), name);
        }
        plan.initrds.add(NOTHING, "no initrd");
        // No kernel hashes at all, then every mixture.
        images.extend((0..plan.firmware.0.len()).map(|firmware| (firmware, None)));
        for command_line in 0..plan.command_lines.len() {
            for firmware in 0..plan.firmware.0.len() {
                for kernel in 0..plan.kernels.0.len() {
                    for initrd in 0..plan.initrds.0.len() {
                        images.push((firmware, Some((kernel, initrd, command_line))));
                    }
                }
            }
        }
        let mut seen = HashSet::new();
        images.retain(|image| seen.insert(*image));
        plan.images = images;

        for vcpu_type in candidates.iter().flat_map(|candidate| &candidate.vcpu_types).chain(VcpuType::ALL) {
            if plan.vcpu_types.iter().all(|known| known.signature() != vcpu_type.signature()) {
                plan.vcpu_types.push(*vcpu_type);
            }
        }
        let own = candidates.iter().map(|candidate| &candidate.guest_features);
        for &features in own.chain(&search.guest_features) {
            push_new(&mut plan.guest_features, features);
        }
        plan
    }

    fn tried(&self, digests: u64, complete: bool, search: &Search) -> Tried {
        Tried {
            digests,
            complete,
            firmware: self.firmware.names(),
            kernels: self.kernels.names(),
            initrds: self.initrds.names(),
            command_lines: self.command_lines.clone(),
            max_vcpus: search.max_vcpus,
            vcpu_types: self.vcpu_types.iter().map(|model| model.name()).collect(),
            guest_features: self.guest_features.clone(),
        }
    }

    /// The launch digest is that of this combination; describes it against the candidate that is nearest.
    fn found(
        &self,
        candidates: &[Candidate],
        image: Image,
        model: VcpuType,
        features: u64,
        vcpus: u32,
    ) -> Found {
        let (nearest, differences) = candidates
            .iter()
            .enumerate()
            .map(|(index, candidate)| (index, self.differences(candidate, image, model, features, vcpus)))
            // The first of several with equally many.
            .min_by_key(|(_, differences)| differences.len())
            .unwrap_or_default();
        Found {
            nearest: candidates.get(nearest).map_or_else(String::new, |candidate| candidate.name.clone()),
            expected: nearest == 0 && differences.is_empty(),
            differences,
            vcpus,
            vcpu_types: VcpuType::ALL
                .iter()
                .filter(|known| known.signature() == model.signature())
                .map(|known| known.name())
                .collect(),
            guest_features: features,
            command_line: image.1.map(|(_, _, line)| self.command_lines[line].clone()),
        }
    }

    fn differences(
        &self,
        candidate: &Candidate,
        (firmware, kernel): Image,
        model: VcpuType,
        features: u64,
        vcpus: u32,
    ) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut add = |input, expected: String, found: String, meaning: String| {
            differences.push(Difference { input, expected, found, meaning });
        };
        let (bytes, names) = &self.firmware.0[firmware];
        if *bytes != candidate.firmware {
            let [expected, found] = [&candidate.firmware, bytes].map(|firmware| firmware.digest.to_string());
            add("firmware", expected, found, format!("the firmware is that of {}", names.join(", ")));
        }
        match kernel {
            None => add(
                "kernel-hashes",
                "on".to_owned(),
                "off".to_owned(),
                "kernel hashes are off: any kernel, initrd and command line may be running".to_owned(),
            ),
            Some((kernel, initrd, line)) => {
                for (input, expected, (found, names)) in [
                    ("kernel", candidate.kernel, &self.kernels.0[kernel]),
                    ("initrd", candidate.initrd, &self.initrds.0[initrd]),
                ] {
                    if *found != expected {
                        let meaning = format!("the {input} is that of {}", names.join(", "));
                        add(input, hex::encode(expected), hex::encode(found), meaning);
                    }
                }
                let line = &self.command_lines[line];
                if *line != candidate.command_line {
                    let meaning = compare_lines(&candidate.command_line, line);
                    add("command-line", candidate.command_line.clone(), line.clone(), meaning);
                }
            }
        }
        if !candidate.vcpus.contains(&vcpus) {
            let expected = listed(&candidate.vcpus);
            let meaning = format!("vCPU count {vcpus} instead of {expected}");
            add("vcpus", expected, vcpus.to_string(), meaning);
        }
        if candidate.vcpu_types.iter().all(|known| known.signature() != model.signature()) {
            let expected = listed(&candidate.vcpu_types);
            let meaning = format!("vCPU type {model} (or one with its signature) instead of {expected}");
            add("vcpu-type", expected, model.to_string(), meaning);
        }
        if features != candidate.guest_features {
            let (expected, found) = (format!("{:#x}", candidate.guest_features), format!("{features:#x}"));
            let meaning = format!("guest features {found} instead of {expected}");
            add("guest-features", expected, found, meaning);
        }
        differences
    }
}

fn listed(values: &[impl fmt::Display]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// In which words two command lines differ.
fn compare_lines(expected: &str, found: &str) -> String {
    let words = |line: &'_ str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (expected, found) = (words(expected), words(found));
    let only = |one: &[String], other: &[String]| {
        let mut rest = other.to_vec();
        let mut only = one.to_vec();
        only.retain(|word| match rest.iter().position(|other| other == word) {
            Some(at) => {
                rest.remove(at);
                false
            }
            None => true,
        });
        only
    };
    let (added, missing) = (only(&found, &expected), only(&expected, &found));
    match (added.is_empty(), missing.is_empty()) {
        (true, true) => "the command line differs in white space or in the order of its words".to_owned(),
        (false, true) => format!("the command line with `{}` added", added.join(" ")),
        (true, false) => format!("the command line without `{}`", missing.join(" ")),
        (false, false) => {
            format!("the command line with `{}` in place of `{}`", added.join(" "), missing.join(" "))
        }
    }
}

/// Searches what produces the launch digest of a report. The first candidate is the one that was expected.
pub fn explain(
    report: &Report,
    candidates: &[Candidate],
    search: &Search,
) -> Result<Explanation, LaunchError> {
    let mut explanation = explain_measurement(report.measurement(), candidates, search)?;
    if report.id_key_digest() != [0; 48] {
        explanation.hints.push(format!(
            "the guest was launched with an ID block signed by the key {}: FAMILY_ID {}, IMAGE_ID {}, guest SVN {}",
            hex::encode(report.id_key_digest()),
            hex::encode(report.family_id()),
            hex::encode(report.image_id()),
            report.guest_svn(),
        ));
    }
    Ok(explanation)
}

/// The same for a launch digest alone.
pub fn explain_measurement(
    measurement: Measurement,
    candidates: &[Candidate],
    search: &Search,
) -> Result<Explanation, LaunchError> {
    let plan = Plan::new(candidates, search);
    let mut digests = 0;
    for &image in &plan.images {
        let (firmware, kernel) = image;
        let hashes = kernel
            .map(|(kernel, initrd, line)| {
                let (kernel, initrd) = (plan.kernels.0[kernel].0, plan.initrds.0[initrd].0);
                KernelHashes::of_files(kernel, initrd, &plan.command_lines[line])
            })
            .transpose()?;
        let pages = plan.firmware.0[firmware].0.pages(hashes.as_ref())?;
        for &model in &plan.vcpu_types {
            for &features in &plan.guest_features {
                if digests >= search.limit {
                    let tried = plan.tried(digests, false, search);
                    return Ok(Explanation { measurement, found: None, tried, hints: Vec::new() });
                }
                for (vcpus, digest) in (1..=search.max_vcpus).zip(pages.vcpus(model, features)?) {
                    digests += 1;
                    if digest == measurement {
                        let found = plan.found(candidates, image, model, features, vcpus);
                        let tried = plan.tried(digests, false, search);
                        return Ok(Explanation { measurement, found: Some(found), tried, hints: Vec::new() });
                    }
                }
            }
        }
    }
    Ok(Explanation { measurement, found: None, tried: plan.tried(digests, true, search), hints: Vec::new() })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "launch measurement {}", self.measurement)?;
        match &self.found {
            Some(found) => {
                let of = if found.expected { "is the expected one" } else { "is explained" };
                writeln!(
                    f,
                    "{of}: {}, {} vCPUs of type {}",
                    found.nearest, found.vcpus, found.vcpu_types[0]
                )?;
                for difference in &found.differences {
                    writeln!(f, "  but {}", difference.meaning)?;
                }
            }
            None => {
                let Tried { digests, complete, .. } = &self.tried;
                let how =
                    if *complete { "every combination of them" } else { "not every combination of them" };
                writeln!(f, "is not explained by {digests} launches made of these inputs, {how}:")?;
                for (input, names) in [
                    ("firmware", &self.tried.firmware),
                    ("kernel", &self.tried.kernels),
                    ("initrd", &self.tried.initrds),
                ] {
                    writeln!(f, "  {input} of: {}", names.join("; "))?;
                }
                writeln!(
                    f,
                    "  {} command lines (all are listed with --json), and kernel hashes off",
                    self.tried.command_lines.len()
                )?;
                writeln!(f, "  1 to {} vCPUs of {}", self.tried.max_vcpus, self.tried.vcpu_types.join(", "))?;
                let features: Vec<_> =
                    self.tried.guest_features.iter().map(|bits| format!("{bits:#x}")).collect();
                writeln!(f, "  guest features {}", features.join(", "))?;
            }
        }
        self.hints.iter().try_for_each(|hint| writeln!(f, "note: {hint}"))
    }
}
