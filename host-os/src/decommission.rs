//! The end of a node: its keys are erased, the erasure is read back, and what was erased is stated under the node's own key,
//! which goes last.
//!
//! Each step may be done again, so a power cut costs nothing: while the order lies in the node's directory, the agent starts
//! no guest and goes on erasing. What lies on a drive's spare blocks nobody can read back; the guest's key is worth nothing
//! without this machine's processor, and the drive should be destroyed all the same.

use crate::node::{NodeDir, Place, write_atomically};
use crate::nvram::device::{self, Nvdimm};
use installer::linux::Device;
use installer::record;
use installer::run::Medium;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use upgrade::machine::Slot;

/// Bytes from the beginning of a guest's medium that hold its keys: the vault's region, and the first blocks of the heap, all
/// of them far shorter.
const HEAD: u64 = 1 << 20;
/// Bytes of an NVDIMM that are erased: it stays in the machine. What lies behind them is encrypted by a key that is gone, and a
/// next node that takes the module erases all that it uses.
const NVDIMM: u64 = 1 << 30;
/// What is written and compared at a time.
const CHUNK: usize = 64 << 10;

/// Behind the erased records of a node that has ended.
const MARK: &[u8; 16] = b"redoubt node end";

/// Whether the node of this configuration partition has ended, and none was installed since.
pub(crate) fn is_marked(records: &Path) -> io::Result<bool> {
    let mut bytes = vec![0; record::AREA + MARK.len()];
    Device::open_read_only(records)?.read(0, &mut bytes)?;
    let (area, mark) = bytes.split_at(record::AREA);
    Ok(mark == MARK && record::read(area, record::Kind::Configuration).is_none())
}

/// What was erased, under the node's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// What is signed, as it is serialised here.
    pub statement: Statement,
    /// The node's ed25519 public key, hexadecimal.
    pub public_key: String,
    /// Signature, hexadecimal.
    pub signature: String,
}

/// What was erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Version of this structure: 1.
    pub version: u32,
    /// The node's name.
    pub node: String,
    /// Who ordered it.
    pub operator: String,
    /// When, in seconds since 1970, by the node's clock.
    pub ordered_unix_s: u64,
    /// Each thing that was erased.
    pub erased: Vec<Erased>,
    /// Whether the node's own key is among them: false only if the power went between the last two steps.
    pub complete: bool,
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erased {
    /// What it was.
    pub what: String,
    /// Bytes that were overwritten; 0 if it was not there.
    pub bytes: u64,
    /// Whether the medium gave back only zeros afterwards, or it was not there.
    pub read_back: bool,
}

/// The order, as it is kept until all is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// Name of the operator.
    pub operator: String,
    /// When, in seconds since 1970.
    pub unix_s: u64,
    /// The statement so far; with `complete` all is done.
    pub statement: Option<Signed>,
}

/// The node could not be erased.
#[derive(Debug, thiserror::Error)]
pub enum DecommissionError {
    /// A file or device fails.
    #[error("cannot {action} {path}: {source}; the drive fails, destroy it")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is still there.
    #[error(
        "{0} was overwritten and gives back something else than zeros; the drive lies or fails, destroy it"
    )]
    NotErased(PathBuf),
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DecommissionError {
    let path = path.to_owned();
    move |source| DecommissionError::Io { action, path, source }
}

/// Signs with the node's own key; gives the public key and the signature.
pub type Signer = Box<dyn Fn(&[u8]) -> (String, String) + Send>;

/// The node that is to end.
pub struct Node<'a> {
    /// Its directory.
    pub dir: &'a NodeDir,
    /// Its name.
    pub name: String,
    /// Where its identity and configuration lie, if it was installed.
    pub records: Option<PathBuf>,
    /// Its own key, unless it is erased already.
    pub signer: Option<Signer>,
    /// The NVDIMM with its state.
    pub nvdimm: Option<Nvdimm>,
}

/// One thing to erase.
struct Target {
    what: &'static str,
    path: PathBuf,
    /// Bytes from the beginning.
    bytes: u64,
    /// How it is erased.
    kind: Kind,
}

/// How something is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A file: overwritten, and then removed.
    File,
    /// A device.
    Device,
    /// A device that can only be mapped.
    Mapped,
}

