//! `redoubt support`: a bundle for whoever helps.

use crate::node::{NodeDirArg, ask, block_on};
use crate::operator::Remote;
use crate::output::{Failure, Reply};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Support {
    #[command(flatten)]
    node: NodeDirArg,
    #[command(flatten)]
    remote: Remote,
    /// Where to write the bundle, a tar file
    #[arg(long, short, value_name = "FILE", default_value = "redoubt-support.tar")]
    out: PathBuf,
}

pub(crate) fn run(args: &Support) -> Result<Reply, Failure> {
    let bundle = match args.remote.get("/v1/support")? {
        Some(bundle) => bundle,
        None => {
            let node = args.node.node()?;
            let record = node.agent().ok_or_else(|| {
                let message = format!("no node runs in {}; its logs are there", node.path().display());
                Failure::new("no-node", message)
            })?;
            let status = block_on(ask(&record))?;
            let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
            host_os::operator::bundle::pack(&status, &[], &node, now)
                .map_err(|error| Failure::of("no-bundle", &error))?
        }
    };
    std::fs::write(&args.out, &bundle).map_err(|error| {
        Failure::new("no-bundle", format!("cannot write {}: {error}", args.out.display()))
    })?;
    let text = format!("{} ({} bytes)", args.out.display(), bundle.len());
    Ok(Reply::good(text, json!({ "file": args.out, "bytes": bundle.len() })))
}
