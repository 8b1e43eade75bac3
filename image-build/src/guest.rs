//! A guest release: kernel, initrd, firmware, and the signed manifest that binds them.

use crate::{
    cache::{Cache, Key, sha256_file},
    cpio::{self, Entry, Kind},
    kernel, programs, recipe,
    step::Step,
};
use anyhow::{Context, Result};
use attestation::measurement::Launch;
use release::{Envelope, File, Files, Guest, Manifest, Measurement, Profile, VcpuMeasurement};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// zstd level of the initrd. 19 is slow to pack and as quick to unpack as any other.
const ZSTD_LEVEL: i32 = 19;
/// SEV_FEATURES of the VMSA: SNP active.
const GUEST_FEATURES: u64 = 1;

/// What was built.
#[derive(Debug, serde::Serialize)]
pub struct Summary {
    /// The signed manifest.
    pub manifest: PathBuf,
    /// Size of each file in bytes.
    pub sizes: BTreeMap<&'static str, u64>,
    /// Measurement of each vCPU count, hexadecimal.
    pub measurements: BTreeMap<u32, String>,
    /// How many development keys signed; 0 for a manifest that is to be signed elsewhere.
    pub signatures: usize,
}

/// Builds the guest release of a profile into `out`.
pub fn build(repository: &Path, profile: &str, out: &Path) -> Result<Summary> {
    let recipe = recipe::recipe(repository, profile)?;
    let inputs = recipe::inputs(repository)?;
    let cache = Cache::open()?;

    let kernel = kernel::build(repository, &cache, &recipe, &inputs)?;
    let programs = programs::build(repository, &recipe)?;
    let step = Step::start("initrd and manifest", 0);
    let initrd = initrd(&cache, &programs)?;
    let firmware = recipe.guest.firmware.iter().find(|f| f.is_file()).with_context(|| {
        format!(
            "none of the firmware files is there ({:?}); install the package seabios",
            recipe.guest.firmware
        )
    })?;

    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let contents = [("vmlinuz", &kernel.image), ("initrd.zst", &initrd), ("firmware.bin", firmware)];
    let mut bytes = BTreeMap::new();
    for (name, source) in contents {
        let content = std::fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        write_if_changed(&out.join(name), &content)?;
        bytes.insert(name, content);
    }
    let measurements = recipe
        .guest
        .vcpus
        .iter()
        .map(|&vcpus| {
            let launch = Launch {
                firmware: &bytes["firmware.bin"],
                kernel: &bytes["vmlinuz"],
                initrd: &bytes["initrd.zst"],
                command_line: &recipe.guest.command_line,
                vcpus,
                vcpu_type: recipe.guest.vcpu_type.parse()?,
                guest_features: GUEST_FEATURES,
            };
            let measurement = launch.measurement().context("the launch cannot be measured")?;
            let vcpu_type = recipe.guest.vcpu_type.clone();
            Ok(VcpuMeasurement { vcpu_type, vcpus, measurement: Measurement(measurement.0) })
        })
        .collect::<Result<Vec<_>>>()?;

    let manifest = Manifest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        security_epoch: recipe.security_epoch,
        profile: recipe.profile,
        guest: Guest {
            files: Files {
                kernel: File::describe("vmlinuz", &bytes["vmlinuz"]),
                initrd: File::describe("initrd.zst", &bytes["initrd.zst"]),
                firmware: File::describe("firmware.bin", &bytes["firmware.bin"]),
            },
            command_line: recipe.guest.command_line.clone(),
            vcpu_type: recipe.guest.vcpu_type.clone(),
            policy: recipe.guest.policy,
            guest_features: GUEST_FEATURES,
            id_block: None,
            measurements: measurements.clone(),
        },
        inputs: BTreeMap::from([
            ("linux-source".to_owned(), inputs.linux_source.sha256.clone()),
            ("linux-config".to_owned(), kernel.config_sha256),
            ("c-compiler".to_owned(), kernel.compiler),
            ("cargo-lock".to_owned(), sha256_file(&repository.join("Cargo.lock"))?),
        ]),
    };
    let mut envelope = Envelope::new(manifest)?;
    let signatures = sign_for_development(&mut envelope, recipe.profile)?;
    let path = out.join("manifest.json");
    write_if_changed(&path, &envelope.to_bytes())?;
    step.done("written");
    Ok(Summary {
        manifest: path,
        sizes: bytes.iter().map(|(name, content)| (*name, content.len() as u64)).collect(),
        measurements: measurements.iter().map(|m| (m.vcpus, m.measurement.to_string())).collect(),
        signatures,
    })
}

/// The virtual profile is signed at once by two of the three development keys, which are public. Any other
/// profile is signed by people, elsewhere.
fn sign_for_development(envelope: &mut Envelope, profile: Profile) -> Result<usize> {
    if profile != Profile::Virtual {
        return Ok(0);
    }
    let [first, second, _] = release::development::signing_keys()?;
    release::sign(envelope, &first)?;
    release::sign(envelope, &second)?;
    Ok(2)
}

/// The initrd with the two programs, packed once for the same programs.
fn initrd(cache: &Cache, programs: &programs::Programs) -> Result<PathBuf> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (guest_os, replica) = (read(&programs.guest_os)?, read(&programs.replica)?);
    let archive = cpio::archive(&mut [
        Entry { path: "dev", kind: Kind::Directory },
        // The kernel opens it for PID 1 before anything is mounted.
        Entry { path: "dev/console", kind: Kind::CharacterDevice { major: 5, minor: 1 } },
        Entry { path: "init", kind: Kind::Executable(&guest_os) },
        Entry { path: "proc", kind: Kind::Directory },
        Entry { path: "replica", kind: Kind::Executable(&replica) },
        Entry { path: "run", kind: Kind::Directory },
        Entry { path: "sys", kind: Kind::Directory },
        Entry { path: "tmp", kind: Kind::Directory },
    ])?;
    let key = Key::default().with("archive", &archive).with("level", ZSTD_LEVEL.to_le_bytes());
    let entry = cache.entry("initrd", key, |dir| {
        let packed = zstd::bulk::compress(&archive, ZSTD_LEVEL).context("cannot compress the initrd")?;
        Ok(std::fs::write(dir.join("initrd.zst"), packed)?)
    })?;
    Ok(entry.join("initrd.zst"))
}

/// Keeps the file, and its time, when its content is right already; otherwise replaces it whole.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let draft = path.with_extension("draft");
    std::fs::write(&draft, content).with_context(|| format!("cannot write {}", draft.display()))?;
    std::fs::rename(&draft, path).with_context(|| format!("cannot replace {}", path.display()))
}
