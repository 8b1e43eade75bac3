//! What to write on a disk, in order, or why nothing is written.
//!
//! The order is such that a power cut at any point leaves the old system startable or the new one complete:
//!
//! - An empty or erased disk has no table until everything else is there; the last write is the table's first copy.
//! - A node gets the new system in the slot that is not in use. Its table then names the new root beside the old one; the
//!   second copy is written first, and kernel (`gpt` on the command line) and firmware take it while the first is not
//!   sound. Last, one sector of the boot partition makes the firmware start the new system.
//! - If only the guest is new, it goes into the guest slot that is not in use, and the table exchanges the two labels.

use crate::{
    config::{ConfigError, Identity, Operator, Signed},
    disk::{Content, Disk, Installed},
    esp::{self, Esp},
    fat::FatError,
    gpt::{Guid, LayoutError, Table},
    layout::{self, MIB, Slot, labels},
    parts::{Parts, is_older},
    record::{self, Kind, TooLong},
};
use std::borrow::Cow;

/// One part of a plan. All of it is on the disk before the next part begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<'a> {
    /// For people.
    pub name: &'static str,
    /// In this order.
    pub writes: Vec<Write<'a>>,
}

/// Bytes at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write<'a> {
    /// Offset in bytes.
    pub at: u64,
    /// What must be there.
    pub bytes: Cow<'a, [u8]>,
}

/// What a plan does, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A new node; what was on the disk is lost.
    New,
    /// A new system beside the old one.
    Update(Slot),
    /// A new guest only.
    Guest,
    /// The system is installed already; it is compared, and repaired where it differs.
    Verify,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<'a> {
    /// What it does.
    pub purpose: Purpose,
    /// The node's table when it is done.
    pub table: Table,
    /// What to write.
    pub steps: Vec<Step<'a>>,
}

impl Plan<'_> {
    /// Bytes that are compared, and written where they differ.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.steps.iter().flat_map(|step| &step.writes).map(|write| write.bytes.len() as u64).sum()
    }
}

