//! The guest's half of a release: kernel, initrd, firmware, and their launch measurements.

use crate::{
    cache::Key,
    cpio::{self, Entry, Kind},
    error::{ImageError, Result},
    files::{self, failed},
    firmware,
    images::Content,
    kernel, programs,
    recipe::Recipe,
    workshop::Workshop,
};
use attestation::measurement::{Inputs, Launch, LaunchError};
use release::{File, Files, Guest, Measurement, VcpuMeasurement};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// zstd level of the initrd. 19 is slow to pack and as quick to unpack as any other.
const ZSTD_LEVEL: i32 = 19;
/// Whom the guest trusts for releases, as its PID 1 reads it.
const ROOT: &str = "root.json";
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
    /// SHA-256 of the guest kernel's resolved configuration.
    pub const KERNEL_CONFIG: &str = "linux-config";
    /// SHA-256 of the host kernel's resolved configuration.
    pub const HOST_KERNEL_CONFIG: &str = "host-linux-config";
    /// SHA-256 of the list of the files in the host's root.
    pub const SBOM: &str = "host-sbom";
    /// SHA-256 of Cargo.lock.
    pub const CARGO_LOCK: &str = "cargo-lock";
}

/// Builds what a guest consists of: kernel, initrd, firmware, and the kernel's configuration for auditors. With `root` it
/// can judge releases, and hand its key over to a blessed one.
pub fn files(workshop: &Workshop, recipe: &Recipe, root: Option<&[u8]>) -> Result<Content> {
    let kernel = kernel::build(workshop, kernel::GUEST, &recipe.kernel)?;
    let initrd = initrd(workshop, &programs::build(workshop, recipe)?, root)?;
    let firmware = firmware::build(workshop, &recipe.firmware)?;
    let mut content = Content::new();
    for (name, path) in [
        (names::KERNEL, kernel.image),
        (names::KERNEL_CONFIG, kernel.config),
        (names::INITRD, initrd),
        (recipe.firmware.file_name(), firmware),
    ] {
        content.insert(name, files::read(&path)?);
    }
    Ok(content)
}

/// The guest's half of a manifest.
pub fn describe(recipe: &Recipe, content: &Content) -> Result<Guest> {
    let names = [names::KERNEL, names::INITRD, recipe.firmware.file_name()];
    let [kernel, initrd, firmware] = names.map(|name| File::describe(name, &content[name]));
    let guest = Guest {
        files: Files { kernel, initrd, firmware },
        command_line: recipe.guest.command_line.clone(),
        vcpu_type: recipe.guest.vcpu_types.first().cloned().unwrap_or_default(),
        policy: recipe.guest.policy,
        guest_features: GUEST_FEATURES,
        // Named by `redoubt release sign-id-blocks`.
        id_block: None,
        measurements: Vec::new(),
    };
    let contents = names.map(|name| content[name].as_slice());
    let measurements = measure(&guest, contents, &recipe.guest.machines())?;
    Ok(Guest { measurements, ..guest })
}

/// The launch measurements of a guest with these files (kernel, initrd, firmware) for these vCPU models and counts, in
/// the order of a manifest.
pub fn measure(
    guest: &Guest,
    [kernel, initrd, firmware]: [&[u8]; 3],
    machines: &[(String, u32)],
) -> Result<Vec<VcpuMeasurement>, LaunchError> {
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
    let hashed = launch.inputs()?;
    let measure = |(name, vcpus): (String, u32)| {
        let inputs = Inputs { vcpus, vcpu_type: name.parse()?, ..hashed.clone() };
        let measurement = inputs.measurement()?;
        Ok(VcpuMeasurement { vcpu_type: name, vcpus, measurement: Measurement(measurement.0) })
    };
    machines.into_iter().map(measure).collect()
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

/// The initrd with the two programs, packed once for the same programs.
fn initrd(workshop: &Workshop, programs: &programs::Programs, root: Option<&[u8]>) -> Result<PathBuf> {
    let (guest_os, replica) = (files::read(&programs.guest_os)?, files::read(&programs.replica)?);
    let mut entries = vec![
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
    ];
    entries.extend(root.map(|root| Entry { path: ROOT, kind: Kind::File(root) }));
    let archive = cpio::archive(&mut entries)?;
    let key = Key::default().with("archive", &archive).with("level", ZSTD_LEVEL.to_le_bytes());
    let entry = workshop.cache.entry("initrd", key, |dir| {
        let place = dir.join("initrd.zst");
        let packed = zstd::bulk::compress(&archive, ZSTD_LEVEL).map_err(failed("compress", &place))?;
        Ok::<_, ImageError>(files::write(&place, packed)?)
    })?;
    Ok(entry.join("initrd.zst"))
}
