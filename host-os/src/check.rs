//! Everything that has to be true before QEMU is started: the machine, the release, the node's files.
//!
//! The steps are in the order in which a refusal costs least and says most.

use crate::accel;
use crate::attest::Expectations;
use crate::bundle::{self, CheckedRelease, LaunchedAs, ReleaseError, ReleaseFiles, RootSource};
use crate::config::{ConfigText, virtual_guest};
use crate::confine::Level;
use crate::launch::EncryptionError;
use crate::machine::Policy;
use crate::node::{NodeDir, NodeDirError, NodeLock, Place};
use crate::nvram::{Nvram, NvramError};
use crate::placement::{Placement, PlacementError};
use crate::platform::{self, CheckedPlatform};
use crate::upgrade::{Patience, Store};
use host_guest::{GuestConfig, Task};
use release::Profile;
use std::net::SocketAddr;
use std::path::PathBuf;
use upgrade::machine::Slot;

/// What the agent is asked to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The release's manifest; its files lie beside it.
    pub manifest: PathBuf,
    /// The release keys.
    pub root: RootSource,
    /// Kind of node.
    pub profile: Profile,
    /// Memory of the guest in MiB.
    pub memory_mib: u32,
    /// Number of virtual processors.
    pub vcpus: u32,
    /// Their model; `None` is the release's own.
    pub vcpu_type: Option<String>,
    /// Size of the NVRAM in bytes: a power of two.
    pub nvram_bytes: u64,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Ports on 127.0.0.1.
    pub ports: PortChoice,
    /// How to execute the guest.
    pub accel: accel::Choice,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// Names of hardware checks whose failure is accepted.
    pub ignore_hardware: Vec<String>,
    /// When to lose patience.
    pub policy: Policy,
    /// When a release that is tried has to be healthy, and for how long.
    pub trial: Patience,
    /// Which of the machine's processors and memory the guest gets.
    pub placement: Option<Placement>,
    /// How far QEMU is confined.
    pub confinement: Level,
    /// The line to PID 1 of the machine; `None` where the agent is an ordinary process.
    pub power: Option<crate::power::Power>,
}

/// Ports, on 127.0.0.1 but for the operators'; `None` leaves the choice to the agent.
#[derive(Debug, Clone, Copy, Default)]
pub struct PortChoice {
    /// The guest's HTTPS interface.
    pub https: Option<u16>,
    /// The gateway.
    pub http: Option<u16>,
    /// Status and metrics.
    pub status: Option<u16>,
    /// Address and port of the operators' interface.
    pub operator: Option<SocketAddr>,
}

/// Why nothing is launched.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The machine does not fit the specification.
    #[error("this machine does not fit the hardware specification `{spec}`:\n{findings}")]
    Hardware {
        /// Name of the specification.
        spec: String,
        /// One line per failed check: expected, found, fix.
        findings: String,
    },
    /// The specification itself cannot be used.
    #[error(
        "the hardware specification `{spec}` cannot be used: {reason}; this program is damaged, install it again"
    )]
    Specification {
        /// Name of the specification.
        spec: String,
        /// Why.
        reason: String,
    },
    /// The release is refused.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The machine cannot be divided between host and guest.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The NVRAM cannot be used.
    #[error(transparent)]
    Nvram(#[from] NvramError),
    /// The node's files cannot be used.
    #[error(transparent)]
    NodeDir(#[from] NodeDirError),
    /// The guest's configuration cannot be made.
    #[error("the guest's configuration cannot be written: {0}")]
    Config(#[from] serde_json::Error),
    /// This program cannot launch guests of that profile.
    #[error(
        "this build of the agent cannot launch guests of the profile `{0}`; use a build or a release for the other profile"
    )]
    Profile(Profile),
    /// The processor cannot run guests of the production profile.
    #[error(transparent)]
    Processor(#[from] EncryptionError),
    /// The simulated secure processor cannot be set up.
    #[error(
        "the simulated secure processor cannot be used: {0}; remove the directory `chip` of the node to give it a new one"
    )]
    Chip(String),
    /// The checks broke off.
    #[error("the checks broke off: {0}; this is a defect of the agent, please report it")]
    Interrupted(String),
}

