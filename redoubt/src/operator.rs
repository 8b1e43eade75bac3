//! `redoubt operator`, and the way of other commands to a node elsewhere.

use crate::node::{NodeDirArg, block_on};
use crate::output::{Failure, Reply};
use clap::{Args, Subcommand};
use host_os::operator::client::{self, OperateError};
use host_os::operator::identity::{Identity, IdentityError};
use host_os::operator::keys::{Operator as Entry, Operators, OperatorsError};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum Operator {
    /// Make an operator's key, or show the public key of one
    Key(Key),
    /// Let a key operate the node of this machine; a node that runs takes note if it had operators before
    Allow(Allow),
    /// Refuse a key from now on
    Revoke(Revoke),
    /// Show who may operate the node of this machine
    List(List),
}

#[derive(Debug, Args)]
pub(crate) struct Key {
    /// File of the private key; made if it does not exist
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Allow {
    #[command(flatten)]
    node: NodeDirArg,
    /// SHA-256 of the public key, as `redoubt operator key` shows it
    #[arg(value_parser = hash, value_name = "SHA256")]
    key: [u8; 32],
    /// Whose key it is
    #[arg(long)]
    name: String,
    /// The key ends at this time, in seconds since 1970
    #[arg(long, value_name = "SECONDS")]
    not_after: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    node: NodeDirArg,
    /// SHA-256 of the public key
    #[arg(value_parser = hash, value_name = "SHA256")]
    key: [u8; 32],
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    node: NodeDirArg,
}

/// A node elsewhere and the key to it.
#[derive(Debug, Args)]
pub(crate) struct Remote {
    /// Address and port of the operators' interface of a node elsewhere
    #[arg(long, value_name = "HOST:PORT", requires = "node_key", conflicts_with = "node_dir")]
    node: Option<String>,
    /// SHA-256 of that node's host key, as its console, status page and `redoubt status` show it
    #[arg(long, value_name = "SHA256", value_parser = hash, requires = "node")]
    node_key: Option<[u8; 32]>,
    /// File of the operator's private key
    #[arg(long, value_name = "FILE", requires = "node")]
    key: Option<PathBuf>,
}

pub(crate) fn hash(text: &str) -> Result<[u8; 32], String> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).map_err(|error| format!("not 64 hexadecimal digits: {error}"))?;
    Ok(hash)
}

impl From<OperateError> for Failure {
    fn from(error: OperateError) -> Self {
        Self::of(error.code(), &error)
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Self::usage("operator-key-unusable", host_os::attest::chain(&error))
    }
}

impl Remote {
    /// What the node elsewhere answers to a request for this path; `None` if no node elsewhere was named.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Vec<u8>>, Failure> {
        let (Some(node), Some(node_key)) = (&self.node, self.node_key) else { return Ok(None) };
        let identity = self.key.as_deref().map(Identity::read).transpose()?;
        let answer = async { Ok(client::get(node, node_key, identity.as_ref(), path).await?.to_vec()) };
        block_on(answer).map(Some)
    }
}

pub(crate) fn run(command: Operator) -> Result<Reply, Failure> {
    match command {
        Operator::Key(Key { file }) => {
            let identity = Identity::read_or_create(&file)?;
            let key = hex::encode(identity.key_sha256);
            let json = json!({ "file": file, "key_sha256": key });
            Ok(Reply::good(format!("{key}  {}", file.display()), json))
        }
        Operator::Allow(Allow { node, key, name, not_after }) => {
            let path = node.node()?.operators();
            let mut list = read(&path)?;
            list.operators.retain(|operator| operator.key_sha256 != key);
            list.operators.push(Entry { name, key_sha256: key, not_after_unix_s: not_after, revoked: false });
            write(&path, &list)
        }
        Operator::Revoke(Revoke { node, key }) => {
            let path = node.node()?.operators();
            let mut list = read(&path)?;
            let found = list.operators.iter_mut().find(|operator| operator.key_sha256 == key);
            let operator = found.ok_or_else(|| {
                Failure::new("operator-key-unknown", format!("{} lists no such key", path.display()))
            })?;
            operator.revoked = true;
            write(&path, &list)
        }
        Operator::List(List { node }) => Ok(reply(&read(&node.node()?.operators())?)),
    }
}

fn read(path: &Path) -> Result<Operators, Failure> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Operators { version: 1, operators: Vec::new() });
        }
        read => read.map_err(|error| {
            Failure::new("operators-unusable", format!("cannot read {}: {error}", path.display()))
        })?,
    };
    Operators::from_json(&bytes).map_err(|error: OperatorsError| {
        Failure::new("operators-unusable", format!("{}: {}", path.display(), host_os::attest::chain(&error)))
    })
}

fn write(path: &Path, list: &Operators) -> Result<Reply, Failure> {
    let failed = |error: &dyn std::error::Error| {
        Failure::new("operators-unusable", format!("cannot write {}: {error}", path.display()))
    };
    let bytes = serde_json::to_vec_pretty(list).map_err(|error| failed(&error))?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| failed(&error))?;
    }
    host_os::node::write_atomically(path, &bytes).map_err(|error| failed(&error))?;
    Ok(reply(list))
}

fn reply(list: &Operators) -> Reply {
    let line = |operator: &Entry| {
        let end = match (operator.revoked, operator.not_after_unix_s) {
            (true, _) => "  revoked".to_owned(),
            (false, Some(end)) => format!("  until {end}"),
            (false, None) => String::new(),
        };
        format!("{}  {}{end}", hex::encode(operator.key_sha256), operator.name)
    };
    let lines: Vec<String> = list.operators.iter().map(line).collect();
    let text = if lines.is_empty() { "nobody".to_owned() } else { lines.join("\n") };
    Reply::good(text, json!(list))
}
