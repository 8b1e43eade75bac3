//! Making the first root, and the one that follows.

use super::{
    documents::{open, unsigned, write},
    keys::public_keys,
    times::{self, Time},
};
use crate::output::{Failure, Reply};
use clap::{Args, ValueEnum};
use release::{KeyId, PublicKey, Role, RootContent, key_id, root_file};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Make the first root, unsigned: its own keys sign it next
#[derive(Debug, Args)]
pub(crate) struct CreateRoot {
    /// Public keys of the holders, PEM
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    keys: Vec<PathBuf>,
    /// How many of them must sign
    #[arg(long, value_name = "N")]
    threshold: u64,
    /// Public keys that sign blessings [default: the same keys and threshold]
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "blessing_threshold")]
    blessing_keys: Vec<PathBuf>,
    /// How many of those must sign
    #[arg(long, value_name = "N", requires = "blessing_keys")]
    blessing_threshold: Option<u64>,
    /// When nothing new is believed under this root any more: a date, or a time with zone
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    expires: Time,
    /// File that receives the root
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleArg {
    Root,
    Release,
    Blessing,
}

/// Make the root that follows, unsigned: the threshold of the old and of the new root sign it next
#[derive(Debug, Args)]
pub(crate) struct RotateRoot {
    /// The present root
    #[arg(value_name = "ROOT")]
    root: PathBuf,
    /// Public keys to add
    #[arg(long, value_name = "FILE", num_args = 1..)]
    add: Vec<PathBuf>,
    /// Ids of keys to take out
    #[arg(long, value_name = "KEYID", num_args = 1..)]
    remove: Vec<KeyId>,
    /// Roles that this is about
    #[arg(long, value_enum, num_args = 1.., default_values = ["root", "release", "blessing"])]
    role: Vec<RoleArg>,
    /// New threshold of these roles [default: as before]
    #[arg(long, value_name = "N")]
    threshold: Option<u64>,
    /// When the new root expires: a date, or a time with zone
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    expires: Time,
    /// File that receives the new root [default: N.root.json beside ROOT, N its version: by this name nodes fetch it beside a
    /// release's manifest]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn create(args: &CreateRoot) -> Result<Reply, Failure> {
    let mut root = RootContent::of_keys(1, args.expires.0, args.threshold, public_keys(&args.keys)?);
    if let Some(threshold) = args.blessing_threshold {
        let keys = public_keys(&args.blessing_keys)?;
        root.roles.blessing = Role::new(threshold, keys.iter().map(key_id));
        root.keys.extend(keys.into_iter().map(|key| (key_id(&key), PublicKey(key))));
    }
    finish(root, &args.out, "by its own threshold of keys")
}

pub(crate) fn rotate(args: &RotateRoot) -> Result<Reply, Failure> {
    let mut root = open::<RootContent>(&args.root)?.content().clone();
    root.version += 1;
    root.expires = args.expires.0;
    let added = public_keys(&args.add)?;
    for (name, role) in [
        (RoleArg::Root, &mut root.roles.root),
        (RoleArg::Release, &mut root.roles.release),
        (RoleArg::Blessing, &mut root.roles.blessing),
    ] {
        if !args.role.contains(&name) {
            continue;
        }
        role.keyids.extend(added.iter().map(key_id));
        role.keyids.retain(|keyid| !args.remove.contains(keyid));
        role.threshold = args.threshold.unwrap_or(role.threshold);
    }
    if let Some(unknown) = args.remove.iter().find(|keyid| !root.keys.contains_key(keyid)) {
        return Err(Failure::new("no-such-key", format!("the root has no key {unknown}; check the id")));
    }
    root.keys.extend(added.into_iter().map(|key| (key_id(&key), PublicKey(key))));
    let used: Vec<KeyId> =
        root.roles.all().iter().flat_map(|(_, role)| role.keyids.iter().copied()).collect();
    root.keys.retain(|keyid, _| used.contains(keyid));
    let out = args.out.clone().unwrap_or_else(|| args.root.with_file_name(root_file(root.version)));
    finish(root, &out, "by the threshold of the old root and of the new one")
}

fn finish(root: RootContent, out: &Path, who: &str) -> Result<Reply, Failure> {
    let (version, expires) = (root.version, times::show(root.expires));
    let keys: Vec<KeyId> = root.keys.keys().copied().collect();
    let document = unsigned(root)?;
    write(out, &document.to_bytes())?;
    let text =
        format!("root of version {version}, until {expires}, in {}; now have it signed {who}", out.display());
    let json = json!({ "file": out, "version": version, "expires": expires, "keys": keys, "digest": document.digest() });
    Ok(Reply::good(text, json))
}