/// Nothing is written.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such disk.
    #[error("there is no disk {wanted}; the machine has {found}")]
    NoDisk {
        /// As given.
        wanted: String,
        /// The disks that there are.
        found: String,
    },
    /// More than one.
    #[error("more than one disk could be meant: {0}; name one by its name or serial number")]
    Ambiguous(String),
    /// The medium itself.
    #[error("{0} is the medium that the installer was started from; choose another disk")]
    Medium(String),
    /// Mounted, for example.
    #[error("{disk} is in use ({by}); stop that, or choose another disk")]
    InUse {
        /// The disk.
        disk: String,
        /// What uses it.
        by: String,
    },
    /// Too small.
    #[error("{disk} has {size} bytes, a node needs {needed}; choose a larger disk")]
    TooSmall {
        /// The disk.
        disk: String,
        /// Its length.
        size: u64,
        /// What is needed.
        needed: u64,
    },
    /// Tables are for blocks of 512 bytes.
    #[error(
        "{disk} has blocks of {block} bytes; set it to blocks of 512 bytes (nvme format --lbaf), which erases it"
    )]
    Block {
        /// The disk.
        disk: String,
        /// Its blocks.
        block: u64,
    },
    /// Something would be lost.
    #[error("{disk} holds {content}, which would be lost; confirm that it may be erased")]
    NotConfirmed {
        /// The disk.
        disk: String,
        /// What is on it.
        content: String,
    },
    /// Downgrade.
    #[error(
        "release {offered} (security epoch {offered_epoch}) is older than {installed} (security epoch \
         {installed_epoch}), which is installed; take a newer release, or erase the node"
    )]
    Older {
        /// On the medium.
        offered: String,
        /// Its epoch.
        offered_epoch: u64,
        /// On the disk.
        installed: String,
        /// Its epoch.
        installed_epoch: u64,
    },
    /// Another kind of node.
    #[error(
        "the node on {disk} is of the profile {installed}, the release of {offered}; take a release for it, or erase the node"
    )]
    Profile {
        /// The disk.
        disk: String,
        /// On the disk.
        installed: release::Profile,
        /// On the medium.
        offered: release::Profile,
    },
    /// Somebody else's node.
    #[error(
        "the node on {disk} has another operator ({installed}); give that operator's key, or erase the node"
    )]
    Operator {
        /// The disk.
        disk: String,
        /// Fingerprint on the disk.
        installed: String,
    },
    /// The node's configuration is damaged.
    #[error("the configuration of the node on {disk} is refused ({why}); erase the node")]
    Configuration {
        /// The disk.
        disk: String,
        /// Why.
        why: String,
    },
    /// The release does not fit.
    #[error("the {part} has {size} bytes, its partition {room}; this release is not for this layout")]
    NoRoom {
        /// Which part.
        part: &'static str,
        /// Its length.
        size: u64,
        /// The partition's.
        room: u64,
    },
    /// The boot partition cannot be made.
    #[error("the boot partition cannot be made: {0}")]
    Boot(#[from] FatError),
    /// The table cannot be made.
    #[error(transparent)]
    Table(#[from] LayoutError),
    /// The configuration cannot be written.
    #[error(transparent)]
    Record(#[from] TooLong),
    /// The node's configuration cannot be made.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Refusal {
    /// A short fixed name, for scripts and tests.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoDisk { .. } => "disk-not-found",
            Self::Ambiguous(_) => "disk-ambiguous",
            Self::Medium(_) => "disk-is-installer",
            Self::InUse { .. } => "disk-in-use",
            Self::TooSmall { .. } => "disk-too-small",
            Self::Block { .. } => "disk-block-size",
            Self::NotConfirmed { .. } => "erase-not-confirmed",
            Self::Older { .. } => "release-older",
            Self::Profile { .. } => "profile-differs",
            Self::Operator { .. } => "operator-differs",
            Self::Configuration { .. } => "node-configuration-refused",
            Self::NoRoom { .. } => "release-too-large",
            Self::Boot(_) | Self::Table(_) | Self::Record(_) => "layout-impossible",
            Self::Config(error) => error.code(),
        }
    }
}

/// Finds the wanted disk: by name, by `serial:NUMBER`, or `auto`, which leaves out the medium and what can be taken out.
pub fn choose<'a>(disks: &'a [Disk], wanted: &str) -> Result<&'a Disk, Refusal> {
    let list = |disks: &[&Disk]| {
        let names: Vec<String> = disks.iter().map(|disk| format!("{} ({})", disk.name, disk.model)).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let is_wanted = |disk: &&Disk| match wanted.strip_prefix("serial:") {
        Some(serial) => disk.serial == serial,
        None if wanted == "auto" => !disk.is_medium && !disk.removable,
        None => disk.name == wanted,
    };
    match disks.iter().filter(is_wanted).collect::<Vec<_>>()[..] {
        [one] => Ok(one),
        [] => {
            Err(Refusal::NoDisk { wanted: wanted.to_owned(), found: list(&disks.iter().collect::<Vec<_>>()) })
        }
        ref several => Err(Refusal::Ambiguous(list(several))),
    }
}

/// Whether a disk can be written at all; `needed` is in bytes.
pub fn usable(disk: &Disk, needed: u64) -> Result<(), Refusal> {
    let name = disk.name.clone();
    if disk.is_medium {
        return Err(Refusal::Medium(name));
    }
    if let Some(by) = disk.used_by.clone() {
        return Err(Refusal::InUse { disk: name, by });
    }
    if disk.block != 512 {
        return Err(Refusal::Block { disk: name, block: disk.block });
    }
    if disk.size < needed {
        return Err(Refusal::TooSmall { disk: name, size: disk.size, needed });
    }
    Ok(())
}

/// Who the node is for, and what may be lost.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Whether the disk's content may be erased.
    pub erase: bool,
    /// The operator, checked.
    pub operator: &'a Operator,
    /// The hardware specification.
    pub hardware: &'a str,
    /// How the node is connected.
    pub network: Option<&'a crate::network::Network>,
}

