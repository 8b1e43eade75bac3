//! A guest release: kernel, initrd, firmware, and the manifest that binds them.

use crate::{
    cache::{Key, sha256_file},
    cpio::{self, Entry, Kind},
    firmware, kernel, programs,
    recipe::{self, Recipe},
    workshop::Workshop,
};
use anyhow::{Context, Result};
use attestation::measurement::{Inputs, Launch};
use release::{
    Digest, Envelope, File, FileName, Files, Guest, Manifest, Measurement, Profile, VcpuMeasurement,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

/// zstd level of the initrd. 19 is slow to pack and as quick to unpack as any other.
const ZSTD_LEVEL: i32 = 19;
/// SEV_FEATURES of the VMSA: SNP active.
const GUEST_FEATURES: u64 = 1;

/// Names of the files in a release.
pub mod names {
    /// Kernel.
    pub const KERNEL: &str = "vmlinuz";
    /// Initrd.
    pub const INITRD: &str = "initrd.zst";
    /// Firmware of the production profile.
    pub const FIRMWARE: &str = "firmware.fd";
    /// Firmware of the virtual profile.
    pub const BIOS: &str = "firmware.bin";
    /// The manifest.
    pub const MANIFEST: &str = "manifest.json";
    /// The kernel's resolved configuration, for auditors.
    pub const KERNEL_CONFIG: &str = "kernel.config";
    /// The lock of all inputs, for auditors.
    pub const LOCK: &str = "inputs.lock";
}

/// Keys of the manifest's `inputs`.
pub mod input_names {
    /// SHA-256 of the kernel's resolved configuration.
    pub const KERNEL_CONFIG: &str = "linux-config";
    /// SHA-256 of Cargo.lock.
    pub const CARGO_LOCK: &str = "cargo-lock";
}

/// What was built.
#[derive(Debug, serde::Serialize)]
pub struct Summary {
    /// The manifest.
    pub manifest: PathBuf,
    /// Size of each file in bytes.
    pub sizes: BTreeMap<String, u64>,
    /// SHA-256 of each file, hexadecimal.
    pub sha256: BTreeMap<String, String>,
    /// Measurement of each vCPU model and count.
    pub measurements: Vec<VcpuMeasurement>,
    /// How many development keys signed; 0 for a manifest that is to be signed elsewhere.
    pub signatures: usize,
}

/// The content of a release before it is written.
pub struct Contents {
    /// The unsigned manifest; none when an artefact was left out.
    pub manifest: Option<Manifest>,
    /// Kernel, initrd, firmware and what auditors need, by name.
    pub files: BTreeMap<&'static str, Vec<u8>>,
}

/// Builds what a release of a profile consists of, without some artefacts.
pub fn contents_without(workshop: &Workshop, profile: Profile, without: &[FileName]) -> Result<Contents> {
    let recipe = recipe::recipe(&workshop.repository, profile)?;
    let mut files = BTreeMap::from([(names::LOCK, workshop.inputs.lock.to_text().into_bytes())]);
    let mut add = |name: &'static str, source: &Path| -> Result<()> {
        let content = std::fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        files.insert(name, content);
        Ok(())
    };
    let firmware_name = recipe.firmware.file_name();
    for artefact in FileName::ALL.into_iter().filter(|name| !without.contains(name)) {
        match artefact {
            FileName::Kernel => {
                let kernel = kernel::build(workshop, &recipe.kernel)?;
                add(names::KERNEL, &kernel.image)?;
                add(names::KERNEL_CONFIG, &kernel.config)?;
            }
            FileName::Initrd => add(names::INITRD, &initrd(workshop, &programs::build(workshop, &recipe)?)?)?,
            FileName::Firmware => add(firmware_name, &firmware::build(workshop, &recipe.firmware)?)?,
        }
    }
    let manifest = without.is_empty().then(|| manifest(workshop, &recipe, &files)).transpose()?;
    Ok(Contents { manifest, files })
}

fn manifest(
    workshop: &Workshop,
    recipe: &Recipe,
    files: &BTreeMap<&'static str, Vec<u8>>,
) -> Result<Manifest> {
    let describe = |name: &str| File::describe(name, &files[name]);
    let guest = Guest {
        files: Files {
            kernel: describe(names::KERNEL),
            initrd: describe(names::INITRD),
            firmware: describe(recipe.firmware.file_name()),
        },
        command_line: recipe.guest.command_line.clone(),
        vcpu_type: recipe.guest.vcpu_types.first().context("the recipe has no vCPU type")?.clone(),
        policy: recipe.guest.policy,
        guest_features: GUEST_FEATURES,
        // Named by `redoubt release sign-id-blocks`.
        id_block: None,
        measurements: Vec::new(),
    };
    let read = |name: &str| files[name].as_slice();
    let contents = [names::KERNEL, names::INITRD, recipe.firmware.file_name()].map(read);
    let measurements = measure(&guest, contents, &recipe.guest.machines())?;
    Ok(Manifest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        security_epoch: recipe.security_epoch,
        profile: recipe.profile,
        source_commit: commit(&workshop.repository),
        input_lock: workshop.inputs.lock.digest(),
        guest: Guest { measurements, ..guest },
        host: None,
        inputs: BTreeMap::from([
            (input_names::KERNEL_CONFIG.to_owned(), Digest::of(read(names::KERNEL_CONFIG)).to_string()),
            (input_names::CARGO_LOCK.to_owned(), sha256_file(&workshop.repository.join("Cargo.lock"))?),
        ]),
    })
}

