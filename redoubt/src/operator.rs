//! `redoubt operator`, and the way of other commands to a node elsewhere.

use crate::node::{NodeDirArg, block_on};
use crate::output::{Failure, Reply};
use clap::{Args, Subcommand};
use host_os::decommission::Signed;
use host_os::operator::client::{self, OperateError};
use host_os::operator::identity::{Identity, IdentityError};
use host_os::operator::keys::{Operator as Entry, Operators, OperatorsError, ShownKey};
use host_os::operator::orders::{Action, parse_console_text, signed_bytes};
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
    /// Sign what a node's screen asks for, for somebody who stands before it
    Sign(Sign),
    /// Write what Prometheus needs to scrape a node elsewhere
    Prometheus(crate::prometheus::Prometheus),
}

#[derive(Debug, Args)]
#[command(after_help = "The answer is typed or pasted at the node's console, or brought there as a file.")]
pub(crate) struct Sign {
    /// File of the operator's private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The text on the screen, which is also in its QR code: REDOUBT1:ACTION:NODE:NUMBER
    text: String,
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
    #[arg(long, value_name = "HOST:PORT", requires = "node_key", group = "whose")]
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

impl Remote {
    /// What the node elsewhere answers to these bytes of JSON; `None` if no node elsewhere was named.
    pub(crate) fn post(&self, path: &str, body: Vec<u8>) -> Result<Option<Vec<u8>>, Failure> {
        let (Some(node), Some(node_key)) = (&self.node, self.node_key) else { return Ok(None) };
        let identity = self.key.as_deref().map(Identity::read).transpose()?;
        let answer =
            async { Ok(client::post(node, node_key, identity.as_ref(), path, body).await?.to_vec()) };
        block_on(answer).map(Some)
    }
}

/// What another program needs to ask a node elsewhere. Certificates are in PEM.
pub(crate) struct Access<'a> {
    pub(crate) node: &'a str,
    pub(crate) key: &'a Path,
    pub(crate) certificate: String,
    pub(crate) node_certificate: String,
}

impl Remote {
    /// Fetches the node's certificate, by its key, and makes the operator's.
    pub(crate) fn access(&self) -> Result<Access<'_>, Failure> {
        let (Some(node), Some(node_key), Some(key)) = (&self.node, self.node_key, &self.key) else {
            return Err(Failure::usage("no-node", "give the node with --node, --node-key and --key"));
        };
        let certificate = Identity::read(key)?.certificate_pem();
        let node_certificate = block_on(async { Ok(client::certificate(node, node_key).await?) })?;
        Ok(Access { node, key, certificate, node_certificate })
    }

    /// Has the node elsewhere do something; `agreed` hears the node's name before.
    pub(crate) fn order(
        &self,
        action: Action,
        agreed: impl FnOnce(&str) -> Result<(), Failure>,
    ) -> Result<Option<Signed>, Failure> {
        let (Some(node), Some(node_key)) = (&self.node, self.node_key) else {
            let message = "give the node with --node and --node-key; a node on this machine is stopped by `redoubt down`";
            return Err(Failure::usage("no-node", message));
        };
        let identity = self.key.as_deref().map(Identity::read).transpose()?;
        block_on(client::order(node, node_key, identity.as_ref(), action, agreed))
    }

    /// Whether a statement holds and its key is the node's: the one that is its name, or the one that it showed.
    pub(crate) fn is_signer(&self, signed: &Signed) -> bool {
        let key: Option<[u8; 32]> =
            hex::decode(&signed.public_key).ok().and_then(|bytes| bytes.try_into().ok());
        let shown = key.map(|key| ShownKey::ed25519(&key).key_sha256);
        let named = signed.public_key == signed.statement.node;
        signed.holds() && (named || (shown.is_some() && shown == self.node_key))
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
        Operator::Sign(Sign { key, text }) => {
            let text = text.trim().to_uppercase();
            let (action, node) = parse_console_text(&text).ok_or_else(|| {
                Failure::usage(
                    "not-a-challenge",
                    "that is not what a node's screen shows: REDOUBT1:ACTION:NODE:NUMBER",
                )
            })?;
            let signer = Identity::read(&key)?.into_signer();
            let sign =
                signer.ok_or_else(|| Failure::usage("operator-key-unusable", "the key cannot sign"))?;
            let (public_key, signature) = sign(&signed_bytes(&text));
            let answer = format!("{public_key}{signature}");
            // What is signed is told apart from the answer, which may be read by a program.
            eprintln!("This lets the node {node}... {action}.");
            Ok(Reply::good(&answer, json!({ "action": action, "node": node, "answer": answer })))
        }
        Operator::Prometheus(args) => crate::prometheus::run(&args),
        Operator::List(List { node }) => Ok(reply(&read(&node.node()?.operators())?)),
    }
}

fn read(path: &Path) -> Result<Operators, Failure> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Operators { version: 1, ..Operators::default() });
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
