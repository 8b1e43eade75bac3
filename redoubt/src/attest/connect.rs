//! `redoubt attest connect`: attest a node in the TLS handshake (RA-TLS).

use super::demands::Demands;
use super::fetch::resolve;
use super::source::Roots;
use super::{proof, refused, words};
use crate::node::block_on;
use crate::output::{Failure, Reply};
use attestation::handshake::MAX_AGE;
use clap::Args;
use host_os::attest::connect;
use serde_json::json;

#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// The node, such as https://127.0.0.1:18443
    #[arg(value_name = "URL")]
    url: String,
    #[command(flatten)]
    demands: Demands,
    #[command(flatten)]
    roots: Roots,
    /// Seconds that the evidence in the certificate may be old
    #[arg(long, value_name = "SECONDS", default_value_t = MAX_AGE)]
    max_age: u64,
}

pub(super) fn run(args: &Connect) -> Result<Reply, Failure> {
    let demanded = args.demands.load(&args.roots)?;
    let address = resolve(&args.url)?;
    let verified = block_on(async {
        let connected = connect(address, &demanded.expected, args.max_age).await;
        connected.map(|(_, verified)| verified).map_err(refused)
    })?;
    let words = words(demanded.manifest.as_ref(), &verified, None);
    let text = format!(
        "{address}: accepted in the TLS handshake, before anything was sent\n  {}\n  the certificate's evidence binds its key and is at most {} s old by the guest's clock",
        words.join("\n  "),
        args.max_age
    );
    Ok(Reply::good(text, json!({ "accepted": true, "proof": proof(&verified) })))
}
