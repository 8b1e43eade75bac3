//! Where the guest's NVRAM is: on the machine's NVDIMM, or in a file. Decisions without I/O, and what carries them out.
//!
//! The first start decides, and it stays so: an NVDIMM is known by the identifier that was written on it, and a node that has
//! its state on one does not start without it, with a smaller one or with another. Else it would begin anew, silently.

pub mod device;
#[cfg(test)]
mod kernel_tests;

use crate::node::{NodeDir, NodeDirError, NodeLock};
use device::Nvdimm;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::{fs, io};

/// The smallest NVDIMM that is of use, in bytes.
pub const LEAST: u64 = 64 << 20;

/// Where the NVRAM is, as the node remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Place {
    /// In a file of the node's directory.
    File {
        /// Its size.
        bytes: u64,
    },
    /// On an NVDIMM.
    Nvdimm {
        /// Identifier that was written on it.
        uuid: String,
        /// How much of it is used.
        bytes: u64,
    },
}

/// What QEMU is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvram {
    /// File or device.
    pub path: PathBuf,
    /// Size in bytes: a power of two, because it becomes a PCI BAR.
    pub bytes: u64,
    /// The NVDIMM, if it is one.
    pub nvdimm: Option<Nvdimm>,
    /// In words, for the status.
    pub text: String,
}

/// The node's NVRAM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NvramError {
    /// None is there.
    #[error(
        "the NVDIMM {uuid} with this node's state is missing; put it back or look why the machine does not see it (seating, \
         firmware settings), or install the node anew, which loses what only it held"
    )]
    Missing {
        /// The one that the node began with.
        uuid: String,
    },
    /// Another is there.
    #[error(
        "the NVDIMM {uuid} with this node's state was exchanged for {found}; put it back, or install the node anew, which loses \
         what only it held"
    )]
    Changed {
        /// The one that the node began with.
        uuid: String,
        /// What is there.
        found: String,
    },
    /// It is the same, and not all of it is there.
    #[error(
        "the NVDIMM {uuid} has {found} bytes, but this node's state needs {wanted}; look whether all its modules are seen and \
         interleaved as before"
    )]
    Smaller {
        /// Its identifier.
        uuid: String,
        /// Bytes in use.
        wanted: u64,
        /// Bytes there.
        found: u64,
    },
    /// The kernel or the disk refuses something.
    #[error("cannot {action} {path}: {source}; replace the NVDIMM or the disk that fails")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What the node remembers is no such thing.
    #[error(
        "{path} is damaged: {source}; without it nobody knows where this node's state is: install it anew"
    )]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The file behind the NVRAM.
    #[error(transparent)]
    File(#[from] NodeDirError),
}

impl NvramError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "nvdimm-missing",
            Self::Changed { .. } => "nvdimm-changed",
            Self::Smaller { .. } => "nvdimm-smaller",
            Self::Io { .. } => "nvdimm-unusable",
            Self::Record { .. } => "nvram-record-damaged",
            Self::File(error) => error.code(),
        }
    }
}

/// Decides where the NVRAM is. `remembered` is what the node knows of its earlier starts, `file` the size of an NVRAM file that is
/// there already, `wanted` the size of a new one.
pub fn choose(
    remembered: Option<&Place>,
    found: &[Nvdimm],
    file: Option<u64>,
    wanted: u64,
) -> Result<Place, NvramError> {
    match (remembered, file) {
        (Some(Place::File { bytes }), _) => Ok(Place::File { bytes: *bytes }),
        (Some(Place::Nvdimm { uuid, bytes }), _) => match found.iter().find(|one| one.uuid == *uuid) {
            Some(one) if one.bytes >= *bytes => Ok(Place::Nvdimm { uuid: uuid.clone(), bytes: *bytes }),
            Some(one) => Err(NvramError::Smaller { uuid: uuid.clone(), wanted: *bytes, found: one.bytes }),
            None if found.is_empty() => Err(NvramError::Missing { uuid: uuid.clone() }),
            None => {
                let found: Vec<_> = found.iter().map(|one| one.uuid.as_str()).collect();
                Err(NvramError::Changed { uuid: uuid.clone(), found: found.join(", ") })
            }
        },
        // A node from before NVDIMMs were used.
        (None, Some(bytes)) => Ok(Place::File { bytes }),
        (None, None) => {
            let largest = found.iter().filter(|one| one.bytes >= LEAST).max_by_key(|one| one.bytes);
            Ok(match largest {
                Some(one) => Place::Nvdimm { uuid: one.uuid.clone(), bytes: 1 << one.bytes.ilog2() },
                None => Place::File { bytes: wanted },
            })
        }
    }
}

