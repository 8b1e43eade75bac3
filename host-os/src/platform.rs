//! What protects the guest, as found on this machine.

use crate::bundle::CheckedRelease;
use crate::check::{CheckError, Options};
use crate::config::ConfigText;
use crate::guest::{QemuEnd, SpawnError};
use crate::launch::{Accel, Encryption, Platform, Snp};
use crate::node::NodeDir;
#[cfg(feature = "virtual")]
use crate::psp::SimulatedProcessor;
use release::Profile;
use std::pin::Pin;

/// What protects the guest.
#[derive(Debug)]
pub enum CheckedPlatform {
    /// The AMD Secure Processor.
    Snp {
        /// Parameters of each launch.
        snp: Box<Snp>,
        /// Certificate table of this machine's processor; empty when it was not supplied.
        certificates: Vec<u8>,
    },
    /// A virtual node.
    #[cfg(feature = "virtual")]
    Virtual {
        /// How the guest is executed.
        accel: Accel,
        /// Why so.
        reason: String,
        /// The simulated secure processor, told the measurement of what is launched.
        processor: SimulatedProcessor,
    },
}

/// What one launch needs of the platform.
pub(crate) struct Connected {
    /// For the command line.
    pub(crate) platform: Platform,
    /// Runs as long as the guest.
    pub(crate) task: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Certificate table of the machine, for the guest.
    pub(crate) certificates: Vec<u8>,
    /// Kept until QEMU has inherited it.
    pub(crate) _qemu_end: Option<QemuEnd>,
}

impl CheckedPlatform {
    /// How the guest is executed, and why so.
    pub fn accel(&self) -> Option<(Accel, &str)> {
        match *self {
            Self::Snp { .. } => None,
            #[cfg(feature = "virtual")]
            Self::Virtual { accel, ref reason, .. } => Some((accel, reason)),
        }
    }

    /// The channels of one launch.
    pub(crate) fn connect(&self) -> Result<Connected, SpawnError> {
        match *self {
            Self::Snp { ref snp, ref certificates } => Ok(Connected {
                platform: Platform::Snp(snp.clone()),
                // The guest asks the Secure Processor by itself.
                task: Box::pin(std::future::ready(())),
                certificates: certificates.clone(),
                _qemu_end: None,
            }),
            #[cfg(feature = "virtual")]
            Self::Virtual { accel, ref processor, .. } => {
                let (stream, qemu_end) = crate::guest::channel().map_err(SpawnError::Channels)?;
                let platform = Platform::Virtual { accel, psp: qemu_end.fd() };
                let psp = processor.launch().map_err(|error| SpawnError::Platform(error.to_string()))?;
                let task = Box::pin(crate::psp::serve(stream, psp));
                let certificates = processor.certificate_table().to_vec();
                Ok(Connected { platform, task, certificates, _qemu_end: Some(qemu_end) })
            }
        }
    }
}

/// Sets up the platform of the node's profile.
pub(crate) fn set_up(
    options: &Options,
    node: &NodeDir,
    release: &CheckedRelease,
    config: &ConfigText,
    progress: &dyn Fn(&str),
) -> Result<CheckedPlatform, CheckError> {
    match options.profile {
        Profile::Production => Ok(CheckedPlatform::Snp {
            snp: Box::new(snp(release, config, Encryption::of_this_processor()?)),
            certificates: node.certificates()?,
        }),
        Profile::Virtual => set_up_virtual(options, node, release, config, progress),
    }
}

/// Parameters of a launch under SEV-SNP.
pub(crate) fn snp(release: &CheckedRelease, config: &ConfigText, encryption: Encryption) -> Snp {
    Snp {
        encryption,
        policy: release.manifest().manifest().guest.policy,
        host_data: config.host_data(),
        identity: release.identity().cloned(),
    }
}

/// Finds out how to execute the guest, which may take seconds.
#[cfg(feature = "virtual")]
fn set_up_virtual(
    options: &Options,
    node: &NodeDir,
    release: &CheckedRelease,
    config: &ConfigText,
    progress: &dyn Fn(&str),
) -> Result<CheckedPlatform, CheckError> {
    use crate::accel;
    use release::FileName;
    progress("finding out whether KVM boots this kernel");
    let kernel_sha256 = release.manifest().manifest().guest.files.kernel.sha256;
    let (accel, reason) = accel::choose(options.accel, &node.kvm_probe(), kernel_sha256.as_bytes(), || {
        let firmware = release.file(FileName::Firmware).path();
        accel::probe(&options.qemu, &firmware, &release.file(FileName::Kernel).path())
    });
    let processor = SimulatedProcessor::open(node, release, config)
        .map_err(|error| CheckError::Chip(error.to_string()))?;
    Ok(CheckedPlatform::Virtual { accel, reason, processor })
}

/// The simulation is not built in.
#[cfg(not(feature = "virtual"))]
fn set_up_virtual(
    options: &Options,
    _: &NodeDir,
    _: &CheckedRelease,
    _: &ConfigText,
    _: &dyn Fn(&str),
) -> Result<CheckedPlatform, CheckError> {
    Err(CheckError::Profile(options.profile))
}
