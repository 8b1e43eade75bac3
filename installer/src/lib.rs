//! What goes where on a host's disk, and in which order it is written.
//!
//! The core does no I/O of its own: it makes a [`plan::Plan`] out of a release, a disk as it was found, and a
//! configuration; [`run::run`] carries a plan out on anything that reads, writes and flushes.
//!
//! | module | holds |
//! |---|---|
//! | [`layout`] | the one rule for partitions, of built images and of installed disks |
//! | [`gpt`], [`fat`], [`esp`] | partition table, file system of the boot partition, its two kernel images |
//! | [`pe`], [`verity`] | unified kernel images, hash trees of roots |
//! | [`archive`], [`parts`] | a release as one file, and as the parts that are written |
//! | [`record`] | small documents on the configuration partition |
//! | [`config`] | unattended installation, and the signed configuration of a node |
//! | [`network`] | how a node is connected: part of both |
//! | [`disk`] | what is on a disk |
//! | [`plan`], [`run`] | what to write, and writing it |
//! | [`beside`] | the same for a release beside the one that runs |
//! | [`medium`] | the installer's own medium |
//! | [`uefi`] | boot entries and Secure Boot keys as the firmware stores them |
//! | [`linux`] | block devices |
//! | `program` | the installer's PID 1 (feature `program`) |

pub mod archive;
pub mod beside;
pub mod config;
pub mod disk;
pub mod esp;
pub mod fat;
pub mod gpt;
pub mod layout;
pub mod linux;
pub mod medium;
pub mod network;
pub mod parts;
pub mod pe;
pub mod plan;
#[cfg(feature = "program")]
pub mod program;
pub mod record;
pub mod run;
pub mod uefi;
pub mod verity;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    /// A program that a test compares with. `cargo xtask test` installs them all; alone, a test may lack it.
    pub(crate) fn program(name: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .map(|folder: PathBuf| folder.join(name))
            .find(|file| file.is_file());
        assert!(found.is_some() || std::env::var_os("CI").is_none(), "CI must have {name}");
        if found.is_none() {
            use std::io::Write as _;
            // Not captured, as what is printed would be.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no program {name} to compare with");
        }
        found
    }
}