/// What the node knows of its earlier starts.
fn remembered(node: &NodeDir) -> Result<Option<Place>, NvramError> {
    let path = node.nvram_record();
    match fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice(&text).map(Some).map_err(|source| NvramError::Record { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NvramError::Io { action: "read", path, source }),
    }
}

/// The NVDIMM with the node's state, if it is in the machine: for the node's end.
pub(crate) fn nvdimm(node: &NodeDir) -> Option<Nvdimm> {
    let Ok(Some(Place::Nvdimm { uuid, bytes })) = remembered(node) else { return None };
    let one = device::scan(&device::System::this()).into_iter().find(|one| one.uuid == uuid)?;
    Some(Nvdimm { bytes: one.bytes.min(bytes), ..one })
}

/// Finds the node's NVRAM, or makes it. `machine`: the node has the whole machine, its NVDIMM too.
pub fn provide(node: &NodeDir, lock: &NodeLock, wanted: u64, machine: bool) -> Result<Nvram, NvramError> {
    if !machine {
        return file(
            node,
            lock,
            wanted,
            "a file: it survives the end of QEMU, and a power cut as far as the disk does",
        );
    }
    let found = device::prepare(&device::System::this())?;
    let path = node.nvram_record();
    let remembered = remembered(node)?;
    let size = fs::metadata(node.nvram_path()).ok().map(|file| file.len()).filter(|size| *size > 0);
    let place = choose(remembered.as_ref(), &found, size, wanted)?;
    let nvram = match &place {
        Place::File { bytes } => file(node, lock, *bytes, no_nvdimm(&found))?,
        Place::Nvdimm { uuid, bytes } => {
            let one = found.into_iter().find(|one| one.uuid == *uuid);
            let one = one.ok_or_else(|| NvramError::Missing { uuid: uuid.clone() })?;
            if remembered.is_none() {
                // What another node left is of no use to this one, and would look like damage.
                device::blank(&one.device, *bytes).map_err(|source| NvramError::Io {
                    action: "erase",
                    path: one.device.clone(),
                    source,
                })?;
            }
            let text = format!("NVDIMM {uuid}, {} MiB of {} in use", bytes >> 20, one.bytes >> 20);
            Nvram { path: one.device.clone(), bytes: *bytes, nvdimm: Some(one), text }
        }
    };
    if remembered.is_none() {
        crate::node::write_atomically(&path, &serde_json::to_vec(&place).unwrap_or_default())
            .map_err(|source| NvramError::Io { action: "write", path, source })?;
    }
    Ok(nvram)
}

fn no_nvdimm(found: &[Nvdimm]) -> &'static str {
    match found {
        [] => "a file, because the machine has no NVDIMM that can be used: each message waits for a drive",
        _ => {
            "a file, because this node began without an NVDIMM; install it anew to use the one that is there"
        }
    }
}