impl CheckError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Hardware { .. } => "hardware-refused",
            Self::Specification { .. } => "hardware-spec-unusable",
            Self::Release(error) => error.code(),
            Self::Placement(error) => error.code(),
            Self::Nvram(error) => error.code(),
            Self::NodeDir(error) => error.code(),
            Self::Config(_) => "config-unwritable",
            Self::Profile(_) => "profile-not-built",
            Self::Processor(error) => error.code(),
            Self::Chip(_) => "simulated-chip-unusable",
            Self::Interrupted(_) => "checks-interrupted",
        }
    }
}

/// Which release is to be launched, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its manifest; its files lie beside it.
    pub manifest: PathBuf,
    /// Where it lies, by which it has a disk of its own.
    pub place: Place,
    /// What the guest does.
    pub task: Task,
    /// What its release has to be blessed for.
    pub launched: LaunchedAs,
}

impl Target {
    /// The release in a slot, as the node.
    pub(crate) fn of_slot(options: &Options, store: &Store, slot: Slot, tried: bool) -> Self {
        Self {
            manifest: store.manifest(slot, &options.manifest),
            place: slot.into(),
            task: Task::Run,
            launched: if tried { LaunchedAs::Tried } else { LaunchedAs::Committed },
        }
    }

    /// The recovery release.
    pub(crate) fn of_recovery(store: &Store) -> Self {
        let place = Place::Recovery;
        let launched = LaunchedAs::Recovery;
        Self { manifest: store.staged(place), place, task: Task::Recover, launched }
    }

    /// The same release, there to take over the key.
    pub(crate) fn receiving(self) -> Self {
        Self { task: Task::Receive, ..self }
    }
}

/// What was checked and may be launched.
#[derive(Debug)]
pub struct Checked {
    /// What was asked for.
    pub target: Target,
    /// The release.
    pub release: CheckedRelease,
    /// What protects the guest.
    pub platform: CheckedPlatform,
    /// The guest's configuration.
    pub config: ConfigText,
    /// The NVRAM, if it is to be the node.
    pub nvram: Option<Nvram>,
    /// Disk image.
    pub disk: PathBuf,
    /// What the guest's evidence must say.
    pub expectations: Expectations,
}

/// Checks a release and all that its launch needs; blocks for as long as hashing and the KVM probe take. `progress` hears
/// what is being done.
pub fn check(
    options: &Options,
    node: &NodeDir,
    lock: &NodeLock,
    target: Target,
    progress: &dyn Fn(&str),
) -> Result<Checked, CheckError> {
    let anchors = crate::attest::anchors(options.profile).ok_or(CheckError::Profile(options.profile))?;
    progress("verifying the manifest's signatures");
    let roots = Store::of(node).roots(&options.root, options.profile)?;
    let path = &target.manifest;
    let manifest = bundle::manifest(path, &roots, options.profile)?;
    if let Some(why) = bundle::admit(&roots, path, &manifest, node.path(), target.launched)? {
        progress(&format!("going on with the release that ran before: {why}"));
    }
    progress("checking the release's files and recomputing the launch measurement");
    let release = ReleaseFiles::read(path, manifest)?.seal(options.vcpu_type.as_deref(), options.vcpus)?;

    progress("preparing NVRAM and disk");
    let nvram = match target.task {
        Task::Run => Some(crate::nvram::provide(node, lock, options.nvram_bytes, options.power.is_some())?),
        Task::Receive | Task::Give | Task::Recover => None,
    };
    let disk = node.disk(lock, target.place, options.disk_bytes)?;
    let config = ConfigText::new(&GuestConfig { task: target.task, ..virtual_guest() })?;
    let mut expectations = Expectations::of_guest([*release.measurement()], config.host_data(), anchors);
    expectations.policy.id_block = bundle::id_block_policy(release.manifest().manifest());
    let platform = platform::set_up(options, node, &release, &config, progress)?;
    Ok(Checked { target, release, platform, config, nvram, disk, expectations })
}