impl Node<'_> {
    /// Everything but the node's own key: the guest's keys first.
    fn secrets(&self) -> Vec<Target> {
        let file = |what, path, bytes| Target { what, path, bytes, kind: Kind::File };
        let mut targets = vec![
            file("the guest's vault (disk of slot A)", self.dir.disk_path(Slot::A), HEAD),
            file("the guest's vault (disk of slot B)", self.dir.disk_path(Slot::B), HEAD),
            file("the recovery guest's vault", self.dir.disk_path(Place::Recovery), HEAD),
            file("the next recovery guest's vault", self.dir.disk_path(Place::NextRecovery), HEAD),
            file("the guest's NVRAM", self.dir.nvram_path(), HEAD),
        ];
        targets.extend(self.nvdimm.iter().map(|nvdimm| Target {
            what: "the guest's NVRAM (NVDIMM)",
            path: nvdimm.device.clone(),
            bytes: NVDIMM.min(nvdimm.bytes),
            kind: Kind::Mapped,
        }));
        let chip = fs::read_dir(self.dir.chip()).into_iter().flatten().flatten();
        targets.extend(chip.map(|entry| file("the simulated processor's keys", entry.path(), u64::MAX)));
        for (what, name) in
            [("a sealed key of the host", "sealed"), ("the list of operators", "operators.json")]
        {
            targets.push(file(what, self.dir.path().join(name), u64::MAX));
        }
        targets
    }

    /// The node's own keys.
    fn own(&self) -> Vec<Target> {
        let mut targets = vec![Target {
            what: "the host's TLS key",
            path: self.dir.host_key(),
            bytes: u64::MAX,
            kind: Kind::File,
        }];
        if let Some(path) = &self.records {
            let bytes = record::AREA as u64;
            targets.push(Target {
                what: "the node's key and configuration",
                path: path.clone(),
                bytes,
                kind: Kind::Device,
            });
        }
        targets
    }

    /// Erases, or goes on erasing. The order lies in the directory from the first moment on; the answer is there when this
    /// returns, and is the same if it is called again.
    pub fn end(&self, operator: &str, now_unix_s: u64) -> Result<Ordered, DecommissionError> {
        let path = self.dir.decommissioned();
        let write = |ordered: &Ordered| {
            let bytes = serde_json::to_vec_pretty(ordered).unwrap_or_default();
            write_atomically(&path, &bytes).map_err(io("write", &path))
        };
        let mut ordered = read(self.dir).unwrap_or_else(|| Ordered {
            operator: operator.to_owned(),
            unix_s: now_unix_s,
            statement: None,
        });
        if ordered.is_complete() {
            return Ok(ordered);
        }
        write(&ordered)?;
        let mut erased = Vec::new();
        for target in self.secrets() {
            erased.push(target.erase()?);
        }
        if let Some(signer) = &self.signer {
            ordered.statement = Some(self.sign(signer, &ordered, erased.clone(), false));
            write(&ordered)?;
        }
        if let Some(path) = &self.records {
            // With the records goes what opens the state, and with that the order: without a mark the machine would begin as a
            // new one. It counts once the records are gone.
            let mark =
                |device: &mut Device| device.write(record::AREA as u64, MARK).and_then(|()| device.flush());
            Device::open(path).and_then(|mut device| mark(&mut device)).map_err(io("mark", path))?;
        }
        for target in self.own() {
            erased.push(target.erase()?);
        }
        if let Some(signer) = &self.signer {
            ordered.statement = Some(self.sign(signer, &ordered, erased, true));
            write(&ordered)?;
        }
        Ok(ordered)
    }

    fn sign(&self, signer: &Signer, ordered: &Ordered, erased: Vec<Erased>, complete: bool) -> Signed {
        let statement = Statement {
            version: 1,
            node: self.name.clone(),
            operator: ordered.operator.clone(),
            ordered_unix_s: ordered.unix_s,
            erased,
            complete,
        };
        let (public_key, signature) = signer(&statement.bytes());
        Signed { statement, public_key, signature }
    }
}

impl Ordered {
    fn is_complete(&self) -> bool {
        self.statement.as_ref().is_some_and(|signed| signed.statement.complete)
    }
}

/// The order that lies in a node's directory.
pub fn read(dir: &NodeDir) -> Option<Ordered> {
    serde_json::from_slice(&fs::read(dir.decommissioned()).ok()?).ok()
}

impl Statement {
    fn bytes(&self) -> Vec<u8> {
        const SIGNED_AS: &[u8] = b"redoubt decommission\0";
        // Only strings and numbers are in it, so this does not fail.
        [SIGNED_AS, &serde_json::to_vec(self).unwrap_or_default()].concat()
    }
}