/// The plan for a disk. `random` gives random bytes, for the identity and the identifiers of a new node.
pub fn plan<'a>(
    disk: &Disk,
    content: &Content,
    parts: &'a Parts,
    wanted: &Wanted,
    random: &mut dyn FnMut() -> [u8; 32],
) -> Result<Plan<'a>, Refusal> {
    usable(disk, layout::smallest())?;
    let name = || disk.name.clone();
    let lost = match content {
        Content::Empty => None,
        Content::Node(installed) if !wanted.erase => return update(disk, installed, parts, wanted),
        Content::Node(installed) => Some(format!("a node with release {}", installed.release.version)),
        Content::Damaged(part) => {
            Some(format!("a node that does not start ({part} is damaged or incomplete)"))
        }
        Content::Foreign(labels) if labels.is_empty() => {
            Some("data that this installer does not know".into())
        }
        Content::Foreign(labels) => Some(format!("the partitions {}", labels.join(", "))),
    };
    if let Some(content) = lost.filter(|_| !wanted.erase) {
        return Err(Refusal::NotConfirmed { disk: name(), content });
    }
    let identity = Identity::new(random());
    let signed = identity.configure(wanted.operator.clone(), wanted.hardware, wanted.network.cloned())?;
    let records = [(Kind::Identity, to_json(&identity)?), (Kind::Configuration, to_json(&signed)?)];
    let mut id = |_: &str| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&random()[..16]);
        layout::custom(bytes)
    };
    fresh(disk.size, parts, &records, &mut id)
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, ConfigError> {
    Ok(serde_json::to_vec(value)?)
}

/// The plan for a disk whose content may be lost, with these documents; `id` as for [`layout::table`].
pub fn fresh<'a>(
    size: u64,
    parts: &'a Parts,
    records: &[(Kind, Vec<u8>)],
    id: &mut dyn FnMut(&str) -> Guid,
) -> Result<Plan<'a>, Refusal> {
    let table = layout::table(size, &parts.root_hash, id);
    let (start, end) = layout::encode(&table, size)?;
    let (end_at, at) = (size - end.len() as u64, |label: &str| start_in(&table, label));
    let mut area = vec![0; record::AREA];
    for (kind, document) in records {
        let (at, bytes) = record::write(&area, *kind, document)?;
        area[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    let mut steps = vec![
        step("old partition table", [(0, vec![0; start.len()]), (end_at, vec![0; end.len()])]),
        // The beginning of a file system that may have been there goes too.
        step("configuration", [(at(labels::CONFIG), area), (at(labels::STATE), vec![0; MIB as usize])]),
    ];
    steps.extend(slot_steps(&table, Slot::A, Slot::A, parts)?);
    let esp = Esp::with(parts.uki.clone());
    steps.extend(boot_steps(&table, &esp, esp.current)?);
    steps.extend(table_steps(start, end, size));
    Ok(Plan { purpose: Purpose::New, table, steps })
}

/// The plan for a node that keeps what it has.
fn update<'a>(
    disk: &Disk,
    installed: &Installed,
    parts: &'a Parts,
    wanted: &Wanted,
) -> Result<Plan<'a>, Refusal> {
    let release = &installed.release;
    if release.profile != parts.profile {
        return Err(Refusal::Profile {
            disk: disk.name.clone(),
            installed: release.profile,
            offered: parts.profile,
        });
    }
    if is_older((parts.security_epoch, &parts.version), (release.security_epoch, &release.version)) {
        return Err(Refusal::Older {
            offered: parts.version.clone(),
            offered_epoch: parts.security_epoch,
            installed: release.version.clone(),
            installed_epoch: release.security_epoch,
        });
    }
    match &installed.configuration {
        Some(Ok(Signed { configuration, .. }))
            if configuration.operator.fingerprint != wanted.operator.fingerprint =>
        {
            let fingerprint = configuration.operator.fingerprint.clone().unwrap_or_default();
            return Err(Refusal::Operator { disk: disk.name.clone(), installed: fingerprint });
        }
        Some(Err(why)) => {
            return Err(Refusal::Configuration { disk: disk.name.clone(), why: why.to_string() });
        }
        _ => {}
    }
    let same_guest = release.digest == parts.digest;
    let mut table = installed.table.clone();
    let (purpose, host, guest) = if installed.root_hash != parts.root_hash {
        let slot = installed.slot.other();
        layout::set_root(&mut table, slot, &parts.root_hash);
        (Purpose::Update(slot), slot, slot)
    } else if same_guest {
        (Purpose::Verify, installed.slot, installed.slot)
    } else {
        (Purpose::Guest, installed.slot, installed.slot.other())
    };
    let mut steps = slot_steps(&installed.table, host, guest, parts)?;
    if purpose == Purpose::Guest {
        for partition in &mut table.partitions {
            for (from, to) in [(Slot::A, Slot::B), (Slot::B, Slot::A)] {
                if partition.name == from.guest() {
                    partition.name = to.guest();
                    break;
                }
            }
        }
    }
    let (start, end) = layout::encode(&table, disk.size)?;
    steps.extend(table_steps(start, end, disk.size));
    let esp = match installed.esp.current() {
        Some(current) if current == parts.uki => installed.esp.clone(),
        _ => installed.esp.replaced_by(parts.uki.clone()),
    };
    steps.extend(boot_steps(&table, &esp, esp.current)?);
    Ok(Plan { purpose, table, steps })
}

