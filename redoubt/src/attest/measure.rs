//! `redoubt attest measure`: the launch measurement of given files, or of a release.

use crate::output::{Failure, Reply};
use crate::releases::{RootArgs, manifest_path};
use attestation::measurement::{FileHasher, Firmware, Inputs, KernelHashes, VcpuType};
use clap::Args;
use host_os::bundle::{ReleaseFiles, expected_identity};
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct Measure {
    /// Measure the files of this release (the manifest, or the directory that holds it) and compare with its manifest
    #[arg(long, value_name = "MANIFEST", required_unless_present = "firmware")]
    release: Option<PathBuf>,
    #[command(flatten)]
    root: RootArgs,
    /// Firmware, as QEMU's -bios
    #[arg(long, value_name = "FILE", conflicts_with = "release", requires = "kernel")]
    firmware: Option<PathBuf>,
    /// Kernel, as QEMU's -kernel
    #[arg(long, value_name = "FILE", conflicts_with = "release")]
    kernel: Option<PathBuf>,
    /// Initrd, as QEMU's -initrd [default: none]
    #[arg(long, value_name = "FILE", conflicts_with = "release")]
    initrd: Option<PathBuf>,
    /// Kernel command line, as QEMU's -append
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with = "release")]
    append: String,
    /// Number of vCPUs, as QEMU's -smp
    #[arg(long, value_name = "N", default_value_t = 2)]
    vcpus: u32,
    /// QEMU's model of the vCPUs [default: the release's own, or EPYC-v4]
    #[arg(long, value_name = "MODEL")]
    vcpu_type: Option<String>,
    /// SEV_FEATURES of the vCPUs, such as 0x1
    #[arg(long, value_name = "BITS", default_value = "0x1", value_parser = number, conflicts_with = "release")]
    guest_features: u64,
    /// Measure firmware without SEV metadata too, as the simulation of virtual nodes does
    #[arg(long, conflicts_with = "release")]
    simulated: bool,
}

/// A number in decimal or, after `0x`, hexadecimal.
pub(super) fn number(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|error| error.to_string())
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    move |error| {
        let message = format!("cannot read {}: {error}; check the path", path.display());
        Failure::new("file-unreadable", message)
    }
}

/// SHA-256 of a file, which may be larger than memory.
fn sha256(path: &Path) -> Result<[u8; 32], Failure> {
    let mut file = std::fs::File::open(path).map_err(unreadable(path))?;
    let mut hasher = FileHasher::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(unreadable(path))? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// A firmware file.
pub(super) fn firmware(path: &Path) -> Result<Firmware, Failure> {
    let bytes = std::fs::read(path).map_err(unreadable(path))?;
    Firmware::measure(&bytes).map_err(|error| Failure::of(error.code(), &error))
}

pub(super) fn run(args: &Measure) -> Result<Reply, Failure> {
    match (&args.release, &args.firmware) {
        (Some(release), _) => of_release(args, release),
        (None, Some(firmware)) => of_files(args, firmware),
        // clap has made sure that there is one.
        (None, None) => Err(Failure::new("nothing-to-measure", "give --release or --firmware")),
    }
}

fn of_files(args: &Measure, path: &Path) -> Result<Reply, Failure> {
    let failed = |error: attestation::measurement::LaunchError| Failure::of(error.code(), &error);
    let firmware = firmware(path)?;
    if !args.simulated {
        firmware.require_sev_metadata().map_err(failed)?;
    }
    let hash = |path: &Option<PathBuf>| match path {
        Some(path) => sha256(path),
        None => Ok(FileHasher::default().finish()),
    };
    let (kernel, initrd) = (hash(&args.kernel)?, hash(&args.initrd)?);
    let model = args.vcpu_type.as_deref().map_or(Ok(VcpuType::EPYC_V4), str::parse).map_err(failed)?;
    let inputs = Inputs {
        firmware,
        kernel_hashes: KernelHashes::of_files(kernel, initrd, &args.append).map_err(failed)?,
        vcpus: args.vcpus,
        vcpu_type: model,
        guest_features: args.guest_features,
    };
    let measurement = inputs.measurement().map_err(failed)?;
    let json = json!({
        "measurement": measurement,
        "firmware_digest": inputs.firmware.digest,
        "simulated": inputs.firmware.layout.is_none(),
        "kernel_sha256": hex::encode(kernel),
        "initrd_sha256": hex::encode(initrd),
        "command_line_sha256": hex::encode(inputs.kernel_hashes.command_line),
        "vcpus": args.vcpus,
        "vcpu_type": model.name(),
        "guest_features": args.guest_features,
    });
    Ok(Reply::good(measurement.to_string(), json))
}

fn of_release(args: &Measure, release: &Path) -> Result<Reply, Failure> {
    let path = manifest_path(release);
    let manifest = args.root.approve(&path)?;
    let files = ReleaseFiles::read(&path, manifest)?;
    let (measured, measurement) = files.measured(args.vcpu_type.as_deref(), args.vcpus)?;
    let content = files.manifest().manifest();
    let identity = expected_identity(content, measurement).map(|expected| {
        json!({
            "family_id": hex::encode(expected.block.family_id),
            "image_id": hex::encode(expected.block.image_id),
            "guest_svn": expected.block.guest_svn,
            "id_key_digest": expected.id_key,
            "author_key_digest": expected.author_key,
        })
    });
    let json = json!({
        "release": content.version,
        "profile": content.profile.to_string(),
        "measurement": measurement,
        "firmware_digest": files.firmware().digest,
        "simulated": files.firmware().layout.is_none(),
        "kernel_sha256": hex::encode(measured.kernel_sha256),
        "initrd_sha256": hex::encode(measured.initrd_sha256),
        "command_line": measured.command_line,
        "vcpus": measured.vcpus,
        "vcpu_type": measured.vcpu_type.name(),
        "guest_features": measured.guest_features,
        "policy": content.guest.policy,
        "id_block": identity,
    });
    Ok(Reply::good(measurement.to_string(), json))
}