impl Signed {
    /// Whether the signature is the key's, and each thing was read back.
    pub fn holds(&self) -> bool {
        let decoded = (hex::decode(&self.public_key), hex::decode(&self.signature));
        let (Ok(key), Ok(signature)) = decoded else { return false };
        let verified = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key)
            .verify(&self.statement.bytes(), &signature);
        verified.is_ok()
            && self.statement.complete
            && self.statement.erased.iter().all(|erased| erased.read_back)
    }
}

impl Target {
    fn erase(&self) -> Result<Erased, DecommissionError> {
        let what = self.what.to_owned();
        if self.kind == Kind::Mapped {
            let erased = device::erase(&self.path, self.bytes).map_err(io("overwrite", &self.path))?;
            let not = || DecommissionError::NotErased(self.path.clone());
            return erased.then_some(Erased { what, bytes: self.bytes, read_back: true }).ok_or_else(not);
        }
        let mut device = match Device::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Erased { what, bytes: 0, read_back: true });
            }
            opened => opened.map_err(io("open", &self.path))?,
        };
        let bytes = self.bytes.min(device.size());
        let zeros = vec![0; CHUNK];
        let ranges = || (0..bytes).step_by(CHUNK).map(|at| (at, CHUNK.min((bytes - at) as usize)));
        for (at, length) in ranges() {
            device.write(at, &zeros[..length]).map_err(io("overwrite", &self.path))?;
        }
        // This also drops what is in memory, so that the medium is read.
        device.flush().map_err(io("flush", &self.path))?;
        for (at, length) in ranges() {
            let mut found = vec![1; length];
            device.read(at, &mut found).map_err(io("read back", &self.path))?;
            if found != zeros[..length] {
                return Err(DecommissionError::NotErased(self.path.clone()));
            }
        }
        drop(device);
        if self.kind == Kind::File {
            fs::remove_file(&self.path).map_err(io("remove", &self.path))?;
        }
        Ok(Erased { what, bytes, read_back: true })
    }
}

