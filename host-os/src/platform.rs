//! What protects the guest, as found on this machine.

use crate::bundle::CheckedRelease;
use crate::check::{CheckError, Options};
use crate::config::ConfigText;
use crate::guest::{QemuEnd, SpawnError};
use crate::launch::{Accel, Platform};
use crate::node::NodeDir;
#[cfg(feature = "virtual")]
use crate::psp::SimulatedProcessor;
use std::pin::Pin;

/// What protects the guest. SEV-SNP gets its variant with its launch; a build without the feature `virtual` has
/// none yet, and so can launch nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckedPlatform {
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
    pub(crate) _qemu_end: QemuEnd,
}

impl CheckedPlatform {
    /// How the guest is executed, and why so.
    pub fn accel(&self) -> Option<(Accel, &str)> {
        match *self {
            #[cfg(feature = "virtual")]
            Self::Virtual { accel, ref reason, .. } => Some((accel, reason)),
        }
    }

    /// The channels of one launch.
    pub(crate) fn connect(&self) -> Result<Connected, SpawnError> {
        match *self {
            #[cfg(feature = "virtual")]
            Self::Virtual { accel, ref processor, .. } => {
                let (stream, qemu_end) = crate::guest::channel().map_err(SpawnError::Channels)?;
                let platform = Platform::Virtual { accel, psp: qemu_end.fd() };
                let psp = processor.launch().map_err(|error| SpawnError::Platform(error.to_string()))?;
                let task = Box::pin(crate::psp::serve(stream, psp));
                let certificates = processor.certificate_table().to_vec();
                Ok(Connected { platform, task, certificates, _qemu_end: qemu_end })
            }
        }
    }
}

/// Sets up the platform of a virtual node; finds out how to execute the guest, which may take seconds.
#[cfg(feature = "virtual")]
pub(crate) fn set_up(
    options: &Options,
    node: &NodeDir,
    release: &CheckedRelease,
    config: &ConfigText,
    progress: &dyn Fn(&str),
) -> Result<CheckedPlatform, CheckError> {
    use crate::accel;
    use release::{FileName, Profile};
    if options.profile != Profile::Virtual {
        return Err(CheckError::Profile(options.profile));
    }
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

/// No platform is built in.
#[cfg(not(feature = "virtual"))]
pub(crate) fn set_up(
    options: &Options,
    _: &NodeDir,
    _: &CheckedRelease,
    _: &ConfigText,
    _: &dyn Fn(&str),
) -> Result<CheckedPlatform, CheckError> {
    Err(CheckError::Profile(options.profile))
}