/// The launch measurements of a guest with these files (kernel, initrd, firmware) for these vCPU models and counts, in
/// the order of a manifest.
pub fn measure(
    guest: &Guest,
    [kernel, initrd, firmware]: [&[u8]; 3],
    machines: &[(String, u32)],
) -> Result<Vec<VcpuMeasurement>> {
    let mut machines = machines.to_vec();
    machines.sort();
    let launch = Launch {
        firmware,
        kernel,
        initrd,
        command_line: &guest.command_line,
        vcpus: 1,
        vcpu_type: guest.vcpu_type.parse()?,
        guest_features: guest.guest_features,
    };
    // The files are hashed once, whatever the number of machines.
    let hashed = launch.inputs().context("the launch cannot be measured")?;
    let measure = |(name, vcpus): (String, u32)| {
        let inputs = Inputs { vcpus, vcpu_type: name.parse()?, ..hashed.clone() };
        let measurement = inputs.measurement().context("the launch cannot be measured")?;
        Ok(VcpuMeasurement { vcpu_type: name, vcpus, measurement: Measurement(measurement.0) })
    };
    machines.into_iter().map(measure).collect()
}

/// Builds the guest release of a profile into `out`.
pub fn build(workshop: &Workshop, profile: Profile, out: &Path) -> Result<Summary> {
    let Contents { manifest, files } = contents_without(workshop, profile, &[])?;
    let manifest = manifest.context("a release without one of its artefacts has no manifest")?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    for (name, content) in &files {
        write_if_changed(&out.join(name), content)?;
    }
    let measurements = manifest.guest.measurements.clone();
    let mut envelope = Envelope::new(manifest)?;
    let signatures = sign_for_development(&mut envelope, profile)?;
    let path = out.join(names::MANIFEST);
    write_if_changed(&path, &envelope.to_bytes())?;
    Ok(Summary {
        manifest: path,
        sizes: files.iter().map(|(name, content)| ((*name).to_owned(), content.len() as u64)).collect(),
        sha256: files.iter().map(|(name, c)| ((*name).to_owned(), Digest::of(c).to_string())).collect(),
        measurements,
        signatures,
    })
}

/// The commit that is checked out, for the manifest.
pub(crate) fn commit(repository: &Path) -> String {
    let git = |arguments: &[&str]| {
        // Another owner of the checkout is no reason not to name its commit.
        let safe = format!("safe.directory={}", repository.display());
        let output =
            Command::new("git").current_dir(repository).args(["-c", &safe]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => commit + "-modified",
        (None, _) => "unknown".to_owned(),
    }
}

/// The virtual profile is signed at once by two of the three development keys, which are public. Any other
/// profile is signed by people, elsewhere.
#[cfg(feature = "virtual")]
fn sign_for_development(envelope: &mut Envelope, profile: Profile) -> Result<usize> {
    if profile != Profile::Virtual {
        return Ok(0);
    }
    let [first, second, _] = release::development::signing_keys()?;
    release::sign(envelope, &first)?;
    release::sign(envelope, &second)?;
    Ok(2)
}

/// A program without the development keys signs nothing.
#[cfg(not(feature = "virtual"))]
fn sign_for_development(_: &mut Envelope, _: Profile) -> Result<usize> {
    Ok(0)
}

/// The initrd with the two programs, packed once for the same programs.
fn initrd(workshop: &Workshop, programs: &programs::Programs) -> Result<PathBuf> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (guest_os, replica) = (read(&programs.guest_os)?, read(&programs.replica)?);
    let archive = cpio::archive(&mut [
        Entry { path: "dev", kind: Kind::Directory },
        // The kernel opens it for PID 1 before anything is mounted.
        Entry { path: "dev/console", kind: Kind::CharacterDevice { major: 5, minor: 1 } },
        // Without a console, the standard streams of PID 1 end here.
        Entry { path: "dev/null", kind: Kind::CharacterDevice { major: 1, minor: 3 } },
        Entry { path: "init", kind: Kind::Executable(&guest_os) },
        Entry { path: "proc", kind: Kind::Directory },
        Entry { path: "replica", kind: Kind::Executable(&replica) },
        Entry { path: "run", kind: Kind::Directory },
        Entry { path: "sys", kind: Kind::Directory },
        Entry { path: "tmp", kind: Kind::Directory },
    ])?;
    let key = Key::default().with("archive", &archive).with("level", ZSTD_LEVEL.to_le_bytes());
    let entry = workshop.cache.entry("initrd", key, |dir| {
        let packed = zstd::bulk::compress(&archive, ZSTD_LEVEL).context("cannot compress the initrd")?;
        Ok(std::fs::write(dir.join("initrd.zst"), packed)?)
    })?;
    Ok(entry.join("initrd.zst"))
}

/// Keeps the file, and its time, when its content is right already; otherwise replaces it whole.
pub(crate) fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let draft = path.with_extension("draft");
    std::fs::write(&draft, content).with_context(|| format!("cannot write {}", draft.display()))?;
    std::fs::rename(&draft, path).with_context(|| format!("cannot replace {}", path.display()))
}
