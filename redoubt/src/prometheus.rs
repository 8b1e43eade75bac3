//! `redoubt operator prometheus`: what Prometheus needs to scrape a node.

use crate::operator::Remote;
use crate::output::{Failure, Reply};
use clap::Args;
use host_os::operator::identity::NAME;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(
    after_help = "Prometheus reads the private key where it lies; its certificate and the node's are written beside the \
                  configuration. Give Prometheus a key of its own, which can be revoked alone."
)]
pub(crate) struct Prometheus {
    #[command(flatten)]
    remote: Remote,
    /// Directory for the certificates and prometheus.yml
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(args: &Prometheus) -> Result<Reply, Failure> {
    let access = args.remote.access()?;
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| Failure::new("not-written", format!("cannot write {path}: {error}"))
    };
    std::fs::create_dir_all(&args.out).map_err(failed(&args.out))?;
    let out = std::path::absolute(&args.out).map_err(failed(&args.out))?;
    let key = std::path::absolute(access.key).map_err(failed(access.key))?;
    let (ours, theirs) = (out.join("operator.crt"), out.join("node.crt"));
    let config = out.join("prometheus.yml");
    let texts = [
        (&ours, access.certificate),
        (&theirs, access.node_certificate),
        (&config, configuration(access.node, &theirs, &ours, &key)?),
    ];
    for (path, text) in texts {
        std::fs::write(path, text).map_err(failed(path))?;
    }
    let text = format!("{}: prometheus --config.file {}", config.display(), config.display());
    Ok(Reply::good(text, json!({ "config": config, "node_certificate": theirs, "certificate": ours })))
}

/// prometheus.yml, in JSON, which is YAML too, and in which no path can break out of its quotes.
fn configuration(node: &str, theirs: &Path, ours: &Path, key: &Path) -> Result<String, Failure> {
    let config = json!({ "scrape_configs": [{
        "job_name": "redoubt",
        "scheme": "https",
        "metrics_path": "/v1/metrics",
        // No authority: the node's own certificate is the only one that is taken.
        "tls_config": { "ca_file": theirs, "cert_file": ours, "key_file": key, "server_name": NAME },
        "static_configs": [{ "targets": [node] }],
    }] });
    serde_json::to_string_pretty(&config).map_err(|error| Failure::of("not-written", &error))
}