fn file(node: &NodeDir, lock: &NodeLock, bytes: u64, text: &str) -> Result<Nvram, NvramError> {
    Ok(Nvram { path: node.nvram(lock, bytes)?, bytes, nvdimm: None, text: text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nvdimm(uuid: &str, bytes: u64) -> Nvdimm {
        Nvdimm { uuid: uuid.into(), bytes, ..Nvdimm::default() }
    }

    fn code(result: Result<Place, NvramError>) -> &'static str {
        result.unwrap_err().code()
    }

    #[test]
    fn a_node_keeps_to_the_nvdimm_that_it_began_with() {
        let (one, other) = (nvdimm("one", (16 << 30) - 4096), nvdimm("other", 1 << 34));
        let begun = choose(None, std::slice::from_ref(&one), None, 1).unwrap();
        assert_eq!(begun, Place::Nvdimm { uuid: "one".into(), bytes: 8 << 30 });
        let both = [other.clone(), one.clone()];
        assert_eq!(choose(Some(&begun), &both, None, 1).unwrap(), begun);
        assert_eq!(
            choose(None, &both, None, 1).unwrap(),
            Place::Nvdimm { uuid: "other".into(), bytes: 16 << 30 }
        );
        assert_eq!(code(choose(Some(&begun), &[], None, 1)), "nvdimm-missing");
        assert_eq!(code(choose(Some(&begun), &[], Some(1 << 20), 1)), "nvdimm-missing");
        assert_eq!(code(choose(Some(&begun), &[other], None, 1)), "nvdimm-changed");
        assert_eq!(code(choose(Some(&begun), &[nvdimm("one", 1 << 30)], None, 1)), "nvdimm-smaller");
    }

    #[test]
    fn without_one_it_is_a_file_and_stays_one() {
        let begun = choose(None, &[nvdimm("tiny", LEAST - 1)], None, 1 << 29).unwrap();
        assert_eq!(begun, Place::File { bytes: 1 << 29 });
        let large = [nvdimm("one", 1 << 34)];
        assert_eq!(choose(Some(&begun), &large, Some(1 << 29), 1 << 20).unwrap(), begun);
        assert_eq!(choose(None, &large, Some(1 << 29), 1 << 20).unwrap(), begun);
    }

    #[test]
    fn a_node_of_somebodys_machine_leaves_its_nvdimms_alone_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeDir::at(dir.path());
        let lock = node.lock().unwrap();
        let nvram = provide(&node, &lock, 1 << 20, false).unwrap();
        assert_eq!((nvram.path, nvram.bytes, nvram.nvdimm), (node.nvram_path(), 1 << 20, None));
        assert_eq!(provide(&node, &lock, 1 << 21, false).unwrap_err().code(), "image-size-changed");
        fs::write(node.nvram_record(), "{}").unwrap();
        assert_eq!(provide(&node, &lock, 1 << 20, true).unwrap_err().code(), "nvram-record-damaged");
    }

    proptest! {
        /// Whatever is found, a node that has its state on an NVDIMM starts on that one and its whole extent, or not at all.
        #[test]
        fn state_is_never_left_behind(
            sizes in proptest::collection::vec((0..4_usize, 0..1_u64 << 40), 0..5), file in proptest::option::of(1..1_u64 << 40),
        ) {
            let names = ["a", "b", "c", "d"];
            let found: Vec<_> = sizes.iter().map(|(name, bytes)| nvdimm(names[*name], *bytes)).collect();
            let begun = Place::Nvdimm { uuid: "a".into(), bytes: 1 << 30 };
            if let Ok(place) = choose(Some(&begun), &found, file, 1) {
                prop_assert_eq!(&place, &begun);
                let one = found.iter().find(|one| one.uuid == "a").unwrap();
                prop_assert!(one.bytes >= 1 << 30);
            }
            if let Ok(Place::Nvdimm { uuid, bytes }) = choose(None, &found, file, 1) {
                prop_assert!(bytes.is_power_of_two() && found.iter().any(|one| one.uuid == uuid && one.bytes >= bytes));
                prop_assert!(file.is_none());
            }
        }
    }
}
