//! What is on a disk, as far as installing is concerned.

use crate::{
    archive,
    config::{ConfigError, Signed},
    esp::Esp,
    gpt::{self, Table},
    layout::{self, Slot, labels},
    parts::root_hash_of,
    record::{self, Kind},
    run::Medium,
};
use release::{Digest, Envelope, Profile};
use std::io::{self, Read};

/// A disk as the machine offers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, such as `nvme0n1`.
    pub name: String,
    /// Model and serial number, for people; empty if the disk does not say.
    pub model: String,
    /// Serial number; empty if the disk does not say.
    pub serial: String,
    /// Length in bytes.
    pub size: u64,
    /// Size of a logical block in bytes.
    pub block: u64,
    /// Whether it can be taken out, as a USB stick.
    pub removable: bool,
    /// What uses it now: a mount point, a device upon it.
    pub used_by: Option<String>,
    /// Whether the installer was started from it.
    pub is_medium: bool,
}

/// What was found on a disk.
#[derive(Debug)]
pub enum Content {
    /// Zeros where tables would be.
    Empty,
    /// Something else, with the labels of its partitions if it has any.
    Foreign(Vec<String>),
    /// The partitions of a node, but no system that starts: an installation that was cut off, or damage.
    Damaged(&'static str),
    /// A node.
    Node(Box<Installed>),
}

/// A node on a disk.
#[derive(Debug)]
pub struct Installed {
    /// Partition table.
    pub table: Table,
    /// Boot partition.
    pub esp: Esp,
    /// Slot of the system that starts.
    pub slot: Slot,
    /// Root hash of that system.
    pub root_hash: [u8; 32],
    /// The release in that slot.
    pub release: InstalledRelease,
    /// Its configuration; none on a disk that was written as it was built.
    pub configuration: Option<Result<Signed, ConfigError>>,
}

/// A release in a slot. It was verified when it was installed; here nobody's signature counts, because who can write the
/// disk can remove it too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledRelease {
    /// [`release::Manifest::version`].
    pub version: String,
    /// [`release::Manifest::security_epoch`].
    pub security_epoch: u64,
    /// [`release::Manifest::profile`].
    pub profile: Profile,
    /// What was signed.
    pub digest: Digest,
}

/// Reads a part of a medium.
pub fn read(medium: &mut dyn Medium, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    medium.read(at, &mut bytes)?;
    Ok(bytes)
}

/// Both places of a partition table, and the table in them.
pub fn table(medium: &mut dyn Medium) -> io::Result<(bool, Option<Table>)> {
    let size = medium.size();
    let start = read(medium, 0, gpt::START.min(size))?;
    let end = read(medium, size.saturating_sub(gpt::END), gpt::END.min(size))?;
    let empty = start.iter().chain(&end).all(|byte| *byte == 0);
    Ok((empty, Table::parse(size, &start, &end)))
}

/// Says what is on a disk.
pub fn inspect(medium: &mut dyn Medium) -> io::Result<Content> {
    let (empty, table) = table(medium)?;
    let Some(table) = table else {
        return Ok(if empty { Content::Empty } else { Content::Foreign(Vec::new()) });
    };
    if !layout::is_ours(&table) {
        let names = table.partitions.iter().map(|partition| partition.name.clone());
        return Ok(Content::Foreign(names.collect()));
    }
    let boot = table.find(labels::ESP).map_or((0, 0), |partition| (partition.start, partition.size));
    let esp = Esp::read(boot.1 as usize, &mut |at, length| read(medium, boot.0 + at as u64, length as u64))?;
    let Some(esp) = esp else { return Ok(Content::Damaged("the boot partition")) };
    let Some(root_hash) = esp.current().and_then(root_hash_of) else {
        return Ok(Content::Damaged("the kernel image"));
    };
    let (id, _) = layout::root_identifiers(&root_hash);
    let slot = table.partitions.iter().filter(|partition| partition.id == id);
    let Some(slot) = slot.filter_map(|partition| Slot::of_label(&partition.name)).next() else {
        return Ok(Content::Damaged("the slot of the host"));
    };
    let Some(release) = guest_manifest(medium, &table, slot) else {
        return Ok(Content::Damaged("the guest"));
    };
    let configuration = match table.find(labels::CONFIG) {
        Some(config) => {
            let area = read(medium, config.start, record::AREA as u64)?;
            record::read(&area, Kind::Configuration).map(|(_, document)| Signed::parse(document))
        }
        None => None,
    };
    Ok(Content::Node(Box::new(Installed { table, esp, slot, root_hash, release, configuration })))
}

fn guest_manifest(medium: &mut dyn Medium, table: &Table, slot: Slot) -> Option<InstalledRelease> {
    let partition = table.find(&slot.guest())?;
    let reader = Reader { medium, at: partition.start, end: partition.start + partition.size };
    let files = archive::unpack(reader).ok()?;
    let envelope = Envelope::from_bytes(files.get(archive::MANIFEST)?).ok()?;
    let manifest = envelope.manifest();
    Some(InstalledRelease {
        version: manifest.version.clone(),
        security_epoch: manifest.security_epoch,
        profile: manifest.profile,
        digest: envelope.digest(),
    })
}

/// Reads a part of a medium from its beginning on.
pub struct Reader<'a> {
    /// The medium.
    pub medium: &'a mut dyn Medium,
    /// Next byte.
    pub at: u64,
    /// End of the part.
    pub end: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let length = (self.end.saturating_sub(self.at)).min(bytes.len() as u64) as usize;
        self.medium.read(self.at, &mut bytes[..length])?;
        self.at += length as u64;
        Ok(length)
    }
}
