//! `redoubt attest fetch`: evidence with a fresh nonce, as a file.

use crate::node::block_on;
use crate::output::{Failure, Reply};
use attestation::handshake::{MAX_AGE, Presented};
use attestation::{Evidence, EvidenceKind, Refusal, TrustAnchors};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use host_os::attest::{Fetched, anchors, fetch, unix_time};
use release::Profile;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// The node, such as https://127.0.0.1:18443
    #[arg(value_name = "URL")]
    url: String,
    /// Write the record here instead of to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Version of a record.
const VERSION: u32 = 2;

/// Evidence with what it has to be bound to, as a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) version: u32,
    evidence: Evidence,
    /// Hexadecimal.
    nonce: String,
    /// SubjectPublicKeyInfo, base64 of DER.
    tls_key: String,
    /// What the node showed in the TLS handshake, base64 of DER.
    certificate: String,
    pub(super) fetched_unix_s: u64,
}

impl Record {
    pub(super) fn fetched(self) -> Result<Fetched, String> {
        if self.version != VERSION {
            return Err(format!("it has version {}, this program reads version {VERSION}", self.version));
        }
        let mut nonce = [0; 32];
        hex::decode_to_slice(&self.nonce, &mut nonce).map_err(|error| format!("nonce: {error}"))?;
        let tls_key = STANDARD.decode(&self.tls_key).map_err(|error| format!("tls_key: {error}"))?;
        let certificate =
            STANDARD.decode(&self.certificate).map_err(|error| format!("certificate: {error}"))?;
        Ok(Fetched { evidence: self.evidence, nonce, tls_key, certificate })
    }
}

pub(super) fn run(args: &Fetch) -> Result<Reply, Failure> {
    let address = resolve(&args.url)?;
    let fetched =
        block_on(async { fetch(address).await.map_err(|error| Failure::of("no-evidence", &error)) })?;
    let now = unix_time();
    let handshake = handshake(&fetched, now);
    let record = Record {
        version: VERSION,
        evidence: fetched.evidence,
        nonce: hex::encode(fetched.nonce),
        tls_key: STANDARD.encode(&fetched.tls_key),
        certificate: STANDARD.encode(&fetched.certificate),
        fetched_unix_s: now,
    };
    let json = serde_json::to_value(&record).map_err(|error| Failure::of("record-unwritable", &error))?;
    let good = handshake.is_ok();
    let words = match &handshake {
        Ok(kind) => format!("its TLS certificate carries authentic evidence of kind {kind} for the same key"),
        Err(refusal) => format!("its TLS certificate does not prove its key: {refusal}"),
    };
    let Some(path) = &args.out else {
        eprintln!("{address}: {words}");
        return Ok(Reply { text: format!("{json:#}"), json, good });
    };
    std::fs::write(path, format!("{json:#}\n")).map_err(|error| {
        Failure::new("record-unwritable", format!("cannot write {}: {error}", path.display()))
    })?;
    let text = format!(
        "evidence of {address} is in {}; {words}\nwhat runs there is not verified yet: `redoubt attest verify`",
        path.display()
    );
    let failures = handshake.err().map_or_else(Vec::new, |refusal| refusal.failures().to_vec());
    Ok(Reply {
        text,
        json: json!({ "file": path, "handshake": { "authentic": good, "failures": failures } }),
        good,
    })
}

/// Whether the handshake attested its key: by evidence of whatever kind it says it is of, for `verify` to judge.
fn handshake(fetched: &Fetched, now: u64) -> Result<EvidenceKind, Refusal> {
    let presented = Presented::from_certificate(&fetched.certificate)?;
    let kind = presented.evidence.kind;
    let profile = match kind {
        EvidenceKind::Snp => Profile::Production,
        EvidenceKind::SimSnp => Profile::Virtual,
    };
    let anchors = anchors(profile).unwrap_or_else(TrustAnchors::amd);
    presented.authenticate(&anchors, now, MAX_AGE).map(|_| kind)
}

/// The address in `https://HOST[:PORT]`.
pub(super) fn resolve(url: &str) -> Result<SocketAddr, Failure> {
    let bad = |reason: &str| Failure::new("bad-url", format!("{url}: {reason}; give https://HOST:PORT"));
    let rest =
        url.strip_prefix("https://").ok_or_else(|| bad("evidence is bound to TLS, so this must be https"))?;
    let host = rest.trim_end_matches('/');
    let resolved = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_socket_addrs(),
        _ => (host.trim_matches(['[', ']']), 443).to_socket_addrs(),
    };
    let mut addresses = resolved.map_err(|error| bad(&error.to_string()))?;
    addresses.next().ok_or_else(|| bad("no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_addresses_are_taken() {
        assert_eq!(resolve("https://127.0.0.1:18443").unwrap(), "127.0.0.1:18443".parse().unwrap());
        assert_eq!(resolve("https://127.0.0.1/").unwrap(), "127.0.0.1:443".parse().unwrap());
        assert_eq!(resolve("https://[::1]:5").unwrap(), "[::1]:5".parse().unwrap());
        assert_eq!(resolve("https://[::1]").unwrap(), "[::1]:443".parse().unwrap());
        assert_eq!(resolve("http://127.0.0.1:1").unwrap_err().code, "bad-url");
    }
}