/// JSON schema of [`Signed`].
pub(crate) fn schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["statement", "public_key", "signature"],
        "properties": {
            "public_key": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
            "signature": { "type": "string", "pattern": "^[0-9a-f]{128}$" },
            "statement": {
                "type": "object", "additionalProperties": false,
                "required": ["version", "node", "operator", "ordered_unix_s", "erased", "complete"],
                "properties": {
                    "version": { "const": 1 },
                    "node": { "type": "string" },
                    "operator": { "type": "string" },
                    "ordered_unix_s": { "type": "integer", "minimum": 0 },
                    "complete": { "type": "boolean" },
                    "erased": { "type": "array", "items": {
                        "type": "object", "additionalProperties": false, "required": ["what", "bytes", "read_back"],
                        "properties": {
                            "what": { "type": "string" },
                            "bytes": { "type": "integer", "minimum": 0 },
                            "read_back": { "type": "boolean" },
                        },
                    } },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    fn signer() -> Signer {
        let key = Ed25519KeyPair::from_seed_unchecked(&[5; 32]).unwrap();
        Box::new(move |bytes| (hex::encode(key.public_key().as_ref()), hex::encode(key.sign(bytes).as_ref())))
    }

    /// A node with something everywhere.
    fn node() -> (tempfile::TempDir, NodeDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeDir::at(dir.path());
        fs::write(node.disk_path(Slot::A), vec![7; 3 << 20]).unwrap();
        fs::write(node.disk_path(Slot::B), vec![7; 2 << 20]).unwrap();
        fs::write(node.disk_path(Place::Recovery), vec![7; 1 << 20]).unwrap();
        fs::write(node.disk_path(Place::NextRecovery), vec![7; 1 << 20]).unwrap();
        fs::write(node.nvram_path(), vec![8; 1000]).unwrap();
        fs::create_dir(node.chip()).unwrap();
        fs::write(node.chip().join("key"), "secret").unwrap();
        fs::write(node.host_key(), "secret").unwrap();
        fs::write(node.operators(), "{}").unwrap();
        let records = dir.path().join("records");
        fs::write(&records, vec![9; record::AREA + 4096]).unwrap();
        (dir, node, records)
    }

    fn ending<'a>(dir: &'a NodeDir, records: &Path, signer: Option<Signer>) -> Node<'a> {
        Node { dir, name: "n".into(), records: Some(records.to_owned()), signer, nvdimm: None }
    }

    fn is_erased(dir: &NodeDir, records: &Path) {
        for gone in [
            dir.disk_path(Slot::A),
            dir.disk_path(Slot::B),
            dir.disk_path(Place::Recovery),
            dir.disk_path(Place::NextRecovery),
            dir.nvram_path(),
            dir.chip().join("key"),
            dir.host_key(),
            dir.operators(),
        ] {
            assert!(!gone.exists(), "{}", gone.display());
        }
        assert!(fs::read(records).unwrap()[..record::AREA].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn everything_is_erased_read_back_and_stated() {
        let (_keep, dir, records) = node();
        assert!(!is_marked(&records).unwrap());
        let ordered = ending(&dir, &records, Some(signer())).end("alice", 7).unwrap();
        is_erased(&dir, &records);
        assert!(is_marked(&records).unwrap());
        let signed = ordered.statement.clone().unwrap();
        assert!(signed.holds());
        assert_eq!((signed.statement.operator.as_str(), signed.statement.ordered_unix_s), ("alice", 7));
        let of = |what: &str| {
            signed.statement.erased.iter().find(|erased| erased.what.contains(what)).unwrap().bytes
        };
        assert_eq!((of("vault"), of("NVRAM"), of("configuration")), (HEAD, 1000, record::AREA as u64));
        let validator = jsonschema::validator_for(&schema()).unwrap();
        assert!(validator.is_valid(&json!(signed)));

        let mut changed = signed.clone();
        changed.statement.erased[0].bytes = 1;
        assert!(!changed.holds());
        // A second order gets the first one's answer, though no key is left to sign with.
        assert_eq!(ending(&dir, &records, None).end("bob", 8).unwrap(), ordered);
    }

    #[test]
    fn an_nvdimm_is_erased_as_far_as_the_statement_says() {
        let (_keep, dir, records) = node();
        let device = dir.path().join("dax0.0");
        fs::write(&device, vec![7; 3 << 20]).unwrap();
        let nvdimm = Nvdimm { device: device.clone(), bytes: 2 << 20, ..Nvdimm::default() };
        let node = Node { nvdimm: Some(nvdimm), ..ending(&dir, &records, Some(signer())) };
        let signed = node.end("alice", 7).unwrap().statement.unwrap();
        assert!(signed.holds());
        let erased = signed.statement.erased.iter().find(|erased| erased.what.contains("NVDIMM")).unwrap();
        assert_eq!((erased.bytes, erased.read_back), (2 << 20, true));
        let content = fs::read(&device).unwrap();
        assert!(content[..2 << 20].iter().all(|byte| *byte == 0) && content[2 << 20] == 7);
    }

    #[test]
    fn a_power_cut_after_any_step_is_gone_over() {
        // The steps that leave something on the medium: the order, and each target.
        for cut in 0..8 {
            let (_keep, dir, records) = node();
            let node = ending(&dir, &records, Some(signer()));
            let ordered = Ordered { operator: "alice".into(), unix_s: 7, statement: None };
            write_atomically(&dir.decommissioned(), &serde_json::to_vec(&ordered).unwrap()).unwrap();
            let targets = || node.secrets().into_iter().chain(node.own());
            for target in targets().take(cut) {
                target.erase().unwrap();
            }
            let ordered = ending(&dir, &records, Some(signer())).end("mallory", 9).unwrap();
            is_erased(&dir, &records);
            let signed = ordered.statement.unwrap();
            assert!(signed.holds());
            assert_eq!((signed.statement.operator.as_str(), signed.statement.ordered_unix_s), ("alice", 7));
        }
    }

    #[test]
    fn without_the_nodes_key_the_earlier_statement_stays() {
        let (_keep, dir, records) = node();
        let node = ending(&dir, &records, Some(signer()));
        let statement = node.sign(
            node.signer.as_ref().unwrap(),
            &Ordered { operator: "alice".into(), unix_s: 7, statement: None },
            Vec::new(),
            false,
        );
        let ordered = Ordered { operator: "alice".into(), unix_s: 7, statement: Some(statement) };
        write_atomically(&dir.decommissioned(), &serde_json::to_vec(&ordered).unwrap()).unwrap();
        assert_eq!(ending(&dir, &records, None).end("alice", 9).unwrap(), ordered);
        is_erased(&dir, &records);
        assert!(!ordered.statement.unwrap().holds(), "it does not say that the node's key is erased");
    }
}
