//! A host that lies to its guests. Its program (`src/bin/lying-host.rs`) takes QEMU's place: it starts QEMU behind two ports
//! of its own, and says to a guest that is to receive a key, and to the one that is to give it, what a [`Lie`] says.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What the host does to the next hand-over.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "lie")]
pub enum Lie {
    /// Nothing.
    None,
    /// It launches the new guest on another chip, with more allowed, or as something else.
    Launch {
        /// Where the chip is kept.
        chip: PathBuf,
        /// Bits that are turned in its policy.
        policy: u64,
        /// Whether it is measured as something else.
        another: bool,
    },
    /// It gives the new guest other documents.
    Documents(Map<String, Value>),
    /// It offers the new guest a key of its own in the old one's name.
    Key,
    /// It turns a bit in the new guest's report.
    Report,
    /// It keeps the new guest's request, and gives it to the old guest in the next hand-over.
    Replay,
}

/// The folder of a lying host: its program, its lie, and what it remembers.
pub struct Liar(tempfile::TempDir);

impl Liar {
    /// A host that does not lie yet. `program` is that of `lying-host`.
    pub fn new(program: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // By this name a test finds the process of QEMU, which it becomes.
        fs::copy(program, folder.path().join("qemu-system-x86_64")).context(program.to_owned())?;
        let liar = Self(folder);
        liar.says(&Lie::None)?;
        Ok(liar)
    }

    /// What `redoubt up` needs to start it in QEMU's place.
    pub fn arguments(&self) -> Result<[String; 4]> {
        let program = self.0.path().join("qemu-system-x86_64");
        let program = program.to_str().context("a path that is no text")?.to_owned();
        Ok(["--qemu".into(), program, "--confinement".into(), "off".into()])
    }

    /// From now on it says this.
    pub fn says(&self, lie: &Lie) -> Result<()> {
        Ok(fs::write(self.0.path().join(FILE), serde_json::to_vec(lie)?)?)
    }
}

/// Name of the file with the lie, beside the program.
const FILE: &str = "lie.json";

/// The lie that lies beside the program in `folder`.
pub fn told(folder: &Path) -> Result<Lie> {
    Ok(serde_json::from_slice(&fs::read(folder.join(FILE))?)?)
}