pub(crate) fn step<'a>(name: &'static str, writes: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Step<'a> {
    let writes = writes.into_iter().map(|(at, bytes)| Write { at, bytes: Cow::Owned(bytes) });
    Step { name, writes: writes.collect() }
}

fn start_in(table: &Table, label: &str) -> u64 {
    table.find(label).map_or(0, |partition| partition.start)
}

pub(crate) fn slot_steps<'a>(
    table: &Table,
    host: Slot,
    guest: Slot,
    parts: &'a Parts,
) -> Result<Vec<Step<'a>>, Refusal> {
    let of = |name: &'static str, label: String, bytes: &'a [u8]| {
        let room = table.find(&label).map_or(0, |partition| partition.size);
        if bytes.len() as u64 > room {
            return Err(Refusal::NoRoom { part: name, size: bytes.len() as u64, room });
        }
        Ok(Step { name, writes: vec![Write { at: start_in(table, &label), bytes: Cow::Borrowed(bytes) }] })
    };
    Ok(vec![
        of("hash tree", host.verity(), &parts.verity)?,
        of("root", host.root(), &parts.root)?,
        of("guest", guest.guest(), &parts.guest)?,
    ])
}

/// The steps after which the boot partition has this content, when only the image in this place and the names are new.
pub(crate) fn boot_steps<'a>(table: &Table, esp: &Esp, place: usize) -> Result<Vec<Step<'a>>, Refusal> {
    let Some(partition) = table.find(labels::ESP) else { return Ok(Vec::new()) };
    let (size, room) = (esp.images[place].as_ref().map_or(0, Vec::len), esp::room(partition.size as usize)?);
    if size > room {
        return Err(Refusal::NoRoom { part: "kernel image", size: size as u64, room: room as u64 });
    }
    let image = esp.to_bytes(partition.size as usize)?;
    let names = ["kernel image", "boot partition", "names of the kernel images"];
    let steps = esp.steps(image.len(), place)?.into_iter().zip(names).map(|(ranges, name)| {
        let bytes = ranges
            .into_iter()
            .map(|(at, length)| (partition.start + at as u64, image[at..at + length].to_vec()));
        step(name, bytes)
    });
    Ok(steps.collect())
}

/// The second copy first: the first one is what kernels look at first.
pub(crate) fn table_steps<'a>(start: Vec<u8>, end: Vec<u8>, size: u64) -> [Step<'a>; 2] {
    let end_at = size - end.len() as u64;
    [step("partition table, second copy", [(end_at, end)]), step("partition table", [(0, start)])]
}
