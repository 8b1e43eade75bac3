//! A verifier's side: keys, challenge, evidence, of a host's operators' port.

use crate::{
    http::{GetError, JSON, send_once},
    operator::{client::OperateError, identity::key_of},
    tls::{Pinned, client_config},
};
use hyper::{Method, body::Bytes};
use measured_boot::evidence::{Evidence, Keys, Known, MAX_DOCUMENT, Record, Refusal, Request, Trust};
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use std::{sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Patience for one request: some TPMs make their keys slowly, the first time.
const PATIENCE: Duration = Duration::from_secs(90);

/// There is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The host.
    #[error(transparent)]
    Host(#[from] OperateError),
    /// Its keys are refused before anything is asked with them.
    #[error(transparent)]
    Keys(#[from] Refusal),
    /// No random numbers.
    #[error("no random numbers: {0}; try again")]
    Random(getrandom::Error),
    /// Not of the form.
    #[error("{node} answers {path} in another form: {source}; use the redoubt command of its release")]
    Form {
        /// The host.
        node: String,
        /// What was asked.
        path: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

impl FetchError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &str {
        match self {
            Self::Host(error) => error.code(),
            Self::Keys(refusal) => refusal.code(),
            Self::Random(_) => "no-random-numbers",
            Self::Form { .. } => "node-answer-unusable",
        }
    }
}

/// Fetches fresh evidence of the host at `node` ("host:port"), whose TLS key has this hash if one is given.
pub async fn fetch(node: &str, tls_key: Option<[u8; 32]>, trust: &Trust) -> Result<Record, FetchError> {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let (_, keys): (_, Keys) = ask(node, tls_key, "/v1/attestation/keys", None).await?;
    let known = Known::judge(&keys, trust, now)?;
    let mut random = [[0; 32]; 4];
    getrandom::fill(random.as_flattened_mut()).map_err(FetchError::Random)?;
    let (request, secret) = known.request(&random)?;
    let (tls_key, evidence): (_, Evidence) =
        ask(node, tls_key, "/v1/attestation/evidence", Some(&request)).await?;
    Ok(Record {
        version: 1,
        fetched_unix_s: now,
        tls_key_sha256: measured_boot::evidence::Hex(tls_key),
        keys,
        request,
        secret,
        evidence,
    })
}

/// One request; the answer, and the hash of the key that the host showed.
async fn ask<T: DeserializeOwned>(
    node: &str,
    pin: Option<[u8; 32]>,
    path: &'static str,
    request: Option<&Request>,
) -> Result<([u8; 32], T), FetchError> {
    let name = || node.to_owned();
    let form = |source| FetchError::Form { node: name(), path, source };
    let (method, body) = match request {
        Some(request) => (Method::POST, serde_json::to_vec(request).map_err(form)?),
        None => (Method::GET, Vec::new()),
    };
    let connector = TlsConnector::from(client_config(Arc::new(Pinned(pin))).map_err(OperateError::Key)?);
    let exchange = async {
        let connect = |source| OperateError::Connect { node: name(), source };
        let tls = |source| OperateError::Tls { node: name(), source };
        let stream = TcpStream::connect(node).await.map_err(connect)?;
        let address = stream.peer_addr().map_err(connect)?;
        let stream =
            connector.connect(ServerName::IpAddress(address.ip().into()), stream).await.map_err(tls)?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let key = shown.map(key_of).transpose().map_err(OperateError::Key)?;
        let key = key.ok_or_else(|| tls(std::io::Error::other("it shows no certificate")))?;
        let answer = send_once(stream, node, method, path, JSON, body, MAX_DOCUMENT).await;
        let answer = answer.map_err(|source: GetError| crate::operator::client::refused(node, source))?;
        Ok::<(_, Bytes), OperateError>((key, answer))
    };
    let (key, answer) = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| OperateError::Timeout { node: name() })??;
    Ok((key, serde_json::from_slice(&answer).map_err(form)?))
}
