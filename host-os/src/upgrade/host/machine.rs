//! What an upgrade does to the machine: slots on its own disk, entries of the firmware, the TPM's policy, a restart.

use super::Machine;
use crate::bundle::{ReleaseError, RootSource};
use crate::installation;
use crate::power::{Action, Power, PowerError};
use crate::slots::{self, SlotError};
use crate::tpm::records::{Records, RecordsError};
use crate::tpm::{self, TpmError};
use crate::upgrade::Store;
use installer::archive::{Files, MANIFEST};
use installer::beside::{SwitchError, beside, switch};
use installer::disk::{Content, Installed, inspect};
use installer::layout;
use installer::linux::Device;
use installer::parts::{self, Parts};
use installer::pe;
use installer::plan::{Plan, Refusal};
use installer::run::{self, Medium, RunError};
use installer::verity::Tree;
use release::{HostImages, Manifest, Profile};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use upgrade::machine::Slot;

/// In memory: whether the agent was started before since the machine was.
const STARTED: &str = "/run/host-upgrade-started";

/// The machine did not do what an upgrade of its host needs.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The root is on no slot.
    #[error("the slot that this host runs from is not found; install the host anew")]
    NoSlot,
    /// The disk.
    #[error("cannot {action} {path}: {source}; the disk fails, replace it")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The device or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk is not as the installer left it.
    #[error(
        "the machine's disk does not start what runs ({0}); install the host anew, or restart the machine"
    )]
    Disk(String),
    /// The release's files are not those that were signed.
    #[error(transparent)]
    Parts(#[from] parts::ReleaseError),
    /// The root for the keys of releases.
    #[error(transparent)]
    Root(Box<ReleaseError>),
    /// The manifest says something else of the host than its files do.
    #[error("the manifest's {0} is not that of the host's files; ask the release's owners for a right one")]
    Measurement(&'static str),
    /// Both slots would have the same identifiers.
    #[error(
        "the release has the root that runs with another kernel image, and two slots cannot hold one root; ask the release's owners for one with a root of its own"
    )]
    SameRoot,
    /// It does not fit.
    #[error(transparent)]
    Plan(#[from] Refusal),
    /// It was not written.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The boot partition is not as this program writes it.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// The firmware.
    #[error(transparent)]
    Firmware(#[from] SlotError),
    /// The sealed secret.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// PID 1 does not listen.
    #[error(transparent)]
    Restart(#[from] PowerError),
    /// It came up, and was not well in time.
    #[error("the new host came up and its guest was not well: {0}")]
    Unhealthy(String),
}

impl HostError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSlot => "host-slot-unknown",
            Self::Io { .. } | Self::Run(_) => "host-disk-fails",
            Self::Disk(_) => "host-disk-unlike-installed",
            Self::Parts(error) => error.code(),
            Self::Root(error) => error.code(),
            Self::Measurement(_) => "host-measurement-differs",
            Self::SameRoot => "host-same-root",
            Self::Plan(error) => error.code(),
            Self::Switch(_) => "host-kernel-image-missing",
            Self::Firmware(_) => "firmware-entry",
            Self::Records(error) => error.code(),
            Self::Restart(_) => "no-pid1",
            Self::Unhealthy(_) => "host-unhealthy",
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    let path = path.to_owned();
    move |source| HostError::Io { action, path, source }
}

/// Slot of the root that runs.
pub(crate) fn running() -> Option<Slot> {
    Some(match slots::running()? {
        layout::Slot::A => Slot::A,
        layout::Slot::B => Slot::B,
    })
}

fn on_disk(slot: Slot) -> layout::Slot {
    match slot {
        Slot::A => layout::Slot::A,
        Slot::B => layout::Slot::B,
    }
}

/// Device of the root that runs: another release's may differ from it in little.
pub(crate) fn root_device() -> Option<PathBuf> {
    slots::own_partition(&slots::running()?.root())
}

/// Reads the files of a release that the host gets, as its manifest names them.
pub(super) fn files(directory: &Path, manifest: &Manifest) -> Result<Files, HostError> {
    let (required, optional) = parts::carried(manifest);
    let mut files = Files::new();
    for name in required.iter().chain(&optional) {
        let path = directory.join(name);
        match fs::read(&path) {
            Ok(content) => drop(files.insert(name.clone(), content)),
            // What has to be there is missed by who reads the files.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", &path)(error)),
        }
    }
    Ok(files)
}

/// That everything the manifest says of the host follows from its files, each of which is the signed one.
pub(super) fn check(files: &Files, host: &HostImages) -> Result<(), HostError> {
    let file = |name: &str| files.get(name).map(Vec::as_slice).unwrap_or_default();
    let uki = file(&host.uki.path);
    if pe::authenticode_hash(uki).ok() != Some(host.uki_authenticode.0) {
        return Err(HostError::Measurement("Authenticode hash"));
    }
    for section in host.measured.iter().flat_map(|measured| &measured.sections) {
        let found = pe::section(uki, &section.name).map(|content| <[u8; 32]>::from(Sha256::digest(content)));
        if found != Some(section.sha256.0) {
            return Err(HostError::Measurement("list of measured sections"));
        }
    }
    let tree = Tree::again(file(&host.root.path), file(&host.root_hash_tree.path));
    match tree {
        Some(root_hash) if root_hash == host.verity_root_hash.0 => Ok(()),
        _ => Err(HostError::Measurement("root hash")),
    }
}

/// The machine that this agent runs on.
pub(crate) struct Own {
    pub(crate) running: Slot,
    /// Has the release that comes, and the roots that it is judged by.
    pub(crate) store: Store,
    pub(crate) root: RootSource,
    pub(crate) profile: Profile,
    pub(crate) power: Power,
}

impl Own {
    fn disk() -> Result<(Device, Installed), HostError> {
        let name = slots::own_disk().ok_or(SlotError::NoDisk)?;
        let path = Path::new("/dev").join(name);
        let mut device = Device::open(&path).map_err(failed("open", &path))?;
        match inspect(&mut device).map_err(failed("read", &path))? {
            Content::Node(installed) => Ok((device, *installed)),
            Content::Damaged(part) => Err(HostError::Disk(format!("{part} is damaged"))),
            _ => Err(HostError::Disk("it is no disk of a node".to_owned())),
        }
    }

    fn carry_out(plan: &Plan, device: &mut Device) -> Result<(), HostError> {
        let outcome = run::run(plan, device, &mut |_| ())?;
        tracing::info!(written = outcome.written, kept = outcome.kept, "the machine's disk");
        Ok(())
    }

    fn records() -> Result<Records, HostError> {
        let path = installation::records().ok_or(SlotError::NoDisk)?;
        Ok(Records::open(&path)?)
    }

    /// `None` where there is no TPM: then nothing is sealed either.
    fn tpm() -> Result<Option<Box<dyn tpm::Tpm>>, HostError> {
        match tpm::open() {
            Ok(tpm) => Ok(Some(tpm)),
            Err(TpmError::Absent | TpmError::NotBuilt) => Ok(None),
            Err(error) => Err(RecordsError::Seal(error.into()).into()),
        }
    }
}

impl Machine for Own {
    fn running(&self) -> Slot {
        self.running
    }

    fn first_start(&mut self) -> bool {
        let first = !Path::new(STARTED).exists();
        if let Err(error) = fs::write(STARTED, "") {
            tracing::error!(%error, "a failing host may be tried more often than it should");
        }
        first
    }

    fn stage(&mut self) -> Result<(), HostError> {
        let incoming = self.store.incoming();
        let path = incoming.join(MANIFEST);
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let roots = self.store.roots(&self.root, self.profile);
        let roots = roots.map_err(|error| HostError::Root(Box::new(error)))?;
        let manifest = roots.verify(&bytes).map_err(parts::ReleaseError::Manifest)?;
        let parts = Parts::of(files(&incoming, manifest.manifest())?, roots.present(), self.profile)?;
        let (mut device, installed) = Self::disk()?;
        if installed.slot != on_disk(self.running) {
            return Err(HostError::Disk(format!("the firmware starts slot {}", installed.slot)));
        }
        if installed.root_hash == parts.root_hash {
            return Err(HostError::SameRoot);
        }
        let plan = beside(device.size(), &installed, &parts)?;
        Self::carry_out(&plan, &mut device)
    }

    fn allow(&mut self, next: &HostImages) -> Result<(), HostError> {
        let Some(mut tpm) = Self::tpm()? else { return Ok(()) };
        Ok(Self::records()?.allow(tpm.as_mut(), next)?)
    }

    fn settle(&mut self) -> Result<(), HostError> {
        let Some(mut tpm) = Self::tpm()? else { return Ok(()) };
        Ok(Self::records()?.settle(tpm.as_mut())?)
    }

    fn start_once(&mut self) -> Result<(), HostError> {
        Ok(slots::start_previous_next()?)
    }

    fn start_always(&mut self, slot: Slot) -> Result<(), HostError> {
        let (mut device, installed) = Self::disk()?;
        let slot = on_disk(slot);
        if installed.slot == slot {
            return Ok(());
        }
        Self::carry_out(&switch(&installed, slot)?, &mut device)
    }

    fn restart(&mut self, why: &str) -> Result<(), HostError> {
        Ok(self.power.request(Action::Reboot, why)?)
    }
}
