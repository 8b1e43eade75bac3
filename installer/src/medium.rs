//! The installer's medium: a boot partition with its kernel image and configuration, and a partition with the release as an
//! archive. The same bytes on a USB stick and in a file that firmware starts over HTTP.

use crate::{
    archive::{self, ArchiveError, Files},
    disk::{Reader, read, table},
    esp::Esp,
    gpt::{self, ALIGNMENT, LayoutError, Partition, Table},
    layout::{self, ESP, LINUX, MIB, labels},
    plan::{Plan, Purpose, Refusal, step},
    run,
};
use std::io;

/// What a medium holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Medium {
    /// The installer's unified kernel image, signed or not.
    pub uki: Vec<u8>,
    /// `REDOUBT.CFG`; without it the installer asks.
    pub config: Option<Vec<u8>>,
    /// The release, packed.
    pub release: Vec<u8>,
}

/// A file or device is no medium of the installer.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    /// It cannot be read.
    #[error("it cannot be read: {0}; check the path")]
    Unreadable(#[from] io::Error),
    /// Something else.
    #[error("it is no image of the installer ({0}); take installer.img of a release")]
    Other(&'static str),
    /// Its release.
    #[error(transparent)]
    Release(#[from] ArchiveError),
}

impl MediumError {
    /// A short fixed name, for scripts and tests.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "installer-unreadable",
            Self::Other(_) => "installer-not-an-image",
            Self::Release(_) => "release-unreadable",
        }
    }
}

impl Medium {
    /// Partitions for this content: boot, release.
    fn partitions(&self) -> Vec<Partition> {
        let mib = |bytes: usize| (bytes as u64).div_ceil(MIB).max(1) * MIB;
        // FAT32 begins at 34 MiB; beside the image there are tables and the configuration.
        let boot = mib(self.uki.len() + self.uki.len() / 32 + (3 << 20)).max(34 * MIB);
        let partition = |name: &str, kind, start, size| Partition {
            kind,
            id: layout::identifier(&format!("installer {name}")),
            name: name.to_owned(),
            start,
            size,
        };
        vec![
            partition(labels::ESP, ESP, ALIGNMENT, boot),
            partition(labels::RELEASE, LINUX, ALIGNMENT + boot, mib(self.release.len())),
        ]
    }

    /// Bytes that the medium must have.
    #[must_use]
    pub fn smallest(&self) -> u64 {
        self.partitions().last().map_or(0, |last| last.start + last.size) + ALIGNMENT
    }

    /// The plan that makes a medium of this size: the first copy of the table comes last.
    pub fn plan(&self, size: u64) -> Result<Plan<'_>, Refusal> {
        let table = Table { disk: layout::identifier("installer disk"), partitions: self.partitions() };
        let (start, end) = layout::encode(&table, size)?;
        let (boot, release) = match &table.partitions[..] {
            [boot, release] => (boot, release),
            _ => return Err(LayoutError::new("installer").into()),
        };
        let esp = Esp { config: self.config.clone(), ..Esp::with(self.uki.clone()) };
        let image = esp.to_bytes(boot.size as usize)?;
        let ranges = esp.steps(image.len(), esp.current)?.into_iter().flatten();
        let boot_writes =
            ranges.map(|(at, length)| (boot.start + at as u64, image[at..at + length].to_vec()));
        let end_at = size - end.len() as u64;
        let zeros = [(0, vec![0; start.len()]), (end_at, vec![0; end.len()])];
        let steps = vec![
            step("old partition table", zeros),
            step("release", [(release.start, self.release.clone())]),
            step("boot partition", boot_writes),
            step("partition table, second copy", [(end_at, end)]),
            step("partition table", [(0, start)]),
        ];
        Ok(Plan { purpose: Purpose::New, table, steps })
    }

    /// Reads a medium.
    pub fn read(medium: &mut dyn run::Medium) -> Result<Self, MediumError> {
        if medium.size() < gpt::START + gpt::END {
            return Err(MediumError::Other("it is too short"));
        }
        let (_, table) = table(medium)?;
        let table = table.ok_or(MediumError::Other("it has no partition table"))?;
        let find = |label| table.find(label).ok_or(MediumError::Other("it lacks a partition"));
        let (boot, release) = (find(labels::ESP)?, find(labels::RELEASE)?);
        let esp = Esp::read(boot.size as usize, &mut |at, length| {
            read(medium, boot.start + at as u64, length as u64)
        })?;
        let mut esp = esp.ok_or(MediumError::Other("it has another boot partition"))?;
        let uki = esp.images[esp.current].take().unwrap_or_default();
        let reader = Reader { medium, at: release.start, end: release.start + release.size };
        let release = archive::pack(&archive::unpack(reader)?)?;
        Ok(Self { uki, config: esp.config, release })
    }

    /// The files of its release.
    pub fn files(&self) -> Result<Files, ArchiveError> {
        archive::unpack(self.release.as_slice())
    }
}
